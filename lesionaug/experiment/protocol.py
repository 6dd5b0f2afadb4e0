"""The whole protocol of the paper as a list of steps: what each one is, what it needs, and what decides its result.

Nothing is computed here. steps.py carries a step out, workshop.py commits it, graph.py says which are done, schedule.py
runs the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lesionaug.data.folds import Folds
from lesionaug.errors import ConfigError
from lesionaug.experiment import costs
from lesionaug.experiment.config import Control, Kind, RunConfig
from lesionaug.experiment.groups import ClassicGroup, classic_groups

StepKind = Literal["cnn", "bovw", "gan", "synthetic", "discriminator", "choice", "embedding", "memorisation"]
Stage = Literal["classic", "baseline", "dcgan", "acgan", "controls", "maps", "memorisation"]
STAGES: tuple[Stage, ...] = ("classic", "baseline", "dcgan", "acgan", "controls", "maps", "memorisation")
SIZED = ("classic", "dcgan", "acgan", "equal-steps")  # arms that have one model for every group of Fig. 8
INNER = "inner"  # classic groups inside the training folds, for the nested choice; no arm of the results
ORIGINALS: Literal["originals"] = "originals"  # DCGANs that have seen no classic augmentation
FOLDERS: Mapping[StepKind, str] = {
    "cnn": "models",
    "bovw": "models",
    "discriminator": "models",
    "gan": "gans",
    "synthetic": "synthetic",
    "choice": "choices",
    "embedding": "maps",
    "memorisation": "memorisation",
}


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: Unique; the source of its random numbers, and its folder.
        kind: Which function of steps.py carries it out.
        stage: Which part of the protocol it belongs to.
        needs: Names of the steps whose results it takes.
        settings: What it is told, plain JSON values: arm, size, split, seed, class.
        options: The part of the configuration that decides its result, plain JSON values.
        cost: Multiply-adds, roughly: what progress and estimates go by.
    """

    name: str
    kind: StepKind
    stage: Stage
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def folder(self) -> str:
        """Its folder below the run's."""
        return f"{FOLDERS[self.kind]}/{self.name}"

    @property
    def arm(self) -> str:
        """What it trains, or trains for."""
        return str(self.settings.get("arm", ""))

    @property
    def size(self) -> int:
        """Images added per fold, of a group of Fig. 8; else 0."""
        return int(self.settings.get("size", 0))

    @property
    def split(self) -> int:
        """The fold it has not seen; -1 where that is no single one."""
        return int(self.settings.get("split", -1))

    @property
    def held_out(self) -> tuple[int, ...]:
        """The folds it has not seen: the one of its split, or both of an inner training."""
        return tuple(self.settings.get("held_out", (self.split,)))

    @property
    def seed(self) -> int:
        """Of the run's training seeds."""
        return int(self.settings.get("seed", 0))


def task_name(arm: str, group_size: int, split: int, seed: int) -> str:
    """Name the model of an arm; also its folder and the source of its random numbers."""
    if arm in ("bovw", "acgan-discriminator"):
        return f"{arm}-split{split}-seed{seed}"
    size = f"-{group_size:05d}" if arm in SIZED else ""
    return f"cnn-{arm}{size}-split{split}-seed{seed}"


def inner_name(group_size: int, held_out: Sequence[int], seed: int) -> str:
    """Name the model of a classic group that has seen neither of two folds."""
    return f"cnn-{INNER}-{group_size:05d}-without{held_out[0]}and{held_out[1]}-seed{seed}"


def gan_names(kind: Kind | Literal["originals"], split: int, seed: int, num_classes: int) -> tuple[str, ...]:
    """Name the GANs of a kind, split and seed: one per class, or one for all."""
    if kind == "acgan":
        return (f"gan-acgan-split{split}-seed{seed}",)
    return tuple(f"gan-{kind}-class{label}-split{split}-seed{seed}" for label in range(num_classes))


def synthetic_name(kind: str, split: int, seed: int) -> str:
    """Name the synthetic ROIs of a kind, split and seed."""
    return f"synthetic-{kind}-split{split}-seed{seed}"


def choice_name(arm: str) -> str:
    """Name the choice of an arm's group."""
    return f"choice-{arm}"


def map_name(model: str, split: int) -> str:
    """Name the map of Fig. 9 of a model, "aug" or "aug-gan", and split."""
    return f"map-{model}-split{split}"


