"""The operators torch knows: `lesionaug::resample`, its adjoint and `lesionaug::patch_to_image`, over raw pointers.

One schema serves dense and ragged images, and matrices as well as lesions with their parameters; what is not given is
None. Shapes, dtypes and devices are checked here once, for CPU, CUDA and fake tensors; values on the CPU, or with
`check=True`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lesionaug.augment import native
from lesionaug.data.arrays import MAX_LENGTH, check_pixel_dtype

OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)
MAX_SIZE = 4096  # pixels per side of a patch
MAX_SIGMA = 256  # source pixels per patch pixel with antialias, kMaxSigma of csrc/resample.h

_PROBLEMS = {
    1: "image_index (roi) of patch {n} is {index}, but must lie in 0 .. {last}",
    2: "the map of patch {n} is not finite: its matrix, angle, shift or side holds NaN or infinity or overflows",
    3: f"the map of patch {{n}} spans more than {MAX_SIGMA} source pixels per patch pixel, the limit with "
    "antialias=True",
}


@dataclass(frozen=True)
class Sources:
    """What is sampled and where: the tensors of one call, in the order of the schema.

    Attributes:
        pixels: [num_images, C, H, W], or ragged [total] with `offsets` and `sizes`.
        offsets: int64 [num_images] into ragged `pixels`.
        sizes: int32 [num_images, 2], height and width of ragged images.
        image_index: int64 [N], the image of each patch; None: patch n looks at image n.
        flip: uint8 [N], bit 0 left-right, bit 1 up-down; changes only where a value is stored.
        matrix: float32 or float64 [N, 2, 3] unflipped patch_to_image maps; None: made from what follows.
        centers: float64 [num_images, 2] of the lesions, pixels.
        spacing: float64 [num_images, 2] mm, or None: square pixels.
        angle: float32 [N] degrees.
        shift: float32 [N, 2] pixels along the patch's axes.
        side: float32 [N] pixels.
    """

    pixels: Tensor
    offsets: Tensor | None = None
    sizes: Tensor | None = None
    image_index: Tensor | None = None
    flip: Tensor | None = None
    matrix: Tensor | None = None
    centers: Tensor | None = None
    spacing: Tensor | None = None
    angle: Tensor | None = None
    shift: Tensor | None = None
    side: Tensor | None = None

    SCHEMA = """Tensor pixels, Tensor? offsets, Tensor? sizes, Tensor? image_index, Tensor? flip, Tensor? matrix,
        Tensor? centers, Tensor? spacing, Tensor? angle, Tensor? shift, Tensor? side"""
    COUNT = 11

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors in the order of the schema."""
        return (
            self.pixels,
            self.offsets,
            self.sizes,
            self.image_index,
            self.flip,
            self.matrix,
            self.centers,
            self.spacing,
            self.angle,
            self.shift,
            self.side,
        )

    @property
    def dense(self) -> bool:
        """Whether the images are one [N, C, H, W] tensor."""
        return self.pixels.ndim == 4

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return self.pixels.shape[0] if self.sizes is None else self.sizes.shape[0]

    @property
    def channels(self) -> int:
        """Channels of an image; ragged images have one."""
        return self.pixels.shape[1] if self.dense else 1

    @property
    def num_patches(self) -> int:
        """How many patches the maps make."""
        rows = self.matrix if self.matrix is not None else self.angle
        return 0 if rows is None else rows.shape[0]

    def check(self, size: int) -> None:
        """Raise TypeError or ValueError unless shapes, dtypes and devices fit each other."""
        check_pixel_dtype(self.pixels, "images")
        if self.dense == (self.sizes is not None) or (self.sizes is None) != (self.offsets is None):
            raise ValueError(
                f"images must be dense [N, C, H, W] or ragged [total] with offsets and sizes, got {_shape(self.pixels)}"
            )
        if self.dense and self.num_images and 0 in self.pixels.shape:
            raise ValueError(f"images must have at least one channel and pixel, got {_shape(self.pixels)}")
        if self.dense and max(self.pixels.shape[1:]) > MAX_LENGTH:
            raise ValueError(f"images may have at most {MAX_LENGTH} rows, columns and channels")
        n, m = self.num_patches, self.num_images
        if self.image_index is None and n != m:
            raise ValueError(f"{n} maps for {m} images: give image_index, or one map per image")
        placed = self.matrix is None
        for name, tensor, shape, dtypes, wanted in (
            ("offsets", self.offsets, (m,), (torch.int64,), not self.dense),
            ("sizes", self.sizes, (m, 2), (torch.int32,), not self.dense),
            ("image_index", self.image_index, (n,), (torch.int64,), False),
            ("flip", self.flip, (n,), (torch.uint8,), False),
            ("matrices", self.matrix, (n, 2, 3), (torch.float32, torch.float64), not placed),
            ("centers", self.centers, (m, 2), (torch.float64,), placed),
            ("spacing", self.spacing, (m, 2), (torch.float64,), False),
            ("angle", self.angle, (n,), (torch.float32,), placed),
            ("shift", self.shift, (n, 2), (torch.float32,), placed),
            ("side", self.side, (n,), (torch.float32,), placed),
        ):
            if tensor is None:
                if wanted:
                    raise ValueError(f"{name} is missing")
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {_shape(tensor)}")
            if tensor.dtype not in dtypes:
                names = " or ".join(_name(dtype) for dtype in dtypes)
                raise TypeError(f"{name} must be {names}, got {_name(tensor.dtype)}")
            if tensor.device != self.pixels.device:
                raise ValueError(f"{name} is on {tensor.device}, but the images are on {self.pixels.device}")
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size must lie in 1 .. {MAX_SIZE} pixels, got {size}")


