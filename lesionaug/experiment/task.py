"""One task of a run: train one classifier on one group of one split, and predict its test fold."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lesionaug.data.files import commit_directory, write_json_atomic, write_text_atomic
from lesionaug.data.folds import Folds, load_folds, split_lesions
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois
from lesionaug.environment import versions
from lesionaug.experiment.config import RunConfig
from lesionaug.experiment.groups import ClassicPool, build_pool, classic_groups
from lesionaug.experiment.results import TASK_SCHEMA, Predictions, config_sha256, load_config, task_name
from lesionaug.training.classifier import (
    Progress,
    TrainedClassifier,
    diverged,
    predict_probabilities,
    save_classifier,
    train_classifier,
)
from lesionaug.training.lane_choice import LaneChoice
from lesionaug.training.lanes import Lane, train_lanes


@dataclass(frozen=True)
class Task:
    """One trained model: a classic group of Fig. 8, a split and a seed.

    Attributes:
        group_size: Images asked for per fold.
        per_lesion: Augmentations of each training lesion.
        capped: The plan holds fewer augmentations than the group asks for.
        split: The fold that is tested.
        seed: One of the run's training seeds.
        num_images: Training images.
        num_steps: Optimiser steps.
    """

    group_size: int
    per_lesion: int
    capped: bool
    split: int
    seed: int
    num_images: int
    num_steps: int

    @property
    def name(self) -> str:
        """The folder below models/."""
        return task_name("classic", self.group_size, self.split, self.seed)


def plan_tasks(config: RunConfig, folds: Folds) -> tuple[Task, ...]:
    """List every model of a run, in the order of seeds, groups and splits.

    Raises:
        ConfigError: Group sizes that cannot be told apart with this many lesions.
    """
    groups = classic_groups(
        config.classic_groups, config.folds.num_folds, len(folds.lesions), config.plan.n_augmentations
    )
    tasks = []
    for seed in config.seeds:
        for group in groups:
            for split in range(folds.num_folds):
                images = len(folds.train_ids(split)) * (1 + group.per_lesion)
                steps = config.classifier.num_steps(images)
                tasks.append(Task(group.size, group.per_lesion, group.capped, split, seed, images, steps))
    return tuple(tasks)


def derive_seed(name: str) -> int:
    """Make a seed from a task's name, so that neither schedule nor neighbours matter: 63 bits of its BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


