"""Margins out of AIM annotations (Annotation and Image Markup 3 and 4, XML): outlines in pixels of a named image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.margins import polygons_reach_outside, polygons_to_mask
from lesionaug.data.slices import Finding, Margin, MarginOnSlice, MarginRefused, SourceFile, patient_key
from lesionaug.data.sources.contours import Reference
from lesionaug.data.sources.dicom_ct import CtSlice
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.named_margins import Drawn, read_named
from lesionaug.data.sources.regions import MAX_OUTLINES, Region, circle, ellipse, match_regions, outline
from lesionaug.data.sources.xml_files import read_xml
from lesionaug.errors import DataError

ROOTS = ("ImageAnnotationCollection", "ImageAnnotation")

_ANNOTATION = "ImageAnnotation"
_SHAPES = ("MarkupEntity", "GeometricShape")  # AIM 4, AIM 3
_POINTS = ("TwoDimensionSpatialCoordinate", "SpatialCoordinate")
_NO_SHAPE = ("TextAnnotationEntity", "TextAnnotation")
# What an annotation says its lesion is: in AIM 4 the elements' typeCode, in AIM 3 their own attributes.
_ENTITIES = (
    "ImagingPhysicalEntity",
    "ImagingObservationEntity",
    "InferenceEntity",
    "ImagingObservation",
    "AnatomicEntity",
    "Inference",
)


def read_aim(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of an AIM file, one for each annotation that has a closed outline.

    Polylines are closed (most programs do not repeat the first point), circles and ellipses are drawn exactly. Outlines
    of one annotation on one slice are united, then those with includeFlag "false" are cut out.

    Args:
        source: The file.
        given: The slices, options and findings.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    findings = given.findings
    root = read_xml(source)
    if root.tag not in ROOTS:
        raise DataError(source.name, f"AIM must have the root {' or '.join(ROOTS)}", "Export the annotations again")
    annotations = [root] if root.tag == _ANNOTATION else list(root.iter(_ANNOTATION))
    named = None if given.options.patient_by else _patient(root)

    def draw_annotation(annotation: Element, number: int, where: str) -> Drawn | None:
        regions, others = _regions(annotation, where)
        if others:
            findings.append(_passed_over(others, where, bool(regions), source, number))
        if not regions:
            return None
        on_slice, missing = match_regions(regions, given.index, where, patient=named)
        entries = _draw(on_slice, where, findings)
        return Drawn(entries, missing, _patient_of_slices(on_slice, where) if named is None else named)

    any_margin = yield from read_named(
        source, given, "annotation", enumerate(annotations, 1),
        lambda annotation: (_value(annotation, "name"), _also_named(annotation)), draw_annotation,
    )  # fmt: skip
    if not any_margin:
        findings.append(Finding("info", source.name, "the annotations hold no outline"))


def _value(element: Element, *names: str) -> str:
    """What AIM 4 writes as a child's attribute and AIM 3 as an attribute; '' where it is neither."""
    for name in names:
        child = element.find(name)
        if child is not None:
            found = next(
                (child.get(key) for key in ("value", "extension", "root", "code") if child.get(key)), child.text
            )
            return (found or "").strip()
        if element.get(name):
            return element.get(name, "").strip()
    return ""


def _also_named(annotation: Element) -> tuple[str, ...]:
    """The codes of an annotation's type and of what it shows, each as 'system:code' and by meaning."""
    coded = [annotation, *(element for name in _ENTITIES for element in annotation.iter(name))]
    names: list[str] = []
    for element in coded:
        for code in element.findall("typeCode"):
            systems = {code.get("codeSystemName"), code.get("codeSystem")} - {None, ""}
            names += [f"{system}:{code.get('code')}" for system in systems] or [code.get("code", "")]
            names += [display.get("value", "") for display in code.findall("displayName")]
        if element.get("codeValue"):
            names += [f"{element.get('codingSchemeDesignator', '')}:{element.get('codeValue')}".lstrip(":")]
            names += [element.get("codeMeaning", "")]
    return tuple(sorted({name.strip() for name in names} - {""}))


def _patient(root: Element) -> str | None:
    """Whose the annotations are, None where they do not say."""
    for element in root.iter():
        if element.tag.casefold() in ("person", "patient"):
            found = _value(element, "id")
            if found:
                return patient_key(found)
    return None


def _patient_of_slices(on_slice: dict[CtSlice, list[Region]], where: str) -> str:
    patients = {chosen.patient for chosen in on_slice}
    if len(patients) > 1:
        raise MarginRefused(
            where, "the margin lies on slices of several patients", "Separate the patients", "several patients"
        )
    return patients.pop()


