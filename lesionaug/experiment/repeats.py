"""Repeated cross validation: runs of one store that differ in their folds alone, taken together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lesionaug.errors import ConfigError
from lesionaug.evaluation.distances import Estimate
from lesionaug.evaluation.statistics import corrected_interval
from lesionaug.experiment.config import changed_values
from lesionaug.experiment.numbers import Method, collect_numbers
from lesionaug.experiment.results import RunResults, load_run

REFERENCE = "cnn-aug"  # what every method is compared with
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RepeatedMethod:
    """A method over all repetitions.

    Attributes:
        id: Of the method, see `numbers.Method`.
        name: For people.
        accuracies: [runs], over all test folds of a run; means over its seeds.
        difference: From CNN-AUG, the mean over repetitions and folds with the corrected t interval of Nadeau and Bengio
            (2003); None for CNN-AUG itself.
    """

    id: str
    name: str
    accuracies: tuple[float, ...]
    difference: Estimate | None


@dataclass(frozen=True)
class Repeats:
    """Repetitions taken together.

    Attributes:
        kind: What the lesions are.
        fold_seeds: Of the runs.
        num_folds: Of each.
        methods: Those that every run has whole.
    """

    kind: str
    fold_seeds: tuple[int, ...]
    num_folds: int
    methods: tuple[RepeatedMethod, ...]


def compare_repeats(run_dirs: Sequence[str | os.PathLike[str]]) -> Repeats:
    """Compare every method with CNN-AUG over repeated cross validation.

    Training sets overlap, within a repetition and between repetitions, so the differences are not independent, and
    their spread alone would promise too much; the corrected interval counts that in.

    Args:
        run_dirs: Two or more complete runs on one store, equal but for `folds.seed`.

    Raises:
        ConfigError: Fewer than two runs, another store or configuration, folds of one seed twice, runs that are not
            complete.
        DataError: A run that cannot be read.
    """
    if len(run_dirs) < 2:
        raise ConfigError("RUNS", f"at least two runs are needed, got {len(run_dirs)}", "Give runs of other folds.seed")
    runs = [load_run(Path(path)) for path in run_dirs]
    _check_repeats(runs)
    found = [{method.id: method for method in collect_numbers(results).methods} for results in runs]
    num_folds = runs[0].folds.num_folds
    folds = {
        name: np.concatenate([_fold_accuracies(methods[name], num_folds) for methods in found])
        for name in found[0]
        if all(name in methods for methods in found)
    }
    together = []
    for name, accuracies in folds.items():
        difference = None
        if name != REFERENCE:
            difference = corrected_interval(accuracies - folds[REFERENCE], 1 / (num_folds - 1))
        whole = tuple(
            float(np.mean([methods[name].correct(seed).mean() for seed in methods[name].seeds])) for methods in found
        )
        together.append(RepeatedMethod(name, found[0][name].name, whole, difference))
    return Repeats(runs[0].kind, tuple(run.config.folds.seed for run in runs), num_folds, tuple(together))


def _fold_accuracies(method: Method, num_folds: int) -> FloatArray:
    """[folds] means over the seeds."""
    rows = [[float((task.labels == task.predicted).mean()) for task in method.of_seed(seed)] for seed in method.seeds]
    return np.asarray(np.array(rows).reshape(-1, num_folds).mean(0))


def _check_repeats(runs: Sequence[RunResults]) -> None:
    first = runs[0]
    for run in runs:
        name = run.path.name
        if not run.complete():
            raise ConfigError(name, f"{len(run.missing())} of its steps are missing", "Run `lesionaug run` again")
        if run.info["store"]["manifest_sha256"] != first.info["store"]["manifest_sha256"]:
            raise ConfigError(
                name, f"it was made from another ROI store than {first.path.name}", "Give runs of one store"
            )
        changed = [key for key, _, _ in changed_values(first.config, run.config) if key != "folds.seed"]
        if changed:
            raise ConfigError(
                name,
                f"it differs from {first.path.name} in {', '.join(changed)}",
                "Repeat a run with other folds alone",
            )
    seeds = [run.config.folds.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError("RUNS", f"folds.seed must differ from run to run, got {seeds}", "Give every run once")
