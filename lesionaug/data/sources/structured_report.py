"""Margins out of DICOM structured reports (SR): image regions of measurement groups (TID 1500, 1410, 1411)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginRefused, SourceFile
from lesionaug.data.sources.contours import Contour, Reference, draw, draw_as_stored, match
from lesionaug.data.sources.dicom_ct import LABEL_MAP_SEGMENTATION, SEGMENTATION
from lesionaug.data.sources.dicom_file import EXPORT_AGAIN, read_dicom, reading, text
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.named_margins import Drawn, read_named
from lesionaug.data.sources.regions import MAX_OUTLINES, Region, circle, ellipse, match_regions, outline
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# Enhanced, Comprehensive, Comprehensive 3D and Extensible SR: the reports that can hold regions of images.
SOP_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (22, 33, 34, 35))

MAX_BYTES = 16 << 20
MAX_DEPTH = 50  # content items within each other; TID 1500 has about 7
MAX_ITEMS = 200_000

_GROUP = "DCM:125007"
_TRACKING = "DCM:112039"
_TRACKING_UID = "DCM:112040"
# Finding, finding site, finding category; SNOMED's codes of today and those (SRT) of older reports.
_SAYS_WHAT = ("DCM:121071", "SCT:363698007", "SRT:G-C0E3", "SCT:276214006", "SRT:G-C0E2")


@dataclass(eq=False)
class _Group:
    """A measurement group: one lesion, seen once."""

    number: int
    tracking: str = ""
    tracking_uid: str = ""
    names: list[str] = field(default_factory=list)
    regions: list[Dataset] = field(default_factory=list)  # SCOORD and SCOORD3D items
    segmented: bool = False


def read_structured_report(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a structured report, one for each measurement group that has a closed outline.

    Groups of one tracking UID and one name are one lesion, drawn on several slices. An outline that a group repeats
    (once for each measurement) counts once; others of one group on one slice are combined by XOR, as in a structure
    set.

    Args:
        source: The file.
        given: The slices, options and findings.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    findings = given.findings
    if source.size > MAX_BYTES:
        raise DataError(source.name, f"a report may have at most {MAX_BYTES >> 20} MiB", EXPORT_AGAIN)
    dataset = read_dicom(source, pixels=False)
    with reading(source.name):
        patient = given.options.patient_of(dataset)
        groups, num_outside = _groups(dataset, source.name, given)
        lesions = _united(groups)
        series = _series(dataset)
    if num_outside:
        rule = f"{num_outside} regions lie outside of any measurement group: passed over"
        findings.append(Finding("warning", source.name, rule, "Export them as measurement groups (TID 1500)"))

    def names_of(same: list[_Group]) -> tuple[str, tuple[str, ...]]:
        first = same[0]
        return first.tracking or next(iter(first.names), ""), tuple(dict.fromkeys(first.names))

    def draw_lesion(same: list[_Group], _: int, where: str) -> Drawn | None:
        outlines = _read_outlines(same, dataset, where, given, source)
        return None if outlines is None else _place(outlines, series, patient, where, given)

    numbered = [(same[0].number, same) for same in lesions]
    if not (yield from read_named(source, given, "group", numbered, names_of, draw_lesion)):
        findings.append(Finding("info", source.name, "the report holds no planar contour"))


def _children(item: Dataset) -> Sequence[Dataset]:
    return item.get("ContentSequence") or ()


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    """('scheme:value', meaning) of an item's coded concept; ('', '') where it has none."""
    for code in item.get(keyword) or ():
        value = next((text(code, key) for key in ("CodeValue", "LongCodeValue", "URNCodeValue") if text(code, key)), "")
        return f"{text(code, 'CodingSchemeDesignator')}:{value}".strip(":"), text(code, "CodeMeaning")
    return "", ""


