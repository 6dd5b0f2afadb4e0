"""Every number of the report, counted from the saved predictions; each has a key, and the page shows it by that key."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lesionaug.evaluation.classification import ClassificationSummary, wilson_interval
from lesionaug.evaluation.statistics import bootstrap_difference, holm, mcnemar, needed_lesions, seed_spread
from lesionaug.experiment import paper
from lesionaug.experiment.protocol import task_name

if TYPE_CHECKING:
    from lesionaug.experiment.results import RunResults, TaskResult

Number = int | float | None


@dataclass(frozen=True)
class Group:
    """What is known of one augmentation group of a run.

    Attributes:
        size: Augmented samples per fold that were asked for.
        key: Prefix of its numbers.
        tasks: Its trained models.
        expected: Models it has when complete.
        seeds: Seeds whose every test fold is there: what its numbers are made of.
        confusion: Sum of the confusion matrices of these seeds, int64 [C, C]; None without a complete seed.
        capped: The plan has fewer augmentations than the size asks for.
    """

    size: int
    key: str
    tasks: tuple[TaskResult, ...]
    expected: int
    seeds: tuple[int, ...]
    confusion: npt.NDArray[np.int64] | None
    capped: bool

    @property
    def complete(self) -> bool:
        """Every model of every seed is there."""
        return len(self.tasks) == self.expected

    def accuracy(self, seed: int) -> float:
        """Of one complete seed, over all test folds."""
        parts = [task.labels == task.predicted for task in self.tasks if task.seed == seed]
        return float(np.concatenate(parts).mean())


@dataclass(frozen=True)
class ReportNumbers:
    """The numbers of a report.

    Attributes:
        values: Key -> number; None where it is not defined (0 of 0).
        groups: The classic groups the configuration asks for, by size.
        optimum: Size of the classic optimum by the paper's rule, or None.
        classes: Names of the classes, in the order of the confusion matrices.
        missing: Names of the models that a complete run would have.
        splits: The test folds, 0 ...
        seeds: Seeds of the configuration.
        tasks: The trained models that are there, by name.
    """

    values: dict[str, Number]
    groups: tuple[Group, ...]
    optimum: int | None
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    splits: tuple[int, ...]
    seeds: tuple[int, ...]
    tasks: tuple[TaskResult, ...] = field(repr=False)

    @property
    def shown_groups(self) -> list[Group]:
        """The groups that have numbers."""
        return [group for group in self.groups if group.seeds]


def collect_numbers(results: RunResults) -> ReportNumbers:
    """Count everything the report shows.

    Counts of a run with several seeds are means over the seeds, whose models saw the same test lesions; intervals count
    each lesion once, never once per seed (Wilson's, at the whole count nearest to the mean).

    Args:
        results: The run, complete or not.
    """
    classes, seeds = results.classes, results.seeds
    splits = tuple(range(results.folds.num_folds))
    tasks = {task.name: task for task in results.tasks}
    plan_length = results.config.plan.n_augmentations
    values: dict[str, Number] = {}
    _count_data(values, results, classes)
    groups = []
    for size in results.groups("classic"):
        there = [
            tasks[name]
            for seed in seeds
            for split in splits
            if (name := task_name("classic", size, split, seed)) in tasks
        ]
        full = tuple(seed for seed in seeds if results.complete("classic", size, seed))
        confusion = None
        if full:
            confusion = np.sum([results.pooled("classic", size, seed).summary.confusion for seed in full], axis=0)
        capped = round(len(splits) * size / len(results.folds.lesions)) > plan_length
        group = Group(size, f"classic.{size}", tuple(there), len(seeds) * len(splits), full, confusion, capped)
        _count_group(values, group, classes)
        groups.append(group)
    _compare(values, results, groups)
    optimum = best_group(groups)
    if optimum is not None:
        values["optimum.size"] = optimum
        values["optimum.correct"] = values[f"classic.{optimum}.correct"]
    values["run.models"] = len(tasks)
    values["run.models_expected"] = len(splits) * len(seeds) * len(groups)
    values["run.seconds"] = sum(float(task.info["seconds"]) for task in tasks.values())
    for task in tasks.values():
        for name in ("num_train_lesions", "num_train_images", "epochs", "steps", "seconds"):
            values[f"task.{task.name}.{name}"] = task.info[name]
        values[f"task.{task.name}.correct"] = int((task.labels == task.predicted).sum())
        values[f"task.{task.name}.total"] = len(task.labels)
    _count_paper(values)
    return ReportNumbers(
        values, tuple(groups), optimum, classes, results.missing("classic"), splits, seeds, results.tasks
    )


def _compare(values: dict[str, Number], results: RunResults, groups: Sequence[Group]) -> None:
    """Every group with the smallest one, on the same lesions; keys `compare.{size}.`.

    The difference is the mean over the seeds both have, its interval draws patients. McNemar's test is of the first of
    these seeds, for one model of each arm is what it compares; Holm adjusts it for the number of groups.
    """
    shown = [group for group in groups if group.seeds]
    tested: dict[str, float] = {}
    for group in shown[1:]:
        seeds = [seed for seed in group.seeds if seed in shown[0].seeds]
        if not seeds:
            continue
        sides = [[results.pooled("classic", size, seed) for seed in seeds] for size in (shown[0].size, group.size)]
        first, second = ([part.predicted == part.labels for part in side] for side in sides)
        key, patients = f"compare.{group.size}", sides[0][0].patient_ids
        values[f"{key}.with"] = shown[0].size
        difference = bootstrap_difference(first, second, patients, seed=0)
        values[f"{key}.difference"] = difference.value
        values[f"{key}.difference.low"], values[f"{key}.difference.high"] = difference.low, difference.high
        test = mcnemar(first[0], second[0])
        values[f"{key}.gained"], values[f"{key}.lost"] = test.only_second, test.only_first
        values[f"{key}.p"] = tested[key] = test.p_value
        discordance = (test.only_first + test.only_second) / test.num_lesions
        values[f"{key}.discordance"] = discordance
        change = (test.only_second - test.only_first) / test.num_lesions
        values[f"{key}.needed_lesions"] = (
            needed_lesions(change, discordance, exact=True) if change and discordance < 1 else None
        )
    if tested:
        for key, adjusted in zip(tested, holm(list(tested.values())).tolist(), strict=True):
            values[f"{key}.p_holm"] = adjusted
    for group in shown:
        spread = seed_spread([group.accuracy(seed) for seed in group.seeds])
        values[f"{group.key}.seed_deviation"] = spread.deviation


def best_group(groups: Iterable[Group]) -> int | None:
    """The paper's rule: the smallest group with the highest number of correct test lesions.

    It looks at the test folds that are reported: the one exception the paper makes, and every report says so. A group's
    correct lesions are the mean over its complete seeds.
    """
    best: tuple[float, int] | None = None
    for group in sorted(groups, key=lambda group: group.size):
        if group.confusion is None:
            continue
        correct = int(group.confusion.trace()) / len(group.seeds)
        if best is None or correct > best[0]:
            best = (correct, group.size)
    return None if best is None else best[1]


def _count_data(values: dict[str, Number], results: RunResults, classes: Sequence[str]) -> None:
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


def key_part(name: str) -> str:
    """A class name as one part of a key: a dot in it must not look like the dot between two parts."""
    return name.replace("~", "~0").replace(".", "~1")


def _count_group(values: dict[str, Number], group: Group, classes: Sequence[str]) -> None:
    key = group.key
    values[f"{key}.size"] = group.size
    values[f"{key}.models"] = len(group.tasks)
    values[f"{key}.models_expected"] = group.expected
    if not group.tasks:
        return
    for name, source in (
        ("per_lesion", "per_lesion"),
        ("added_per_fold", "actual_added_per_fold"),
        ("train_images", "num_train_images"),
        ("steps", "steps"),
        ("epochs", "epochs"),
    ):
        found = [task.info[source] for task in group.tasks]
        values[f"{key}.{name}.min"], values[f"{key}.{name}.max"] = min(found), max(found)
    values[f"{key}.seconds"] = sum(float(task.info["seconds"]) for task in group.tasks)
    for task in group.tasks:
        correct, total = int((task.labels == task.predicted).sum()), len(task.labels)
        values[f"{key}.seed.{task.seed}.fold.{task.split}.correct"] = correct
        values[f"{key}.seed.{task.seed}.fold.{task.split}.total"] = total
        values[f"{key}.seed.{task.seed}.fold.{task.split}.accuracy"] = _ratio(correct, total)
    for seed in group.seeds:
        correct = sum(int((task.labels == task.predicted).sum()) for task in group.tasks if task.seed == seed)
        total = sum(len(task.labels) for task in group.tasks if task.seed == seed)
        values[f"{key}.seed.{seed}.correct"] = correct
        values[f"{key}.seed.{seed}.accuracy"] = _ratio(correct, total)
    if group.confusion is None:
        return
    repeats = len(group.seeds)
    summary = ClassificationSummary.from_confusion(group.confusion, classes)
    values[f"{key}.correct"] = summary.num_correct / repeats
    values[f"{key}.total"] = summary.total // repeats
    _rate(values, f"{key}.accuracy", summary.accuracy, summary.total // repeats)
    positives = group.confusion.sum(axis=1) // repeats
    for i, true in enumerate(classes):
        for j, predicted in enumerate(classes):
            count = int(group.confusion[i, j]) / repeats
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


def _count_paper(values: dict[str, Number]) -> None:
    """The paper's own numbers, from `experiment/paper.py`; all their keys begin with `paper.`."""
    values["paper.lesions"] = paper.NUM_LESIONS
    for name, count in zip(paper.CLASSES, paper.CLASS_COUNTS, strict=True):
        values[f"paper.class.{name}.lesions"] = count
    for size, correct in zip(paper.CLASSIC_GROUP_SIZES, paper.FIGURE_8_CLASSIC_CORRECT, strict=True):
        values[f"paper.classic.{size}.correct"] = correct
        values[f"paper.classic.{size}.accuracy"] = correct / paper.NUM_LESIONS
    for result in (paper.CNN_AUG, paper.CNN_AUG_GAN, paper.BOVW_MI, *paper.TABLE_IV):
        key = f"paper.{result.name}"
        values[f"{key}.correct"] = result.correct
        values[f"{key}.weighted_sensitivity"] = result.weighted_sensitivity_pct / 100
        values[f"{key}.weighted_specificity"] = result.weighted_specificity_pct / 100
        if result.confusion:
            summary = ClassificationSummary.from_confusion(np.array(result.confusion), paper.CLASSES)
            values[f"{key}.macro_sensitivity"] = summary.macro_sensitivity
            values[f"{key}.macro_specificity"] = summary.macro_specificity
        if result.sensitivity_pct and result.specificity_pct:
            for i, name in enumerate(paper.CLASSES):
                values[f"{key}.sensitivity.{name}"] = result.sensitivity_pct[i] / 100
                values[f"{key}.specificity.{name}"] = result.specificity_pct[i] / 100
