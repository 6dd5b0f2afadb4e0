"""Contours in the patient's millimetres, matched to the slices that they lie on and drawn as masks.

Shared by every format that keeps its margins in patient coordinates: structure sets, structured reports, 3D Slicer.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.margins import Convention, polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import Finding, MarginOnSlice, MarginRefused
from lesionaug.data.sources.dicom_ct import CtSlice
from lesionaug.data.sources.dicom_file import text
from lesionaug.data.sources.named_margins import listed

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
# Outlines of one margin on one slice are compared with each other up to here: pixels of all their boxes, and outlines.
MOST_COMPARED = (1 << 24, 1000)

Polygons = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Reference:
    """An image by SOP instance UID; `frame` counts from 1, None means all of its frames."""

    sop_uid: str
    frame: int | None = None

    @classmethod
    def all_of(cls, item: Dataset) -> tuple[Reference, ...]:
        """The references that a sequence item states: one for each frame that it names, else one to all of them."""
        uid = text(item, "ReferencedSOPInstanceUID")
        stated = item.get("ReferencedFrameNumber")
        if stated is None or stated == "":
            return (cls(uid),)
        return tuple(cls(uid, int(number)) for number in ([stated] if isinstance(stated, (int, str)) else stated))


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed contour: points float64 [n, 3] in mm (DICOM patient axes), and the images that it says it lies on."""

    points_mm: NDArray[np.float64]
    references: tuple[Reference, ...] = ()


class SliceIndex:
    """Slices by reference, frame of reference and series, sorted along their normal.

    Args:
        slices: Every CT slice of a source.
        same_patient: Whether two ids are one person's.
    """

    def __init__(self, slices: Sequence[CtSlice], same_patient: Callable[[str, str], bool] = str.__eq__) -> None:
        self._same_patient = same_patient
        self._by_uid: dict[str, list[CtSlice]] = defaultdict(list)
        self._by_frame: dict[str, list[CtSlice]] = defaultdict(list)
        self.by_series: dict[str, _Series] = {}
        series: dict[str, list[CtSlice]] = defaultdict(list)
        for entry in slices:
            if entry.sop_uid:
                self._by_uid[entry.sop_uid].append(entry)
            if entry.plane is not None:
                self._by_frame[entry.frame_of_reference].append(entry)
                series[entry.series_uid].append(entry)
        self.by_series = {uid: _Series(own) for uid, own in series.items()}

    def referenced(self, references: Iterable[Reference]) -> list[CtSlice]:
        """The slices here that references name, each once."""
        found = [
            entry
            for reference in references
            for entry in self._by_uid.get(reference.sop_uid, ())
            if reference.frame is None or entry.frame == reference.frame - 1
        ]
        return list(dict.fromkeys(found))

    def in_frame(self, frame_of_reference: str, series: set[str]) -> list[CtSlice]:
        """The slices of a frame of reference; of the named series alone where some of it are here."""
        found = self._by_frame.get(frame_of_reference, []) if frame_of_reference else []
        of_series = [entry for entry in found if entry.series_uid in series]
        return of_series or list(found)

    def note_another_series(
        self, series: set[str], chosen: Iterable[CtSlice], where: str, findings: list[Finding]
    ) -> None:
        """Warn, once for a file, when slices that were found by their plane are of none of the series that it names."""
        chosen = list(chosen)
        if chosen and series - {""} and not any(entry.series_uid in series for entry in chosen):
            rule = "the series it was drawn on is not here; matched by frame of reference and plane"
            warning = Finding("warning", where, rule, "Look at the margins on the contact sheet")
            if warning not in findings:
                findings.append(warning)

    def check_patient(self, chosen: CtSlice, patient: str | None, where: str) -> None:
        """Refuse a margin on a slice of another patient (None: its format names none).

        Raises:
            MarginRefused: They differ.
        """
        if patient is not None and not self._same_patient(chosen.patient, patient):
            raise MarginRefused(
                where,
                "the margin and the CT slice name different patients",
                "Correct PatientID, separate the patients, or give --patient-aliases if they are one person",
                "patient differs between margin and slice",
            )


