"""`lesionaug.augment`: parameters in, patches out, the image touched once (paper III-A; docs/definitions.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from lesionaug.augment.plan import AugmentationParams
from lesionaug.augment.resample import execute
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
