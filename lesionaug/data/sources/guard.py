"""Files read in processes of their own: one that hangs, crashes or eats memory costs that file, never the import.

A reader is a function that yields what it found. It runs in a worker whose memory is limited and which must be heard of
every few seconds. A worker that is not is killed, its file noted as a fault, and another takes the next file.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from lesionaug.data.sources.dicom_file import EXPORT_AGAIN, reading
from lesionaug.errors import DataError, EnvironmentProblem, LesionaugError

Step = Callable[[int, int, str], None]
Reader = Callable[..., Iterator[Any]]  # reader(*arguments, shared, step) yields results
Result = TypeVar("Result")

# A reader may be silent for so long: real slices take hundredths of a second, structure sets a second for 10 MiB.
SILENCE_S = 4.0
SILENCE_S_PER_MIB = 0.25
# Memory for one file, beside the 100 MB of a worker: several copies of a decoded slice, or of a volume's mask.
MEMORY_BYTES = 800 << 20
MEMORY_PER_FILE_BYTE = 6

MOST_WORKERS = 4

_START_S = 30.0  # a worker's imports, on a busy machine
_PATIENCE = 2  # times that a silent worker that got little of a busy machine is given as long again
_WITHOUT_PARENT_S = 10  # how much longer than its silence a worker that holds Python's lock outlives its parent


@dataclass(frozen=True)
class Job:
    """One file to read.

    Attributes:
        where: The file's name, for errors.
        reader: A function of a module, `reader(*arguments, shared, step)`, yielding results.
        arguments: Whatever it needs; pickled.
        size: Of the file in bytes: larger files may take longer and need more.
    """

    where: str
    reader: Reader
    arguments: tuple[Any, ...] = ()
    size: int = 0

    @property
    def silence_s(self) -> float:
        """How long the reader may be silent."""
        return SILENCE_S + SILENCE_S_PER_MIB * self.size / (1 << 20)


@dataclass
class Outcome(Generic[Result]):
    """What came of a job: everything that it yielded, and the error that ended it, if one did."""

    results: list[Result] = field(default_factory=list)
    error: LesionaugError | None = None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    shared_version: int = 0
    job: int | None = None
    begun: bool = False  # with its job
    served: bool = False  # a job was begun before
    deadline: float = 0.0
    cpu_s: float = 0.0  # used when it was last heard of
    patience: int = 0
    parent: int = field(default_factory=os.getpid)
    folder: str = ""  # that it works in

    def send(self, *message: Any) -> None:
        self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def heard(self, silence_s: float) -> None:
        """Note that it lives."""
        self.deadline, self.patience = time.monotonic() + silence_s, _PATIENCE
        self.cpu_s = _cpu_s(self.process.pid)

    def hangs(self, silence_s: float) -> bool:
        """Whether it has been silent for too long; one that got little of the processor is given more time."""
        if time.monotonic() < self.deadline:
            return False
        if self.patience and _cpu_s(self.process.pid) - self.cpu_s < silence_s / 2:
            self.deadline, self.patience = time.monotonic() + silence_s, self.patience - 1
            return False
        return True


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Guard:
    """Worker processes that read files; started when the first is needed, stopped by `close`.

    Args:
        workers: Processes, or None for one on each CPU up to `MOST_WORKERS`; 0 reads in this process, without limits.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._most = min(MOST_WORKERS, len(os.sched_getaffinity(0))) if workers is None else workers
        self._workers: list[_Worker] = []
        self._shared: Any = None
        self._shared_version = next(_versions)

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def share(self, value: Any) -> None:
        """What every reader is given from now on; sent to each worker once."""
        self._shared = value
        self._shared_version = next(_versions)

    def run(self, jobs: Sequence[Job], on_step: Step, text: str) -> Iterator[Outcome[Any]]:
        """Read files, several at a time; their outcomes in the order of the jobs.

        Args:
            jobs: What to read.
            on_step: Called as (jobs done, jobs, text), and with what a single job reports.
            text: For `on_step`.
        """
        if self._most == 0:
            yield from (self._run_here(job, on_step) for job in jobs)
            return
        outcomes: dict[int, Outcome[Any]] = {}
        finished: set[int] = set()
        waiting = iter(range(len(jobs)))
        given_out = 0
        try:
            while given_out < len(jobs):
                self._hand_out(jobs, waiting, outcomes)
                for index in self._listen(jobs, outcomes, on_step):
                    finished.add(index)
                    on_step(len(finished), len(jobs), text)
                while given_out in finished:
                    given_out += 1
                    yield outcomes.pop(given_out - 1)
        finally:
            if given_out < len(jobs):  # somebody stopped asking: what is being read is of no use
                self.close()

    def close(self) -> None:
        """Stop every worker that reads; those that wait are kept for the next guard of this process."""
        _stop([worker for worker in self._workers if worker.job is not None])
        for worker in self._workers:
            if worker.job is None:
                _waiting.append(worker)
        self._workers.clear()

    def _run_here(self, job: Job, on_step: Step) -> Outcome[Any]:
        outcome: Outcome[Any] = Outcome()
        try:
            with reading(job.where):
                outcome.results.extend(job.reader(*job.arguments, self._shared, on_step))
        except LesionaugError as error:
            outcome.error = error
        return outcome

    def _hand_out(self, jobs: Sequence[Job], waiting: Iterator[int], outcomes: dict[int, Outcome[Any]]) -> None:
        idle = [worker for worker in self._workers if worker.job is None]
        while idle or len(self._workers) < self._most:
            index = next(waiting, None)
            if index is None:
                return
            outcomes[index] = Outcome()
            self._give(idle.pop() if idle else self._start(), index, jobs[index])

    def _give(self, worker: _Worker, index: int, job: Job) -> None:
        worker.job, worker.begun = index, False
        worker.heard(job.silence_s + _START_S)
        with contextlib.suppress(OSError):  # one that is dead already is found so when it is listened to
            folder = _here()
            if worker.folder != folder:  # paths may be relative, and it may have waited since we were elsewhere
                worker.send("folder", folder)
                worker.folder = folder
            if worker.shared_version != self._shared_version:
                worker.send("share", self._shared)
                worker.shared_version = self._shared_version
            worker.send("read", job)

    def _listen(self, jobs: Sequence[Job], outcomes: dict[int, Outcome[Any]], on_step: Step) -> Iterator[int]:
        """Take what workers have sent; yields the jobs that ended."""
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        timeout = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
        for connection in wait(list(busy), timeout):
            assert isinstance(connection, Connection)
            worker = busy[connection]
            assert worker.job is not None
            index, job = worker.job, jobs[worker.job]
            try:
                kind, content = connection.recv()
            except (EOFError, OSError):
                error = self._bury(worker, job)
                if worker.begun:
                    outcomes[index].error = error
                    yield index
                elif worker.served:  # it died while it waited, which is not this file's fault
                    self._give(self._start(), index, job)
                else:
                    raise EnvironmentProblem(
                        job.where, "a process that reads files could not start", "See `lesionaug doctor`"
                    ) from None
                continue
            except Exception as error:
                worker.process.kill()
                self._bury(worker, job)
                rule = f"what its reader found cannot be passed on ({type(error).__name__})"
                outcomes[index].error = DataError(job.where, rule, EXPORT_AGAIN)
                yield index
                continue
            worker.heard(job.silence_s)
            if kind == "begun":
                worker.begun = worker.served = True
            elif kind == "result":
                outcomes[index].results.append(content)
            elif kind == "step":
                on_step(*content)
            else:
                outcomes[index].error = content
                worker.job = None
                yield index
        for worker in [entry for entry in self._workers if entry.job is not None]:
            assert worker.job is not None
            index, job = worker.job, jobs[worker.job]
            if not worker.hangs(job.silence_s):
                continue
            worker.process.kill()
            self._bury(worker, job)
            outcomes[index].error = DataError(
                job.where,
                f"reading it took longer than {job.silence_s:.0f} s, which no real file of its size does",
                EXPORT_AGAIN,
            )
            yield index

    def _bury(self, worker: _Worker, job: Job) -> DataError:
        worker.process.wait()
        worker.connection.close()
        self._workers.remove(worker)
        code = worker.process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return DataError(job.where, f"the file made its reader crash ({how})", EXPORT_AGAIN)

    def _start(self) -> _Worker:
        while _waiting:
            worker = _waiting.pop()
            if worker.parent != os.getpid():
                continue  # we are a fork: it is our parent's
            if worker.process.poll() is None:
                self._workers.append(worker)
                return worker
            worker.connection.close()
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            # Not multiprocessing's own processes: those import the caller's script again.
            process = subprocess.Popen(
                # -P: not from the current folder, which may be that of the files to read.
                [sys.executable, "-P", "-c", _WORK, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # codecs write there
                start_new_session=True,  # Ctrl-C is for the parent
                env=_environment(),
            )
        worker = _Worker(process, Connection(ours.detach()))
        self._workers.append(worker)
        return worker


_WORK = "from lesionaug.data.sources.guard import work; work()"

_waiting: list[_Worker] = []  # workers that no guard has
_versions = itertools.count(1)  # of what guards share, over all guards: a worker that waited has an older one


def _here() -> str:
    """The current folder, '' where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _environment() -> dict[str, str]:
    """A worker's: what we can import, it can, and it computes on one thread."""
    folders = [entry or os.getcwd() for entry in sys.path]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(folders),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.connection.close()


@atexit.register
def _stop_waiting() -> None:
    _stop([worker for worker in _waiting if worker.parent == os.getpid()])


def work() -> None:
    """Body of a worker: read what is asked for until the parent is gone."""
    import pydicom.pixels  # noqa: F401  what nearly every reader needs: no file pays for it with its own time

    connection = Connection(int(sys.argv[1]))
    silence_s = [SILENCE_S]
    threading.Thread(target=_die_with_parent, args=(int(sys.argv[2]), silence_s), daemon=True).start()
    shared: Any = None
    reported = 0.0

    def step(done: int, total: int, text: str) -> None:
        nonlocal reported
        if time.monotonic() - reported > 0.1:
            reported = time.monotonic()
            connection.send(("step", (done, total, text)))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            kind, content = pickle.loads(connection.recv_bytes())  # from the parent, which we are a part of
            if kind == "share":
                shared = content
                continue
            if kind == "folder":
                with contextlib.suppress(OSError):
                    os.chdir(content)
                continue
            silence_s[0] = content.silence_s
            connection.send(("begun", None))
            with _limited_memory(content):
                error = _read(content, shared, step, connection)
            connection.send(("done", error))


def _read(job: Job, shared: Any, step: Step, connection: Connection) -> LesionaugError | None:
    try:
        with reading(job.where):
            for result in job.reader(*job.arguments, shared, step):
                connection.send(("result", result))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except LesionaugError as error:
        return _without_context(error)
    return None


def _without_context(error: LesionaugError) -> LesionaugError:
    """The error alone: what caused it holds frames and whatever they hold."""
    traceback.clear_frames(error.__traceback__)
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


@contextlib.contextmanager
def _limited_memory(job: Job) -> Iterator[None]:
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = used + MEMORY_BYTES + MEMORY_PER_FILE_BYTE * job.size
    for limit in before:
        most = most if limit == resource.RLIM_INFINITY else min(most, limit)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _die_with_parent(parent: int, silence_s: list[float]) -> None:
    """End this process when its parent is gone.

    A reader that hangs within a library may hold Python's lock, so that this thread does not run: an alarm, which it
    puts off as long as it runs, then ends the process.
    """
    while os.getppid() == parent:
        signal.alarm(int(silence_s[0]) + _WITHOUT_PARENT_S)
        time.sleep(1.0)
    os._exit(1)