@dataclass(frozen=True)
class Sampling:
    """How a call samples, see `lesionaug.resample`."""

    antialias: bool = True
    border: str = "reflect"
    a: float = -0.5
    fill: float = 0.0
    window: tuple[float, float] | None = None
    out_range: tuple[float, float] = (0.0, 1.0)

    SCHEMA = "bool antialias, str border, float a, float fill, float[]? window, float[] out_range"


_library = torch.library.Library("lesionaug", "DEF")
_library.define(f"resample({Sources.SCHEMA}, int size, {Sampling.SCHEMA}, ScalarType dtype, bool check) -> Tensor")
_library.define(f"resample_out({Sources.SCHEMA}, int size, {Sampling.SCHEMA}, Tensor(a!) out, bool check) -> ()")
_library.define(
    f"resample_adjoint(Tensor gradient, {Sources.SCHEMA}, bool antialias, str border, float a, bool check) -> Tensor"
)
_library.define(f"patch_to_image({Sources.SCHEMA}, int size, bool check) -> Tensor")


def native_arguments(
    backend: Any, sources: Sources, size: int, sampling: Sampling, out: Tensor | None, plan: Any | None = None
) -> Any:
    """The call as the struct of csrc/resample.h; `sources`, `out` and what `plan` points to must outlive it.

    Args:
        backend: Who will run it.
        sources: What is sampled.
        size: Height and width of a patch.
        sampling: How.
        out: The patches, or the gradient of them; None where none are read or written.
        plan: The backend's PlanArgs where rows of it are drawn in the call (`ResampleArgs.of_rows`).
    """
    dense = sources.dense
    return backend.module.ResampleArgs(
        pixels=native.pointer(sources.pixels),
        pixel_dtype=native.DTYPE_CODES[sources.pixels.dtype],
        offsets=native.pointer(sources.offsets),
        sizes=native.pointer(sources.sizes),
        num_images=sources.num_images,
        channels=sources.channels,
        height=sources.pixels.shape[2] if dense else 0,
        width=sources.pixels.shape[3] if dense else 0,
        num_patches=sources.num_patches,
        image_index=native.pointer(sources.image_index),
        flip=native.pointer(sources.flip),
        matrix=native.pointer(sources.matrix),
        matrix_is_double=sources.matrix is not None and sources.matrix.dtype == torch.float64,
        centers=native.pointer(sources.centers),
        spacing=native.pointer(sources.spacing),
        angle=native.pointer(sources.angle),
        shift=native.pointer(sources.shift),
        side=native.pointer(sources.side),
        rows=0,
        plan=plan,
        size=size,
        antialias=sampling.antialias,
        border=native.BORDERS.index(sampling.border),
        a=sampling.a,
        fill=sampling.fill,
        window=sampling.window,
        out_range=sampling.out_range,
        out=native.pointer(out),
        out_dtype=native.DTYPE_CODES[torch.float32 if out is None else out.dtype],
    )


def _checked(backend: Any, sources: Sources, size: int, sampling: Sampling, out: Tensor | None, check: bool) -> Any:
    """The call, its maps looked at: on a GPU only when asked to, as it waits for the device.

    Raises:
        ValueError: For a map no patch can be made of.
    """
    call = native_arguments(backend, sources, size, sampling, out)
    looked_at = call
    if backend.asynchronous:
        if not check:
            return call
        maps = [None if tensor is None else tensor.cpu() for tensor in sources.tensors()[1:]]
        on_host = Sources(sources.pixels, *maps)  # the check reads no pixels
        looked_at = native_arguments(backend, on_host, size, sampling, None)
    status, n = backend.module.check_patches(looked_at, torch.get_num_threads())
    if status:
        index = int(sources.image_index[n]) if sources.image_index is not None else n
        raise ValueError(_PROBLEMS[status].format(n=n, index=index, last=sources.num_images - 1))
    return call


