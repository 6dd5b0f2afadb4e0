"""From any supported source to a ROI store: find what is there, check all of it, cut the lesions, write them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lesionaug.data.collect import Collected, collect
from lesionaug.data.files import check_new_folder, commit_directory, write_bytes_atomic, write_text_atomic
from lesionaug.data.import_report import manifest_entry, report_csv
from lesionaug.data.options import ImportOptions, Progress
from lesionaug.data.patients import check_key, default_key_path, pseudonym_key, pseudonyms
from lesionaug.data.slices import Finding
from lesionaug.data.sources.find import FoundSource, find_source
from lesionaug.data.sources.formats import FORMATS
from lesionaug.data.sources.given import no_step
from lesionaug.data.sources.guard import Guard
from lesionaug.errors import ConfigError, DataError

REPORT = "import_report.csv"
SHEET = "contact_sheet.png"


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
        new_key: The key of the pseudonyms was made by this import.
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
    new_key: bool = False


class SourceRefused(DataError):
    """A source with faults; `findings` lists them all."""

    def __init__(self, where: str, rule: str, fix: str, findings: Sequence[Finding]) -> None:
        super().__init__(where, rule, fix)
        self.findings = tuple(findings)


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
        with _guard(options) as guard:
            return _read(path, options, guard, progress or no_step)[1].findings
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
        ConfigError: For options that contradict each other, or a pseudonym key that cannot be used.
    """
    options = options or ImportOptions()
    store = Path(out)
    check_new_folder(store, "the store")
    check_key(options.pseudonym_key, store)  # before the work, not after it
    with _guard(options) as guard:
        source, collected = _read(path, options, guard, progress or no_step)
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
            "no lesion is left to import" if source.margins else "the picture comes without margins, so no lesion",
            "`lesionaug data check` says what is wrong with each" if source.margins else "Name the file with margins",
            collected.findings,
        )
    new_key = not (options.pseudonym_key or default_key_path()).exists()
    key = None if collected.kind == "phantom" else pseudonym_key(options.pseudonym_key, store)
    return replace(_write(store, source, collected, options, key), new_key=new_key and key is not None)


def _guard(options: ImportOptions) -> Guard:
    return Guard(None if options.isolate else 0)


def _read(
    path: str | os.PathLike[str], options: ImportOptions, guard: Guard, on_step: Progress
) -> tuple[FoundSource, Collected]:
    if options.format is not None and options.format not in FORMATS:
        raise ConfigError("--format", f"must be one of {', '.join(FORMATS)}, got '{options.format}'", "Correct it")
    source = find_source(path, guard, on_step, options.format)
    return source, collect(source, options, guard, on_step)


def _write(
    store: Path, source: FoundSource, collected: Collected, options: ImportOptions, key: bytes | None
) -> ImportReport:
    # Here, for they need torch, and a check does not: it answers a second sooner.
    from lesionaug.data.contact_sheet import draw_contact_sheet
    from lesionaug.data.rois import DEFAULT_WINDOW_HU, RoiBatch
    from lesionaug.data.store import write_store

    order = sorted(range(len(collected.lesions)), key=lambda index: collected.lesions[index].lesion_id)
    lesions = [collected.lesions[index] for index in order]
    labels = [collected.labels[index] for index in order]
    named = pseudonyms(lesions, key)
    classes = tuple(sorted({label for label in labels if label is not None}))
    dtype = np.int16 if all(lesion.hu.dtype == np.int16 for lesion in lesions) else np.float32
    rois = RoiBatch.from_images(
        [lesion.hu.astype(dtype) for lesion in lesions],
        np.array([lesion.center for lesion in lesions], dtype=np.float64),
        np.array([lesion.diameter_px for lesion in lesions], dtype=np.float64).astype(np.float32),
        labels=np.array([-1 if label is None else classes.index(label) for label in labels], dtype=np.int64),
        lesion_ids=[lesion.lesion_id for lesion in lesions],
        patient_ids=[named[lesion.margin.patient] for lesion in lesions],
        spacing_mm=np.array([lesion.spacing_mm for lesion in lesions], dtype=np.float64),
        masks=[lesion.mask for lesion in lesions],
        origins=np.array([lesion.origin for lesion in lesions], dtype=np.int64),
        classes=classes,
        kind=collected.kind,
    )
    skipped = [finding for finding in collected.findings if finding.source is not None]
    details: dict[str, Any] = {
        "import": {
            "format": ", ".join(source.formats),
            "every_slice": options.every_slice,
            "hu_offset": options.hu_offset if not source.slices else None,
            "pixel_convention": "pixel_edge" if options.pixel_edge else "pixel_centre",
            "pseudonyms": "numbered" if key is None else "keyed",
            "num_files": len(source.files),
            "num_skipped": len(skipped),
        },
        "lesions": [manifest_entry(lesion) for lesion in lesions],
    }
    with commit_directory(store) as folder:
        write_store(rois, folder, details=details)
        write_text_atomic(folder / REPORT, report_csv(lesions, labels, named, skipped))
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
        num_patients=len(named),
        num_skipped=len(skipped),
        classes=classes,
        class_counts=counts,
        findings=tuple(collected.findings),
        sheet=store / SHEET,
        report=store / REPORT,
    )
