"""Margins out of a table (CSV) of polygons or masks beside 16-bit PNG, NIfTI or DICOM CT images (docs/import.md).

The images and masks that it names lie relative to the table, or at absolute paths: the table is the user's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.csv_files import heading, read_rows
from lesionaug.data.margins import Convention
from lesionaug.data.slices import Finding, Margin, MarginOnSlice, MarginRefused, SourceFile, patient_key
from lesionaug.data.sources.contours import each_once
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.named_margins import listed
from lesionaug.data.sources.pictures import Picture, check_spacing, read_mask
from lesionaug.errors import DataError

_IMAGE = ("image",)
_PATIENT = ("patient_id",)
_POLYGONS = ("polygons_colrow_json", "polygons_xy_json", "polygon_xy")
_ROW_SPACING = ("row_spacing_mm", "spacing_row_mm")
_COLUMN_SPACING = ("col_spacing_mm", "spacing_col_mm")
_LESION = ("lesion_id",)
_LABEL = ("label",)
_SLICE = ("slice",)
_MASK = ("mask",)
_MARGIN = (*_POLYGONS, *_MASK)
_KNOWN = (*_IMAGE, *_PATIENT, *_MARGIN, *_ROW_SPACING, *_COLUMN_SPACING, *_LESION, *_LABEL, *_SLICE)


@dataclass(frozen=True)
class Row:
    """One row of a table: one or more polygons of one lesion on one image, or a picture of its mask."""

    number: int  # the line in the file, the heading being line 1
    image: str
    patient: str
    lesion: str | None
    label: str | None
    slice_index: int | None
    spacing_mm: tuple[float, float] | None  # (s_x, s_y)
    polygons: list[NDArray[np.float64]] = field(repr=False)
    mask: str = ""


def is_polygon_table(path: Path) -> bool:
    """Whether a CSV has the columns of a polygon table."""
    names = heading(path)
    return "image" in names and any(name in names for name in _MARGIN)


def read_table(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a polygon table, one for each (patient, lesion_id), or for each row without a lesion_id.

    Args:
        source: The table.
        given: The options and findings; a lesion at fault is left out, the others go on.

    Raises:
        DataError: When the table as a whole cannot be read.
    """
    where, findings = source.name, given.findings
    by = (given.options.patient_by or _PATIENT[0]).lower()
    lesions: dict[tuple[str, str], list[Row]] = {}
    has_label = False
    columns: set[str] = set()
    failed: set[tuple[str, str]] = set()
    for cells in read_rows(source.path, where):
        columns = set(cells) - {"__line__"}
        _check_columns(columns, where, by)
        has_label = "label" in columns
        key = (patient_key(cells[by]), cells.get("lesion_id") or f"line {cells['__line__']}")
        try:
            lesions.setdefault(key, []).append(_parse_row(cells, where, by))
        except DataError as error:
            findings.append(Finding.refused(error, source, int(cells["__line__"])))
            failed.add(key)
    if not columns:
        raise DataError(where, "the table holds no rows", "Add a row for each lesion")
    unknown = sorted(columns - {*_KNOWN, by})
    if unknown:
        findings.append(Finding("info", where, f"columns not used: {', '.join(unknown)}", ""))
    for done, ((patient, _), rows) in enumerate(lesions.items()):
        given.step(done, len(lesions), "drawing margins")
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
            if first.label and given.leaves_out(first.label):
                given.note_left_out(at, source, first.number)
                continue
            entries = _draw(rows, source.path.parent, given, at)
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


def _check_columns(columns: set[str], where: str, by: str) -> None:
    for choices in (_IMAGE, (by,), _MARGIN):
        if not any(name in columns for name in choices):
            raise DataError(
                where, f"a polygon table needs a column {' or '.join(choices)}", "See docs/import.md for the columns"
            )


def _cell(cells: dict[str, str], names: tuple[str, ...]) -> str:
    return next((cells[name] for name in names if cells.get(name)), "")


def _parse_row(cells: dict[str, str], where: str, by: str) -> Row:
    where = f"{where} line {cells['__line__']}"
    image, patient = _cell(cells, _IMAGE), _cell(cells, (by,))
    if not image or not patient:
        raise DataError(where, f"image and {by} must not be empty", "Fill them in")
    row_spacing, column_spacing = _cell(cells, _ROW_SPACING), _cell(cells, _COLUMN_SPACING)
    spacing = None
    if row_spacing or column_spacing:
        spacing = (_millimetres(column_spacing, where), _millimetres(row_spacing, where))
    index = _cell(cells, _SLICE)
    if index and not (index.isascii() and index.isdigit()):
        raise DataError(where, f"slice must be a whole number from 0, got '{index[:20]}'", "Correct the cell")
    mask = _cell(cells, _MASK)
    if mask and _cell(cells, _POLYGONS):
        raise DataError(where, "a row must have polygons or a mask, not both", "Empty one of the cells")
    return Row(
        number=int(cells["__line__"]),
        image=image,
        patient=patient,
        lesion=_cell(cells, _LESION) or None,
        label=_cell(cells, _LABEL) or None,
        slice_index=int(index) if index else None,
        spacing_mm=spacing,
        polygons=[] if mask else _parse_polygons(cells, where),
        mask=mask,
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


def _draw(rows: list[Row], folder: Path, given: Given, where: str) -> list[MarginOnSlice]:
    """The masks of one lesion, one for each image (and slice of a volume) that its rows name."""
    convention: Convention = "pixel_edge" if given.options.pixel_edge else "pixel_centre"
    places: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        places.setdefault((row.image, row.slice_index), []).append(row)
    entries, empty = [], []
    for (image, index), of_place in places.items():
        first = of_place[0]
        picture = given.pictures.get(
            folder / image,
            image,
            slice_index=index,
            spacing_mm=first.spacing_mm,
            patient="" if given.options.patient_by else first.patient,
        )
        for row in of_place[1:]:
            check_spacing(row.spacing_mm, picture, image)
        lines = listed("line", [row.number for row in of_place])
        polygons = [polygon for row in of_place for polygon in row.polygons]
        polygons = each_once(polygons, picture.stored_shape, convention, where, f" of {lines}", given.findings)
        drawn = [picture.draw(polygons, convention, where, given.findings)] if polygons else []
        drawn += [picture.with_mask(_mask(row, folder, picture, given)) for row in of_place if row.mask]
        kept = [entry for entry in drawn if entry is not None]
        if len(kept) > 1:
            kept = [MarginOnSlice.of(picture.handle, np.any([entry.mask for entry in kept], axis=0))]
        if not kept:
            empty.append(first.number)
        entries += kept
    if not entries:
        raise MarginRefused(
            where, "the margin encloses no pixel centre inside the picture", "Check the coordinates", "empty mask"
        )
    if empty:
        rule = f"the margin encloses no pixel centre on the image of {listed('line', empty)}: left out there"
        given.findings.append(Finding("warning", where, rule, "Check the coordinates"))
    return entries


def _mask(row: Row, folder: Path, picture: Picture, given: Given) -> NDArray[np.bool_]:
    mask = read_mask(folder / row.mask, row.mask, row.slice_index, given, folder / row.image)
    if mask.shape != picture.stored_shape:
        raise DataError(
            row.mask,
            f"a mask must have the shape of its image, got {mask.shape} and {picture.stored_shape}",
            "Export the mask on the grid of the image",
        )
    return mask
