"""Margins out of a polygon table (CSV) beside 16-bit PNG, NIfTI or DICOM CT images (columns: docs/import.md)."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.dicom_ct import (
    CT_IMAGE,
    MAX_SIDE,
    CtSlice,
    is_dicom,
    patient_key,
    read_ct_slice,
    read_dicom,
    reading,
    text,
    why_skipped,
)
from lesionaug.data.margins import Convention, polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import (
    Finding,
    Margin,
    MarginOnSlice,
    MarginRefused,
    Plane,
    Reorientation,
    Slice,
    SourceFile,
    clip_hu,
    face_left_posterior,
)
from lesionaug.errors import DataError

_IMAGE = ("image",)
_PATIENT = ("patient_id",)
_POLYGONS = ("polygons_colrow_json", "polygons_xy_json", "polygon_xy")
_ROW_SPACING = ("row_spacing_mm", "spacing_row_mm")
_COLUMN_SPACING = ("col_spacing_mm", "spacing_col_mm")
_LESION = ("lesion_id",)
_LABEL = ("label",)
_SLICE = ("slice",)
_KNOWN = (*_IMAGE, *_PATIENT, *_POLYGONS, *_ROW_SPACING, *_COLUMN_SPACING, *_LESION, *_LABEL, *_SLICE)

MAX_TABLE_BYTES = 512 << 20
MAX_VOXELS = 1 << 31
SAME_SPACING = 1e-3  # relative; a table's spacing and its image's must agree to this


@dataclass(frozen=True)
class Row:
    """One row of a table: one or more polygons of one lesion on one image."""

    number: int  # the line in the file, the heading being line 1
    image: str
    patient: str
    lesion: str | None
    label: str | None
    slice_index: int | None
    spacing_mm: tuple[float, float] | None  # (s_x, s_y)
    polygons: list[NDArray[np.float64]] = field(repr=False)


def read_rows(path: Path, where: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV as dictionaries with trimmed lower-case headings; '__line__' holds the line.

    Raises:
        DataError: When it is no UTF-8 comma-separated file with distinct headings, or a row has too many cells.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(where, "a table may have at most 512 MiB", "Split it")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(where, "a table must be UTF-8 text", "Save it as 'CSV UTF-8'") from error
    if content.startswith("version https://git-lfs"):
        raise DataError(where, "this is a Git LFS pointer, not the table itself", "Run git lfs pull")
    csv.field_size_limit(MAX_TABLE_BYTES)
    reader = csv.reader(io.StringIO(content, newline=""))
    try:
        heading = [cell.strip().lower() for cell in next(reader, [])]
        if len(heading) == 1 and (";" in heading[0] or "\t" in heading[0]):
            raise DataError(where, "columns must be separated by commas", "Save it as comma-separated CSV")
        if len(set(heading)) != len(heading):
            raise DataError(where, "column headings must be distinct", "Rename the repeated column")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(heading):
                raise DataError(
                    f"{where} line {reader.line_num}",
                    f"a row must have {len(heading)} cells as the heading does, this one has {len(cells)}",
                    "Put quotes around cells that hold commas",
                )
            row = {name: cell.strip() for name, cell in zip(heading, cells, strict=True)}
            row["__line__"] = str(reader.line_num)
            yield row
    except csv.Error as error:
        raise DataError(where, f"this is no valid CSV ({error})", "Save the table again") from error


def heading(path: Path) -> set[str]:
    """The trimmed lower-case headings of a CSV, empty where it cannot be read as one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return {cell.strip().lower() for cell in next(csv.reader([stream.readline(1 << 16)]), [])}
    except (UnicodeDecodeError, OSError, csv.Error):
        return set()


def is_polygon_table(path: Path) -> bool:
    """Whether a CSV has the columns of a polygon table."""
    names = heading(path)
    return "image" in names and any(name in names for name in _POLYGONS)


