"""Whether a GAN repeats the lesions it learned from: the nearest of them over flips, angles, scales and shifts.

A GAN with forty lesions can score well by repeating them. Here every synthetic image is compared with every lesion as
it looks under fine rotations, flips, scales and shifts, those learned from and those held out. Where nothing was
memorised, neither kind is nearer, once as many of each are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaln
from torch import Tensor

from lesionaug.augment.execute import augment
from lesionaug.augment.plan import AugmentationParams
from lesionaug.data.rois import RoiBatch
from lesionaug.evaluation.distances import Estimate

FloatArray = npt.NDArray[np.float64]
SIZE = 32  # pixels per side at which images are compared
ANGLES_DEG = tuple(float(angle) for angle in range(0, 360, 6))
SIDES = (1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2)  # in diameters: the base ROI and the paper's scalings
SHIFTS_PX = (-2, 0, 2)  # of SIZE, along either axis: what the plan shifts by, 0.1 d at most
_MARGIN = max(SHIFTS_PX)  # what is left out all around, so that a shifted image still fills the window
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Nearest:
    """The most alike view of every lesion, for every image.

    Attributes:
        distance: float32 [N, lesions], 1 - correlation of the pixels: 0 equal up to brightness and contrast, 1 nothing
            in common.
        view: int64 [N, lesions], the view it is with, see `view_params`.
    """

    distance: npt.NDArray[np.float32]
    view: npt.NDArray[np.int64]


def view_params(rois: RoiBatch, lesions: Sequence[int], views: Sequence[int]) -> AugmentationParams:
    """What `lesionaug.augment` makes of a lesion seen in one of the ways images are compared with.

    Args:
        rois: The lesions.
        lesions: [n], which.
        views: [n], 0 .. `num_views()` - 1.
    """
    device = rois.device
    lesion = torch.as_tensor(lesions, dtype=torch.int64, device=device)
    view = torch.as_tensor(views, dtype=torch.int64, device=device)
    angles = torch.tensor(ANGLES_DEG, device=device)
    sides = torch.tensor(SIDES, device=device)
    per_flip = len(ANGLES_DEG) * len(SIDES)
    return AugmentationParams(
        roi=lesion,
        angle=angles[view % per_flip // len(SIDES)],
        flip=(view // per_flip).to(torch.uint8),  # left-right; the other flips are rotations of it
        shift=torch.zeros(len(lesion), 2, device=device),
        side=sides[view % len(SIDES)] * rois.diameters[lesion],
    )


def num_views() -> int:
    """Ways in which a lesion is compared: 2 flips, 60 angles, 9 sides."""
    return 2 * len(ANGLES_DEG) * len(SIDES)


def nearest_views(images: Tensor, rois: RoiBatch, window: tuple[float, float]) -> Nearest:
    """Find the most alike view of every lesion for every image, itself looked at shifted a little each way.

    Args:
        images: [N, 1, S, S] float32 in (0, 1).
        rois: The lesions.
        window: HU that are 0 and 1 in `images`.
    """
    device = rois.device
    small = torch.nn.functional.interpolate(images.to(device), (SIZE, SIZE), mode="bicubic", antialias=True)
    wanted = torch.stack([_unit(_window(small, x, y)) for x in SHIFTS_PX for y in SHIFTS_PX])  # [shifts, N, pixels]
    views, per_lesion = num_views(), []
    best_view = torch.empty(len(images), len(rois), dtype=torch.int64)
    for lesion in range(len(rois)):
        params = view_params(rois, [lesion] * views, list(range(views)))
        seen = _unit(_window(augment(rois, params, size=SIZE, window=window), 0, 0))  # [views, pixels]
        parts = [(part @ seen.T).amax(dim=0).max(dim=1) for part in torch.split(wanted, _ROWS_AT_ONCE, dim=1)]
        per_lesion.append(1 - torch.cat([part.values for part in parts]).cpu())
        best_view[:, lesion] = torch.cat([part.indices for part in parts]).cpu()
    distance = torch.stack(per_lesion, 1) if per_lesion else torch.empty(len(images), 0)
    return Nearest(distance.numpy(), best_view.numpy())


def _window(images: Tensor, x: int, y: int) -> Tensor:
    """The middle of images, moved by (x, y) pixels."""
    first, last = _MARGIN, SIZE - _MARGIN
    return images[..., first + y : last + y, first + x : last + x]


def _unit(images: Tensor) -> Tensor:
    """[N, pixels] of mean 0 and length 1; a constant image stays 0."""
    flat = images.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    lengths: Tensor = flat.norm(dim=1, keepdim=True).clamp(min=1e-3)
    return flat / lengths


def nearer_to_training(to_training: npt.ArrayLike, to_held_out: npt.ArrayLike) -> FloatArray:
    """For each image the chance that a training lesion is nearest when as many of each kind are compared.

    Half is what an image has that knows neither; the larger kind is drawn from without replacement, all draws counted.

    Args:
        to_training: [N, n] distances.
        to_held_out: [N, m] distances.

    Returns:
        [N], 0 .. 1.
    """
    train, held = np.asarray(to_training, dtype=np.float64), np.asarray(to_held_out, dtype=np.float64)
    if train.ndim != 2 or held.ndim != 2 or len(train) != len(held) or 0 in (train.shape[1], held.shape[1]):
        raise ValueError(f"distances must be [N, n] and [N, m], got {train.shape} and {held.shape}")
    if train.shape[1] < held.shape[1]:
        return 1 - nearer_to_training(held, train)
    n, m = train.shape[1], held.shape[1]
    nearer = (train < held.min(axis=1, keepdims=True)).sum(axis=1)  # training lesions nearer than any held out
    # The chance that none of them is among m drawn of n: C(n - nearer, m) / C(n, m).
    with np.errstate(invalid="ignore"):
        log_none = (
            gammaln(n - nearer + 1) - gammaln(np.maximum(n - nearer - m, 0) + 1) - gammaln(n + 1) + gammaln(n - m + 1)
        )
    return np.where(n - nearer < m, 1.0, 1 - np.exp(log_none))


def chance_of_training(
    to_training: npt.ArrayLike,
    to_held_out: npt.ArrayLike,
    training_patients: Sequence[str],
    held_out_patients: Sequence[str],
) -> Estimate:
    """The mean of `nearer_to_training` over images, with an interval that leaves patients out in turn (jackknife).

    Few lesions make it uncertain however many images there are. (A bootstrap over patients will not do: a nearest
    lesion drawn twice is no nearer, and its interval holds a half in two runs of three where it should in nineteen of
    twenty.)

    Args:
        to_training: [N, n] distances.
        to_held_out: [N, m] distances.
        training_patients: [n].
        held_out_patients: [m].

    Raises:
        ValueError: One patient only on either side, sizes that do not fit.
    """
    sides = [np.asarray(distances, dtype=np.float64) for distances in (to_training, to_held_out)]
    chances = nearer_to_training(*sides)
    variance = float(chances.var(ddof=1)) / len(chances) if len(chances) > 1 else 0.0
    for side, patients in enumerate((training_patients, held_out_patients)):
        names, block = np.unique(np.asarray(patients), return_inverse=True)
        if len(names) < 2 or len(block) != sides[side].shape[1]:
            raise ValueError(f"at least two patients, one for each lesion, are needed, got {len(names)}")
        left_out = []
        for patient in range(len(names)):
            kept = list(sides)
            kept[side] = sides[side][:, block != patient]
            left_out.append(nearer_to_training(*kept).mean())
        variance += float(np.var(left_out)) * (len(names) - 1)
    value, reach = float(chances.mean()), 1.96 * variance**0.5
    return Estimate(value, max(value - reach, 0.0), min(value + reach, 1.0))


def membership_auc(
    members: npt.ArrayLike,
    others: npt.ArrayLike,
    member_blocks: npt.ArrayLike | None = None,
    other_blocks: npt.ArrayLike | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How well a score tells members from others: the chance that a member's is the higher (area under the ROC curve).

    0.5: not at all. The 95 % interval is of a bootstrap over patients.

    Args:
        members: [n] scores of training lesions, e.g. the discriminator's logit, or minus the distance to the nearest
            synthetic image.
        others: [m] scores of held-out lesions.
        member_blocks: [n] patients; each lesion its own when None.
        other_blocks: [m] patients.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
    """
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if not len(inside) or not len(outside) or not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("scores of members and of others must be finite, at least one of each")
    wins = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    rng = np.random.default_rng(seed)
    weights = []
    for scores, blocks in ((inside, member_blocks), (outside, other_blocks)):
        names = np.arange(len(scores)) if blocks is None else np.asarray(blocks)
        _, block = np.unique(names, return_inverse=True)
        count = block.max() + 1
        weights.append(rng.multinomial(count, np.full(count, 1 / count), draws)[:, block].astype(float))
    drawn = ((weights[0] @ wins) * weights[1]).sum(1) / (weights[0].sum(1) * weights[1].sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(wins.mean()), float(low), float(high))


