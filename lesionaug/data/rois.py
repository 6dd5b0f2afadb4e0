"""RoiBatch: lesions of any size in one flat buffer, ready for one native call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionaug.data.arrays import MAX_LENGTH, check_pixel_dtype, to_tensor

# W400 L40, the abdomen window most public liver-CT work clips to: cyst, metastasis, enhanced liver and vessels all
# lie inside it. The paper gives no window, so every artefact records the one it used.
DEFAULT_WINDOW_HU = (-160.0, 240.0)

UNLABELLED = -1
KINDS = ("phantom", "imported", "user")


def lesion_key(lesion_id: str) -> int:
    """The 64-bit key that a lesion's random numbers are drawn with: its id's hash (docs/definitions.md section 3)."""
    return int.from_bytes(hashlib.blake2b(lesion_id.encode()).digest()[:8], "little")


@dataclass(frozen=True, eq=False, repr=False)
class PackedImages:
    """Single-channel 2-D images of any sizes, one after the other in a flat buffer.

    Attributes:
        pixels: [total] every image row by row, at its offset.
        offsets: int64 [n], where each image starts in `pixels`.
        sizes: int32 [n, 2], height and width.
        layout: The same as Python numbers `(offset, height, width)`, so that no look at a shape waits for the GPU.
    """

    pixels: Tensor
    offsets: Tensor
    sizes: Tensor
    layout: tuple[tuple[int, int, int], ...]

    @classmethod
    def pack(cls, images: Sequence[Tensor]) -> PackedImages:
        """Pack 2-D tensors of one dtype and device; gradients flow back to them."""
        layout = []
        offset = 0
        for i, image in enumerate(images):
            height, width = image.shape
            if max(height, width) > MAX_LENGTH:
                raise ValueError(f"images[{i}] has {height} x {width} pixels; at most {MAX_LENGTH} rows or columns")
            layout.append((offset, height, width))
            offset += height * width
        table = torch.tensor(layout, dtype=torch.int64)
        device = images[0].device
        return cls(
            pixels=torch.cat([image.reshape(-1) for image in images]),
            offsets=table[:, 0].contiguous().to(device),
            sizes=table[:, 1:].to(torch.int32).contiguous().to(device),
            layout=tuple(layout),
        )

    def __len__(self) -> int:
        return len(self.layout)

    def views(self, pixels: Tensor) -> list[Tensor]:
        """The images [height, width] of a buffer laid out like this one, without a copy."""
        return [pixels[start : start + height * width].view(height, width) for start, height, width in self.layout]

    def select(self, indices: list[int]) -> PackedImages:
        """The chosen images; the pixels are shared, not copied."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.offsets.device)
        return replace(
            self,
            offsets=self.offsets[index],
            sizes=self.sizes[index],
            layout=tuple(self.layout[i] for i in indices),
        )

    def to(self, device: torch.device | str) -> PackedImages:
        """The same images on another device."""
        return replace(
            self, pixels=self.pixels.to(device), offsets=self.offsets.to(device), sizes=self.sizes.to(device)
        )