def read_table(
    source: SourceFile,
    file_of: Callable[[Path], SourceFile],
    findings: list[Finding],
    *,
    hu_offset: float | None = None,
    convention: Convention = "pixel_centre",
    left_out: Callable[[str], bool] = lambda name: False,
) -> Iterator[Margin]:
    """The margins of a polygon table, one for each (patient, lesion_id), or for each row without a lesion_id.

    Args:
        source: The table.
        file_of: Numbers an image's file among the source's files.
        findings: Faults and notes are appended here; a lesion at fault is left out, the others go on.
        hu_offset: Added to the values of 16-bit PNG images to give HU; PNG images are refused without it.
        convention: What an integer coordinate means.
        left_out: Labels to pass over.

    Raises:
        DataError: When the table as a whole cannot be read.
    """
    where = source.name
    lesions: dict[tuple[str, str], list[Row]] = {}
    has_label = False
    columns: set[str] = set()
    failed: set[tuple[str, str]] = set()
    for cells in read_rows(source.path, where):
        columns = set(cells) - {"__line__"}
        _check_columns(columns, where)
        has_label = "label" in columns
        key = (patient_key(cells["patient_id"]), cells.get("lesion_id") or f"line {cells['__line__']}")
        try:
            lesions.setdefault(key, []).append(_parse_row(cells, where))
        except DataError as error:
            findings.append(Finding.refused(error, source, int(cells["__line__"])))
            failed.add(key)
    if not columns:
        raise DataError(where, "the table holds no rows", "Add a row for each lesion")
    unknown = sorted(columns - set(_KNOWN))
    if unknown:
        findings.append(Finding("info", where, f"columns not used: {', '.join(unknown)}", ""))
    images = _Images(source.path.parent, file_of, hu_offset)
    for (patient, _), rows in lesions.items():
        if (patient, _) in failed:
            continue
        first = rows[0]
        at = f"{where} line {first.number}" + (f" lesion '{first.lesion}'" if first.lesion else "")
        labels = {row.label for row in rows}
        try:
            if len(labels) > 1:
                raise MarginRefused(
                    at, "the rows of one lesion must have one label", "Correct the labels", "labels differ"
                )
            if has_label and not first.label:
                raise MarginRefused(at, "the label is empty", "Fill in the class, or drop the column", "label missing")
            if left_out(first.label or ""):
                findings.append(
                    Finding("info", at, "left out as the label map says", "", "left out", source, first.number)
                )
                continue
            entries = _draw(rows, images, convention, at, findings)
        except DataError as error:
            place = at if error.where.startswith(at) else f"{at}: {error.where}"
            findings.append(replace(Finding.refused(error, source, first.number), where=place))
            continue
        yield Margin(
            source=source,
            where=at,
            number=first.number,
            key=first.lesion or str(first.number),
            name=first.label or "",
            patient=patient,
            slices=entries,
            names_its_class=has_label,
        )
    findings.extend(images.notes)


def _check_columns(columns: set[str], where: str) -> None:
    for choices in (_IMAGE, _PATIENT, _POLYGONS):
        if not any(name in columns for name in choices):
            raise DataError(
                where, f"a polygon table needs a column {' or '.join(choices)}", "See docs/import.md for the columns"
            )


def _cell(cells: dict[str, str], names: tuple[str, ...]) -> str:
    return next((cells[name] for name in names if cells.get(name)), "")


def _parse_row(cells: dict[str, str], where: str) -> Row:
    where = f"{where} line {cells['__line__']}"
    image, patient = _cell(cells, _IMAGE), _cell(cells, _PATIENT)
    if not image or not patient:
        raise DataError(where, "image and patient_id must not be empty", "Fill them in")
    row_spacing, column_spacing = _cell(cells, _ROW_SPACING), _cell(cells, _COLUMN_SPACING)
    spacing = None
    if row_spacing or column_spacing:
        spacing = (_millimetres(column_spacing, where), _millimetres(row_spacing, where))
    index = _cell(cells, _SLICE)
    if index and not (index.isascii() and index.isdigit()):
        raise DataError(where, f"slice must be a whole number from 0, got '{index[:20]}'", "Correct the cell")
    return Row(
        number=int(cells["__line__"]),
        image=image,
        patient=patient,
        lesion=_cell(cells, _LESION) or None,
        label=_cell(cells, _LABEL) or None,
        slice_index=int(index) if index else None,
        spacing_mm=spacing,
        polygons=_parse_polygons(cells, where),
    )