class TaskRunner:
    """Trains tasks one after another; keeps the augmented images of the split it worked on last.

    Args:
        rois: Every lesion of the store.
        folds: Of the run.
        config: Of the run, with its device resolved.
        run_dir: Where models/ is.
    """

    def __init__(self, rois: RoiBatch, folds: Folds, config: RunConfig, run_dir: Path) -> None:
        self._rois = rois.to(config.device)
        self._folds = folds
        self._config = config
        self._models = run_dir / "models"
        self._pool: ClassicPool | None = None
        self._pool_split = -1
        self._sides: dict[int, tuple[RoiBatch, RoiBatch]] = {}

    @classmethod
    def open(cls, store_path: Path, run_dir: Path) -> TaskRunner:
        """Take everything from disk, as a worker process does, and set this process's number of threads."""
        config = load_config(run_dir)
        torch.set_num_threads(config.threads_per_task)
        return cls(load_rois(store_path), load_folds(run_dir / "folds.json"), config, run_dir)

    def run(
        self, task: Task, progress: Progress | None = None, before_commit: Callable[[], None] | None = None
    ) -> None:
        """Train, predict and commit one task.

        Args:
            task: What to train.
            progress: Called as (steps done, steps in all, text).
            before_commit: Called when all is ready; what it raises prevents the commit.

        Raises:
            DataError: A patient of the test fold, or a copy of its pixels, is among the training lesions; a learning
                rate that is too large.
        """
        started = time.monotonic()
        config = self._config
        images, labels = self._training_set(self._lesions(task.split)[0], task)
        trained = train_classifier(
            images,
            labels,
            config.classifier,
            num_classes=len(self._rois.classes),
            cnn=config.cnn,
            seed=derive_seed(task.name),
            device=config.device,
            progress=progress,
        )
        self._commit(task, trained, "plain loop", started, before_commit)

    def run_together(
        self, tasks: Sequence[Task], choice: LaneChoice, on_step: Callable[[Task, int, str], None]
    ) -> None:
        """Train and commit tasks, many at once.

        Args:
            tasks: The longest first.
            choice: How many, and how they are computed.
            on_step: Called as (task, steps done of it, text) after every block of steps.

        Raises:
            DataError: As `run`. What was committed stays.
            EnvironmentProblem: Memory ran out with a single network.
        """
        started = time.monotonic()
        config, by_name = self._config, {task.name: task for task in tasks}
        images, labels, first = self._pools(tasks)
        how = f"{choice.num_lanes} lanes, {choice.form}"
        train_lanes(
            images,
            labels,
            # Every smaller group is a prefix of its split's pool.
            [Lane(task.name, first[task.split], task.num_images, derive_seed(task.name)) for task in tasks],
            config.classifier,
            num_classes=len(self._rois.classes),
            cnn=config.cnn,
            num_lanes=choice.num_lanes,
            form=choice.form,
            device=config.device,
            on_trained=lambda lane, trained: self._commit(by_name[lane.name], trained, how, started),
            progress=lambda lane, done, text: on_step(by_name[lane.name], done, text),
        )

    def _pools(self, tasks: Sequence[Task]) -> tuple[torch.Tensor, torch.Tensor, dict[int, int]]:
        """The images of every task one after another by split, their labels, and where each split begins."""
        images, labels, first, count = [], [], {}, 0
        for split in sorted({task.split for task in tasks}):
            largest = max(task.per_lesion for task in tasks if task.split == split)
            of_split, their_labels = self._build_pool(self._lesions(split)[0], largest).group(largest)
            images.append(of_split)
            labels.append(their_labels)
            first[split], count = count, count + len(of_split)
        return torch.cat(images), torch.cat(labels), first

    def _lesions(self, split: int) -> tuple[RoiBatch, RoiBatch]:
        """Training and test lesions of a split, checked once."""
        if split not in self._sides:
            train, test = split_lesions(self._rois, self._folds, split)
            check_split(train, test, split)
            self._sides[split] = train, test
        return self._sides[split]

    def _commit(
        self,
        task: Task,
        trained: TrainedClassifier,
        trained_by: str,
        started: float,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        config, split = self._config, task.split
        train, test = self._lesions(split)
        probabilities = predict_probabilities(trained, self._build_pool(test, 0).group(0)[0])
        if not bool(probabilities.isfinite().all()):  # parameters can be finite and too large for the logits
            raise diverged("predicted probability", config.classifier, trained.num_steps)
        predictions = Predictions.of_fold(test, split, probabilities)
        num_train = len(train)
        described: dict[str, Any] = {
            "schema": TASK_SCHEMA,
            "task": task.name,
            "arm": "classic",
            "group_size": task.group_size,
            "per_lesion": task.per_lesion,
            "capped": task.capped,
            "num_train_lesions": num_train,
            "num_train_images": task.num_images,
            "actual_added_per_fold": round(task.per_lesion * num_train / (self._folds.num_folds - 1), 1),
            "split": split,
            "seed": task.seed,
            "config_sha256": config_sha256(config),
            "epochs": len(trained.history),
            "steps": trained.num_steps,
            "train_mean": trained.mean,
            "num_parameters": trained.model.num_parameters,
            "device": config.device,
            "threads": config.threads_per_task,
            "trained_by": trained_by,
            "versions": versions(),
        }
        history = "".join(f"{line.epoch},{line.loss:.6f},{line.train_accuracy:.6f}\n" for line in trained.history)
        if before_commit is not None:
            before_commit()
        with commit_directory(self._models / task.name) as folder:
            save_classifier(trained, folder, self._rois.classes)
            write_text_atomic(folder / "predictions.csv", predictions.to_csv())
            write_text_atomic(folder / "history.csv", "epoch,loss,train_accuracy\n" + history)
            write_json_atomic(folder / "task.json", {**described, "seconds": round(time.monotonic() - started, 3)})

    def _training_set(self, train: RoiBatch, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        if self._pool is None or self._pool_split != task.split or self._pool.per_lesion < task.per_lesion:
            self._pool = None  # free the old one before the new one is made: 490 MB at the paper's largest group
            self._pool, self._pool_split = self._build_pool(train, task.per_lesion), task.split
        return self._pool.group(task.per_lesion)

    def _build_pool(self, rois: RoiBatch, per_lesion: int) -> ClassicPool:
        config = self._config
        return build_pool(rois, per_lesion, size=config.cnn.image_size, plan=config.plan, image=config.image)


def check_split(train: RoiBatch, test: RoiBatch, split: int) -> None:
    """Refuse a split that would test a patient, or a copy of one, that it has trained on.

    Raises:
        DataError: Naming one such patient or lesion.
    """
    Provenance.of(train).check_apart(
        Provenance.of(test),
        f"split {split} of folds.json",
        "Take copies of a lesion out of the store, and start a new run folder; folds must not be edited",
    )


def describe(task: Task) -> str:
    """Name a task for people."""
    return f"group {task.group_size}, split {task.split}, seed {task.seed}"
