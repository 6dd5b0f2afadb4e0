"""`lesionaug run` and `lesionaug status` as a user types them: tables, next commands, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lesionaug.cli import main
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import save_rois
from lesionaug.evaluation.classification import wilson_interval
from lesionaug.experiment.results import load_run


def lesions(**more: object) -> RoiBatch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(-50, 150, (48, 48), generator=generator, dtype=torch.int16) for _ in range(18)]
    return RoiBatch.from_images(images, [[24.0, 24.0]] * 18, [14.0] * 18, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rois"
    save_rois(lesions(labels=["cyst", "metastasis", "hemangioma"] * 6, kind="phantom"), path)
    return path


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_run_from_plan_to_table(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my run"
    assert call("run", store, run, "--preset", "tiny", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "cnn-classic-00030-split2-seed0" in planned
    assert "6 of 6 models to train, 72 steps of 16 images, on " in planned
    assert not run.exists()

    assert call("run", store, run, "--preset", "tiny", "--only", "folds") == 0
    assert "Next: run again without --only" in capsys.readouterr().out
    assert call("status", run) == 0
    told = capsys.readouterr().out
    assert "0 of 6 models are trained" in told
    assert "missing: cnn-classic-00000-split0-seed0" in told

    assert call("run", store, run, "--workers", "1") == 0  # no options: the folder's own configuration
    shown = capsys.readouterr().out
    assert "phantom data, not patients" in shown
    assert "channels of the CNN's convolutions: 4, 8, 8 instead of 32, 64, 128" in shown
    assert f"Next: lesionaug report '{run}'" in shown
    summary = load_run(run).pooled("classic", 30, 0).summary
    low, high = wilson_interval(summary.num_correct, summary.total)
    row = next(line for line in shown.splitlines() if f"{summary.num_correct} of 18" in line and " 30 " in line)
    assert f"{100 * summary.accuracy:.1f} %" in row
    assert f"{100 * low:.1f} - {100 * high:.1f} %" in row
    assert (run / "pictures" / "pictures.json").exists()
    assert load_run(run).info["command"] == "run --preset tiny"

    assert call("status", run) == 0
    assert "6 of 6 models are trained" in capsys.readouterr().out


def test_wrong_use_has_the_exit_code_of_its_kind(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call("run", store, run, "--preset", "tiny", "--only", "folds") == 0
    capsys.readouterr()

    assert call("run", store, run, "--preset", "tiny", "--seeds", "1", "2") == 2
    told = capsys.readouterr().err
    assert "error: run: this run was begun with another configuration" in told
    assert "  seeds: 0 -> 1, 2" in told

    (tmp_path / "mine.toml").write_text("[cnn]\nwidth = 3\n")
    assert call("run", store, tmp_path / "new", "--config", tmp_path / "mine.toml") == 2
    assert "error: mine.toml: unknown key cnn.width" in capsys.readouterr().err
    assert call("run", store, tmp_path / "new", "--preset", "huge") != 0
    capsys.readouterr()

    save_rois(lesions(), tmp_path / "unlabelled")
    assert call("run", tmp_path / "unlabelled", tmp_path / "new", "--preset", "tiny") == 3
    assert "18 of 18 lesions have no class" in capsys.readouterr().err
    assert call("run", tmp_path / "nowhere", tmp_path / "new") == 3
    assert call("status", tmp_path) == 3
    assert "there is no config.json in it" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert call("run", store, tmp_path / "gpu", "--preset", "tiny", "--device", "cuda") == 4