def _millimetres(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0.01 <= value <= 20:
        raise DataError(where, f"spacing must be a number of 0.01 .. 20 mm, got '{cell[:20]}'", "Correct the cell")
    return value


def _parse_polygons(cells: dict[str, str], where: str) -> list[NDArray[np.float64]]:
    """Parse the polygons of a row, each [n, 2], from JSON or from 'x,y x,y ...' with ';' between polygons."""
    written = _cell(cells, _POLYGONS)
    try:
        if written.startswith("["):
            parsed: Any = json.loads(written)
            if parsed and parsed[0] and not isinstance(parsed[0][0], list):
                parsed = [parsed]  # a single polygon without the outer list
        else:
            parsed = [[point.split(",") for point in part.split()] for part in written.split(";") if part.strip()]
        polygons = [np.array(polygon, dtype=np.float64) for polygon in parsed]
    except (ValueError, TypeError, IndexError, KeyError, RecursionError):
        polygons = []
    good = all(p.ndim == 2 and p.shape[0] >= 3 and p.shape[1] == 2 and np.isfinite(p).all() for p in polygons)
    if not polygons or not good or any(float(abs(p).max()) > 1e6 for p in polygons):
        raise DataError(
            where,
            "polygons must be 'x,y x,y x,y ...' or a JSON list of lists of [x, y], each with three points or more",
            "Correct the cell",
        )
    return polygons


def _draw(
    rows: list[Row], images: _Images, convention: Convention, where: str, findings: list[Finding]
) -> list[MarginOnSlice]:
    """The masks of one lesion, one for each image (and slice of a volume) that its rows name."""
    places: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        places.setdefault((row.image, row.slice_index), []).append(row)
    entries = []
    for of_place in places.values():
        picture = images.get(of_place[0])
        for row in of_place[1:]:
            images.check_spacing(row, picture)
        height, width = picture.stored_shape
        polygons = [polygon for row in of_place for polygon in row.polygons]
        if polygons_reach_outside(polygons, height, width, convention=convention):
            findings.append(Finding("warning", where, "partly outside the picture; clipped to it", ""))
        mask = polygons_to_mask(polygons, height, width, convention=convention)
        if mask.any():
            entries.append(MarginOnSlice(picture, picture.turn.apply(mask)))
    if not entries:
        raise MarginRefused(
            where, "the margin encloses no pixel centre inside the picture", "Check the coordinates", "empty mask"
        )
    return entries


@dataclass(frozen=True, eq=False)
class TableImage:
    """An image that a table names, read and turned."""

    source: SourceFile
    picture: Slice
    turn: Reorientation
    stored_shape: tuple[int, int]

    def load(self) -> Slice:
        """The slice."""
        return self.picture


class _Images:
    """The images of one table, read when a row first names them; the last one is kept for the rows that follow."""

    def __init__(self, folder: Path, file_of: Callable[[Path], SourceFile], hu_offset: float | None) -> None:
        self.folder = folder
        self.file_of = file_of
        self.hu_offset = hu_offset
        self.notes: list[Finding] = []
        self._last: tuple[tuple[str, int | None, tuple[float, float] | None, str], TableImage] | None = None

    def get(self, row: Row) -> TableImage:
        """The image of a row.

        Raises:
            DataError: When it is missing, of a kind that loses HU, without spacing, or at odds with the row.
        """
        key = (row.image, row.slice_index, row.spacing_mm, patient_key(row.patient))
        if self._last is None or self._last[0] != key:
            self._last = (key, self._read(row))
        self.check_spacing(row, self._last[1])
        return self._last[1]

    def check_spacing(self, row: Row, image: TableImage) -> None:
        """Refuse a row whose spacing is not its image's."""
        if row.spacing_mm is None:
            return
        own = image.picture.spacing_mm[::-1] if image.turn.transpose else image.picture.spacing_mm
        if any(abs(a / b - 1) > SAME_SPACING for a, b in zip(row.spacing_mm, own, strict=True)):
            raise DataError(
                row.image,
                f"the table says {row.spacing_mm[1]:g} x {row.spacing_mm[0]:g} mm a pixel (row x column), "
                f"the image {own[1]:g} x {own[0]:g}",
                "Correct the one that is wrong",
            )

    def _read(self, row: Row) -> TableImage:
        path = self.folder / row.image
        if not path.is_file():
            raise DataError(row.image, "the image that the table names is missing", "Put it beside the table")
        with path.open("rb") as stream:
            head = stream.read(132)
        if head.startswith(b"version https://git-lfs"):
            raise DataError(row.image, "this is a Git LFS pointer, not the image itself", "Run git lfs pull")
        source = self.file_of(path)
        name = path.name.lower()
        if is_dicom(head):
            return self._read_dicom(source, row)
        if name.endswith((".nii", ".nii.gz")):
            return _read_nifti(source, row)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            return _read_png(source, row, self.hu_offset)
        raise DataError(
            row.image,
            "images of a table must be 16-bit PNG, NIfTI or DICOM CT",
            "JPEG and 8-bit pictures have lost their HU; export one of these",
        )

    def _read_dicom(self, source: SourceFile, row: Row) -> TableImage:
        if row.slice_index is not None:
            raise DataError(row.image, "the slice column is for NIfTI volumes", "Leave it empty for a DICOM file")
        dataset = read_dicom(source, pixels=True)
        with reading(source.name):
            skipped = why_skipped(dataset, source.name)
            if skipped or text(dataset, "SOPClassUID") != CT_IMAGE:
                raise DataError(
                    source.name, f"the image must be a CT slice, this is {skipped or 'a margin'}", "Name the CT slice"
                )
            ct: CtSlice = read_ct_slice(source, dataset)
        if ct.patient and ct.patient != patient_key(row.patient):
            raise MarginRefused(
                source.name,
                "the table's patient_id must be that of the image, but the file's PatientID is another one",
                "Correct the row, or name the right image",
                "patient differs between margin and slice",
            )
        self.notes.extend(Finding("warning", source.name, note, "") for note in ct.notes)
        return TableImage(source, ct.load(), ct.turn, (ct.height, ct.width))


def _read_png(source: SourceFile, row: Row, hu_offset: float | None) -> TableImage:
    from PIL import Image

    if row.slice_index is not None:
        raise DataError(row.image, "the slice column is for NIfTI volumes", "Leave it empty for a PNG")
    if row.spacing_mm is None:
        raise DataError(
            row.image,
            "a PNG does not say how large its pixels are",
            "Add the columns row_spacing_mm and col_spacing_mm",
        )
    if hu_offset is None:
        raise DataError(
            row.image,
            "a PNG does not say what its values are in HU",
            "Give --hu-offset: -32768 where the file holds HU + 32768, -1024 where it holds HU + 1024",
        )
    with reading(source.name), Image.open(source.path) as picture:
        if picture.mode not in ("I;16", "I;16B", "I;16L"):
            raise DataError(
                row.image,
                f"a PNG must be 16-bit grey, this one is '{picture.mode}': windowed 8-bit pictures have lost their HU",
                "Export HU as 16-bit PNG, or use DICOM or NIfTI",
            )
        if max(picture.size) > MAX_SIDE:
            raise DataError(row.image, f"an image may have at most {MAX_SIDE} pixels a side", "Crop it")
        values = np.array(picture, dtype=np.float64)
    return TableImage(
        source,
        Slice(source, clip_hu(values + hu_offset), row.spacing_mm),
        Reorientation(),
        (values.shape[0], values.shape[1]),
    )


def _read_nifti(source: SourceFile, row: Row) -> TableImage:
    """One axial slice: [:, :, slice], x the first and y the second array index, turned by the affine."""
    import nibabel

    where = row.image
    if row.slice_index is None:
        raise DataError(where, "a NIfTI volume needs the slice column", "Add the index along the third axis, from 0")
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image: Any = nibabel.load(source.path)
        shape = image.shape
        if len(shape) != 3 or math.prod(shape) > MAX_VOXELS:
            raise DataError(where, f"a NIfTI image must have three axes, this one is {shape}", "Save one 3-D volume")
        if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
            raise DataError(
                where,
                "the NIfTI header does not say how it is oriented (qform and sform codes are 0)",
                "Save its affine",
            )
        affine = np.asarray(image.affine, dtype=np.float64)
        if not np.isfinite(affine).all() or abs(float(np.linalg.det(affine[:3, :3]))) < 1e-9:
            raise DataError(where, "the NIfTI affine is singular or not finite", "Save the image with its true affine")
        if row.slice_index >= shape[2]:
            raise DataError(where, f"slice must be 0 .. {shape[2] - 1}, got {row.slice_index}", "Correct the cell")
        if max(shape[:2]) > MAX_SIDE:
            raise DataError(where, f"an image may have at most {MAX_SIDE} pixels a side", "Crop it")
        to_lps = np.diag(
            [-1.0, -1.0, 1.0]
        )  # NIfTI counts to the right and the front of the patient, DICOM to the other
        axes = to_lps @ affine[:3, :3]
        spacing = (float(np.linalg.norm(axes[:, 0])), float(np.linalg.norm(axes[:, 1])))
        if not all(0.01 <= s <= 20 for s in spacing):
            raise DataError(where, f"pixels must be 0.01 .. 20 mm, the affine says {spacing}", "Correct the affine")
        position = to_lps @ (affine[:3, :3] @ np.array([0.0, 0.0, row.slice_index]) + affine[:3, 3])
        plane = Plane(position, axes[:, 0] / spacing[0], axes[:, 1] / spacing[1], spacing)
        values = np.asarray(image.dataobj[..., row.slice_index], dtype=np.float64).T  # [y, x]
        if not np.isfinite(values).all():
            raise DataError(where, "the slice holds NaN or infinity", "Save the CT in HU")
    plane, turn = face_left_posterior(plane, values.shape[0], values.shape[1], where)
    return TableImage(
        source,
        Slice(source, turn.apply(clip_hu(values)), plane.spacing_mm),
        turn,
        (values.shape[0], values.shape[1]),
    )
