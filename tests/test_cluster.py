"""The same graph on `dask.distributed`: lost workers, bits, what is refused; and the script for SLURM."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lesionaug.errors import ConfigError, DataError, EnvironmentProblem, TaskFailed
from lesionaug.experiment import schedule
from lesionaug.experiment.protocol import Step
from lesionaug.experiment.results import load_run
from lesionaug.experiment.run import run_experiment
from lesionaug.experiment.slurm import write_slurm_script
from tests.runs import classic_only, make_store
from tests.test_resume import CONFIG, check_same

distributed = pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of a cluster whose workers are killed there are many
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "rois")


@contextmanager
def cluster(workers: int, **more: Any) -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", **more
    ) as found:
        yield found


@contextmanager
def killing(found: Any, run_dir: Path, at: list[int]) -> Iterator[list[int]]:
    """Kill a random worker whenever so many steps are there; the pids that were killed."""
    killed: list[int] = []
    stop = threading.Event()
    chance = random.Random(2018)

    def kill() -> None:
        for wanted in at:
            while len(list(run_dir.glob("*/*/task.json"))) < wanted:
                if stop.wait(0.01):
                    return
            time.sleep(chance.uniform(0, 0.2))
            pids = [worker.pid for worker in found.workers.values() if worker.pid]
            if pids:
                pid = chance.choice(pids)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_lost_workers_change_no_bit(store: Path, tmp_path: Path) -> None:
    config = classic_only(controls=("longer",))
    run_experiment(store, tmp_path / "here", config, workers=1)
    with cluster(3) as found, killing(found, tmp_path / "there", [2, 7]) as killed:
        run_experiment(store, tmp_path / "there", config, scheduler=found.scheduler_address)
    assert len(killed) == 2
    here, there = load_run(tmp_path / "here"), load_run(tmp_path / "there")
    assert there.complete()
    assert there.done == here.done  # the hashes of every file of every step
    assert not (tmp_path / "there" / "working").exists()


@pytest.mark.full
def test_lost_workers_change_no_bit_of_the_whole_protocol(store: Path, tmp_path: Path) -> None:
    run_experiment(store, tmp_path / "here", CONFIG, workers=1)
    with cluster(3) as found, killing(found, tmp_path / "there", [1, 5, 12, 20, 28, 36, 44]) as killed:
        run_experiment(store, tmp_path / "there", CONFIG, scheduler=found.scheduler_address)
    assert len(killed) == 7
    check_same(tmp_path / "there", tmp_path / "here")


CALLS: list[str] = []
PERFORM = schedule.perform_on_worker


def runs_out(store_path: Path, run_dir: Path, step: Step) -> None:
    CALLS.append(step.name)
    if CALLS.count(step.name) < 3 and step.name == "cnn-classic-00000-split1-seed0":
        raise MemoryError("out of memory")
    PERFORM(store_path, run_dir, step)


def is_wrong(store_path: Path, run_dir: Path, step: Step) -> None:
    CALLS.append(step.name)
    raise DataError("here", "a wrong value", "Correct it")


def is_odd(store_path: Path, run_dir: Path, step: Step) -> None:
    raise ZeroDivisionError("odd")


def test_memory_that_ran_out_is_tried_again_and_wrong_values_are_not(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers that are threads of this process, so that what they call can be replaced."""
    CALLS.clear()
    with threads_as_workers() as address:
        monkeypatch.setattr(schedule, "perform_on_worker", runs_out)
        run_experiment(store, tmp_path / "run", classic_only(), scheduler=address)
        assert CALLS.count("cnn-classic-00000-split1-seed0") == 3
        assert load_run(tmp_path / "run").complete()

        CALLS.clear()
        monkeypatch.setattr(schedule, "perform_on_worker", is_wrong)
        with pytest.raises(DataError, match="here: a wrong value"):
            run_experiment(store, tmp_path / "other", classic_only(), scheduler=address)
        assert len(CALLS) == len(set(CALLS))

        monkeypatch.setattr(schedule, "perform_on_worker", is_odd)
        with pytest.raises(TaskFailed, match=r"it stopped \(ZeroDivisionError: odd\)"):
            run_experiment(store, tmp_path / "another", classic_only(), scheduler=address)


