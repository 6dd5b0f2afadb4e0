"""Folds of the cross validation (section IV-A): a patient lies in one fold only, and every fold holds every class."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionaug.data.files import json_text, write_json_atomic
from lesionaug.data.own_files import is_count, is_name, parse_json, read_plain_file
from lesionaug.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lesionaug.data.rois import RoiBatch

FOLDS_SCHEMA = 1
_MAX_FOLDS_BYTES = 256 << 20


@dataclass(frozen=True)
class FoldedLesion:
    """One lesion and the fold it is tested in."""

    lesion_id: str
    patient_id: str
    label: str
    fold: int


@dataclass(frozen=True)
class Folds:
    """Who is tested where; split k tests fold k and trains on the others.

    Attributes:
        num_folds: Folds (the paper: 3).
        seed: Of the assignment.
        lesions: Sorted by lesion id, so the order of a store plays no part.
    """

    num_folds: int
    seed: int
    lesions: tuple[FoldedLesion, ...]

    def __post_init__(self) -> None:
        """Check what every user of folds relies on.

        Raises:
            DataError: A patient in two folds, an empty fold, a fold without one of the classes, ids twice or unsorted.
        """
        ids = [lesion.lesion_id for lesion in self.lesions]
        if ids != sorted(set(ids)):
            raise DataError("folds", "lesion ids must be unique and sorted", "Make the folds again from the store")
        home: dict[str, int] = {}
        for lesion in self.lesions:
            if not 0 <= lesion.fold < self.num_folds:
                raise DataError(
                    "folds", f"fold {lesion.fold} is not in 0 .. {self.num_folds - 1}", "Make the folds again"
                )
            if home.setdefault(lesion.patient_id, lesion.fold) != lesion.fold:
                raise DataError(
                    "folds",
                    f"patient {lesion.patient_id} is in folds {home[lesion.patient_id]} and {lesion.fold}",
                    "Make the folds again; a patient must not be trained on and tested",
                )
        classes = sorted({lesion.label for lesion in self.lesions})
        for fold, counts in enumerate(self.class_counts()):
            for name in classes:
                if counts[name] == 0:
                    raise DataError(
                        "folds",
                        f"fold {fold} of {self.num_folds} has no {name}",
                        "Choose fewer folds or another fold seed (folds.seed)",
                    )

    def class_counts(self) -> list[Counter[str]]:
        """Lesions per class of each fold."""
        return [
            Counter(lesion.label for lesion in self.lesions if lesion.fold == fold) for fold in range(self.num_folds)
        ]

    def patient_counts(self) -> list[Counter[str]]:
        """Patients with a lesion of each class, of each fold; the key "" counts all patients of the fold."""
        counts: list[Counter[str]] = [Counter() for _ in range(self.num_folds)]
        for fold, label, _ in {(lesion.fold, lesion.label, lesion.patient_id) for lesion in self.lesions}:
            counts[fold][label] += 1
        for fold, _ in {(lesion.fold, lesion.patient_id) for lesion in self.lesions}:
            counts[fold][""] += 1
        return counts

    @property
    def sha256(self) -> str:
        """SHA-256 of the file that `save` writes, in hexadecimal."""
        return hashlib.sha256(json_text(self._to_json()).encode("utf-8")).hexdigest()

    def check_fits(self, rois: RoiBatch, where: str = "folds.json") -> None:
        """Refuse a batch that has other lesions, patients or classes.

        Raises:
            DataError: Naming the first lesion that differs.
        """
        names = [rois.classes[label] if label >= 0 else "" for label in rois.labels.tolist()]
        in_store = set(zip(rois.lesion_ids, rois.patient_ids, names, strict=True))
        mine = {(lesion.lesion_id, lesion.patient_id, lesion.label) for lesion in self.lesions}
        if in_store != mine:
            first = min(in_store ^ mine)
            which = "the store, not in the folds" if first in in_store else "the folds, not in the store"
            raise DataError(
                where,
                f"its lesions are not those of the store ({len(in_store ^ mine)} differ; {first[0]} of patient "
                f"{first[1]}, {first[2] or 'unlabelled'}, is in {which})",
                "Use the store that the folds were made from, or make new ones with `lesionaug data folds`",
            )

    def train_ids(self, split: int) -> tuple[str, ...]:
        """Lesion ids of every fold but `split`, sorted."""
        return tuple(lesion.lesion_id for lesion in self.lesions if lesion.fold != split)

    def test_ids(self, split: int) -> tuple[str, ...]:
        """Lesion ids of fold `split`, sorted."""
        return tuple(lesion.lesion_id for lesion in self.lesions if lesion.fold == split)

    def save(self, path: Path) -> None:
        """Write folds.json atomically."""
        write_json_atomic(path, self._to_json())

    def _to_json(self) -> dict[str, Any]:
        return {
            "schema": FOLDS_SCHEMA,
            "num_folds": self.num_folds,
            "seed": self.seed,
            "lesions": [vars(lesion) for lesion in self.lesions],
        }


def split_lesions(rois: RoiBatch, folds: Folds, split: int) -> tuple[RoiBatch, RoiBatch]:
    """The lesions that a split trains on, and those that it tests, in the order of their ids.

    Raises:
        DataError: Folds of lesions that the batch does not have.
    """
    return select_lesions(rois, folds.train_ids(split)), select_lesions(rois, folds.test_ids(split))


def select_lesions(rois: RoiBatch, lesion_ids: Sequence[str]) -> RoiBatch:
    """The lesions of these ids, in their order.

    Raises:
        DataError: An id that the batch does not have.
    """
    row = {lesion_id: i for i, lesion_id in enumerate(rois.lesion_ids)}
    if not row.keys() >= set(lesion_ids):
        raise DataError("folds.json", "its lesions are not those of the store", "Name a new folder")
    return rois[[row[lesion_id] for lesion_id in lesion_ids]]


def load_folds(path: Path) -> Folds:
    """Read what `Folds.save` wrote, and check it again.

    Raises:
        DataError: Missing, unknown or damaged file, or folds that leak.
    """
    try:
        fix = "Start a new run folder"
        saved: dict[str, Any] = parse_json(read_plain_file(path.resolve(), path.name, _MAX_FOLDS_BYTES, fix))
        if saved["schema"] != FOLDS_SCHEMA:
            raise ValueError(f"schema {str(saved['schema'])[:20]!r}, this version reads {FOLDS_SCHEMA}")
        rows = [tuple(row[name] for name in ("lesion_id", "patient_id", "label", "fold")) for row in saved["lesions"]]
        if not all(is_name(value) for row in rows for value in row[:3]):
            raise ValueError("ids and labels must be texts that print")
        num_folds, seed = saved["num_folds"], saved["seed"]
        # No fold is empty, so there are at least as many lesions as folds.
        if not is_count(num_folds, 1, len(rows)) or not all(is_count(row[3], 0, num_folds - 1) for row in rows):
            raise ValueError("num_folds and fold must be whole numbers, and no fold empty")
        if not is_count(seed, 0, (1 << 64) - 1):
            raise ValueError("seed must be a whole number from 0")
        return Folds(num_folds, seed, tuple(FoldedLesion(*row) for row in rows))
    except DataError as error:
        raise DataError(path.name, error.rule, error.fix) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            path.name, f"these folds cannot be read ({type(error).__name__}: {error})", "Start a new run folder"
        ) from error


def make_folds(rois: RoiBatch, num_folds: int = 3, seed: int = 0) -> Folds:
    """Stratified, patient-grouped folds of a labelled batch; see `assign_folds`.

    Raises:
        DataError: Unlabelled lesions, a class without lesions, or too few patients of a class.
    """
    labels = [int(label) for label in rois.labels]
    check_labelled(labels)
    unused = [name for index, name in enumerate(rois.classes) if index not in labels]
    if unused:
        raise DataError("ROIs", f"no lesion has the class {unused[0]}", "Import again without that class")
    return assign_folds(rois.lesion_ids, rois.patient_ids, [rois.classes[label] for label in labels], num_folds, seed)


def check_labelled(labels: Sequence[int]) -> None:
    """Refuse a batch with unlabelled (-1) lesions.

    Raises:
        DataError: How many lesions have no class, and what to do.
    """
    unlabelled = sum(label < 0 for label in labels)
    if unlabelled:
        raise DataError(
            "ROIs",
            f"{unlabelled} of {len(labels)} lesions have no class, and training needs one for each",
            "Import again with --labels or --label-map, or leave those lesions out",
        )


def assign_folds(
    lesion_ids: Sequence[str], patient_ids: Sequence[str], labels: Sequence[str], num_folds: int = 3, seed: int = 0
) -> Folds:
    """Assign every lesion to a fold (scikit-learn's StratifiedGroupKFold, shuffled).

    Args:
        lesion_ids: Unique.
        patient_ids: One per lesion; lesions of one patient stay together.
        labels: Class name of each lesion.
        num_folds: At least 2.
        seed: Of the shuffle. Lesions are sorted by id and patients by their smallest lesion id first, so neither the
            order they come in nor the names of the patients play a part: the same lesions under another pseudonym key
            give the same folds.

    Raises:
        ConfigError: Fewer than two folds.
        DataError: Fewer than two classes, or a class with fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if num_folds < 2:
        raise ConfigError("folds.num_folds", f"at least 2 folds are needed, got {num_folds}", "The paper uses 3")
    rows = sorted(zip(lesion_ids, patient_ids, labels, strict=True))
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataError(
            "ROIs",
            f"a classifier needs lesions of at least two classes, got {', '.join(classes) or 'none'}",
            "Label another class",
        )
    for name in classes:
        patients = len({patient for _, patient, label in rows if label == name})
        if patients < num_folds:
            raise DataError(
                "ROIs",
                f"class {name} has {patients} patient(s); {num_folds} folds need {num_folds} or more of each class",
                "Add patients, merge or leave out the class, or choose fewer folds (folds.num_folds, at least 2)",
            )
    splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    fold_of = np.full(len(rows), -1)
    rank = {patient: number for number, patient in enumerate(dict.fromkeys(row[1] for row in rows))}
    groups = [rank[patient] for _, patient, _ in rows]
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(rows)), [label for *_, label in rows], groups)):
        fold_of[test] = fold
    lesions = tuple(FoldedLesion(*row, fold=int(fold)) for row, fold in zip(rows, fold_of, strict=True))
    return Folds(num_folds, seed, lesions)