@dataclass(frozen=True, eq=False, repr=False)
class RoiBatch:
    """Lesion ROIs: what the augmentation plan and the kernels work on.

    Build one with `from_images` or `lesionaug.load_rois`. Coordinates are continuous, (x, y), with the origin at the
    top-left corner of each image, so the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).

    Attributes:
        packed: The images in one buffer.
        centers: float64 [n, 2], (x, y) in pixels of each image.
        diameters: float32 [n], the largest Feret diameter, in pixels of the smaller spacing.
        labels: int64 [n], index into `classes`; -1 is unlabelled.
        classes: Names of the classes.
        lesion_ids: Unique names; the random numbers of a lesion depend on its id alone.
        patient_ids: Who each lesion belongs to; folds never split a patient.
        spacing_mm: float64 [n, 2], (s_x, s_y), or None where unknown (pixels count as square).
        origins: int64 [n, 2], (x, y) of each image's corner in the slice it was cut from.
        lesion_keys: int64 [n], the bits of each id's 64-bit key.
        kind: "phantom", "imported" or "user": what the pixels are, shown wherever they are shown.
    """

    packed: PackedImages
    centers: Tensor
    diameters: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    lesion_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    spacing_mm: Tensor | None
    origins: Tensor
    lesion_keys: Tensor
    mask_pixels: Tensor | None
    kind: str

    @classmethod
    def from_images(
        cls,
        images: Sequence[Any],
        centers: Any,
        diameters: Any,
        *,
        labels: Sequence[int | str] | Any | None = None,
        lesion_ids: Sequence[str] | None = None,
        patient_ids: Sequence[str] | None = None,
        spacing_mm: Any | None = None,
        masks: Sequence[Any] | None = None,
        origins: Any | None = None,
        classes: Sequence[str] | None = None,
        kind: str = "user",
    ) -> RoiBatch:
        """Pack 2-D images of any sizes into a batch; this is where values are checked.

        Args:
            images: Sequence of 2-D arrays [height, width] of one dtype (int16, uint8, uint16, float16, bfloat16,
                float32, float64) and one device; all values finite. Keep more of the slice than the lesion: the
                largest augmented patch reaches 1.556 diameters from the centre.
            centers: [n, 2], (x, y) of each lesion in pixels of its image, corner convention.
            diameters: [n], in pixels (of the smaller spacing where pixels are not square), above 0.
            labels: [n] class indices (-1: unlabelled) or class names; default: all unlabelled.
            lesion_ids: [n] unique strings; default "0", "1", ...
            patient_ids: [n] strings; default: every lesion its own patient, "0", "1", ...
            spacing_mm: [n, 2] (or one pair for all), (s_x, s_y) in mm, above 0.
            masks: [n] boolean arrays, each as large as its image.
            origins: [n, 2] integer (x, y) corner of each image in the slice it was cut from; default 0.
            classes: Names of the classes, in the order of the indices; default: the sorted names in `labels`.
            kind: "phantom", "imported" or "user".

        Raises:
            TypeError: For something that is no array of numbers, or dtypes that differ or are not supported.
            ValueError: For wrong shapes, values that are not finite, ids that are not unique.
        """
        tensors = _image_list(images)
        n = len(tensors)
        device = tensors[0].device
        packed = PackedImages.pack(tensors)
        if packed.pixels.is_floating_point() and not bool(torch.isfinite(packed.pixels.detach()).all()):
            bad = next(i for i, t in enumerate(tensors) if not bool(torch.isfinite(t.detach()).all()))
            raise ValueError(f"images[{bad}] holds NaN or infinity; every pixel must be finite: clean or drop it")

        center = _matrix(centers, "centers", (n, 2), torch.float64, device)
        diameter = _matrix(diameters, "diameters", (n,), torch.float32, device)
        if not bool((diameter > 0).all()):
            raise ValueError(f"diameters must be above 0 pixels, got {float(diameter.min())}")
        spacing = None
        if spacing_mm is not None:
            pair = to_tensor(spacing_mm, "spacing_mm")
            if pair.shape == (2,):
                pair = pair.expand(n, 2)
            spacing = _matrix(pair, "spacing_mm", (n, 2), torch.float64, device)
            if not bool((spacing > 0).all()):
                raise ValueError(f"spacing_mm must be above 0 mm, got {float(spacing.min())}")
        origin = _matrix([[0, 0]] * n if origins is None else origins, "origins", (n, 2), torch.int64, device)

        label, names = _labels(labels, classes, n)
        ids = _ids(lesion_ids, "lesion_ids", n)
        if len(set(ids)) != n:
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"lesion_ids must be unique in a batch, but {twice!r} occurs more than once")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        keys = np.array([lesion_key(i) for i in ids], dtype=np.uint64).view(np.int64)
        return cls(
            packed=packed,
            centers=center,
            diameters=diameter,
            labels=label.to(device),
            classes=names,
            lesion_ids=ids,
            patient_ids=_ids(patient_ids, "patient_ids", n),
            spacing_mm=spacing,
            origins=origin,
            lesion_keys=torch.from_numpy(keys).to(device),
            mask_pixels=_pack_masks(masks, packed, device),
            kind=kind,
        )

    def __len__(self) -> int:
        return len(self.lesion_ids)

    def __repr__(self) -> str:
        names = ", ".join(self.classes) or "none"
        return f"RoiBatch({len(self)} {self.kind} lesions, {self.dtype}, {self.device}, classes: {names})"

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError("a RoiBatch is no sequence of images: use rois.images, or rois[indices] for a part of it")

    @property
    def images(self) -> list[Tensor]:
        """Views [height, width] of the images, no copies."""
        return self.packed.views(self.packed.pixels)

    @property
    def masks(self) -> list[Tensor] | None:
        """Views bool [height, width] of the lesions' masks, or None where there are none."""
        return None if self.mask_pixels is None else self.packed.views(self.mask_pixels)

    @property
    def device(self) -> torch.device:
        """Where the pixels live."""
        return self.packed.pixels.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the pixels."""
        return self.packed.pixels.dtype

    def __getitem__(self, indices: int | slice | Iterable[int] | Tensor) -> RoiBatch:
        """The chosen lesions as a batch; pixels are shared. A boolean mask or tensor of indices works too."""
        chosen = _indices(indices, len(self))
        if not chosen:
            raise ValueError("an empty selection of lesions: a RoiBatch holds at least one")
        index = torch.tensor(chosen, dtype=torch.int64, device=self.device)
        ids = tuple(self.lesion_ids[i] for i in chosen)
        if len(set(ids)) != len(ids):
            raise ValueError("a lesion was selected twice; ids must be unique in a batch")
        return replace(
            self,
            packed=self.packed.select(chosen),
            centers=self.centers[index],
            diameters=self.diameters[index],
            labels=self.labels[index],
            lesion_ids=ids,
            patient_ids=tuple(self.patient_ids[i] for i in chosen),
            spacing_mm=None if self.spacing_mm is None else self.spacing_mm[index],
            origins=self.origins[index],
            lesion_keys=self.lesion_keys[index],
        )

    def to(self, device: torch.device | str) -> RoiBatch:
        """The same batch on another device."""
        device = torch.device(device)
        return replace(
            self,
            packed=self.packed.to(device),
            centers=self.centers.to(device),
            diameters=self.diameters.to(device),
            labels=self.labels.to(device),
            spacing_mm=None if self.spacing_mm is None else self.spacing_mm.to(device),
            origins=self.origins.to(device),
            lesion_keys=self.lesion_keys.to(device),
            mask_pixels=None if self.mask_pixels is None else self.mask_pixels.to(device),
        )


def _image_list(images: Any) -> list[Tensor]:
    """The images as 2-D tensors of one dtype and device, or a clear error."""
    if isinstance(images, (str, bytes, dict)) or not hasattr(images, "__len__"):
        raise TypeError(f"images must be a sequence of 2-D arrays, got {type(images).__name__}")
    if len(images) == 0:
        raise ValueError("images is empty: at least one 2-D array is needed")
    tensors = [to_tensor(image, f"images[{i}]") for i, image in enumerate(images)]
    first = tensors[0]
    check_pixel_dtype(first, "images[0]")
    for i, tensor in enumerate(tensors):
        if tensor.ndim != 2 or tensor.numel() == 0:
            raise ValueError(
                f"images[{i}] must be 2-D [height, width] with at least one pixel, got shape {tuple(tensor.shape)}"
            )
        if tensor.dtype != first.dtype:
            raise TypeError(f"images[{i}] is {tensor.dtype} but images[0] is {first.dtype}: use one dtype")
        if tensor.device != first.device:
            raise ValueError(f"images[{i}] is on {tensor.device} but images[0] is on {first.device}: use one device")
    return tensors


def _matrix(value: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    tensor = to_tensor(value, name)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if dtype == torch.int64 and (tensor.is_floating_point() or tensor.dtype in (torch.bool, torch.uint64)):
        raise TypeError(f"{name} must be integers, got {tensor.dtype}")
    result = tensor.detach().to(device=device, dtype=dtype, copy=True)
    if result.is_floating_point() and not bool(torch.isfinite(result).all()):
        raise ValueError(f"{name} holds NaN, infinity or more than {dtype} can hold; every value must be finite")
    return result


def _ids(ids: Sequence[str] | None, name: str, n: int) -> tuple[str, ...]:
    if ids is None:
        return tuple(str(i) for i in range(n))
    if isinstance(ids, (str, bytes)) or len(ids) != n or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"{name} must be a sequence of {n} strings")
    return tuple(ids)


def _labels(labels: Any, classes: Sequence[str] | None, n: int) -> tuple[Tensor, tuple[str, ...]]:
    names = None if classes is None else tuple(classes)
    if names is not None and (len(set(names)) != len(names) or not all(isinstance(c, str) and c for c in names)):
        raise ValueError(f"classes must be distinct, non-empty strings, got {list(names)}")
    if labels is None:
        return torch.full((n,), UNLABELLED, dtype=torch.int64), names or ()
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO":
        labels = labels.tolist()
    if isinstance(labels, (list, tuple)) and labels and all(isinstance(label, str) for label in labels):
        names = names if names is not None else tuple(sorted(set(labels)))
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise ValueError(f"labels holds {unknown}, which classes {list(names)} does not")
        labels = [names.index(label) for label in labels]
    tensor = to_tensor(labels, "labels")
    if tuple(tensor.shape) != (n,) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(f"labels must be {n} integers or {n} class names, got {tensor.dtype} {list(tensor.shape)}")
    tensor = tensor.to(device="cpu", dtype=torch.int64, copy=True)
    low, high = int(tensor.min()), int(tensor.max())
    if names is None:
        names = tuple(str(i) for i in range(high + 1))
    if low < UNLABELLED or high >= len(names):
        raise ValueError(f"labels must lie in -1 (unlabelled) .. {len(names) - 1}, got {low} .. {high}")
    return tensor, names


def _pack_masks(masks: Sequence[Any] | None, packed: PackedImages, device: torch.device) -> Tensor | None:
    if masks is None:
        return None
    if len(masks) != len(packed):
        raise ValueError(f"masks must be {len(packed)} arrays, one per image, got {len(masks)}")
    tensors = [to_tensor(mask, f"masks[{i}]") for i, mask in enumerate(masks)]
    for i, (tensor, (_, height, width)) in enumerate(zip(tensors, packed.layout, strict=True)):
        if tuple(tensor.shape) != (height, width):
            raise ValueError(f"masks[{i}] must be as large as its image, [{height}, {width}], got {list(tensor.shape)}")
        if tensor.is_floating_point():
            raise TypeError(f"masks[{i}] must be boolean or integer, got {tensor.dtype}")
    return torch.cat([tensor.to(device=device, dtype=torch.bool).reshape(-1) for tensor in tensors])


def _indices(indices: Any, n: int) -> list[int]:
    if isinstance(indices, slice):
        return list(range(n))[indices]
    if isinstance(indices, (int, np.integer)):
        values = [int(indices)]
    else:
        tensor = to_tensor(list(indices) if isinstance(indices, range) else indices, "indices")
        if tensor.dtype == torch.bool:
            if tuple(tensor.shape) != (n,):
                raise IndexError(f"a boolean selection must have shape [{n}], got {list(tensor.shape)}")
            tensor = tensor.nonzero().flatten()
        if tensor.ndim != 1 or (tensor.is_floating_point() and tensor.numel()):
            raise TypeError(f"lesions are selected by whole numbers, got {tensor.dtype} {list(tensor.shape)}")
        values = [int(i) for i in tensor.tolist()]
    for i in values:
        if not -n <= i < n:
            raise IndexError(f"lesion {i} is out of range: the batch holds {n}")
    return [i % n for i in values]
