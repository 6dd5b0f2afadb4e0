"""A file that hangs, crashes or eats memory costs that file alone, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.sources import guard as guard_module
from lesionaug.data.sources.guard import Guard, Job
from lesionaug.errors import DataError, EnvironmentProblem


def squares(count, shared, step):
    for n in range(count):
        step(n, count, "squaring")
        yield n * n


def pids(shared, step):
    yield os.getpid()


def reads(name, shared, step):
    yield Path(name).read_text()


def sleeps(seconds, shared, step):
    yield "before"
    time.sleep(seconds)
    yield "after"


def spins(shared, step):
    while True:
        pass


def talks(shared, step):
    """Slow, but heard of."""
    for _ in range(8):
        time.sleep(0.15)
        step(0, 0, "still there")
    yield "done"


def allocates(shared, step):
    yield "before"
    yield int(np.ones(1 << 40, dtype=np.uint8)[0])


def allocates_bit_by_bit(shared, step):
    kept = []
    while True:
        kept.append(np.ones(8 << 20, dtype=np.uint8))
        step(0, 0, "allocating")


def dies(number, shared, step):
    yield "before"
    os.kill(os.getpid(), number)
    time.sleep(10)


def leaves(code, shared, step):
    os._exit(code)
    yield


def raises(error, shared, step):
    yield "before"
    raise error


def returns_shared(shared, step):
    yield shared


def cannot_be_sent(shared, step):
    yield lambda: None


class CannotBeRead:
    def __reduce__(self):
        return int, ("not a number",)


def cannot_be_unpacked(shared, step):
    yield CannotBeRead()


def nothing(done, total, text):
    pass


def run(*jobs, workers=2, shared=None, on_step=nothing):
    with Guard(workers) as guard:
        guard.share(shared)
        return list(guard.run([Job(f"file {n}", *job) for n, job in enumerate(jobs)], on_step, "reading"))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(guard_module, "SILENCE_S", 0.5)


def test_outcomes_come_in_the_order_of_the_jobs_with_all_results():
    outcomes = run((sleeps, (0.3,)), *[(squares, (n,)) for n in range(20)])
    assert outcomes[0].results == ["before", "after"]
    assert [outcome.results for outcome in outcomes[1:]] == [[k * k for k in range(n)] for n in range(20)]
    assert not any(outcome.error for outcome in outcomes)


HOSTILE = [
    ((sleeps, (60,)), "longer than", ["before"]),
    ((spins, ()), "longer than", []),
    ((allocates, ()), "more memory", ["before"]),
    ((allocates_bit_by_bit, ()), "more memory", []),
    ((dies, (signal.SIGSEGV,)), "crash (signal SIGSEGV", ["before"]),
    ((leaves, (3,)), "crash (exit code 3", []),
    ((raises, (ValueError("odd"),)), "ValueError: odd", ["before"]),
    ((raises, (RecursionError(),)), "deeper", ["before"]),
    ((raises, (DataError("x", "a rule", "a fix"),)), "a rule", ["before"]),
    ((cannot_be_sent, ()), "broken", []),
    ((cannot_be_unpacked, ()), "cannot be passed on", []),
]


def test_a_hostile_file_costs_that_file_alone(impatient):
    jobs = [job for hostile, _, _ in HOSTILE for job in (hostile, (squares, (3,)))]
    outcomes = run(*jobs, workers=3)
    assert [outcome.results for outcome in outcomes[1::2]] == [[0, 1, 4]] * len(HOSTILE)
    for bad, (job, words, results) in zip(outcomes[::2], HOSTILE, strict=True):
        assert isinstance(bad.error, DataError), job
        assert words in str(bad.error), job
        assert bad.error.fix
        assert bad.results == results, job


def test_a_slow_reader_that_is_heard_of_is_left_alone(impatient):
    (outcome,) = run((talks, ()))
    assert outcome.results == ["done"]


def test_progress_counts_jobs_and_passes_on_what_a_reader_says():
    said = []
    run((talks, ()), (squares, (2,)), workers=1, on_step=lambda *step: said.append(step))
    assert [step for step in said if step[2] == "reading"] == [(1, 2, "reading"), (2, 2, "reading")]
    assert said.count((0, 0, "still there")) >= 5


def test_what_is_shared_reaches_every_worker_and_no_later_guard():
    assert [o.results for o in run(*[(returns_shared, ())] * 4, shared={"a": 1})] == [[{"a": 1}]] * 4
    with Guard(2) as guard:  # its workers served the guard before
        (outcome,) = guard.run([Job("x", returns_shared)], nothing, "")
        assert outcome.results == [None]
        guard.share("first")
        guard.share("second")
        (outcome,) = guard.run([Job("x", returns_shared)], nothing, "")
        assert outcome.results == ["second"]


def test_workers_are_used_again_and_no_descriptor_is_left_open():
    first = {o.results[0] for o in run((pids, ()), (pids, ()), workers=1)}
    open_before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert {o.results[0] for o in run((pids, ()), workers=1)} == first
        run((leaves, (1,)), workers=1)
        first = {o.results[0] for o in run((pids, ()), workers=1)}
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_a_worker_that_died_while_it_waited_is_replaced():
    with Guard(1) as guard:
        list(guard.run([Job("x", pids)], nothing, ""))
        for worker in guard._workers:
            worker.process.kill()
            worker.process.wait()
        (outcome,) = guard.run([Job("x", squares, (3,))], nothing, "")
    assert outcome.results == [0, 1, 4]


def test_a_worker_that_cannot_start_is_no_fault_of_a_file(monkeypatch):
    guard_module._stop(guard_module._waiting)
    guard_module._waiting.clear()
    monkeypatch.setattr(guard_module, "_WORK", "raise SystemExit(9)")
    with pytest.raises(EnvironmentProblem, match="could not start"):
        run((squares, (3,)))


def test_stopping_early_kills_what_is_being_read(tmp_path):
    with Guard(2) as guard:
        outcomes = guard.run([Job("a", pids), Job("b", sleeps, (60,))], nothing, "")
        next(outcomes)
        busy = [worker.process for worker in guard._workers if worker.job is not None]
        outcomes.close()
    assert len(busy) == 1
    assert busy[0].poll() is not None


def test_without_workers_everything_is_read_here():
    outcomes = run((pids, ()), (raises, (ValueError("odd"),)), workers=0)
    assert outcomes[0].results == [os.getpid()]
    assert outcomes[1].results == ["before"] or "odd" in str(outcomes[1].error)


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body))
    return path


def start(path: Path, **keywords) -> subprocess.Popen:
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **keywords,
    )


def test_a_script_without_a_main_guard_works_and_files_beside_the_data_are_not_imported(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pydicom.py").write_text("raise SystemExit('imported from the folder of data')")
    path = script(
        tmp_path,
        """
        import sys
        print("once", flush=True)
        from lesionaug.data.sources.guard import Guard, Job
        from tests.test_guard import squares
        with Guard(2) as guard:
            print([o.results for o in guard.run([Job("a", squares, (3,))] * 3, lambda *_: None, "")])
        """,
    )
    process = start(path, cwd=tmp_path / "data")
    out, err = process.communicate(timeout=120)
    assert (out, err) == ("once\n[[0, 1, 4], [0, 1, 4], [0, 1, 4]]\n", "")


def gone(pid: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_ctrl_c_makes_no_noise_but_its_own(tmp_path, number):
    path = script(
        tmp_path,
        """
        import signal
        from lesionaug.data.sources.guard import Guard, Job
        from tests.test_guard import pids, sleeps
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
        with Guard(1) as guard:
            for o in guard.run([Job("a", pids), Job("b", sleeps, (60,), 1 << 40)], lambda *_: None, ""):
                print(o.results[0], flush=True)
        """,
    )
    process = start(path)
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    worker = int(line)
    time.sleep(0.3)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert gone(worker, 10)
    assert err.count("Traceback") == (1 if number == signal.SIGINT else 0)


def test_relative_paths_are_those_of_the_current_folder(tmp_path, monkeypatch):
    """Also where a worker has waited since we were in another one."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        with Guard(1) as guard:
            (outcome,) = guard.run([Job("file", reads, ("file",))], lambda *_: None, "")
        assert (outcome.error, outcome.results) == (None, [name])
    monkeypatch.chdir(tmp_path / "first")
    (tmp_path / "first" / "file").unlink()
    (tmp_path / "first").rmdir()  # the current folder is gone: absolute paths are read all the same
    with Guard(1) as guard:
        (outcome,) = guard.run([Job("file", reads, (str(tmp_path / "second" / "file"),))], lambda *_: None, "")
    assert outcome.results == ["second"]
