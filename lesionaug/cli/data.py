"""`lesionaug data import` and `lesionaug data check`: from slices with margins to a ROI store."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from lesionaug.cli.console import printable

if TYPE_CHECKING:
    from lesionaug.data.importer import ImportReport
    from lesionaug.data.options import ImportOptions
    from lesionaug.data.slices import Finding

# How many notes of one severity the terminal shows; `data check` shows all.
_MOST_LINES = 30

_MOST_ALIKE = 3  # notes that say the same of different files

_Many = Annotated[list[str] | None, Parameter(negative=(), consume_multiple=False)]
_Number = Annotated[float | None, Parameter(allow_leading_hyphen=True)]
_Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read; the options that `import` and `check` share.

    Attributes:
        labels: CSV with the columns patient_id, label and, if wanted, lesion_id; for DeepLesion, LesaNet's JSON.
        label_map: NAME=CLASS for a ROI name, segment label, code, folder name, label value or table label; repeatable.
            NAME may hold * and ? as in a shell; NAME=- leaves those lesions out, *=- all that no other rule fits. With
            LesaNet's JSON, NAME is one of its terms (cyst, hemangioma and metastasis if not given).
        format: The one format to read where a folder holds several, for example rtstruct.
        hu_offset: Added to the values of PNG images to give HU, for example -32768.
        spacing: ROW,COLUMN in mm, of pictures that do not say it themselves, for example 0.8,0.8.
        pictures: CSV with facts about pictures that their files lack: image, patient_id, row_spacing_mm,
            col_spacing_mm, hu_offset; hu_image for the picture with HU where margins were drawn on a windowed copy.
        image: The NIfTI image of a mask that is imported by itself.
        every_slice: One lesion for every slice of a margin instead of its largest only.
        pixel_edge: Integers in a table of polygons mean pixel edges instead of pixel centres.
        trust_voxels: Take a NIfTI image and its mask as one grid as stored, whatever their affines say.
        patient_by: DICOM keyword or table column that tells patients apart; PatientID or patient_id if not given.
        patient_aliases: CSV with patient_id,same_as for persons under several ids.
        allow_burned_in: File, or pattern of files, whose burned-in text you have looked at; repeatable.
    """

    labels: Path | None = None
    label_map: _Many = None
    format: str | None = None
    hu_offset: _Number = None
    spacing: str | None = None
    pictures: Path | None = None
    image: Path | None = None
    every_slice: _Flag = False
    pixel_edge: _Flag = False
    trust_voxels: _Flag = False
    patient_by: str | None = None
    patient_aliases: Path | None = None
    allow_burned_in: _Many = None

    def options(self, *, skip_faulty: bool = False, pseudonym_key: Path | None = None) -> ImportOptions:
        """As the importer takes them."""
        from lesionaug.data.options import ImportOptions

        return ImportOptions(
            format=self.format,
            labels=self.labels,
            label_map=tuple(self.label_map or ()),
            hu_offset=self.hu_offset,
            spacing_mm=_spacing(self.spacing),
            every_slice=self.every_slice,
            pixel_edge=self.pixel_edge,
            trust_voxels=self.trust_voxels,
            image=self.image,
            pictures=self.pictures,
            patient_by=self.patient_by,
            patient_aliases=self.patient_aliases,
            allow_burned_in=tuple(self.allow_burned_in or ()),
            skip_faulty=skip_faulty,
            pseudonym_key=pseudonym_key,
        )


_AS_IT_IS = Reading()


def import_(
    source: Path,
    out: Path,
    /,
    *,
    reading: Reading = _AS_IT_IS,
    pseudonym_key: Path | None = None,
    skip_faulty: _Flag = False,
) -> None:
    """Import CT slices with lesion margins into a ROI store.

    A folder, or one file with margins (its pictures lie where it says, or below its folder). docs/import.md lists the
    formats. A source with any fault is refused whole; `data check` lists all of them.

    Args:
        source: Folder or file to import.
        out: Folder to create: manifest, pixels, import_report.csv, contact_sheet.png.
        reading: See `Reading`.
        pseudonym_key: File with the secret that pseudonyms are made with; made if it is not there. If not given, your
            own in ~/.config/lesionaug.
        skip_faulty: Leave faulty files and lesions out instead of refusing the source.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.importer import SourceRefused, import_source

    options = reading.options(skip_faulty=skip_faulty, pseudonym_key=pseudonym_key)
    try:
        with progress("Importing") as step:
            report = import_source(source, out, options, step)
    except SourceRefused as refused:
        _print_findings(refused.findings, sys.stderr, most=_MOST_LINES)
        raise
    _print_findings(report.findings, sys.stdout, most=_MOST_LINES)
    _print_report(report, options)


def check(source: Path, /, *, reading: Reading = _AS_IT_IS) -> int:
    """List every fault of a source and write nothing; exit code 0 without an error, 3 with any.

    Args:
        source: Folder or file to check.
        reading: See `Reading`.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.collect import NOTHING_TO_IMPORT
    from lesionaug.data.importer import check_source
    from lesionaug.errors import DataError

    with progress("Checking") as step:
        findings = check_source(source, reading.options(), step)
    _print_findings(findings, sys.stdout, most=None)
    errors, warnings = (sum(f.severity == severity for f in findings) for severity in ("error", "warning"))
    outcome = "this source is refused" if errors else "ready to import"
    if any(finding.rule in NOTHING_TO_IMPORT for finding in findings):
        outcome = "nothing to import"
    print(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}: {outcome}")
    return DataError.exit_code if errors else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _spacing(written: str | None) -> tuple[float, float] | None:
    """(s_x, s_y) of ROW,COLUMN."""
    from lesionaug.errors import ConfigError

    if written is None:
        return None
    try:
        row, column = (float(part) for part in written.split(","))
    except ValueError:
        row = column = 0.0
    if not (0.01 <= row <= 20 and 0.01 <= column <= 20):
        raise ConfigError("--spacing", f"must be ROW,COLUMN in mm, 0.01 .. 20, got '{written}'", "For example 0.8,0.8")
    return column, row


