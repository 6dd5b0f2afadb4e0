"""Margins out of DICOM structure sets (RTSTRUCT): contours matched to slices, then drawn."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginRefused, SourceFile
from lesionaug.data.sources.contours import Contour, Reference, draw, match
from lesionaug.data.sources.dicom_file import is_nested, read_dicom, reading, text
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.named_margins import Drawn, listed, read_named

if TYPE_CHECKING:
    from pydicom import Dataset

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")

MAX_POINTS = 100_000  # of one contour; the outlines of a whole slice's organs have a few thousand
FARTHEST_MM = 1e5  # of a point from the origin of the patient's coordinates


def read_rtstruct(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a structure set, one for each ROI (by ROINumber: names repeat) that has a slice here.

    A contour belongs to the slice that it references by SOP instance UID; else to the nearest slice of its frame of
    reference when that is less than half a slice step away. Contours of one ROI on one slice are combined by XOR, so
    an inner one is a hole. See `contours.match`.

    Args:
        source: The file.
        given: The slices, options and findings.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    findings = given.findings
    dataset = read_dicom(source, pixels=False)
    with reading(source.name):
        patient = given.options.patient_of(dataset)
        described = _by_number(dataset, "StructureSetROISequence", "ROINumber", source, findings)
        drawn_for = _by_number(dataset, "ROIContourSequence", "ReferencedROINumber", source, findings)
        rois = _single(described, "ROINumber", source, findings)
        contours = _single(drawn_for, "ReferencedROINumber", source, findings)
        undescribed = sorted(
            number
            for number in drawn_for.keys() - described.keys()
            if any(item.get("ContourSequence") for item in drawn_for[number])
        )
        series = _referenced_series(dataset)
    if undescribed:
        rule = f"contours are of {listed('ROI', undescribed)}, which StructureSetROISequence does not describe"
        findings.append(Finding("error", source.name, rule, "Export the structure set again"))
    elif not dataset.get("StructureSetROISequence"):
        findings.append(
            Finding("warning", source.name, "the structure set holds no ROI", "Draw the margins, then export it again")
        )

    def draw_roi(roi: Dataset, number: int, where: str) -> Drawn | None:
        frame = text(roi, "ReferencedFrameOfReferenceUID") or text(dataset, "FrameOfReferenceUID")
        drawn = _contours(contours.get(number), where, findings)
        if not drawn:
            rule = "the ROI has no closed contour, so it is skipped"
            findings.append(Finding("warning", where, rule, "", "no closed contour", source, number))
            return None
        candidates = given.index.in_frame(frame, series)
        on_slice, missing = match(
            drawn, candidates, given.index, where, findings, patient=patient, frame_of_reference=frame
        )
        referenced = set(given.index.referenced(reference for item in drawn for reference in item.references))
        given.index.note_another_series(series, on_slice.keys() - referenced, source.name, findings)
        return Drawn(draw(on_slice, where, findings), missing, patient)

    yield from read_named(source, given, "ROI", rois.items(), lambda roi: (text(roi, "ROIName"), ()), draw_roi)


def _by_number(
    dataset: Dataset, sequence: str, keyword: str, source: SourceFile, findings: list[Finding]
) -> dict[int, list[Dataset]]:
    """The items of a sequence by their ROI number; one without a number is a fault, the others go on."""
    found: dict[int, list[Dataset]] = defaultdict(list)
    for place, item in enumerate(dataset.get(sequence) or [], 1):
        element = item.get_item(keyword)
        written = "" if element is None else "a sequence" if is_nested(element.value) else element.value
        written = written.decode("ascii", "replace") if isinstance(written, bytes) else str(written)
        if re.fullmatch(r"\s*[+-]?\d{1,10}[\s\0]*", written):
            found[int(written.strip(" \0"))].append(item)
        else:
            rule = f"{keyword} must be a whole number, item {place} has '{written[:16]}'"
            findings.append(Finding("error", source.name, rule, "Export the structure set again"))
    return dict(found)


def _single(
    found: dict[int, list[Dataset]], keyword: str, source: SourceFile, findings: list[Finding]
) -> dict[int, Dataset]:
    """The item of each ROI number; a number that several have is a fault, the others go on."""
    for number in [number for number, items in found.items() if len(items) > 1]:
        rule = f"{keyword} {number} is given to {len(found[number])} items, so nobody can tell their contours apart"
        findings.append(
            Finding(
                "error",
                f"{source.name} ROI {number}",
                rule,
                "Export the structure set again",
                "ROI number given twice",
                source,
                number,
            )
        )
    return {number: items[0] for number, items in found.items() if len(items) == 1}


def _referenced_series(dataset: Dataset) -> set[str]:
    """The series that the structure set says it was drawn on; empty where it does not say."""
    return {
        text(series, "SeriesInstanceUID")
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def _contours(item: Dataset | None, where: str, findings: list[Finding]) -> list[Contour]:
    """The closed planar contours of a ROI; other kinds, and those of one or two points, are named and passed over."""
    found: list[Contour] = []
    other: dict[str, int] = defaultdict(int)
    for contour in (item.get("ContourSequence") or []) if item is not None else []:
        kind = text(contour, "ContourGeometricType").upper()
        if kind not in _CLOSED:
            other[kind or "(no type)"] += 1
            continue
        points = _points(contour, where)
        if len(points) < 3:
            other[f"{kind} of fewer than 3 points"] += 1
            continue
        images = contour.get("ContourImageSequence") or []
        references = tuple(reference for image in images for reference in Reference.all_of(image))
        found.append(Contour(points, references))
    if other:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(other.items()))
        findings.append(Finding("warning", where, f"only closed contours are margins; passed over: {kinds}", ""))
    return found


def _points(contour: Dataset, where: str) -> NDArray[np.float64]:
    """ContourData as [n, 3] in mm; parsed from the raw text, which is far faster for long contours."""
    element = contour.get_item("ContourData")
    raw = None if element is None else element.value
    if isinstance(raw, bytes):
        parts = raw.decode("ascii", "replace").rstrip(" \0").split("\\")
    else:
        parts = [] if raw is None or is_nested(raw) else [str(value) for value in raw]
    try:
        values = np.array([float(part) for part in parts], dtype=np.float64)
    except ValueError:
        values = np.full(1, np.nan)
    declared = text(contour, "NumberOfContourPoints")
    least = 3 if declared in ("1", "2") else 9  # a click that the contouring program kept, not a contour cut short
    if values.size < least or values.size % 3 or not bool(np.isfinite(values).all()):
        raise MarginRefused(
            where,
            "a closed contour must be at least three points of three finite numbers",
            "Export the structure set again",
            "broken contour data",
        )
    if values.size // 3 > MAX_POINTS or float(np.abs(values).max()) > FARTHEST_MM:
        raise MarginRefused(
            where,
            f"a contour may have {MAX_POINTS} points, none more than {FARTHEST_MM / 1000:g} m away",
            "Export the structure set again",
            "broken contour data",
        )
    if declared and declared != str(values.size // 3):
        raise MarginRefused(
            where,
            f"a contour says it has {declared[:12]} points and holds {values.size // 3}",
            "Export the structure set again",
            "broken contour data",
        )
    return values.reshape(-1, 3)
