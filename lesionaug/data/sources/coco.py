"""Margins out of COCO annotations (JSON): polygons or run lengths on 16-bit PNG, DICOM CT or NIfTI slices.

Every annotation with an outline is one lesion. Coordinates count from the pixel edge; the polygons of one annotation
are its parts and are united, as COCO defines them. `images[]` may also state patient_id (a text or a whole number),
row_spacing_mm and col_spacing_mm, and slice (from 0) for a volume.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginOnSlice, MarginRefused, SourceFile
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.json_files import (
    MAX_POLYGONS,
    PicturesByName,
    check_shape,
    entries_of,
    millimetres,
    on_picture,
    outline,
    read_object,
    shown,
    stated_patient,
    text_of,
    unite,
    whole_number,
)
from lesionaug.data.sources.pictures import Picture
from lesionaug.errors import DataError

_EXPORT_AGAIN = "Export the annotations again"


@dataclass
class _File:
    """A COCO file, its parts by their ids."""

    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    paths: dict[int, Path | DataError] = field(default_factory=dict)  # of the images' pictures, or why there is none


def read_coco(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a COCO file, one for each annotation with an outline.

    Args:
        source: The JSON file.
        given: The options and findings; an annotation at fault is left out, the others go on.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    content = read_object(source)
    where = source.name
    images = _by_id(entries_of(content, "images", where), "image", where, given)
    file = _File(images, _by_id(entries_of(content, "categories", where), "category", where, given))
    _find_pictures(file, source, given)
    annotations = entries_of(content, "annotations", where)
    if not annotations:
        raise DataError(where, "the file holds no annotations", _EXPORT_AGAIN)
    # In the order of the pictures, so that each is read once.
    order = sorted(range(len(annotations)), key=lambda n: _image_id(annotations[n]))
    seen: set[int] = set()
    crowds = 0
    for done, place in enumerate(order):
        given.step(done, len(order), "drawing margins")
        entry = annotations[place]
        number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        at = f"{where} annotation {place + 1 if number is None else number}"
        try:
            if number is None:
                raise MarginRefused(at, "an annotation must have a whole number as its id", _EXPORT_AGAIN, "no id")
            if number in seen:
                raise MarginRefused(at, "another annotation has the same id", _EXPORT_AGAIN, "id given twice")
            seen.add(number)
            margin = _read_annotation(entry, number, at, source, file, given)
        except DataError as error:
            known = place + 1 if number is None else number
            shown_at = at if error.where.startswith(at) else f"{at}: {error.where}"
            given.findings.append(replace(Finding.refused(error, source, known), where=shown_at))
            continue
        if margin is not None:
            crowds += bool(entry.get("iscrowd"))
            yield margin
    if crowds:
        rule = f"{crowds} annotations are marked iscrowd, which may be several lesions in one; each is taken as one"
        given.findings.append(Finding("warning", where, rule, "Look at them in the contact sheet"))


def _by_id(entries: list[Any], what: str, where: str, given: Given) -> dict[int, dict[str, Any]]:
    """Images or categories by id; broken ones are noted and left out, and so are all that share an id."""
    found: dict[int, dict[str, Any]] = {}
    twice: set[int] = set()
    broken = 0
    for entry in entries:
        number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            broken += 1
        elif found.setdefault(number, entry) is not entry:
            twice.add(number)
    if broken:
        rule = f"{broken} {what} entries have no whole number as their id"
        given.findings.append(Finding("error", where, rule, _EXPORT_AGAIN))
    if twice:
        some = ", ".join(map(str, sorted(twice)[:10]))
        given.findings.append(
            Finding("error", where, f"several {what} entries have the same id ({some})", _EXPORT_AGAIN)
        )
    return {number: entry for number, entry in found.items() if number not in twice}


def _find_pictures(file: _File, source: SourceFile, given: Given) -> None:
    """Find every image's picture; one that two images name is a fault of both, for one of them must be wrong."""
    names = PicturesByName(source, given)
    places: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for done, (number, image) in enumerate(file.images.items()):
        given.step(done, len(file.images), "finding pictures")
        where = f"{source.name} image {number}"
        try:
            path = file.paths[number] = names.find(image.get("file_name"), where)
            places[path.resolve(), text_of(image.get("slice"))].append(number)
        except DataError as error:
            file.paths[number] = error
    for numbers in places.values():
        for number in numbers if len(numbers) > 1 else ():
            rule = f"images {', '.join(map(str, numbers[:10]))} name the same picture"
            fix = "Give each picture one entry, with its folder in file_name"
            file.paths[number] = MarginRefused(source.name, rule, fix, "two images name one picture")


def _image_id(annotation: Any) -> int:
    number = whole_number(annotation.get("image_id")) if isinstance(annotation, dict) else None
    return -1 if number is None else number


