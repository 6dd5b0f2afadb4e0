"""Who runs a kernel: the CPU loops or the CUDA launches of `lesionaug._native`, over raw pointers."""

from __future__ import annotations

import functools
import math
import os
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from lesionaug.errors import EnvironmentProblem

try:
    from lesionaug import _native as native_module
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise EnvironmentProblem(
        "lesionaug._native",
        f"the compiled kernels cannot be imported ({error})",
        "Install the package with `pip install .`; a bare checkout holds no compiled code.",
    ) from error

# The order of `enum class Dtype` in csrc/portable.h.
DTYPE_CODES = {
    torch.int16: 0,
    torch.uint8: 1,
    torch.uint16: 2,
    torch.float16: 3,
    torch.bfloat16: 4,
    torch.float32: 5,
    torch.float64: 6,
}
BORDERS = ("reflect", "replicate", "constant", "renorm")  # the order of `enum class Border` in csrc/resample.h


def pointer(tensor: Tensor | None) -> int:
    """Address of a contiguous tensor's first element; 0 stands for an argument not given."""
    return 0 if tensor is None else tensor.data_ptr()


class Backend(Protocol):
    """The native calls, the same on every device. Arguments are checked and outputs allocated by the caller.

    Attributes:
        module: The compiled module, which also holds the argument structs.
        asynchronous: Whether looking at a value means waiting for the device.
    """

    module: ModuleType
    asynchronous: bool

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a result, not initialised."""

    def resample(self, args: Any) -> None:
        """Fill the patches of `args` (a ResampleArgs)."""

    def resample_adjoint(self, args: Any, incoming: Tensor, gradient: Tensor) -> None:
        """Fill `gradient` [pixels] from the patches' gradient `incoming`, to which `args` points as its patches."""

    def patch_to_image(self, args: Any, matrices: Tensor) -> None:
        """Fill `matrices` float32 [num_patches, 2, 3]."""

    def sample_plan(self, args: Any) -> None:
        """Fill the rows of `args` (a PlanArgs)."""

    def philox(self, seed: int, counters: Tensor, words: Tensor) -> None:
        """Fill `words` int64 [count, 4] from `counters` int64 [count, 4]."""


class CpuBackend:
    """Loops on torch's number of threads; the bits do not depend on that number.

    Attributes:
        path: Which implementation resamples: one of `native_module.cpu_paths()`, or "" for the fastest that the
            processor has. The environment variable LESIONAUG_CPU_PATH sets it.
    """

    module: ModuleType = native_module
    asynchronous = False

    def __init__(self) -> None:
        self.path = os.environ.get("LESIONAUG_CPU_PATH", "")
        known = self.module.cpu_paths()
        if self.path and self.path not in known:
            raise EnvironmentProblem(
                "LESIONAUG_CPU_PATH",
                f"must be one of {', '.join(known)} on this processor, got {self.path!r}",
                "Unset it to take the fastest.",
            )

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a result; a large one from what an earlier result has left, whose first touch was paid for.

        The system may take back what is left and not used again, so it is never short of it.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes >= self.module.least_result:
            memory = self.module.result_memory(num_bytes)
            if memory is not None:
                return torch.from_numpy(memory).view(dtype).view(shape)
        return torch.empty(shape, dtype=dtype, device=device)

    def resample(self, args: Any) -> None:  # noqa: D102 - see Backend, here and below
        self.module.resample_cpu(args, torch.get_num_threads(), self.path)

    def resample_adjoint(self, args: Any, incoming: Tensor, gradient: Tensor) -> None:  # noqa: D102
        gradient.zero_()  # images that were not selected have pixels in the buffer too
        self.module.resample_adjoint_cpu(args, pointer(gradient), torch.get_num_threads(), self.path)

    def patch_to_image(self, args: Any, matrices: Tensor) -> None:  # noqa: D102
        self.module.patch_to_image_cpu(args, pointer(matrices))

    def sample_plan(self, args: Any) -> None:  # noqa: D102
        self.module.sample_plan_cpu(args)

    def philox(self, seed: int, counters: Tensor, words: Tensor) -> None:  # noqa: D102
        self.module.philox_cpu(seed, pointer(counters), pointer(words), len(words))