@contextmanager
def threads_as_workers(threads: int = 1) -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None, host="127.0.0.1",
        protocol="tcp://",
    ) as found:  # fmt: skip
        yield found.scheduler_address


def test_what_a_cluster_cannot_do_is_said_at_once(store: Path, tmp_path: Path) -> None:
    with threads_as_workers() as address:
        client = distributed.Client(address, set_as_default=False)
        with client:
            with pytest.raises(ConfigError, match=r"1 worker\(s\) cannot work on this run, the first because of"):
                schedule.check_workers(client, store, tmp_path / "nowhere", "cpu")
            run_experiment(store, tmp_path / "run", classic_only(), only="folds")
            schedule.check_workers(client, store, tmp_path / "run", "cpu")
            with pytest.raises(ConfigError, match="no worker has a GPU to offer"):
                schedule.check_workers(client, store, tmp_path / "run", "cuda")
            other = make_store(tmp_path / "other", seed=1)
            with pytest.raises(ConfigError, match="is not the run's"):
                schedule.check_workers(client, other, tmp_path / "run", "cpu")
    with pytest.raises(EnvironmentProblem, match="no scheduler answers there"):
        run_experiment(store, tmp_path / "run2", classic_only(), scheduler="gibberish://x")
    with threads_as_workers(threads=2) as address, pytest.raises(ConfigError, match="a worker has several threads"):
        run_experiment(store, tmp_path / "run", classic_only(), scheduler=address)
    for more in ({"workers": 2, "local_cluster": 2}, {"scheduler": "tcp://127.0.0.1:1", "workers": 1}):
        with pytest.raises(ConfigError, match="exclude each other"):
            run_experiment(store, tmp_path / "run3", classic_only(), **more)
    assert not (tmp_path / "run3").exists()


WHERE: dict[str, str] = {}


def note_worker(store_path: Path, run_dir: Path, step: Step) -> None:
    WHERE[step.name] = str(distributed.get_worker().name)


def test_a_step_takes_one_gpu_of_a_worker(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of which one has a GPU: it gets every step."""
    WHERE.clear()
    monkeypatch.setattr(schedule, "perform_on_worker", note_worker)
    monkeypatch.setattr(schedule, "check_workers", lambda *_: None)
    steps = run_experiment(store, tmp_path / "run", CONFIG, dry_run=True).steps
    with threads_as_workers() as address:

        async def add() -> Any:
            return await distributed.Worker(address, name="gpu", resources={"GPU": 1}, nthreads=1)

        with distributed.Client(address, set_as_default=False) as client:
            worker = client.sync(add)
            schedule.run_on_cluster(steps, client, store, tmp_path, "cuda", lambda *_: None)
            client.sync(worker.close)
    assert set(WHERE) == {step.name for step in steps}
    assert set(WHERE.values()) == {"gpu"}


def test_the_script_for_slurm(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    target = tmp_path / "job.py"
    write_slurm_script(target, store, tmp_path / "run", ["--preset", "paper"])
    spec = importlib.util.spec_from_file_location("job", target)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    job.INTERFACE = "lo"
    assert (str(store), str(tmp_path / "run"), ["--preset", "paper"]) == (job.ROIS, job.RUN, job.MORE)
    with job.make_cluster() as found:
        text = found.job_script()
    assert "#SBATCH --gres=gpu:1" in text
    assert "#SBATCH -t 04:00:00" in text
    assert "--resources GPU=1" in text
    assert "--nthreads 1" in text
    with pytest.raises(DataError, match=r"job\.py: the file exists already"):
        write_slurm_script(target, store, tmp_path / "run", [])
