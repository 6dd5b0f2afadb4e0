"""CT slices out of DICOM files, in Hounsfield units: read carefully, or refused with a reason, never guessed.

pydicom's own helpers hand back *stored* values without a word where the rescale tags are missing, accept 'abc' as a
pixel spacing, and raise a dozen kinds of exception on broken files. Here every number is checked and every failure is a
`DataError` that names the file, the rule and the fix.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionaug.data.slices import (
    HU_CLIP,
    HuArray,
    Plane,
    Reorientation,
    Slice,
    SourceFile,
    clip_hu,
    face_left_posterior,
    picture_hash,
)
from lesionaug.data.sources.codestreams import WITH_HEADERS, loss
from lesionaug.data.sources.dicom_file import EXPORT_AGAIN, is_nested, numbers, read_dicom, reading, text
from lesionaug.data.sources.given import ReadOptions, no_step
from lesionaug.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"
MULTI_FRAME_CT = (ENHANCED_CT, LEGACY_CONVERTED_ENHANCED_CT)
RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"

PHANTOM_MANUFACTURER = "lesionaug phantom"

MAX_SIDE = 4096  # pixels; the largest CT matrices are 2048
MAX_CT_FILE_BYTES = 256 << 20
MAX_FRAMES = 1 << 16
MOST_HU = 40_000  # the extended scale of some scanners ends at 30,710
WIDEST_MM = 1500.0  # of a slice; the widest fields of view have 800 mm, and some reconstructions are padded
FARTHEST_MM = 1e6  # of a picture from the origin of the patient's coordinates

# Codecs by transfer syntax: pydicom brings the uncompressed ones and RLE, these plugins the rest.
_CODEC_PACKAGES = {
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_ALWAYS_LOSSY = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 52, 53, 54, 55, 56, 81)}
# Padding up to here is air or darker; above, the value may also be a tissue's.
_AIR_HU = -900
# Pixels of one piece of padding at the border; fewer may be noise in a picture that has the value by chance.
_LEAST_PADDING = 16

_WITHOUT_LOSS = "Export the series uncompressed or lossless"
_LOSSY_OR_NOT = {"1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"}


# A CT object with none of these holds no picture; one with some of them has lost it.
_OF_A_PICTURE = ("Rows", "Columns", "BitsAllocated", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "KVP")


def why_skipped(dataset: Dataset, where: str) -> str | None:
    """Why a DICOM object is no CT slice and no margin ('localizer', 'dose report', ...), None where it is one.

    Raises:
        DataError: For what looks like a CT slice and says that it is something unknown.
    """
    sop_class = text(dataset, "SOPClassUID")
    if sop_class == CT_IMAGE or sop_class in MULTI_FRAME_CT:
        if _says_localizer(dataset, "ImageType"):
            return "a localizer, not an axial slice"
        if not any(keyword in dataset for keyword in _OF_A_PICTURE):
            return "a CT object without a picture"
        return None
    if sop_class in (RT_STRUCTURE_SET, SEGMENTATION, LABEL_MAP_SEGMENTATION):
        return None
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    name = UID(sop_class, IGNORE).name
    if name == sop_class:  # manufacturers have classes of their own, for raw data and protocols
        if text(dataset, "Modality") == "CT" and ("Rows" in dataset or "PixelData" in dataset):
            raise DataError(where, "a CT picture's SOP class must be one that DICOM knows", EXPORT_AGAIN)
        return "an object of a private SOP class"
    return f"{name}, neither a CT slice nor a margin"


def _says_localizer(dataset: Dataset, keyword: str) -> bool:
    kind = dataset.get(keyword) or []
    parts = [] if is_nested(kind) else [kind] if isinstance(kind, str) else kind
    return "LOCALIZER" in [str(part).upper() for part in parts]


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """A functional group of a frame (from 0): its own, else the one that all share, None where neither is there."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for place in (*per_frame[frame : frame + 1], *shared[:1]):
        found = place.get(keyword)
        if found:
            group: Dataset = found[0]
            return group
    return None


