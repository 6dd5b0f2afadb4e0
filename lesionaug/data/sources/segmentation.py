"""Margins out of DICOM segmentations (SEG): binary, fractional and label maps, placed by their own geometry.

References to source images are often missing or wrong in public SEG files, so every frame is placed by its position,
orientation and spacing, checked against the CT slice here; references only decide between series at the same place.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import (
    Finding,
    Margin,
    MarginOnSlice,
    MarginRefused,
    Plane,
    Reorientation,
    SourceFile,
    face_left_posterior,
)
from lesionaug.data.sources.contours import SAME_PLANE_MM, Reference
from lesionaug.data.sources.dicom_ct import (
    MAX_SIDE,
    PHANTOM_MANUFACTURER,
    CtSlice,
    decode,
    functional_group,
    plane_from,
)
from lesionaug.data.sources.dicom_file import numbers, read_dicom, reading, text
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.named_margins import Drawn, listed, read_named
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# A frame lies on a slice when their planes agree to SAME_PLANE_MM, and their grids to this share of a pixel.
SAME_PIXEL = 0.05
SAME_DIRECTION = 1e-3  # rad
SAME_SPACING = 1e-3  # relative

FRACTION = 0.5  # a pixel of a fractional segment belongs from here on

_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # uncompressed little endian
_NATIVE = (*_PLAIN, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # and big endian, and deflated as a whole
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_BACKGROUND = "125040"  # SegmentedPropertyTypeCode (DCM) of a label map's background


@dataclass(frozen=True, eq=False)
class _Frame:
    index: int
    plane: Plane
    turn: Reorientation
    height: int
    width: int
    segment: int | None  # None: a label map's frame, which holds all segments
    references: tuple[Reference, ...]


def read_segmentation(source: SourceFile, given: Given) -> Iterator[Margin]:
    """The margins of a segmentation object, one for each segment that has a slice here.

    Args:
        source: The file.
        given: The slices, options and findings; a segment at fault is left out, the others go on.

    Raises:
        DataError: When the file as a whole cannot be read.
    """
    where = source.name
    dataset = read_dicom(source, pixels=True)
    with reading(where):
        kind = text(dataset, "SegmentationType").upper()
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise DataError(where, f"SegmentationType '{kind[:16]}' is not supported", "Export a binary segmentation")
        patient = given.options.patient_of(dataset)
        described = dataset.get("SegmentSequence") or []
        numbers_of = [int(segment.SegmentNumber) for segment in described]
        if len(set(numbers_of)) < len(numbers_of):
            raise DataError(where, "two segments have one SegmentNumber", "Export the segmentation again")
        segments = {
            number: (text(segment, "SegmentLabel"), _codes(segment))
            for number, segment in zip(numbers_of, described, strict=True)
            if number != 0 and not _is_background(segment)
        }
        frames = _frames(dataset, kind, where, given)
        _check_pixels(dataset, kind, where)
        named = _segments_of(dataset, kind, frames, where, given)
        frame_of_reference = text(dataset, "FrameOfReferenceUID")
        series = {text(item, "SeriesInstanceUID") for item in dataset.get("ReferencedSeriesSequence") or []}
        phantom = text(dataset, "Manufacturer") == PHANTOM_MANUFACTURER
        candidates = _Candidates(given.index.in_frame(frame_of_reference, series))
    undescribed = sorted(named - (set(numbers_of) - {0}))
    if undescribed:
        rule = f"frames are of {listed('segment', undescribed)}, which SegmentSequence does not describe"
        given.findings.append(Finding("error", where, rule, "Export the segmentation again"))
    elif not segments:
        given.findings.append(Finding("warning", where, "the segmentation holds no segment", "Draw the margins first"))

    def draw_segment(_: object, number: int, with_label: str) -> Drawn:
        own = [frame for frame in frames if frame.segment in (None, number)]
        entries, missing, by_plane = _place(dataset, kind, number, own, candidates, patient, with_label, given)
        given.index.note_another_series(series, by_plane, where, given.findings)
        return Drawn(entries, missing, patient)

    yield from read_named(
        source, given, "segment", segments.items(), lambda names: names, draw_segment, names_its_class=phantom
    )


def _check_pixels(dataset: Dataset, kind: str, where: str) -> None:
    """Refuse pixel data of another length than stated, which a wrong width would shear, and a scale that is none.

    Raises:
        DataError: What is said.
    """
    if dataset.get("PixelData") is None:
        raise DataError(where, "the segmentation lacks its PixelData", "Export the segmentation again")
    if text(dataset.file_meta, "TransferSyntaxUID") in _NATIVE:
        rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
        allocated, found = int(dataset.BitsAllocated), len(dataset.PixelData)
        size = -(-rows * columns * count * allocated // 8)
        if found not in (size, size + size % 2):  # a byte to make it even
            raise DataError(
                where,
                f"{count} frames of {rows} x {columns} pixels of {allocated} bits must have {size} bytes of pixel data "
                f"(no padding between frames), got {found}",
                "Export the segmentation again",
            )
    most = text(dataset, "MaximumFractionalValue")
    if kind == "FRACTIONAL" and not (re.fullmatch(r"\d{1,5}", most) and 1 <= int(most) <= 255):
        raise DataError(
            where,
            f"MaximumFractionalValue must be 1 .. 255, got '{most[:12]}'",
            "Export the segmentation again, or as a binary one",
        )


def _segments_of(dataset: Dataset, kind: str, frames: list[_Frame], where: str, given: Given) -> set[int]:
    """The segment numbers that frames are of; those of a label map are its values without 0 and its padding."""
    if kind != "LABELMAP":
        return {frame.segment for frame in frames if frame.segment is not None}
    values: set[int] = set()
    for frame in frames:
        given.step(frame.index, len(frames), "reading frames")
        with contextlib.suppress(DataError):  # said of every segment that is drawn from it
            values.update(np.unique(_stored(dataset, frame.index, where)).tolist())
    return values - {0, dataset.get("PixelPaddingValue")}


def _is_background(segment: Dataset) -> bool:
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return any(text(code, "CodeValue") == _BACKGROUND for code in codes)


def _codes(segment: Dataset) -> tuple[str, ...]:
    """What else a segment is called: its category and type, each as 'scheme:value' and by meaning."""
    names = []
    for keyword in ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"):
        for code in segment.get(keyword) or []:
            names += [f"{text(code, 'CodingSchemeDesignator')}:{text(code, 'CodeValue')}", text(code, "CodeMeaning")]
    return tuple(name for name in names if name.strip(":"))


class _Candidates:
    """Slices that a frame without a usable reference may lie on, found by depth."""

    def __init__(self, slices: list[CtSlice]) -> None:
        self.slices = slices
        planes = [entry.plane for entry in slices if entry.plane is not None]
        self._positions = np.array([plane.position for plane in planes]).reshape(-1, 3)
        self._normals = np.array([plane.normal for plane in planes]).reshape(-1, 3)

    def at(self, frame: _Frame) -> list[CtSlice]:
        """Those at the frame's depth."""
        away = np.abs(((frame.plane.position - self._positions) * self._normals).sum(axis=1))
        return [self.slices[i] for i in np.flatnonzero(away <= SAME_PLANE_MM)]