def _read_annotation(
    entry: dict[str, Any], number: int, at: str, source: SourceFile, file: _File, given: Given
) -> Margin | None:
    """The margin of an annotation, None for one without an outline or left out by the label map."""
    segmentation = entry.get("segmentation")
    if segmentation in (None, [], {}, [[]]):
        what = "key points" if entry.get("keypoints") else "a box" if entry.get("bbox") else "nothing drawn"
        rule = f"it is {what} without an outline, so it is skipped"
        given.findings.append(Finding("warning", at, rule, "Draw the margin", "no outline", source, number))
        return None
    if _image_id(entry) not in file.images:
        rule = f"its image_id {shown(entry.get('image_id'))} is no image of the file"
        raise MarginRefused(at, rule, _EXPORT_AGAIN, "no image")
    category = file.categories.get(_category_id(entry))
    if category is None or not text_of(category.get("name")):
        rule = f"its category_id {shown(entry.get('category_id'))} is no category of the file that has a name"
        raise MarginRefused(at, rule, _EXPORT_AGAIN, "no category")
    name, above = text_of(category["name"]), text_of(category.get("supercategory"))
    also_named = (above,) if above and above != name else ()
    if given.leaves_out(name, also_named):
        given.note_left_out(at, source, number)
        return None
    picture, patient = _picture(_image_id(entry), at, file, given)
    return Margin(
        source=source,
        where=at,
        number=number,
        key=str(number),
        name=name,
        patient=patient,
        slices=[_draw(segmentation, picture, at, given)],
        also_named=also_named,
    )


def _category_id(entry: dict[str, Any]) -> int:
    number = whole_number(entry.get("category_id"))
    return -1 if number is None else number


def _picture(number: int, at: str, file: _File, given: Given) -> tuple[Picture, str]:
    """The picture of an image entry, and whose it is."""
    image = file.images[number]
    at = f"{at} (image {number})"
    by = given.options.patient_by
    stated = stated_patient(image, by or "patient_id", at)
    row, column, index = image.get("row_spacing_mm"), image.get("col_spacing_mm"), image.get("slice")
    if index is not None and whole_number(index) is None:
        raise DataError(at, "slice must be a whole number from 0", "Correct it")
    path = file.paths[number]
    if isinstance(path, DataError):
        raise path
    picture = given.pictures.get(
        path,
        at,
        slice_index=None if index is None else whole_number(index),
        spacing_mm=None if row is None and column is None else (millimetres(column, at), millimetres(row, at)),
        patient="" if by else stated,
    )
    check_shape(image.get("height"), image.get("width"), picture, at)
    patient = stated or picture.patient
    if not patient:
        raise MarginRefused(
            at,
            "no patient is named, so lesions of one patient could not be kept together",
            "Add patient_id to the images, or name the patients with --pictures",
            "no patient id",
        )
    return picture, patient


def _draw(segmentation: Any, picture: Picture, at: str, given: Given) -> MarginOnSlice:
    if isinstance(segmentation, dict):
        return on_picture([run_lengths_to_mask(segmentation, picture.stored_shape, at)], picture, at)
    if not isinstance(segmentation, list) or len(segmentation) > MAX_POLYGONS:
        rule = f"segmentation must be a list of at most {MAX_POLYGONS} polygons, or run lengths"
        raise MarginRefused(at, rule, _EXPORT_AGAIN, "broken outline")
    return on_picture([unite([outline(polygon, at) for polygon in segmentation], picture, at, given)], picture, at)


def run_lengths_to_mask(written: dict[str, Any], shape: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask of COCO's run lengths: lengths of 0, 1, 0, ... down the columns, as numbers or in COCO's own text.

    Args:
        written: {"size": [height, width], "counts": a list of numbers or a text}.
        shape: (height, width) of the picture, which the size must be.
        where: For errors.

    Returns:
        Boolean [height, width].

    Raises:
        MarginRefused: When the size is another one, or the lengths do not add up to the picture.
    """
    size, counts = written.get("size"), written.get("counts")
    if not isinstance(size, list) or tuple(whole_number(value) for value in size) != shape:
        rule = f"the mask must have the size of its picture, {shape[0]} x {shape[1]} (rows x columns)"
        raise MarginRefused(where, rule, "Export it on the grid of the picture", "mask of another size")
    pixels = shape[0] * shape[1]
    if isinstance(counts, str):
        lengths = _lengths_of_text(counts, pixels)
    elif isinstance(counts, list) and len(counts) <= pixels + 1 and all(type(n) is int for n in counts):
        lengths = np.array(counts, dtype=np.int64) if all(0 <= n <= pixels for n in counts) else None
    else:
        lengths = None
    if lengths is None or bool((lengths < 0).any()) or bool((lengths > pixels).any()) or int(lengths.sum()) != pixels:
        rule = "its run lengths must be whole numbers from 0 that add up to the pixels of the picture"
        raise MarginRefused(where, rule, _EXPORT_AGAIN, "broken run lengths")
    values = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    return np.ascontiguousarray(values.reshape(shape[1], shape[0]).T)


_BITS = 5  # of a character; the sixth says that more follow
_MOST_CHARACTERS = 7  # of one number: 35 bits, a picture has 24


def _lengths_of_text(text: str, pixels: int) -> NDArray[np.int64] | None:
    """COCO's compressed run lengths, int64 [n]; None where the text is none.

    Each number is written in groups of five bits, the lowest first, as characters from '0' on; from the fourth number
    on it is the difference to the one two before.
    """
    if not text or not text.isascii() or len(text) > _MOST_CHARACTERS * (pixels + 1):
        return None
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    if bool((codes < 0).any()) or bool((codes > 63).any()) or codes[-1] & 32:
        return None
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    size = last - first + 1
    if int(size.max()) > _MOST_CHARACTERS or size.size > pixels + 1:
        return None
    place = np.arange(codes.size) - np.repeat(first, size)
    numbers = np.add.reduceat((codes & 31) << (_BITS * place), first)
    numbers -= np.where(codes[last] & 16, 1 << (_BITS * size), 0)  # the highest bit is the sign
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
