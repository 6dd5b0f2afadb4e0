"""Margins out of 3D Slicer's markups (.mrk.json): closed curves in millimetres, on the one CT series beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import Finding, Margin, MarginRefused, SourceFile
from lesionaug.data.sources.contours import Contour, draw, match
from lesionaug.data.sources.dicom_ct import CtSlice
from lesionaug.data.sources.dicom_file import reading
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.json_files import entries_of, is_number, read_object, shown
from lesionaug.data.sources.named_margins import Drawn, read_named
from lesionaug.data.sources.regions import MAX_OUTLINES, outline
from lesionaug.errors import DataError

SUFFIX = ".mrk.json"
MAX_BYTES = 4 << 20

# Slicer's names of its coordinate systems, and the numbers that it wrote in their place before: to DICOM's axes.
_TO_LPS = {"LPS": (1.0, 1.0, 1.0), "1": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0), "0": (-1.0, -1.0, 1.0)}

# A smooth curve through the control points may leave the polygon by this share of a pixel before that is worth a word.
SAME_CURVE = 0.5


def read_slicer(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a markups file, one for each closed curve: the polygon of its control points.

    The file names no image, frame of reference or patient, so it belongs to the one CT series in its own folder, else
    to the one below it, else to the one of the source.

    Args:
        source: The file.
        given: The slices, options and findings.

    Raises:
        DataError: When the file as a whole cannot be read, or it is not clear which series it belongs to.
    """
    findings = given.findings
    if source.size > MAX_BYTES:
        raise DataError(source.name, f"a file of markups may have at most {MAX_BYTES >> 20} MiB", "Split it")
    with reading(source.name):
        markups = entries_of(read_object(source), "markups", source.name)
        curves = [
            (number, markup)
            for number, markup in enumerate(markups, 1)
            if isinstance(markup, dict) and markup.get("type") == "ClosedCurve"
        ]
        others = Counter(
            shown(markup.get("type", "(no type)")) if isinstance(markup, dict) else "(no object)" for markup in markups
        )
        del others["ClosedCurve"]
        if len(curves) > MAX_OUTLINES:
            raise DataError(source.name, f"a file of markups may have {MAX_OUTLINES} curves", "Split it")
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())[:10])
        findings.append(Finding("warning", source.name, f"only closed curves are margins; passed over: {kinds}"))
    if not curves:
        findings.append(Finding("info", source.name, "the file holds no closed curve"))
        return
    candidates = _series_beside(source, given.slices)
    patient = candidates[0].patient

    def draw_curve(markup: dict[str, Any], number: int, where: str) -> Drawn:
        points = _points_mm(markup, where, findings)
        on_slice, missing = match([Contour(points)], candidates, given.index, where, findings, patient=patient)
        entries = draw(on_slice, where, findings)
        _note_smooth(points, min(candidates[0].spacing_mm), where, findings)
        return Drawn(entries, missing, patient)

    yield from read_named(source, given, "markup", curves, lambda markup: _names(markup, source), draw_curve)


def _series_beside(source: SourceFile, slices: Sequence[CtSlice]) -> list[CtSlice]:
    """The slices of the one CT series that a file belongs to by its place.

    Raises:
        DataError: When there are several, or slices of several patients, or none.
    """
    folder = _folder(source)
    placed = [entry for entry in slices if entry.plane is not None]
    beside = [entry for entry in placed if _folder(entry.source) == folder]
    below = [entry for entry in placed if folder in _folder(entry.source).parents]
    found = beside or below or placed
    if not found:
        raise DataError(
            source.name, "there is no CT slice with a position that the curves could lie on", "Put the series beside it"
        )
    kinds = {(entry.series_uid, entry.frame_of_reference, entry.patient) for entry in found}
    if len(kinds) > 1:
        patients = len({patient for _, _, patient in kinds})
        raise DataError(
            source.name,
            f"markups do not say which images they were drawn on, and here are {len(kinds)} CT series"
            + (f" of {patients} patients" if patients > 1 else ""),
            "Put the file into the folder of its own series, with no other series in it",
        )
    return found