def memorisation_name(kind: str, split: int) -> str:
    """Name the comparison of a kind's synthetic ROIs with real ones."""
    return f"memorisation-{kind}-split{split}"


def arms(config: RunConfig) -> tuple[str, ...]:
    """The arms of a run, each with predictions of every lesion, in the order of the report."""
    discriminator = "acgan" in config.gans and config.acgan.conditioning == "auxiliary"
    return (
        "classic",
        *config.gans,
        *(("acgan-discriminator",) if discriminator else ()),
        *(("bovw",) if config.bovw is not None else ()),
        *config.used_controls,
    )


def group_sizes(config: RunConfig, arm: str) -> tuple[int, ...]:
    """Images added per fold of an arm's groups, ascending; (0,) where it has one model alone.

    Raises:
        ConfigError: The run has no such arm.
    """
    if arm not in arms(config):
        raise ConfigError("arm", f"there is no arm {arm!r}", f"Choose one of {', '.join(arms(config))}")
    if arm in ("classic", "equal-steps"):
        return config.classic_groups
    return config.synthetic_groups if arm in ("dcgan", "acgan") else (0,)


def run_groups(config: RunConfig, num_lesions: int) -> dict[int, ClassicGroup]:
    """The classic groups by size."""
    groups = classic_groups(config.classic_groups, config.folds.num_folds, num_lesions, config.plan.n_augmentations)
    return {group.size: group for group in groups}


def synthetic_per_class(config: RunConfig, size: int, num_classes: int) -> int:
    """Synthetic images of every class in a training set: a size counts those of one fold, all classes together."""
    return max(1, round(size * (config.folds.num_folds - 1) / num_classes))


def most_steps(config: RunConfig, num_train: int, num_lesions: int, num_classes: int, optimum: int) -> int:
    """Optimiser steps of the longest training of a split, and at least twice those without augmentation.

    Args:
        config: Of the run.
        num_train: Training lesions of the split.
        num_lesions: Of the data set.
        num_classes: Classes.
        optimum: Augmentations per lesion that synthetic images are added to.
    """
    once = config.classifier.num_steps(num_train)
    if config.classifier.steps is not None:
        return 2 * once
    largest = num_train * (1 + max(group.per_lesion for group in run_groups(config, num_lesions).values()))
    if config.gans:
        more = num_classes * synthetic_per_class(config, config.synthetic_groups[-1], num_classes)
        largest = max(largest, num_train * (1 + optimum) + more)
    return max(2 * once, config.classifier.num_steps(largest))


def plan_steps(config: RunConfig, folds: Folds, num_classes: int | None = None) -> tuple[Step, ...]:
    """List every step of a run, each after those that it needs.

    Args:
        config: Of the run.
        folds: Of the run.
        num_classes: Classes; those of the folds when None.

    Raises:
        ConfigError: Group sizes that cannot be told apart with this many lesions.
    """
    return tuple(_Planner(config, folds, num_classes or len({lesion.label for lesion in folds.lesions})).steps())


