"""Which class a lesion belongs to: from a CSV or LesaNet's terms, from its name by a map, or as the source states."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lesionaug.data.csv_files import read_rows
from lesionaug.data.slices import Finding, Lesion, patient_key
from lesionaug.errors import ConfigError, DataError

LEAVE_OUT = "-"  # --label-map Liver=-
LAST_RESORT = "*"  # --label-map *=-

# LesaNet's terms for the paper's classes; the labels are of all organs, and these are lesions of the liver.
CLASS_TERMS = ("cyst", "hemangioma", "metastasis")
ORGAN_TERM = "liver"

_MAX_TERMS_BYTES = 64 << 20
_MOST_TERMS = 10_000


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

    @property
    def names_classes(self) -> bool:
        """Whether any rule does more than leave out."""
        return any(label != LEAVE_OUT for _, label in self.rules)

    def find(self, *names: str) -> str | None:
        """The class of something with these names (or `-`), None where no rule fits.

        An exact rule wins over patterns, and every other rule over a `*` alone, which holds for all that have none.

        Raises:
            ConfigError: When rules with different classes fit.
        """
        wanted = [name.strip().casefold() for name in names if name.strip()]
        rules = dict(self.rules)
        fitting = {rules[name] for name in wanted if name in rules}
        if not fitting:
            fitting = {
                label
                for pattern, label in self.rules
                if pattern != LAST_RESORT and any(fnmatch.fnmatchcase(name, pattern) for name in wanted)
            }
        if not fitting and LAST_RESORT in rules:
            return rules[LAST_RESORT]
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


@dataclass(frozen=True)
class LesionTerms:
    """LesaNet's labels of DeepLesion, terms out of radiology reports, as classes of single lesions.

    A lesion has a class when its relevant terms hold "liver" and the terms of exactly one class, and its uncertain
    terms hold those of no other class. Every other lesion has none and is left out.

    Attributes:
        name: Of the file.
        labels: The class by the lesion's row in NIH's table, from 0.
        num_ambiguous: Lesions of the liver left out because their terms are those of several classes.
    """

    name: str
    labels: Mapping[str, str]
    num_ambiguous: int = 0

    # What DeepLesion's own coarse types call a place that may be the liver.
    likely_places: ClassVar[tuple[str, ...]] = ("liver", "abdomen", "unlabelled")

    @classmethod
    def read(cls, path: Path, label_map: LabelMap) -> LesionTerms:
        """Read text_mined_labels_171_and_split.json or hand_labeled_test_set.json.

        Args:
            path: The JSON file.
            label_map: TERM=CLASS in place of cyst, hemangioma and metastasis; TERM=- leaves lesions with it out.

        Raises:
            DataError: When it is another file, or its lists do not fit together.
            ConfigError: For a rule that fits no term.
        """
        if not path.is_file():
            raise DataError(f"--labels {path.name}", "there is no such file", "Give LesaNet's JSON or a CSV")
        lesions = list(_lesions_of(_read_json(path), path.name))
        classes = _classes_of_terms({term for _, *both in lesions for terms in both for term in terms}, label_map)
        labels: dict[str, str] = {}
        seen: dict[int, str | None] = {}
        ambiguous = 0
        for index, relevant, uncertain in lesions:
            sure = {classes[term] for term in relevant if term in classes}
            label: str | None = None
            if ORGAN_TERM in relevant and sure:
                unsure = {classes[term] for term in uncertain if term in classes} - sure - {LEAVE_OUT}
                if len(sure) == 1 and not unsure:
                    label = next(iter(sure - {LEAVE_OUT}), None)
                elif LEAVE_OUT not in sure:
                    ambiguous += 1
            if seen.setdefault(index, label) != label:
                raise DataError(path.name, f"lesion {index} has two different entries", "Use the file as published")
            if label is not None:
                labels[str(index)] = label
        return cls(path.name, labels, ambiguous)


def read_labels(path: Path, label_map: LabelMap) -> LabelFile | LesionTerms:
    """The label file at a path: a CSV, or LesaNet's JSON, whose terms the map gives classes.

    Raises:
        DataError: When it cannot be used.
        ConfigError: When a rule of the map fits no term of the JSON.
    """
    return LesionTerms.read(path, label_map) if holds_terms(path) else LabelFile.read(path)


def holds_terms(path: Path) -> bool:
    """Whether a label file is meant to be LesaNet's JSON."""
    return path.suffix.lower() == ".json"


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_TERMS_BYTES:
        raise DataError(path.name, f"a label file may have at most {_MAX_TERMS_BYTES >> 20} MiB", "Use LesaNet's own")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(path.name, "this is no valid JSON", "Use the file as published") from error


