"""Pictures that a margin names by file (tables, COCO, LabelMe, DeepLesion): 16-bit PNG, NIfTI slices or DICOM CT."""

from __future__ import annotations

import math
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.csv_files import read_rows
from lesionaug.data.margins import Convention, polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import (
    Finding,
    MarginOnSlice,
    MarginRefused,
    Reorientation,
    Slice,
    SliceHandle,
    SourceFile,
    clip_hu,
    patient_key,
)
from lesionaug.data.sources.dicom_ct import MAX_SIDE, CtSlice, read_ct_slices, why_skipped
from lesionaug.data.sources.dicom_file import is_dicom, read_dicom, reading
from lesionaug.data.sources.nifti import SUFFIXES, NiftiVolume, map_grid
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from lesionaug.data.sources.given import Given

SAME_SPACING = 1e-3  # relative; a table's spacing and its image's must agree to this
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# path, slice, stated spacing, stated offset
_Key = tuple[Path, int | None, tuple[float, float] | None, float | None]

_KEPT = 8  # pictures kept for the margins that follow


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that a margin names.

    Attributes:
        handle: Reads its pixels.
        turn: From the stored to the turned picture.
        stored_shape: (height, width) as stored.
        spacing_mm: (s_x, s_y) as stored.
        patient: As its own file or the table of pictures has it, '' where neither says.
    """

    handle: SliceHandle
    turn: Reorientation
    stored_shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    patient: str = ""

    def draw(
        self, polygons: list[NDArray[np.float64]], convention: Convention, where: str, findings: list[Finding]
    ) -> MarginOnSlice | None:
        """The mask of polygons [n, 2] in pixels of the stored picture, combined by XOR; None where it is empty."""
        height, width = self.stored_shape
        if polygons_reach_outside(polygons, height, width, convention=convention):
            findings.append(Finding("warning", where, "partly outside the picture; clipped to it"))
        return self.with_mask(polygons_to_mask(polygons, height, width, convention=convention))

    def with_mask(self, mask: NDArray[np.bool_]) -> MarginOnSlice | None:
        """A mask of the stored picture as a margin's; None where it is empty."""
        return MarginOnSlice.of(self.handle, self.turn.apply(mask)) if mask.any() else None


@dataclass(frozen=True)
class PictureFacts:
    """What a table of pictures says about one of them.

    Attributes:
        patient: Trimmed and casefolded, '' where it does not say.
        spacing_mm: (s_x, s_y), None where it does not say.
        hu_offset: Added to the values to give HU, None where it does not say.
        hu_image: The picture of the same slice that has HU, where margins were drawn on a windowed copy; else ''.
    """

    patient: str = ""
    spacing_mm: tuple[float, float] | None = None
    hu_offset: float | None = None
    hu_image: str = ""


_NOTHING = PictureFacts()
_ROW_SPACING = ("row_spacing_mm", "spacing_row_mm")
_COLUMN_SPACING = ("col_spacing_mm", "spacing_col_mm")
_FACTS = ("image", "patient_id", *_ROW_SPACING, *_COLUMN_SPACING, "hu_offset", "hu_image")


def read_pictures_table(path: Path) -> dict[str, tuple[int, PictureFacts]]:
    """The rows of a table of pictures: `image`, and any of patient_id, spacings, hu_offset, hu_image.

    Returns:
        Line and facts by what the column `image` says.

    Raises:
        DataError: For missing columns, a cell that cannot be, or an image with two rows.
    """
    where = f"--pictures {path.name}"
    if not path.is_file():
        raise DataError(where, "there is no such file", "Give the CSV with the column image and what is known of each")
    rows: dict[str, tuple[int, PictureFacts]] = {}
    for cells in read_rows(path, where):
        if "image" not in cells or not any(name in cells for name in _FACTS[1:]):
            raise DataError(where, f"a table of pictures needs image and one of {', '.join(_FACTS[1:])}", "Add them")
        at = f"{where} line {cells['__line__']}"
        if not cells["image"]:
            raise DataError(at, "image is empty", "Fill it in")
        if cells["image"] in rows:
            raise DataError(at, "the image has a row further up", "Keep one of the rows")
        rows[cells["image"]] = int(cells["__line__"]), _facts_of(cells, at)
    if not rows:
        raise DataError(where, "the table holds no rows", "Add a row for each picture")
    return rows