def _groups(dataset: Dataset, where: str, given: Given) -> tuple[list[_Group], int]:
    """The measurement groups in the order of the report, and how many regions belong to none.

    Raises:
        DataError: When the content is nested deeper, or has more items, than any real report.
    """
    groups: list[_Group] = []
    num_items = num_outside = 0
    waiting: list[tuple[Dataset, _Group | None, int]] = [(dataset, None, 0)]
    while waiting:
        item, group, depth = waiting.pop()
        num_items += 1
        if num_items > MAX_ITEMS or depth > MAX_DEPTH:
            rule = f"a report may have {MAX_ITEMS} content items, {MAX_DEPTH} within each other"
            raise DataError(where, rule, EXPORT_AGAIN)
        if num_items % 1000 == 0:
            given.step(0, 0, "reading reports")
        kind, (concept, _) = text(item, "ValueType").upper(), _code(item, "ConceptNameCodeSequence")
        if kind == "CONTAINER" and concept == _GROUP:
            group = _Group(len(groups) + 1)
            groups.append(group)
        elif kind in ("SCOORD", "SCOORD3D"):
            if group is None:
                num_outside += 1
            else:
                group.regions.append(item)
        elif group is not None:
            _note(item, kind, concept, group)
        waiting += [(child, group, depth + 1) for child in reversed(_children(item))]
    return groups, num_outside


def _note(item: Dataset, kind: str, concept: str, group: _Group) -> None:
    """Keep what an item says about its group."""
    if kind == "TEXT" and concept == _TRACKING:
        group.tracking = group.tracking or text(item, "TextValue")
    elif kind == "UIDREF" and concept == _TRACKING_UID:
        group.tracking_uid = group.tracking_uid or text(item, "UID")
    elif kind == "CODE" and concept in _SAYS_WHAT:
        group.names += [name for name in _code(item, "ConceptCodeSequence") if name]
    elif kind == "IMAGE":
        classes = {text(image, "ReferencedSOPClassUID") for image in item.get("ReferencedSOPSequence") or ()}
        group.segmented = group.segmented or bool(classes & {SEGMENTATION, LABEL_MAP_SEGMENTATION})


def _united(groups: list[_Group]) -> list[list[_Group]]:
    """Groups of one lesion together: those of one tracking UID that are called the same and hold regions."""
    lesions: dict[tuple[object, ...], list[_Group]] = {}
    for group in groups:
        own = (group.tracking_uid or group.number, group.tracking, *group.names)
        lesions.setdefault(own if group.regions else (group.number,), []).append(group)
    return list(lesions.values())


def _series(dataset: Dataset) -> set[str]:
    """The series that the report says it is about."""
    return {
        text(series, "SeriesInstanceUID")
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in dataset.get(keyword) or ()
        for series in study.get("ReferencedSeriesSequence") or ()
    }


@dataclass(eq=False)
class _Outlines:
    """The closed outlines of one lesion."""

    on_images: list[Region] = field(default_factory=list)
    in_space: list[tuple[str, Contour]] = field(default_factory=list)  # frame of reference, contour


def _read_outlines(
    groups: list[_Group], root: Dataset, where: str, given: Given, source: SourceFile
) -> _Outlines | None:
    """The closed outlines of a lesion's groups, None where they have none; what is passed over is named."""
    found = _Outlines()
    others: Counter[str] = Counter()
    seen: set[tuple[object, ...]] = set()
    for group in groups:
        if group.segmented:
            rule = "its region is a segmentation, which is read from that object's own file"
            given.findings.append(Finding("info", where, rule))
        for item in group.regions:
            kind, in_space = text(item, "GraphicType").upper(), text(item, "ValueType").upper() == "SCOORD3D"
            points = _points(item, 3 if in_space else 2, where)
            closed = _closed(kind, points, where)
            if closed is None:
                others[(f"open {kind}" if kind == "POLYLINE" else kind or "(no type)")[:32]] += 1
                continue
            place = text(item, "ReferencedFrameOfReferenceUID") if in_space else _image(item, root, where)
            own = (place, kind, points.tobytes())
            if own in seen:
                continue
            seen.add(own)
            if len(seen) > MAX_OUTLINES:
                raise MarginRefused(
                    where, f"a margin may have {MAX_OUTLINES} outlines", "Split it", "too many outlines"
                )
            if isinstance(place, Reference):
                found.on_images.append(Region(closed, place))
            else:
                found.in_space.append((place, Contour(closed)))
    drawn = bool(found.on_images or found.in_space)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        rule = f"only closed outlines are margins (of a polyline the last point is the first); passed over: {kinds}"
        given.findings.append(
            Finding("warning", where, rule)
            if drawn
            else Finding("warning", where, rule, "", "no closed outline", source, groups[0].number)
        )
    return found if drawn else None


