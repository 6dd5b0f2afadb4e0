"""`lesionaug data import` and `lesionaug data check`: from slices with margins to a ROI store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from lesionaug.data.importer import ImportOptions, ImportReport
    from lesionaug.data.slices import Finding

# How many notes of one severity the terminal shows; `data check` shows all.
_MOST_LINES = 30

_LabelMap = Annotated[list[str] | None, Parameter(name="--label-map", negative=(), consume_multiple=False)]
_Number = Annotated[float | None, Parameter(allow_leading_hyphen=True)]
_Flag = Annotated[bool, Parameter(negative=())]


def import_(
    source: Path,
    out: Path,
    /,
    *,
    labels: Path | None = None,
    label_map: _LabelMap = None,
    hu_offset: _Number = None,
    every_slice: _Flag = False,
    pixel_edge: _Flag = False,
    skip_faulty: _Flag = False,
    pseudonym_key: Path | None = None,
) -> None:
    """Import CT slices with lesion margins into a ROI store.

    Supported: a folder of DICOM CT with RTSTRUCT or SEG (or one such file, its CT beside it), and a polygon CSV beside
    16-bit PNG, NIfTI or DICOM images. A source with any fault is refused whole; `data check` lists all of them.

    Args:
        source: Folder or file to import.
        out: Folder to create: manifest, pixels, import_report.csv, contact_sheet.png.
        labels: CSV with the columns patient_id, label and, if wanted, lesion_id.
        label_map: NAME=CLASS for a ROI name, segment label or table label; repeatable. * and ? match as in a shell;
            NAME=- leaves those lesions out.
        hu_offset: Added to the values of PNG images to give HU, for example -32768.
        every_slice: One lesion for every slice of a margin instead of its largest only.
        pixel_edge: Integers in a polygon table mean pixel edges instead of pixel centres.
        skip_faulty: Leave faulty files and lesions out instead of refusing the source.
        pseudonym_key: File with a secret key; patients then get the same pseudonym in every store made with it.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.importer import SourceRefused, import_source

    options = _options(labels, label_map, hu_offset, every_slice, pixel_edge, skip_faulty, pseudonym_key)
    try:
        with progress("Importing") as step:
            report = import_source(source, out, options, step)
    except SourceRefused as refused:
        _print_findings(refused.findings, sys.stderr, most=_MOST_LINES)
        raise
    _print_findings(report.findings, sys.stdout, most=_MOST_LINES)
    _print_report(report, options)


def check(
    source: Path,
    /,
    *,
    labels: Path | None = None,
    label_map: _LabelMap = None,
    hu_offset: _Number = None,
    every_slice: _Flag = False,
    pixel_edge: _Flag = False,
) -> int:
    """List every fault of a source and write nothing; exit code 0 without an error, 3 with any.

    Args:
        source: Folder or file to check.
        labels: As for import.
        label_map: As for import.
        hu_offset: As for import.
        every_slice: As for import.
        pixel_edge: As for import.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.importer import check_source
    from lesionaug.errors import DataError

    options = _options(labels, label_map, hu_offset, every_slice, pixel_edge, False, None)
    with progress("Checking") as step:
        findings = check_source(source, options, step)
    _print_findings(findings, sys.stdout, most=None)
    errors, warnings = (sum(f.severity == severity for f in findings) for severity in ("error", "warning"))
    print(f"{errors} errors, {warnings} warnings: " + ("this source is refused" if errors else "ready to import"))
    return DataError.exit_code if errors else 0


def _options(
    labels: Path | None,
    label_map: list[str] | None,
    hu_offset: float | None,
    every_slice: bool,
    pixel_edge: bool,
    skip_faulty: bool,
    pseudonym_key: Path | None,
) -> ImportOptions:
    from lesionaug.data.importer import ImportOptions

    return ImportOptions(
        labels=labels,
        label_map=tuple(label_map or ()),
        hu_offset=hu_offset,
        every_slice=every_slice,
        pixel_edge=pixel_edge,
        skip_faulty=skip_faulty,
        pseudonym_key=pseudonym_key,
    )


def _print_findings(findings: Sequence[Finding], stream: object, most: int | None) -> None:
    """One line each, errors first; with `most` set, long lists are cut and the notes only counted."""
    for severity in ("error", "warning", "info"):
        own = [finding for finding in findings if finding.severity == severity]
        if severity == "info" and most is not None:
            if own:
                print(f"info: {len(own)} notes (`lesionaug data check` shows them)", file=stream)  # type: ignore[call-overload]
            continue
        for finding in own[:most]:
            print(f"{severity}: {finding}", file=stream)  # type: ignore[call-overload]
        if most is not None and len(own) > most:
            print(f"{severity}: ... and {len(own) - most} more", file=stream)  # type: ignore[call-overload]


def _print_report(report: ImportReport, options: ImportOptions) -> None:
    """What was imported, as a table of classes and where to look."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    kind = "phantom (synthetic) " if report.kind == "phantom" else ""
    table = Table(title=f"{report.num_lesions} {kind}lesions of {report.num_patients} patients", title_justify="left")
    table.add_column("class")
    table.add_column("lesions", justify="right")
    table.add_column("patients", justify="right")
    for name, (lesions, patients) in report.class_counts.items():
        table.add_row(escape(name) or "unlabelled", str(lesions), str(patients))
    Console(file=sys.stdout, soft_wrap=True).print(table)
    if report.num_skipped:
        print(f"not taken: {report.num_skipped} margins, with reasons in {report.report}")
    if options.pseudonym_key is None:
        print("patients are numbered P001, P002, ...; no key was kept, so nothing leads back to their ids")
    print(f"store: {report.path}")
    print(f"look at the margins: {report.sheet}")


def register(app: App) -> None:
    """Add `data import` and `data check` to `app`."""
    data = App(name="data", help="Import slices with margins, or check what an import would find.")
    data.command(import_, name="import")
    data.command(check, name="check")
    app.command(data)