def rescale(dataset: Dataset, where: str, frame: int = 0) -> tuple[float, float]:
    """(slope, intercept) that turn stored values into HU: from the top level, the frame's group, or the shared group.

    Raises:
        DataError: When they are nowhere, are no finite numbers, the slope is not above 0, or two places disagree.
    """
    found = []
    for place in _rescale_places(dataset, frame):
        slope = numbers(place, "RescaleSlope", 1, where, "RescaleSlope")
        intercept = numbers(place, "RescaleIntercept", 1, where, "RescaleIntercept")
        if slope is not None and intercept is not None:
            if not 0 < slope[0] < 1e6 or abs(intercept[0]) > 1e6:
                raise DataError(
                    where,
                    f"RescaleSlope must be above 0, both plausible; got slope {slope[0]:g}, intercept {intercept[0]:g}",
                    "Correct the tags",
                )
            found.append((float(slope[0]), float(intercept[0])))
    if any(pair != found[0] for pair in found):
        (slope_top, intercept_top), (slope_frame, intercept_frame) = found
        raise DataError(
            where,
            f"the top level and the functional groups must state one scale, they say slope {slope_top:g}, intercept "
            f"{intercept_top:g} and slope {slope_frame:g}, intercept {intercept_frame:g}",
            "Remove the rescale tags that are wrong (an enhanced CT keeps them in its functional groups)",
        )
    if found:
        return found[0]
    if "ModalityLUTSequence" in dataset:
        raise DataError(where, "a modality look-up table is no Hounsfield scale", "Export the original series")
    raise DataError(
        where,
        "RescaleSlope and RescaleIntercept are missing, so the stored values mean nothing in HU",
        "Export the original series, with its rescale tags",
    )