def _print_findings(findings: Sequence[Finding], stream: object, most: int | None) -> None:
    """One line each, errors first; with `most` set, long lists are cut and the notes only counted."""
    for severity in ("error", "warning", "info"):
        own = [finding for finding in findings if finding.severity == severity]
        if severity == "info" and most is not None:
            if own:
                print(f"info: {len(own)} notes (`lesionaug data check` shows them)", file=stream)  # type: ignore[call-overload]
            continue
        said: Counter[tuple[str, str]] = Counter()
        shown = 0
        for finding in own:
            said[finding.rule, finding.fix] += 1
            if most is None or (shown < most and said[finding.rule, finding.fix] <= _MOST_ALIKE):
                print(f"{severity}: {printable(str(finding))}", file=stream)  # type: ignore[call-overload]
                shown += 1
        if shown < len(own):
            print(f"{severity}: ... and {len(own) - shown} more (`lesionaug data check` shows them)", file=stream)  # type: ignore[call-overload]


def _print_report(report: ImportReport, options: ImportOptions) -> None:
    """What was imported, as a table of classes and where to look."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    kind = "phantom (synthetic) " if report.kind == "phantom" else ""
    title = f"{_count(report.num_lesions, f'{kind}lesion')} of {_count(report.num_patients, 'patient')}"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("lesions", justify="right")
    table.add_column("patients", justify="right")
    for name, (lesions, patients) in report.class_counts.items():
        table.add_row(escape(name) or "unlabelled", str(lesions), str(patients))
    Console(file=sys.stdout, soft_wrap=True).print(table)
    if report.num_skipped:
        print(printable(f"not taken: {report.num_skipped} margins, with reasons in {report.report}"))
    if report.kind != "phantom":
        from lesionaug.data.patients import default_key_path

        key = options.pseudonym_key or default_key_path()
        made = "a new key, made at" if report.new_key else "the key"
        print(printable(f"patients go by pseudonyms made with {made} {key}: keep it, and keep it from others"))
    print(printable(f"store: {report.path}"))
    print(printable(f"look at the margins: {report.sheet}"))


def folds(
    rois: Path,
    /,
    *,
    num_folds: int = 3,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Show who would be tested where: lesions and patients of each class in each fold; write it down with --out.

    The folds are those that `lesionaug run` makes for the same number and seed. A patient lies in one fold only, and
    every fold holds every class.

    Args:
        rois: ROI store with a class for every lesion.
        num_folds: Folds of the cross validation.
        seed: Of the assignment.
        out: File to write, for `lesionaug run --folds`.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lesionaug.data.files import check_new_file
    from lesionaug.data.folds import make_folds
    from lesionaug.data.store import load_rois

    if out is not None:
        check_new_file(out)
    batch = load_rois(rois)
    made = make_folds(batch, num_folds, seed)
    lesions, patients = made.class_counts(), made.patient_counts()
    kind = "phantom (synthetic) " if batch.kind == "phantom" else ""
    table = Table(title=f"{len(batch)} {kind}lesions: lesions (patients) by fold", title_justify="left")
    table.add_column("class")
    for fold in range(num_folds):
        table.add_column(f"fold {fold}", justify="right")
    table.add_column("all", justify="right")
    for name in sorted(lesions[0]):
        cells = [f"{lesions[fold][name]} ({patients[fold][name]})" for fold in range(num_folds)]
        of_class = {lesion.patient_id for lesion in made.lesions if lesion.label == name}
        total = sum(counts[name] for counts in lesions)
        table.add_row(escape(name), *cells, f"{total} ({len(of_class)})")
    cells = [f"{sum(lesions[fold].values())} ({patients[fold]['']})" for fold in range(num_folds)]
    table.add_row("all", *cells, f"{len(batch)} ({len(set(batch.patient_ids))})")
    Console(file=sys.stdout, soft_wrap=True).print(table)
    print(f"{num_folds} folds, seed {seed}, SHA-256 {made.sha256}")
    if out is not None:
        made.save(out)
        print(printable(f"folds: {out}"))


def register(app: App) -> None:
    """Add `data import`, `data check` and `data folds` to `app`."""
    data = App(name="data", help="Import slices with margins, check what an import would find, show the folds.")
    data.command(import_, name="import")
    data.command(check, name="check")
    data.command(folds, name="folds")
    app.command(data)
