"""The paper's classic augmentation as data: which rotations, flips, shifts and scalings a lesion gets (paper III-A).

Choose, then do: everything random is drawn here, from numbers that depend on the seed, the lesion's id and the index of
the augmentation alone; `lesionaug.augment` then carries the parameters out.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionaug.augment import native
from lesionaug.augment.ops import Sources
from lesionaug.augment.philox import MASK32, check_seed, philox
from lesionaug.augment.resample import patch_size
from lesionaug.data.arrays import to_tensor
from lesionaug.data.rois import RoiBatch

MOST_AUGMENTATIONS = 2**31 - 1  # of a lesion: an index is one 32-bit word of a counter
ORDER_ROTATION = 0xFFFFFFFF  # no plan has that many rotations, so the order's words are nobody else's


@dataclass(frozen=True, eq=False, repr=False)
class AugmentationParams:
    """Parameters of N patches, one row each; replayable and independent of how they were drawn.

    Attributes:
        roi: int64 [N], which lesion of the batch.
        angle: float32 [N], degrees; positive turns the picture counter-clockwise.
        flip: uint8 [N], bit 0 left-right, bit 1 up-down.
        shift: float32 [N, 2], (x, y) along the patch's axes, source pixels.
        side: float32 [N], side of the square that becomes the patch, source pixels.
    """

    roi: Tensor
    angle: Tensor
    flip: Tensor
    shift: Tensor
    side: Tensor

    def __len__(self) -> int:
        return len(self.roi)

    def __repr__(self) -> str:
        return f"AugmentationParams({len(self)} patches, {self.roi.device})"

    def __getitem__(self, rows: Any) -> AugmentationParams:
        """The chosen rows (a slice, a mask or integer indices)."""
        single = rows.ndim == 0 if isinstance(rows, (Tensor, np.ndarray)) else hasattr(rows, "__index__")
        if single:
            row = operator.index(rows)
            if not -len(self) <= row < len(self):
                raise IndexError(f"row {row} is out of range: there are {len(self)}")
            rows = slice(row % len(self), row % len(self) + 1)
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> AugmentationParams:
        """The same parameters on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def patch_to_image(self, rois: RoiBatch, size: int = 64) -> Tensor:
        """The maps as matrices, flips folded in.

        Args:
            rois: The batch that `roi` counts in.
            size: Height and width of a patch, pixels.

        Returns:
            float32 [N, 2, 3]: takes a patch point (x, y) to a point of the lesion's image.
        """
        sources = self.sources(rois)
        matrices: Tensor = torch.ops.lesionaug.patch_to_image(*sources.tensors(), patch_size(size), False)
        return matrices

    def sources(self, rois: RoiBatch) -> Sources:
        """The batch and these parameters as the arguments of an operator; parameters have no gradients."""
        if not isinstance(rois, RoiBatch):
            raise TypeError(f"rois must be a RoiBatch, got {type(rois).__name__}")
        packed = rois.packed

        def column(name: str, dtype: torch.dtype) -> Tensor:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                return value.detach()
            return to_tensor(value, name).to(device=rois.device, dtype=dtype)

        return Sources(
            pixels=packed.pixels,
            offsets=packed.offsets,
            sizes=packed.sizes,
            image_index=column("roi", torch.int64),
            flip=column("flip", torch.uint8),
            centers=rois.centers,
            spacing=rois.spacing_mm,
            angle=column("angle", torch.float32),
            shift=column("shift", torch.float32),
            side=column("side", torch.float32),
        )

    def _map(self, change: Any) -> AugmentationParams:
        return AugmentationParams(
            **{field.name: change(getattr(self, field.name)) for field in dataclasses.fields(self)}
        )