def _folder(source: SourceFile) -> Path:
    return source.path.absolute().parent


def _names(markup: dict[str, Any], source: SourceFile) -> tuple[str, tuple[str, ...]]:
    """A curve's name, and what else it goes by: what its points are called without their number, and the file."""
    points = markup.get("controlPoints")
    labels = [point.get("label") for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    prefixes = dict.fromkeys(re.sub(r"[-_ ]*\d*$", "", label).strip() for label in labels if isinstance(label, str))
    written = markup.get("name")
    found = [written.strip()] if isinstance(written, str) else []
    if len(prefixes) == 1:
        found += prefixes
    file_name = source.path.name
    found.append(file_name[: -len(SUFFIX)] if file_name.lower().endswith(SUFFIX) else source.path.stem)
    found = [name for name in dict.fromkeys(found) if name]
    return (found[0], tuple(found[1:])) if found else ("", ())


def _points_mm(markup: dict[str, Any], where: str, findings: list[Finding]) -> NDArray[np.float64]:
    """The control points in mm, float64 [n, 3], in DICOM's axes.

    Raises:
        MarginRefused: When the coordinate system or unit is none that is known, or the points do not make a curve.
    """
    system = markup.get("coordinateSystem")
    if system is None:
        rule = "the file does not say whether it counts to the left or to the right; taken as LPS, as Slicer does"
        findings.append(Finding("warning", where, rule, "Look at the margin on the contact sheet"))
        system = "LPS"
    units = markup.get("coordinateUnits", "mm")
    unit = units[0] if isinstance(units, list) and units else units
    if str(system).upper() not in _TO_LPS or unit != "mm":
        raise MarginRefused(
            where,
            f"coordinates must be LPS or RAS, in mm; they are {shown(system)}, in {shown(unit)}",
            "Save the markups again",
            "coordinate system",
        )
    points = entries_of(markup, "controlPoints", where)
    if not all(isinstance(point, dict) for point in points):
        raise MarginRefused(where, "control points must be objects", "Save the markups again", "broken outline")
    defined = [point for point in points if point.get("positionStatus", "defined") == "defined"]
    if len(defined) < len(points):
        rule = f"{len(points) - len(defined)} of its {len(points)} control points have no defined position: left out"
        findings.append(Finding("warning", where, rule, "Look at the margin on the contact sheet"))
    positions = [point.get("position") for point in defined]
    if len(positions) < 3 or not all(
        isinstance(place, list) and len(place) == 3 and all(map(is_number, place)) for place in positions
    ):
        raise MarginRefused(
            where,
            "a closed curve must have three control points or more, each of three finite numbers",
            "Save the markups again",
            "broken outline",
        )
    return outline(positions, where) * _TO_LPS[str(system).upper()]


def _note_smooth(points: NDArray[np.float64], pixel_mm: float, where: str, findings: list[Finding]) -> None:
    """Say where a smooth curve through the points, which Slicer shows unless told otherwise, would leave the polygon.

    The file does not say which of the two its author saw. A circle's arc over a chord of length c that turns by t
    leaves the chord by c / 2 * tan(t / 4).
    """
    chords = np.roll(points, -1, axis=0) - points
    chords = chords[np.linalg.norm(chords, axis=1) > 0]
    if len(chords) < 3:
        return
    lengths = np.linalg.norm(chords, axis=1)
    following = np.roll(chords, -1, axis=0)
    cosines = (chords * following).sum(axis=1) / (lengths * np.roll(lengths, -1))
    turns = np.arccos(np.clip(cosines, -1, 1))
    away_mm = float((lengths / 2 * np.tan((turns + np.roll(turns, 1)) / 8)).max())
    if away_mm > SAME_CURVE * pixel_mm:
        rule = (
            "its control points are far apart: the margin is the polygon of them, which a smooth curve through them "
            f"would leave by about {away_mm:.1f} mm"
        )
        findings.append(Finding("warning", where, rule, "Resample the curve in Slicer (1 mm) if it was shown smooth"))
