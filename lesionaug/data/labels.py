"""Which class a lesion belongs to: from a CSV, from its name by a stated map, or from the source's own statement."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesionaug.data.csv_files import read_rows
from lesionaug.data.slices import Finding, Lesion, patient_key
from lesionaug.errors import ConfigError, DataError

LEAVE_OUT = "-"  # --label-map Liver=-


def class_name(written: str, where: str) -> str:
    """A class name, trimmed.

    Raises:
        DataError: When it is empty, longer than 64 characters, or holds anything that does not print.
    """
    name = written.strip()
    if not name or len(name) > 64 or not name.isprintable() or name == LEAVE_OUT:
        raise DataError(where, "a class name must be 1 .. 64 printable characters", "Correct the label")
    return name


@dataclass(frozen=True)
class LabelMap:
    """From the names of margins (ROI, segment, code, folder, table label) to classes.

    `*` and `?` match as in a shell, case does not matter.
    """

    rules: tuple[tuple[str, str], ...]  # (name or pattern, class)

    @classmethod
    def parse(cls, written: Sequence[str]) -> LabelMap:
        """The map of `NAME=CLASS` arguments; `NAME=-` leaves those lesions out.

        Raises:
            ConfigError: For an argument of another form, or one name given two classes.
        """
        rules: dict[str, str] = {}
        for argument in written:
            name, equals, label = argument.rpartition("=")
            name, label = name.strip().casefold(), label.strip()
            if not equals or not name or not label:
                raise ConfigError(
                    f"--label-map {argument}",
                    "must have the form NAME=CLASS",
                    "For example --label-map 'Tumor_*=metastasis'",
                )
            if label != LEAVE_OUT:
                try:
                    label = class_name(label, f"--label-map {argument}")
                except DataError as error:
                    raise ConfigError(error.where, error.rule, error.fix) from error
            if rules.setdefault(name, label) != label:
                raise ConfigError(f"--label-map {argument}", "one name has two classes", "Give it once")
        return cls(tuple(rules.items()))

    def __bool__(self) -> bool:
        return bool(self.rules)

    def find(self, *names: str) -> str | None:
        """The class of something with these names (or `-`), None where no rule fits; an exact rule wins over patterns.

        Raises:
            ConfigError: When rules with different classes fit.
        """
        wanted = [name.strip().casefold() for name in names if name.strip()]
        rules = dict(self.rules)
        fitting = {rules[name] for name in wanted if name in rules}
        if not fitting:
            fitting = {
                label for pattern, label in self.rules if any(fnmatch.fnmatchcase(name, pattern) for name in wanted)
            }
        if len(fitting) > 1:
            shown = ", ".join(f"'{name}'" for name in names if name.strip())
            raise ConfigError(
                "--label-map", f"{shown} fits rules of several classes", "Add a rule for exactly this name"
            )
        return next(iter(fitting), None)

    def leaves_out(self, *names: str) -> bool:
        """Whether the map says to leave lesions of these names out."""
        return self.find(*names) == LEAVE_OUT


@dataclass(frozen=True)
class LabelFile:
    """The rows of a label file: class by patient, or by patient and lesion."""

    name: str
    labels: dict[tuple[str, str | None], tuple[str, int]]  # to (class, line)

    @classmethod
    def read(cls, path: Path) -> LabelFile:
        """Read `patient_id[,lesion_id],label`.

        Raises:
            DataError: For missing columns, empty cells, or two classes for one lesion.
        """
        labels: dict[tuple[str, str | None], tuple[str, int]] = {}
        if not path.is_file():
            raise DataError(f"--labels {path.name}", "there is no such file", "Give the CSV with patient_id and label")
        for row in read_rows(path, path.name):
            where = f"{path.name} line {row['__line__']}"
            if "patient_id" not in row or "label" not in row:
                raise DataError(path.name, "a label file needs the columns patient_id and label", "Add them")
            if not row["patient_id"]:
                raise DataError(where, "patient_id is empty", "Fill it in")
            key = (patient_key(row["patient_id"]), row.get("lesion_id") or None)
            label = class_name(row["label"], where)
            if labels.setdefault(key, (label, int(row["__line__"])))[0] != label:
                raise DataError(where, "the same lesion has another class further up", "Keep one of the rows")
        if not labels:
            raise DataError(path.name, "the label file holds no rows", "Add a row for each patient or lesion")
        return cls(path.name, labels)


def assign_labels(
    lesions: Sequence[Lesion], label_file: LabelFile | None, label_map: LabelMap, findings: list[Finding]
) -> list[str | None]:
    """The class of each lesion; None for one without (a finding says so, an error where classes were asked for).

    In this order: the label file; the map; the source's own statement (a table's label column, the segment labels of
    the phantom); else all are unlabelled, which the augmentation accepts and training refuses.
    """
    if label_file is not None:
        return _from_file(lesions, label_file, findings)
    if label_map:
        return _from_map(lesions, label_map, findings)
    labels: list[str | None] = []
    for lesion in lesions:
        try:
            labels.append(
                class_name(lesion.margin.name, lesion.margin.where) if lesion.margin.names_its_class else None
            )
        except DataError as error:
            findings.append(Finding.refused(error, lesion.margin.source, lesion.margin.number))
            labels.append(None)
    unlabelled = sum(1 for lesion in lesions if not lesion.margin.names_its_class)
    if unlabelled and unlabelled < len(lesions):
        findings.append(
            Finding(
                "error",
                "labels",
                f"{unlabelled} of {len(lesions)} lesions have no class",
                "Give --labels or --label-map",
            )
        )
    elif unlabelled:
        found = ", ".join(repr(name) for name in sorted({lesion.margin.name for lesion in lesions} - {""})[:20])
        findings.append(
            Finding(
                "warning",
                "labels",
                "no labels were given, so the lesions are unlabelled (augmentation works, training refuses)",
                "Give --labels FILE or --label-map NAME=CLASS" + (f"; the names here are {found}" if found else ""),
            )
        )
    return labels


def _from_file(lesions: Sequence[Lesion], label_file: LabelFile, findings: list[Finding]) -> list[str | None]:
    labels: list[str | None] = []
    used: set[tuple[str, str | None]] = set()
    for lesion in lesions:
        patient = lesion.margin.patient
        names = dict.fromkeys((lesion.margin.named or patient, patient))
        lesion_keys = (lesion.margin.key, lesion.lesion_id, None)
        keys = [(name, key) for name in names for key in lesion_keys]
        key = next((key for key in keys if key in label_file.labels), None)
        if key is None:
            rows = sorted(str(own) for who, own in label_file.labels if who == patient)
            what = f"the file knows this patient's lesions {', '.join(rows)}" if rows else "the file lacks the patient"
            findings.append(
                Finding(
                    "error",
                    lesion.margin.where,
                    f"patient '{patient}' lesion '{lesion.margin.key}' ({lesion.lesion_id}) is not in "
                    f"{label_file.name}: {what}",
                    "Add a row patient_id,lesion_id,label, or patient_id,label for all lesions of the patient",
                    "not in the label file",
                    lesion.margin.source,
                    lesion.margin.number,
                )
            )
            labels.append(None)
            continue
        used.add(key)
        labels.append(label_file.labels[key][0])
    extra = sorted(line for key, (_, line) in label_file.labels.items() if key not in used)
    if extra:
        lines = ", ".join(map(str, extra[:10])) + (" ..." if len(extra) > 10 else "")
        findings.append(Finding("warning", label_file.name, f"{len(extra)} rows fit no lesion (lines {lines})", ""))
    return labels


def _from_map(lesions: Sequence[Lesion], label_map: LabelMap, findings: list[Finding]) -> list[str | None]:
    labels = [label_map.find(lesion.margin.name, *lesion.margin.also_named) for lesion in lesions]
    names = sorted({name for lesion in lesions for name in (lesion.margin.name, *lesion.margin.also_named)} - {""})
    for name in sorted({lesion.margin.name for lesion, label in zip(lesions, labels, strict=True) if label is None}):
        findings.append(
            Finding(
                "error",
                "--label-map",
                f"the name '{name}' is not in the map; found here: {', '.join(repr(n) for n in names[:30])}",
                f"Add --label-map '{name}=CLASS', or '{name}=-' to leave those lesions out",
            )
        )
    return labels