def _lesions_of(content: Any, where: str) -> Iterator[tuple[int, frozenset[str], frozenset[str]]]:
    """(row in NIH's table, relevant terms, uncertain terms) of every lesion."""
    broken = DataError(
        where,
        "the file must be LesaNet's text_mined_labels_171_and_split.json or hand_labeled_test_set.json",
        "Use the file as published, or a CSV with patient_id and label",
    )
    if isinstance(content, list):  # labelled by hand
        for entry in content:
            terms = entry.get("expanded_terms") if isinstance(entry, dict) else None
            if not isinstance(terms, list) or not all(isinstance(term, str) for term in terms):
                raise broken
            yield _lesion_index(entry.get("lesion_idx"), broken), frozenset(terms), frozenset()
        return
    names = content.get("term_list") if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) > _MOST_TERMS or not all(isinstance(name, str) for name in names):
        raise broken
    for split in ("train", "val", "test"):
        lists = [content.get(f"{split}_{part}") for part in ("lesion_idxs", "relevant_labels", "uncertain_labels")]
        if (
            not all(isinstance(part, list) for part in lists)
            or len({len(part) for part in lists if part is not None}) != 1
        ):
            raise broken
        for index, *both in zip(*lists, strict=True):
            for numbers in both:
                if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(names) for n in numbers):
                    raise broken
            relevant, uncertain = (frozenset(names[n] for n in numbers) for numbers in both)
            yield _lesion_index(index, broken), relevant, uncertain


def _lesion_index(value: Any, broken: DataError) -> int:
    if type(value) is not int or not 0 <= value < 10**9:
        raise broken
    return value


def _classes_of_terms(terms: set[str], label_map: LabelMap) -> dict[str, str]:
    """The class of every term that has one."""
    if not label_map:
        return {term: term for term in CLASS_TERMS}
    rules = LabelMap(tuple(rule for rule in label_map.rules if rule != (LAST_RESORT, LEAVE_OUT)))
    for rule in rules.rules:
        if rule[0] == LAST_RESORT or not any(LabelMap((rule,)).find(term) for term in terms):
            why = "fits every term" if rule[0] == LAST_RESORT else "fits no term of the label file"
            raise ConfigError(f"--label-map {'='.join(rule)}", why, "Name one of LesaNet's terms, as cyst=cyst")
    found = {term: rules.find(term) for term in terms}
    return {term: label for term, label in found.items() if label is not None}


def assign_labels(
    lesions: Sequence[Lesion], label_file: LabelFile | LesionTerms | None, label_map: LabelMap, findings: list[Finding]
) -> list[str | None]:
    """The class of each lesion; None for one without (a finding says so, an error where classes were asked for).

    In this order: the label file; the map; the source's own statement (a table's label column, the segment labels of
    the phantom); else all are unlabelled, which the augmentation accepts and training refuses.
    """
    if isinstance(label_file, LesionTerms):
        return _from_terms(lesions, label_file, findings)
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
    unmapped = dict.fromkeys(lesion.margin for lesion, label in zip(lesions, labels, strict=True) if label is None)
    if not unmapped:
        return labels
    margins = dict.fromkeys(lesion.margin for lesion in lesions)
    missing = Counter(margin.name for margin in unmapped)
    rule = f"the map has no rule for {_counted(missing)}; found here: {_counted(Counter(m.name for m in margins))}"
    others = Counter(name for margin in margins for name in margin.also_named if name)
    if others:
        rule += f"; also called {_counted(others)}"
    name = missing.most_common(1)[0][0]
    fix = "Add --label-map '*=-' to leave out all that have no rule"
    if name:
        fix = f"Add --label-map '{name}=CLASS', or '{name}=-' to leave those out; '*=-' leaves out all without a rule"
    findings.append(Finding("error", "--label-map", rule, fix))
    for margin in unmapped:
        reason = "its name is not in the label map"
        findings.append(Finding("info", margin.where, reason, "", reason, margin.source, margin.number))
    return labels


_MOST_NAMES = 30  # listed in an error


def _counted(names: Counter[str]) -> str:
    """Names, each with how often it occurs, the most frequent first."""
    ordered = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(
        f"'{name}' ({count})" if name else f"(no name) ({count})" for name, count in ordered[:_MOST_NAMES]
    )
    return listed + (f" and {len(ordered) - _MOST_NAMES} more names" if len(ordered) > _MOST_NAMES else "")


def _from_terms(lesions: Sequence[Lesion], terms: LesionTerms, findings: list[Finding]) -> list[str | None]:
    labels = [terms.labels.get(lesion.margin.key) for lesion in lesions]
    used = len({lesion.margin.key for lesion, label in zip(lesions, labels, strict=True) if label is not None})
    rule = f"{len(terms.labels)} lesions have one class alone, {used} of them are here"
    if terms.num_ambiguous:
        rule += f"; {terms.num_ambiguous} with several classes, or another one that is uncertain, are left out"
    findings.append(Finding("info", terms.name, rule))
    odd = Counter(lesion.margin.name for lesion in lesions if lesion.margin.name not in terms.likely_places)
    if odd:
        rule = f"lesions that it places in the liver lie elsewhere by the table: {_counted(odd)}"
        findings.append(Finding("warning", terms.name, rule, "Check that the table's rows are NIH's, in their order"))
    return labels