def _points(item: Dataset, dimensions: int, where: str) -> NDArray[np.float64]:
    """GraphicData as [n, dimensions]."""
    data = item.get("GraphicData")
    if isinstance(data, bytes) and len(data) % 4 == 0:  # more than 64 KiB of them are written without their type
        data = np.frombuffer(data, "<f4")
    values = np.atleast_1d(np.asarray(() if data is None else data, dtype=np.float64))
    if values.size == 0 or values.size % dimensions:
        raise MarginRefused(
            where, f"graphic data must be points of {dimensions} numbers", "Export the report again", "broken outline"
        )
    return outline(values.reshape(-1, dimensions), where)


def _closed(kind: str, points: NDArray[np.float64], where: str) -> NDArray[np.float64] | None:
    """The polygon of a closed graphic, None for any other."""
    if kind == "POLYGON" or (kind == "POLYLINE" and len(points) > 3 and np.array_equal(points[0], points[-1])):
        return points
    if kind == "CIRCLE" and points.shape[1] == 2:
        return circle(points, where)
    if kind == "ELLIPSE":
        return ellipse(points, where)
    return None


def _image(item: Dataset, root: Dataset, where: str) -> Reference:
    """The image that a region was selected from; the item may stand elsewhere in the report and be named by its place.

    Raises:
        MarginRefused: When it names none, or several.
    """
    found: set[Reference] = set()
    for child in _children(item):
        image: Dataset | None = child
        if text(child, "RelationshipType").upper() != "SELECTED FROM":
            continue
        if child.get("ReferencedContentItemIdentifier") is not None:
            image = _item_at(root, np.atleast_1d(child.ReferencedContentItemIdentifier))
        for named in (image.get("ReferencedSOPSequence") if image is not None else None) or ():
            found.update(Reference.all_of(named))
    if len(found) != 1:
        raise MarginRefused(
            where,
            f"a region must name the one image that it lies on, got {len(found)}",
            EXPORT_AGAIN,
            "no image is named",
        )
    return found.pop()


def _item_at(root: Dataset, place: NDArray[np.int64]) -> Dataset | None:
    """The content item with these numbers (from 1) on the way to it; the first is the root's."""
    item = root
    for number in place[1 : MAX_DEPTH + 1]:
        children = _children(item)
        if not 1 <= number <= len(children):
            return None
        item = children[int(number) - 1]
    return item


def _place(drawn: _Outlines, series: set[str], patient: str, where: str, given: Given) -> Drawn:
    """The masks of a lesion on the slices here, and how many of its outlines lie on none."""
    if drawn.on_images and drawn.in_space:
        rule = "a lesion must be drawn in pixels of images or in millimetres, this one has both"
        raise MarginRefused(where, rule, "Export one of the two", "outlines in pixels and in millimetres")
    if drawn.on_images:
        on_slice, missing = match_regions(drawn.on_images, given.index, where, patient=patient)
        polygons = {chosen: [region.points for region in regions] for chosen, regions in on_slice.items()}
        return Drawn(draw_as_stored(polygons, "pixel_edge", where, given.findings), missing, patient)
    frames = {frame for frame, _ in drawn.in_space}
    if len(frames) != 1 or "" in frames:
        rule = f"outlines in millimetres must name one frame of reference, these name {len(frames - {''})}"
        raise MarginRefused(where, rule, EXPORT_AGAIN, "no frame of reference is named")
    frame = frames.pop()
    contours = [contour for _, contour in drawn.in_space]
    found, missing = match(
        contours,
        given.index.in_frame(frame, series),
        given.index,
        where,
        given.findings,
        patient=patient,
        frame_of_reference=frame,
    )
    given.index.note_another_series(series, found, where, given.findings)
    return Drawn(draw(found, where, given.findings), missing, patient)
