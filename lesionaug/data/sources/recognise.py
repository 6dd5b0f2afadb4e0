"""What a file is, by its content: a format of margins, slices, something known that is not read, or nothing of ours."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from lesionaug.data.csv_files import heading
from lesionaug.data.slices import SourceFile
from lesionaug.data.sources import aim, slicer, structured_report
from lesionaug.data.sources.deeplesion import is_deeplesion_table
from lesionaug.data.sources.dicom_ct import LABEL_MAP_SEGMENTATION, RT_STRUCTURE_SET, SEGMENTATION
from lesionaug.data.sources.dicom_file import is_dicom, read_dicom, read_meta, reading, text
from lesionaug.data.sources.nifti import SUFFIXES
from lesionaug.data.sources.tables import is_polygon_table
from lesionaug.data.sources.xml_files import root_names
from lesionaug.errors import DataError

SLICES = "slices"  # DICOM that may hold CT slices; reading it tells
VOLUME = "volume"  # NIfTI: an image or a mask
LABELS = "labels"  # a label file
UNKNOWN = ""

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dcm30")

_MARGIN_CLASSES = {
    RT_STRUCTURE_SET: "rtstruct",
    SEGMENTATION: "seg",
    LABEL_MAP_SEGMENTATION: "seg",
    **dict.fromkeys(structured_report.SOP_CLASSES, "sr"),
}
_SURFACE_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.5"
_MOST_JSON_BYTES = 256 << 20
_LFS = b"version https://git-lfs"
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG_VRS = frozenset(b"OB OW SQ UC UN UR UT".split())
_HEAD_BYTES = 64 << 10  # an XML file may begin with a long comment


@dataclass(frozen=True)
class Recognised:
    """What a file is.

    Attributes:
        kind: A name of `FORMATS`, or one of the constants above.
        not_read: The name of something that may hold slices or margins and is not read, '' for anything else.
    """

    kind: str
    not_read: str = ""


def recognise(source: SourceFile) -> Recognised:
    """Say what a file is.

    Raises:
        DataError: When it cannot be opened, or is what came of a DICOM file: without its first bytes, or a pointer.
    """
    name = source.name.lower()
    with reading(source.name), source.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not is_dicom(head):
        _refuse_stand_in(source, head, named_dicom=name.endswith(DICOM_SUFFIXES))
    if is_dicom(head) or name.endswith(DICOM_SUFFIXES):
        return _dicom(source)
    if name.endswith(SUFFIXES):
        return Recognised(VOLUME)
    if head.startswith(_LFS):
        return Recognised(UNKNOWN, "a Git LFS pointer in place of the file (run git lfs pull)")
    if name.endswith((".nrrd", ".mha", ".mhd")):
        return Recognised(UNKNOWN, "NRRD or MetaImage (convert it to NIfTI)")
    if name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".7z")):
        return Recognised(UNKNOWN, "an archive (unpack it)")
    if name.endswith(".csv"):
        return _csv(source)
    if name.endswith(slicer.SUFFIX):
        return Recognised("slicer")  # also when it is broken: reading it will say how
    if name.endswith(".json"):
        return _json(source)
    if name.endswith(".xml"):
        named = root_names(head)
        return Recognised("aim" if named & set(aim.ROOTS) or (not named and b"ImageAnnotation" in head) else UNKNOWN)
    return Recognised(UNKNOWN)


def _refuse_stand_in(source: SourceFile, head: bytes, *, named_dicom: bool) -> None:
    """Name what came of a DICOM file; passed over, its slice would be missing and a lesion cut from another."""
    if named_dicom and head.startswith(_LFS):
        raise DataError(source.name, "this is a Git LFS pointer in place of the DICOM file", "Run git lfs pull")
    if _begins_with_elements(head):
        raise DataError(
            source.name,
            "this looks like DICOM without the preamble and the 'DICM' mark at its start, so it is not read",
            "Convert it to a DICOM file (dcmconv of DCMTK does), or remove it",
        )


def _begins_with_elements(head: bytes) -> bool:
    """Whether it begins with two short elements of the groups 0002 or 0008, ascending and little endian."""
    at, last = 0, (0, -1)
    for _ in range(2):
        if len(head) < at + 12:
            return False
        group, element, length = struct.unpack_from("<HHI", head, at)
        vr = head[at + 4 : at + 6]
        if vr in _SHORT_VRS:
            length = length >> 16
        elif vr in _LONG_VRS:
            length, at = int.from_bytes(head[at + 8 : at + 12], "little"), at + 4
        if group not in (0x0002, 0x0008) or (group, element) <= last or element > 0x1200 or length > 1024 or length % 2:
            return False
        last, at = (group, element), at + 8 + length
    return True


def _dicom(source: SourceFile) -> Recognised:
    if source.path.name.upper() == "DICOMDIR":
        return Recognised(UNKNOWN)  # an index of the files beside it, which are read themselves
    try:
        sop_class = text(read_meta(source), "MediaStorageSOPClassUID")
        if not sop_class:
            sop_class = text(read_dicom(source, pixels=False), "SOPClassUID")
        if sop_class == _SURFACE_SEGMENTATION:
            return Recognised(UNKNOWN, "a surface segmentation (convert it to a DICOM SEG)")
        return Recognised(_MARGIN_CLASSES.get(sop_class, SLICES))
    except DataError:
        return Recognised(SLICES)  # reading it whole will say what is wrong


def _csv(source: SourceFile) -> Recognised:
    columns = heading(source.path)
    if is_polygon_table(source.path):
        return Recognised("table")
    if {"patient_id", "label"} <= columns:
        return Recognised(LABELS)
    if is_deeplesion_table(columns):
        return Recognised("deeplesion")
    return Recognised(UNKNOWN, "a CSV without the columns of a table (image, patient_id, polygon_xy or mask)")


def _json(source: SourceFile) -> Recognised:
    content = read_json_object(source)
    if content is None:
        return Recognised(UNKNOWN, f"a JSON file that is broken or above {_MOST_JSON_BYTES >> 20} MiB")
    if {"images", "annotations"} <= content.keys():
        return Recognised("coco")
    if {"shapes", "imagePath"} <= content.keys():
        return Recognised("labelme")
    if {"term_list", "train_lesion_idxs"} <= content.keys():
        return Recognised(LABELS)
    return Recognised("slicer" if "markups" in content else UNKNOWN)


def read_json_object(source: SourceFile) -> dict[str, Any] | None:
    """A JSON file's object, empty where it holds something else, None where it cannot be read."""
    if source.path.stat().st_size > _MOST_JSON_BYTES:
        return None
    try:
        content = json.loads(source.path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else {}
