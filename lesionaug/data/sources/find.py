"""What lies at a path: which files hold margins, in which format, and which hold the slices they were drawn on."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lesionaug.data.slices import Finding, NumberedFiles, SourceFile
from lesionaug.data.sources.formats import FORMATS
from lesionaug.data.sources.guard import Guard, Job, Step
from lesionaug.data.sources.ircadb import mask_folders
from lesionaug.data.sources.jobs import recognise_file
from lesionaug.data.sources.nifti_masks import looks_like_mask
from lesionaug.data.sources.nifti_pairs import pair_volumes, role_of
from lesionaug.data.sources.recognise import LABELS, SLICES, VOLUME, Recognised
from lesionaug.errors import DataError

SUPPORTED = "docs/import.md lists what can be imported"


@dataclass(frozen=True)
class FoundSource:
    """What lies at a path.

    Attributes:
        root: The folder that names are relative to.
        files: Every file below the root, sorted by name and numbered.
        margins: The files that hold margins, each with the name of its format.
        slices: DICOM files that may hold the slices of the margins.
        volumes: NIfTI files.
        findings: What lies there and is not read.
        alone: A single picture was named, without margins: it can be checked, and nothing can be imported.
    """

    root: Path
    files: tuple[SourceFile, ...]
    margins: tuple[tuple[SourceFile, str], ...] = ()
    slices: tuple[SourceFile, ...] = ()
    volumes: tuple[SourceFile, ...] = ()
    findings: tuple[Finding, ...] = ()
    alone: bool = False

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its margins, sorted."""
        return tuple(sorted({name for _, name in self.margins}))

    @cached_property
    def numbered(self) -> NumberedFiles:
        """The files by their path."""
        return NumberedFiles(self.files)


def find_source(
    path: str | os.PathLike[str], guard: Guard, on_step: Step, format_name: str | None = None
) -> FoundSource:
    """Recognise what lies at a path: by content, not by name.

    Args:
        path: A folder (subfolders and several patients are fine), or one file with margins whose pictures lie where it
            says, or in the same folder or below.
        guard: Looks into the files.
        on_step: Called with (done, total, text).
        format_name: The one format to read, where several are there.

    Raises:
        DataError: When nothing supported is there (what is there is named), or more than one source.
    """
    given = Path(path)
    if not given.exists():
        raise DataError(given.name, "there is no such file or folder", "Check the path")
    if given.name.upper() == "DICOMDIR" and given.is_file():
        given = given.parent  # its index names the files beside it, and those are read
    root = given if given.is_dir() else given.parent
    files = _number_files(root)
    if given.is_file():
        return _find_in_file(given, root, files, guard, on_step, format_name)
    folders = mask_folders(files)
    in_folders = {file for folder in folders for file in folder.masks}  # DICOM, but no CT slices
    kinds, findings = _recognise([file for file in files if file not in in_folders], guard, on_step)
    margins = [(file, kind.kind) for file, kind in kinds.items() if kind.kind in FORMATS]
    margins += [(folder.masks[0], "ircadb") for folder in folders]
    if format_name is not None:
        findings += [
            Finding("info", file.name, f"{FORMATS[kind].title}: not read, as --format says {format_name}")
            for file, kind in margins
            if kind != format_name
        ]
        margins = [(file, kind) for file, kind in margins if kind == format_name]
    volumes = tuple(file for file, kind in kinds.items() if kind.kind == VOLUME)
    if volumes and format_name in (None, "nifti"):
        masks, notes = _nifti_masks(volumes, guard, on_step)
        if not margins:
            margins, findings = [(file, "nifti") for file in masks], findings + notes
        elif masks:
            rule = f"{FORMATS['nifti'].title}: not read, nor are {len(masks) - 1} others, for other margins are here"
            findings.append(Finding("info", masks[0].name, rule, "--format nifti reads them"))
    _refuse_several(root, margins)
    slices = tuple(file for file, kind in kinds.items() if kind.kind == SLICES)
    unread = [(file, kind.not_read) for file, kind in kinds.items() if kind.not_read]
    if not margins and not slices:
        unread += [(file, "NIfTI without a mask or a table") for file in volumes[:1]]
        what = ", ".join(sorted({f"{what} ({file.name})" for file, what in unread})[:6])
        rule = f"not supported: {what}" if what else "nothing here is a supported source"
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors and not what:
            raise DataError(errors[0].where, errors[0].rule, errors[0].fix)
        raise DataError(root.name, rule, SUPPORTED)
    findings += [Finding("warning", file.name, f"{what}: not read") for file, what in unread]
    findings += [
        Finding("info", file.name, "looks like a label file and is not read", f"Use it with --labels {file.name}")
        for file, kind in kinds.items()
        if kind.kind == LABELS
    ]
    if margins and not any(FORMATS[kind].on_dicom for _, kind in margins):
        slices = ()
    return FoundSource(root, tuple(files), tuple(margins), slices, volumes, tuple(findings))


