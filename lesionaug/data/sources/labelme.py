"""Margins out of LabelMe files (JSON, one for each picture): polygons, circles and masks.

Coordinates count from the pixel edge. Shapes with one label and one group_id are parts of one lesion and are united;
every other shape is a lesion of its own. A box, a line or points are no margin. The picture inside the file (imageData,
8 bit) is not used, for it has lost its HU.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginOnSlice, MarginRefused, SourceFile
from lesionaug.data.sources.dicom_file import reading
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.json_files import (
    PicturesByName,
    check_shape,
    entries_of,
    is_number,
    on_picture,
    outline,
    read_object,
    shown,
    text_of,
    unite,
    whole_number,
)
from lesionaug.data.sources.pictures import Picture
from lesionaug.errors import DataError

_EXPORT_AGAIN = "Save it in LabelMe again"
_NO_MARGIN = ("rectangle", "point", "points", "line", "linestrip", "oriented_rectangle")
_CIRCLE_POINTS = 720  # within 1e-5 of the radius
_MAX_MASK_TEXT = 64 << 20


@dataclass(frozen=True)
class _Shape:
    """A shape of the file: its number from 1, its kind, label, group and content."""

    number: int
    kind: str
    label: str
    group: str
    flags: tuple[str, ...]
    content: dict[str, Any]


def read_labelme(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a LabelMe file, one for each group of shapes or shape without a group.

    Args:
        source: The JSON file.
        given: The options and findings; a lesion at fault is left out, the others go on.

    Raises:
        DataError: When the file as a whole, or its picture, cannot be read.
    """
    content = read_object(source)
    where = source.name
    lesions: dict[tuple[str, str], list[_Shape]] = {}
    for number, entry in enumerate(entries_of(content, "shapes", where), 1):
        at = f"{where} shape {number}"
        try:
            shape = _read_shape(entry, number, at)
        except DataError as error:
            given.findings.append(Finding.refused(error, source, number))
            continue
        if shape.kind in _NO_MARGIN:
            rule = f"it is a {shape.kind}, which is no margin, so it is skipped"
            fix = "Draw it as a polygon, a circle or a mask"
            given.findings.append(Finding("warning", at, rule, fix, "no outline", source, number))
        elif given.leaves_out(shape.label, shape.flags):
            given.note_left_out(at, source, number)
        else:
            key = (shape.label, shape.group) if shape.group else ("", f"shape {number}")
            lesions.setdefault(key, []).append(shape)
    if not lesions:
        return
    path = PicturesByName(source, given).find(content.get("imagePath"), where)
    picture = given.pictures.get(path, where)
    check_shape(content.get("imageHeight"), content.get("imageWidth"), picture, where)
    for done, shapes in enumerate(lesions.values()):
        given.step(done, len(lesions), "drawing margins")
        first = shapes[0]
        at = f"{where} shape {first.number}" + (f" group {first.group}" if first.group else "")
        try:
            entry = _draw(shapes, picture, at, given)
        except DataError as error:
            place = at if error.where.startswith(at) else f"{at}: {error.where}"
            given.findings.append(replace(Finding.refused(error, source, first.number), where=place))
            continue
        yield Margin(
            source=source,
            where=at,
            number=first.number,
            key=f"{PurePosixPath(source.name).stem}:{first.number}",
            name=first.label,
            patient=picture.patient,
            slices=[entry],
            also_named=tuple(dict.fromkeys(flag for shape in shapes for flag in shape.flags)),
        )


def _read_shape(entry: Any, number: int, at: str) -> _Shape:
    if not isinstance(entry, dict):
        raise MarginRefused(at, "a shape must be an object", _EXPORT_AGAIN, "broken shape")
    kind = entry.get("shape_type") or "polygon"  # old files have polygons alone and do not say so
    if kind not in ("polygon", "circle", "mask", *_NO_MARGIN):
        raise MarginRefused(at, f"its shape_type {shown(kind)} is not known", "Draw it as a polygon", "unknown shape")
    label, group = text_of(entry.get("label")), entry.get("group_id")
    if not label or len(label) > 200:
        raise MarginRefused(at, "a shape must have a label of 1 .. 200 characters", "Name it", "no label")
    if group is not None and not text_of(group):
        raise MarginRefused(at, "group_id must be a whole number or a text", _EXPORT_AGAIN, "broken group")
    flags = entry.get("flags")
    on = [text_of(name) for name, value in flags.items() if value is True] if isinstance(flags, dict) else []
    return _Shape(number, kind, label, text_of(group), tuple(filter(None, on))[:20], entry)


def _draw(shapes: list[_Shape], picture: Picture, at: str, given: Given) -> MarginOnSlice:
    """The union of the shapes of a lesion."""
    polygons = []
    united: NDArray[np.bool_] | None = None
    for shape in shapes:
        where = f"{at}: shape {shape.number}" if len(shapes) > 1 else at
        points = shape.content.get("points")
        if shape.kind == "polygon":
            polygons.append(outline(points, where))
        elif shape.kind == "circle":
            polygons.append(_circle(points, where))
        else:
            mask = _mask(shape.content.get("mask"), points, picture.stored_shape, where)
            united = mask if united is None else united | mask
    return on_picture([united, unite(polygons, picture, at, given)], picture, at)


def _circle(points: Any, where: str) -> NDArray[np.float64]:
    """A circle's outline [n, 2] out of its centre and a point on it."""
    flat = [v for point in points if isinstance(point, list) for v in point] if isinstance(points, list) else []
    if len(flat) != 4 or not all(is_number(value) and abs(value) <= 1e5 for value in flat):
        rule = "a circle must have two points of two finite numbers: its centre, and one on it"
        raise MarginRefused(where, rule, _EXPORT_AGAIN, "broken outline")
    x, y = flat[:2]
    radius = math.hypot(flat[2] - x, flat[3] - y)
    angles = np.linspace(0, 2 * np.pi, _CIRCLE_POINTS, endpoint=False)
    return outline(np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).tolist(), where)


def _mask(written: Any, points: Any, shape: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """A mask, bool [height, width], out of a PNG in base64 and the corner pixels of its place, both inclusive."""
    from PIL import Image

    broken = MarginRefused(
        where,
        "a mask must be a PNG in base64, within the picture and as large as its two points say",
        _EXPORT_AGAIN,
        "broken mask",
    )
    flat = [v for point in points if isinstance(point, list) for v in point] if isinstance(points, list) else []
    if len(flat) != 4 or not all(is_number(value) for value in flat):
        raise broken
    numbers = [whole_number(float(round(value))) for value in flat if abs(value) < 1e5]
    if not isinstance(written, str) or len(written) > _MAX_MASK_TEXT or len(numbers) != 4:
        raise broken
    left, top, right, bottom = (value or 0 for value in numbers)
    if not (0 <= left <= right < shape[1] and 0 <= top <= bottom < shape[0]):
        raise broken
    try:
        content = base64.b64decode(written, validate=False)
    except (binascii.Error, ValueError) as error:
        raise broken from error
    with reading(where), Image.open(io.BytesIO(content), formats=["PNG"]) as png:
        if png.size != (right - left + 1, bottom - top + 1) or png.mode not in ("1", "L", "P", "I;16", "I"):
            raise broken
        values = np.array(png)
    mask = np.zeros(shape, dtype=np.bool_)
    mask[top : bottom + 1, left : right + 1] = values > 0
    return mask
