"""Margins out of NIH's DeepLesion: DL_info.csv beside 16-bit PNG slices.

A lesion has no drawn margin there, but the ends of its long and short diameter. The margin is the ellipse that reaches
as far along and across the long diameter as the two say. It is an approximation, and every import says so.

Two facts that the table does not state, and where they come from:

- Its coordinates count from 1: NIH's own programs (rsummers11/CADLab: LesaNet, MULAN) subtract 1 from them. NIH's
  tables are told by their boxes, the ends of the diameters and 5 pixels about them (so in all of 858 published rows).
  A table in this form with other boxes is taken to count from 0; a note says which it was. Whether NIH's 1 is the
  middle or the edge of the first pixel is said nowhere; the middle is taken, which is wrong by half a pixel at most.
- A lesion's index (LesaNet's lesion_idx) is its row from 0 in NIH's whole table of 32,735 rows: NIH's programs index
  arrays of the rows with it, and the numbers go from 7 to 32,734. A part of the table needs a column `index` with it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.csv_files import read_rows
from lesionaug.data.slices import Finding, Margin, MarginRefused, SourceFile, patient_key
from lesionaug.data.sources.given import Given
from lesionaug.errors import DataError

NUM_LESIONS = 32_735  # rows of NIH's whole table
HU_OFFSET = -32768.0
COARSE_TYPES = {
    -1: "unlabelled",
    1: "bone",
    2: "abdomen",
    3: "mediastinum",
    4: "liver",
    5: "lung",
    6: "kidney",
    7: "soft tissue",
    8: "pelvis",
}

_NEEDED = ("file_name", "patient_index", "measurement_coordinates", "spacing_mm_px_")
_MAX_ROWS = 1_000_000
_FILE_NAME = re.compile(r"([0-9]{1,8}_[0-9]{1,4}_[0-9]{1,4})_([0-9]{1,6}\.png)", re.ASCII)
_BOX_PADDING = 5.0  # pixels about the ends of the diameters in NIH's boxes
_ROUNDING = 0.02  # pixels; the table has six digits
_MOST_LEANING = 0.5  # |cosine| of the angle between the diameters; NIH's are within 0.31
_OUTLINE_POINTS = 72  # of the ellipse, every 5 degrees: within a thousandth of its axes


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the table; `ends` are x1, y1, x2, y2 of the long diameter and x3, y3, x4, y4 of the short one."""

    line: int
    file_name: str
    patient: str
    index: int | None
    coarse_type: int
    spacing_mm: tuple[float, float]
    ends: tuple[float, ...]


def is_deeplesion_table(columns: set[str]) -> bool:
    """Whether headings (lower case) are those of DL_info.csv."""
    return {"file_name", "measurement_coordinates"} <= columns


