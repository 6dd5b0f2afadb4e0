"""`lesionaug.resample`: any images, any matrices, one bicubic resample each (docs/definitions.md section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionaug.augment.ops import MAX_SIZE, Sampling, Sources  # importing registers the operators
from lesionaug.data.arrays import check_pixel_dtype, to_tensor
from lesionaug.data.rois import PackedImages, RoiBatch

LARGEST = 1e30  # of windows and fill values: its inverse and the width of a window still fit a float32


def resample(
    images: Tensor | RoiBatch | Sequence[Any],
    matrices: Any,
    size: int = 64,
    *,
    image_index: Any | None = None,
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
    """Sample square patches from images of any size, each through its own affine map.

    The value at a patch pixel whose centre maps to (x, y) is the sum of the source pixels weighed by Keys' cubic
    kernel, stretched where the map shrinks the image, over the sum of the weights. Points are (x, y) with the origin at
    the top-left corner of an image; the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).

    Args:
        images: A list of 2-D arrays [height, width] of any sizes, a RoiBatch, or dense [N, C, H, W]; int16, uint8,
            uint16, float16, bfloat16, float32 or float64. Floating tensors may require gradients.
        matrices: float32 or float64 [N, 2, 3]: `patch_to_image`, takes a patch point to an image point.
        size: Height and width of a patch, 1 .. 4096 pixels.
        image_index: Integer [N], the image of each patch; default 0 .. N - 1.
        window: (low, high) in source units: sources are clipped and scaled to (0, 1) before they are interpolated,
            the result is clamped to (0, 1) and mapped to `out_range`.
        out_range: Where a window's (0, 1) goes; default (0, 1), or (0, 255) for uint8. Refused without a window.
        dtype: Of the patches: float32, float16, bfloat16, float64, or uint8 (rounded half to even, saturating).
            Ignored where `out` is given.
        a: Parameter of Keys' kernel, -1 .. 0: -0.5 is MATLAB's and Pillow's, -0.75 OpenCV's and grid_sample's.
        antialias: Stretch the kernel where the map shrinks the image.
        border: "reflect" (about the edge, as MATLAB), "replicate", "constant" (`fill`, in source units) or "renorm"
            (pixels outside are left out of the sums).
        fill: The constant border's value.
        out: Where to write, contiguous [N, C, size, size], not the memory of the images; saves the allocation.
        check: On a CUDA device, wait for the maps and raise as on the CPU. Without it a map that is not finite, an
            index out of range or a zoom beyond 256 gives a patch of NaN (0 for uint8), never a stray read.

    Returns:
        [N, C, size, size]; C is 1 for ragged images.

    Raises:
        TypeError: For dtypes outside the lists above.
        ValueError: For shapes, devices or options that do not fit, and on the CPU for maps that are not finite, indices
            out of range, or more than 256 source pixels per patch pixel.

    On a CUDA device nothing waits for the GPU and nothing beyond the patches is allocated, as long as images, matrices
    and image_index are tensors there (lists and arrays are copied over) and no gradient is asked for.
    """
    sources = _sources(images)
    device = sources.pixels.device
    matrix = to_tensor(matrices, "matrices")
    if matrix.ndim != 3 or matrix.shape[1:] != (2, 3):
        raise ValueError(f"matrices must have shape [N, 2, 3], got {list(matrix.shape)}")
    index = None
    if image_index is not None:
        index = to_tensor(image_index, "image_index")
        if index.numel() and (index.is_floating_point() or index.dtype in (torch.bool, torch.uint64)):
            raise TypeError(f"image_index must be integers, got {index.dtype}")
        index = index.to(torch.int64)
    if not isinstance(matrices, Tensor):
        matrix = matrix.to(device)
    if index is not None and not isinstance(image_index, Tensor):
        index = index.to(device)
    sources = Sources(sources.pixels, sources.offsets, sources.sizes, index, None, matrix.detach())
    return execute(
        sources,
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


def execute(
    sources: Sources,
    size: int,
    window: tuple[float, float] | None,
    out_range: tuple[float, float] | None,
    dtype: torch.dtype,
    *,
    a: float,
    antialias: bool,
    border: str,
    fill: float,
    out: Tensor | None,
    check: bool,
) -> Tensor:
    """Check the options and make the one native call; shared by `resample` and `augment`."""
    if out is not None:
        if not isinstance(out, Tensor):
            raise TypeError(f"out must be a torch tensor, got {type(out).__name__}")
        if out.requires_grad:
            raise ValueError("out requires gradients, which writing into it would lose: detach it")
        dtype = out.dtype
    if not isinstance(check, bool):
        raise TypeError(f"check must be True or False, got {check!r}")
    size = patch_size(size)
    sampling = sampling_options(
        dtype, window=window, out_range=out_range, a=a, antialias=antialias, border=border, fill=fill
    )
    differentiable = sources.pixels.requires_grad and torch.is_grad_enabled()
    if differentiable and (out is not None or not dtype.is_floating_point):
        raise ValueError("images require gradients, which neither `out` nor uint8 patches can carry: detach the images")
    if differentiable and sampling.window is not None:
        return _windowed_with_gradient(sources, size, sampling, dtype, check)
    return _call(sources, size, sampling, dtype, out, check)


def _call(sources: Sources, size: int, s: Sampling, dtype: torch.dtype, out: Tensor | None, check: bool) -> Tensor:
    window = None if s.window is None else list(s.window)
    options = (size, s.antialias, s.border, s.a, s.fill, window, list(s.out_range))
    if out is None:
        result: Tensor = torch.ops.lesionaug.resample(*sources.tensors(), *options, dtype, check)
        return result
    torch.ops.lesionaug.resample_out(*sources.tensors(), *options, out, check)
    return out


def _windowed_with_gradient(sources: Sources, size: int, s: Sampling, dtype: torch.dtype, check: bool) -> Tensor:
    """The window as torch operations around the linear operator, so that autograd masks what was clipped."""
    assert s.window is not None
    wide = torch.float64 in (sources.pixels.dtype, dtype)
    compute = torch.float64 if wide else torch.float32
    low, high = s.window

    def scale(values: Tensor) -> Tensor:
        return ((values.to(compute) - low) * (1 / (high - low))).clamp(0, 1)

    plain = Sampling(s.antialias, s.border, s.a, min(max((s.fill - low) / (high - low), 0.0), 1.0))
    pixels = scale(sources.pixels)
    patches = _call(Sources(pixels, *sources.tensors()[1:]), size, plain, compute, None, check)
    return (s.out_range[0] + patches.clamp(0, 1) * (s.out_range[1] - s.out_range[0])).to(dtype)


def whole_number(value: Any, name: str) -> int:
    """Return `value` when it is a whole number, else raise TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return value  # type: ignore[return-value]