class _Planner:
    def __init__(self, config: RunConfig, folds: Folds, num_classes: int) -> None:
        self.config, self.folds, self.num_classes = config, folds, num_classes
        self.groups = run_groups(config, len(folds.lesions))
        self.splits = range(folds.num_folds)
        values = config.model_dump(mode="json")
        self.images = {name: values[name] for name in ("image", "plan")}
        self.cnn = {**self.images, "cnn": values["cnn"], "classifier": values["classifier"]}
        self.values = values

    def steps(self) -> Iterable[Step]:
        config = self.config
        yield from self._classic()
        if config.bovw is not None:
            options = {**self.images, "bovw": self.values["bovw"], "size": config.cnn.image_size}
            for split, seed in itertools.product(self.splits, config.seeds):
                settings = {"arm": "bovw", "split": split, "seed": seed}
                cost = costs.bovw(config.bovw, len(self.folds.train_ids(split)), config.cnn.image_size)
                yield Step(task_name("bovw", 0, split, seed), "bovw", "baseline", (), settings, options, cost)
        for kind in config.gans:
            yield from self._arm(kind)
        for control in config.used_controls:
            yield from self._control(control)
        yield from self._maps()
        if config.memorisation is not None:
            for kind, split in itertools.product(config.gans, self.splits):
                settings = {"arm": kind, "split": split, "seed": config.seeds[0]}
                options = {**self.images, "memorisation": self.values["memorisation"]}
                needs = (
                    choice_name("classic"), *self._models("classic", split, config.seeds[:1]),
                    *gan_names(kind, split, config.seeds[0], self.num_classes),
                )  # fmt: skip
                lesions = len(self.folds.lesions)
                if config.memorisation.lesions is not None:
                    lesions = min(lesions, 2 * config.memorisation.lesions * self.num_classes)
                cost = costs.memorisation(config.memorisation.per_class, lesions, self.num_classes)
                yield Step(
                    memorisation_name(kind, split), "memorisation", "memorisation", needs, settings, options, cost
                )

    def _models(self, arm: str, split: int | None = None, seeds: Sequence[int] | None = None) -> list[str]:
        splits = self.splits if split is None else (split,)
        return [
            task_name(arm, size, k, seed)
            for seed in (seeds or self.config.seeds)
            for size in group_sizes(self.config, arm)
            for k in splits
        ]

    def _classic(self) -> Iterable[Step]:
        config, inner = self.config, []
        for seed, group, split in itertools.product(config.seeds, self.groups.values(), self.splits):
            images = len(self.folds.train_ids(split)) * (1 + group.per_lesion)
            yield self._cnn("classic", "classic", split, seed, (), images, size=group.size)
        if self.folds.num_folds > 2:
            for seed, group in itertools.product(config.seeds, self.groups.values()):
                for pair in itertools.combinations(self.splits, 2):
                    lesions = sum(lesion.fold not in pair for lesion in self.folds.lesions)
                    name = inner_name(group.size, pair, seed)
                    inner.append(name)
                    settings = {"arm": INNER, "size": group.size, "held_out": list(pair), "seed": seed}
                    cost = costs.classifier(config.cnn, config.classifier, lesions * (1 + group.per_lesion))
                    yield Step(name, "cnn", "classic", (), settings, self.cnn, cost)
        settings = {"arm": "classic", "rule": config.choice}
        needs = (*self._models("classic"), *inner)
        yield Step(choice_name("classic"), "choice", "classic", needs, settings)

    def _cnn(
        self, arm: str, stage: Stage, split: int, seed: int, needs: tuple[str, ...], images: int, *, size: int = 0,
        steps: int | None = None,
    ) -> Step:  # fmt: skip
        settings = {"arm": arm, "size": size, "split": split, "seed": seed}
        classifier = self.config.classifier
        classifier = classifier if steps is None else classifier.model_copy(update={"steps": steps})
        cost = costs.classifier(self.config.cnn, classifier, images)
        return Step(task_name(arm, size, split, seed), "cnn", stage, needs, settings, self.cnn, cost)

    def _guess(self) -> int:
        """The optimum is not known before it is chosen; for estimates it is the largest group below the last."""
        sizes = self.config.classic_groups
        return sizes[-2] if len(sizes) > 2 else sizes[-1]

    def _train_images(self, split: int, classic: int, synthetic: int = 0) -> int:
        more = self.num_classes * synthetic_per_class(self.config, synthetic, self.num_classes) if synthetic else 0
        return len(self.folds.train_ids(split)) * (1 + self.groups[classic].per_lesion) + more

    def _gans(self, kind: Kind | Literal["originals"], stage: Stage) -> Iterable[Step]:
        config = self.config
        gan: Kind = "acgan" if kind == "acgan" else "dcgan"
        network = config.gan(gan)
        options = {**self.images, "gan": self.values[gan]}
        for split, seed in itertools.product(self.splits, config.seeds):
            names = gan_names(kind, split, seed, self.num_classes)
            for label, name in enumerate(names):
                settings = {"arm": kind, "class": label if len(names) > 1 else None, "split": split, "seed": seed}
                images = math.ceil(self._train_images(split, self._guess()) / len(names))
                cost = costs.gan(network, images)
                yield Step(name, "gan", stage, (choice_name("classic"),), settings, options, cost)
            settings = {"arm": kind, "split": split, "seed": seed}
            count = self.num_classes * synthetic_per_class(config, config.synthetic_groups[-1], self.num_classes)
            several = {**options, "sizes": list(config.synthetic_groups)}
            cost = costs.images(network, count)
            yield Step(synthetic_name(kind, split, seed), "synthetic", stage, names, settings, several, cost)

    def _arm(self, kind: Kind) -> Iterable[Step]:
        config = self.config
        yield from self._gans(kind, kind)
        if kind == "acgan" and config.acgan.conditioning == "auxiliary":
            for split, seed in itertools.product(self.splits, config.seeds):
                settings = {"arm": "acgan-discriminator", "split": split, "seed": seed}
                needs = gan_names("acgan", split, seed, self.num_classes)
                name = task_name("acgan-discriminator", 0, split, seed)
                yield Step(name, "discriminator", "acgan", needs, settings, self.images)
        for seed, size, split in itertools.product(config.seeds, config.synthetic_groups, self.splits):
            needs = (choice_name("classic"), synthetic_name(kind, split, seed))
            images = self._train_images(split, self._guess(), size)
            yield self._cnn(kind, kind, split, seed, needs, images, size=size)
        settings = {"arm": kind, "rule": "paper"}
        yield Step(choice_name(kind), "choice", kind, tuple(self._models(kind)), settings)

    def _control(self, control: Control) -> Iterable[Step]:
        config, classic = self.config, choice_name("classic")
        if control == "gan-originals":
            yield from self._gans(ORIGINALS, "controls")
        middle = config.synthetic_groups[len(config.synthetic_groups) // 2]
        for seed, size, split in itertools.product(config.seeds, group_sizes(config, control), self.splits):
            train = len(self.folds.train_ids(split))
            steps: int | None = None
            images, needs = train, tuple[str, ...]((classic,))
            if control == "equal-steps":
                steps = config.classifier.num_steps(self._train_images(split, self._guess()))
            elif control == "longer":
                guess = self.groups[self._guess()].per_lesion
                steps = most_steps(config, train, len(self.folds.lesions), self.num_classes, guess)
            elif control == "equal-count":
                needs, images = (classic, choice_name("dcgan")), self._train_images(split, self._guess(), middle)
            else:
                kind = "dcgan" if control == "synthetic-only" else ORIGINALS
                needs = (choice_name("dcgan"), synthetic_name(kind, split, seed))
                images = self._train_images(split, config.classic_groups[0], middle)
            yield self._cnn(control, "controls", split, seed, needs, images, size=size, steps=steps)

    def _maps(self) -> Iterable[Step]:
        config = self.config
        if config.embedding is None:
            return
        options = {**self.images, "embedding": self.values["embedding"]}
        seeds = config.seeds[:1]
        for split in self.splits:
            models = {"aug": (choice_name("classic"), *self._models("classic", split, seeds))}
            if "dcgan" in config.gans:
                models["aug-gan"] = (choice_name("dcgan"), *self._models("dcgan", split, seeds))
            for model, needs in models.items():
                settings = {"arm": model, "split": split, "seed": seeds[0]}
                cost = costs.embedding(len(self.folds.test_ids(split)) * (1 + config.embedding.per_lesion))
                yield Step(map_name(model, split), "embedding", "maps", needs, settings, options, cost)


def with_needs(steps: Sequence[Step], wanted: Iterable[str]) -> tuple[Step, ...]:
    """Those of `steps` that are wanted and all of them that these need, in the plan's order."""
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found.add(name)
            waiting += by_name[name].needs
    return tuple(step for step in steps if step.name in found)


def describe(step: Step) -> str:
    """Name a step for people."""
    parts = [step.arm or step.kind]
    if step.kind in ("gan", "synthetic", "embedding", "memorisation", "choice"):
        what = {
            "gan": "GAN",
            "synthetic": "images",
            "embedding": "map",
            "memorisation": "memorisation",
            "choice": "choice",
        }
        parts = [f"{step.arm} {what[step.kind]}"]
    if step.kind == "cnn" and step.arm in (*SIZED, INNER):
        parts.append(f"group {step.size}")
    if step.settings.get("class") is not None:
        parts.append(f"class {step.settings['class']}")
    if step.split >= 0:
        parts.append(f"split {step.split}")
    elif "held_out" in step.settings:
        parts.append("without folds " + " and ".join(map(str, step.settings["held_out"])))
    if step.kind not in ("choice",):
        parts.append(f"seed {step.seed}")
    return ", ".join(parts)