class _Series:
    """The slices of one series along its normal, and the distance between them that "half a step" refers to."""

    def __init__(self, slices: list[CtSlice]) -> None:
        assert slices[0].plane is not None
        self.normal = slices[0].plane.normal
        depths = np.array([s.plane.position @ self.normal for s in slices if s.plane is not None])
        order = np.argsort(depths, kind="stable")
        self.slices = [slices[i] for i in order]
        self.depths = depths[order]
        stated = [s.step_mm for s in slices if s.step_mm is not None]
        gaps = [float(gap) for gap in np.diff(self.depths) if gap > SAME_PLANE_MM]
        self.states_a_step = bool(stated)
        self.smallest = min([*stated, *gaps], default=None)

    def step_mm(self, contours: Sequence[Contour]) -> float | None:
        """The step in mm, None where nothing tells.

        It is the smaller of what the slices state (SpacingBetweenSlices, SliceThickness) and the gap between slices
        present. The latter alone is not enough: a folder may hold every fifth slice of a series, and a contour of a
        missing one must not land on its neighbour. The gap between contours counts only where the slices state nothing,
        for a hole may be drawn a fraction of a millimetre off its disc.
        """
        if self.states_a_step:
            return self.smallest
        depths = sorted(float((contour.points_mm @ self.normal).mean()) for contour in contours)
        gaps = [b - a for a, b in itertools.pairwise(depths) if b - a > SAME_PLANE_MM]
        return min([*gaps, *([] if self.smallest is None else [self.smallest])], default=None)

    def near(self, contour: Contour) -> tuple[list[CtSlice], float]:
        """The slices nearest to a contour (several where they share a plane), and the distance in mm."""
        depth = float(contour.points_mm.mean(axis=0) @ self.normal)
        away = np.abs(self.depths - depth)
        distance = float(away.min())
        return [self.slices[i] for i in np.flatnonzero(away < distance + SAME_PLANE_MM / 10)], distance


@dataclass(frozen=True, eq=False)
class _Search:
    """One margin's contours and where they may lie."""

    index: SliceIndex
    candidates: Sequence[CtSlice]
    steps: Mapping[str, float | None]
    where: str

    @cached_property
    def series(self) -> dict[str, _Series]:
        """The candidates by series."""
        own: dict[str, list[CtSlice]] = defaultdict(list)
        for entry in self.candidates:
            own[entry.series_uid].append(entry)
        whole = self.index.by_series
        return {uid: whole[uid] if len(own[uid]) == len(whole[uid].slices) else _Series(own[uid]) for uid in own}


def match(
    contours: list[Contour],
    candidates: Sequence[CtSlice],
    index: SliceIndex,
    where: str,
    findings: list[Finding],
    *,
    patient: str | None,
    frame_of_reference: str = "",
) -> tuple[dict[CtSlice, Polygons], int]:
    """Find the slice of each contour: the one that it references, else the nearest of the candidates.

    A referenced slice must lie in the contour's plane. Otherwise the nearest slice less than half a step away is
    taken. Of contours at several depths on one slice those within ONE_DRAWING_MM of the nearest are taken, and a
    warning says so.

    Args:
        contours: Of one margin.
        candidates: Slices that contours without a usable reference may lie on.
        index: Of every slice.
        where: Named in errors.
        findings: Warnings are appended here.
        patient: Of the margin, as `patient_key` has it; None where its format does not say.
        frame_of_reference: Of the margin; a referenced slice in another one is worth a warning.

    Returns:
        Polygons [n, 2] in pixels by slice (integers at pixel centres), and how many contours lie on no slice here.

    Raises:
        MarginRefused: When no slice can be told, or it is another patient's.
    """
    if not candidates and not any(index.referenced(contour.references) for contour in contours):
        raise MarginRefused(
            where,
            "the margin matches no CT slice here, neither by SOP instance UID nor by frame of reference",
            "Put the CT series that it was drawn on into the folder",
            "no slice of its frame of reference",
        )
    search = _Search(index, candidates, _Steps(index, contours), where)
    on_slice: dict[CtSlice, Polygons] = defaultdict(list)
    depths: dict[CtSlice, list[float]] = defaultdict(list)
    missing = 0
    for contour in contours:
        chosen = _by_reference(contour, search)
        if chosen is None:
            chosen = _by_plane(contour, search)
        elif frame_of_reference and chosen.frame_of_reference != frame_of_reference:
            warning = Finding(
                "warning", where, "its frame of reference differs from the CT's; matched by SOP instance UID"
            )
            if warning not in findings:
                findings.append(warning)
        if chosen is None:
            missing += 1
            continue
        index.check_patient(chosen, patient, where)
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


