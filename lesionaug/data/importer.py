"""From any supported source to a ROI store: find what is there, check all of it, cut the lesions, write them."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lesionaug.data.contact_sheet import draw_contact_sheet
from lesionaug.data.dicom_ct import (
    CT_IMAGE,
    LABEL_MAP_SEGMENTATION,
    RT_STRUCTURE_SET,
    SEGMENTATION,
    CtSlice,
    is_dicom,
    read_ct_slice,
    read_dicom,
    reading,
    text,
    why_skipped,
)
from lesionaug.data.files import check_new_folder, commit_directory, write_bytes_atomic, write_text_atomic
from lesionaug.data.labels import LabelFile, LabelMap, assign_labels
from lesionaug.data.rois import DEFAULT_WINDOW_HU, RoiBatch
from lesionaug.data.rtstruct import read_rtstruct
from lesionaug.data.segmentation import read_segmentation
from lesionaug.data.slices import Finding, Lesion, Margin, SourceFile, cut_lesion
from lesionaug.data.store import write_store
from lesionaug.data.tables import heading, is_polygon_table, read_table
from lesionaug.errors import ConfigError, DataError

Progress = Callable[[int, int, str], None]

REPORT = "import_report.csv"
SHEET = "contact_sheet.png"

_MARGIN_CLASSES = {RT_STRUCTURE_SET, SEGMENTATION, LABEL_MAP_SEGMENTATION}
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dcm30")
_SUPPORTED = (
    "Supported are a folder of DICOM CT with RTSTRUCT or SEG, or a polygon CSV beside its PNG, NIfTI or DICOM images"
)


@dataclass(frozen=True)
class ImportOptions:
    """What the user asked for; the defaults are those of the command line.

    Attributes:
        labels: CSV with patient_id[,lesion_id],label.
        label_map: NAME=CLASS for ROI names, segment labels or table labels.
        hu_offset: Added to the values of PNG images to give HU.
        every_slice: One lesion for every slice of a margin, not only its largest.
        pixel_edge: Integers in a polygon table mean pixel edges, not pixel centres.
        skip_faulty: Leave faulty lesions out instead of refusing the source.
        pseudonym_key: File with a secret key of 16 bytes or more, for pseudonyms that stay the same between sources.
    """

    labels: Path | None = None
    label_map: tuple[str, ...] = ()
    hu_offset: float | None = None
    every_slice: bool = False
    pixel_edge: bool = False
    skip_faulty: bool = False
    pseudonym_key: Path | None = None


@dataclass(frozen=True)
class FoundSource:
    """What lies at a path.

    Attributes:
        root: The folder that names are relative to.
        format: "dicom" or "table".
        files: Every file below the root, sorted by name and numbered.
        table: The polygon table, for "table".
        margin_file: The one RTSTRUCT or SEG to read, where the user named a file.
        findings: What lies there and is not read.
    """

    root: Path
    format: Literal["dicom", "table"]
    files: tuple[SourceFile, ...]
    table: SourceFile | None = None
    margin_file: SourceFile | None = None
    findings: tuple[Finding, ...] = ()

    @cached_property
    def by_path(self) -> dict[Path, SourceFile]:
        """The files by their path."""
        return {file.path.resolve(): file for file in self.files}

    def file_of(self, path: Path) -> SourceFile:
        """The numbered file at a path; one outside the root gets the next free number."""
        resolved = path.resolve()
        if resolved not in self.by_path:
            self.by_path[resolved] = SourceFile(len(self.by_path) + 1, path, path.name)
        return self.by_path[resolved]


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        path: The store.
        kind: "phantom" or "imported".
        num_lesions: Lesions taken.
        num_patients: Patients they belong to.
        num_skipped: Margins not taken.
        classes: Names of the classes.
        class_counts: (lesions, patients) by class; the key "" counts the unlabelled.
        findings: Everything a user should know, by file.
        sheet: The contact sheet.
        report: The list of every margin.
    """

    path: Path
    kind: str
    num_lesions: int
    num_patients: int
    num_skipped: int
    classes: tuple[str, ...]
    class_counts: dict[str, tuple[int, int]]
    findings: tuple[Finding, ...] = field(repr=False)
    sheet: Path
    report: Path


class SourceRefused(DataError):
    """A source with faults; `findings` lists them all."""

    def __init__(self, where: str, rule: str, fix: str, findings: Sequence[Finding]) -> None:
        super().__init__(where, rule, fix)
        self.findings = tuple(findings)