def _rescale_places(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    yield dataset
    transformation = functional_group(dataset, frame, "PixelValueTransformationSequence")
    if transformation is not None:
        yield transformation


def _rescale_type(dataset: Dataset, frame: int) -> str:
    return next((kind for place in _rescale_places(dataset, frame) if (kind := text(place, "RescaleType").upper())), "")


def pixel_spacing_mm(dataset: Dataset, where: str) -> tuple[float, float]:
    """(s_x, s_y) from PixelSpacing, which DICOM writes as row spacing (y), then column spacing (x).

    Raises:
        DataError: When it is missing, no two finite numbers, or outside 0.01 .. 20 mm.
    """
    spacing = numbers(dataset, "PixelSpacing", 2, where, "PixelSpacing")
    if spacing is None:
        raise DataError(where, "PixelSpacing is missing, so lesions have no size", "Export the original series")
    if not bool(((spacing >= 0.01) & (spacing <= 20)).all()):
        raise DataError(
            where,
            f"PixelSpacing must lie in 0.01 .. 20 mm, got {spacing[0]:g} and {spacing[1]:g}",
            "Correct the tag",
        )
    return float(spacing[1]), float(spacing[0])


def stored_plane(
    position_of: Dataset, orientation_of: Dataset, spacing_mm: tuple[float, float], where: str
) -> Plane | None:
    """The plane of a picture as stored, None where position or orientation is missing from where they are stated.

    Raises:
        DataError: When they are no finite numbers, or the directions are no perpendicular unit vectors.
    """
    position = numbers(position_of, "ImagePositionPatient", 3, where, "ImagePositionPatient")
    directions = numbers(orientation_of, "ImageOrientationPatient", 6, where, "ImageOrientationPatient")
    if position is None or directions is None:
        return None
    if float(np.abs(position).max()) > FARTHEST_MM:
        raise DataError(where, "ImagePositionPatient lies more than a kilometre away", "Correct the tag")
    return plane_from(position, directions, spacing_mm, where)


def plane_from(
    position: NDArray[np.float64], directions: NDArray[np.float64], spacing_mm: tuple[float, float], where: str
) -> Plane:
    """The plane with DICOM's six direction numbers; they are rounded to three digits in some files, so normalise.

    Raises:
        DataError: When the directions are no perpendicular unit vectors to within 1e-2.
    """
    right, down = directions[:3], directions[3:]
    lengths = np.array([np.linalg.norm(right), np.linalg.norm(down)])
    if bool((abs(lengths - 1) > 1e-2).any()) or abs(float(right @ down)) > 1e-2:
        raise DataError(
            where, "ImageOrientationPatient must be two perpendicular unit vectors", "Export the original series"
        )
    return Plane(position, right / lengths[0], down / lengths[1], spacing_mm)


@dataclass(frozen=True, eq=False)
class CtSlice:
    """A CT slice whose file was read once and found whole; its pixels are read again when a lesion needs them.

    Attributes:
        source: The file.
        plane: Where the turned picture lies, None where the file does not say.
        turn: From the stored to the turned picture.
        height: Rows as stored.
        width: Columns as stored.
        spacing_mm: (s_x, s_y) of the turned picture.
        step_mm: The smaller of SpacingBetweenSlices and SliceThickness, None where neither is there.
        frame: The picture's place in a multi-frame file, from 0.
        multi_frame: Whether the file may hold several.
        sop_uid: SOP instance UID.
        series_uid: Series instance UID.
        frame_of_reference: Frame of reference UID, '' where absent.
        patient: Patient id, trimmed and casefolded.
        phantom: Whether `lesionaug phantom` made it.
        notes: Things worth a warning.
        hash: `picture_hash` of the turned picture.
        burned_in_allowed: Whether the user has looked at the text in it.
    """

    source: SourceFile
    plane: Plane | None
    turn: Reorientation
    height: int
    width: int
    spacing_mm: tuple[float, float]
    step_mm: float | None
    sop_uid: str
    series_uid: str
    frame_of_reference: str
    patient: str
    phantom: bool
    notes: tuple[str, ...]
    hash: str = ""
    frame: int = 0
    multi_frame: bool = False
    burned_in_allowed: bool = False

    def order(self) -> tuple[str, float, int, int]:
        """Sorts slices: by series, then along the normal, then as the files come."""
        depth = 0.0 if self.plane is None else self.plane.depth_mm
        return self.series_uid, depth, self.source.number, self.frame

    @property
    def turned_shape(self) -> tuple[int, int]:
        """(height, width) after turning."""
        return (self.width, self.height) if self.turn.transpose else (self.height, self.width)

    def load(self) -> Slice:
        """Read the pixels in HU, turned.

        Raises:
            DataError: When they cannot be read.
        """
        where = self.source.name
        with reading(where):
            if self.multi_frame:
                status = self.source.path.stat()
                dataset = last_multi_frame(self.source, status.st_mtime_ns, status.st_size)
            else:
                dataset = read_dicom(self.source, pixels=True)
            frame = self.frame if self.multi_frame else None
            hu = self.turn.apply(hounsfield(dataset, where, frame, burned_in_allowed=self.burned_in_allowed))
        return Slice(self.source, hu, self.spacing_mm, self.phantom)


@functools.lru_cache(maxsize=1)
def last_multi_frame(source: SourceFile, modified_ns: int, size: int) -> Dataset:
    """A multi-frame file; the last one is kept, for many lesions lie in one file (`cache_clear` lets go of it)."""
    return read_dicom(source, pixels=True)


def read_ct_slices(
    source: SourceFile, dataset: Dataset, options: ReadOptions, step: Callable[[int, int, str], None] = no_step
) -> list[CtSlice]:
    """Every slice of a CT object, one for each frame of an enhanced one; none for any other object.

    Args:
        source: The file.
        dataset: Its whole content, from `read_dicom(source, pixels=True)`.
        options: Which tag tells patients apart, and whose burned-in text was looked at.
        step: Called as (done, total, text) after each frame.

    Raises:
        DataError: For the first fault found.
    """
    sop_class = text(dataset, "SOPClassUID")
    if sop_class == CT_IMAGE:
        return [read_ct_slice(source, dataset, options)]
    if sop_class not in MULTI_FRAME_CT:
        return []
    with reading(source.name):
        count = _num_frames(dataset, source.name)
        slices = []
        for frame in range(count):
            kind = functional_group(dataset, frame, "CTImageFrameTypeSequence")
            if kind is None or not _says_localizer(kind, "FrameType"):
                slices.append(read_ct_slice(source, dataset, options, frame))
            step(frame + 1, count, "reading slices")
    if not slices:
        raise DataError(source.name, "every frame is a localizer, not an axial slice", "Leave this file out")
    return slices


def _num_frames(dataset: Dataset, where: str) -> int:
    """The number of frames of an enhanced object, each of which must be described."""
    stated = text(dataset, "NumberOfFrames")
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if stated != str(described) or not 0 < described <= MAX_FRAMES:
        raise DataError(
            where,
            f"NumberOfFrames must be 1 .. {MAX_FRAMES} and each frame described, "
            f"got '{stated[:12]}' and {described} descriptions",
            EXPORT_AGAIN,
        )
    return described


def read_ct_slice(
    source: SourceFile,
    dataset: Dataset,
    options: ReadOptions = ReadOptions(),  # noqa: B008
    frame: int | None = None,
) -> CtSlice:
    """Check everything a CT slice needs, decode its pixels once, and keep what margins are matched with.

    Args:
        source: The file.
        dataset: Its whole content, from `read_dicom(source, pixels=True)`.
        options: Which tag tells patients apart, and whose burned-in text was looked at.
        frame: The frame of an enhanced CT, from 0, with its geometry and scale in functional groups; None for CT Image
            Storage, which has them at its top level.

    Raises:
        DataError: For the first fault found.
    """
    allowed = any(fnmatch.fnmatchcase(source.name, pattern) for pattern in options.allow_burned_in)
    where = source.name if frame is None else f"{source.name} frame {frame + 1}"
    with reading(where):
        measures, position, orientation = _geometry(dataset, frame)
        spacing = pixel_spacing_mm(measures, where)
        notes: list[str] = []
        hu = hounsfield(dataset, where, frame, burned_in_allowed=allowed, notes=notes)
        height, width = int(dataset.Rows), int(dataset.Columns)
        side_mm = max(height * spacing[1], width * spacing[0])
        if side_mm > WIDEST_MM:
            rule = (
                f"a slice may be at most {WIDEST_MM / 1000:g} m wide and high, PixelSpacing makes {side_mm / 1000:.3g}"
            )
            raise DataError(where, f"{rule} m", "Correct the tag")
        plane = stored_plane(position, orientation, spacing, where)
        turn = Reorientation()
        if plane is None:
            notes.append("position or orientation is missing: only margins in pixels fit, taken as it is stored")
        else:
            plane, turn = face_left_posterior(plane, height, width, where)
            spacing = plane.spacing_mm
        if _rescale_type(dataset, frame or 0) == "US":
            notes.append("RescaleType is 'US' (unspecified); slope and intercept are taken to give HU")
        return CtSlice(
            source=source,
            plane=plane,
            turn=turn,
            height=height,
            width=width,
            spacing_mm=spacing,
            step_mm=_step_mm(measures, where),
            sop_uid=text(dataset, "SOPInstanceUID"),
            series_uid=text(dataset, "SeriesInstanceUID"),
            frame_of_reference=text(dataset, "FrameOfReferenceUID"),
            patient=options.patient_of(dataset),
            phantom=text(dataset, "Manufacturer") == PHANTOM_MANUFACTURER,
            notes=tuple(notes),
            hash=picture_hash(turn.apply(hu)),
            frame=frame or 0,
            multi_frame=frame is not None,
            burned_in_allowed=allowed,
        )


def _geometry(dataset: Dataset, frame: int | None) -> tuple[Dataset, Dataset, Dataset]:
    """Where spacing, position and orientation are stated; an empty data set for what is missing."""
    if frame is None:
        return dataset, dataset, dataset
    from pydicom import Dataset

    measures, position, orientation = (
        functional_group(dataset, frame, keyword) or Dataset()
        for keyword in ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")
    )
    return measures, position, orientation


def _step_mm(dataset: Dataset, where: str) -> float | None:
    steps = []
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        try:
            value = numbers(dataset, keyword, 1, where, keyword)
        except DataError:
            continue  # not needed for a slice; a margin off its plane is then held to the gap between slices
        if value is not None and abs(value[0]) > 1e-3:
            steps.append(abs(float(value[0])))
    return min(steps, default=None)


def hounsfield(
    dataset: Dataset,
    where: str,
    frame: int | None = None,
    *,
    burned_in_allowed: bool = False,
    notes: list[str] | None = None,
) -> HuArray:
    """The picture in HU as stored (not turned), clipped to -1024 .. 3071, which also makes air of any padding value.

    MONOCHROME1 says how to display the values, not what they mean: HU are never inverted.

    Args:
        dataset: The file's content.
        where: Named in errors.
        frame: Of a multi-frame object, from 0; None for a file of one picture.
        burned_in_allowed: Whether the user has looked at the text in it.
        notes: Takes things worth a warning.

    Raises:
        DataError: When the pixels are lossy, coloured, burned in, too large, not decodable or without a HU scale.
    """
    _check_pixel_format(dataset, where, multi_frame=frame is not None)
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not burned_in_allowed:
        raise DataError(
            where,
            "text is burned into the picture and may name the patient",
            "Export the original series; or look at the picture, and give --allow-burned-in FILE if it names nobody",
        )
    rescale_type = _rescale_type(dataset, frame or 0)
    if rescale_type not in ("", "HU", "US", "HU_MOD"):
        raise DataError(
            where,
            f"the rescaled values must be Hounsfield units, RescaleType is '{rescale_type[:16]}'",
            "Export CT in HU",
        )
    slope, intercept = rescale(dataset, where, frame or 0)
    _check_codestream(dataset, where, frame)
    stored = decode(dataset, where, frame)
    _check_bits(dataset, stored, where, frame)
    hu = stored.astype(np.float64) * slope + intercept
    padding = _padding(dataset, stored, (slope, intercept), where)
    if padding.any():
        shown = float(hu[padding].max())
        hu[padding] = HU_CLIP[0]
        if notes is not None and shown < HU_CLIP[1]:
            notes.append(f"the declared padding value is {shown:g} HU; where it reaches the border it is taken as air")
    least, largest = float(hu.min()), float(hu.max())
    if largest > MOST_HU:
        raise DataError(
            where,
            f"values must lie below {MOST_HU} HU, got {largest:.0f}: sign, slope or padding tags are wrong",
            "Export the original series",
        )
    if least < largest and (largest < HU_CLIP[0] or least > HU_CLIP[1]):
        raise DataError(
            where,
            f"the values are {least:.0f} .. {largest:.0f} HU, none within {HU_CLIP[0]} .. {HU_CLIP[1]}: the rescale "
            "tags are wrong",
            "Export the original series",
        )
    return clip_hu(hu)


def _padding(dataset: Dataset, stored: NDArray[Any], scale: tuple[float, float], where: str) -> NDArray[np.bool_]:
    """The declared padding that would not be taken for air, bool [height, width].

    Padding that would look like metal is padding wherever it lies. One that is a tissue's value (0, say) may be tissue
    as well, and some files declare a value that they do not use: it is padding in pieces that reach the border.
    """
    nothing: NDArray[np.bool_] = np.zeros(stored.shape, dtype=bool)
    padding = numbers(dataset, "PixelPaddingValue", 1, where, "PixelPaddingValue")
    if padding is None:
        return nothing
    limit = numbers(dataset, "PixelPaddingRangeLimit", 1, where, "PixelPaddingRangeLimit")
    low, high = sorted((padding[0], padding[0] if limit is None else limit[0]))
    if high * scale[0] + scale[1] <= _AIR_HU:
        return nothing
    found: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    if low * scale[0] + scale[1] >= HU_CLIP[1] or not found.any():
        return found
    from scipy import ndimage

    pieces, count = ndimage.label(found)
    at_border = np.zeros(count + 1, dtype=bool)
    for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
        at_border[edge] = True
    at_border &= np.bincount(pieces.ravel(), minlength=count + 1) >= _LEAST_PADDING
    at_border[0] = False
    taken: NDArray[np.bool_] = at_border[pieces]
    return taken


def _check_pixel_format(dataset: Dataset, where: str, *, multi_frame: bool) -> None:
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelData"):
        if dataset.get(keyword) is None:
            raise DataError(where, f"a CT slice needs {keyword}, this one lacks it", EXPORT_AGAIN)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DataError(where, f"Rows and Columns must be 1 .. {MAX_SIDE}, got {rows} and {columns}", EXPORT_AGAIN)
    if len(dataset.PixelData) > MAX_CT_FILE_BYTES and not multi_frame:
        raise DataError(where, "the pixel data of one slice may have at most 256 MiB", EXPORT_AGAIN)
    samples, kind = int(dataset.get("SamplesPerPixel") or 1), text(dataset, "PhotometricInterpretation").upper()
    if samples != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(
            where,
            f"a CT slice must be grey (MONOCHROME1 or 2), this one is '{kind[:16]}'",
            "Export the original series",
        )
    frames = text(dataset, "NumberOfFrames")
    if frames not in ("", "0", "1") and not multi_frame:
        raise DataError(where, "several frames in one CT Image file are not supported", "Export one file a slice")
    if int(dataset.BitsAllocated) not in (8, 16, 32) or int(dataset.PixelRepresentation) not in (0, 1):
        raise DataError(where, f"BitsAllocated must be 8, 16 or 32, got {dataset.BitsAllocated}", EXPORT_AGAIN)
    _check_length(dataset, where, rows, columns)
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if _says_lossy(dataset) or syntax in _ALWAYS_LOSSY or (syntax in _LOSSY_OR_NOT and not _says_lossless(dataset)):
        raise DataError(where, "the picture was compressed with loss, which can move HU by thousands", _WITHOUT_LOSS)


def _says_lossless(dataset: Dataset) -> bool:
    return text(dataset, "LossyImageCompression") in ("00", "0")


def _says_lossy(dataset: Dataset) -> bool:
    """Whether the tags say so; a ratio or a method counts where the flag itself is not there."""
    if text(dataset, "LossyImageCompression") in ("01", "1"):
        return True
    if _says_lossless(dataset):
        return False
    if text(dataset, "LossyImageCompressionMethod"):
        return True
    ratio = dataset.get("LossyImageCompressionRatio")  # one for each time that it was compressed
    stated = [] if ratio is None or is_nested(ratio) else [ratio] if isinstance(ratio, (str, float)) else ratio
    return any(float(value) > 1 for value in stated if value not in ("", None))


def _check_codestream(dataset: Dataset, where: str, frame: int | None) -> None:
    """Refuse compressed pixels that lost something though their transfer syntax or a tag says that they did not."""
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if syntax not in WITH_HEADERS:
        return
    from pydicom.encaps import get_frame

    tables = (dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths"))
    with reading(where):
        content = get_frame(
            dataset.PixelData,
            frame or 0,
            number_of_frames=int(dataset.get("NumberOfFrames") or 1),
            extended_offsets=tables if all(tables) else None,
        )
    how = loss(syntax, content)
    if how:
        raise DataError(where, f"the picture was compressed with loss though it claims none: {how}", _WITHOUT_LOSS)


def _check_length(dataset: Dataset, where: str, rows: int, columns: int) -> None:
    """Refuse uncompressed pixels that are a line or more longer than stated: a wrong width would shear the picture."""
    if text(dataset.file_meta, "TransferSyntaxUID") not in _UNCOMPRESSED:
        return
    sample = int(dataset.BitsAllocated) // 8
    frames = int(dataset.get("NumberOfFrames") or 1)
    excess = len(dataset.PixelData) - rows * columns * sample * frames
    if excess > 1 and excess >= min(rows, columns) * sample:
        raise DataError(
            where,
            f"the pixel data are {excess} bytes longer than {frames} frames of {rows} x {columns} pixels",
            EXPORT_AGAIN,
        )


def decode(dataset: Dataset, where: str, frame: int | None = None, *, clear_unused_bits: bool = True) -> NDArray[Any]:
    """The stored values of a picture, or of one frame of it.

    Raises:
        DataError: When the codec is missing (with the pip line) or the data cannot be decoded.
    """
    from pydicom.config import IGNORE
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if not syntax:
        raise DataError(where, "the file does not state its transfer syntax", EXPORT_AGAIN)
    with reading(where):
        name = UID(syntax, IGNORE).name
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            raise DataError(
                where,
                f"pixels in the transfer syntax {name} are not supported",
                "Export uncompressed or lossless",
            ) from None
        if not decoder.is_available:
            package = _CODEC_PACKAGES.get(str(syntax), "python-gdcm pylibjpeg pylibjpeg-openjpeg pyjpegls")
            raise DataError(where, f"no decoder for {name} is installed", f"pip install {package}")
        return pixel_array(dataset, index=frame, correct_unused_bits=clear_unused_bits)


def _check_bits(dataset: Dataset, stored: NDArray[Any], where: str, frame: int | None) -> None:
    """Refuse a picture of another shape, and values that their own BitsStored cannot hold.

    The bits above BitsStored may repeat the sign or be 0; anything else is an overlay or a wrong tag, and nobody can
    tell which.
    """
    if stored.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise DataError(where, f"the decoded picture is {stored.shape}, not Rows x Columns", EXPORT_AGAIN)
    bits, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if not 0 < bits <= allocated or int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise DataError(where, f"BitsStored {bits} does not fit BitsAllocated and HighBit", EXPORT_AGAIN)
    if bits == allocated or dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    whole = decode(dataset, where, frame, clear_unused_bits=False).astype(np.int64)
    wrong = (whole != stored) & ((whole < 0) | (whole >= 1 << bits))
    if wrong.any():
        raise DataError(
            where,
            f"stored values must fit {bits} bits, got {int(whole[wrong][0])}",
            "Export the series without overlays in the unused bits",
        )