CUDA_PATHS = ("plain", "tiled")


class CudaBackend:
    """Launches on the current stream of one device; nothing here waits for the GPU.

    Attributes:
        path: Which implementation resamples, one of `CUDA_PATHS`. The environment variable LESIONAUG_CUDA_PATH sets it.
            The default is "plain", one thread per pixel, until a committed result of a GPU shows the tiled kernels of
            these sources equal to it (`module.cuda_verified`).
    """

    module: ModuleType = native_module
    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        if not self.module.cuda_archs:
            raise EnvironmentProblem(
                "lesionaug._native",
                f"tensors are on {device}, but this installation was built without CUDA",
                "Reinstall with nvcc on the PATH (`LESIONAUG_CUDA=ON pip install .`), or move the tensors to the CPU.",
            )
        self.device = device
        default = "tiled" if self.module.cuda_verified else "plain"
        self.path = os.environ.get("LESIONAUG_CUDA_PATH") or default
        if self.path not in CUDA_PATHS:
            raise EnvironmentProblem(
                "LESIONAUG_CUDA_PATH",
                f"must be one of {', '.join(CUDA_PATHS)}, got {self.path!r}",
                f"Unset it to take {default!r}.",
            )

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: D102
        return torch.empty(shape, dtype=dtype, device=device)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the tensors' device the current one, as a launch needs it."""
        return torch.cuda.device(self.device)

    def stream(self) -> int:
        """Address of the stream that the launches go to."""
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def resample(self, args: Any) -> None:  # noqa: D102
        with self.current():
            self.module.resample_cuda(args, self.path == "tiled", self.stream())

    def resample_adjoint(self, args: Any, incoming: Tensor, gradient: Tensor) -> None:  # noqa: D102
        # Sums are taken in 64-bit fixed point, where order does not matter, at a scale set by the call's largest
        # gradient: absolute precision 2^-61 of (that times the patch pixels of a channel). The shares of one patch
        # pixel add up to less than four times its gradient, so the scale leaves room for all of them on one pixel.
        num_patches, _, size, _ = incoming.shape
        spare_bits = 61 - max(num_patches * size * size, 1).bit_length()
        low, high = incoming.aminmax() if incoming.numel() else (incoming.new_zeros(()),) * 2
        largest = torch.maximum(-low, high).double()
        exponent = torch.frexp(largest).exponent.clamp(min=-900)
        scale = torch.exp2((spare_bits - exponent).double()) * (1 + 0 * largest)  # NaN where a gradient is not finite
        workspace = torch.zeros(gradient.numel(), dtype=torch.int64, device=gradient.device)
        with self.current():
            self.module.resample_adjoint_cuda(
                args, pointer(gradient), pointer(workspace), pointer(scale), gradient.numel(), self.stream()
            )

    def patch_to_image(self, args: Any, matrices: Tensor) -> None:  # noqa: D102
        with self.current():
            self.module.patch_to_image_cuda(args, pointer(matrices), self.stream())

    def sample_plan(self, args: Any) -> None:  # noqa: D102
        with self.current():
            self.module.sample_plan_cuda(args, self.stream())

    def philox(self, seed: int, counters: Tensor, words: Tensor) -> None:  # noqa: D102
        with self.current():
            self.module.philox_cuda(seed, pointer(counters), pointer(words), len(words), self.stream())


@functools.cache
def backend(device: torch.device) -> Backend:
    """The backend for tensors on `device`.

    Raises:
        EnvironmentProblem: For a CUDA device when the installation has no CUDA kernels, and for other kinds of device.
    """
    if device.type == "cpu":
        return CpuBackend()
    if device.type == "cuda":
        return CudaBackend(device)
    raise EnvironmentProblem(
        f"device {device}", "lesionaug has kernels for cpu and cuda only", "Move the tensors to one of these."
    )
