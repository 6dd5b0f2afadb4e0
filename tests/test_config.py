"""Run configurations: presets, files over them, differences, and what departs from the paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lesionaug.data.folds import assign_folds
from lesionaug.data.rois import RoiBatch
from lesionaug.errors import ConfigError
from lesionaug.experiment.config import PRESETS, RunConfig, difference, preset, resolve_config, validate_config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_file(name) -> None:  # type: ignore[no-untyped-def]
    config = preset(name)
    assert config.preset == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert validate_config(config.model_dump(mode="json"), "config.json") == config


def test_reductions_name_every_departure() -> None:
    assert preset("paper").reductions == []
    changed = preset("paper").model_copy(update={"seeds": (1, 2), "device": "cuda", "threads_per_task": 2})
    assert changed.reductions == []  # the paper fixes none of these
    text = "\n".join(preset("demo").reductions)
    for word in ("classic images added per fold", "learning rate", "equal steps", "channels of the CNN"):
        assert word in text
    assert any("channels" in line for line in preset("tiny").reductions)


def test_a_file_overrides_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("classic_groups = [0, 100]\n[classifier]\nepochs = 3\n[image]\nwindow_hu = [-100, 200]\n")
    config = resolve_config("paper", path, seeds=(4, 5), device=None)
    assert config.classic_groups == (0, 100)
    assert config.classifier.epochs == 3
    assert config.classifier.learning_rate == 0.001
    assert config.image.window_hu == (-100.0, 200.0)
    assert config.seeds == (4, 5)
    assert config.device == "auto"
    assert difference(preset("paper"), config) == [
        "image.window_hu: -160.0, 240.0 -> -100.0, 200.0",
        "classic_groups: 0, 500, 1000, 2000, 3000, 5000, 7500, 10000, 15000 -> 0, 100",
        "classifier.epochs: 150 -> 3",
        "seeds: 0 -> 4, 5",
    ]


def test_the_preset_may_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "tiny"\n')
    assert resolve_config(None, path) == preset("tiny")
    assert resolve_config("tiny", path) == preset("tiny")
    assert resolve_config() == preset("quick")
    with pytest.raises(ConfigError, match="preset 'tiny' and the command line 'paper'"):
        resolve_config("paper", path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs = 3", r"mine.toml: unknown key epochs"),
        ("[classifier]\nepoch = 3", r"unknown key classifier.epoch. Did you mean classifier.epochs"),
        ("classifier = 3", r"classifier must be a table, got 3"),
        ("[classifier]\nepochs = 0", r"mine.toml, classifier.epochs: .*greater than or equal to 1 \(got 0\)"),
        ('[classifier]\nlearning_rate = "fast"', r"classifier.learning_rate"),
        ("classic_groups = [500, 0]", r"group sizes must ascend and differ, got \[500, 0\]"),
        ("seeds = [1, 1]", r"seeds must differ"),
        ("seeds = [-1]", r"mine.toml, seeds.0"),
        ("[image]\nwindow_hu = [240, -160]", r"low < high"),
        ("[image]\nwindow_hu = [nan, 1]", r"low < high"),
        ("[folds]\nnum_folds = 1", r"folds.num_folds"),
        ("[folds]\nseed = 4294967296", r"mine.toml, folds.seed: .*less than 4294967296 \(got 4294967296\)"),
        ("[plan]\nseed = 18446744073709551616", r"mine.toml, plan.seed: .*less than 18446744073709551616"),
        ("[plan]\nseed = -1", r"mine.toml, plan.seed"),
        ('device = "tpu"', r"device"),
        ('preset = "huge"', r"there is no preset 'huge'"),
        ("seeds = [", r"not a readable TOML file"),
    ],
)
def test_wrong_files_are_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_config(None, path)
    assert str(tmp_path) not in str(caught.value)


def test_the_largest_seeds_work(tmp_path: Path) -> None:
    """They reach scikit-learn and the counter-based generator."""
    path = tmp_path / "mine.toml"
    path.write_text("[folds]\nseed = 4294967295\n[plan]\nseed = 18446744073709551615\n")
    config = resolve_config("tiny", path)
    assert validate_config(json.loads(json.dumps(config.model_dump(mode="json"))), "config.json") == config
    ids = [f"{i:02d}" for i in range(6)]
    assert assign_folds(ids, ids, ["a", "b"] * 3, 3, config.folds.seed).seed == 2**32 - 1
    rois = RoiBatch.from_images([torch.zeros(40, 40)], [[20.0, 20.0]], [12.0])
    assert config.plan.build().order(rois, seed=config.plan.seed).shape == (1, 480)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        resolve_config(None, tmp_path / "none.toml")


def test_a_saved_configuration_with_an_unknown_key_is_refused() -> None:
    saved = preset("tiny").model_dump(mode="json")
    saved["cnn"]["depth"] = 3
    with pytest.raises(ConfigError, match=r"config.json: unknown key cnn.depth"):
        validate_config(saved, "config.json")


def test_equal_configurations_have_no_difference() -> None:
    assert difference(preset("demo"), preset("demo")) == []