def ready(tensors: tuple[Any, ...], size: int) -> Sources:
    """The tensors of a call, contiguous and checked."""
    sources = Sources(*(None if tensor is None else tensor.contiguous() for tensor in tensors))  # type: ignore[arg-type]
    sources.check(size)
    return sources


def _shape_of_patches(sources: Sources, size: int) -> tuple[int, ...]:
    return (sources.num_patches, sources.channels, size, size)


def _check_border(border: str) -> None:
    if border not in native.BORDERS:
        raise ValueError(f"border must be one of {', '.join(native.BORDERS)}, got {border!r}")


def check_output(sources: Sources, size: int, sampling: Sampling, dtype: torch.dtype, out: Tensor | None) -> None:
    """Raise TypeError or ValueError unless patches can be made like this, into `out` where it is given."""
    if dtype not in OUTPUT_DTYPES:
        names = ", ".join(_name(known) for known in OUTPUT_DTYPES)
        raise TypeError(f"dtype must be one of {names}, got {_name(dtype)}")
    _check_border(sampling.border)
    if out is not None:
        shape = _shape_of_patches(sources, size)
        if tuple(out.shape) != shape or not out.is_contiguous():
            raise ValueError(f"out must be contiguous with shape {list(shape)}, got {_shape(out)}")
        if out.device != sources.pixels.device:
            raise ValueError(f"out is on {out.device}, but the images are on {sources.pixels.device}")


def _split(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], int, Sampling, tuple[Any, ...]]:
    """The arguments of a schema: tensors, size, how to sample, and what comes after."""
    tensors, size, rest = arguments[: Sources.COUNT], arguments[Sources.COUNT], arguments[Sources.COUNT + 1 :]
    antialias, border, a, fill, window, out_range = rest[:6]
    pair = None if window is None else (float(window[0]), float(window[1]))
    return tensors, size, Sampling(antialias, border, a, fill, pair, (out_range[0], out_range[1])), rest[6:]


def _fill(sources: Sources, size: int, sampling: Sampling, out: Tensor, check: bool) -> None:
    backend = native.backend(sources.pixels.device)
    call = _checked(backend, sources, size, sampling, out, check)
    if out.numel():
        backend.resample(call)


def _resample(*arguments: Any) -> Tensor:
    tensors, size, sampling, (dtype, check) = _split(arguments)
    sources = ready(tensors, size)
    check_output(sources, size, sampling, dtype, None)
    device = sources.pixels.device
    out = native.backend(device).empty(_shape_of_patches(sources, size), dtype, device)
    _fill(sources, size, sampling, out, check)
    return out


def _resample_fake(*arguments: Any) -> Tensor:
    tensors, size, sampling, (dtype, _) = _split(arguments)
    sources = Sources(*tensors)
    sources.check(size)
    check_output(sources, size, sampling, dtype, None)
    return torch.empty(_shape_of_patches(sources, size), dtype=dtype, device=sources.pixels.device)


def _resample_out(*arguments: Any) -> None:
    tensors, size, sampling, (out, check) = _split(arguments)
    sources = ready(tensors, size)
    check_output(sources, size, sampling, out.dtype, out)
    if out.untyped_storage().data_ptr() == sources.pixels.untyped_storage().data_ptr() and out.numel():
        raise ValueError("out must not share memory with the images: they are read while it is written")
    _fill(sources, size, sampling, out, check)


def _resample_out_fake(*arguments: Any) -> None:
    tensors, size, sampling, (out, _) = _split(arguments)
    sources = Sources(*tensors)
    sources.check(size)
    check_output(sources, size, sampling, out.dtype, out)


def _check_gradient(gradient: Tensor, sources: Sources, border: str) -> None:
    size = gradient.shape[-1] if gradient.ndim else 0
    shape = (sources.num_patches, sources.channels, size, size)
    if tuple(gradient.shape) != shape or not gradient.is_floating_point():
        wanted = f"floating [{sources.num_patches}, {sources.channels}, size, size]"
        raise ValueError(f"gradient must be {wanted}, got {_name(gradient.dtype)} {_shape(gradient)}")
    if gradient.device != sources.pixels.device:
        raise ValueError(f"gradient is on {gradient.device}, but the images are on {sources.pixels.device}")
    sources.check(size)
    _check_border(border)