def _frames(dataset: Dataset, kind: str, where: str, given: Given) -> list[_Frame]:
    """Every frame with its turned plane.

    Raises:
        DataError: When a frame does not say where it lies, or is not axial.
    """
    height, width, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and count > 0):
        raise DataError(where, f"frames must have 1 .. {MAX_SIDE} rows and columns", "Export the segmentation again")
    if len(dataset.get("PerFrameFunctionalGroupsSequence") or []) != count:
        raise DataError(where, f"{count} frames are stated but not described", "Export the segmentation again")
    frames = []
    for index in range(count):
        given.step(index, count, "reading frames")
        position_of, orientation_of, measures = (
            functional_group(dataset, index, keyword)
            for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        if position_of is None or orientation_of is None or measures is None:
            raise DataError(
                where,
                f"frame {index + 1} lacks its position, orientation or spacing in the patient",
                "Export the segmentation in patient coordinates",
            )
        position = numbers(position_of, "ImagePositionPatient", 3, where, "ImagePositionPatient")
        directions = numbers(orientation_of, "ImageOrientationPatient", 6, where, "ImageOrientationPatient")
        spacing = numbers(measures, "PixelSpacing", 2, where, "PixelSpacing")
        if position is None or directions is None or spacing is None or not bool((spacing > 0).all()):
            raise DataError(where, f"frame {index + 1} lacks its geometry", "Export the segmentation again")
        stored = plane_from(position, directions, (float(spacing[1]), float(spacing[0])), where)
        plane, turn = face_left_posterior(stored, height, width, where)
        segment = None
        if kind != "LABELMAP":
            identification = functional_group(dataset, index, "SegmentIdentificationSequence")
            if identification is None:
                raise DataError(where, f"frame {index + 1} names no segment", "Export the segmentation again")
            segment = int(identification.ReferencedSegmentNumber)
        derivations = dataset.PerFrameFunctionalGroupsSequence[index].get("DerivationImageSequence") or []
        references = tuple(
            reference
            for derivation in derivations
            for image in derivation.get("SourceImageSequence") or []
            for reference in Reference.all_of(image)
        )
        frames.append(_Frame(index, plane, turn, height, width, segment, references))
    return frames


def _place(
    dataset: Dataset,
    kind: str,
    number: int,
    frames: list[_Frame],
    candidates: _Candidates,
    patient: str,
    where: str,
    given: Given,
) -> tuple[list[MarginOnSlice], int, set[CtSlice]]:
    """The masks of one segment on the slices present, how many of its frames lie on none, and slices found by plane."""
    if not candidates.slices and not any(given.index.referenced(frame.references) for frame in frames):
        raise MarginRefused(
            where,
            "the segmentation matches no CT slice here, neither by frame of reference nor by SOP instance UID",
            "Put the CT series that it was drawn on into the folder",
            "no slice of its frame of reference",
        )
    masks: dict[CtSlice, MarginOnSlice] = {}
    by_plane: set[CtSlice] = set()
    missing = 0
    for frame in frames:
        given.step(0, 0, "drawing margins")
        named = [s for s in given.index.referenced(frame.references) if s.plane is not None and _same_depth(frame, s)]
        here = named or candidates.at(frame)
        if not here:
            missing += 1
            continue
        if len(here) > 1:
            raise MarginRefused(
                where,
                f"a frame lies on {len(here)} CT slices and does not say which it was drawn on",
                "Keep the one series in the folder that the segmentation belongs to",
                "several slices at one position",
            )
        chosen = here[0]
        if not named:
            by_plane.add(chosen)
        given.index.check_patient(chosen, patient, where)
        left, top = _offset(frame, chosen, where)
        drawn = frame.turn.apply(_frame_mask(dataset, kind, number, frame.index, where))
        if not drawn.any():
            continue
        mask, clipped = _paste(drawn, left, top, chosen.turned_shape)
        if clipped:
            given.findings.append(
                Finding("warning", where, f"partly outside slice #{chosen.source.number}; clipped to the picture")
            )
        if chosen in masks:
            mask |= masks[chosen].mask
        if mask.any():
            masks[chosen] = MarginOnSlice.of(chosen, mask)
    return [masks[chosen] for chosen in sorted(masks, key=CtSlice.order)], missing, by_plane


def _same_depth(frame: _Frame, chosen: CtSlice) -> bool:
    assert chosen.plane is not None
    return abs(float((frame.plane.position - chosen.plane.position) @ chosen.plane.normal)) <= SAME_PLANE_MM


def _offset(frame: _Frame, chosen: CtSlice, where: str) -> tuple[int, int]:
    """(x, y) of the frame's first pixel in the slice, in whole pixels.

    Raises:
        MarginRefused: When the two grids differ.
    """
    plane = chosen.plane
    assert plane is not None
    turned = max(
        float(np.linalg.norm(frame.plane.right - plane.right)), float(np.linalg.norm(frame.plane.down - plane.down))
    )
    ratio = np.array(frame.plane.spacing_mm) / np.array(plane.spacing_mm)
    xy = plane.to_pixels(frame.plane.position[None])[0][0]
    whole = np.rint(xy)
    if (
        turned > SAME_DIRECTION
        or bool((abs(ratio - 1) > SAME_SPACING).any())
        or bool((abs(xy - whole) > SAME_PIXEL).any())
    ):
        raise MarginRefused(
            where,
            f"its pixel grid is not that of slice #{chosen.source.number} (spacing, turn, or part of a pixel)",
            "Export it on the grid of the CT series",
            "pixel grid differs from the slice's",
        )
    return int(whole[0]), int(whole[1])


def _frame_mask(dataset: Dataset, kind: str, number: int, index: int, where: str) -> NDArray[np.bool_]:
    """One frame of one segment as stored, bool [Rows, Columns]."""
    stored = _stored(dataset, index, where)
    if kind == "LABELMAP":
        return np.asarray(stored == number)
    if kind == "FRACTIONAL":
        most = int(dataset.MaximumFractionalValue)
        if int(stored.max()) > most:
            raise DataError(
                where,
                f"stored values must not exceed MaximumFractionalValue {most}, got {int(stored.max())}",
                "Export the segmentation again, or as a binary one",
            )
        return np.asarray(stored >= FRACTION * most)
    return np.asarray(stored != 0)


def _stored(dataset: Dataset, index: int, where: str) -> NDArray[Any]:
    """The values of one frame, [Rows, Columns]."""
    if text(dataset.file_meta, "TransferSyntaxUID") == _DEFLATED_FRAMES:
        stored = _inflated(dataset, index, where)
    elif int(dataset.BitsAllocated) == 1:
        stored = _bits(dataset, index, where)
    else:
        stored = decode(dataset, where, frame=index)
    if stored.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise DataError(where, "a decoded frame is not Rows x Columns", "Export the segmentation again")
    return stored


def _bits(dataset: Dataset, index: int, where: str) -> NDArray[Any]:
    """One frame of one bit a pixel; frames follow each other without padding, so one may start within a byte.

    (pydicom 3.0.2 decodes all frames at once correctly, but a single one only where frames start on a byte.)
    """
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if syntax == _RLE:
        raise DataError(where, "one-bit pixels in RLE Lossless are not supported", "Export it uncompressed")
    if syntax not in _PLAIN:
        return np.asarray(decode(dataset, where, frame=index))
    size = int(dataset.Rows) * int(dataset.Columns)
    first, last = index * size, (index + 1) * size
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)[first // 8 : -(-last // 8)]
    bits = np.unpackbits(packed, bitorder="little")[first % 8 :]
    return bits[:size].reshape(int(dataset.Rows), int(dataset.Columns))


def _inflated(dataset: Dataset, index: int, where: str) -> NDArray[Any]:
    """One frame in the transfer syntax Deflated Image Frame Compression, which pydicom 3.0.2 does not decode."""
    from pydicom.encaps import get_frame

    rows, columns, allocated = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    if allocated not in (1, 8, 16):
        raise DataError(where, f"BitsAllocated must be 1, 8 or 16, got {allocated}", "Export the segmentation again")
    size = -(-rows * columns * allocated // 8)
    deflated = get_frame(dataset.PixelData, index, number_of_frames=int(dataset.NumberOfFrames))
    values = zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, size + 2)
    if len(values) not in (size, size + 1):  # a byte to make it even
        raise DataError(where, f"frame {index + 1} does not inflate to Rows x Columns", "Export the segmentation again")
    if allocated == 1:
        packed = np.frombuffer(values, dtype=np.uint8, count=size)
        return np.unpackbits(packed, count=rows * columns, bitorder="little").reshape(rows, columns)
    return np.frombuffer(values, dtype=f"<u{allocated // 8}", count=rows * columns).reshape(rows, columns)


def _paste(drawn: NDArray[np.bool_], left: int, top: int, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], bool]:
    """The mask on the slice's grid, and whether some of it fell outside."""
    mask = np.zeros(shape, dtype=np.bool_)
    rows, columns = np.nonzero(drawn)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    mask[rows[inside], columns[inside]] = True
    return mask, not bool(inside.all())
