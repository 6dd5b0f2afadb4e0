"""What every importer hands on: slices in Hounsfield units, lesions cut from them, and the faults met on the way."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.margins import bounding_box, centre, crop_box, diameter_px, worst_outside_fraction
from lesionaug.errors import DataError, LesionaugError

# Air to the top of a 12-bit scale. Padding values far below air would ring through any interpolation.
HU_CLIP = (-1024, 3071)

MOST_CLIPPED = 0.5  # of a lesion's pixels; more is no tissue, but a wrong offset or padding

# An axis of the picture may lean this far from the patient's axis: a gantry tilts by at most 30 degrees.
LARGEST_TILT_DEG = 35.0

HuArray = NDArray[Any]  # int16 where every value is whole, else float32; clipped to HU_CLIP
Pixel = TypeVar("Pixel", bound=np.generic)
Severity = Literal["error", "warning", "info"]


class MarginRefused(DataError):
    """A margin that cannot be used; `reason` says why in words that name nobody, for the import report."""

    def __init__(self, where: str, rule: str, fix: str, reason: str) -> None:
        super().__init__(where, rule, fix)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.rule, self.fix, self.reason)


@dataclass(frozen=True)
class Finding:
    """One thing a user should know about a source.

    Attributes:
        severity: "error" (blocks an import), "warning" or "info".
        where: File relative to the source, with row, ROI or segment.
        rule: What must hold and what was found.
        fix: What to do about it.
        reason: For a margin that is not taken: why, in words that name nobody, for the import report.
        source: For a margin that is not taken: its file.
        number: For a margin that is not taken: its ROI, segment or line number.
    """

    severity: Severity
    where: str
    rule: str
    fix: str = ""
    reason: str = ""
    source: SourceFile | None = field(default=None, repr=False)
    number: int | None = None

    @classmethod
    def refused(cls, error: LesionaugError, source: SourceFile | None = None, number: int | None = None) -> Finding:
        """The finding that says what an error said, about a margin where its file and number are given."""
        reason = getattr(error, "reason", "refused with an error" if source else "")
        return cls("error", error.where, error.rule, error.fix, reason, source, number)

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}. {self.fix}".strip()


@dataclass(frozen=True)
class SourceFile:
    """A file of the source: a number and a hash for what is written, a relative name for the terminal alone.

    Attributes:
        number: Its place in the sorted list of the source's files, from 1; written as `#n`.
        path: Where it lies.
        name: Its path relative to the source; never written anywhere.
    """

    number: int
    path: Path
    name: str

    @property
    def size(self) -> int:
        """In bytes, 0 where it is gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @cached_property
    def hash_prefix(self) -> str:
        """The first 12 hexadecimal digits of the file's SHA-256."""
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()[:12]