def _adjoint_dtype(gradient: Tensor, pixels: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (gradient.dtype, pixels.dtype) else torch.float32


def _resample_adjoint(gradient: Tensor, *arguments: Any) -> Tensor:
    tensors, (antialias, border, a, check) = arguments[: Sources.COUNT], arguments[Sources.COUNT :]
    _check_gradient(gradient, Sources(*tensors), border)
    size = gradient.shape[-1]
    sources = ready(tensors, size)
    incoming = gradient.to(_adjoint_dtype(gradient, sources.pixels)).contiguous()
    result = torch.empty(sources.pixels.shape, dtype=incoming.dtype, device=incoming.device)
    sampling = Sampling(antialias, border, a)
    backend = native.backend(sources.pixels.device)
    call = _checked(backend, sources, size, sampling, incoming, check)
    backend.resample_adjoint(call, incoming, result)
    return result.to(sources.pixels.dtype)


def _resample_adjoint_fake(gradient: Tensor, *arguments: Any) -> Tensor:
    _check_gradient(gradient, Sources(*arguments[: Sources.COUNT]), arguments[Sources.COUNT + 1])
    return torch.empty_like(arguments[0], memory_format=torch.contiguous_format)


def _patch_to_image(*arguments: Any) -> Tensor:
    tensors, (size, check) = arguments[: Sources.COUNT], arguments[Sources.COUNT :]
    sources = ready(tensors, size)
    backend = native.backend(sources.pixels.device)
    sampling = Sampling(antialias=False)  # the limit on shrinking is not the map's
    call = _checked(backend, sources, size, sampling, None, check)
    out = torch.empty((sources.num_patches, 2, 3), dtype=torch.float32, device=sources.pixels.device)
    backend.patch_to_image(call, out)
    return out


def _patch_to_image_fake(*arguments: Any) -> Tensor:
    sources = Sources(*arguments[: Sources.COUNT])
    sources.check(arguments[Sources.COUNT])
    return torch.empty((sources.num_patches, 2, 3), dtype=torch.float32, device=sources.pixels.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, _, sampling, _ = _split(inputs)
    ctx.save_for_backward(*tensors)
    ctx.sampling = sampling


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    others = [None] * (Sources.COUNT - 1 + 9)
    if not ctx.needs_input_grad[0]:  # maps have no gradients
        return (None, *others)
    sampling = ctx.sampling
    if sampling.window is not None:
        raise RuntimeError(
            "lesionaug::resample has no gradient with a window; the function lesionaug.resample takes it apart"
        )
    pixels = torch.ops.lesionaug.resample_adjoint(
        gradient, *ctx.saved_tensors, sampling.antialias, sampling.border, sampling.a, False
    )
    return (pixels, *others)


def _adjoint_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, *rest = inputs
    ctx.save_for_backward(*rest[: Sources.COUNT])
    ctx.dtype, ctx.size = gradient.dtype, gradient.shape[-1]
    ctx.sampling = Sampling(*rest[Sources.COUNT : Sources.COUNT + 3])


def _adjoint_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    _, *maps = ctx.saved_tensors
    s = ctx.sampling  # the operator is linear apart from the fill value, which no gradient sees
    patches = torch.ops.lesionaug.resample(
        gradient, *maps, ctx.size, s.antialias, s.border, s.a, 0.0, None, [0.0, 1.0], ctx.dtype, False
    )
    return (patches, *[None] * (Sources.COUNT + 4))


for _device in ("CPU", "CUDA"):
    _library.impl("resample", _resample, _device)
    _library.impl("resample_out", _resample_out, _device)
    _library.impl("resample_adjoint", _resample_adjoint, _device)
    _library.impl("patch_to_image", _patch_to_image, _device)
_library.impl("patch_to_image", torch.library.fallthrough_kernel, "Autograd")  # maps depend on no pixel
torch.library.register_fake("lesionaug::resample", _resample_fake, lib=_library)
torch.library.register_fake("lesionaug::resample_out", _resample_out_fake, lib=_library)
torch.library.register_fake("lesionaug::resample_adjoint", _resample_adjoint_fake, lib=_library)
torch.library.register_fake("lesionaug::patch_to_image", _patch_to_image_fake, lib=_library)
torch.library.register_autograd("lesionaug::resample", _backward, setup_context=_setup_context, lib=_library)
torch.library.register_autograd(
    "lesionaug::resample_adjoint", _adjoint_backward, setup_context=_adjoint_setup_context, lib=_library
)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