def find_source(path: str | os.PathLike[str]) -> FoundSource:
    """Recognise what lies at a path: by content, not by name.

    Args:
        path: A folder (subfolders and several patients are fine), a polygon table, or one RTSTRUCT or SEG file whose
            CT slices lie in the same folder or below it.

    Raises:
        DataError: When nothing supported is there (what is there is named), or more than one source.
    """
    given = Path(path)
    if not given.exists():
        raise DataError(given.name, "there is no such file or folder", "Check the path")
    root = given if given.is_dir() else given.parent
    files = _number_files(root)
    if given.is_file():
        return _find_in_file(given, root, files)
    tables = [file for file in files if file.name.lower().endswith(".csv") and is_polygon_table(file.path)]
    others = [(file, what) for file in files if (what := _not_supported(file)) is not None]
    sop_classes = {file: _media_class(file) for file in files}
    margins = [file for file, sop_class in sop_classes.items() if sop_class in _MARGIN_CLASSES]
    has_dicom = any(value is not None for value in sop_classes.values())
    if tables and (len(tables) > 1 or margins):
        names = ", ".join(file.name for file in [*tables, *margins][:6])
        raise DataError(
            root.name, f"the folder holds several sources ({names})", "Give the path of the one file to import"
        )
    if not tables and not has_dicom:
        what = ", ".join(sorted({f"{what} ({file.name})" for file, what in others})[:6])
        rule = f"not supported yet: {what}" if what else "nothing here is a supported source"
        raise DataError(root.name, rule, _SUPPORTED)
    notes = [Finding("warning", file.name, f"{what}: not supported yet and not read") for file, what in others]
    if tables:
        return FoundSource(root, "table", tuple(files), table=tables[0], findings=_table_notes(files, tables[0]))
    return FoundSource(root, "dicom", tuple(files), findings=tuple(notes))


def _find_in_file(given: Path, root: Path, files: list[SourceFile]) -> FoundSource:
    source = next(file for file in files if file.path.name == given.name and file.path.parent == root)
    if given.name.lower().endswith(".csv"):
        if not is_polygon_table(given):
            what = (
                _not_supported(source) or "a CSV without the columns of a polygon table (image, patient_id, polygon_xy)"
            )
            raise DataError(given.name, f"not supported yet: {what}", _SUPPORTED)
        return FoundSource(root, "table", tuple(files), table=source, findings=_table_notes(files, source))
    sop_class = _media_class(source)
    if sop_class in _MARGIN_CLASSES:
        return FoundSource(root, "dicom", tuple(files), margin_file=source)
    if sop_class is not None:
        return FoundSource(root, "dicom", (source,))
    what = _not_supported(source) or "a file of no known kind"
    raise DataError(given.name, f"not supported yet: {what}", _SUPPORTED)


def _table_notes(files: list[SourceFile], table: SourceFile) -> tuple[Finding, ...]:
    return tuple(
        Finding("info", file.name, "looks like a label file and is not read", f"Use it with --labels {file.name}")
        for file in files
        if file != table and file.name.lower().endswith(".csv") and {"patient_id", "label"} <= heading(file.path)
    )


def _number_files(root: Path) -> list[SourceFile]:
    """Every plain file below a folder, sorted by relative name; linked folders are entered once."""
    seen: set[Path] = set()
    paths = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [Path(folder) / name for name in names if not name.startswith(".") and (Path(folder) / name).is_file()]
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    return [SourceFile(number, path, name) for number, (name, path) in enumerate(named, 1)]


def _head(file: SourceFile, size: int = 132) -> bytes:
    with file.path.open("rb") as stream:
        return stream.read(size)


def _media_class(file: SourceFile) -> str | None:
    """The SOP class that a DICOM file's header states, '' where it cannot be read, None for what is no DICOM file."""
    if not is_dicom(_head(file)):
        return "" if file.name.lower().endswith(_DICOM_SUFFIXES) else None
    import pydicom

    try:
        with reading(file.name):
            return str(pydicom.filereader.read_file_meta_info(file.path).get("MediaStorageSOPClassUID", ""))
    except DataError:
        return ""