def patch_size(value: Any) -> int:
    """Return `value` when it can be the size of a patch, else raise TypeError or ValueError."""
    size = whole_number(value, "size")
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"size must lie in 1 .. {MAX_SIZE} pixels, got {size}")
    return size


def sampling_options(
    dtype: torch.dtype,
    *,
    window: tuple[float, float] | None = None,
    out_range: tuple[float, float] | None = None,
    a: float = Sampling.a,
    antialias: bool = Sampling.antialias,
    border: str = Sampling.border,
    fill: float = Sampling.fill,
) -> Sampling:
    """The options of `resample` that say how to sample, checked."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.float32, got {dtype!r}")
    if not isinstance(antialias, bool):
        raise TypeError(f"antialias must be True or False, got {antialias!r}")
    if not isinstance(border, str):
        raise TypeError(f"border must be a string, got {border!r}")
    a, fill = _number(a, "a"), _number(fill, "fill")
    if not -1 <= a <= 0:
        raise ValueError(f"a must lie in -1 .. 0 (-0.5: MATLAB and Pillow, -0.75: OpenCV and grid_sample), got {a}")
    if window is None:
        if out_range is not None:
            raise ValueError("out_range maps a window's (0, 1); give window=(low, high) too, or leave out_range out")
        return Sampling(antialias, border, a, fill)
    low, high = _pair(window, "window")
    if not high - low > 1 / LARGEST:
        raise ValueError(f"window must be (low, high) with low < high, got ({low}, {high})")
    default = (0.0, 255.0) if dtype == torch.uint8 else (0.0, 1.0)
    limits = default if out_range is None else _pair(out_range, "out_range")
    return Sampling(antialias, border, a, fill, (low, high), limits)


def _pair(values: Any, name: str) -> tuple[float, float]:
    try:
        low, high = values
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair of numbers, got {values!r}") from None
    return _number(low, name), _number(high, name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not -LARGEST <= value <= LARGEST:  # also refuses NaN, and needs no function that torch.compile cannot trace
        raise ValueError(f"{name} must be finite and within -1e30 .. 1e30, got {value}")
    return float(value)


def _sources(images: Tensor | RoiBatch | Sequence[Any]) -> Sources:
    """Dense or packed images; a list is packed here."""
    if isinstance(images, RoiBatch):
        return roi_sources(images)
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images is empty: at least one 2-D array is needed")
        tensors = [to_tensor(image, f"images[{i}]") for i, image in enumerate(images)]
        for i, tensor in enumerate(tensors):
            if tensor.ndim != 2 or tensor.numel() == 0:
                raise ValueError(f"images[{i}] must be 2-D with at least one pixel, got shape {list(tensor.shape)}")
            check_pixel_dtype(tensor, f"images[{i}]")
            if (tensor.dtype, tensor.device) != (tensors[0].dtype, tensors[0].device):
                raise TypeError(
                    f"images[{i}] is {tensor.dtype} on {tensor.device}, images[0] {tensors[0].dtype} on "
                    f"{tensors[0].device}: use one dtype and device"
                )
        packed = PackedImages.pack(tensors)
        return Sources(packed.pixels, packed.offsets, packed.sizes)
    dense = to_tensor(images, "images")
    if dense.ndim != 4:
        raise ValueError(
            f"images must be [N, C, H, W], a RoiBatch or a list of 2-D arrays, got shape {list(dense.shape)}"
        )
    return Sources(dense)


def roi_sources(rois: RoiBatch) -> Sources:
    """The images of a batch, without maps."""
    return Sources(rois.packed.pixels, rois.packed.offsets, rois.packed.sizes)