def copy_limit(training: RoiBatch, window: tuple[float, float], size: int = 64) -> float:
    """The distance below which an image counts as a copy: what 99 of 100 lesions keep from those of other patients.

    Made from training lesions alone, so that images may be rejected by it without a look at the held-out fold.

    Args:
        training: Lesions learned from, of one class, of at least two patients.
        window: HU that are 0 and 1.
        size: Pixels per side of an image.

    Raises:
        ValueError: Lesions of one patient only.
    """
    from lesionaug.augment.plan import originals

    images = augment(training, originals(training), size=size, window=window)
    return copy_limit_of(nearest_views(images, training, window).distance, training.patient_ids)


def copy_limit_of(distance: npt.ArrayLike, patient_ids: Sequence[str]) -> float:
    """`copy_limit` from distances that are known already.

    Args:
        distance: [n, n], of every training lesion's un-augmented ROI from every training lesion.
        patient_ids: [n].

    Raises:
        ValueError: Lesions of one patient only.
    """
    patients = np.array(patient_ids)
    if len(set(patients)) < 2:
        raise ValueError(f"lesions of at least two patients are needed, got {len(set(patients))}")
    others = np.where(patients[:, None] != patients[None, :], distance, np.inf)
    return float(np.quantile(others.min(axis=1), 0.01))
