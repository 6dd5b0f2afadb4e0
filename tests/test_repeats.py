"""Repeated cross validation over runs that differ in their folds alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from lesionaug.cli import main
from lesionaug.errors import ConfigError
from lesionaug.experiment.config import RunConfig
from lesionaug.experiment.repeats import compare_repeats
from lesionaug.experiment.run import run_experiment
from tests.runs import classic_only, make_store


def config(fold_seed: int, **more: object) -> RunConfig:
    base = classic_only(controls=("longer",), seeds=(0, 1), **more)
    return base.model_copy(update={"folds": base.folds.model_copy(update={"seed": fold_seed})})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("repeats")
    make_store(folder / "rois")
    for seed in (0, 1):
        run_experiment(folder / "rois", folder / f"run{seed}", config(seed), workers=1)
    return [folder / "run0", folder / "run1"]


def fold_accuracy(run: Path, pattern: str) -> list[float]:
    """Of every fold, over both seeds."""
    accuracies = []
    for split in range(3):
        right = []
        for seed in (0, 1):
            file = run / "models" / pattern.format(split=split, seed=seed) / "predictions.csv"
            rows = list(csv.DictReader(file.read_text().splitlines()))
            right.append(np.mean([row["label"] == row["predicted"] for row in rows]))
        accuracies.append(float(np.mean(right)))
    return accuracies


def test_the_interval_is_a_recount(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_repeats(runs)
    assert found.fold_seeds == (0, 1)
    assert found.num_folds == 3
    longer = next(method for method in found.methods if method.id == "longer")
    assert longer.difference is not None
    differences = []
    for run in runs:
        chosen = json.loads((run / "choices/choice-classic/choice.json").read_text())["paper"]["size"]
        reference = fold_accuracy(run, f"cnn-classic-{chosen:05d}-split{{split}}-seed{{seed}}")
        other = fold_accuracy(run, "cnn-longer-split{split}-seed{seed}")
        differences += [a - b for a, b in zip(other, reference, strict=True)]
    mean, deviation = np.mean(differences), np.std(differences, ddof=1)
    reach = t.ppf(0.975, 5) * deviation * (1 / 6 + 1 / 2) ** 0.5  # folds of one third: a test set is half of the rest
    assert longer.difference.value == pytest.approx(mean)
    assert longer.difference.low == pytest.approx(mean - reach)
    assert longer.difference.high == pytest.approx(mean + reach)
    with pytest.raises(SystemExit) as caught:
        main(["repeats", *map(str, runs)])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "2 repetitions of 3-fold cross validation" in " ".join(shown.split())
    assert f"{100 * mean:+.1f}" in shown


def test_runs_that_do_not_belong_together(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two runs are needed, got 1"):
        compare_repeats(runs[:1])
    with pytest.raises(ConfigError, match=r"folds\.seed must differ from run to run, got \[0, 0\]"):
        compare_repeats([runs[0], runs[0]])
    store = runs[0].parent / "rois"
    run_experiment(store, tmp_path / "more", config(2, classic_groups=(0, 50)), only="folds")
    with pytest.raises(ConfigError, match=r"more: .* of its steps are missing"):
        compare_repeats([runs[0], tmp_path / "more"])
    run_experiment(store, tmp_path / "more", workers=1)
    with pytest.raises(ConfigError, match="more: it differs from run0 in classic_groups"):
        compare_repeats([runs[0], tmp_path / "more"])
    make_store(tmp_path / "other", seed=3)
    run_experiment(tmp_path / "other", tmp_path / "run", config(2), workers=1)
    with pytest.raises(ConfigError, match="run: it was made from another ROI store than run0"):
        compare_repeats([runs[0], tmp_path / "run"])
