"""Everything that a source holds, before anything is written: lesions, their classes, every fault on the way."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lesionaug.data.labels import LabelMap, LesionTerms, assign_labels, holds_terms, read_labels
from lesionaug.data.options import ImportOptions, Progress
from lesionaug.data.patients import NO_ALIASES, Aliases
from lesionaug.data.slices import Finding, Lesion
from lesionaug.data.sources.dicom_ct import CtSlice
from lesionaug.data.sources.dicom_file import check_keyword
from lesionaug.data.sources.find import SUPPORTED, FoundSource
from lesionaug.data.sources.formats import FORMATS
from lesionaug.data.sources.given import Given
from lesionaug.data.sources.guard import Guard, Job, Outcome
from lesionaug.data.sources.ircadb import mask_folders
from lesionaug.data.sources.jobs import read_lesions, read_slices, read_volume
from lesionaug.errors import ConfigError, DataError

# What is said of a single picture without margins, and of an object that is neither.
NOTHING_TO_IMPORT = (
    "the picture can be read; it holds no margins, so there is nothing to import",
    "it is no slice and holds no margins, so there is nothing to import",
)

# Two margins of one patient on one slice that share more of their area than this are probably one lesion.
SAME_TISSUE = 0.5
MOST_COMPARED = 1000  # lesions of one slice; every pair of them is looked at


@dataclass
class Collected:
    """Everything found in a source, before anything is written.

    Attributes:
        findings: Faults and notes.
        lesions: Those that can be written.
        labels: The class of each, None for one without.
        kind: "phantom" or "imported".
        fatal: A fault that no leaving out of lesions can mend.
    """

    findings: list[Finding]
    lesions: list[Lesion] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    kind: str = "imported"
    fatal: DataError | None = None


def collect(source: FoundSource, options: ImportOptions, guard: Guard, on_step: Progress) -> Collected:
    """Read a source whole.

    Args:
        source: What lies there.
        options: What the user asked for.
        guard: Reads the files.
        on_step: Called with (done, total, text).

    Raises:
        ConfigError: For options that contradict each other.
    """
    label_map = LabelMap.parse(options.label_map)
    if options.labels is not None and label_map.names_classes and not holds_terms(options.labels):
        raise ConfigError(
            "--labels, --label-map",
            "the classes must come from one of the two",
            "Put them into one; beside a file, the map may only leave out (NAME=-)",
        )
    if options.patient_by is not None and any(FORMATS[name].on_dicom for name in source.formats):
        check_keyword(options.patient_by, "--patient-by")
    if options.hu_offset is not None and not math.isfinite(options.hu_offset):
        raise ConfigError("--hu-offset", "must be a finite number", "For example -32768")
    collected = Collected(list(source.findings))
    label_file = None
    if options.labels is not None:
        collected.findings = [f for f in collected.findings if f.where != _name_here(source, options.labels)]
        try:
            label_file = read_labels(options.labels, label_map)
        except DataError as error:
            _fail(collected, error)
    aliases = NO_ALIASES
    if options.patient_aliases is not None:
        try:
            aliases = Aliases.read(options.patient_aliases)
        except DataError as error:
            _fail(collected, error)
    given = Given(options=options.for_readers(label_map, aliases), files=source.files)
    if isinstance(label_file, LesionTerms):
        if source.formats != ("deeplesion",):
            raise ConfigError(f"--labels {label_file.name}", "LesaNet's labels are for DeepLesion", "Give a CSV")
        given.options = replace(given.options, only_keys=frozenset(label_file.labels))
    slices = _read_slices(source, given, collected, guard, on_step)
    _read_margins(source, slices, given, aliases, collected, guard, on_step)
    _refuse_shared_pictures(slices, aliases, collected)
    _note_overlaps(collected)
    _note_options(source, options, collected)
    known = {ct.patient for ct in slices} | {
        lesion.margin.named or lesion.margin.patient for lesion in collected.lesions
    }
    collected.findings += aliases.unused(known)
    _count_missing(collected)
    collected.kind = _kind(slices, collected)
    if options.labels is None or label_file is not None:
        collected.labels = assign_labels(collected.lesions, label_file, label_map, collected.findings)
        _drop_unlabelled(collected, bool(label_file or label_map))
        _drop_duplicates(collected)
        classes = {label for label in collected.labels if label is not None}
        if len(classes) == 1 and not source.alone:
            rule = f"every lesion is of the class {next(iter(classes))}, and a classifier needs two classes"
            collected.findings.append(Finding("warning", "labels", rule, "Add lesions of another class"))
    collected.findings = list(dict.fromkeys(collected.findings))  # several workers may have said the same
    if source.alone:
        if not any(finding.severity == "error" for finding in collected.findings):
            rule = NOTHING_TO_IMPORT[0 if slices or source.volumes else 1]
            collected.findings.append(Finding("info", source.root.name, rule))
    elif not collected.lesions and not any(finding.severity == "error" for finding in collected.findings):
        fix = SUPPORTED
        if any("no slice" in finding.reason for finding in collected.findings):
            fix = "Put the slices that the margins were drawn on into the folder"
        collected.findings.append(Finding("error", source.root.name, "no lesion was found on any slice", fix))
    return collected


def _read_slices(
    source: FoundSource, given: Given, collected: Collected, guard: Guard, on_step: Progress
) -> list[CtSlice]:
    """Every CT slice; other DICOM objects are passed over with their reason."""
    guard.share(given)
    slices: dict[str, CtSlice] = {}
    jobs = [Job(file.name, read_slices, (file,), file.size) for file in source.slices]
    for outcome in guard.run(jobs, on_step, "reading slices"):
        for result in outcome.results:
            if isinstance(result, Finding):
                collected.findings.append(result)
            else:
                _add_slice(slices, result, source, collected)
        _note_error(outcome, collected)
    if "ircadb" in source.formats:  # each structure looks for its own slices; those without a lesion are read here
        files = dict.fromkeys(file for folder in mask_folders(source.files) for file in folder.slices)
        jobs = [Job(file.name, read_slices, (file,), file.size) for file in files]
        for outcome in guard.run(jobs, on_step, "reading slices"):
            _note_error(outcome, collected)
    if source.alone and source.volumes:
        jobs = [Job(file.name, read_volume, (file,), file.size) for file in source.volumes]
        for outcome in guard.run(jobs, on_step, "reading volumes"):
            _note_error(outcome, collected)
    if not source.margins and not source.alone:
        rule = "no margins were found: none of the files holds any in a format that is read"
        fix = "Put the structure set, segmentation or the like beside the slices, or use a table of margins"
        collected.findings.append(Finding("error", source.root.name, rule, fix))
    return list(slices.values())


def _note_error(outcome: Outcome[Any], collected: Collected) -> None:
    """What ended the reading of a file is a fault of the file; a contradiction in the options is the user's."""
    if isinstance(outcome.error, ConfigError):
        raise outcome.error
    if outcome.error is not None:
        collected.findings.append(Finding.refused(outcome.error))