def _not_supported(file: SourceFile) -> str | None:
    """The name of a format that may hold slices or margins and is not read, None for anything else."""
    name = file.name.lower()
    head = _head(file, 4096)
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file (run git lfs pull)"
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI without a polygon table"
    if name.endswith((".nrrd", ".mha", ".mhd")):
        return "NRRD or MetaImage"
    if name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".7z")):
        return "an archive (unpack it)"
    if name.endswith(".mrk.json"):
        return "3D Slicer markups"
    if name.endswith(".json"):
        return _json_kind(file)
    if name.endswith(".xml") and b"ImageAnnotation" in head:
        return "AIM annotations"
    if name.endswith(".csv") and {"file_name", "bounding_boxes"} <= heading(file.path):
        return "DeepLesion tables"
    return None


def _json_kind(file: SourceFile) -> str | None:
    if file.path.stat().st_size > 256 << 20:
        return None
    try:
        content: Any = json.loads(file.path.read_bytes())
    except (ValueError, RecursionError):
        return None
    keys = set(content) if isinstance(content, dict) else set()
    if {"images", "annotations"} <= keys:
        return "COCO annotations"
    if {"shapes", "imagePath"} <= keys:
        return "LabelMe annotations"
    return "3D Slicer markups" if "markups" in keys else None


@dataclass
class _Collected:
    """Everything found in a source, before anything is written."""

    findings: list[Finding]
    lesions: list[Lesion] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    kind: str = "imported"
    fatal: DataError | None = None  # a fault that no leaving out of lesions can mend


