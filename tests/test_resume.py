"""A run that is killed three times ends with the predictions of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import save_rois
from lesionaug.experiment.config import preset
from lesionaug.experiment.results import load_run
from lesionaug.experiment.run import run_experiment

# Slow enough to be hit, fast enough for a test: the plan is tiny's with two seeds.
CONFIG = preset("tiny").model_copy(update={"seeds": (0, 1)})

CHILD = """
import sys
from lesionaug.experiment.config import preset
from lesionaug.experiment.run import run_experiment

if __name__ == "__main__":
    config = preset("tiny").model_copy(update={"seeds": (0, 1)})
    run_experiment(sys.argv[1], sys.argv[2], config, workers=2)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("data") / "rois"
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(-50, 150, (48, 48), generator=generator, dtype=torch.int16) for _ in range(18)]
    labels = ["cyst", "metastasis", "hemangioma"] * 6
    save_rois(RoiBatch.from_images(images, [[24.0, 24.0]] * 18, [14.0] * 18, labels=labels, kind="phantom"), path)
    return path


def predictions(run_dir: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(run_dir.glob("models/*/predictions.csv"))}


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`, read from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_killed_three_times(store: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run_experiment(store, whole, CONFIG, workers=1)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    run_dir = tmp_path / "killed"
    kills = 0
    for wanted in (1, 4, 8):  # kill once this many models are there, in whatever the others are doing
        with subprocess.Popen([sys.executable, script, store, run_dir]) as child:
            while child.poll() is None and len(list(run_dir.glob("models/cnn-*"))) < wanted:
                time.sleep(0.002)
            family = children_of(child.pid)
            kills += child.poll() is None
            os.kill(child.pid, signal.SIGKILL)
        assert not load_run(run_dir).complete()
        deadline = time.monotonic() + 20
        while not all(gone(pid) for pid in family):
            assert time.monotonic() < deadline, "a worker outlived its run"
            time.sleep(0.05)
    assert kills == 3
    finished = subprocess.run([sys.executable, script, store, run_dir], check=False)
    assert finished.returncode == 0
    assert load_run(run_dir).complete()
    assert len(predictions(whole)) == 2 * 2 * 3
    assert predictions(run_dir) == predictions(whole)
    assert not list(run_dir.rglob("*.tmp"))


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_killed_twenty_times_at_random_moments(store: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run_experiment(store, whole, CONFIG, workers=1)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    moments = random.Random(2018)
    kills, finished = 0, 0
    while kills < 20:
        run_dir = tmp_path / f"run{finished}"
        with subprocess.Popen([sys.executable, script, store, run_dir]) as child:
            try:
                child.wait(timeout=moments.uniform(0.5, 6.0))
            except subprocess.TimeoutExpired:
                family = children_of(child.pid)
                child.kill()
                child.wait()
                kills += 1
                deadline = time.monotonic() + 20
                while not all(gone(pid) for pid in family):
                    assert time.monotonic() < deadline, "a worker outlived its run"
                    time.sleep(0.05)
                continue
        assert child.returncode == 0
        assert predictions(run_dir) == predictions(whole)
        finished += 1
    run_dir = tmp_path / f"run{finished}"
    assert subprocess.run([sys.executable, script, store, run_dir], check=False).returncode == 0
    assert predictions(run_dir) == predictions(whole)
    assert not list(tmp_path.rglob("*.tmp"))
