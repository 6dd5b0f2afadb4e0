"""Margins out of DICOM structure sets (RTSTRUCT): contours matched to slices, then drawn."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.dicom_ct import CtSlice, patient_key, read_dicom, reading, text
from lesionaug.data.margins import polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import Finding, Margin, MarginOnSlice, MarginRefused, SourceFile
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# A contour's points may differ this much in depth before it counts as lying across the slices.
PARALLEL_TOLERANCE_MM = 0.25
# Where nothing tells the distance between slices, a contour must lie in the slice's plane to this.
SAME_PLANE_MM = 0.1
# Contours of one ROI this close in depth are one drawing: a hole may lie a fraction of a millimetre off its disc.
ONE_DRAWING_MM = 0.5
# A contour between 0.49 and 0.51 of a step from the nearest slice lies "exactly between": no slice is nearer.
BETWEEN = (0.49, 0.51)

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


@dataclass(frozen=True, eq=False)
class _Contour:
    points_mm: NDArray[np.float64]  # [n, 3]
    sop_uids: tuple[str, ...]


def read_rtstruct(
    source: SourceFile,
    slices: Sequence[CtSlice],
    findings: list[Finding],
    *,
    left_out: Callable[[str], bool] = lambda name: False,
) -> Iterator[Margin]:
    """The margins of a structure set, one for each ROI (by ROINumber: names repeat) that has a slice here.

    A contour belongs to the slice that it references by SOP instance UID; else to the nearest slice of its frame of
    reference when that is less than half a slice step away (see `_Steps`). Contours of one ROI on one slice are
    combined by XOR, so an inner one is a hole. Of contours at several depths those within ONE_DRAWING_MM of the
    nearest are taken, and a warning says so.

    Args:
        source: The file.
        slices: Every CT slice of the source.
        findings: Faults and notes are appended here; a ROI at fault is left out, the others go on.
        left_out: Names of ROIs to pass over.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    dataset = read_dicom(source, pixels=False)
    with reading(source.name):
        patient = patient_key(text(dataset, "PatientID"))
        rois = {int(roi.ROINumber): roi for roi in dataset.get("StructureSetROISequence") or []}
        contours = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or []}
        series = _referenced_series(dataset)
    if not rois:
        findings.append(
            Finding("warning", source.name, "the structure set holds no ROI", "Draw the margins, then export it again")
        )
    for number, roi in rois.items():
        with_name = f"{source.name} ROI {number}"
        try:
            with reading(with_name):
                name = text(roi, "ROIName")
                with_name = f"{source.name} ROI {number} '{name}'"
                if left_out(name):
                    findings.append(
                        Finding("info", with_name, "left out as the label map says", "", "left out", source, number)
                    )
                    continue
                frame = text(roi, "ReferencedFrameOfReferenceUID") or text(dataset, "FrameOfReferenceUID")
                drawn = _contours(contours.get(number), with_name, findings)
                if not drawn:
                    rule = "the ROI has no closed contour, so it is skipped"
                    findings.append(Finding("warning", with_name, rule, "", "no closed contour", source, number))
                    continue
                on_slice, missing = _match(drawn, frame, series, slices, patient, with_name, findings)
                entries = _draw(on_slice, with_name, findings)
        except DataError as error:
            findings.append(Finding.refused(error, source, number))
            continue
        yield Margin(
            source=source,
            where=with_name,
            number=number,
            key=str(number),
            name=name,
            patient=patient,
            slices=entries,
            parts_missing=missing,
        )


