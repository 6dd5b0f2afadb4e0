"""Worker processes of a run on the CPU: each trains one task at a time, with its own threads and nothing shared."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from lesionaug.errors import LesionaugError, TaskFailed
from lesionaug.experiment.task import Task, TaskRunner, describe

SECONDS_BETWEEN_REPORTS = 0.2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
StepReport = Callable[[Task, int, str], None]  # (task, steps done of it, text)
DoneReport = Callable[[Task], None]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None


def run_in_processes(
    tasks: Sequence[Task], num_workers: int, store_path: Path, run_dir: Path, on_step: StepReport, on_done: DoneReport
) -> None:
    """Train tasks in spawned processes, handing out the next one as soon as a process is free.

    When this process dies in any way, its workers notice at their next report and stop without committing anything.

    Args:
        tasks: In the order in which they are handed out.
        num_workers: Processes.
        store_path: ROI store, opened by each worker itself.
        run_dir: Holds config.json and folds.json.
        on_step: Called while a task trains.
        on_done: Called when a task is committed.

    Raises:
        LesionaugError: The first failure; the other workers are stopped, committed tasks stay.
    """
    waiting = deque(tasks)
    workers: list[_Worker] = []
    try:
        with _interrupts_ignored():  # workers inherit it: Ctrl-C is this process's to handle
            for _ in range(min(num_workers, len(tasks))):
                workers.append(_start(store_path, run_dir))
        for worker in workers:
            _hand_out(worker, waiting)
        while any(worker.task for worker in workers):
            ready = wait([worker.connection for worker in workers if worker.task])
            for worker in [worker for worker in workers if worker.connection in ready]:
                _listen(worker, waiting, on_step, on_done)
    finally:
        for worker in workers:
            if worker.task is not None:
                worker.process.kill()  # holds nothing that a commit by rename does not protect
            worker.connection.close()
        for worker in workers:
            worker.process.join()


def _start(store_path: Path, run_dir: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, store_path, run_dir), daemon=True)
    process.start()
    there.close()  # so that a dead worker is an end of file here
    return _Worker(process, here)


def _hand_out(worker: _Worker, waiting: deque[Task]) -> None:
    worker.task = waiting.popleft() if waiting else None
    with contextlib.suppress(BrokenPipeError):  # died already: reading from it will tell
        worker.connection.send(worker.task)


def _listen(worker: _Worker, waiting: deque[Task], on_step: StepReport, on_done: DoneReport) -> None:
    assert worker.task is not None
    try:
        kind, content = worker.connection.recv()
    except (EOFError, OSError) as error:
        worker.process.join()
        code = worker.process.exitcode
        killed = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        raise TaskFailed(
            describe(worker.task),
            f"its worker process {killed}",
            "If memory ran out, use fewer --workers; run again to resume",
        ) from error
    if kind == "step":
        on_step(worker.task, *content)
    elif kind == "done":
        done = worker.task
        _hand_out(worker, waiting)
        on_done(done)
    else:
        raise content


def _work(connection: Connection, store_path: Path, run_dir: Path) -> None:
    """Body of a worker process: receive a task, train it, say so; until None or the end of the pipe comes."""
    task: Task | None = None
    _keep_freed_memory()
    try:
        runner = TaskRunner.open(store_path, run_dir)
        while (task := connection.recv()) is not None:
            report = _Reporter(connection)
            runner.run(task, report.step, before_commit=report.parent_lives)
            connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone: commit nothing more
        os._exit(1)
    except LesionaugError as error:
        connection.send(("failed", error))
    except Exception as error:
        connection.send(("failed", as_task_failed(task, error)))


def as_task_failed(task: Task | None, error: Exception) -> TaskFailed:
    """Make one clear error of whatever stopped a training (None: what stopped a worker before its first)."""
    return TaskFailed(
        describe(task) if task else "worker",
        f"training stopped ({type(error).__name__}: {error})",
        "Committed models are kept; run again to resume",
    )


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of returning it: every step frees and takes the same activations.

    The page faults of taking them anew cost a tenth to a sixth of the training time. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(option, 2**30)


class _Reporter:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reported = time.monotonic()

    def step(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if done == total or now - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._connection.send(("step", (done, text)))
            self._reported = now

    def parent_lives(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise BrokenPipeError


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    # Only the main thread may change this, and only it is interrupted.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
