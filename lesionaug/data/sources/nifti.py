"""NIfTI volumes as untrusted input: axial slices by their affine, read one after the other in bounded memory."""

from __future__ import annotations

import gzip
import math
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Plane, Reorientation, Slice, SourceFile, clip_hu, face_left_posterior
from lesionaug.data.sources.dicom_ct import MAX_SIDE
from lesionaug.data.sources.dicom_file import reading
from lesionaug.errors import DataError

MAX_VOXELS = 1 << 30  # 1024 x 1024 x 1024
MAX_BYTES = 5 << 30
# The header's extensions, which nobody needs and whose length is the file's word, end before the voxels begin.
MAX_HEADER_BYTES = 16 << 20
# A volume that is not stored slice by slice has to be read whole to take one axial slice out of it.
MAX_WHOLE_BYTES = 512 << 20

SUFFIXES = (".nii", ".nii.gz")

_SAME_SIZE = 1e-3  # voxels by sform and by pixdim may differ by so much of their size

_KEPT_SLICES = 32  # read slices kept for margins that share them

_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI counts to the right and the front of the patient, DICOM to the other sides


@dataclass(frozen=True, eq=False)
class NiftiVolume:
    """A checked 3-D volume; its pixels are read slice by slice.

    Attributes:
        source: The file.
        where: How errors name it.
        shape: Of its three axes; a fourth axis of length 1 is dropped.
        grid: float64 [4, 4], from voxel indices to mm in NIfTI's axes (RAS), or what is wrong with the file's own.
        axes: The array axes that run along columns (x), rows (y) and across slices (z) of its axial slices; as stored
            where the grid is not known.
        voxels: The stored values, read when they are indexed.
        scale: (slope, intercept) from stored values to HU.
        header_scale: scl_slope and scl_inter as the header has them; a slope of 0 or NaN means (1, 0).
    """

    source: SourceFile
    where: str
    shape: tuple[int, int, int]
    grid: NDArray[np.float64] | DataError
    axes: tuple[int, int, int]
    voxels: Any = field(repr=False)
    scale: tuple[float, float] = (1.0, 0.0)
    header_scale: tuple[float, float] = (0.0, 0.0)
    _kept: OrderedDict[int, Slice] = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def open(
        cls,
        source: SourceFile,
        where: str | None = None,
        *,
        spacing_mm: tuple[float, float] | None = None,
        trust_voxels: bool = False,
        affine: NDArray[np.float64] | None = None,
    ) -> NiftiVolume:
        """Read and check the header; no voxels yet.

        Args:
            source: The file.
            where: How errors name it.
            spacing_mm: (s_x, s_y) for a file that does not know it.
            trust_voxels: Take a file that does not know its orientation as it is stored: the first index runs to the
                patient's left, the second to the back.
            affine: float64 [4, 4] in place of the file's own, for a mask that is used voxel by voxel.

        Raises:
            DataError: For anything that is not one volume; an affine that is none is told when it is asked for.
        """
        import nibabel

        where = where or source.name
        with reading(where):
            header_scale = _check_start(source, where)
            image: Any = nibabel.load(source.path)
            proxy: Any = image.dataobj
            if not isinstance(image, nibabel.Nifti1Image):
                raise DataError(where, "the file is no NIfTI volume", "Save it as .nii or .nii.gz")
            shape = tuple(int(n) for n in image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            stored: np.dtype[Any] = np.dtype(proxy.dtype)
            if stored.kind not in "iuf":
                raise DataError(where, "a NIfTI image must hold numbers, one a voxel", "Save the CT in HU")
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
                rule = f"a NIfTI image must have three axes and at most 2^30 voxels, this one is {image.shape}"
                raise DataError(where, rule, "Save one 3-D volume")
            if math.prod(shape) * stored.itemsize > MAX_BYTES:
                raise DataError(where, "a NIfTI image may have at most 5 GiB of voxels", "Save it as int16")
            if max(shape) > MAX_SIDE:
                raise DataError(where, f"an image may have at most {MAX_SIDE} pixels a side", "Crop it")
            grid = affine if affine is not None else _grid(image, spacing_mm if trust_voxels else None, where)
            if isinstance(grid, DataError) and trust_voxels:
                grid = DataError(
                    where, f"{grid.rule}, so the spacing is not known either", "Give it with --spacing ROW,COLUMN"
                )
            slope, inter = float(proxy.slope), float(proxy.inter)
            if not (math.isfinite(inter) and 0 < abs(slope) < math.inf):
                raise DataError(where, "scl_slope and scl_inter must be finite, the slope not 0", "Save the CT in HU")
            unscaled: Any = nibabel.arrayproxy.ArrayProxy
            voxels = unscaled(
                source.path,
                (shape, stored, proxy.offset, 1.0, 0.0),
                mmap=False,
                keep_file_open=True,
            )
        axes = (0, 1, 2) if isinstance(grid, DataError) else _axial_axes(grid)
        return cls(source, where, (shape[0], shape[1], shape[2]), grid, axes, voxels, (slope, inter), header_scale)

    @property
    def affine(self) -> NDArray[np.float64]:
        """float64 [4, 4], from voxel indices to mm in NIfTI's axes (RAS).

        Raises:
            DataError: When the file does not know it.
        """
        if isinstance(self.grid, DataError):
            raise self.grid
        return self.grid

    @property
    def num_slices(self) -> int:
        """Axial slices."""
        return self.shape[self.axes[2]]

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(height, width) of an axial slice before it is turned."""
        return self.shape[self.axes[1]], self.shape[self.axes[0]]

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """(s_x, s_y) of an axial slice before it is turned."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[self.axes[0]]), float(lengths[self.axes[1]])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        stored: np.dtype[Any] = self.voxels.dtype
        return stored

    @cached_property
    def turn(self) -> Reorientation:
        """How its slices are turned; see `plane`."""
        return self._turned(0)[1]

    def plane(self, index: int) -> Plane:
        """Where a turned slice lies.

        Raises:
            DataError: When the volume is more than 35 degrees oblique.
        """
        return self._turned(index)[0]

    def _turned(self, index: int) -> tuple[Plane, Reorientation]:
        axes = _LPS @ self.affine[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        at = np.zeros(3)
        at[self.axes[2]] = index
        x, y, _ = self.axes
        stored = Plane(
            position=_LPS @ (self.affine[:3, :3] @ at + self.affine[:3, 3]),
            right=axes[:, x] / spacing[x],
            down=axes[:, y] / spacing[y],
            spacing_mm=(float(spacing[x]), float(spacing[y])),
        )
        return face_left_posterior(stored, *self.stored_shape, self.where)

    def stored(self, index: int, axis: int) -> NDArray[Any]:
        """A plane of stored values across an axis, the other axes in their order; fastest in ascending order.

        Raises:
            DataError: When it cannot be read.
        """
        with reading(self.where):
            if axis == 2:
                plane: NDArray[Any] = np.asarray(self.voxels[:, :, index])
            else:
                plane = np.take(self._whole, index, axis=axis)
            return plane

    def scaled(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Stored values in the units of the volume."""
        slope, inter = self.scale
        return stored.astype(np.float64) * slope + inter

    def read(self, index: int) -> NDArray[np.float64]:
        """The values of an axial slice as stored, float64 [height, width]; fastest in ascending order.

        Raises:
            DataError: When it cannot be read.
        """
        return self.scaled(self.stored(index, self.axes[2])).T  # [y, x]

    @cached_property
    def _whole(self) -> NDArray[Any]:
        if math.prod(self.shape) * self.dtype.itemsize > MAX_WHOLE_BYTES:
            raise DataError(
                self.where,
                "a volume of more than 512 MiB must be stored with its axial slices along the last axis",
                "Save it again with nibabel.as_closest_canonical",
            )
        whole: NDArray[Any] = np.asarray(self.voxels)
        return whole

    def check_image(self) -> None:
        """Refuse what cannot be a CT image in HU, by its header; a mask may be it.

        Raises:
            DataError: For voxels of 8 bits, and for a scale that means something else than its writer wanted.
        """
        if self.dtype.itemsize == 1:
            self.stored(self.num_slices - 1, self.axes[2])  # a file that is cut short has that fault
            raise DataError(self.where, "8 bits a voxel cannot hold HU: the values were windowed", "Save the CT in HU")
        slope, inter = self.header_scale
        if slope < 0:
            raise DataError(self.where, f"scl_slope must be above 0, got {slope:g}", "Save the CT in HU")
        if (slope == 0 or not math.isfinite(slope)) and math.isfinite(inter) and inter != 0:
            raise DataError(
                self.where,
                f"scl_slope is {slope:g}, which means unscaled values, so scl_inter {inter:g} would not count",
                "Set scl_slope to 1 if it should, or scl_inter to 0; or save the CT in HU",
            )

    def slice(self, index: int) -> NiftiSlice:
        """A slice of the volume, to be read when a lesion needs it.

        Raises:
            DataError: When the index is outside the volume.
        """
        if not 0 <= index < self.num_slices:
            raise DataError(self.where, f"slice must be 0 .. {self.num_slices - 1}, got {index}", "Correct the number")
        return NiftiSlice(self, index)


@dataclass(frozen=True, eq=False)
class NiftiSlice:
    """One axial slice of a volume."""

    volume: NiftiVolume
    index: int

    @property
    def source(self) -> SourceFile:
        """The file."""
        return self.volume.source

    def load(self) -> Slice:
        """Read the slice in HU, turned.

        Raises:
            DataError: When it cannot be read, or holds NaN, infinity or what cannot be HU.
        """
        kept = self.volume._kept
        if self.index not in kept:
            kept[self.index] = self._read()
            if len(kept) > _KEPT_SLICES:
                kept.popitem(last=False)
        return kept[self.index]

    def _read(self) -> Slice:
        values = self.volume.read(self.index)
        if not np.isfinite(values).all():
            raise DataError(self.volume.where, f"slice {self.index} holds NaN or infinity", "Save the CT in HU")
        self.volume.check_image()
        least, largest = float(values.min()), float(values.max())
        if -1 <= least < largest <= 1:
            raise DataError(
                self.volume.where,
                f"slice {self.index} holds values of {least:.3g} .. {largest:.3g}: these are no HU",
                "Save the CT in HU, not normalised",
            )
        plane = self.volume.plane(self.index)
        return Slice(self.source, self.volume.turn.apply(clip_hu(values)), plane.spacing_mm)


# A mask's grid may be this far from its image's, in voxels: headers hold 32-bit numbers, and other programs' text fewer
# digits. No margin moves to another voxel.
SAME_VOXEL = 0.05


@dataclass(frozen=True)
class GridMap:
    """How a mask's voxels lie on an image's.

    Attributes:
        axes: The mask's axis along each axis of the image.
        flips: Whether it runs the other way.
        away: How far a voxel of the mask is from the image's at most, in voxels.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)
    away: float = 0.0

    def plane(self, mask: NiftiVolume, index: int, axes: tuple[int, int, int]) -> NDArray[Any]:
        """A plane of the mask's stored values as the image has them.

        Args:
            mask: The mask.
            index: Along the mask's own axis.
            axes: The image's axes (x, y, across).

        Returns:
            [image axis y, image axis x].
        """
        x, y, across = axes
        plane = mask.stored(index, self.axes[across])
        if self.axes[x] < self.axes[y]:
            plane = plane.T
        if self.flips[y]:
            plane = plane[::-1]
        return plane[:, ::-1] if self.flips[x] else plane


def map_grid(mask: NiftiVolume, image: NiftiVolume, *, trust_voxels: bool = False) -> GridMap:
    """How a mask's voxels lie on its image's: the same grid, or the same in another order of axes.

    Args:
        mask: The mask.
        image: Its image.
        trust_voxels: Take two of one shape as one grid, whatever their affines say.

    Raises:
        DataError: When they are two grids.
    """
    same_shape = mask.shape == image.shape
    if trust_voxels and same_shape:
        return GridMap()
    to_image = np.linalg.inv(image.affine) @ mask.affine
    axes = [int(axis) for axis in np.abs(to_image[:3, :3]).argmax(axis=1)]
    if sorted(axes) != [0, 1, 2] or any(mask.shape[axes[i]] != image.shape[i] for i in range(3)):
        raise DataError(
            mask.where,
            f"a mask must have the shape of its image, got {mask.shape} and {image.shape} of {image.where}",
            "Export the mask on the grid of the image, or name the right image with --image",
        )
    flips = [bool(to_image[i, axis] < 0) for i, axis in enumerate(axes)]
    corners = np.array([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]) * (np.array(mask.shape) - 1)
    meant = corners[:, axes].astype(np.float64)
    for i in range(3):
        if flips[i]:
            meant[:, i] = image.shape[i] - 1 - meant[:, i]
    away = float(np.abs(corners @ to_image[:3, :3].T + to_image[:3, 3] - meant).max())
    if away > SAME_VOXEL:
        trust = "; or give --trust-voxels if it was drawn voxel by voxel on this image" if same_shape else ""
        raise DataError(
            mask.where,
            f"a mask must lie on the grid of its image, this one is up to {away:.3g} voxels away from {image.where}",
            f"Export the mask on the grid of the image, or name the right image with --image{trust}",
        )
    return GridMap((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), away)


def _check_start(source: SourceFile, where: str) -> tuple[float, float]:
    """Refuse what is no NIfTI by its first bytes, and a header that claims an absurd length.

    Returns:
        scl_slope and scl_inter, which nibabel shows only where it uses them.

    Raises:
        DataError: With what it is instead.
    """
    with source.path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise DataError(where, "this is a Git LFS pointer, not the image itself", "Run git lfs pull")
    if not head:
        raise DataError(where, "the file is empty", "Copy it again")
    opened = gzip.open if head.startswith(b"\x1f\x8b") else open
    with opened(source.path, "rb") as stream:
        header = stream.read(540)
    for order in "<>":
        size = struct.unpack(f"{order}i", header[:4])[0] if len(header) >= 348 else 0
        if size == 348:
            begins, slope, inter = struct.unpack(f"{order}3f", header[108:120])
        elif size == 540 and len(header) == 540:
            begins, slope, inter = struct.unpack(f"{order}q2d", header[168:192])
        else:
            continue
        if not size <= begins <= MAX_HEADER_BYTES:
            raise DataError(where, f"the header states an impossible place for the voxels: {begins:g}", "Save it again")
        return slope, inter
    raise DataError(where, "the file is no NIfTI volume or is cut short", "Save it as .nii or .nii.gz")


def _axial_axes(affine: NDArray[np.float64]) -> tuple[int, int, int]:
    """The array axes along columns, rows and across slices."""
    directions = _LPS @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    across = int(np.abs(directions[2]).argmax())
    x, y = (axis for axis in range(3) if axis != across)
    return x, y, across


def _grid(image: Any, spacing_mm: tuple[float, float] | None, where: str) -> NDArray[np.float64] | DataError:
    """The affine of an image; where it is none, the grid as stored with a given spacing, else what is wrong."""
    try:
        return _checked_affine(image, where)
    except DataError as error:
        return error if spacing_mm is None else np.diag([-spacing_mm[0], -spacing_mm[1], 1.0, 1.0])


def _is_placeholder(affine: NDArray[np.float64]) -> bool:
    """Whether an affine is what writers put where they know nothing: 1 mm and the origin at the first voxel."""
    return bool(np.allclose(np.abs(affine), np.eye(4), atol=1e-6))


def _checked_affine(image: Any, where: str) -> NDArray[np.float64]:
    if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
        raise DataError(
            where, "the NIfTI header does not say how it is oriented (qform and sform codes are 0)", "Save its affine"
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if _is_placeholder(affine):
        raise DataError(
            where,
            "the affine is the identity, so orientation and spacing are not known",
            "Save the image with its true affine; or give --trust-voxels and --spacing ROW,COLUMN if the first index "
            "runs to the patient's left and the second to the back",
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or bool((lengths < 1e-9).any()):
        raise DataError(where, "the NIfTI affine is singular or not finite", "Save the image with its true affine")
    if abs(float(np.linalg.det(affine[:3, :3] / lengths))) < 1e-3:
        raise DataError(where, "the NIfTI affine is singular or not finite", "Save the image with its true affine")
    if not bool(((lengths >= 0.01) & (lengths <= 50)).all()):
        raise DataError(
            where, f"voxels must be 0.01 .. 50 mm, the affine says {lengths.round(4)}", "Correct the affine"
        )
    pixdim = np.abs(np.asarray(image.header["pixdim"][1:4], dtype=np.float64))
    never_set = int(image.header["qform_code"]) == 0 and bool(np.isin(pixdim, (0.0, 1.0)).all())
    if not never_set and bool((abs(lengths - pixdim) > _SAME_SIZE * lengths).any()):
        raise DataError(
            where,
            f"the header's two sizes of a voxel must agree: {_shown(lengths)} mm by its affine (sform), "
            f"{_shown(pixdim)} mm by pixdim and qform",
            "Save it again with the right affine, for both",
        )
    return affine


def _shown(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.5g}" for size in sizes)