def _find_in_file(
    given: Path,
    root: Path,
    files: list[SourceFile],
    guard: Guard,
    on_step: Step,
    format_name: str | None,
) -> FoundSource:
    source = next((file for file in files if file.path.name == given.name and file.path.parent == root), None)
    if source is None:  # hidden files are not listed
        source = SourceFile(len(files) + 1, given, given.name)
        files = [*files, source]
    kinds, findings = _recognise([source], guard, on_step)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise DataError(errors[0].where, errors[0].rule, errors[0].fix)
    kind = kinds[source]
    if kind.kind in FORMATS:
        if format_name not in (None, kind.kind):
            raise DataError(given.name, f"this is a {FORMATS[kind.kind].title}, not {format_name}", "Correct --format")
        slices: tuple[SourceFile, ...] = ()
        if FORMATS[kind.kind].on_dicom:
            others, more = _recognise(files, guard, on_step)
            findings += more
            slices = tuple(file for file, other in others.items() if other.kind == SLICES)
        return FoundSource(root, tuple(files), ((source, kind.kind),), slices, findings=tuple(findings))
    if kind.kind == SLICES:
        return FoundSource(root, (source,), slices=(source,), alone=True)
    if kind.kind == VOLUME and (format_name == "nifti" or _is_mask(source, files, guard, on_step)):
        return FoundSource(root, tuple(files), ((source, "nifti"),), findings=tuple(findings))
    if kind.kind == VOLUME:
        return FoundSource(root, tuple(files), volumes=(source,), alone=True)
    what = kind.not_read or (
        "a CSV without the columns of a table of margins (image, patient_id, and polygon_xy or mask)"
        if given.name.lower().endswith(".csv")
        else "a file of no known kind"
    )
    raise DataError(given.name, f"not supported: {what}", SUPPORTED)


def _nifti_masks(volumes: Sequence[SourceFile], guard: Guard, on_step: Step) -> tuple[list[SourceFile], list[Finding]]:
    """The masks among NIfTI volumes, by name; where a folder holds two and names do not tell, by what they hold."""
    pairs = pair_volumes(volumes)
    masks = [*pairs.images, *pairs.ambiguous, *pairs.alone]
    unused = set(pairs.unused)
    for folder in dict.fromkeys(file.path.parent for file in pairs.unused):
        here = [file for file in volumes if file.path.parent == folder]
        if len(here) != 2 or not unused.issuperset(here):
            continue
        looks = [_looks(file, guard, on_step) for file in here]
        if None not in looks and looks[0] != looks[1] and looks[0][:1] == looks[1][:1]:  # type: ignore[index]
            masks += [file for file, look in zip(here, looks, strict=True) if look is not None and look[1]]
            unused.difference_update(here)
    notes = [
        Finding("info", file.name, "NIfTI without a mask by its name: not read", "See docs/import.md for the names")
        for file in sorted(unused, key=lambda file: file.number)
    ]
    return sorted(masks, key=lambda file: file.number), notes


def _is_mask(source: SourceFile, files: Sequence[SourceFile], guard: Guard, on_step: Step) -> bool:
    """Whether a NIfTI volume that stands alone is a mask."""
    pairs = pair_volumes(files)
    if source in pairs.images or source in pairs.ambiguous or source in pairs.alone:
        return True
    if source in pairs.images.values() or role_of(source) == "image":
        return False
    look = _looks(source, guard, on_step)
    return look is not None and look[1]


def _looks(file: SourceFile, guard: Guard, on_step: Step) -> tuple[tuple[int, int, int], bool] | None:
    """Shape of a volume and whether it holds what masks hold, None where it cannot be read."""
    (outcome,) = guard.run([Job(file.name, looks_like_mask, (file,), file.size)], on_step, "looking at files")
    return outcome.results[0] if outcome.results else None


def _refuse_several(root: Path, margins: list[tuple[SourceFile, str]]) -> None:
    """Margins on DICOM slices go together; any other format stands alone, and a table is one file."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for file, kind in margins:
        kinds["DICOM" if FORMATS[kind].on_dicom else kind].append(file.name)
    if len(kinds) > 1 or len(kinds.get("table", ())) > 1:
        shown = [
            f"{kind}: {', '.join(names[:2])}" + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            for kind, names in kinds.items()
        ]
        formats = ", ".join(sorted({kind for _, kind in margins}))
        raise DataError(
            root.name,
            f"the folder holds several sources ({'; '.join(shown)})",
            f"Give the path of the one file to import, or --format with one of {formats}",
        )


def _recognise(
    files: list[SourceFile], guard: Guard, on_step: Step
) -> tuple[dict[SourceFile, Recognised], list[Finding]]:
    jobs = [Job(file.name, recognise_file, (file,), file.size) for file in files]
    kinds: dict[SourceFile, Recognised] = {}
    findings = []
    for file, outcome in zip(files, guard.run(jobs, on_step, "looking at files"), strict=True):
        if outcome.error is not None:
            findings.append(Finding.refused(outcome.error))
        for kind in outcome.results:
            kinds[file] = kind
    return kinds, findings


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
