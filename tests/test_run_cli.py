"""`lesionaug run` and `lesionaug status` as a user types them: tables, next commands, exit codes."""

from __future__ import annotations

import re
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
    less = tmp_path / "less.toml"
    less.write_text(
        "classic_groups = [0, 30]\ngans = []\ncontrols = []\nbovw = false\nembedding = false\nmemorisation = false\n"
    )
    options = ("--preset", "tiny", "--config", less)
    assert call("run", store, run, "--preset", "tiny", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert re.search(r"controls .* synthetic-only cnn .* 3 .* 0 ", planned)
    assert re.search(r"87 of 87 steps to do on cpu: about .* one after another", planned)
    assert not run.exists()

    assert call("run", store, run, *options, "--only", "folds") == 0
    assert "Next: run again without --only" in capsys.readouterr().out
    assert call("status", run) == 0
    told = capsys.readouterr().out
    assert "0 of 13 steps are done, preset tiny." in told
    assert "Missing: cnn-classic-00000-split0-seed0, " in told
    assert call("audit", run) == 0
    assert "Clean: 0 steps and 0 files looked at; 13 steps are not there." in capsys.readouterr().out

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
    assert load_run(run).info["command"] == "run --preset tiny --config FILE"

    for more in ((), ("--watch",)):
        assert call("status", run, *more) == 0
        assert "13 of 13 steps are done" in capsys.readouterr().out
    assert call("audit", run, "--rois", store) == 0
    told = capsys.readouterr().out
    assert "Clean: 13 steps and " in told
    assert "By design: The classic optimum is chosen on the test folds" in told
    with (run / "models" / "cnn-classic-00000-split0-seed0" / "predictions.csv").open("a") as file:
        file.write("\n")
    assert call("audit", run) == 1
    assert "its bytes are not those that were committed" in capsys.readouterr().out

    assert call("run", store, run, "--slurm-script", tmp_path / "job.py", "--preset", "paper", "--seeds", "1", "2") == 0
    assert "['--preset', 'paper', '--seeds', '1', '2']" in (tmp_path / "job.py").read_text()
    assert call("run", store, run, "--slurm-script", tmp_path / "job2.py", "--dry-run") == 2


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
