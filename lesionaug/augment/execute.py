"""`lesionaug.augment`: parameters in, patches out, the image touched once (paper III-A; docs/definitions.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lesionaug.augment import native
from lesionaug.augment.ops import MAX_SIGMA, check_output, native_arguments, ready
from lesionaug.augment.plan import AugmentationParams, AugmentationPlan, originals
from lesionaug.augment.resample import execute, patch_size, sampling_options
from lesionaug.data.rois import RoiBatch


def augment(
    rois: RoiBatch,
    params: AugmentationParams,
    size: int = 64,
    window: tuple[float, float] | None = None,
    out_range: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    a: float = -0.5,
    antialias: bool = True,
    border: str = "reflect",
    fill: float = 0.0,
    out: Tensor | None = None,
    check: bool = False,
) -> Tensor:
    """Rotate, flip, shift, rescale and resize lesions in one bicubic resample each.

    Args:
        rois: The lesions.
        params: What to do, one row per patch: `plan.sample(rois)`, `lesionaug.originals(rois)` or rows of these.
        size: Height and width of a patch, pixels.
        window: (low, high) in source units, e.g. HU; see `lesionaug.resample`, as for everything below.
        out_range: Where the window's (0, 1) goes.
        dtype: Of the patches.
        a: Parameter of Keys' kernel.
        antialias: Stretch the kernel where the patch shrinks the image.
        border: What lies beyond the stored part of the slice.
        fill: The constant border's value.
        out: Where to write, contiguous [N, 1, size, size].
        check: On a CUDA device, wait and raise as on the CPU.

    Returns:
        [N, 1, size, size], in the order of `params`. The bits of a patch do not depend on the other rows, nor on the
        number of threads.

    Raises:
        TypeError, ValueError: As `lesionaug.resample`.
    """
    if not isinstance(params, AugmentationParams):
        raise TypeError(f"params must be AugmentationParams (plan.sample, originals), got {type(params).__name__}")
    return execute(
        params.sources(rois),
        size,
        window,
        out_range,
        dtype,
        a=a,
        antialias=antialias,
        border=border,
        fill=fill,
        out=out,
        check=check,
    )


class PlannedAugmentation:
    """Rows of a plan in, patches out: parameters are drawn and carried out in one native call, one launch on a GPU.

    Equal bit for bit to `augment` of `plan.sample_rows(rois, rows >> 32, rows & 0xFFFFFFFF, seed)`.

    Args:
        rois: The lesions; their pixels must not require gradients.
        plan: What is drawn from.
        seed: 0 .. 2^64 - 1.
        size: Height and width of a patch, pixels.
        dtype: Of the patches.
        check: On a CUDA device, wait here and look at the lesions as on the CPU.
        **options: window, out_range, a, antialias, border, fill: as `lesionaug.augment`.

    Raises:
        TypeError, ValueError: As `lesionaug.augment`; where a lesion is too large for some patch of the plan, already
            here.
    """

    def __init__(
        self,
        rois: RoiBatch,
        plan: AugmentationPlan,
        seed: int = 0,
        size: int = 64,
        dtype: torch.dtype = torch.float32,
        check: bool = False,
        **options: Any,
    ) -> None:
        if rois.packed.pixels.requires_grad:
            raise ValueError(
                "the lesions' pixels require gradients, which batches of a plan do not carry: detach them, or use "
                "lesionaug.augment"
            )
        self._rois, self._plan, self._seed = rois, plan, seed
        self._size, self._dtype, self._device = patch_size(size), dtype, rois.device
        self._sampling = sampling_options(dtype, **options)
        none = originals(rois)[:0]  # rows are drawn in the call
        self._sources = ready(none.sources(rois).tensors(), self._size)
        check_output(self._sources, self._size, self._sampling, dtype, None)
        self._connect()
        if check or not self._backend.asynchronous:
            self._check_sides()

    def __call__(self, rows: Tensor) -> Tensor:
        """The patches of these rows.

        Args:
            rows: int64 [N] on the lesions' device, lesion x 2^32 + augmentation. One that does not exist gives a
                patch of NaN (0 for uint8).

        Returns:
            [N, 1, size, size].
        """
        if rows.ndim != 1 or rows.dtype != torch.int64 or rows.device != self._device:
            raise ValueError(f"rows must be int64 [N] on {self._device}, got {rows.dtype} {list(rows.shape)}")
        if self._addresses != self._current_addresses():
            self._connect()
        rows = rows.contiguous()
        out = torch.empty((len(rows), 1, self._size, self._size), dtype=self._dtype, device=self._device)
        if len(rows):
            self._backend.resample(self._call.of_rows(native.pointer(rows), len(rows), native.pointer(out)))
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None, "_call": None, "_addresses": ()}

    def _connect(self) -> None:
        """Make the call, which holds the addresses of the lesions' tensors."""
        self._backend = native.backend(self._device)
        drawn = self._plan.arguments(self._backend, self._rois, self._seed)
        like = torch.empty(0, dtype=self._dtype, device=self._device)
        self._call = native_arguments(self._backend, self._sources, self._size, self._sampling, like, drawn)
        self._addresses = self._current_addresses()

    def _current_addresses(self) -> tuple[int, ...]:
        """Where the tensors lie now: sharing a tensor with another process moves it."""
        s, rois = self._sources, self._rois
        tensors = (s.pixels, s.offsets, s.sizes, s.centers, s.spacing, rois.lesion_keys, rois.diameters)
        return tuple(native.pointer(tensor) for tensor in tensors)

    def _check_sides(self) -> None:
        plan, diameters = self._plan, self._rois.diameters
        margin = plan.scale_low + plan.scale_span if plan.n_scale else 0.0
        sides = (plan.base_side + 2 * margin) * diameters.double()
        most = MAX_SIGMA * self._size if self._sampling.antialias else float(torch.finfo(torch.float32).max)
        bad = torch.nonzero(~(sides <= most))
        if len(bad):
            i = int(bad[0])
            raise ValueError(
                f"lesion {self._rois.lesion_ids[i]!r} is too large: its diameter is {float(diameters[i]):g} pixels, so "
                f"its patches reach a side of {float(sides[i]):g}, more than {most:g} (with antialias=True {MAX_SIGMA} "
                f"for each of a patch's {self._size} pixels): use larger patches or a coarser image"
            )