def _add_slice(slices: dict[str, CtSlice], ct: CtSlice, source: FoundSource, collected: Collected) -> None:
    """Keep a slice, once: the same file twice is a note, one UID for two pictures is a fault."""
    key = f"{ct.sop_uid} {ct.frame}" if ct.sop_uid else f"file {ct.source.number} {ct.frame}"
    earlier = slices.setdefault(key, ct)
    if earlier is ct:
        return
    if source.numbered.of(earlier.source.path).hash_prefix == source.numbered.of(ct.source.path).hash_prefix:
        if ct.frame == 0:
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


def _read_margins(
    source: FoundSource,
    slices: list[CtSlice],
    given: Given,
    aliases: Aliases,
    collected: Collected,
    guard: Guard,
    on_step: Progress,
) -> None:
    """The lesions of every margin file."""
    given.slices = slices
    guard.share(given)
    frames = max((ct.source.size for ct in slices if ct.multi_frame), default=0)  # read again for their pixels
    jobs = [Job(file.name, read_lesions, (file, kind), file.size + frames) for file, kind in source.margins]
    for outcome in guard.run(jobs, on_step, "drawing margins"):
        for results in outcome.results:
            lesions = [result for result in results if isinstance(result, Lesion)]
            findings = [result for result in results if isinstance(result, Finding)]
            collected.lesions += _of_this_process(lesions, source, aliases)
            collected.findings += [
                finding if finding.source is None else replace(finding, source=source.numbered.of(finding.source.path))
                for finding in findings
            ]
        _note_error(outcome, collected)


def _of_this_process(lesions: list[Lesion], source: FoundSource, aliases: Aliases) -> list[Lesion]:
    """The lesions of one margin with our own files, which are hashed once, and their patients by one name."""
    if not lesions:
        return []
    margin = lesions[0].margin
    margin = replace(
        margin, source=source.numbered.of(margin.source.path), patient=aliases.of(margin.patient), named=margin.patient
    )
    return [
        replace(entry, margin=margin, slice_source=source.numbered.of(entry.slice_source.path)) for entry in lesions
    ]


def _name_here(source: FoundSource, labels: Path) -> str:
    """The label file's name within the source, '' where it lies elsewhere."""
    file = source.numbered.at(labels)
    return "" if file is None else file.name


def _fail(collected: Collected, error: DataError) -> None:
    collected.fatal = error
    collected.findings.append(Finding.refused(error))


def _kind(slices: list[CtSlice], collected: Collected) -> str:
    """Whether the source is a phantom; a mixture is a fault, for nobody could tell what the store's pictures show."""
    marks = {s.phantom for s in slices} or {lesion.phantom for lesion in collected.lesions}
    if len(marks) == 2:
        rule = "it mixes slices of a phantom with slices of patients"
        _fail(collected, DataError("source", rule, "Import the two separately"))
    return "phantom" if marks == {True} else "imported"


