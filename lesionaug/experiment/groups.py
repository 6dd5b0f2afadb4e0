"""Nested classic groups (section IV-B): the originals plus the same number of augmentations of every lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lesionaug.augment.execute import augment
from lesionaug.augment.plan import originals
from lesionaug.data.rois import RoiBatch
from lesionaug.errors import ConfigError
from lesionaug.experiment.config import ImageConfig, PlanConfig


@dataclass(frozen=True)
class ClassicGroup:
    """One point of Fig. 8.

    Attributes:
        size: Images asked for per fold, as the paper counts.
        per_lesion: Augmentations each lesion gives, beside its original.
        capped: The plan has fewer augmentations than `size` would need, so the group is smaller than asked.
    """

    size: int
    per_lesion: int
    capped: bool


def classic_groups(
    sizes: Sequence[int], num_folds: int, num_lesions: int, plan_length: int
) -> tuple[ClassicGroup, ...]:
    """Turn sizes per fold into augmentations per lesion: m = round(num_folds * size / num_lesions), at most the plan's.

    Args:
        sizes: Ascending.
        num_folds: Folds of the cross validation.
        num_lesions: Lesions of the whole data set.
        plan_length: Augmentations of a lesion that exist (the paper: 480).

    Raises:
        ConfigError: Two sizes that would be one and the same group.
    """
    groups: list[ClassicGroup] = []
    for size in sizes:
        wanted = round(num_folds * size / num_lesions)
        group = ClassicGroup(size, min(wanted, plan_length), wanted > plan_length)
        if groups and groups[-1].per_lesion == group.per_lesion:
            raise ConfigError(
                "classic_groups",
                f"with {num_lesions} lesions, groups {groups[-1].size} and {size} would be the same "
                f"{group.per_lesion} augmentations per lesion",
                f"Leave one out; the plan's {plan_length} augmentations reach "
                f"{plan_length * num_lesions // num_folds} images per fold",
            )
        groups.append(group)
    return tuple(groups)


@dataclass(frozen=True, eq=False)
class ClassicPool:
    """Originals and augmentations of some lesions, laid out so that every smaller group is a prefix of a larger one.

    Attributes:
        images: [1 + m, n, 1, S, S] float32 in (0, 1): the originals, then each lesion's augmentations in nested order.
        labels: [n] int64.
    """

    images: torch.Tensor
    labels: torch.Tensor

    @property
    def per_lesion(self) -> int:
        """Augmentations per lesion of the largest group it holds."""
        return len(self.images) - 1

    def group(self, per_lesion: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images [(1 + per_lesion) n, 1, S, S], a view, and their labels."""
        if not 0 <= per_lesion <= self.per_lesion:
            raise ValueError(f"per_lesion must be in 0 .. {self.per_lesion}, got {per_lesion}")
        return self.images[: 1 + per_lesion].flatten(0, 1), self.labels.repeat(1 + per_lesion)


def build_pool(rois: RoiBatch, per_lesion: int, *, size: int, plan: PlanConfig, image: ImageConfig) -> ClassicPool:
    """Augment lesions for their largest group.

    Args:
        rois: The training lesions of one split (or its test lesions, with `per_lesion` 0), on any device.
        per_lesion: Augmentations per lesion, in the plan's nested order.
        size: Pixels per side.
        plan: What is drawn.
        image: Window and resampling.
    """
    window = image.window_hu
    recipe = plan.build()
    order = recipe.order(rois, seed=plan.seed)  # [n, 480]
    images = torch.empty(1 + per_lesion, len(rois), 1, size, size, device=rois.device)
    for variant in range(1 + per_lesion):
        if variant == 0:
            params = originals(rois)
        else:
            params = recipe.sample(rois, seed=plan.seed, indices=order[:, variant - 1 : variant])
        augment(
            rois,
            params,
            size=size,
            window=window,
            a=image.a,
            antialias=image.antialias,
            border=image.border,
            out=images[variant],
        )
    return ClassicPool(images, rois.labels.clone())
