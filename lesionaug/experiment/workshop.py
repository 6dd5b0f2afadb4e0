"""Where the steps of a run are carried out and committed, one by one or many classifiers at once."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lesionaug.data.files import locked, write_text_atomic
from lesionaug.errors import ConfigError
from lesionaug.experiment.graph import commit, inputs_of, read_task
from lesionaug.experiment.machine import threads
from lesionaug.experiment.materials import WORKING, Materials, Recipe
from lesionaug.experiment.protocol import Step
from lesionaug.experiment.seeds import derive_seed
from lesionaug.experiment.steps import FUNCTIONS
from lesionaug.training.classifier import Progress, TrainedClassifier
from lesionaug.training.lane_choice import LaneChoice
from lesionaug.training.lanes import Lane, train_lanes

_SECONDS_BETWEEN_LOOKS = 0.5


class Workshop(Materials):
    """Carries out steps one after another, or classifiers together."""

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
                result = FUNCTIONS[step.kind](self, step, progress)
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
        counts = {step.name: self.count(step, recipes[step.name]) for step in steps}
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
            largest = max(members, key=lambda step: self.count(step, recipes[step.name]))
            part, their_labels = self.training_set(largest, recipes[largest.name])
            images.append(part)
            labels.append(their_labels)
            first |= {step.name: count for step in members}
            count += len(part)
        return torch.cat(images), torch.cat(labels), first
