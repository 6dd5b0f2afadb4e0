"""The steps of a run carried out: one function for each kind, from committed results to a new one."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionaug.data.files import locked, write_bytes_atomic, write_json_atomic, write_text_atomic
from lesionaug.data.folds import Folds, load_folds, select_lesions, split_lesions
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.data.synthetic import SyntheticRois, load_synthetic, save_synthetic
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment.choices import choose, size_in_use
from lesionaug.experiment.config import Kind, RunConfig
from lesionaug.experiment.gan import GanTask, fit_gan, of_classes, plan_gans, write_gan
from lesionaug.experiment.gan_config import GansConfig
from lesionaug.experiment.graph import Ground, Result, commit, inputs_of, read_task
from lesionaug.experiment.groups import ClassicGroup, ClassicPool, build_pool
from lesionaug.experiment.machine import check_versions, deterministic, threads
from lesionaug.experiment.protocol import (
    INNER,
    ORIGINALS,
    Step,
    choice_name,
    gan_names,
    group_sizes,
    inner_name,
    most_steps,
    plan_steps,
    run_groups,
    synthetic_name,
    synthetic_per_class,
    task_name,
)
from lesionaug.experiment.results import Predictions, load_config, load_info, make_ground, read_json
from lesionaug.experiment.seeds import check_split, derive_seed
from lesionaug.training.classifier import (
    ClassifierConfig,
    Progress,
    TrainedClassifier,
    diverged,
    load_classifier,
    predict_probabilities,
    save_classifier,
    train_classifier,
)
from lesionaug.training.lane_choice import LaneChoice
from lesionaug.training.lanes import Lane, train_lanes
from lesionaug.training.synthesis import class_probabilities, load_gan, sample

WORKING = "working"  # below the run: what a step keeps until it is committed
_SAMPLES_AT_ONCE = 256  # as `generate`: whole batches, so that an image has the same bits in a larger sample
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Recipe:
    """A classifier's training set.

    Attributes:
        per_lesion: Classic augmentations of every training lesion, beside the lesion itself.
        capped: The plan has fewer than were asked for.
        synthetic: Step whose synthetic ROIs are added, or None.
        per_class: How many of every class; 0 without them.
        config: How it is trained.
    """

    per_lesion: int
    capped: bool
    synthetic: str | None
    per_class: int
    config: ClassifierConfig


class Workshop:
    """Carries out steps one after another; keeps what the next one is likely to need too.

    Args:
        rois: Every lesion of the store.
        folds: Of the run.
        config: Of the run, with its device resolved.
        run_dir: The run.
        ground: What its steps stand on.
    """

    def __init__(self, rois: RoiBatch, folds: Folds, config: RunConfig, run_dir: Path, ground: Ground) -> None:
        self.rois = rois.to(config.device)
        self.folds, self.config, self.run_dir, self.ground = folds, config, run_dir, ground
        self.steps = {step.name: step for step in plan_steps(config, folds, len(rois.classes))}
        self.groups: Mapping[int, ClassicGroup] = run_groups(config, len(folds.lesions))
        self._sides: dict[tuple[int, ...], tuple[RoiBatch, RoiBatch]] = {}
        self._pool: tuple[tuple[int, ...], ClassicPool] | None = None
        self._synthetic: tuple[str, SyntheticRois] | None = None

    @classmethod
    def open(cls, store_path: Path, run_dir: Path) -> Workshop:
        """Take everything from disk, as a worker process does.

        Raises:
            DataError, ConfigError: A run or a store that cannot be read, or do not belong together.
        """
        config, info = load_config(run_dir), load_info(run_dir)
        check_versions(run_dir.name, info)
        ground = make_ground(config, info)
        found = manifest_sha256(store_path)
        if ground.values["store"] != found:
            raise ConfigError("ROIS", f"this store ({found[:12]}) is not the run's", "Give every worker the same store")
        return cls(load_rois(store_path), load_folds(run_dir / "folds.json"), config, run_dir, ground)

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.rois.classes)

    def run(
        self, step: Step, progress: Progress | None = None, before_commit: Callable[[], None] | None = None
    ) -> None:
        """Carry out and commit a step.

        Args:
            step: Whose needs are committed.
            progress: Called as (done, in all, text) while it trains.
            before_commit: Called when all is ready; what it raises prevents the commit.

        Raises:
            DataError: Patients or pixels on both sides of a split, a training that diverged, damaged inputs.
        """
        started = time.monotonic()
        with threads(self.config.threads_per_task), self._alone(step):
            inputs = inputs_of(self.run_dir, step, self.steps)
            if not self._is_done(step, inputs):
                self._forget_other_inputs(step, inputs)
                result = _FUNCTIONS[step.kind](self, step, progress)
                if before_commit is not None:
                    before_commit()
                commit(self.run_dir, step, self.ground, inputs, result, started)
            shutil.rmtree(self.run_dir / WORKING / step.name, ignore_errors=True)

    def _forget_other_inputs(self, step: Step, inputs: Mapping[str, str]) -> None:
        """Clear a working folder whose checkpoints are of another key: the inputs came out differently since."""
        folder, key = self.run_dir / WORKING / step.name, self.ground.key(step, inputs)
        file = folder / "key"
        if file.exists() and file.read_text(encoding="utf-8") == key:
            return
        for entry in folder.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_text_atomic(file, key)

    def _is_done(self, step: Step, inputs: Mapping[str, str]) -> bool:
        """Whether it is there, made from these inputs; what was made from others is removed."""
        folder = self.run_dir / step.folder
        if not (folder / "task.json").exists():
            return False
        if read_task(self.run_dir, step).get("key") == self.ground.key(step, inputs):
            return True
        shutil.rmtree(folder)
        return False

    @contextlib.contextmanager
    def _alone(self, step: Step) -> Iterator[None]:
        """Hold a step's working folder; wait for a worker that was thought lost and is at it still."""
        folder = self.run_dir / WORKING / step.name
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with locked(folder):
                    yield
                return
            except ConfigError as error:
                if error.where != folder.name:
                    raise
            except FileNotFoundError:  # the other one has just finished and removed it
                if folder.exists():
                    raise
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def sides(self, step: Step) -> tuple[RoiBatch, RoiBatch]:
        """Training and test lesions of a step, checked once."""
        held_out = step.held_out
        if held_out not in self._sides:
            if len(held_out) == 1:
                train, test = split_lesions(self.rois, self.folds, held_out[0])
            else:
                ids = [
                    tuple(lesion.lesion_id for lesion in self.folds.lesions if (lesion.fold in held_out) == wanted)
                    for wanted in (False, True)
                ]
                train, test = (select_lesions(self.rois, chosen) for chosen in ids)
            check_split(train, test, held_out[0])
            self._sides[held_out] = train, test
        return self._sides[held_out]

    def pool(self, rois: RoiBatch, per_lesion: int) -> ClassicPool:
        """Lesions and their augmentations as networks see them."""
        config = self.config
        return build_pool(rois, per_lesion, size=config.cnn.image_size, plan=config.plan, image=config.image)

    def training_pool(self, step: Step, per_lesion: int) -> ClassicPool:
        """The same of a step's training lesions; the last one is kept."""
        held_out = step.held_out
        if self._pool is None or self._pool[0] != held_out or self._pool[1].per_lesion < per_lesion:
            self._pool = None  # free the old one before the new one is made: 490 MB at the paper's largest group
            self._pool = held_out, self.pool(self.sides(step)[0], per_lesion)
        return self._pool[1]

    def synthetic(self, name: str, test: RoiBatch) -> SyntheticRois:
        """Synthetic ROIs of a committed step, refused where they know a patient to be tested."""
        if self._synthetic is None or self._synthetic[0] != name:
            self._synthetic = None
            self._synthetic = name, load_synthetic(self.run_dir / self.steps[name].folder / "rois")
        rois = self._synthetic[1]
        rois.check_apart(test)
        if rois.split != self.steps[name].split:
            raise DataError(f"{self.steps[name].folder}/rois", "they are of another split", "Delete it and run again")
        return rois

    def choice(self, arm: str) -> dict[str, Any]:
        """A committed choice.json."""
        folder = self.steps[choice_name(arm)].folder
        return read_json(self.run_dir / folder, "choice.json", folder, "Delete that folder and run again")

    def optimum(self, split: int) -> ClassicGroup:
        """The classic group that is built on in a split."""
        return self.groups[size_in_use(self.choice("classic"), split)]

    def recipe(self, step: Step) -> Recipe:
        """What a classifier is trained on, and how."""
        config, arm, split = self.config, step.arm, step.split
        classifier, num_train = config.classifier, len(self.sides(step)[0])
        if arm in ("classic", INNER, "equal-steps"):
            group = self.groups[step.size]
            if arm == "equal-steps":
                images = num_train * (1 + self.optimum(split).per_lesion)
                classifier = classifier.model_copy(update={"steps": classifier.num_steps(images)})
            return Recipe(group.per_lesion, group.capped, None, 0, classifier)
        if arm in ("dcgan", "acgan"):
            group = self.optimum(split)
            per_class = synthetic_per_class(config, step.size, self.num_classes)
            return Recipe(group.per_lesion, group.capped, synthetic_name(arm, split, step.seed), per_class, classifier)
        if arm == "longer":
            per_lesion = self.optimum(split).per_lesion
            steps = most_steps(config, num_train, len(self.folds.lesions), self.num_classes, per_lesion)
            return Recipe(0, False, None, 0, classifier.model_copy(update={"steps": steps}))
        per_class = synthetic_per_class(config, size_in_use(self.choice("dcgan"), split), self.num_classes)
        if arm == "equal-count":
            wanted = self.optimum(split).per_lesion + round(per_class * self.num_classes / num_train)
            most = config.plan.n_augmentations
            return Recipe(min(wanted, most), wanted > most, None, 0, classifier)
        kind = "dcgan" if arm == "synthetic-only" else ORIGINALS
        return Recipe(0, False, synthetic_name(kind, split, step.seed), per_class, classifier)

    def training_set(self, step: Step, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Images and labels of a recipe."""
        images, labels = self.training_pool(step, recipe.per_lesion).group(recipe.per_lesion)
        if recipe.synthetic is None:
            return images, labels
        made = self.synthetic(recipe.synthetic, self.sides(step)[1])
        count = recipe.per_class * self.num_classes  # class by class in turn, so that a group is the first of them
        if len(made) < count:
            raise DataError(
                self.steps[recipe.synthetic].folder, f"it holds {len(made)} images, {count} are needed", "Delete it"
            )
        return torch.cat([images, made.images[:count].to(images.device)]), torch.cat(
            [labels, made.labels[:count].to(labels.device)]
        )

    def classified(self, step: Step, recipe: Recipe, trained: TrainedClassifier, trained_by: str) -> Result:
        """A trained classifier, what it says of its test lesions, and what is known of its training."""
        train, test = self.sides(step)
        probabilities = predict_probabilities(trained, self.pool(test, 0).group(0)[0])
        if not bool(probabilities.isfinite().all()):  # parameters can be finite and too large for the logits
            raise diverged("predicted probability", recipe.config, trained.num_steps)
        predictions = self._predictions(step, test, probabilities)
        num_synthetic = recipe.per_class * self.num_classes
        info = {
            "group_size": step.size,
            "per_lesion": recipe.per_lesion,
            "capped": recipe.capped,
            "num_synthetic": num_synthetic,
            "num_train_images": self._count(step, recipe),
            "actual_added_per_fold": round(
                (recipe.per_lesion * len(train) + num_synthetic) / (self.folds.num_folds - 1), 1
            ),
            "epochs": len(trained.history),
            "steps": trained.num_steps,
            "train_mean": trained.mean,
            "num_parameters": trained.model.num_parameters,
            "trained_by": trained_by,
        }
        history = "".join(f"{line.epoch},{line.loss:.6f},{line.train_accuracy:.6f}\n" for line in trained.history)

        def write(folder: Path) -> None:
            save_classifier(trained, folder, self.rois.classes)
            write_text_atomic(folder / "predictions.csv", predictions.to_csv())
            write_text_atomic(folder / "history.csv", "epoch,loss,train_accuracy\n" + history)

        return Result(write, info | self.described(train))

    def _predictions(self, step: Step, test: RoiBatch, probabilities: Tensor) -> Predictions:
        fold = {lesion.lesion_id: lesion.fold for lesion in self.folds.lesions}
        return Predictions.of(test, [fold[lesion_id] for lesion_id in test.lesion_ids], probabilities)

    def described(self, train: RoiBatch) -> dict[str, Any]:
        """What task.json says of every step that has learned from lesions: whom it knows."""
        return {
            "num_train_lesions": len(train),
            "sources": Provenance.of(train).to_json(),
            "device": self.config.device,
            "threads": self.config.threads_per_task,
            "versions": versions(),
        }

    def run_together(
        self, steps: Sequence[Step], choice: LaneChoice, on_step: Callable[[Step, int, int, str], None]
    ) -> None:
        """Train and commit classifiers of one configuration, many at once.

        Args:
            steps: The longest first; their needs are committed.
            choice: How many, and how they are computed.
            on_step: Called as (step, optimiser steps done of it, in all, text) after every block of them.

        Raises:
            DataError: As `run`. What was committed stays.
            EnvironmentProblem: Memory ran out with a single network.
        """
        started = time.monotonic()
        config = self.config
        inputs = {step.name: inputs_of(self.run_dir, step, self.steps) for step in steps}
        steps = [step for step in steps if not self._is_done(step, inputs[step.name])]
        if not steps:
            return
        recipes = {step.name: self.recipe(step) for step in steps}
        images, labels, first = self._together(steps, recipes)
        how = f"{choice.num_lanes} lanes, {choice.form}"
        counts = {step.name: self._count(step, recipes[step.name]) for step in steps}
        totals = {name: config.classifier.num_steps(count) for name, count in counts.items()}
        by_name = {step.name: step for step in steps}

        def on_trained(lane: Lane, trained: TrainedClassifier) -> None:
            step = by_name[lane.name]
            nonlocal started
            result = self.classified(step, recipes[lane.name], trained, how)
            commit(self.run_dir, step, self.ground, inputs[lane.name], result, started)
            started = time.monotonic()  # so that the seconds of all add up to those of the whole

        train_lanes(
            images,
            labels,
            [Lane(name, first[name], counts[name], derive_seed(name)) for name in by_name],
            config.classifier,
            num_classes=self.num_classes,
            cnn=config.cnn,
            num_lanes=choice.num_lanes,
            form=choice.form,
            device=config.device,
            on_trained=on_trained,
            progress=lambda lane, done, text: on_step(by_name[lane.name], done, totals[lane.name], text),
        )

    def _count(self, step: Step, recipe: Recipe) -> int:
        return len(self.sides(step)[0]) * (1 + recipe.per_lesion) + recipe.per_class * self.num_classes

    def _together(self, steps: Sequence[Step], recipes: Mapping[str, Recipe]) -> tuple[Tensor, Tensor, dict[str, int]]:
        """The images of every training set one after another, smaller ones inside larger, and where each begins."""
        images, labels, count = [], [], 0
        first: dict[str, int] = {}
        alike: dict[tuple[Any, ...], list[Step]] = {}
        for step in steps:
            recipe = recipes[step.name]
            # A classic group is the first of a larger one; the same with synthetic images added to one optimum.
            same = (step.held_out, recipe.synthetic, recipe.per_lesion if recipe.synthetic else None)
            alike.setdefault(same, []).append(step)
        for members in alike.values():
            largest = max(members, key=lambda step: self._count(step, recipes[step.name]))
            part, their_labels = self.training_set(largest, recipes[largest.name])
            images.append(part)
            labels.append(their_labels)
            first |= {step.name: count for step in members}
            count += len(part)
        return torch.cat(images), torch.cat(labels), first


def _cnn(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Train the classification network on a group, and classify its test fold."""
    recipe = work.recipe(step)
    images, labels = work.training_set(step, recipe)
    trained = train_classifier(
        images,
        labels,
        recipe.config,
        num_classes=work.num_classes,
        cnn=work.config.cnn,
        seed=derive_seed(step.name),
        device=work.config.device,
        progress=progress,
    )
    return work.classified(step, recipe, trained, "plain loop")


def _bovw(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Train the baseline on un-augmented lesions, and classify the test fold (section IV-E)."""
    from lesionaug.training.bovw import predict_bovw, save_bovw, train_bovw

    assert work.config.bovw is not None
    train, test = work.sides(step)
    images, labels = work.pool(train, 0).group(0)
    trained = train_bovw(
        images,
        labels,
        train.patient_ids,
        work.config.bovw,
        num_classes=work.num_classes,
        seed=derive_seed(step.name),
    )
    probabilities = predict_bovw(trained, work.pool(test, 0).group(0)[0])
    predictions = work._predictions(step, test, probabilities)

    def write(folder: Path) -> None:
        save_bovw(trained, folder, work.rois.classes)
        write_text_atomic(folder / "predictions.csv", predictions.to_csv())

    info = {"num_train_images": len(train), "inner_folds": trained.inner_folds, "kept_words": len(trained.bag.kept)}
    return Result(write, info | work.described(train))


def _gan_config(work: Workshop, step: Step) -> GansConfig:
    """How a step's GAN is trained: on the classic group at its optimum, or on the lesions alone."""
    config, split = work.config, step.split
    kind: Kind = "acgan" if step.arm == "acgan" else "dcgan"
    optimum = work.optimum(split)
    gans = GansConfig(
        kind=kind,
        gan=config.gan(kind),
        group=optimum.size,
        image=config.image,
        plan=config.plan,
        folds=config.folds,
        split=split,
        seed=step.seed,
        device=config.device,
        threads=config.threads_per_task,
    )
    if step.arm != ORIGINALS:
        return gans
    # As many steps as those that see the augmentations take.
    train = work.sides(step)[0]
    steps = _gan_task(work, step, gans, train).num_steps
    alone = gans.gan.model_copy(update={"steps": steps})
    return gans.model_copy(update={"group": 0, "gan": alone})


def _gan_task(work: Workshop, step: Step, config: GansConfig, train: RoiBatch) -> GanTask:
    return plan_gans(config, train, len(work.folds.lesions))[step.settings["class"] or 0]


def _gan(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Train a GAN on the training folds of a split (sections III-B, III-C), resumed from its checkpoints."""
    train, test = work.sides(step)
    config = _gan_config(work, step)
    task = _gan_task(work, step, config, train)
    members = of_classes(train, task.classes)
    Provenance.of(members).check_apart(Provenance.of(test), step.name, "Start a new run folder")
    with deterministic(config.deterministic):
        run = fit_gan(work.run_dir / WORKING / step.name, config, task, members, derive_seed(step.name), progress)

    def write(folder: Path) -> None:
        write_gan(folder, run, config, task, members, times=False)

    info = {
        "classes": list(task.classes),
        "group_size": config.group,
        "num_train_images": task.num_images,
        "steps": task.num_steps,
        "capped": task.capped,
    }
    return Result(write, info | work.described(members))


def _synthetic(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Make the synthetic ROIs of a split, class by class in turn, as many as its largest group takes."""
    config, split = work.config, step.split
    largest = synthetic_per_class(config, config.synthetic_groups[-1], work.num_classes)
    made: list[Tensor | None] = [None] * work.num_classes
    sources, hashes = [], {}
    for name in gan_names(step.arm, split, step.seed, work.num_classes):  # type: ignore[arg-type]
        gan = load_gan(work.run_dir / work.steps[name].folder)
        gan.generator.to(config.device)
        sources.append(Provenance.from_json(gan.info["sources"]))
        hashes[name] = gan.sha256
        for index, label in enumerate(gan.info["classes"]):
            wanted = index if gan.generator.num_classes else None
            whole = -(-largest // _SAMPLES_AT_ONCE) * _SAMPLES_AT_ONCE
            seed = derive_seed(f"{step.name}-class{work.rois.classes.index(label)}")
            made[work.rois.classes.index(label)] = sample(gan, whole, seed, wanted)[:largest]
    rois = SyntheticRois(
        images=torch.stack([images for images in made if images is not None], 1).flatten(0, 1),
        labels=torch.arange(work.num_classes).repeat(largest),
        classes=work.rois.classes,
        kind=work.rois.kind,
        split=split,
        window_hu=config.image.window_hu,
        provenance=Provenance.union(sources),
        details={"gan": step.arm, "seed": step.seed, "generators": hashes, "versions": versions()},
    )
    rois.check_apart(work.sides(step)[1])

    def write(folder: Path) -> None:
        save_synthetic(rois, folder / "rois")

    info = {"num_images": len(rois), "sources": rois.provenance.to_json(), "versions": versions()}
    return Result(write, info)


def _discriminator(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """What the class head of an ACGAN's discriminator says of the test fold (section IV-C)."""
    train, test = work.sides(step)
    (name,) = gan_names("acgan", step.split, step.seed, work.num_classes)
    gan = load_gan(work.run_dir / work.steps[name].folder)
    Provenance.from_json(gan.info["sources"]).check_apart(Provenance.of(test), name, "Delete it and run again")
    gan.discriminator.to(work.config.device)
    probabilities = class_probabilities(gan.discriminator, work.pool(test, 0).group(0)[0])
    predictions = work._predictions(step, test, probabilities)
    info = {"num_train_images": read_task(work.run_dir, work.steps[name])["num_train_images"]}
    return Result(
        lambda folder: write_text_atomic(folder / "predictions.csv", predictions.to_csv()),
        info | work.described(train),
    )


def _choice(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Choose the group that the next stage builds on; see choices.py."""
    config, splits = work.config, range(work.folds.num_folds)

    def correct(name: str, fold: int | None = None) -> int:
        folder = work.run_dir / work.steps[name].folder
        predictions = Predictions.from_csv((folder / "predictions.csv").read_text(encoding="utf-8"), work.rois.classes)
        return predictions.num_correct(fold)

    def mean(counts: Sequence[int]) -> float:
        return sum(counts) / len(config.seeds)

    tested = {
        size: mean([correct(task_name(step.arm, size, split, seed)) for seed in config.seeds for split in splits])
        for size in group_sizes(config, step.arm)
    }
    inner = None
    if step.arm == "classic" and work.folds.num_folds > 2:
        inner = {
            split: {
                size: mean(
                    [
                        correct(inner_name(size, sorted((split, fold)), seed), fold)
                        for seed in config.seeds
                        for fold in splits
                        if fold != split
                    ]
                )
                for size in config.classic_groups
            }
            for split in splits
        }
    chosen = choose(tested, inner, step.settings["rule"], splits)
    return Result(lambda folder: write_json_atomic(folder / "choice.json", chosen), {"versions": versions()})


@torch.no_grad()
def _embedding(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Map test lesions and their augmentations by a classifier's dense layer (Fig. 9)."""
    from lesionaug.evaluation.embedding import embed

    config, split = work.config, step.split
    assert config.embedding is not None
    arm = "classic" if step.arm == "aug" else "dcgan"
    size = size_in_use(work.choice(arm), split)
    model = task_name(arm, size, split, step.seed)
    trained, _ = load_classifier(work.run_dir / work.steps[model].folder, config.device)
    _, test = work.sides(step)
    images, labels = work.pool(test, config.embedding.per_lesion).group(config.embedding.per_lesion)
    features = [
        trained.model.features((part - trained.mean).contiguous(memory_format=torch.channels_last)).cpu()
        for part in torch.split(images, _SAMPLES_AT_ONCE)
    ]
    points = embed(
        torch.cat(features).numpy(), seed=derive_seed(step.name) % 2**32, perplexity=config.embedding.perplexity
    )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["lesion_id", "label", "view", "x", "y"])
    for row, (x, y) in enumerate(points.tolist()):
        view, lesion = divmod(row, len(test))
        rows.writerow([test.lesion_ids[lesion], work.rois.classes[int(labels[row])], view, f"{x:.6g}", f"{y:.6g}"])
    info = {"model": model, "group_size": size, "num_points": len(points), "versions": versions()}
    return Result(lambda folder: write_text_atomic(folder / "points.csv", text.getvalue()), info)


def _first_of_each(rois: RoiBatch, most: int | None) -> RoiBatch:
    """The first `most` lesions of every class."""
    if most is None:
        return rois
    labels = rois.labels.tolist()
    return rois[[i for i, label in enumerate(labels) if labels[:i].count(label) < most]]


def _memorisation(work: Workshop, step: Step, progress: Progress | None) -> Result:
    """Compare synthetic ROIs with the lesions they learned from and with held-out ones."""
    from lesionaug.augment.sheet import figure_png
    from lesionaug.experiment.gan_evaluation import evaluate_gan
    from lesionaug.experiment.gan_figures import gallery_figure

    config, split = work.config, step.split
    assert config.memorisation is not None
    train, test = work.sides(step)
    model = task_name("classic", work.optimum(split).size, split, step.seed)
    classifier, _ = load_classifier(work.run_dir / work.steps[model].folder)
    results: dict[str, Any] = {}
    pairs = {}
    sides = tuple(_first_of_each(side.to("cpu"), config.memorisation.lesions) for side in (train, test))
    for name in gan_names(step.arm, split, step.seed, work.num_classes):  # type: ignore[arg-type]
        gan = load_gan(work.run_dir / work.steps[name].folder)
        images, seeds = {}, {}
        for index, label in enumerate(gan.info["classes"]):
            patients = [len(set(of_classes(side, [label]).patient_ids)) for side in sides]
            if min(patients) < 2:
                there = f"{patients[0]} training and {patients[1]} held-out patients"
                results[label] = {"not_measured": f"{there}, two of each are needed"}
                continue
            seed = derive_seed(f"{step.name}-{label}")
            wanted = index if gan.generator.num_classes else None
            images[label] = sample(gan, config.memorisation.per_class, seed, wanted)
            seeds[label] = seed % 2**32
        if images:
            found = evaluate_gan(gan, images, sides[0], sides[1], config.image, config.plan, classifier, seeds)
            for label, (numbers, closest) in found.items():
                results[label], pairs[label] = numbers, closest
    gallery = None
    if pairs:
        reduced = any(line.startswith(step.arm) or "GAN" in line for line in config.reductions)
        note = f"{step.arm.upper()}, split {split}; the images nearest to any training lesion"
        note += "\nReduced GANs: config.json says how" if reduced else ""
        gallery = figure_png(gallery_figure(pairs, kind=work.rois.kind, note=note))

    def write(folder: Path) -> None:
        write_json_atomic(folder / "evaluation.json", {"features_of": model, "classes": results})
        if gallery is not None:
            write_bytes_atomic(folder / "gallery.png", gallery)

    return Result(write, {"features_of": model, "versions": versions()})


_FUNCTIONS: Mapping[str, Callable[[Workshop, Step, Progress | None], Result]] = {
    "cnn": _cnn,
    "bovw": _bovw,
    "gan": _gan,
    "synthetic": _synthetic,
    "discriminator": _discriminator,
    "choice": _choice,
    "embedding": _embedding,
    "memorisation": _memorisation,
}
