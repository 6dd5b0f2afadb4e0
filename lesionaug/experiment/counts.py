"""What the report counts: of the data, of models whose folds are pooled, of steps, of memorisation, of the paper."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lesionaug.errors import DataError
from lesionaug.evaluation.classification import ClassificationSummary, wilson_interval
from lesionaug.evaluation.statistics import seed_spread
from lesionaug.experiment import paper
from lesionaug.experiment.graph import TRAIN_ANEW
from lesionaug.experiment.protocol import STAGES, memorisation_name
from lesionaug.experiment.results import read_json
from lesionaug.experiment.study_results import expert_numbers

if TYPE_CHECKING:
    from lesionaug.experiment.results import RunResults, TaskResult


Number = int | float | None
PAPER_DIFFERENCE = (paper.CNN_AUG_GAN.correct - paper.CNN_AUG.correct) / paper.NUM_LESIONS


@dataclass(frozen=True)
class Models:
    """Models whose test folds are pooled.

    Attributes:
        key: Prefix of their numbers.
        tasks: Those that are there.
        expected: How many there are when complete.
        seeds: Seeds whose every test fold is there: what the numbers are made of.
        confusion: Sum of the confusion matrices of these seeds, int64 [C, C]; None without a complete seed.
    """

    key: str
    tasks: tuple[TaskResult, ...] = field(repr=False)
    expected: int
    seeds: tuple[int, ...]
    confusion: npt.NDArray[np.int64] | None

    @property
    def complete(self) -> bool:
        """Every model of every seed is there."""
        return len(self.tasks) == self.expected

    def of_seed(self, seed: int) -> list[TaskResult]:
        """The models of a seed, by test fold."""
        return sorted((task for task in self.tasks if task.seed == seed), key=lambda task: task.split)

    def correct(self, seed: int) -> npt.NDArray[np.bool_]:
        """[lesions] in the order of the folds: whether a complete seed has each right."""
        return np.concatenate([task.labels == task.predicted for task in self.of_seed(seed)])

    @property
    def patients(self) -> tuple[str, ...]:
        """[lesions] of the first complete seed, in the same order."""
        return tuple(patient for task in self.of_seed(self.seeds[0]) for patient in task.patient_ids)


def key_part(name: str) -> str:
    """A class name as one part of a key: a dot in it must not look like the dot between two parts."""
    return name.replace("~", "~0").replace(".", "~1")


def count_data(values: dict[str, Number], results: RunResults, classes: Sequence[str]) -> None:
    """Lesions and patients: in all, per class, per fold."""
    lesions = results.folds.lesions
    values["data.lesions"] = len(lesions)
    values["data.patients"] = len({lesion.patient_id for lesion in lesions})
    for name in classes:
        members = [lesion for lesion in lesions if lesion.label == name]
        values[f"data.class.{key_part(name)}.lesions"] = len(members)
        values[f"data.class.{key_part(name)}.patients"] = len({lesion.patient_id for lesion in members})
    for fold in range(results.folds.num_folds):
        members = [lesion for lesion in lesions if lesion.fold == fold]
        counts = Counter(lesion.label for lesion in members)
        values[f"fold.{fold}.lesions"] = len(members)
        values[f"fold.{fold}.patients"] = len({lesion.patient_id for lesion in members})
        for name in classes:
            values[f"fold.{fold}.class.{key_part(name)}"] = counts[name]


def count_models(values: dict[str, Number], models: Models, classes: Sequence[str]) -> None:
    """Accuracy, confusion, sensitivity and specificity of models; what they were trained on."""
    key = models.key
    values[f"{key}.models"] = len(models.tasks)
    values[f"{key}.models_expected"] = models.expected
    if not models.tasks:
        return
    for name, source in (
        ("per_lesion", "per_lesion"),
        ("added_per_fold", "actual_added_per_fold"),
        ("synthetic", "num_synthetic"),
        ("train_images", "num_train_images"),
        ("steps", "steps"),
        ("epochs", "epochs"),
    ):
        found = [task.info[source] for task in models.tasks if source in task.info]
        if found:
            values[f"{key}.{name}.min"], values[f"{key}.{name}.max"] = min(found), max(found)
    values[f"{key}.seconds"] = sum(float(task.info["seconds"]) for task in models.tasks)
    for task in models.tasks:
        correct, total = int((task.labels == task.predicted).sum()), len(task.labels)
        values[f"{key}.seed.{task.seed}.fold.{task.split}.correct"] = correct
        values[f"{key}.seed.{task.seed}.fold.{task.split}.total"] = total
        values[f"{key}.seed.{task.seed}.fold.{task.split}.accuracy"] = _ratio(correct, total)
    accuracies = []
    for seed in models.seeds:
        right = models.correct(seed)
        values[f"{key}.seed.{seed}.correct"] = int(right.sum())
        values[f"{key}.seed.{seed}.accuracy"] = _ratio(int(right.sum()), len(right))
        accuracies.append(float(right.mean()))
    if models.confusion is None:
        return
    values[f"{key}.seed_deviation"] = seed_spread(accuracies).deviation
    repeats = len(models.seeds)
    summary = ClassificationSummary.from_confusion(models.confusion, classes)
    values[f"{key}.correct"] = summary.num_correct / repeats
    values[f"{key}.total"] = summary.total // repeats
    _rate(values, f"{key}.accuracy", summary.accuracy, summary.total // repeats)
    positives = models.confusion.sum(axis=1) // repeats
    for i, true in enumerate(classes):
        for j, predicted in enumerate(classes):
            count = int(models.confusion[i, j]) / repeats
            values[f"{key}.confusion.{key_part(true)}.{key_part(predicted)}"] = count
            values[f"{key}.confusion_share.{key_part(true)}.{key_part(predicted)}"] = _ratio(count, int(positives[i]))
        _rate(values, f"{key}.sensitivity.{key_part(true)}", float(summary.sensitivity[i]), int(positives[i]))
        _rate(
            values,
            f"{key}.specificity.{key_part(true)}",
            float(summary.specificity[i]),
            int(positives.sum() - positives[i]),
        )
    values[f"{key}.weighted_sensitivity"] = _finite(summary.weighted_sensitivity)
    values[f"{key}.weighted_specificity"] = _finite(summary.weighted_specificity)
    values[f"{key}.macro_sensitivity"] = _finite(summary.macro_sensitivity)
    values[f"{key}.macro_specificity"] = _finite(summary.macro_specificity)


def count_steps(values: dict[str, Number], results: RunResults) -> None:
    """Steps and their seconds, of the whole run and of each stage; those of steps that are done."""
    seconds = {
        step.name: float(results.task_info(step.name)["seconds"]) for step in results.steps if step.name in results.done
    }
    values["run.steps"], values["run.steps_expected"] = len(seconds), len(results.steps)
    values["run.seconds"] = sum(seconds.values())
    for stage in STAGES:
        names = [step.name for step in results.steps if step.stage == stage]
        if names:
            values[f"stage.{stage}.steps"] = sum(name in seconds for name in names)
            values[f"stage.{stage}.steps_expected"] = len(names)
            values[f"stage.{stage}.seconds"] = sum(seconds.get(name, 0.0) for name in names)
    for name, value in seconds.items():
        values[f"step.{name}.seconds"] = value


# Name in the keys -> path in evaluation.json; an estimate has "value", "low" and "high".
MEMORISATION: Mapping[str, tuple[str, ...]] = {
    "training_lesions": ("num_training_lesions",),
    "held_out_lesions": ("num_held_out_lesions",),
    "kid.synthetic": ("kid_to_training", "synthetic"),
    "kid.held_out": ("kid_to_training", "held-out lesions"),
    "kid.blurred": ("kid_to_training", "blurred training lesions"),
    "kid.noise": ("kid_to_training", "noise"),
    "nearer_to_training": ("memorisation", "nearer_to_training"),
    "copies.synthetic": ("memorisation", "copies", "synthetic"),
    "copies.held_out": ("memorisation", "copies", "held-out lesions"),
    "membership.distance": ("memorisation", "membership_by_distance"),
    "membership.discriminator": ("memorisation", "membership_by_discriminator"),
    "as_wanted.synthetic": ("classified_as_wanted", "synthetic"),
    "as_wanted.held_out": ("classified_as_wanted", "held-out lesions"),
    "spread.synthetic": ("diversity", "synthetic", "spread"),
    "spread.held_out": ("diversity", "held-out lesions", "spread"),
}


def count_memorisation(values: dict[str, Number], results: RunResults) -> dict[tuple[str, int, str], str | None]:
    """What memorisation/*/evaluation.json says, by kind of GAN, split and class; keys `memorisation.`."""
    measured: dict[tuple[str, int, str], str | None] = {}
    for kind, split in itertools.product(results.config.gans, range(results.folds.num_folds)):
        name = memorisation_name(kind, split)
        if name not in results.done:
            continue
        where = f"memorisation/{name}"
        found = read_json(results.path / where, "evaluation.json", where, TRAIN_ANEW)
        for label in results.classes:
            key = f"memorisation.{kind}.{split}.{key_part(label)}"
            try:
                one = found["classes"][label]
                if "not_measured" in one:
                    measured[kind, split, label] = str(one["not_measured"])
                    continue
                for short, path in MEMORISATION.items():
                    value: Any = one
                    for part in path:
                        value = value[part]
                    ends = ("value", "low", "high") if isinstance(value, dict) else ("",)
                    for end in ends:
                        number = value[end] if end else value
                        full = f"{key}.{short}" + ("" if end in ("", "value") else f".{end}")
                        values[full] = None if number is None else _finite(number)
            except (KeyError, TypeError, ValueError) as error:
                rule = f"it cannot be read ({type(error).__name__}: {error})"
                raise DataError(f"{where}/evaluation.json", rule, TRAIN_ANEW) from error
            measured[kind, split, label] = None
    return measured


def _rate(values: dict[str, Number], key: str, rate: float, total: int) -> None:
    """A rate and its Wilson interval over `total` lesions; for a mean over seeds, that of the nearest whole count."""
    values[key] = _finite(rate)
    values[f"{key}.low"] = values[f"{key}.high"] = None
    if total and math.isfinite(rate):
        values[f"{key}.low"], values[f"{key}.high"] = wilson_interval(round(rate * total), total)


def _ratio(count: float, total: int) -> float | None:
    return count / total if total else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def count_paper(values: dict[str, Number]) -> None:
    """The paper's own numbers, from `experiment/paper.py`; all their keys begin with `paper.`."""
    values.update(expert_numbers())
    values["paper.lesions"] = paper.NUM_LESIONS
    values["paper.difference"] = PAPER_DIFFERENCE
    for name, count in zip(paper.CLASSES, paper.CLASS_COUNTS, strict=True):
        values[f"paper.class.{name}.lesions"] = count
    curves = {
        "classic": (paper.CLASSIC_GROUP_SIZES, paper.FIGURE_8_CLASSIC_CORRECT),
        "dcgan": (paper.SYNTHETIC_GROUP_SIZES, paper.FIGURE_8_SYNTHETIC_CORRECT),
    }
    for arm, (sizes, counts) in curves.items():
        for size, correct in zip(sizes, counts, strict=True):
            values[f"paper.{arm}.{size}.correct"] = correct
            values[f"paper.{arm}.{size}.accuracy"] = correct / paper.NUM_LESIONS
    for result in (paper.CNN_AUG, paper.CNN_AUG_GAN, paper.BOVW_MI, *paper.TABLE_IV):
        key = f"paper.{result.name}"
        values[f"{key}.correct"] = result.correct
        values[f"{key}.weighted_sensitivity"] = result.weighted_sensitivity_pct / 100
        values[f"{key}.weighted_specificity"] = result.weighted_specificity_pct / 100
        if result.confusion:
            summary = ClassificationSummary.from_confusion(np.array(result.confusion), paper.CLASSES)
            values[f"{key}.macro_sensitivity"] = summary.macro_sensitivity
            values[f"{key}.macro_specificity"] = summary.macro_specificity
            for i, true in enumerate(paper.CLASSES):
                for j, predicted in enumerate(paper.CLASSES):
                    values[f"{key}.confusion.{true}.{predicted}"] = result.confusion[i][j]
        if result.sensitivity_pct and result.specificity_pct:
            for i, name in enumerate(paper.CLASSES):
                values[f"{key}.sensitivity.{name}"] = result.sensitivity_pct[i] / 100
                values[f"{key}.specificity.{name}"] = result.specificity_pct[i] / 100
