"""Anything array-like becomes a torch tensor here: torch, NumPy, DLPack producers, nested lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lesionaug.errors import DataError

PIXEL_DTYPES = (
    torch.int16,
    torch.uint8,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
MAX_LENGTH = 2**29  # rows or columns of an image: twice as much must fit an int32 in the kernels


def check_unit_range(images: Tensor) -> None:
    """Refuse pixels that are not finite or outside (0, 1), the range of a window.

    Raises:
        DataError: With the lowest and the highest.
    """
    low, high = (float(bound) for bound in images.aminmax())  # NaN if any pixel is NaN
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(
            "images", f"pixels must be finite and in (0, 1), got {low} to {high}", "Pass a window to `augment`"
        )


def to_tensor(value: Any, name: str) -> Tensor:
    """Return `value` as a tensor, without a copy where that is safe.

    Args:
        value: A torch tensor, a NumPy array, an object with `__dlpack__`, or a nested sequence of numbers.
        name: What the value is called in the caller's signature, for the error.

    Raises:
        TypeError: When `value` is nothing that holds numbers.
    """
    if hasattr(value, "__dlpack__") and not isinstance(value, (Tensor, np.ndarray)):
        value = from_dlpack(value)
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{name} must be an array of numbers (torch, NumPy or DLPack), got {_kind(value)}") from error
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} must be an array of numbers (torch, NumPy or DLPack), got {_kind(value)}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch knows the machine's byte order only
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    if not array.flags.writeable or not array.flags.aligned or odd:
        array = array.copy()  # torch has neither read-only tensors nor negative or broken strides
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name} has dtype {array.dtype}, which torch does not know") from error


def check_pixel_dtype(tensor: Tensor, name: str) -> None:
    """Raise TypeError unless the kernels can read `tensor`'s dtype."""
    if tensor.dtype not in PIXEL_DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in PIXEL_DTYPES)
        raise TypeError(f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; pixels must be one of {known}")


def _kind(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ + (f" of {dtype}" if dtype is not None else "")
