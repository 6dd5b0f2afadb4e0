"""What the formats in JSON share: reading them as untrusted input, finding the pictures they name, drawing outlines."""

from __future__ import annotations

import json
import math
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.margins import polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import Finding, MarginOnSlice, MarginRefused, SourceFile, patient_key
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.pictures import Picture
from lesionaug.errors import DataError

MAX_JSON_BYTES = 256 << 20
MAX_ENTRIES = 200_000  # pictures or outlines in one file; all of DeepLesion has 32,735
MAX_POINTS = 100_000  # of one polygon
MAX_POLYGONS = 1_000  # of one lesion on one picture
MAX_CROSSINGS = 4_000_000  # rows that the edges of one polygon cross: a spiral over the largest picture has 1 million
MAX_COORDINATE = 1e6
MAX_DRAWN_PIXELS = 1 << 27  # of all polygons of one lesion, each counted by its box


def read_object(source: SourceFile) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DataError: When it is too large, no JSON, nested too deeply, or holds no object.
    """
    if source.size > MAX_JSON_BYTES:
        raise DataError(source.name, f"a JSON file may have at most {MAX_JSON_BYTES >> 20} MiB", "Split it")
    try:
        content = json.loads(source.path.read_bytes())
    except RecursionError as error:
        raise DataError(source.name, "its lists are nested deeper than any real file's", "Export it again") from error
    except ValueError as error:
        raise DataError(source.name, f"this is no valid JSON ({shown(error)})", "Export it again") from error
    if not isinstance(content, dict):
        raise DataError(source.name, "the file must hold a JSON object", "Export it again")
    return content


def shown(value: object) -> str:
    """A value for an error: printable, at most 60 characters."""
    if isinstance(value, (list, dict)):
        text = f"a {type(value).__name__} of {len(value)}"
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**18 else "a huge number"
    else:
        text = "".join(c if c.isprintable() else " " for c in (value if isinstance(value, str) else str(value))[:200])
    return text if len(text) <= 60 else text[:57] + "..."


def entries_of(content: dict[str, Any], name: str, where: str) -> list[Any]:
    """A list of an object, [] where it is absent.

    Raises:
        DataError: When it is no list, or one of more than `MAX_ENTRIES`.
    """
    value = content.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        rule = f"'{name}' must be a list of at most {MAX_ENTRIES} entries"
        raise DataError(where, rule, "Export it again, or split it")
    return value


def text_of(value: Any) -> str:
    """A text of up to 200 characters or a whole number as trimmed text that prints, '' for anything else."""
    if isinstance(value, str) and len(value) <= 200:
        return "".join(c if c.isprintable() else " " for c in value).strip()  # half a surrogate cannot be encoded
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    return ""


def whole_number(value: Any) -> int | None:
    """A whole number (also 5.0) of up to 15 digits, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e15 < value < 1e15:
        return None
    return int(value) if value == int(value) else None


