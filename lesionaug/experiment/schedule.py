"""The graph of a run's steps, run by Dask: in this process, in processes of this machine, or on a cluster.

One graph serves all three. Dask decides the order; what a step computes depends on its inputs and its name alone, so
every order gives the same result. Steps hand nothing to each other but their names: results are files in the run.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionaug.errors import ConfigError, EnvironmentProblem, LesionaugError, TaskFailed
from lesionaug.experiment.protocol import Step, describe
from lesionaug.experiment.workers import Processes, as_task_failed
from lesionaug.experiment.workshop import Workshop
from lesionaug.training.device import is_out_of_memory

if TYPE_CHECKING:
    from distributed import Client

StepReport = Callable[[Step, float, str], None]  # (step, share of it that is done, text)
MOST_TRIES = 3  # of a step whose worker was lost or ran out of memory
_SECONDS_TO_CONNECT = 30


def build_graph(steps: Sequence[Step], perform: Callable[[Step], Any]) -> dict[str, Any]:
    """Make a Dask node of every step, each after those of `steps` that it needs.

    Args:
        steps: What is to be done, each after those that it needs.
        perform: Carries out one.
    """
    from dask.delayed import delayed

    nodes: dict[str, Any] = {}
    for step in steps:
        needs = [nodes[name] for name in step.needs if name in nodes]
        node = delayed(functools.partial(_perform, perform, step), pure=False)
        nodes[step.name] = node(needs, dask_key_name=step.name)
    return nodes


def _perform(perform: Callable[[Step], Any], step: Step, needs: Sequence[str]) -> str:
    perform(step)
    return step.name


def run_here(steps: Sequence[Step], workshop: Workshop, on_step: StepReport) -> None:
    """Carry out steps in this process, one after another.

    Raises:
        LesionaugError: The first failure; what was committed stays.
    """

    def perform(step: Step) -> None:
        try:
            workshop.run(step, share_of(step, on_step))
        except LesionaugError:
            raise
        except Exception as error:
            raise as_task_failed(step, error) from error
        on_step(step, 1.0, "done")

    _compute(steps, perform, scheduler="synchronous")


def run_in_processes(
    steps: Sequence[Step], num_workers: int, store_path: Path, run_dir: Path, on_step: StepReport
) -> None:
    """Carry out steps in spawned processes of this machine, no services.

    When this process dies in any way, its workers notice at their next report and stop without committing anything. A
    worker that is killed is replaced, and its step tried again, at most `MOST_TRIES` times in all.

    Args:
        steps: Each after those that it needs.
        num_workers: Processes.
        store_path: ROI store, opened by each worker itself.
        run_dir: The run.
        on_step: Called as they go.

    Raises:
        LesionaugError: The first failure; the other workers are stopped, committed steps stay.
    """
    lock = threading.Lock()

    def report(step: Step, share: float, text: str) -> None:
        with lock:  # threads of the pool below
            on_step(step, share, text)

    pool = ThreadPoolExecutor(num_workers)
    processes = Processes(num_workers, store_path, run_dir)

    def perform(step: Step) -> None:
        processes.perform(step, lambda done, total, text: report(step, done / max(total, 1), text), MOST_TRIES)
        report(step, 1.0, "done")

    try:
        _compute(steps, perform, scheduler="threads", pool=pool)
    finally:
        processes.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _compute(steps: Sequence[Step], perform: Callable[[Step], Any], **how: Any) -> None:
    from dask.base import compute

    nodes = build_graph(steps, perform)
    compute(*nodes.values(), optimize_graph=False, **how)


def run_on_cluster(
    steps: Sequence[Step], client: Client, store_path: Path, run_dir: Path, device: str, on_step: StepReport
) -> None:
    """Carry out steps on the workers of a Dask cluster that see the same files.

    The scheduler gives the steps of a lost worker to others. Steps that ran out of memory are tried again, at most
    `MOST_TRIES` times in all; no other error is.

    Args:
        steps: Each after those that it needs.
        client: Of the cluster.
        store_path: ROI store, at the same place for every worker.
        run_dir: The run, likewise.
        device: Of the run; on "cuda" a step takes one "GPU" of a worker's resources.
        on_step: Called whenever one is done.

    Raises:
        ConfigError: A worker that does not see the run, or none with a GPU.
        LesionaugError: The first failure; what was committed stays.
    """
    from distributed import as_completed

    store_path, run_dir = store_path.resolve(), run_dir.resolve()
    check_workers(client, store_path, run_dir, device)
    perform = functools.partial(perform_on_worker, store_path, run_dir)
    left = {step.name: step for step in steps}
    tries: Counter[str] = Counter()
    while left:
        futures: dict[str, Any] = {}
        names: dict[str, str] = {}
        for step in left.values():
            needs = [futures[name] for name in step.needs if name in futures]
            key = f"{step.name}-{uuid.uuid4().hex[:8]}"  # a scheduler remembers how a key ended
            names[key] = step.name
            futures[step.name] = client.submit(
                _perform, perform, step, needs, key=key, pure=False, resources={"GPU": 1} if device == "cuda" else None
            )
        ran_out: dict[str, BaseException] = {}
        try:
            for future in as_completed(list(futures.values()), loop=client.loop):
                step = left[names[future.key]]
                if future.status == "finished":
                    del left[step.name]
                    on_step(step, 1.0, "done")
                    continue
                error = future.exception() if future.status == "error" else None
                if error is None or not is_out_of_memory(error):
                    raise _as_error(step, error) from error
                ran_out[step.name] = error
        finally:
            client.cancel(list(futures.values()), force=True)
        for name, error in ran_out.items():
            if not any(need in ran_out for need in left[name].needs):  # else it only waited for one that did
                tries[name] += 1
                if tries[name] == MOST_TRIES:
                    raise _as_error(left[name], error) from error


def _as_error(step: Step, error: BaseException | None) -> BaseException:
    """Make one clear error of how a step ended on a cluster; None: it was cancelled there."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, LesionaugError):
        return error
    if isinstance(error, KilledWorker):
        fix = "If memory ran out, give the workers more; run again to resume"
        return TaskFailed(describe(step), "every worker that tried it, or what it needs, was lost", fix)
    if error is None:
        return TaskFailed(describe(step), "it was cancelled on the cluster", "Run again to resume")
    return as_task_failed(step, error)


