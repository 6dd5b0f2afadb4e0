"""Every number of the report, counted from the saved predictions; each has a key, and the page shows it by that key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionaug.errors import DataError
from lesionaug.evaluation.statistics import (
    bootstrap_difference,
    holm,
    mcnemar,
    needed_lesions,
    power_of_mcnemar,
)
from lesionaug.experiment import paper
from lesionaug.experiment.choices import smallest_best
from lesionaug.experiment.counts import (
    PAPER_DIFFERENCE,
    Models,
    Number,
    count_data,
    count_memorisation,
    count_models,
    count_paper,
    count_steps,
)
from lesionaug.experiment.graph import TRAIN_ANEW
from lesionaug.experiment.protocol import SIZED, choice_name, task_name

if TYPE_CHECKING:
    from lesionaug.experiment.config import Control
    from lesionaug.experiment.results import RunResults, TaskResult


@dataclass(frozen=True)
class Group(Models):
    """A group of Fig. 8, or an arm that has one model alone.

    Attributes:
        arm: One of the run's arms.
        size: Images added per fold that were asked for.
        capped: The plan has fewer augmentations than the size asks for.
    """

    arm: str
    size: int
    capped: bool

    @property
    def sized(self) -> bool:
        """Its arm has groups."""
        return self.arm in SIZED


@dataclass(frozen=True)
class Method(Models):
    """What the tables compare: an arm at the size in use, which may differ from split to split.

    Attributes:
        id: As in the keys of pairs.
        name: As the page calls it.
        what: What it is trained on, in half a sentence.
        paper: The paper's name for it, or None.
        control: It is one of our controls, not of the paper.
        arm: Whose models it takes.
        sizes: Group of each split; 0 where the arm has none.
    """

    id: str
    name: str
    what: str
    paper: str | None
    control: bool
    arm: str
    sizes: tuple[int, ...]

    @property
    def sized(self) -> bool:
        """Its arm has groups."""
        return self.arm in SIZED

    @property
    def size_text(self) -> str:
        """Its groups: +500, or one for each split where they differ."""
        sizes = self.sizes[:1] if len(set(self.sizes)) == 1 else self.sizes
        return ", ".join(f"+{size:,}" for size in sizes)


@dataclass(frozen=True)
class Choice:
    """The group of an arm that the tables and later stages take.

    Attributes:
        arm: "classic" or a kind of GAN.
        rule: "paper" or "nested".
        paper: By the paper's rule, the smallest with the most correct test lesions.
        nested: Of each split by validation inside its training folds; None where there is none.
        in_use: Of each split; empty where the nested choice is not made yet.
        final: Made by the run; otherwise by the paper's rule from the groups that are there so far.
    """

    arm: str
    rule: str
    paper: int
    nested: Mapping[int, int] | None
    in_use: Mapping[int, int]
    final: bool


@dataclass(frozen=True)
class ReportNumbers:
    """The numbers of a report.

    Attributes:
        values: Key -> number; None where it is not defined (0 of 0).
        groups: Every group of every arm that the configuration asks for, by arm and size.
        methods: What the tables compare, without those that have no numbers.
        choices: By arm, where there is one.
        pairs: (first, second) of the methods that were compared, by id.
        optimum: Size of the classic optimum by the paper's rule, or None.
        classes: Names of the classes, in the order of the confusion matrices.
        missing: Names of the steps that a complete run would have.
        splits: The test folds, 0 ...
        seeds: Seeds of the configuration.
        tasks: The models with predictions that are there, by name.
        memorised: Prefix of the numbers of (kind of GAN, split, class) -> None, or why nothing was measured.
    """

    values: dict[str, Number]
    groups: tuple[Group, ...]
    methods: tuple[Method, ...]
    choices: dict[str, Choice]
    pairs: tuple[tuple[str, str], ...]
    optimum: int | None
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    splits: tuple[int, ...]
    seeds: tuple[int, ...]
    tasks: tuple[TaskResult, ...] = field(repr=False)
    memorised: dict[tuple[str, int, str], str | None]

    def of(self, arm: str) -> list[Group]:
        """The groups of an arm."""
        return [group for group in self.groups if group.arm == arm]

    def shown(self, arm: str = "classic") -> list[Group]:
        """Those of them that have numbers."""
        return [group for group in self.of(arm) if group.seeds]

    def method(self, name: str) -> Method | None:
        """A method by its id, where it has numbers."""
        return next((method for method in self.methods if method.id == name), None)


def collect_numbers(results: RunResults) -> ReportNumbers:
    """Count everything the report shows.

    Counts of a run with several seeds are means over the seeds, whose models saw the same test lesions; intervals count
    each lesion once, never once per seed (Wilson's, at the whole count nearest to the mean).

    Args:
        results: The run, complete or not.

    Raises:
        DataError: A choice or a comparison of the run that is damaged.
    """
    classes, seeds = results.classes, results.seeds
    splits = tuple(range(results.folds.num_folds))
    tasks = {task.name: task for task in results.tasks}
    values: dict[str, Number] = {}
    count_data(values, results, classes)
    groups = [_group(results, tasks, arm, size) for arm in results.arms for size in results.groups(arm)]
    for group in groups:
        values[f"{group.key}.size"] = group.size
        count_models(values, group, classes)
    choices = _choices(values, results, groups)
    methods = [method for method in _methods(results, tasks, choices) if method.seeds]
    for method in methods:
        count_models(values, method, classes)
    _compare_groups(values, groups, methods)
    pairs = _compare_methods(values, methods)
    if "classic" in choices:
        values["optimum.size"] = choices["classic"].paper
        values["optimum.correct"] = values[f"classic.{choices['classic'].paper}.correct"]
    values["run.models"] = len(tasks)
    values["run.models_expected"] = sum(group.expected for group in groups)
    for task in tasks.values():
        for name in ("num_train_lesions", "num_train_images", "epochs", "steps", "seconds"):
            if name in task.info:
                values[f"task.{task.name}.{name}"] = task.info[name]
        values[f"task.{task.name}.correct"] = int((task.labels == task.predicted).sum())
        values[f"task.{task.name}.total"] = len(task.labels)
    count_steps(values, results)
    memorised = count_memorisation(values, results)
    count_paper(values)
    return ReportNumbers(
        values=values,
        groups=tuple(groups),
        methods=tuple(methods),
        choices=choices,
        pairs=tuple(pairs),
        optimum=choices["classic"].paper if "classic" in choices else None,
        classes=classes,
        missing=results.missing(),
        splits=splits,
        seeds=seeds,
        tasks=results.tasks,
        memorised=memorised,
    )


def group_key(arm: str, size: int) -> str:
    """Prefix of the numbers of a group."""
    return f"{arm}.{size}" if arm in SIZED else arm


# --- what belongs together --------------------------------------------------------------------------------------------


def _group(results: RunResults, tasks: Mapping[str, TaskResult], arm: str, size: int) -> Group:
    splits = range(results.folds.num_folds)
    classic = arm in ("classic", "equal-steps")
    wanted = round(results.folds.num_folds * size / len(results.folds.lesions)) if classic else 0
    models = _pool(results, tasks, arm, [size] * len(splits))
    capped = wanted > results.config.plan.n_augmentations or any(task.info.get("capped") for task in models["tasks"])
    return Group(key=group_key(arm, size), arm=arm, size=size, capped=capped, **models)


def _pool(results: RunResults, tasks: Mapping[str, TaskResult], arm: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Tasks, seeds and confusion of an arm with a group for each split."""
    names = {
        seed: [task_name(arm, size, split, seed) for split, size in enumerate(sizes)] for seed in results.seeds
    }  # fmt: skip
    there = tuple(tasks[name] for wanted in names.values() for name in wanted if name in tasks)
    full = tuple(seed for seed, wanted in names.items() if all(name in tasks for name in wanted))
    confusion = None
    if full:
        pooled = [tasks[name].predictions.summary.confusion for seed in full for name in names[seed]]
        confusion = np.sum(pooled, axis=0)
    return {"tasks": there, "expected": len(sizes) * len(results.seeds), "seeds": full, "confusion": confusion}


CONTROLS: Mapping[Control, tuple[str, str]] = {
    "equal-steps": (
        "equal steps, smallest group",
        "the smallest classic group, trained for as many steps as the optimum takes",
    ),
    "equal-count": (
        "equal count",
        "as many more classic augmentations as CNN-AUG-GAN has synthetic images",
    ),
    "longer": (
        "longer, no augmentation",
        "the lesions alone, trained for as many steps as the longest training of the run",
    ),
    "synthetic-only": (
        "synthetic only",
        "the lesions and the DCGANs' images, without classic augmentation",
    ),
    "gan-originals": (
        "GANs of the originals",
        "the same with DCGANs that have seen no classic augmentation either",
    ),
}


def _methods(results: RunResults, tasks: Mapping[str, TaskResult], choices: Mapping[str, Choice]) -> Iterable[Method]:
    """Every method of the paper that this run has, then the controls; without numbers where models are missing."""
    config = results.config
    splits = range(results.folds.num_folds)
    smallest = (config.classic_groups[0],) * len(splits)

    def method(
        name: str, title: str, what: str, arm: str, sizes: Sequence[int], paper_name: str | None, control: bool = False
    ) -> Method:
        return Method(
            key=f"method.{name}", id=name, name=title, what=what, paper=paper_name, control=control, arm=arm,
            sizes=tuple(sizes), **_pool(results, tasks, arm, sizes),
        )  # fmt: skip

    def in_use(arm: str) -> list[int]:
        return [choices[arm].in_use[split] for split in splits] if arm in choices and choices[arm].in_use else []

    optimum = in_use("classic")
    alone = [0] * len(splits)
    if tuple(optimum) != smallest:
        what = "the lesions alone" if smallest[0] == 0 else "the smallest classic group"
        title = "no augmentation" if smallest[0] == 0 else "smallest group"
        yield method("none", title, what, "classic", smallest, None)
    if optimum:
        yield method("cnn-aug", "CNN-AUG", "the classic group in use", "classic", optimum, paper.CNN_AUG.name)
    more = "CNN-AUG's images and the synthetic ones of"
    if "dcgan" in config.gans and (sizes := in_use("dcgan")):
        what = f"{more} DCGANs, one per class"
        yield method("cnn-aug-gan", "CNN-AUG-GAN", what, "dcgan", sizes, paper.CNN_AUG_GAN.name)
    if "acgan" in config.gans and (sizes := in_use("acgan")):
        yield method("acgan", "ACGAN", f"{more} ACGANs, one for all classes", "acgan", sizes, paper.ACGAN.name)
    if "acgan-discriminator" in results.arms:
        title = paper.ACGAN_DISCRIMINATOR.name
        what = "the class head of the ACGANs' discriminators"
        yield method("acgan-discriminator", title, what, "acgan-discriminator", alone, title)
    if "bovw" in results.arms:
        what = "bags of visual words of the lesions alone, a support vector machine"
        yield method("bovw", paper.BOVW_MI.name, what, "bovw", alone, paper.BOVW_MI.name)
    for control in config.used_controls:
        title, what = CONTROLS[control]
        groups = smallest if control == "equal-steps" else alone
        yield method(control, title, what, control, groups, None, True)


def _choices(values: dict[str, Number], results: RunResults, groups: Sequence[Group]) -> dict[str, Choice]:
    """The run's choices, or what the paper's rule says of the groups so far."""
    found: dict[str, Choice] = {}
    splits = range(results.folds.num_folds)
    for arm in ("classic", *results.config.gans):
        counted = {group.size: _mean_correct(group) for group in groups if group.arm == arm and group.seeds}
        made = results.choice(arm)
        if made is None:
            if not counted:
                continue
            rule = results.config.choice if arm == "classic" else "paper"
            best = smallest_best(counted)
            found[arm] = Choice(arm, rule, best, None, dict.fromkeys(splits, best) if rule == "paper" else {}, False)
            continue
        key = f"choice.{arm}"
        try:
            nested = None if made["nested"] is None else {k: int(made["nested"][str(k)]["size"]) for k in splits}
            in_use = {split: int(made["in_use"][str(split)]) for split in splits}
            choice = Choice(arm, str(made["rule"]), int(made["paper"]["size"]), nested, in_use, True)
            for size, correct in made["paper"]["correct"].items():
                values[f"{key}.paper.correct.{size}"] = float(correct)
            for split, size in (nested or {}).items():
                values[f"{key}.nested.{split}.size"] = size
                for group, correct in made["nested"][str(split)]["correct"].items():
                    values[f"{key}.nested.{split}.correct.{group}"] = float(correct)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = f"choices/{choice_name(arm)}/choice.json"
            raise DataError(where, f"it cannot be read ({type(error).__name__}: {error})", TRAIN_ANEW) from error
        found[arm] = choice
    for arm, choice in found.items():
        values[f"choice.{arm}.paper.size"] = choice.paper
        for split, size in choice.in_use.items():
            values[f"choice.{arm}.in_use.{split}"] = size
    return found


def _mean_correct(models: Models) -> float:
    assert models.confusion is not None
    return int(models.confusion.trace()) / len(models.seeds)


# --- comparisons ------------------------------------------------------------------------------------------------------


def _compare_groups(values: dict[str, Number], groups: Sequence[Group], methods: Sequence[Method]) -> None:
    """Every classic group with the smallest one, and every synthetic group with CNN-AUG; keys `compare.`.

    `compare.{size}.` are the classic ones, `compare.{arm}.{size}.` the synthetic ones; Holm adjusts for the groups of
    an arm.
    """
    shown = [group for group in groups if group.seeds]
    classic = [group for group in shown if group.arm == "classic"]
    families: list[tuple[Models | None, list[tuple[str, Group]]]] = [
        (classic[0] if classic else None, [(f"compare.{group.size}", group) for group in classic[1:]])
    ]
    base = next((method for method in methods if method.id == "cnn-aug"), None)
    for arm in ("dcgan", "acgan"):
        families.append((base, [(f"compare.{group.key}", group) for group in shown if group.arm == arm]))
    for first, others in families:
        if first is not None:
            tested = [key for key, group in others if _compare(values, key, first, group)]
            _adjust(values, tested)
    if classic:
        for key, _ in families[0][1]:
            if f"{key}.p" in values:
                values[f"{key}.with"] = classic[0].size


def _compare_methods(values: dict[str, Number], methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Any two methods; keys `pair.{first}.{second}.`, Holm over all pairs."""
    pairs = [
        (first.id, second.id)
        for first, second in itertools.combinations(methods, 2)
        if _compare(values, f"pair.{first.id}.{second.id}", first, second)
    ]
    _adjust(values, [f"pair.{first}.{second}" for first, second in pairs])
    main = "pair.cnn-aug.cnn-aug-gan"
    if f"{main}.p" in values:
        discordance = float(values[f"{main}.discordance"] or 0)
        total = int(values["method.cnn-aug.total"] or 0)
        values[f"{main}.power_at_paper"] = (
            power_of_mcnemar(total, PAPER_DIFFERENCE, discordance, exact=True)
            if PAPER_DIFFERENCE <= discordance < 1
            else None
        )
    return pairs


def _compare(values: dict[str, Number], key: str, first: Models, second: Models) -> bool:
    """Two arms on the same lesions: second - first.

    The difference is the mean over the seeds both have, its interval draws patients. McNemar's test is of the first of
    these seeds, for one model of each arm is what it compares.

    Returns:
        Whether they have a seed in common; otherwise nothing is counted.
    """
    seeds = [seed for seed in second.seeds if seed in first.seeds]
    if not seeds:
        return False
    before, after = (np.stack([models.correct(seed) for seed in seeds]) for models in (first, second))
    difference = bootstrap_difference(before, after, first.patients, seed=0)
    values[f"{key}.difference"] = difference.value
    values[f"{key}.difference.low"], values[f"{key}.difference.high"] = difference.low, difference.high
    test = mcnemar(before[0], after[0])
    values[f"{key}.gained"], values[f"{key}.lost"] = test.only_second, test.only_first
    values[f"{key}.p"] = test.p_value
    discordance = (test.only_first + test.only_second) / test.num_lesions
    values[f"{key}.discordance"] = discordance
    change = (test.only_second - test.only_first) / test.num_lesions
    values[f"{key}.needed_lesions"] = (
        needed_lesions(change, discordance, exact=True) if change and discordance < 1 else None
    )
    return True


def _adjust(values: dict[str, Number], keys: Sequence[str]) -> None:
    if keys:
        p_values = [float(values[f"{key}.p"] or 0) for key in keys]
        for key, adjusted in zip(keys, holm(p_values).tolist(), strict=True):
            values[f"{key}.p_holm"] = adjusted
