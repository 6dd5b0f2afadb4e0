"""How lanes are chosen and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lesionaug.errors import EnvironmentProblem
from lesionaug.models.cnn import CnnConfig
from lesionaug.training import lane_choice
from lesionaug.training.classifier import ClassifierConfig
from lesionaug.training.lane_choice import LaneChoice, fastest_lanes, measure_lanes
from lesionaug.training.lanes import LANE_FORMS

CPU = torch.device("cpu")
CNN = CnnConfig(channels=(2, 2), dense=4)
CONFIG = ClassifierConfig(batch_size=4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lesionaug" / "lanes.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[ClassifierConfig]:
    """Measurements that were asked for; the third of each is the fastest."""
    asked: list[ClassifierConfig] = []

    def measure(cnn, config, num_classes, device):
        asked.append(config)
        return [LaneChoice("matmul", 1, 10.0), LaneChoice("grouped", 4, 20.0), LaneChoice("separate", 8, 30.0)]

    monkeypatch.setattr(lane_choice, "measure_lanes", measure)
    return asked


def test_every_form_and_number_is_timed() -> None:
    found = measure_lanes(CNN, CONFIG, 3, CPU, counts=(1, 3), seconds=0.01)
    assert [(choice.form, choice.num_lanes) for choice in found] == [(form, n) for form in LANE_FORMS for n in (1, 3)]
    assert all(10 < choice.samples_per_s < 1e9 for choice in found)


def test_what_memory_does_not_suffice_for_is_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_lanes(form, count, *args, **options):
        if count > limit:
            raise EnvironmentProblem("num_lanes", "memory ran out", "Use fewer")
        return float(count)

    monkeypatch.setattr(lane_choice, "time_lanes", time_lanes)
    limit = 8
    assert {choice.num_lanes for choice in measure_lanes(CNN, CONFIG, 3, CPU)} == {1, 4, 8}
    assert fastest_lanes(CNN, CONFIG, 3, CPU).num_lanes == 8
    cache.unlink()
    limit = 0
    with pytest.raises(EnvironmentProblem, match="memory does not suffice"):
        fastest_lanes(CNN, CONFIG, 3, CPU)


def test_the_fastest_is_chosen_and_remembered(cache: Path, measured: list[ClassifierConfig]) -> None:
    best = LaneChoice("separate", 8, 30.0)
    assert fastest_lanes(CNN, CONFIG, 3, CPU) == best
    assert fastest_lanes(CNN, CONFIG.model_copy(update={"epochs": 3}), 3, CPU) == best  # how long does not matter
    assert len(measured) == 1
    for config in (CONFIG.model_copy(update={"bf16": True}), CONFIG.model_copy(update={"batch_size": 8})):
        fastest_lanes(CNN, config, 3, CPU)
    fastest_lanes(CNN.model_copy(update={"dense": 8}), CONFIG, 3, CPU)
    assert len(measured) == 4
    assert len(json.loads(cache.read_text())) == 4
    assert fastest_lanes(CNN, CONFIG, 3, CPU) == best
    assert len(measured) == 4


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[1, 2]",
        '{"KEY": {"form": "sideways", "num_lanes": 8, "samples_per_s": 1}}',
        '{"KEY": {"num_lanes": 8}}',
        '{"KEY": 7}',
        '{"KEY": {"form": "grouped", "num_lanes": 99999, "samples_per_s": 1}}',
    ],
)
def test_a_damaged_memory_is_measured_anew(cache: Path, measured: list[ClassifierConfig], damage: str) -> None:
    fastest_lanes(CNN, CONFIG, 3, CPU)
    (key,) = json.loads(cache.read_text())
    cache.write_text(damage.replace("KEY", key))
    assert fastest_lanes(CNN, CONFIG, 3, CPU).form == "separate"
    assert len(measured) == 2
    assert json.loads(cache.read_text())[key]["form"] == "separate"


def test_no_cache_folder_is_no_obstacle(tmp_path: Path, measured: list[ClassifierConfig], monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest_lanes(CNN, CONFIG, 3, CPU).num_lanes == 8
