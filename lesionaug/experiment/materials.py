"""What the steps of a run are made from: lesions by split, pools, training sets, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lesionaug.data.files import write_text_atomic
from lesionaug.data.folds import Folds, load_folds, select_lesions, split_lesions
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.data.synthetic import SyntheticRois, load_synthetic
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment.choices import size_in_use
from lesionaug.experiment.config import RunConfig
from lesionaug.experiment.graph import Ground, Result
from lesionaug.experiment.groups import ClassicGroup, ClassicPool, build_pool
from lesionaug.experiment.machine import check_versions
from lesionaug.experiment.protocol import (
    INNER,
    ORIGINALS,
    Step,
    choice_name,
    most_steps,
    plan_steps,
    run_groups,
    synthetic_name,
    synthetic_per_class,
)
from lesionaug.experiment.results import Predictions, load_config, load_info, make_ground, read_json
from lesionaug.experiment.seeds import check_split
from lesionaug.training.classifier import (
    ClassifierConfig,
    TrainedClassifier,
    diverged,
    predict_probabilities,
    save_classifier,
)

WORKING = "working"  # below the run: what a step keeps until it is committed


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


class Materials:
    """What steps are made from; keeps what the next one is likely to need too.

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
    def open(cls, store_path: Path, run_dir: Path) -> Self:
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
        predictions = self.predictions(step, test, probabilities)
        num_synthetic = recipe.per_class * self.num_classes
        info = {
            "group_size": step.size,
            "per_lesion": recipe.per_lesion,
            "capped": recipe.capped,
            "num_synthetic": num_synthetic,
            "num_train_images": self.count(step, recipe),
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

    def predictions(self, step: Step, test: RoiBatch, probabilities: Tensor) -> Predictions:
        """What a model says of its test lesions, with the fold of each."""
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

    def count(self, step: Step, recipe: Recipe) -> int:
        """Images of a training set."""
        return len(self.sides(step)[0]) * (1 + recipe.per_lesion) + recipe.per_class * self.num_classes