class _Steps(dict[str, float | None]):
    def __init__(self, index: SliceIndex, contours: Sequence[Contour]) -> None:
        super().__init__()
        self._index, self._contours = index, contours

    def __missing__(self, series_uid: str) -> float | None:
        self[series_uid] = self._index.by_series[series_uid].step_mm(self._contours)
        return self[series_uid]


def _distance(contour: Contour, chosen: CtSlice, where: str) -> float:
    """Distance of a contour from a slice in mm.

    Raises:
        MarginRefused: When the contour is not parallel to the slice.
    """
    assert chosen.plane is not None
    depth = chosen.plane.to_pixels(contour.points_mm)[1]
    if float(np.ptp(depth)) > 2 * PARALLEL_TOLERANCE_MM:
        raise MarginRefused(
            where,
            f"a contour is not parallel to the slices (its depth varies by {float(np.ptp(depth)):.2f} mm)",
            "Draw the margin on the axial slices of this series",
            "contour not parallel to the slices",
        )
    return abs(float(depth.mean()))


def _by_reference(contour: Contour, search: _Search) -> CtSlice | None:
    named = [entry for entry in search.index.referenced(contour.references) if entry.plane is not None]
    if not named:
        return None
    nearest = min(named, key=lambda entry: _distance(contour, entry, search.where))
    distance = _distance(contour, nearest, search.where)
    if distance > max(SAME_PLANE_MM, BETWEEN[1] * (search.steps[nearest.series_uid] or 0.0)):
        raise MarginRefused(
            search.where,
            f"a contour references slice #{nearest.source.number} but lies {distance:.2f} mm away from it",
            "Export the margins again with the series that they were drawn on",
            "contour away from the slice that it references",
        )
    return nearest


def _by_plane(contour: Contour, search: _Search) -> CtSlice | None:
    chosen: dict[str, CtSlice] = {}
    for uid, series in search.series.items():
        nearest, distance = series.near(contour)
        step = search.steps[uid]
        if distance <= SAME_PLANE_MM or (step is not None and distance < BETWEEN[0] * step):
            _distance(contour, nearest[0], search.where)
            if len(nearest) > 1:
                raise MarginRefused(
                    search.where,
                    f"{len(nearest)} slices of one series lie at a contour's plane",
                    "Keep one image of each position in the folder",
                    "several slices at one position",
                )
            chosen[uid] = nearest[0]
        elif step is not None and distance <= BETWEEN[1] * step:
            raise MarginRefused(
                search.where,
                f"a contour lies exactly between two slices ({distance:.2f} mm from the nearest, {step:.2f} mm apart)",
                "Draw it on a slice; it is not drawn on both",
                "contour exactly between two slices",
            )
    if len(chosen) > 1:
        raise MarginRefused(
            search.where,
            f"a contour lies on slices of {len(chosen)} series and does not say which it was drawn on",
            "Keep the one series in the folder that the margins belong to",
            "several series at one position",
        )
    return next(iter(chosen.values()), None)


def draw(on_slice: Mapping[CtSlice, Polygons], where: str, findings: list[Finding]) -> list[MarginOnSlice]:
    """The masks of a margin that are not empty, along the normal.

    Args:
        on_slice: Polygons [n, 2] in pixels of the turned slices, integers at pixel centres; combined by XOR.
        where: Named in errors.
        findings: A polygon that reaches beyond the picture is worth a warning.

    Raises:
        MarginRefused: When no pixel centre lies in any.
    """
    entries, empty = [], []
    for chosen in sorted(on_slice, key=CtSlice.order):
        mask = _mask(on_slice[chosen], chosen.turned_shape, "pixel_centre", chosen, where, findings)
        if mask.any():
            entries.append(MarginOnSlice.of(chosen, mask))
        else:
            empty.append(chosen)
    return _not_empty(entries, empty, where, findings)


def draw_as_stored(
    on_slice: Mapping[CtSlice, Polygons], convention: Convention, where: str, findings: list[Finding]
) -> list[MarginOnSlice]:
    """As `draw`, for polygons in pixels of the slices as they are stored, for formats that name a picture's pixels."""
    entries, empty = [], []
    for chosen in sorted(on_slice, key=CtSlice.order):
        stored = _mask(on_slice[chosen], (chosen.height, chosen.width), convention, chosen, where, findings)
        if stored.any():
            entries.append(MarginOnSlice.of(chosen, chosen.turn.apply(stored)))
        else:
            empty.append(chosen)
    return _not_empty(entries, empty, where, findings)


