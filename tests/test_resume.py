"""A run that is killed again and again ends with the predictions of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lesionaug.experiment.audit import audit_run
from lesionaug.experiment.config import preset
from lesionaug.experiment.results import load_run
from lesionaug.experiment.run import run_experiment
from tests.runs import make_store, predictions

# Every kind of step, but for the maps and the memorisation, which take longest, and one control of each sort.
CONFIG = preset("tiny").model_copy(
    update={
        "classic_groups": (0, 30),
        "memorisation": None,
        "embedding": None,
        "synthetic_groups": (30,),
        "controls": ("longer", "equal-count"),
    }
)

CHILD = """
import sys
from lesionaug.experiment.run import run_experiment
from tests.test_resume import CONFIG

if __name__ == "__main__":
    run_experiment(sys.argv[1], sys.argv[2], CONFIG, workers=2)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "rois")


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    run_experiment(store, run_dir, CONFIG, workers=1)
    return run_dir


def child(script: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """A process that runs `script`, with the repository on its path."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    return subprocess.Popen([sys.executable, script, *map(str, arguments)], env=environment)


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
def test_killed_three_times(store: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    run_dir = tmp_path / "killed"
    kills = 0
    for wanted in (1, 15, 30):  # kill once this many steps are there, in whatever the others are doing
        with child(script, store, run_dir) as process:
            while process.poll() is None and len(list(run_dir.glob("*/*/task.json"))) < wanted:
                time.sleep(0.002)
            family = children_of(process.pid)
            kills += process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
        assert not load_run(run_dir).complete()
        deadline = time.monotonic() + 20
        while not all(gone(pid) for pid in family):
            assert time.monotonic() < deadline, "a worker outlived its run"
            time.sleep(0.05)
    assert kills == 3
    with child(script, store, run_dir) as process:
        assert process.wait() == 0
    check_same(run_dir, whole)


def check_same(run_dir: Path, whole: Path) -> None:
    """Every file of every step has the same bytes, so every table has too."""
    results = load_run(run_dir)
    assert results.complete()
    assert results.done == load_run(whole).done
    assert len(results.done) == len(results.steps) > 50
    assert predictions(run_dir) == predictions(whole)
    assert not list(run_dir.rglob("*.tmp"))
    assert not (run_dir / "working").exists()
    assert not audit_run(run_dir).findings  # hashes every file anew


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_killed_twenty_times_at_random_moments(store: Path, whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    moments = random.Random(2018)
    kills, finished = 0, 0
    while kills < 20:
        run_dir = tmp_path / f"run{finished}"
        with child(script, store, run_dir) as process:
            try:
                process.wait(timeout=moments.uniform(0.5, 12.0))
            except subprocess.TimeoutExpired:
                family = children_of(process.pid)
                process.kill()
                process.wait()
                kills += 1
                deadline = time.monotonic() + 20
                while not all(gone(pid) for pid in family):
                    assert time.monotonic() < deadline, "a worker outlived its run"
                    time.sleep(0.05)
                continue
        assert process.returncode == 0
        check_same(run_dir, whole)
        finished += 1
    run_dir = tmp_path / f"run{finished}"
    with child(script, store, run_dir) as process:
        assert process.wait() == 0
    check_same(run_dir, whole)
