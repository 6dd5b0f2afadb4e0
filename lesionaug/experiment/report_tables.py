"""The report's tables as CSV files: fractions as fractions, every digit; each row says what data it is of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lesionaug.augment.sheet import banner
from lesionaug.data.files import write_text_atomic
from lesionaug.experiment import paper
from lesionaug.experiment.counts import MEMORISATION, Models, key_part
from lesionaug.experiment.numbers import ReportNumbers, group_key
from lesionaug.experiment.results import RunResults

_RATES = ("accuracy", "accuracy.low", "accuracy.high")
_AVERAGES = ("weighted_sensitivity", "weighted_specificity", "macro_sensitivity", "macro_specificity")
_SPANS = ("added_per_fold", "per_lesion", "synthetic", "train_images", "steps", "epochs")
_COMPARED = (
    "difference", "difference.low", "difference.high", "gained", "lost", "p", "p_holm", "discordance", "needed_lesions",
)  # fmt: skip


def write_tables(results: RunResults, numbers: ReportNumbers, folder: Path) -> None:
    """Write every table into a folder."""
    tables = {
        "groups": _groups(numbers),
        "methods": _methods(numbers),
        "folds": _folds(numbers),
        "confusion": _confusion(numbers),
        "measures": _measures(numbers),
        "groups_compared": _groups_compared(numbers),
        "pairs": _pairs(numbers),
        "choices": _choices(numbers),
        "memorisation": _memorisation(numbers),
        "models": _models(numbers),
        "steps": _steps(results, numbers),
        "study": _study(numbers),
    }
    for name, (header, rows) in tables.items():
        if name in ("memorisation", "pairs", "choices", "study") and not rows:
            continue
        _write_csv(folder / f"{name}.csv", [*header, "data"], ([*row, banner(results.kind)] for row in rows))


Table = tuple[Sequence[str], list[list[Any]]]


def _named(names: Iterable[str]) -> list[str]:
    return [name.replace(".", "_") for name in names]


def _span_names() -> list[str]:
    return [f"{name}_{end}" for name in _SPANS for end in ("min", "max")]


def _spans(values: Mapping[str, Any], models: Models) -> list[Any]:
    return [values.get(f"{models.key}.{name}.{end}") for name in _SPANS for end in ("min", "max")]


def _groups(numbers: ReportNumbers) -> Table:
    values = numbers.values
    rows = []
    for group in numbers.groups:
        choice = numbers.choices.get(group.arm)
        chosen = choice is not None and group.size == choice.paper
        correct = values.get(f"paper.{group_key(group.arm, group.size)}.correct")
        rows.append(
            [
                group.arm, group.size, len(group.tasks), group.expected, chosen, *_spans(values, group),
                *(values.get(f"{group.key}.{name}") for name in ("correct", "total", *_RATES, *_AVERAGES)),
                values.get(f"{group.key}.seed_deviation"), correct, None if correct is None else paper.NUM_LESIONS,
            ]
        )  # fmt: skip
    header = [
        "arm", "group_size", "models", "models_expected", "optimum_on_test_folds", *_span_names(),
        *_named(("correct", "total", *_RATES, *_AVERAGES)), "seed_deviation", "paper_correct_private_data",
        "paper_total",
    ]  # fmt: skip
    return header, rows


def _methods(numbers: ReportNumbers) -> Table:
    values = numbers.values
    names = ("correct", "total", *_RATES, *_AVERAGES)
    rows = [
        [
            method.id, method.name, method.control, " ".join(map(str, method.sizes)), *_spans(values, method),
            *(values.get(f"{method.key}.{name}") for name in names), values.get(f"{method.key}.seed_deviation"),
            *(values.get(f"paper.{method.paper}.{name}") for name in ("correct", *_AVERAGES[:2])),
        ]
        for method in numbers.methods
    ]  # fmt: skip
    header = [
        "method", "name", "control", "group_of_each_split", *_span_names(), *_named(names), "seed_deviation",
        "paper_correct_private_data", "paper_weighted_sensitivity", "paper_weighted_specificity",
    ]  # fmt: skip
    return header, rows


def _shown(numbers: ReportNumbers) -> Iterable[tuple[list[Any], Models]]:
    """Groups and methods with numbers, and what names them in a row."""
    for group in numbers.groups:
        if group.seeds:
            yield ["", group.arm, group.size], group
    for method in numbers.methods:
        yield [method.id, "", ""], method


_WHICH = ("method", "arm", "group_size")


def _folds(numbers: ReportNumbers) -> Table:
    rows = [
        [group.arm, group.size, task.seed, task.split]
        + [
            numbers.values[f"{group.key}.seed.{task.seed}.fold.{task.split}.{name}"]
            for name in ("correct", "total", "accuracy")
        ]
        for group in numbers.groups
        for task in group.tasks
    ]
    return ("arm", "group_size", "seed", "fold", "correct", "total", "accuracy"), rows


def _confusion(numbers: ReportNumbers) -> Table:
    rows = [
        [*which, true, guess]
        + [
            numbers.values[f"{models.key}.{name}.{key_part(true)}.{key_part(guess)}"]
            for name in ("confusion", "confusion_share")
        ]
        for which, models in _shown(numbers)
        for true in numbers.classes
        for guess in numbers.classes
    ]
    return (*_WHICH, "true", "predicted", "count_mean_over_seeds", "share_of_true"), rows


def _measures(numbers: ReportNumbers) -> Table:
    rows = [
        [*which, name, measure]
        + [numbers.values[f"{models.key}.{measure}.{key_part(name)}{end}"] for end in ("", ".low", ".high")]
        for which, models in _shown(numbers)
        for name in numbers.classes
        for measure in ("sensitivity", "specificity")
    ]
    return (*_WHICH, "class", "measure", "value", "wilson_low", "wilson_high"), rows


def _groups_compared(numbers: ReportNumbers) -> Table:
    values, rows = numbers.values, []
    for group in numbers.groups:
        key = f"compare.{group.size}" if group.arm == "classic" else f"compare.{group.key}"
        if group.arm in ("classic", "dcgan", "acgan") and f"{key}.p" in values:
            base = f"classic +{values[f'{key}.with']}" if group.arm == "classic" else "CNN-AUG"
            rows.append([group.arm, group.size, base, *(values.get(f"{key}.{name}") for name in _COMPARED)])
    return ("arm", "group_size", "compared_with", *_named(_COMPARED)), rows


def _pairs(numbers: ReportNumbers) -> Table:
    rows = [
        [first, second, *(numbers.values[f"pair.{first}.{second}.{name}"] for name in _COMPARED)]
        for first, second in numbers.pairs
    ]
    return ("first", "second", *_named(_COMPARED)), rows


def _choices(numbers: ReportNumbers) -> Table:
    rows = [
        [
            arm, choice.rule, choice.final, split, choice.paper, (choice.nested or {}).get(split),
            choice.in_use.get(split),
        ]
        for arm, choice in numbers.choices.items()
        for split in numbers.splits
    ]  # fmt: skip
    return ("arm", "rule_in_use", "final", "split", "by_the_papers_rule", "nested", "in_use"), rows


def _memorisation(numbers: ReportNumbers) -> Table:
    names = [
        f"{short}{end}"
        for short in MEMORISATION
        for end in (("", ".low", ".high") if short.startswith(("kid", "nearer", "membership")) else ("",))
    ]
    rows = [
        [kind, split, label, why or ""]
        + [numbers.values.get(f"memorisation.{kind}.{split}.{key_part(label)}.{name}") for name in names]
        for (kind, split, label), why in numbers.memorised.items()
    ]
    return ("gan", "split", "class", "not_measured", *_named(names)), rows


def _models(numbers: ReportNumbers) -> Table:
    names = ("num_train_lesions", "num_train_images", "epochs", "steps", "seconds", "correct", "total")
    rows = [
        [task.name, task.arm, task.group_size, task.split, task.seed]
        + [numbers.values.get(f"task.{task.name}.{name}") for name in names]
        for task in numbers.tasks
    ]
    return ("model", "arm", "group_size", "split", "seed", *names), rows


def _steps(results: RunResults, numbers: ReportNumbers) -> Table:
    rows = [
        [
            step.name, step.stage, step.folder, step.name in results.done,
            numbers.values.get(f"step.{step.name}.seconds"), results.done.get(step.name),
        ]
        for step in results.steps
    ]  # fmt: skip
    return ("step", "stage", "folder", "done", "seconds", "sha256_of_its_files"), rows


def _study(numbers: ReportNumbers) -> Table:
    return ("measure", "value"), [[key, value] for key, value in numbers.values.items() if key.startswith("study.")]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    write_text_atomic(path, stream.getvalue())
