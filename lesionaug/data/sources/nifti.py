"""NIfTI volumes as untrusted input: axial slices by their affine, read one after the other in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Plane, Reorientation, Slice, SourceFile, clip_hu, face_left_posterior
from lesionaug.data.sources.dicom_ct import MAX_SIDE
from lesionaug.data.sources.dicom_file import reading
from lesionaug.errors import DataError

MAX_VOXELS = 1 << 31
# A volume that is not stored slice by slice has to be read whole to take one axial slice out of it.
MAX_WHOLE_BYTES = 512 << 20

SUFFIXES = (".nii", ".nii.gz")

_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI counts to the right and the front of the patient, DICOM to the other sides


@dataclass(frozen=True, eq=False)
class NiftiVolume:
    """A checked 3-D volume; its pixels are read slice by slice.

    Attributes:
        source: The file.
        where: How errors name it.
        shape: Of its three axes; a fourth axis of length 1 is dropped.
        affine: float64 [4, 4], from voxel indices to mm in NIfTI's axes (RAS).
        axes: The array axes that run along columns (x), rows (y) and across slices (z) of its axial slices.
    """

    source: SourceFile
    where: str
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    axes: tuple[int, int, int]
    _image: Any

    @classmethod
    def open(cls, source: SourceFile, where: str | None = None) -> NiftiVolume:
        """Read and check the header; no pixels yet.

        Raises:
            DataError: For anything that is not one volume with a true affine and axial slices.
        """
        import nibabel

        where = where or source.name
        with reading(where):
            with source.path.open("rb") as stream:
                head = stream.read(64)
            if head.startswith(b"version https://git-lfs"):
                raise DataError(where, "this is a Git LFS pointer, not the image itself", "Run git lfs pull")
            if not head:
                raise DataError(where, "the file is empty", "Copy it again")
            image: Any = nibabel.load(source.path, keep_file_open=True)
            if not isinstance(image, nibabel.Nifti1Image):
                raise DataError(where, "the file is no NIfTI volume", "Save it as .nii or .nii.gz")
            shape = tuple(int(n) for n in image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
                rule = f"a NIfTI image must have three axes and at most 2^31 voxels, this one is {image.shape}"
                raise DataError(where, rule, "Save one 3-D volume")
            if cls._dtype(image).kind not in "iuf":
                raise DataError(where, "a NIfTI image must hold numbers, one a voxel", "Save the CT in HU")
            affine = _checked_affine(image, where)
        directions = _LPS @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        across = int(np.abs(directions[2]).argmax())
        x, y = (axis for axis in range(3) if axis != across)
        return cls(source, where, (shape[0], shape[1], shape[2]), affine, (x, y, across), image)

    @property
    def num_slices(self) -> int:
        """Axial slices."""
        return self.shape[self.axes[2]]

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(height, width) of an axial slice before it is turned."""
        return self.shape[self.axes[1]], self.shape[self.axes[0]]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return self._dtype(self._image)

    @staticmethod
    def _dtype(image: Any) -> np.dtype[Any]:
        stored: np.dtype[Any] = np.dtype(image.dataobj.dtype)
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

    def read(self, index: int) -> NDArray[np.float64]:
        """The values of an axial slice as stored, float64 [height, width]; fastest in ascending order.

        Raises:
            DataError: When it cannot be read.
        """
        with reading(self.where):
            if self.axes[2] == 2:
                values = np.asarray(self._image.dataobj[:, :, index], dtype=np.float64)
            else:
                values = np.take(self._whole, index, axis=self.axes[2]).astype(np.float64)
            return values.reshape(values.shape[:2]).T  # [y, x]

    @cached_property
    def _whole(self) -> NDArray[Any]:
        if math.prod(self.shape) * self.dtype.itemsize > MAX_WHOLE_BYTES:
            raise DataError(
                self.where,
                "a volume of more than 512 MiB must be stored with its axial slices along the last axis",
                "Save it again with nibabel.as_closest_canonical",
            )
        whole: NDArray[Any] = np.asanyarray(self._image.dataobj).reshape(self.shape)
        return whole

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
            DataError: When it cannot be read, or holds NaN or infinity.
        """
        values = self.volume.read(self.index)
        if not np.isfinite(values).all():
            raise DataError(self.volume.where, f"slice {self.index} holds NaN or infinity", "Save the CT in HU")
        plane = self.volume.plane(self.index)
        return Slice(self.source, self.volume.turn.apply(clip_hu(values)), plane.spacing_mm)


def _checked_affine(image: Any, where: str) -> NDArray[np.float64]:
    if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
        raise DataError(
            where, "the NIfTI header does not say how it is oriented (qform and sform codes are 0)", "Save its affine"
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or bool((lengths < 1e-9).any()):
        raise DataError(where, "the NIfTI affine is singular or not finite", "Save the image with its true affine")
    if abs(float(np.linalg.det(affine[:3, :3] / lengths))) < 1e-3:
        raise DataError(where, "the NIfTI affine is singular or not finite", "Save the image with its true affine")
    if not bool(((lengths >= 0.01) & (lengths <= 50)).all()):
        raise DataError(
            where, f"voxels must be 0.01 .. 50 mm, the affine says {lengths.round(4)}", "Correct the affine"
        )
    if max(image.shape) > MAX_SIDE:
        raise DataError(where, f"an image may have at most {MAX_SIDE} pixels a side", "Crop it")
    return affine