def is_number(value: Any) -> bool:
    """Whether it is a finite number (and neither text nor true or false)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def outline(numbers: Any, where: str) -> NDArray[np.float64]:
    """A polygon [n, 2] out of a flat list x, y, x, y, ... or a list of [x, y].

    Raises:
        MarginRefused: When it has fewer than three points, or anything that is no finite number of a picture's size.
    """
    flat: Sequence[Any] = numbers if isinstance(numbers, list) and len(numbers) <= 2 * MAX_POINTS else []
    if flat and all(isinstance(point, list) and len(point) == 2 for point in flat):
        flat = [value for point in flat for value in point]
    good = len(flat) >= 6 and len(flat) % 2 == 0 and all(is_number(v) and abs(v) <= MAX_COORDINATE for v in flat)
    if not good:
        raise MarginRefused(
            where,
            f"an outline must be three points or more (at most {MAX_POINTS}), each of two finite numbers in pixels",
            "Draw it again",
            "broken outline",
        )
    polygon = np.array(flat, dtype=np.float64).reshape(-1, 2)
    rows = np.clip(polygon[:, 1], 0, 4096)
    if float(np.abs(rows - np.roll(rows, 1)).sum()) > MAX_CROSSINGS:
        raise MarginRefused(where, "an outline must not go up and down so often", "Draw it again", "broken outline")
    return polygon


def unite(
    polygons: Sequence[NDArray[np.float64]], picture: Picture, where: str, given: Given
) -> NDArray[np.bool_] | None:
    """The union of polygons in pixel-edge coordinates, bool [height, width] of the stored picture; None without any.

    A polygon that lies wholly in the others was probably meant as a hole, which a union has not got: that is noted.

    Raises:
        MarginRefused: When there are more of them than any lesion has.
    """
    if not polygons:
        return None
    height, width = picture.stored_shape
    windows = [_window(polygon, height, width) for polygon in polygons]
    if len(polygons) > MAX_POLYGONS or sum(w[0].size * w[1].size for w in windows) > MAX_DRAWN_PIXELS:
        rule = f"one lesion may have at most {MAX_POLYGONS} polygons on a picture, and fewer if they are large"
        raise MarginRefused(where, rule, "Draw it again", "too many polygons")
    if polygons_reach_outside(polygons, height, width, convention="pixel_edge"):
        given.findings.append(Finding("warning", where, "partly outside the picture; clipped to it"))
    times = np.zeros((height, width), dtype=np.uint16)
    drawn = []
    for polygon, (rows, columns) in zip(polygons, windows, strict=True):
        given.step(0, 0, "drawing margins")
        shifted = polygon - (columns.start, rows.start)
        drawn.append(polygons_to_mask([shifted], rows.size, columns.size, convention="pixel_edge"))
        times[rows.slice, columns.slice] += drawn[-1]
    if len(drawn) > 1:
        parts = [
            (part, times[rows.slice, columns.slice][part]) for part, (rows, columns) in zip(drawn, windows, strict=True)
        ]
        if any(part.any() and bool((counts > 1).all()) for part, counts in parts):
            rule = "one of its polygons lies within the others: polygons are united, so it makes no hole"
            given.findings.append(Finding("warning", where, rule, "Export it as a mask if it is a hole"))
    return times > 0


@dataclass(frozen=True)
class _Range:
    """The rows or columns of a picture that a polygon can touch."""

    start: int
    size: int

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.size)


def _window(polygon: NDArray[np.float64], height: int, width: int) -> tuple[_Range, _Range]:
    """Rows and columns that a polygon can touch; one pixel at least."""
    ranges = []
    for values, most in ((polygon[:, 1], height), (polygon[:, 0], width)):
        start = min(max(math.floor(float(values.min())), 0), most - 1)
        stop = min(max(math.ceil(float(values.max())), start + 1), most)
        ranges.append(_Range(start, stop - start))
    return ranges[0], ranges[1]


def on_picture(masks: Sequence[NDArray[np.bool_] | None], picture: Picture, where: str) -> MarginOnSlice:
    """The union of masks as a margin's.

    Raises:
        MarginRefused: When nothing is inside.
    """
    present = [mask for mask in masks if mask is not None]
    entry = picture.with_mask(np.any(present, axis=0)) if present else None
    if entry is None:
        rule = "the margin encloses no pixel centre inside the picture"
        raise MarginRefused(where, rule, "Check the coordinates", "empty mask")
    return entry


def check_shape(height: Any, width: Any, picture: Picture, where: str) -> None:
    """Refuse a stated height and width that are not the picture's: its outlines would lie elsewhere.

    Raises:
        DataError: When they differ, or are no numbers.
    """
    if height is None and width is None:
        return
    stated = (whole_number(height), whole_number(width))
    if stated != picture.stored_shape:
        own = picture.stored_shape
        raise DataError(
            where,
            f"the file says the picture has {shown(height)} x {shown(width)} pixels (rows x columns), "
            f"it has {own[0]} x {own[1]}",
            "Outlines drawn on a resized picture do not fit; export them for this one",
        )


class PicturesByName:
    """Finds the pictures that a file names, wherever it was written: relative, with backslashes, quoted as in a URL."""

    def __init__(self, source: SourceFile, given: Given) -> None:
        self._given = given
        path = source.path.absolute()
        self._folder = path.parent
        self._root = path.parents[len(PurePosixPath(source.name).parts) - 1]

    @cached_property
    def _by_base_name(self) -> dict[str, list[SourceFile]]:
        """The source's files by base name."""
        files: dict[str, list[SourceFile]] = defaultdict(list)
        for file in self._given.files:
            files[PurePosixPath(file.name).name].append(file)
        return files

    def find(self, written: Any, where: str) -> Path:
        """The picture of a name.

        It lies where the name says, relative to the file or to the source's folder, or it is the one file of that base
        name whose folders do not contradict the name's.

        Raises:
            DataError: When there is none, or more than one.
        """
        if not isinstance(written, str) or not written.strip() or len(written) > 1000 or "\0" in written:
            raise DataError(where, "the name of a picture must be a text", "Export it again")
        names = dict.fromkeys(
            name.replace("\\", "/") for name in (written.strip(), unquote(written.strip())) if "\0" not in name
        )
        for name in names:
            for folder in (self._folder, self._root):
                path = Path(posixpath.normpath((folder / name).as_posix()))
                if self._root in path.parents and _is_file(path):
                    return path
        found = {file.path: file for name in names for file in self._like(name)}
        if len(found) > 1:
            rule = f"its picture '{shown(written)}' may be any of {len(found)} files of that name"
            raise DataError(where, rule, "Write its path relative to this file")
        if not found:
            rule = f"its picture '{shown(written)}' is not in the source's folder"
            raise DataError(where, rule, "Put it where the file says, or below the folder that is imported")
        return next(iter(found))

    def _like(self, name: str) -> list[SourceFile]:
        """Files of the base name, one path being the end of the other."""
        parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/")]
        found = []
        for file in self._by_base_name.get(parts[-1], []) if parts else []:
            own = PurePosixPath(file.name).parts
            shared = min(len(own), len(parts))
            if list(own[-shared:]) == parts[-shared:]:
                found.append(file)
        return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the system allows
        return False


def millimetres(value: Any, where: str) -> float:
    """A spacing in mm.

    Raises:
        DataError: When it is no number of 0.01 .. 20.
    """
    if not is_number(value) or not 0.01 <= value <= 20:
        rule = f"spacing must be a number of 0.01 .. 20 mm, got {shown(value)}"
        raise DataError(where, rule, "Correct it")
    return float(value)


def stated_patient(entry: dict[str, Any], name: str, where: str) -> str:
    """The patient that an entry states, as it is told apart; '' where it states none.

    Raises:
        DataError: When it is neither text nor a whole number.
    """
    value = entry.get(name)
    if value is None or value == "":
        return ""
    text = text_of(value)
    if not text:
        raise DataError(where, f"{name} must be a text or a whole number", "Correct it")
    return patient_key(text)