def read_deeplesion(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of DL_info.csv, one for each row whose picture is there.

    Args:
        source: The table; pictures lie beside it, in Images_png beside it, or in folders of their series there.
        given: The options and findings; a row at fault is left out, the others go on.

    Raises:
        DataError: When the table as a whole cannot be read.
    """
    where, findings = source.name, given.findings
    rows, left_out, from_one = _read_rows(source, given)
    wanted = given.options.only_keys
    drawn = 0
    series: dict[str, bool] = {}
    for done, row in enumerate(rows):
        given.step(done, len(rows), "drawing margins")
        at, name = f"{where} line {row.line}", COARSE_TYPES[row.coarse_type]
        key = str(row.line if row.index is None else row.index)
        if wanted is not None and key not in wanted:
            left_out["without a class in the label file"] += 1
            continue
        if wanted is None and given.leaves_out(name, (row.file_name,)):
            left_out["left out as the label map says"] += 1
            continue
        path = _picture_path(row.file_name, source.path.parent, series)
        if path is None:
            left_out["without their picture here"] += 1
            continue
        try:
            stated = (given.options.hu_offset, given.pictures.facts(path).hu_offset)
            offset = HU_OFFSET if stated == (None, None) else None
            picture = given.pictures.get(path, at, spacing_mm=row.spacing_mm, patient=row.patient, hu_offset=offset)
            ellipse = recist_ellipse(np.array(row.ends) - (1.0 if from_one else 0.0), at)
            entry = picture.draw([ellipse], "pixel_centre", at, findings)
            if entry is None:
                rule = "the ellipse encloses no pixel centre inside the picture"
                raise MarginRefused(at, rule, "Correct the coordinates", "empty mask")
        except DataError as error:
            place = at if error.where.startswith(at) else f"{at}: {error.where}"
            findings.append(replace(Finding.refused(error, source, row.line), where=place))
            continue
        if not drawn:
            counted = "1, as NIH's do" if from_one else "0, as its boxes are not as in NIH's table"
            rule = (
                "margins are ellipses about the two measured diameters, an approximation; "
                f"coordinates are taken to count from {counted}"
            )
            findings.append(Finding("warning", where, rule, "docs/import.md says more"))
        drawn += 1
        yield Margin(
            source=source,
            where=at,
            number=row.line,
            key=key,
            name=name,
            patient=row.patient,
            slices=[entry],
            also_named=(row.file_name,),
        )
    for why, count in sorted(left_out.items()):
        findings.append(Finding("info", where, f"{count} rows {why}, so they are skipped"))


def _read_rows(source: SourceFile, given: Given) -> tuple[list[_Row], Counter[str], bool]:
    """The rows, how many were left out and why, and whether coordinates count from 1."""
    rows: list[_Row] = []
    left_out: Counter[str] = Counter()
    total = padded = 0
    indices: dict[int, int] = {}
    has_index = False
    for total, cells in enumerate(read_rows(source.path, source.name), 1):
        given.step(0, 0, "reading the table")
        line = int(cells["__line__"])
        if total == 1:
            _check_columns(set(cells), source.name)
            has_index = "index" in cells
        if total > _MAX_ROWS:
            raise DataError(source.name, f"a table may have at most {_MAX_ROWS} rows", "Split it")
        if cells.get("possibly_noisy", "0") not in ("0", ""):
            left_out["marked Possibly_noisy"] += 1
            continue
        try:
            row = _read_row(cells, f"{source.name} line {line}", None if has_index else total - 1)
        except DataError as error:
            given.findings.append(Finding.refused(error, source, line))
            continue
        if row.index is not None and indices.setdefault(row.index, line) != line:
            rule = f"its index is that of line {indices[row.index]}"
            refused = MarginRefused(f"{source.name} line {line}", rule, "Correct one of them", "index given twice")
            given.findings.append(Finding.refused(refused, source, line))
            continue
        padded += _has_nih_box(cells.get("bounding_boxes", ""), row.ends)
        rows.append(row)
    if not total:
        raise DataError(source.name, "the table holds no rows", "Add a row for each lesion")
    if not has_index and total != NUM_LESIONS:
        if given.options.only_keys is not None:
            raise DataError(
                source.name,
                f"LesaNet's labels go by the row in NIH's table of {NUM_LESIONS} rows, and this one has {total}",
                "Use the whole table, or add a column index with the row there, from 0",
            )
        rows = [replace(row, index=None) for row in rows]
    return rows, left_out, 2 * padded > len(rows)


def _check_columns(columns: set[str], where: str) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise DataError(where, f"the table lacks the columns {', '.join(missing)}", "Use NIH's DL_info.csv as it is")


def _read_row(cells: dict[str, str], where: str, index: int | None) -> _Row:
    if not _FILE_NAME.fullmatch(cells["file_name"]):
        rule = "File_name must be patient_study_series_slice.png in digits"
        raise MarginRefused(where, rule, "Correct the cell", "broken file name")
    if not _is_digits(cells["patient_index"]):
        raise MarginRefused(where, "Patient_index must be a whole number", "Correct the cell", "no patient")
    if "index" in cells:
        if not _is_digits(cells["index"]):
            raise MarginRefused(where, "index must be a whole number", "Correct the cell", "broken index")
        index = int(cells["index"])
    coarse_type = cells.get("coarse_lesion_type", "") or "-1"
    if coarse_type not in map(str, COARSE_TYPES):
        raise MarginRefused(where, "Coarse_lesion_type must be -1 or 1 .. 8", "Correct the cell", "broken type")
    spacing = _numbers(cells["spacing_mm_px_"], 3)
    if spacing is None or not all(0.01 <= value <= 20 for value in spacing[:2]):
        rule = "Spacing_mm_px_ must be three numbers, the first two of 0.01 .. 20 mm"
        raise MarginRefused(where, rule, "Correct the cell", "broken spacing")
    ends = _numbers(cells["measurement_coordinates"], 8)
    if ends is None:
        rule = "Measurement_coordinates must be eight numbers in pixels"
        raise MarginRefused(where, rule, "Correct the cell", "broken coordinates")
    return _Row(
        line=int(cells["__line__"]),
        file_name=cells["file_name"],
        patient=patient_key(f"DL-{int(cells['patient_index'])}"),
        index=index,
        coarse_type=int(coarse_type),
        spacing_mm=(spacing[0], spacing[1]),
        ends=ends,
    )


def _is_digits(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= 9


def _numbers(cell: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers of a picture's size, None for anything else."""
    try:
        values = tuple(float(part) for part in cell.split(",", count))
    except ValueError:
        return None
    return values if len(values) == count and all(abs(value) <= 1e5 for value in values) else None


def _has_nih_box(cell: str, ends: tuple[float, ...]) -> bool:
    """Whether a row's box is as NIH made them: the ends of the diameters and 5 pixels about them."""
    box = _numbers(cell, 4)
    if box is None:
        return False
    x, y = ends[0::2], ends[1::2]
    expected = (min(x) - _BOX_PADDING, min(y) - _BOX_PADDING, max(x) + _BOX_PADDING, max(y) + _BOX_PADDING)
    return all(abs(a - b) < _ROUNDING for a, b in zip(box, expected, strict=True))


def _picture_path(file_name: str, folder: Path, series: dict[str, bool]) -> Path | None:
    """Where a slice lies: as NIH's archives have it, Images_png/<series>/<slice>.png, without Images_png, or flat."""
    matched = _FILE_NAME.fullmatch(file_name)
    assert matched
    of_series, slice_name = matched.groups()
    for place in ("Images_png", ""):
        within = f"{place}/{of_series}" if place else of_series
        if within not in series:
            series[within] = (folder / within).is_dir()
        for path in ([folder / within / slice_name] if series[within] else []) + [folder / place / file_name]:
            if path.is_file():
                return path
    return None


def recist_ellipse(ends: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The ellipse about two measured diameters.

    Its axes are as long as the diameters, the long one in its direction; its centre lies halfway along the long one,
    and across it halfway between the ends of the short one.

    Args:
        ends: float64 [8], x1, y1, x2, y2 of the long diameter, x3, y3, x4, y4 of the short one.
        where: For errors.

    Returns:
        Its outline, float64 [72, 2], in the coordinates of `ends`.

    Raises:
        MarginRefused: When the diameters have no length, do not stand across each other, or the short one is longer.
    """
    points = ends.reshape(4, 2)
    long, short = points[1] - points[0], points[3] - points[2]
    length, width = math.hypot(*long), math.hypot(*short)
    if min(length, width) < 0.1 or width > 1.01 * length or abs(long @ short) > _MOST_LEANING * length * width:
        rule = "the diameters must be a long one and a short one across it"
        raise MarginRefused(where, rule, "Correct Measurement_coordinates", "broken diameters")
    along = long / length
    across = np.array([-along[1], along[0]])
    centre = (points[0] + points[1]) / 2
    centre = centre + across * float(((points[2] + points[3]) / 2 - centre) @ across)
    angles = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)[:, None]
    outline: NDArray[np.float64] = centre + np.cos(angles) * along * length / 2 + np.sin(angles) * across * width / 2
    return outline