class NumberedFiles:
    """The files of a source by their path.

    Args:
        files: Every file of the source.
    """

    def __init__(self, files: Iterable[SourceFile]) -> None:
        self._by_path = {file.path.resolve(): file for file in files}

    def at(self, path: Path) -> SourceFile | None:
        """The file at a path, None where it is not one of the source's."""
        return self._by_path.get(path.resolve())

    def of(self, path: Path) -> SourceFile:
        """The file at a path; one outside the source gets the next free number."""
        resolved = path.resolve()
        if resolved not in self._by_path:
            self._by_path[resolved] = SourceFile(len(self._by_path) + 1, path, path.name)
        return self._by_path[resolved]


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a picture lies in the patient (DICOM axes: x to the patient's left, y to the back, z to the head).

    Attributes:
        position: float64 [3] in mm, the centre of the top-left pixel.
        right: float64 [3], unit vector from a column to the next.
        down: float64 [3], unit vector from a row to the next.
        spacing_mm: (s_x, s_y), the distance between columns and between rows.
    """

    position: NDArray[np.float64]
    right: NDArray[np.float64]
    down: NDArray[np.float64]
    spacing_mm: tuple[float, float]

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector [3] across the plane."""
        return np.cross(self.right, self.down)

    @property
    def depth_mm(self) -> float:
        """Position along the normal."""
        return float(self.position @ self.normal)

    def to_pixels(self, points_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Patient points [n, 3] in mm as (x, y) [n, 2] with integers at pixel centres, and distances [n] in mm."""
        offset = points_mm - self.position
        x, y = offset @ self.right / self.spacing_mm[0], offset @ self.down / self.spacing_mm[1]
        return np.stack([x, y], axis=1), offset @ self.normal


@dataclass(frozen=True)
class Reorientation:
    """How a stored picture is turned so that columns run to the patient's left and rows to the back."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, picture: NDArray[Pixel]) -> NDArray[Pixel]:
        """Turn a picture or mask [height, width]: first the transposition, then the flips."""
        turned = picture.T if self.transpose else picture
        if self.flip_x:
            turned = turned[:, ::-1]
        if self.flip_y:
            turned = turned[::-1]
        return np.ascontiguousarray(turned)


def patient_key(patient_id: str) -> str:
    """How patients are told apart: regardless of case, composition (NFKC), white space and what does not show."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", patient_id) if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", shown.casefold()).split())


def face_left_posterior(plane: Plane, height: int, width: int, where: str) -> tuple[Plane, Reorientation]:
    """The plane of an axial picture after turning its columns to the patient's left and its rows to the back.

    Args:
        plane: The plane as stored.
        height: Rows as stored.
        width: Columns as stored.
        where: Named in the error.

    Returns:
        The plane of the turned picture, and the turn.

    Raises:
        DataError: When the picture is not axial (sagittal, coronal or more than 35 degrees oblique).
    """
    least = math.cos(math.radians(LARGEST_TILT_DEG))
    transpose = bool(abs(plane.right[1]) > abs(plane.right[0]))
    right, down = (plane.down, plane.right) if transpose else (plane.right, plane.down)
    if abs(plane.normal[2]) < least or abs(right[0]) < least or abs(down[1]) < least:
        raise DataError(
            where,
            "slices must be axial (within 35 degrees), but this one is sagittal, coronal or oblique",
            "Export the axial series",
        )
    flip_x, flip_y = bool(right[0] < 0), bool(down[1] < 0)
    spacing = plane.spacing_mm[::-1] if transpose else plane.spacing_mm
    columns, rows = (height, width) if transpose else (width, height)
    position = plane.position
    if flip_x:
        position, right = position + right * spacing[0] * (columns - 1), -right
    if flip_y:
        position, down = position + down * spacing[1] * (rows - 1), -down
    return Plane(position, right, down, (spacing[0], spacing[1])), Reorientation(transpose, flip_x, flip_y)


def clip_hu(hu: NDArray[np.float64]) -> HuArray:
    """Clip to `HU_CLIP`; int16 where every value is whole, else float32."""
    clipped = np.clip(hu, *HU_CLIP)
    whole = np.rint(clipped)
    return whole.astype(np.int16) if bool((whole == clipped).all()) else clipped.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice, its columns towards the patient's left and its rows towards the back wherever the source says so.

    Attributes:
        source: The file it came from.
        hu: int16 or float32 [height, width], clipped to `HU_CLIP`.
        spacing_mm: (s_x, s_y).
        phantom: Whether the file says that it was made by `lesionaug phantom`.
    """

    source: SourceFile
    hu: HuArray
    spacing_mm: tuple[float, float]
    phantom: bool = False


class SliceHandle(Protocol):
    """A slice that is known to be there, read when a lesion needs its pixels."""

    @property
    def source(self) -> SourceFile:
        """The file that holds it."""

    def load(self) -> Slice:
        """Read the pixels.

        Raises:
            DataError: When they cannot be read.
        """


@dataclass(frozen=True, eq=False)
class MarginOnSlice:
    """The mask of one margin on one slice, in the slice's turned orientation; only the part about it is kept.

    Attributes:
        slice: The slice.
        shape: (height, width) of its turned picture.
        corner: (top, left) of the part.
        part: bool [height, width], the mask within its bounding box.
    """

    slice: SliceHandle
    shape: tuple[int, int]
    corner: tuple[int, int]
    part: NDArray[np.bool_]

    @classmethod
    def of(cls, on: SliceHandle, mask: NDArray[np.bool_]) -> MarginOnSlice:
        """Keep what is needed of a whole mask [height, width].

        Raises:
            ValueError: For an empty mask.
        """
        top, bottom, left, right = bounding_box(mask)
        shape = (int(mask.shape[0]), int(mask.shape[1]))
        return cls(on, shape, (top, left), mask[top:bottom, left:right].copy())

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The whole mask, bool [height, width]."""
        whole = np.zeros(self.shape, dtype=np.bool_)
        (top, left), (height, width) = self.corner, self.part.shape
        whole[top : top + height, left : left + width] = self.part
        return whole

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(self.part.sum())


@dataclass(frozen=True, eq=False)
class Margin:
    """One margin as its source has it: a ROI of a structure set, a segment, or the rows of a table.

    Attributes:
        source: The file that holds it.
        where: File and number or row, for the terminal.
        number: The ROI or segment number, or the first row in a table; this may be written.
        key: What a label file may call it: the number, or the table's lesion id.
        name: ROI name, segment label or table label; free text, for the terminal and label maps alone.
        also_named: What else a label map may go by: codes ("SCT:108369006"), their meanings, folder names.
        patient: The patient's id, trimmed and casefolded; groups, never written.
        named: The id as the source has it, where an alias table gives `patient` another.
        slices: Its mask on every slice present, along the normal; empty masks left out.
        names_its_class: Whether `name` is a class by the source's own statement (a label column, the phantom).
        parts_missing: How many contours or frames lie on slices that are not in the source.
    """

    source: SourceFile
    where: str
    number: int
    key: str
    name: str
    patient: str
    slices: list[MarginOnSlice]
    names_its_class: bool = False
    parts_missing: int = 0
    also_named: tuple[str, ...] = ()
    named: str = ""

    def largest(self) -> MarginOnSlice:
        """The slice of largest mask area, the first of them on a tie."""
        return max(self.slices, key=lambda entry: entry.area)


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion cut from its slice as the store keeps it.

    Attributes:
        lesion_id: 16 hexadecimal digits, a hash of `hu` and `mask`: stable over re-imports, and it names nobody.
        hu: int16 or float32 [height, width], the crop.
        mask: bool [height, width].
        center: (x, y) in the crop, corner convention.
        diameter_px: In pixels of size min(spacing).
        spacing_mm: (s_x, s_y).
        origin: (x, y) of the crop's corner in the turned slice.
        outside_fraction: Largest share of an augmented patch outside the slice.
        num_parts: Connected parts of the mask.
        margin: Where it came from.
        slice_source: The slice's file.
        phantom: Whether the slice is a phantom's.
        slice_hash: `picture_hash` of the whole slice.
    """

    lesion_id: str
    hu: HuArray
    mask: NDArray[np.bool_]
    center: tuple[float, float]
    diameter_px: float
    spacing_mm: tuple[float, float]
    origin: tuple[int, int]
    outside_fraction: float
    num_parts: int
    margin: Margin = field(repr=False)
    slice_source: SourceFile = field(repr=False)
    phantom: bool = False
    slice_hash: str = ""


def lesion_id(hu: HuArray, mask: NDArray[np.bool_]) -> str:
    """The id of a lesion: 64 bits of a hash of its own pixels and mask."""
    digest = hashlib.blake2b(b"lesionaug lesion 1", digest_size=8)
    digest.update(f" {hu.shape[0]} {hu.shape[1]} {hu.dtype.name} ".encode())
    digest.update(np.ascontiguousarray(hu).astype(hu.dtype.newbyteorder("<"), copy=False).tobytes())
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def picture_hash(hu: HuArray) -> str:
    """A hash of a whole slice's values, '' where all are equal: an empty slice says nothing about whose it is."""
    if hu.size == 0 or bool((hu == hu.flat[0]).all()):
        return ""
    digest = hashlib.blake2b(f"{hu.shape[0]} {hu.shape[1]} ".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(hu, dtype="<f4").tobytes())
    return digest.hexdigest()


def cut_lesion(margin: Margin, chosen: MarginOnSlice) -> Lesion:
    """Cut the lesion out of its slice, with the surroundings that any augmentation can reach.

    Raises:
        DataError: When the slice's pixels cannot be read.
    """
    from scipy import ndimage  # a third of a second that only lesions need

    picture = chosen.slice.load()
    height, width = chosen.shape
    if picture.hu.shape != chosen.shape:
        raise DataError(margin.where, "its slice has changed since it was read", "Import again")
    whole = chosen.mask
    center = centre(whole)
    diameter = diameter_px(whole, picture.spacing_mm)
    top, bottom, left, right = crop_box(center, diameter, picture.spacing_mm, height, width)
    hu = clip_hu(picture.hu[top:bottom, left:right].astype(np.float64))
    mask = np.ascontiguousarray(whole[top:bottom, left:right])
    inside = hu[mask]
    if float(np.mean((inside <= HU_CLIP[0]) | (inside >= HU_CLIP[1]))) > MOST_CLIPPED:
        raise MarginRefused(
            margin.where,
            f"most of the lesion's pixels are not within {HU_CLIP[0]} .. {HU_CLIP[1]} HU",
            "Check --hu-offset, or the rescale of the source; and that the margin was drawn on this slice",
            "the lesion's pixels are no HU of tissue",
        )
    return Lesion(
        lesion_id=lesion_id(hu, mask),
        hu=hu,
        mask=mask,
        center=(center[0] - left, center[1] - top),
        diameter_px=diameter,
        spacing_mm=picture.spacing_mm,
        origin=(left, top),
        outside_fraction=worst_outside_fraction(center, diameter, picture.spacing_mm, height, width),
        num_parts=int(ndimage.label(mask, structure=np.ones((3, 3)))[1]),
        margin=margin,
        slice_source=picture.source,
        phantom=picture.phantom,
        slice_hash=picture_hash(picture.hu),
    )