def _mask(
    polygons: Polygons,
    shape: tuple[int, int],
    convention: Convention,
    chosen: CtSlice,
    where: str,
    findings: list[Finding],
) -> NDArray[np.bool_]:
    if polygons_reach_outside(polygons, *shape, convention=convention):
        findings.append(
            Finding("warning", where, f"partly outside slice #{chosen.source.number}; clipped to the picture")
        )
    kept = each_once(polygons, shape, convention, where, f" on slice #{chosen.source.number}", findings)
    return polygons_to_mask(kept, *shape, convention=convention)


def each_once(
    polygons: Polygons, shape: tuple[int, int], convention: Convention, where: str, place: str, findings: list[Finding]
) -> Polygons:
    """The outlines of one margin on one picture that XOR may combine: one given twice would cut itself out.

    Args:
        polygons: Each [n, 2], (x, y) in pixels.
        shape: (height, width) of the picture.
        convention: What an integer coordinate means.
        where: Named in warnings.
        place: Which picture: ' on slice #3', or ''.
        findings: An outline that is repeated, and outlines that cross, are worth a warning.

    Returns:
        The outlines, each once, whatever point it starts at and whichever way it runs.
    """
    kept = list({_outline_key(polygon): polygon for polygon in reversed(polygons)}.values())[::-1]
    if len(kept) < len(polygons):
        rule = f"{len(polygons) - len(kept)} of {len(polygons)} outlines{place} repeat another one; each counts once"
        findings.append(Finding("warning", where, rule, "Look at the margin on the contact sheet"))
    if _cross(kept, shape, convention):
        rule = f"outlines{place} overlap in part; where two overlap is cut out, as a hole is"
        findings.append(Finding("warning", where, rule, "Look at the margin on the contact sheet, or draw one outline"))
    return kept


def _outline_key(polygon: NDArray[np.float64]) -> bytes:
    """The same for any first point, either direction, and a last point that repeats the first."""
    points = polygon + 0.0  # no -0.0
    if len(points) > 1 and bool((points[0] == points[-1]).all()):
        points = points[:-1]
    first = int(np.lexsort(points.T)[0])
    forwards = np.roll(points, -first, axis=0)
    backwards = np.roll(forwards[::-1], 1, axis=0)
    return min(forwards.tobytes(), backwards.tobytes())


def _cross(polygons: Polygons, shape: tuple[int, int], convention: Convention) -> bool:
    """Whether two outlines share pixels while neither lies within the other (not told of wildly many)."""
    if not 1 < len(polygons) <= MOST_COMPARED[1]:
        return False
    boxes = []
    for polygon in polygons:
        low = np.clip(np.floor(polygon.min(axis=0)) - 1, 0, shape[::-1]).astype(int)
        high = np.clip(np.ceil(polygon.max(axis=0)) + 1, 0, shape[::-1]).astype(int)
        boxes.append((low, high - low))
    if sum(int(size.prod()) for _, size in boxes) > MOST_COMPARED[0]:
        return False
    masks = [
        polygons_to_mask([polygon - low], int(size[1]), int(size[0]), convention=convention)
        for polygon, (low, size) in zip(polygons, boxes, strict=True)
    ]
    # Largest first: without crossings, each lies wholly within the smallest one so far that reaches there, or in none.
    innermost = np.zeros(shape, dtype=np.int32)
    for number in sorted(range(len(masks)), key=lambda n: -int(masks[n].sum())):
        low, size = boxes[number]
        below = innermost[low[1] : low[1] + size[1], low[0] : low[0] + size[0]]
        found = below[masks[number]]
        if found.size and int(found.min()) != int(found.max()):
            return True
        below[masks[number]] = number + 1
    return False


def _not_empty(
    entries: list[MarginOnSlice], empty: list[CtSlice], where: str, findings: list[Finding]
) -> list[MarginOnSlice]:
    if entries and empty:
        rule = f"its outlines enclose no pixel centre on {listed('slice', [f'#{s.source.number}' for s in empty])}"
        findings.append(Finding("warning", where, f"{rule}: left out there", "Look at the margin on the contact sheet"))
    if empty and not entries:
        raise MarginRefused(
            where,
            "the margin encloses no pixel centre inside the picture",
            "Check that it was drawn on this series",
            "empty mask",
        )
    return entries