def _regions(annotation: Element, where: str) -> tuple[list[Region], dict[str, int]]:
    """The closed outlines of an annotation, and how many shapes of each other kind it has."""
    found: list[Region] = []
    others: dict[str, int] = defaultdict(int)
    for shape in (element for name in _SHAPES for element in annotation.iter(name)):
        kind = shape.get("type", "").rpartition(":")[2].removeprefix("TwoDimension")
        if kind in _NO_SHAPE:
            continue
        coordinates = _coordinates(shape, where)
        if kind not in ("Polyline", "Circle", "Ellipse") or (kind == "Polyline" and len(coordinates) < 3):
            others[(kind or "(no type)")[:32]] += 1
            continue
        points = outline(coordinates, where)
        if kind == "Circle":
            points = circle(points, where)
        elif kind == "Ellipse":
            points = ellipse(points, where)
        included = _value(shape, "includeFlag").casefold()
        if included not in ("", "true", "false", "1", "0"):
            raise MarginRefused(
                where, "includeFlag must be true or false", "Export the annotations again", "includeFlag"
            )
        found.append(Region(points, _reference(shape, where), included not in ("false", "0")))
        if len(found) > MAX_OUTLINES:
            raise MarginRefused(where, f"a margin may have {MAX_OUTLINES} outlines", "Split it", "too many outlines")
    return found, others


def _coordinates(shape: Element, where: str) -> list[tuple[float, float]]:
    """(x, y) of a shape's points in the order that they state."""
    places: list[tuple[int, float, float]] = []
    for point in (element for name in _POINTS for element in shape.iter(name)):
        try:
            index = _value(point, "coordinateIndex")
            places.append((int(index or len(places)), float(_value(point, "x")), float(_value(point, "y"))))
        except ValueError:
            raise MarginRefused(
                where, "a point must have the numbers coordinateIndex, x and y", "Export it again", "broken outline"
            ) from None
    if len({index for index, _, _ in places}) != len(places):
        raise MarginRefused(where, "two points have one coordinateIndex", "Export it again", "broken outline")
    return [(x, y) for _, x, y in sorted(places)]


def _reference(shape: Element, where: str) -> Reference:
    """The image that a shape is drawn on: in AIM 4 the shape says it, in AIM 3 each of its points."""
    places = [shape, *(element for name in _POINTS for element in shape.iter(name))]
    images = {_value(place, "imageReferenceUid", "imageReferenceUID") for place in places} - {""}
    frames = {_value(place, "referencedFrameNumber") for place in places} - {""}
    if len(images) != 1 or len(frames) > 1 or not all(frame.isascii() and frame.isdigit() for frame in frames):
        raise MarginRefused(
            where, "an outline must name the one image that it is drawn on", "Export it again", "no image is named"
        )
    return Reference(images.pop(), int(frames.pop()) if frames else None)


def _passed_over(others: dict[str, int], where: str, drawn: bool, source: SourceFile, number: int) -> Finding:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())[:10])
    rule = f"only closed outlines in an image's plane are margins; passed over: {kinds}"
    return (
        Finding("warning", where, rule)
        if drawn
        else Finding("warning", where, rule, "", "no closed outline", source, number)
    )


def _draw(on_slice: dict[CtSlice, list[Region]], where: str, findings: list[Finding]) -> list[MarginOnSlice]:
    """The masks that are not empty, along the normal: what is included, without what is not."""
    entries = []
    for chosen in sorted(on_slice, key=CtSlice.order):
        regions = on_slice[chosen]
        stored: NDArray[np.bool_] = np.zeros((chosen.height, chosen.width), dtype=np.bool_)
        for region in sorted(regions, key=lambda region: not region.included):
            drawn = polygons_to_mask([region.points], *stored.shape, convention="pixel_edge")
            stored = stored | drawn if region.included else stored & ~drawn
        included = [region.points for region in regions if region.included]
        if included and polygons_reach_outside(included, *stored.shape, convention="pixel_edge"):
            findings.append(
                Finding("warning", where, f"partly outside slice #{chosen.source.number}; clipped to the picture")
            )
        if stored.any():
            entries.append(MarginOnSlice.of(chosen, chosen.turn.apply(stored)))
    if not entries:
        raise MarginRefused(
            where,
            "the margin encloses no pixel centre inside the picture",
            "Check that it was drawn on this series",
            "empty mask",
        )
    return entries