def _facts_of(cells: dict[str, str], where: str) -> PictureFacts:
    down, right = (
        next((cells[name] for name in names if cells.get(name)), "") for names in (_ROW_SPACING, _COLUMN_SPACING)
    )
    offset = cells.get("hu_offset") or ""
    return PictureFacts(
        patient=patient_key(cells.get("patient_id", "")),
        spacing_mm=(
            (_number(right, "spacing", 0.01, 20, where), _number(down, "spacing", 0.01, 20, where))
            if down or right
            else None
        ),
        hu_offset=_number(offset, "hu_offset", -1e6, 1e6, where) if offset else None,
        hu_image=cells.get("hu_image") or "",
    )


def _number(cell: str, name: str, least: float, most: float, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise DataError(
            where, f"{name} must be a number of {least:g} .. {most:g}, got '{cell[:20]}'", "Correct the cell"
        )
    return value


def _named_by(written: str, table: Path, files: Sequence[SourceFile]) -> list[Path]:
    """The files that a row's image may be: by its name within the source or the end of it, or beside the table."""
    image = Path(written)
    if not image.is_absolute():
        name = image.as_posix()
        exact = [file.path for file in files if file.name == name]
        found = exact or [file.path for file in files if file.name.endswith(f"/{name}")]
        if found:
            return found
    beside = table.parent / image
    return [beside] if beside.is_file() else []


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A slice that was read when its picture was checked."""

    picture: Slice = field(repr=False)

    @property
    def source(self) -> SourceFile:
        return self.picture.source

    def load(self) -> Slice:
        return self.picture


class Pictures:
    """Pictures by path and slice; the last few are kept for the margins that follow."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._kept: OrderedDict[_Key, Picture] = OrderedDict()
        self._volumes: OrderedDict[tuple[Path, bool], NiftiVolume] = OrderedDict()
        self._noted: set[Path] = set()
        self._frames: tuple[Path, dict[int, CtSlice]] | None = None

    @cached_property
    def _facts(self) -> dict[Path, PictureFacts]:
        table = self._given.options.pictures_table
        facts: dict[Path, PictureFacts] = {}
        for written, (line, stated) in ({} if table is None else read_pictures_table(table)).items():
            assert table is not None
            where = f"--pictures {table.name} line {line}"
            found = _named_by(written, table, self._given.files)
            if not found:
                rule = "the image is not in the source, so the row is not used"
                self._given.findings.append(Finding("warning", where, rule, "Write its path relative to the source"))
            if len(found) > 1:
                rule = f"the image may be any of {len(found)} files"
                raise DataError(where, rule, "Write its path relative to the source")
            if any(facts.setdefault(path.resolve(), stated) != stated for path in found):
                raise DataError(where, "the image has a row further up that says otherwise", "Keep one of the rows")
        return facts

    def facts(self, path: Path) -> PictureFacts:
        """What the table of pictures (`--pictures`) says about the picture at a path, nothing where it has no row.

        Raises:
            DataError: When the table cannot be used.
        """
        return self._facts.get(path.resolve(), _NOTHING)

    def _with_hu(self, name: str, hu_image: str) -> Path:
        """The picture that stands for a windowed copy, as the table of pictures says."""
        table = self._given.options.pictures_table
        assert table is not None
        found = _named_by(hu_image, table, self._given.files)
        if len(found) != 1:
            rule = (
                f"the hu_image of the table of pictures may be any of {len(found)} files"
                if found
                else ("the hu_image of the table of pictures is not in the source")
            )
            raise DataError(name, rule, "Write its path relative to the source")
        return found[0]

    def _check_copy(self, path: Path, picture: Picture, name: str) -> None:
        """Refuse a windowed copy of another size than the picture that stands for it."""
        from PIL import Image

        with reading(name), Image.open(path, formats=["PNG", "JPEG", "TIFF", "BMP"]) as copy:
            if copy.size != picture.stored_shape[::-1]:
                raise DataError(
                    name,
                    f"the image has {copy.size[1]} x {copy.size[0]} pixels (rows x columns), "
                    f"its hu_image {picture.stored_shape[0]} x {picture.stored_shape[1]}",
                    "Margins drawn on a resized copy do not fit; name the picture of its size",
                )

    def get(
        self,
        path: Path,
        name: str,
        *,
        slice_index: int | None = None,
        spacing_mm: tuple[float, float] | None = None,
        patient: str = "",
        hu_offset: float | None = None,
    ) -> Picture:
        """The picture at a path.

        Args:
            path: Of the file.
            name: What the margin calls it, for errors.
            slice_index: From 0 along the last axis, for a NIfTI volume.
            spacing_mm: (s_x, s_y) as the margin's format states it: needed for a PNG (or of `facts`, or as the user
                gave it), must agree for others.
            patient: As the margin's format states it; a DICOM file and `facts` must agree.
            hu_offset: For this picture; else that of `facts`, else the one that the user gave.

        Raises:
            DataError: When it is missing, of a kind that loses HU, without spacing, or at odds with what is stated.
        """
        facts = self.facts(path)
        stated, spacing_mm = spacing_mm, spacing_mm or facts.spacing_mm
        hu_offset = facts.hu_offset if hu_offset is None else hu_offset
        copy, path = path, self._with_hu(name, facts.hu_image) if facts.hu_image else path
        key = (path, slice_index, spacing_mm, hu_offset)
        picture = self._kept.pop(key, None) or self._read(path, name, slice_index, spacing_mm, hu_offset)
        if facts.hu_image:
            self._check_copy(copy, picture, name)
        self._kept[key] = picture
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        check_spacing(stated, picture, name)
        check_spacing(facts.spacing_mm, picture, name, "the table of pictures")
        same_patient = self._given.options.same_patient
        own = {"the file's PatientID is": picture.patient, "the table of pictures has": facts.patient}
        for whose, known in own.items():
            if patient and known and not same_patient(known, patient_key(patient)):
                raise MarginRefused(
                    name,
                    f"the patient stated for the image must be its own, but {whose} another one",
                    "Correct the patient, or name the right image",
                    "patient differs between margin and slice",
                )
        if facts.patient and picture.patient and not same_patient(facts.patient, picture.patient):
            raise MarginRefused(
                name,
                "the table of pictures must have the patient of the image, but the file's PatientID is another one",
                "Correct the table of pictures",
                "patient differs between table and slice",
            )
        return replace(picture, patient=picture.patient or facts.patient)

    def _read(
        self,
        path: Path,
        name: str,
        slice_index: int | None,
        spacing_mm: tuple[float, float] | None,
        hu_offset: float | None,
    ) -> Picture:
        if not path.is_file():
            raise MarginRefused(
                name,
                "the image that the margin names is missing",
                "Put it where the margin's file says",
                "image missing",
            )
        with path.open("rb") as stream:
            head = stream.read(132)
        if head.startswith(b"version https://git-lfs"):
            raise DataError(name, "this is a Git LFS pointer, not the image itself", "Run git lfs pull")
        source = self._given.file_of(path)
        if path.name.lower().endswith(SUFFIXES):
            return self._nifti(source, name, slice_index)
        if is_dicom(head):
            return self._dicom(source, name, slice_index)
        if head.startswith(PNG_SIGNATURE):
            if slice_index is not None:
                raise DataError(name, "the slice column is for volumes", "Leave it empty for a PNG")
            options = self._given.options
            offset = options.hu_offset if hu_offset is None else hu_offset
            return _png(source, name, spacing_mm or options.spacing_mm, offset)
        raise MarginRefused(
            name,
            "images of a table must be 16-bit PNG, NIfTI or DICOM CT",
            "JPEG and 8-bit pictures have lost their HU; export one of these, or name it in the column hu_image of "
            "--pictures",
            "image of a kind that has no HU",
        )

    def _dicom(self, source: SourceFile, name: str, slice_index: int | None) -> Picture:
        if self._frames is None or self._frames[0] != source.path:
            self._frames = (source.path, self._read_frames(source))
        frames = self._frames[1]
        multi_frame = next(iter(frames.values())).multi_frame
        if not multi_frame and slice_index is not None:
            raise DataError(name, "the slice column is for volumes", "Leave it empty for a DICOM slice")
        if len(frames) > 1 and slice_index is None:
            raise DataError(name, "a multi-frame file needs the slice column", "Add the frame's number, from 0")
        if slice_index is not None and slice_index not in frames:
            rule = f"slice must be a frame of 0 .. {max(frames)} that is no localizer, got {slice_index}"
            raise DataError(name, rule, "Correct the cell")
        ct = frames[min(frames) if slice_index is None else slice_index]
        if source.path not in self._noted:
            self._noted.add(source.path)
            self._given.findings.extend(Finding("warning", source.name, note) for note in ct.notes)
        spacing = ct.spacing_mm[::-1] if ct.turn.transpose else ct.spacing_mm
        return Picture(ct, ct.turn, (ct.height, ct.width), (spacing[0], spacing[1]), ct.patient)

    def _read_frames(self, source: SourceFile) -> dict[int, CtSlice]:
        """The slices of a DICOM file by frame; the last file's are kept, for rows about one follow each other."""
        dataset = read_dicom(source, pixels=True)
        with reading(source.name):
            skipped = why_skipped(dataset, source.name)
            if skipped:
                raise DataError(source.name, f"the image must be a CT slice, this is {skipped}", "Name the CT slice")
            slices = read_ct_slices(source, dataset, self._given.options, self._given.step)
            if not slices:
                raise DataError(source.name, "the image must be a CT slice, this is a margin", "Name the CT slice")
        return {ct.frame: ct for ct in slices}

    def _nifti(self, source: SourceFile, name: str, slice_index: int | None) -> Picture:
        if slice_index is None:
            raise DataError(name, "a NIfTI volume needs the slice column", "Add the index along the third axis, from 0")
        volume = self.volume(source, name)
        if volume.axes[2] != 2:
            raise DataError(
                name, "slices must be axial along the third axis of the volume", "Save it with as_closest_canonical"
            )
        handle = volume.slice(slice_index)
        loaded = _Loaded(handle.load())
        plane = volume.plane(slice_index)
        spacing = plane.spacing_mm[::-1] if volume.turn.transpose else plane.spacing_mm
        return Picture(loaded, volume.turn, volume.stored_shape, (spacing[0], spacing[1]))

    def volume(self, source: SourceFile, name: str, *, as_mask: bool = False) -> NiftiVolume:
        """A NIfTI volume; the last few stay open, so that slices in ascending order are read in one pass.

        Args:
            source: The file.
            name: How errors name it.
            as_mask: It is used voxel by voxel, whatever its header says of its place.
        """
        key = (source.path, as_mask)
        volume = self._volumes.pop(key, None)
        if volume is None:
            options = self._given.options
            affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if as_mask else None
            spacing = self.facts(source.path).spacing_mm or options.spacing_mm
            volume = NiftiVolume.open(
                source, name, spacing_mm=spacing, trust_voxels=options.trust_voxels, affine=affine
            )
        self._volumes[key] = volume
        if len(self._volumes) > 4:
            self._volumes.popitem(last=False)
        return volume


def check_spacing(
    stated: tuple[float, float] | None, picture: Picture, name: str, whose: str = "the margin's file"
) -> None:
    """Refuse a stated spacing (s_x, s_y) that is not the picture's."""
    own = picture.spacing_mm
    if stated is not None and any(abs(a / b - 1) > SAME_SPACING for a, b in zip(stated, own, strict=True)):
        raise MarginRefused(
            name,
            f"{whose} says {stated[1]:g} x {stated[0]:g} mm a pixel (row x column), the image {own[1]:g} x {own[0]:g}",
            "Correct the one that is wrong",
            "spacing differs between margin and image",
        )


def read_png_values(source: SourceFile, name: str) -> NDArray[np.float64]:
    """The values of a 16-bit grey PNG, float64 [height, width].

    Raises:
        DataError: For any other picture.
    """
    from PIL import Image

    with reading(source.name), Image.open(source.path, formats=["PNG"]) as picture:
        if max(picture.size) > MAX_SIDE:
            raise DataError(name, f"an image may have at most {MAX_SIDE} pixels a side", "Crop it")
        if picture.mode not in ("I;16", "I;16B", "I;16L"):
            raise MarginRefused(
                name,
                f"a PNG must be 16-bit grey, this one is '{picture.mode}': windowed 8-bit pictures have lost their HU",
                "Export HU as 16-bit PNG, use DICOM or NIfTI, or name one in the column hu_image of --pictures",
                "image of a kind that has no HU",
            )
        _check_png_is_whole(source.path, picture.size, bool(picture.info.get("interlace")), name)
        return np.array(picture, dtype=np.float64)


def _check_png_is_whole(path: Path, size: tuple[int, int], interlaced: bool, name: str) -> None:
    """Refuse a 16-bit grey PNG whose data end before its last row, which Pillow fills with zeros without a word."""
    width, height = size
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sides = [(-(-(width - x) // step_x), -(-(height - y) // step_y)) for x, y, step_x, step_y in passes]
    wanted = sum(rows * (1 + 2 * columns) for columns, rows in sides if columns > 0 and rows > 0)
    inflater = zlib.decompressobj()
    found = 0
    with path.open("rb") as stream:
        stream.seek(len(PNG_SIGNATURE))
        while found < wanted and len(start := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", start)
            content = stream.read(length) if kind == b"IDAT" else b""
            stream.seek(4 if kind == b"IDAT" else length + 4, 1)
            while content and found < wanted:
                found += len(inflater.decompress(content, 1 << 20))
                content = inflater.unconsumed_tail
    if found < wanted:
        raise DataError(name, "the PNG ends before its last row", "Copy or export it again")


# Where the passes of an interlaced PNG begin, and their steps: x, y, right, down.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read_mask(
    path: Path, name: str, slice_index: int | None, given: Given, image: Path | None = None
) -> NDArray[np.bool_]:
    """A mask picture (PNG of any grey depth, or a slice of a NIfTI volume), bool [height, width]: above 0 is inside.

    Args:
        path: Of the mask.
        name: What the margin calls it, for errors.
        slice_index: From 0 along the last axis, for a NIfTI volume.
        given: Options and pictures.
        image: The picture it was drawn on: two NIfTI volumes must have one grid.

    Raises:
        DataError: For anything else.
    """
    from PIL import Image

    if not path.is_file():
        raise DataError(name, "the mask that the table names is missing", "Put it where the table says")
    source = given.file_of(path)
    if path.name.lower().endswith(SUFFIXES):
        if slice_index is None:
            raise DataError(name, "a NIfTI mask needs the slice column", "Add the index along the third axis, from 0")
        of_volume = image is not None and image.name.lower().endswith(SUFFIXES) and not given.options.trust_voxels
        volume = given.pictures.volume(source, name, as_mask=not of_volume)
        if not 0 <= slice_index < volume.shape[2]:
            raise DataError(name, f"slice must be 0 .. {volume.shape[2] - 1}, got {slice_index}", "Correct the cell")
        if of_volume and image is not None:
            grid = map_grid(volume, given.pictures.volume(given.file_of(image), image.name))
            if grid.axes != (0, 1, 2) or any(grid.flips):
                raise DataError(
                    name, "the axes of a mask must run as those of its image do", "Save both in one orientation"
                )
        values = volume.scaled(volume.stored(slice_index, 2)).T
    else:
        with reading(name), Image.open(path, formats=["PNG"]) as picture:
            if max(picture.size) > MAX_SIDE or picture.mode not in ("1", "L", "P", "I;16", "I;16B", "I;16L", "I"):
                raise DataError(name, f"a mask must be a grey PNG of at most {MAX_SIDE} pixels a side", "Export it so")
            values = np.array(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(name, "a mask must not hold NaN or infinity", "Export it again")
    return np.asarray(values > 0)


def _png(source: SourceFile, name: str, spacing_mm: tuple[float, float] | None, hu_offset: float | None) -> Picture:
    if spacing_mm is None:
        raise MarginRefused(
            name,
            "a PNG does not say how large its pixels are",
            "Say it with row_spacing_mm and col_spacing_mm in the table or --pictures, or with --spacing ROW,COLUMN",
            "image without spacing",
        )
    if hu_offset is None:
        raise MarginRefused(
            name,
            "a PNG does not say what its values are in HU",
            "Give --hu-offset: -32768 where the file holds HU + 32768, -1024 where it holds HU + 1024",
            "image without HU offset",
        )
    values = read_png_values(source, name)
    picture = Slice(source, clip_hu(values + hu_offset), spacing_mm)
    return Picture(_Loaded(picture), Reorientation(), (values.shape[0], values.shape[1]), spacing_mm)