def check_source(
    path: str | os.PathLike[str], options: ImportOptions | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Every fault and note of a source at once; writes nothing.

    The source can be imported when no finding is an error. All slices are read, also those that no lesion uses.

    Args:
        path: See `find_source`.
        options: The options an import would have.
        progress: Called with (done, total, text).

    Raises:
        ConfigError: For options that contradict each other.
    """
    options = options or ImportOptions()
    try:
        return _collect(find_source(path), options, progress).findings
    except ConfigError:
        raise
    except DataError as error:
        return [Finding.refused(error)]


def import_source(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ImportOptions | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Write a source's lesions as a ROI store, with a report of every margin and a contact sheet.

    Args:
        path: See `find_source`.
        out: The store's folder, which must not exist yet.
        options: Labels and the like.
        progress: Called with (done, total, text).

    Raises:
        DataError: When the source has a fault and `skip_faulty` is off (`SourceRefused`, with all of them), when no
            lesion is left, or when `out` exists. Nothing is written then.
        ConfigError: For options that contradict each other.
    """
    options = options or ImportOptions()
    store = Path(out)
    check_new_folder(store, "the store")
    key = _pseudonym_key(options.pseudonym_key)
    source = find_source(path)
    collected = _collect(source, options, progress)
    if collected.fatal is not None:
        raise collected.fatal
    errors = [finding for finding in collected.findings if finding.severity == "error"]
    if errors and not options.skip_faulty:
        raise SourceRefused(
            errors[0].where,
            errors[0].rule + (f" (and {len(errors) - 1} more faults)" if len(errors) > 1 else ""),
            errors[0].fix or "`lesionaug data check` lists all; --skip-faulty leaves the faulty lesions out",
            collected.findings,
        )
    if not collected.lesions:
        raise SourceRefused(
            source.root.name,
            "no lesion is left to import",
            "`lesionaug data check` says what is wrong with each",
            collected.findings,
        )
    return _write(store, source, collected, options, key)


def _collect(source: FoundSource, options: ImportOptions, progress: Progress | None) -> _Collected:
    """Read a source whole: its lesions, their classes, and every fault on the way."""
    if options.labels is not None and options.label_map:
        raise ConfigError("--labels, --label-map", "give one of the two, not both", "Put the classes into one of them")
    if options.hu_offset is not None and not math.isfinite(options.hu_offset):
        raise ConfigError("--hu-offset", "must be a finite number", "For example -32768")
    label_map = LabelMap.parse(options.label_map)
    collected = _Collected(list(source.findings))
    label_file = None
    if options.labels is not None:
        collected.findings = [f for f in collected.findings if f.where != _label_name(source, options.labels)]
        try:
            label_file = LabelFile.read(options.labels)
        except DataError as error:
            _fail(collected, error)
    step = progress or (lambda done, total, text: None)
    if source.format == "dicom":
        slices, margin_files = _read_dicom_files(source, collected, step)
        margins = _dicom_margins(source, slices, margin_files, label_map, collected, step)
    else:
        slices = []
        margins = _table_margins(source, options, label_map, collected, step)
    for margin in margins:
        _cut(margin, options, collected)
    _refuse_shared_pictures(slices, collected)
    _count_missing(collected)
    collected.kind = _kind(slices, collected)
    if options.labels is None or label_file is not None:
        collected.labels = assign_labels(collected.lesions, label_file, label_map, collected.findings)
        _drop_unlabelled(collected, bool(label_file or label_map))
        _drop_duplicates(collected)
    if not collected.lesions and not any(finding.severity == "error" for finding in collected.findings):
        collected.findings.append(Finding("error", source.root.name, "no lesion was found on any slice", _SUPPORTED))
    return collected


def _read_dicom_files(
    source: FoundSource, collected: _Collected, step: Progress
) -> tuple[list[CtSlice], list[tuple[SourceFile, str]]]:
    """Every CT slice, and the margin files with their SOP classes; the rest is passed over with its reason."""
    slices: dict[str, CtSlice] = {}
    margin_files: list[tuple[SourceFile, str]] = []
    skipped: Counter[str] = Counter()
    for done, file in enumerate(source.files):
        step(done, len(source.files), "reading files")
        try:
            if not is_dicom(_head(file)) and not file.name.lower().endswith(_DICOM_SUFFIXES):
                if file.path.suffix.lower() == "":
                    skipped["not a DICOM file"] += 1
                continue
            if file.path.name.upper() == "DICOMDIR":
                continue
            dataset = read_dicom(file, pixels=True)
            with reading(file.name):
                reason = why_skipped(dataset, file.name)
                sop_class = text(dataset, "SOPClassUID")
            if reason is not None:
                skipped[reason] += 1
                collected.findings.append(Finding("info", file.name, f"skipped: {reason}"))
            elif sop_class == CT_IMAGE:
                ct = read_ct_slice(file, dataset)
                collected.findings.extend(Finding("warning", file.name, note) for note in ct.notes)
                _add_slice(slices, ct, collected)
            elif source.margin_file is None or file == source.margin_file:
                margin_files.append((file, sop_class))
        except DataError as error:
            collected.findings.append(Finding.refused(error))
        except OSError as error:
            collected.findings.append(
                Finding("error", file.name, f"the file cannot be read ({error.strerror})", "Check its permissions")
            )
    step(len(source.files), len(source.files), "reading files")
    if not margin_files:
        unread = [reason for reason in skipped if "SR" in reason or "Presentation" in reason]
        collected.findings.append(
            Finding(
                "error",
                source.root.name,
                "no margins were found: there is no RTSTRUCT and no SEG among the files"
                + (f" (not supported yet as margins: {', '.join(unread)})" if unread else ""),
                "Put the structure set or segmentation beside the slices, or use a polygon table",
            )
        )
    return list(slices.values()), margin_files


def _add_slice(slices: dict[str, CtSlice], ct: CtSlice, collected: _Collected) -> None:
    """Keep a slice, once: the same file twice is a note, one UID for two pictures is a fault."""
    earlier = slices.setdefault(ct.sop_uid or f"file {ct.source.number}", ct)
    if earlier is ct:
        return
    if earlier.source.hash_prefix == ct.source.hash_prefix:
        collected.findings.append(
            Finding("warning", ct.source.name, f"is the same file as {earlier.source.name}; read once")
        )
    else:
        collected.findings.append(
            Finding(
                "error",
                ct.source.name,
                f"has the SOP instance UID of {earlier.source.name} but another content",
                "Keep the right one of the two",
            )
        )


def _dicom_margins(
    source: FoundSource,
    slices: list[CtSlice],
    margin_files: list[tuple[SourceFile, str]],
    label_map: LabelMap,
    collected: _Collected,
    step: Progress,
) -> Iterator[Margin]:
    for done, (file, sop_class) in enumerate(margin_files):
        step(done, len(margin_files), "drawing margins")
        reader = read_rtstruct if sop_class == RT_STRUCTURE_SET else read_segmentation
        try:
            for margin in reader(file, slices, collected.findings, left_out=label_map.leaves_out):
                if not margin.patient:
                    collected.findings.append(
                        Finding(
                            "error",
                            margin.where,
                            "PatientID is empty, so lesions of one patient could not be kept together",
                            "Give the files a PatientID (a made-up one will do)",
                            "no patient id",
                            margin.source,
                            margin.number,
                        )
                    )
                    continue
                yield margin
        except DataError as error:
            collected.findings.append(Finding.refused(error))
    step(len(margin_files), len(margin_files), "drawing margins")


def _table_margins(
    source: FoundSource, options: ImportOptions, label_map: LabelMap, collected: _Collected, step: Progress
) -> Iterator[Margin]:
    assert source.table is not None
    try:
        for done, margin in enumerate(
            read_table(
                source.table,
                source.file_of,
                collected.findings,
                hu_offset=options.hu_offset,
                convention="pixel_edge" if options.pixel_edge else "pixel_centre",
                left_out=label_map.leaves_out,
            )
        ):
            step(done, done + 1, "drawing margins")
            yield margin
    except DataError as error:
        collected.findings.append(Finding.refused(error))


def _cut(margin: Margin, options: ImportOptions, collected: _Collected) -> None:
    """Cut a margin's lesion (or lesions, with every_slice) out of the slices."""
    if margin.parts_missing and margin.slices:
        collected.findings.append(
            Finding("info", margin.where, f"{margin.parts_missing} of its contours or frames have no slice here")
        )
    if not margin.slices:
        rule = f"none of its {margin.parts_missing} contours or frames has a slice here, so it is skipped"
        if not margin.parts_missing:
            rule = "it is empty on every slice here, so it is skipped"
        collected.findings.append(
            Finding("warning", margin.where, rule, "", "no slice of it is in the source", margin.source, margin.number)
        )
        return
    for chosen in margin.slices if options.every_slice else [margin.largest()]:
        try:
            lesion = cut_lesion(margin, chosen)
        except DataError as error:
            collected.findings.append(Finding.refused(error, margin.source, margin.number))
            continue
        if lesion.num_parts > 1:
            collected.findings.append(
                Finding(
                    "warning",
                    margin.where,
                    f"its mask falls into {lesion.num_parts} separate parts, taken as one lesion",
                    "Give each lesion its own ROI or segment if they are several",
                )
            )
        if lesion.outside_fraction > 0.5:
            collected.findings.append(
                Finding(
                    "warning",
                    margin.where,
                    f"up to {lesion.outside_fraction:.0%} of an augmented patch can lie outside the slice",
                )
            )
        collected.lesions.append(lesion)


def _label_name(source: FoundSource, labels: Path) -> str:
    """The label file's name within the source, '' where it lies elsewhere."""
    file = source.by_path.get(labels.resolve())
    return "" if file is None else file.name


def _fail(collected: _Collected, error: DataError) -> None:
    collected.fatal = error
    collected.findings.append(Finding.refused(error))


def _kind(slices: list[CtSlice], collected: _Collected) -> str:
    """Whether the source is a phantom; a mixture is a fault, for nobody could tell what the store's pictures show."""
    marks = {s.phantom for s in slices} or {lesion.phantom for lesion in collected.lesions}
    if len(marks) == 2:
        rule = "it mixes slices of a phantom with slices of patients"
        _fail(collected, DataError("source", rule, "Import the two separately"))
    return "phantom" if marks == {True} else "imported"


def _count_missing(collected: _Collected) -> None:
    """One line for the whole source about contours and frames that have no slice; each margin has its own note."""
    missing = [m.parts_missing for m in dict.fromkeys(lesion.margin for lesion in collected.lesions) if m.parts_missing]
    if missing:
        rule = f"{sum(missing)} contours or frames of {len(missing)} margins have no slice here"
        fix = "The largest slice is then that of the ones present; import_report.csv counts them by lesion"
        collected.findings.append(Finding("warning", "source", rule, fix))


def _refuse_shared_pictures(slices: list[CtSlice], collected: _Collected) -> None:
    """A picture that occurs under two patients is a fault: it would stand on both sides of a split by patients."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # where each patient shows the picture
    for ct in slices:
        if ct.hash and ct.patient:
            places[ct.hash].setdefault(ct.patient, ct.source.name)
    for lesion in collected.lesions:
        for picture in (lesion.slice_hash, f"file {lesion.slice_source.number}"):
            if picture:
                places[picture].setdefault(lesion.margin.patient, lesion.margin.where)
    shared: dict[str, tuple[str, str]] = {}  # by patient: where the picture is, where the other patient has it
    for by_patient in places.values():
        for patient, where in by_patient.items():
            other = next((place for one, place in by_patient.items() if one != patient), None)
            if other is not None:
                shared.setdefault(patient, (where, other))
    rule, fix = "holds the same picture as {} under another patient", "Correct the patient id that is wrong"
    taken = {lesion.margin.patient for lesion in collected.lesions}
    for patient, (where, other) in shared.items():
        if patient not in taken:
            collected.findings.append(Finding("error", where, rule.format(other), fix))
    for margin in dict.fromkeys(lesion.margin for lesion in collected.lesions if lesion.margin.patient in shared):
        where, other = shared[margin.patient]
        said = rule.format(other) if where == margin.where else f"its patient's {where} {rule.format(other)}"
        reason = "its patient shares a picture with another patient"
        collected.findings.append(Finding("error", margin.where, said, fix, reason, margin.source, margin.number))
    collected.lesions = [lesion for lesion in collected.lesions if lesion.margin.patient not in shared]


def _drop_unlabelled(collected: _Collected, asked: bool) -> None:
    """Leave out lesions without a class where classes were asked for or others have one; findings say so already."""
    if not asked and not any(label is not None for label in collected.labels):
        return
    kept = [index for index, label in enumerate(collected.labels) if label is not None]
    collected.lesions = [collected.lesions[index] for index in kept]
    collected.labels = [collected.labels[index] for index in kept]


def _drop_duplicates(collected: _Collected) -> None:
    """Keep a lesion once; the same pixels and mask with another patient or class are a fault."""
    by_id: dict[str, list[int]] = defaultdict(list)
    for index, lesion in enumerate(collected.lesions):
        by_id[lesion.lesion_id].append(index)
    dropped: set[int] = set()
    for indices in by_id.values():
        first = collected.lesions[indices[0]]
        same = {(collected.lesions[i].margin.patient, collected.labels[i]) for i in indices}
        dropped.update(indices if len(same) > 1 else indices[1:])
        for index in indices[1:]:
            margin = collected.lesions[index].margin
            collected.findings.append(
                Finding(
                    "error" if len(same) > 1 else "warning",
                    margin.where,
                    f"has the same pixels and mask as {first.margin.where}"
                    + (" but another patient or class" if len(same) > 1 else "; taken once"),
                    "Correct the one that is wrong" if len(same) > 1 else "",
                    "duplicate of another lesion",
                    margin.source,
                    margin.number,
                )
            )
    collected.lesions = [lesion for i, lesion in enumerate(collected.lesions) if i not in dropped]
    collected.labels = [label for i, label in enumerate(collected.labels) if i not in dropped]


def _pseudonym_key(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError("--pseudonym-key", f"the file cannot be read ({error.strerror})", "Check the path") from error
    if len(key) < 16:
        raise ConfigError(
            "--pseudonym-key", "the key must have 16 bytes or more", "For example: openssl rand -hex 32 > key.txt"
        )
    return key


def _pseudonyms(lesions: Sequence[Lesion], key: bytes | None) -> dict[str, str]:
    """A name for each patient: by the secret key, else P001, P002, ... in the order of their smallest lesion ids.

    Both come out the same for the same source. The numbered ones say nothing about the patient id, so no key has to be
    kept; they change when lesions are added. Keyed ones are the same in every store made with the key.
    """
    patients = list(dict.fromkeys(lesion.margin.patient for lesion in lesions))
    if key is not None:
        digests = {p: hmac.new(key, p.encode(), hashlib.sha256).hexdigest() for p in patients}
        return {patient: f"P-{digest[:16]}" for patient, digest in digests.items()}
    smallest = {p: min(lesion.lesion_id for lesion in lesions if lesion.margin.patient == p) for p in patients}
    digits = max(3, len(str(len(patients))))
    return {p: f"P{number:0{digits}d}" for number, p in enumerate(sorted(patients, key=smallest.__getitem__), 1)}


def _write(
    store: Path, source: FoundSource, collected: _Collected, options: ImportOptions, key: bytes | None
) -> ImportReport:
    order = sorted(range(len(collected.lesions)), key=lambda index: collected.lesions[index].lesion_id)
    lesions = [collected.lesions[index] for index in order]
    labels = [collected.labels[index] for index in order]
    pseudonyms = _pseudonyms(lesions, key)
    classes = tuple(sorted({label for label in labels if label is not None}))
    dtype = np.int16 if all(lesion.hu.dtype == np.int16 for lesion in lesions) else np.float32
    rois = RoiBatch.from_images(
        [lesion.hu.astype(dtype) for lesion in lesions],
        np.array([lesion.center for lesion in lesions], dtype=np.float64),
        np.array([lesion.diameter_px for lesion in lesions], dtype=np.float64).astype(np.float32),
        labels=np.array([-1 if label is None else classes.index(label) for label in labels], dtype=np.int64),
        lesion_ids=[lesion.lesion_id for lesion in lesions],
        patient_ids=[pseudonyms[lesion.margin.patient] for lesion in lesions],
        spacing_mm=np.array([lesion.spacing_mm for lesion in lesions], dtype=np.float64),
        masks=[lesion.mask for lesion in lesions],
        origins=np.array([lesion.origin for lesion in lesions], dtype=np.int64),
        classes=classes,
        kind=collected.kind,
    )
    skipped = [finding for finding in collected.findings if finding.source is not None]
    details: dict[str, Any] = {
        "import": {
            "format": source.format,
            "every_slice": options.every_slice,
            "hu_offset": options.hu_offset if source.format == "table" else None,
            "pixel_convention": "pixel_edge" if options.pixel_edge else "pixel_centre",
            "pseudonyms": "numbered" if key is None else "keyed",
            "num_files": len(source.files),
            "num_skipped": len(skipped),
        },
        "lesions": [_entry(lesion) for lesion in lesions],
    }
    with commit_directory(store) as folder:
        write_store(rois, folder, details=details)
        write_text_atomic(folder / REPORT, _report_csv(lesions, labels, pseudonyms, skipped))
        write_bytes_atomic(folder / SHEET, draw_contact_sheet(rois, DEFAULT_WINDOW_HU))
    counts: dict[str, tuple[int, int]] = {}
    for name in (*classes, ""):
        own = [lesion.margin.patient for lesion, label in zip(lesions, labels, strict=True) if (label or "") == name]
        if own:
            counts[name] = (len(own), len(set(own)))
    return ImportReport(
        path=store,
        kind=collected.kind,
        num_lesions=len(lesions),
        num_patients=len(pseudonyms),
        num_skipped=len(skipped),
        classes=classes,
        class_counts=counts,
        findings=tuple(collected.findings),
        sheet=store / SHEET,
        report=store / REPORT,
    )


def _entry(lesion: Lesion) -> dict[str, Any]:
    """What the manifest says about a lesion beyond the batch; numbers and hash prefixes in place of names."""
    return {
        "worst_outside_fraction": round(lesion.outside_fraction, 6),
        "area_px": int(lesion.mask.sum()),
        "source": {
            "margin": f"#{lesion.margin.source.number}",
            "margin_sha256_prefix": lesion.margin.source.hash_prefix,
            "margin_number": lesion.margin.number,
            "slice": f"#{lesion.slice_source.number}",
            "slice_sha256_prefix": lesion.slice_source.hash_prefix,
        },
    }


_REPORT_COLUMNS = (
    "taken",
    "reason",
    "lesion_id",
    "patient",
    "label",
    "margin_file",
    "margin_sha256_prefix",
    "margin_number",
    "slice_file",
    "slice_sha256_prefix",
    "area_px",
    "diameter_px",
    "diameter_mm",
    "worst_outside_fraction",
    "contours_without_slice",
)


def _report_csv(
    lesions: Sequence[Lesion], labels: Sequence[str | None], pseudonyms: dict[str, str], skipped: Sequence[Finding]
) -> str:
    """One row for every margin, taken or not; nothing in it names a person or a file."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_REPORT_COLUMNS)
    for lesion, label in zip(lesions, labels, strict=True):
        margin = lesion.margin
        writer.writerow(
            (
                "yes",
                "",
                lesion.lesion_id,
                pseudonyms[margin.patient],
                label or "",
                f"#{margin.source.number}",
                margin.source.hash_prefix,
                margin.number,
                f"#{lesion.slice_source.number}",
                lesion.slice_source.hash_prefix,
                int(lesion.mask.sum()),
                f"{lesion.diameter_px:.3f}",
                f"{lesion.diameter_px * min(lesion.spacing_mm):.2f}",
                f"{lesion.outside_fraction:.4f}",
                margin.parts_missing,
            )
        )
    for finding in sorted(skipped, key=lambda f: (f.source.number if f.source else 0, f.number or 0)):
        assert finding.source is not None
        margin_file = (f"#{finding.source.number}", finding.source.hash_prefix, finding.number)
        writer.writerow(("no", finding.reason, "", "", "", *margin_file, *[""] * 7))
    return stream.getvalue()