@dataclass(frozen=True)
class AugmentationPlan:
    """The paper's plan: every rotated ROI is kept, flipped, shifted and rescaled, one at a time.

    Augmentation k of a lesion is variant `k % variants` of rotation `k // variants`; the variants are the rotated ROI
    itself, its flips (up-down, left-right, both), `n_trans` shifts and `n_scale` scalings, in that order. So there are
    n_rot (1 + n_flip + n_trans + n_scale) = 480 of them.

    Attributes:
        n_rot: Rotations per lesion, by angles uniform in [0, max_angle).
        n_flip: Flips per rotation, 0 .. 3.
        n_trans: Shifts per rotation, uniform in (-p, p) in x and y, p = min(max_shift_px, shift_fraction d).
        n_scale: Scalings per rotation: s = d (scale_low + scale_span u) more tissue on every side.
        max_angle_deg: End of the angles, degrees.
        base_side: Side of the un-augmented ROI in lesion diameters d: the lesion and 0.2 d around it.
        shift_fraction: Largest shift in lesion diameters.
        max_shift_px: Largest shift in source pixels.
        scale_low: Smallest added margin per side in lesion diameters.
        scale_span: Largest less smallest added margin (the paper's [0.1 d, 0.4 d] has the span 0.3).
    """

    n_rot: int = 30
    n_flip: int = 3
    n_trans: int = 7
    n_scale: int = 5
    max_angle_deg: float = 180.0
    base_side: float = 1.4
    shift_fraction: float = 0.1
    max_shift_px: float = 4.0
    scale_low: float = 0.1
    scale_span: float = 0.3

    def __post_init__(self) -> None:
        for name, least, most in (("n_rot", 1, 2**20), ("n_flip", 0, 3), ("n_trans", 0, 2**20), ("n_scale", 0, 2**20)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if not least <= value <= most:
                raise ValueError(f"{name} must lie in {least} .. {most}, got {value}")
        for name in ("max_angle_deg", "base_side", "shift_fraction", "max_shift_px", "scale_low", "scale_span"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < 1e30:
                raise ValueError(f"{name} must be finite and not below 0, got {value}")
        if self.base_side == 0:
            raise ValueError("base_side must be above 0")
        if len(self) > MOST_AUGMENTATIONS:
            raise ValueError(f"the plan has {len(self)} augmentations of a lesion; at most {MOST_AUGMENTATIONS} can be")

    @property
    def variants(self) -> int:
        """What a rotation is made into: itself, its flips, shifts and scalings."""
        return 1 + self.n_flip + self.n_trans + self.n_scale

    def __len__(self) -> int:
        return self.n_rot * self.variants

    def sample(self, rois: RoiBatch, seed: int = 0, indices: Any | None = None) -> AugmentationParams:
        """The parameters of the plan for every lesion of a batch.

        A lesion's parameters depend on the seed, its id and the index alone: not on the batch, its order, the device or
        the number of threads.

        Args:
            rois: n lesions.
            seed: 0 .. 2^64 - 1.
            indices: Integer [m], the augmentations wanted of every lesion, or [n, m]; default all, 0 .. len(plan) - 1.

        Returns:
            n x m rows, lesion-major, on the batch's device.

        Raises:
            ValueError: For a seed or indices out of range, or a wrong shape. Indices that live on a CUDA device are not
                looked at: one out of range gives a patch of NaN.
        """
        n = len(rois)
        index = None
        if indices is not None:
            index = self._check_indices(to_tensor(indices, "indices"), n, rois.device)
        m = len(self) if index is None else index.shape[-1]
        return self._draw(rois, seed, n * m, m, None, index, index is not None and index.ndim == 2)

    def sample_rows(self, rois: RoiBatch, roi: Tensor, indices: Tensor, seed: int = 0) -> AugmentationParams:
        """The parameters of chosen (lesion, augmentation) pairs.

        Args:
            rois: The lesions.
            roi: int64 [N], which lesion, 0 .. n - 1, on the batch's device.
            indices: int64 [N], which augmentation, 0 .. len(plan) - 1, on the batch's device.
            seed: 0 .. 2^64 - 1.

        Raises:
            ValueError: For wrong shapes, dtypes or devices, and on the CPU for values out of range; on CUDA those
                give patches of NaN.
        """
        if roi.shape != indices.shape or roi.ndim != 1 or {roi.dtype, indices.dtype} != {torch.int64}:
            raise ValueError("roi and indices must both be int64 [N]")
        if {roi.device, indices.device} != {rois.device}:
            raise ValueError(f"roi and indices must be on the batch's device, {rois.device}")
        if rois.device.type == "cpu":
            _check_range(roi, "roi", len(rois))
            _check_range(indices, "indices", len(self))
        return self._draw(rois, seed, len(roi), len(self), roi.contiguous(), indices.contiguous(), True)

    def order(self, rois: RoiBatch, seed: int = 0) -> Tensor:
        """The nested selection order: a group of m per lesion is the originals and the first m of each row.

        Returns:
            int64 [n, len(plan)], each row a permutation of 0 .. len(plan) - 1 that depends on the seed and the
            lesion's id alone, on the batch's device.
        """
        keys = rois.lesion_keys.repeat_interleave(len(self))
        k = torch.arange(len(self), device=rois.device).repeat(len(rois))
        counters = torch.stack([k, torch.full_like(k, ORDER_ROTATION), keys & MASK32, (keys >> 32) & MASK32], dim=1)
        words = philox(counters, seed)[:, 0].view(len(rois), len(self))
        return words.sort(dim=1, stable=True).indices

    def _check_indices(self, index: Tensor, n: int, device: torch.device) -> Tensor:
        if index.numel() and (index.is_floating_point() or index.dtype in (torch.bool, torch.uint64)):
            raise TypeError(f"indices must be integers, got {index.dtype}")
        if index.ndim not in (1, 2) or (index.ndim == 2 and index.shape[0] != n):
            raise ValueError(f"indices must have shape [m] or [{n}, m], got {list(index.shape)}")
        index = index.to(torch.int64).contiguous()
        moved = index.to(device)
        for values in (index, moved):
            if values.device.type == "cpu":
                _check_range(values, "indices", len(self))
                break
        return moved

    def _draw(
        self,
        rois: RoiBatch,
        seed: int,
        num_rows: int,
        num_indices: int,
        lesions: Tensor | None,
        indices: Tensor | None,
        index_per_row: bool,
    ) -> AugmentationParams:
        device = rois.device
        params = AugmentationParams(
            roi=torch.empty(num_rows, dtype=torch.int64, device=device),
            angle=torch.empty(num_rows, dtype=torch.float32, device=device),
            flip=torch.empty(num_rows, dtype=torch.uint8, device=device),
            shift=torch.empty((num_rows, 2), dtype=torch.float32, device=device),
            side=torch.empty(num_rows, dtype=torch.float32, device=device),
        )
        check_seed(seed)
        if num_rows == 0:
            return params
        backend = native.backend(device)
        backend.sample_plan(
            self.arguments(
                backend,
                rois,
                seed,
                num_rows=num_rows,
                num_indices=num_indices,
                lesions=native.pointer(lesions),
                indices=native.pointer(indices),
                index_per_row=index_per_row,
                roi=native.pointer(params.roi),
                angle=native.pointer(params.angle),
                flip=native.pointer(params.flip),
                shift=native.pointer(params.shift),
                side=native.pointer(params.side),
            )
        )
        return params

    def arguments(self, backend: Any, rois: RoiBatch, seed: int, **rows: Any) -> Any:
        """The plan of these lesions as the struct of csrc/plan.h; `rois` must outlive it.

        Args:
            backend: Who will run it.
            rois: The lesions.
            seed: 0 .. 2^64 - 1.
            **rows: Which rows are drawn and the addresses they are written to; none where a call draws its own.
        """
        return backend.module.PlanArgs(
            seed=check_seed(seed),
            num_rois=len(rois),
            lesion_keys=native.pointer(rois.lesion_keys),
            diameters=native.pointer(rois.diameters),
            n_rot=self.n_rot,
            n_flip=self.n_flip,
            n_trans=self.n_trans,
            n_scale=self.n_scale,
            max_angle=self.max_angle_deg,
            base_side=self.base_side,
            shift_fraction=self.shift_fraction,
            max_shift=self.max_shift_px,
            scale_low=self.scale_low,
            scale_span=self.scale_span,
            **rows,
        )


def _check_range(values: Tensor, name: str, count: int) -> None:
    if values.numel():
        low, high = (int(bound) for bound in values.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"{name} must lie in 0 .. {count - 1}, got {low} .. {high}")


def originals(rois: RoiBatch, base_side: float = AugmentationPlan.base_side) -> AugmentationParams:
    """The un-augmented ROIs: the lesion and the tissue around it, neither turned, flipped nor shifted.

    Args:
        rois: n lesions.
        base_side: Side of the ROI in lesion diameters.

    Returns:
        n rows, on the batch's device.
    """
    n, device = len(rois), rois.device
    return AugmentationParams(
        roi=torch.arange(n, dtype=torch.int64, device=device),
        angle=torch.zeros(n, dtype=torch.float32, device=device),
        flip=torch.zeros(n, dtype=torch.uint8, device=device),
        shift=torch.zeros((n, 2), dtype=torch.float32, device=device),
        side=(base_side * rois.diameters.double()).float(),
    )