_workshops: dict[tuple[Path, Path, float], Workshop] = {}
_one_at_a_time = threading.Lock()


def perform_on_worker(store_path: Path, run_dir: Path, step: Step) -> None:
    """Carry out a step in a worker of a cluster, which keeps what it has opened."""
    with _one_at_a_time:  # torch's number of threads is the process's
        key = (store_path, run_dir, (run_dir / "config.json").stat().st_mtime)
        if key not in _workshops:
            _workshops.clear()
            _workshops[key] = Workshop.open(store_path, run_dir)
        _workshops[key].run(step)


def check_workers(client: Client, store_path: Path, run_dir: Path, device: str) -> None:
    """See that every worker reads the same store and run, and that some have a GPU where one is needed.

    Raises:
        ConfigError: Naming what is missing.
    """
    try:
        client.wait_for_workers(1, timeout=_SECONDS_TO_CONNECT)
    except TimeoutError as error:
        raise ConfigError("--scheduler", "the cluster has no worker", "Start `dask worker ADDRESS`") from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if device == "cuda":
        workers = {name: worker for name, worker in workers.items() if worker.get("resources", {}).get("GPU", 0) >= 1}
        if not workers:
            raise ConfigError(
                "--scheduler",
                "no worker has a GPU to offer",
                "Start `dask worker ADDRESS --nthreads 1 --resources GPU=1` for every GPU",
            )
    if any(worker["nthreads"] > 1 for worker in workers.values()):
        raise ConfigError(
            "--scheduler",
            "a worker has several threads, and a step takes a process of its own",
            "Start `dask worker ADDRESS --nthreads 1`, on the CPU with --nworkers N for N cores",
        )
    blind = [fault for fault in client.run(_fault, store_path, run_dir, workers=list(workers)).values() if fault]
    if blind:
        raise ConfigError(
            "--scheduler",
            f"{len(blind)} worker(s) cannot work on this run, the first because of {blind[0]}",
            "Put store and run on a file system that all of them share, with the same versions everywhere",
        )


def _fault(store_path: Path, run_dir: Path) -> str:
    """Why a worker cannot take part; empty where it can."""
    try:
        Workshop.open(store_path, run_dir)
    except Exception as error:  # whatever it is, it would stop the first step too
        return str(error)
    return ""


@contextmanager
def connected(scheduler: str | None, local_workers: int | None) -> Iterator[Client]:
    """A client of a cluster: the one at an address, or one of processes of this machine, closed afterwards.

    Raises:
        EnvironmentProblem: `distributed` is not installed, or the address does not answer.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise EnvironmentProblem(
            "--scheduler", "the package distributed is not installed", 'pip install "lesionaug[cluster]"'
        ) from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(
                "--scheduler", f"no scheduler answers there ({error})", "Give its address, like tcp://host:8786"
            ) from error
        with client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=local_workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
            memory_limit=0,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


def share_of(step: Step, on_step: StepReport) -> Callable[[int, int, str], None]:
    """A progress callback of one step."""
    return lambda done, total, text: on_step(step, done / max(total, 1), text)


def bundles(steps: Sequence[Step]) -> Mapping[str, list[Step]]:
    """Classifiers that can be trained together: of one arm and one configuration, the longest first."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        if step.kind == "cnn" and step.arm not in ("longer", "equal-steps"):  # these have step numbers of their own
            found.setdefault(step.arm, []).append(step)
    return {arm: sorted(members, key=lambda step: (-step.cost, step.name)) for arm, members in found.items()}
