"""Worker processes of a run on the CPU: each carries out one step at a time, with its own threads, nothing shared."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from lesionaug.errors import LesionaugError, TaskFailed
from lesionaug.experiment.protocol import Step, describe
from lesionaug.experiment.workshop import Workshop
from lesionaug.training.classifier import Progress
from lesionaug.training.device import is_out_of_memory

SECONDS_BETWEEN_REPORTS = 0.2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection


class Processes:
    """Spawned processes that wait for steps; used by as many threads as there are processes.

    Args:
        count: Processes.
        store_path: ROI store, opened by each itself.
        run_dir: Holds config.json and folds.json.
    """

    def __init__(self, count: int, store_path: Path, run_dir: Path) -> None:
        self._opened_with = store_path, run_dir
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        with _interrupts_ignored():  # workers inherit it: Ctrl-C is this process's to handle
            for _ in range(count):
                self._idle.put(self._start())

    def perform(self, step: Step, on_step: Progress, most_tries: int) -> None:
        """Have a step carried out by a process that is free; wait for it.

        Args:
            step: Whose needs are committed.
            on_step: Called as (done, in all, text) while it trains.
            most_tries: In all, where processes are killed or memory runs out; other failures are never tried again.

        Raises:
            LesionaugError: It failed, or every process that tried was killed.
        """
        for tries in range(1, most_tries + 1):
            worker = self._idle.get()
            try:
                worker.connection.send(step)
                while (message := worker.connection.recv())[0] == "step":
                    on_step(*message[1])
            except (EOFError, OSError) as error:
                said = _last_words(worker.connection)  # it may have failed before it was given anything
                if said is not None:
                    raise said from error
                worker.connection.close()
                worker.process.join()
                if self._closed:
                    raise TaskFailed(describe(step), "the run was stopped", "Run again to resume") from error
                self._idle.put(self._start())
                if tries == most_tries:
                    code = worker.process.exitcode
                    killed = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
                    raise TaskFailed(
                        describe(step),
                        f"its worker process {killed}, {tries} times",
                        "If memory ran out, use fewer --workers; run again to resume",
                    ) from error
                continue
            if message[0] == "memory" and tries < most_tries:
                worker.process.join()  # a fresh process has all of the memory again
                self._idle.put(self._start())
                continue
            self._idle.put(worker)
            if message[0] != "done":
                raise message[1]
            return

    def close(self) -> None:
        """Stop every process at once: what is being trained holds nothing that a commit by rename does not protect."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()  # its pipe is the thread's that reads it: closing one twice closes another's file

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, *self._opened_with), daemon=True)
        with self._lock:
            if self._closed:
                raise TaskFailed("run", "it was stopped", "Run again to resume")
            process.start()
            there.close()  # so that a dead worker is an end of file here
            worker = _Worker(process, here)
            self._all.append(worker)
        return worker


def _work(connection: Connection, store_path: Path, run_dir: Path) -> None:
    """Body of a worker process: receive a step, carry it out, say so; until the end of the pipe comes."""
    step: Step | None = None
    _keep_freed_memory()
    try:
        workshop = Workshop.open(store_path, run_dir)
        while True:
            step = connection.recv()
            report = _Reporter(connection)
            try:
                workshop.run(step, report.step, before_commit=report.parent_lives)
            except LesionaugError as error:
                if is_out_of_memory(error):
                    raise
                connection.send(("failed", error))
            else:
                connection.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone: commit nothing more
        os._exit(1)
    except LesionaugError as error:
        connection.send(("memory" if is_out_of_memory(error) else "failed", error))
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "failed"
        connection.send((kind, as_task_failed(step, error)))


def _last_words(connection: Connection) -> LesionaugError | None:
    """The error that a dead process left in its pipe, if it did."""
    with contextlib.suppress(EOFError, OSError):
        while connection.poll():
            kind, content = connection.recv()
            if kind == "failed" and isinstance(content, LesionaugError):
                return content
    return None


def as_task_failed(step: Step | None, error: BaseException) -> TaskFailed:
    """Make one clear error of whatever stopped a step (None: what stopped a worker before its first)."""
    return TaskFailed(
        describe(step) if step else "worker",
        f"it stopped ({type(error).__name__}: {error})",
        "Committed steps are kept; run again to resume",
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
            self._connection.send(("step", (done, total, text)))
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