def _count_missing(collected: Collected) -> None:
    """One line for the whole source about contours and frames that have no slice; each margin has its own note."""
    missing = [m.parts_missing for m in dict.fromkeys(lesion.margin for lesion in collected.lesions) if m.parts_missing]
    if missing:
        rule = f"{sum(missing)} contours or frames of {len(missing)} margins have no slice here"
        fix = "The largest slice is then that of the ones present; import_report.csv counts them by lesion"
        collected.findings.append(Finding("warning", "source", rule, fix))


def _refuse_shared_pictures(slices: list[CtSlice], aliases: Aliases, collected: Collected) -> None:
    """A picture that occurs under two patients is a fault: it would stand on both sides of a split by patients."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # where each patient shows the picture
    for ct in slices:
        if ct.hash and ct.patient:
            places[ct.hash].setdefault(aliases.of(ct.patient), ct.source.name)
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
    rule = "holds the same picture as {} under another patient"
    fix = "Correct the patient that is wrong; if they are one person, say so with --patient-aliases"
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


def _note_options(source: FoundSource, options: ImportOptions, collected: Collected) -> None:
    """Warn of options that nothing here asks for: whoever gave them believes that they did something."""
    on_dicom = bool(source.formats) and all(FORMATS[name].on_dicom for name in source.formats)
    nifti = "nifti" in source.formats or "table" in source.formats
    idle = {
        "--hu-offset": options.hu_offset is not None and (on_dicom or source.formats == ("nifti",)),
        "--spacing": options.spacing_mm is not None and on_dicom,
        "--pictures": options.pictures is not None and on_dicom,
        "--pixel-edge": options.pixel_edge and "table" not in source.formats,
        "--image": options.image is not None and "nifti" not in source.formats,
        "--trust-voxels": options.trust_voxels and not nifti and not source.alone,
    }
    for name in [name for name, does_nothing in idle.items() if does_nothing]:
        collected.findings.append(
            Finding("warning", name, "nothing in this source needs it, so it does nothing", "Leave it out")
        )


def _note_overlaps(collected: Collected) -> None:
    """Warn of two margins about the same tissue: the same lesion drawn twice counts double."""
    on_slice: dict[tuple[str, str], list[Lesion]] = defaultdict(list)
    for lesion in collected.lesions:
        on_slice[lesion.margin.patient, lesion.slice_hash].append(lesion)
    for (_, picture), lesions in on_slice.items():
        if len(lesions) > MOST_COMPARED:
            where, rule = lesions[0].slice_source.name, f"{len(lesions)} lesions lie on one slice of it"
            fix = "They are too many to look for lesions drawn twice: see that they are lesions at all"
            collected.findings.append(Finding("warning", where, rule, fix))
            continue
        for one, other in itertools.combinations(lesions if picture else [], 2):
            if one.margin is other.margin or one.lesion_id == other.lesion_id:
                continue
            shared = _overlap(one, other)
            if shared > SAME_TISSUE:
                rule = f"it and {one.margin.where} share {shared:.0%} of their area: the same lesion drawn twice?"
                fix = "Leave one out with --label-map NAME=- or --format, or keep both if they are two lesions"
                collected.findings.append(Finding("warning", other.margin.where, rule, fix))


def _overlap(one: Lesion, other: Lesion) -> float:
    """Intersection over union of two masks on one slice."""
    rows = range(max(one.origin[1], other.origin[1]), min(_end(one)[1], _end(other)[1]))
    columns = range(max(one.origin[0], other.origin[0]), min(_end(one)[0], _end(other)[0]))
    if not rows or not columns:
        return 0.0
    parts = [
        lesion.mask[
            rows.start - lesion.origin[1] : rows.stop - lesion.origin[1],
            columns.start - lesion.origin[0] : columns.stop - lesion.origin[0],
        ]
        for lesion in (one, other)
    ]
    both = int((parts[0] & parts[1]).sum())
    return both / (int(one.mask.sum()) + int(other.mask.sum()) - both)


def _end(lesion: Lesion) -> tuple[int, int]:
    return lesion.origin[0] + lesion.mask.shape[1], lesion.origin[1] + lesion.mask.shape[0]


def _drop_unlabelled(collected: Collected, asked: bool) -> None:
    """Leave out lesions without a class where classes were asked for or others have one; findings say so already."""
    if not asked and not any(label is not None for label in collected.labels):
        return
    kept = [index for index, label in enumerate(collected.labels) if label is not None]
    collected.lesions = [collected.lesions[index] for index in kept]
    collected.labels = [collected.labels[index] for index in kept]


def _drop_duplicates(collected: Collected) -> None:
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