def _referenced_series(dataset: Dataset) -> set[str]:
    """The series that the structure set says it was drawn on; empty where it does not say."""
    return {
        text(series, "SeriesInstanceUID")
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def _contours(item: Dataset | None, where: str, findings: list[Finding]) -> list[_Contour]:
    """The closed planar contours of a ROI; other kinds are named and passed over."""
    found: list[_Contour] = []
    other: dict[str, int] = defaultdict(int)
    for contour in (item.get("ContourSequence") or []) if item is not None else []:
        kind = text(contour, "ContourGeometricType").upper()
        if kind not in _CLOSED:
            other[kind or "(no type)"] += 1
            continue
        images = contour.get("ContourImageSequence") or []
        found.append(_Contour(_points(contour, where), tuple(text(i, "ReferencedSOPInstanceUID") for i in images)))
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
        parts = [str(value) for value in raw] if raw is not None else []
    try:
        values = np.array([float(part) for part in parts], dtype=np.float64)
    except ValueError:
        values = np.full(1, np.nan)
    declared = text(contour, "NumberOfContourPoints")
    if values.size < 9 or values.size % 3 or not bool(np.isfinite(values).all()):
        raise MarginRefused(
            where,
            "a closed contour must be at least three points of three finite numbers",
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


def _match(
    contours: list[_Contour],
    frame: str,
    series: set[str],
    slices: Sequence[CtSlice],
    patient: str,
    where: str,
    findings: list[Finding],
) -> tuple[dict[CtSlice, list[NDArray[np.float64]]], int]:
    """Polygons [n, 2] by the slice they lie on (integers at pixel centres), and how many contours lie on none."""
    placed = [s for s in slices if s.plane is not None]
    by_uid = {s.sop_uid: s for s in placed if s.sop_uid}
    in_frame = [s for s in placed if frame and s.frame_of_reference == frame]
    if any(s.series_uid in series for s in in_frame):
        in_frame = [s for s in in_frame if s.series_uid in series]
    resolved = any(uid in by_uid for contour in contours for uid in contour.sop_uids)
    if not in_frame and not resolved:
        raise MarginRefused(
            where,
            "the ROI matches no CT slice here, neither by SOP instance UID nor by frame of reference",
            "Put the CT series that it was drawn on into the folder",
            "no slice of its frame of reference",
        )
    on_slice: dict[CtSlice, list[NDArray[np.float64]]] = defaultdict(list)
    depths: dict[CtSlice, list[float]] = defaultdict(list)
    missing = 0
    steps = _Steps(slices, contours)
    for contour in contours:
        chosen = _by_reference(contour, steps, by_uid, where)
        if chosen is None:
            chosen = _by_plane(contour, steps, in_frame, where)
        elif frame and chosen.frame_of_reference != frame:
            warning = Finding(
                "warning", where, "its frame of reference differs from the CT's; matched by SOP instance UID", ""
            )
            if warning not in findings:
                findings.append(warning)
        if chosen is None:
            missing += 1
            continue
        if chosen.patient != patient:
            raise MarginRefused(
                where,
                "the structure set and the CT slice name different patients",
                "Correct PatientID, or separate the patients",
                "patient differs between margin and slice",
            )
        assert chosen.plane is not None
        polygon, depth = chosen.plane.to_pixels(contour.points_mm)
        on_slice[chosen].append(polygon)
        depths[chosen].append(float(depth.mean()))
    for chosen, found in depths.items():
        nearest = min(found, key=abs)
        kept = [abs(depth - nearest) <= ONE_DRAWING_MM for depth in found]
        if not all(kept):
            on_slice[chosen] = [polygon for polygon, keep in zip(on_slice[chosen], kept, strict=True) if keep]
            rule = (
                f"contours up to {max(found) - min(found):.2f} mm apart in depth fall on #{chosen.source.number}; "
                f"{kept.count(False)} of {len(kept)} are left out, the nearest are taken"
            )
            findings.append(Finding("warning", where, rule, "Look at the margin on the contact sheet"))
    return on_slice, missing


def _depths(contour: _Contour, plane_of: CtSlice, where: str) -> float:
    """Distance of a contour from a slice in mm.

    Raises:
        MarginRefused: When the contour is not parallel to the slice.
    """
    assert plane_of.plane is not None
    depth = plane_of.plane.to_pixels(contour.points_mm)[1]
    if float(np.ptp(depth)) > 2 * PARALLEL_TOLERANCE_MM:
        raise MarginRefused(
            where,
            f"a contour is not parallel to the slices (its depth varies by {float(np.ptp(depth)):.2f} mm)",
            "Draw the margin on the axial slices of this series",
            "contour not parallel to the slices",
        )
    return abs(float(depth.mean()))


class _Steps:
    """The distance between slices that "half a step" refers to, by series.

    It is the smaller of what the slices state (SpacingBetweenSlices, SliceThickness) and the gap between slices
    present. The latter alone is not enough: a folder may hold every fifth slice of a series, and a contour of a missing
    one must not land on its neighbour. The gap between contours counts only where the slices state nothing, for a hole
    may be drawn a fraction of a millimetre off its disc.
    """

    def __init__(self, slices: Sequence[CtSlice], contours: list[_Contour]) -> None:
        self.contours = contours
        self.by_series: dict[str, list[CtSlice]] = defaultdict(list)
        for entry in slices:
            if entry.plane is not None:
                self.by_series[entry.series_uid].append(entry)
        self._known: dict[str, float | None] = {}

    def of(self, plane_of: CtSlice) -> float | None:
        """The step of a slice's series in mm, None where nothing tells."""
        uid = plane_of.series_uid
        if uid not in self._known:
            assert plane_of.plane is not None
            normal = plane_of.plane.normal
            own = self.by_series[uid]
            stated = [s.step_mm for s in own if s.step_mm is not None]
            orders = [sorted(float(s.plane.position @ normal) for s in own if s.plane is not None)]
            if not stated:
                orders.append(sorted(float((contour.points_mm @ normal).mean()) for contour in self.contours))
            gaps = [b - a for ordered in orders for a, b in itertools.pairwise(ordered)]
            self._known[uid] = min([*stated, *(gap for gap in gaps if gap > SAME_PLANE_MM)], default=None)
        return self._known[uid]


def _by_reference(contour: _Contour, steps: _Steps, by_uid: dict[str, CtSlice], where: str) -> CtSlice | None:
    named = [by_uid[uid] for uid in contour.sop_uids if uid in by_uid]
    if not named:
        return None
    nearest = min(named, key=lambda s: _depths(contour, s, where))
    distance = _depths(contour, nearest, where)
    step = steps.of(nearest)
    if distance > max(SAME_PLANE_MM, BETWEEN[1] * (step or 0.0)):
        raise MarginRefused(
            where,
            f"a contour references slice #{nearest.source.number} but lies {distance:.2f} mm away from it",
            "Export the structure set again with the series that it was drawn on",
            "contour away from the slice that it references",
        )
    return nearest


def _by_plane(contour: _Contour, steps: _Steps, slices: Sequence[CtSlice], where: str) -> CtSlice | None:
    candidates: dict[str, CtSlice] = {}
    for uid in {s.series_uid for s in slices}:
        of_series = [s for s in slices if s.series_uid == uid]
        nearest = min(of_series, key=lambda s: _depth_of_mean(contour, s))
        distance = _depth_of_mean(contour, nearest)
        step = steps.of(nearest)
        if distance <= SAME_PLANE_MM or (step is not None and distance < BETWEEN[0] * step):
            _depths(contour, nearest, where)
            same = [s for s in of_series if abs(_depth_of_mean(contour, s) - distance) < SAME_PLANE_MM / 10]
            if len(same) > 1:
                raise MarginRefused(
                    where,
                    f"{len(same)} slices of one series lie at a contour's plane",
                    "Keep one image of each position in the folder",
                    "several slices at one position",
                )
            candidates[uid] = nearest
        elif step is not None and distance <= BETWEEN[1] * step:
            raise MarginRefused(
                where,
                f"a contour lies exactly between two slices ({distance:.2f} mm from the nearest, {step:.2f} mm apart)",
                "Draw it on a slice; it is not drawn on both",
                "contour exactly between two slices",
            )
    if len(candidates) > 1:
        raise MarginRefused(
            where,
            f"a contour lies on slices of {len(candidates)} series and does not say which it was drawn on",
            "Keep the one series in the folder that the margins belong to",
            "several series at one position",
        )
    return next(iter(candidates.values()), None)


def _depth_of_mean(contour: _Contour, plane_of: CtSlice) -> float:
    assert plane_of.plane is not None
    return abs(float((contour.points_mm.mean(axis=0) - plane_of.plane.position) @ plane_of.plane.normal))


def _draw(
    on_slice: dict[CtSlice, list[NDArray[np.float64]]], where: str, findings: list[Finding]
) -> list[MarginOnSlice]:
    """The masks that are not empty, slices from the first file to the last."""
    entries = []
    for chosen in sorted(on_slice, key=lambda s: s.source.number):
        height, width = chosen.turned_shape
        polygons = on_slice[chosen]
        if polygons_reach_outside(polygons, height, width, convention="pixel_centre"):
            findings.append(
                Finding("warning", where, f"partly outside slice #{chosen.source.number}; clipped to the picture", "")
            )
        mask = polygons_to_mask(polygons, height, width, convention="pixel_centre")
        if mask.any():
            entries.append(MarginOnSlice(chosen, mask))
    if on_slice and not entries:
        raise MarginRefused(
            where,
            "the margin encloses no pixel centre inside the picture",
            "Check that it was drawn on this series",
            "empty mask",
        )
    return entries
