"""`lesionaug run`: the whole protocol (section IV), resumable step by step."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lesionaug.data.files import check_own_folder, locked, remove_leftovers, write_json_atomic
from lesionaug.data.folds import Folds, check_labelled, make_folds
from lesionaug.data.provenance import content_hashes
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError, LesionaugError
from lesionaug.experiment.config import RunConfig, RunFoldsConfig, difference, preset
from lesionaug.experiment.graph import check_configuration, committed
from lesionaug.experiment.machine import check_versions, cpu_model, device_name, num_cores, resolve_device
from lesionaug.experiment.materials import WORKING
from lesionaug.experiment.protocol import FOLDERS, STAGES, Step, describe, plan_steps, with_needs
from lesionaug.experiment.results import (
    RUN_SCHEMA,
    check_folders,
    config_sha256,
    folds_sha256,
    load_config,
    load_info,
    load_run_folds,
    make_ground,
)
from lesionaug.experiment.schedule import bundles, connected, run_here, run_in_processes, run_on_cluster
from lesionaug.experiment.workers import as_task_failed
from lesionaug.experiment.workshop import Workshop
from lesionaug.training.classifier import Progress
from lesionaug.training.lane_choice import fastest_lanes

ONLY = ("folds", *STAGES)
COST_WORTH_A_PROCESS = 3e10  # multiply-adds: about five seconds on one core, where starting a process takes two
_OURS = frozenset(
    {".lock", "config.json", "run.json", "folds.json", WORKING, "pictures", "report", "report.html", *FOLDERS.values()}
)


@dataclass(frozen=True)
class RunOutcome:
    """What a call of `run_experiment` found and did.

    Attributes:
        config: The resolved configuration.
        kind: "phantom", "imported" or "user".
        folds: Of the run.
        steps: Every step of the run.
        done_before: Names of those that were committed before the call.
        made: Names of those that are done since, which were not or whose inputs were missing.
    """

    config: RunConfig
    kind: str
    folds: Folds
    steps: tuple[Step, ...]
    done_before: tuple[str, ...]
    made: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return len(self.done_before) + len(self.made) == len(self.steps)


def run_experiment(
    store_path: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    config: RunConfig | None = None,
    *,
    progress: Progress | None = None,
    only: str | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    lanes: bool = False,
    scheduler: str | None = None,
    local_cluster: int | None = None,
    command: str = "run",
    own_folds: Folds | None = None,
) -> RunOutcome:
    """Run the experiment, or what is missing of it.

    Every step is committed by a rename, so a killed run loses at most the steps that were under way, of a GAN what it
    did since its last checkpoint; the same call again resumes. Which worker does what, and when, changes no bit of the
    result.

    On the CPU tasks run in spawned processes, so a script that calls this needs `if __name__ == "__main__":`, as with
    every use of multiprocessing; `workers=1` trains in this process.

    Args:
        store_path: ROI store with a class for every lesion.
        run_dir: The run's folder; made if missing.
        config: What to run; None resumes with the folder's own configuration (`quick` for a new folder).
        progress: Called as (done, in all, text), in thousandths.
        only: "folds", or one of `protocol.STAGES` with all that it needs; None is everything.
        dry_run: Plan and check only, write nothing.
        workers: Processes on the CPU; None is one per core that `threads_per_task` leaves, fewer for little work.
        lanes: On a GPU, train many models at once (training/lanes.py); how many is measured at the first call on a
            machine. Each is equal to one trained by itself but for rounding.
        scheduler: Address of a Dask scheduler whose workers see the same files; for one's own cluster.
        local_cluster: Or a number of `dask.distributed` workers on this machine.
        command: How the run was asked for, without paths; saved in run.json.
        own_folds: Folds of the same lesions in place of those that the configuration asks for.

    Raises:
        ConfigError: Changed configuration, store, folds or versions, unknown stage, a folder in use or not a run's.
        DataError: A store that cannot be trained on.
        EnvironmentProblem: No such device.
        TaskFailed: A task failed; committed ones stay.
    """
    store_path, run_dir = Path(store_path), Path(run_dir)
    if only is not None and only not in ONLY:
        raise ConfigError("--only", f"there is no stage {only!r}", f"Choose one of {', '.join(ONLY)}")
    for option, number in (("--workers", workers), ("--local-cluster", local_cluster)):
        if number is not None and number < 1:
            raise ConfigError(option, f"at least one is needed, got {number}", "Leave it out for one per core")
    if sum(how is not None and how is not False for how in (workers, scheduler, local_cluster, lanes or None)) > 1:
        raise ConfigError(
            "--scheduler", "--workers, --lanes, --local-cluster and --scheduler exclude each other", "Choose one"
        )
    store_hash = manifest_sha256(store_path)
    rois = load_rois(store_path)
    # Every fault of the input shows before a file is written.
    elsewhere = scheduler is not None
    config, folds = _settle(run_dir, config, own_folds, rois, store_hash, elsewhere)
    if lanes and config.device == "cpu":
        raise ConfigError(
            "--lanes", "many models at once are for a GPU; on the CPU every core trains one by itself", "Leave it out"
        )
    if local_cluster is not None and config.device == "cuda":
        raise ConfigError(
            "--local-cluster",
            "its workers are CPU processes; one GPU trains one step at a time",
            "Leave it out, add --device cpu, or use --scheduler with a worker for every GPU",
        )
    steps = plan_steps(config, folds, len(rois.classes))
    if dry_run:
        done = _done(run_dir, steps, config) if (run_dir / "config.json").exists() else ()
        return RunOutcome(config, rois.kind, folds, steps, done, ())
    check_own_folder(run_dir, _OURS, "run")
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir):
        # Again: another process may have begun meanwhile.
        config, folds = _settle(run_dir, config, own_folds, rois, store_hash, elsewhere)
        remove_leftovers(run_dir, *(run_dir / name for name in FOLDERS.values()))
        if not (run_dir / "config.json").exists():
            check_configuration(run_dir, steps, config_sha256(config))
            folds.save(run_dir / "folds.json")
            described = _describe_run(rois, store_hash, config, command)
            write_json_atomic(run_dir / "run.json", {**described, "folds_sha256": folds_sha256(run_dir)})
            # Last, for its presence says that the two above are whole.
            write_json_atomic(run_dir / "config.json", config.model_dump(mode="json"))
        done_before = _done(run_dir, steps, config)
        wanted: Sequence[Step] = steps
        if only is not None:
            wanted = with_needs(steps, [step.name for step in steps if step.stage == only])
        missing = [step for step in wanted if step.name not in done_before]
        _remove_incomplete(run_dir, missing)
        total = sum(step.cost for step in missing)
        shares: dict[str, float] = {}

        def on_step(step: Step, share: float, text: str) -> None:
            shares[step.name] = share * step.cost
            if progress is not None:
                done = min(round(1000 * sum(shares.values()) / max(total, 1.0)), 1000)
                progress(done, 1000, f"{describe(step)}, {text}")

        if scheduler is not None or local_cluster is not None:
            with connected(scheduler, local_cluster) as client:
                run_on_cluster(missing, client, store_path, run_dir, config.device, on_step)
        else:
            _run_on_this_machine(missing, config, rois, folds, store_path, run_dir, on_step, workers, lanes)
        outcome = RunOutcome(config, rois.kind, folds, steps, done_before, tuple(step.name for step in missing))
        if outcome.complete:  # else it may hold the checkpoints of a GAN that was stopped
            shutil.rmtree(run_dir / WORKING, ignore_errors=True)
            remove_leftovers(*(run_dir / name for name in FOLDERS.values()))  # of workers that were lost as they wrote
        return outcome


def _settle(
    run_dir: Path,
    config: RunConfig | None,
    own_folds: Folds | None,
    rois: RoiBatch,
    store_hash: str,
    elsewhere: bool,
) -> tuple[RunConfig, Folds]:
    """Bring the wanted configuration and the folder's own together, and get the folds.

    Where it is carried out `elsewhere`, on a cluster, a GPU need not be here. Folds of the user's own take the place of
    the configuration's.

    Raises:
        ConfigError: They differ, or the folder was begun on another store.
        DataError: Folds of other lesions.
    """
    begun = (run_dir / "config.json").exists()
    if own_folds is not None and (config is not None or not begun):
        config = config or preset("quick")
        config = config.model_copy(
            update={"folds": RunFoldsConfig(num_folds=own_folds.num_folds, seed=own_folds.seed, from_file=True)}
        )
    if not begun:
        config = config or preset("quick")
        if not (elsewhere and config.device == "cuda"):
            config = config.model_copy(update={"device": resolve_device(config.device)})
        if own_folds is None:
            if config.folds.from_file:
                raise ConfigError("folds.from_file", "the folds come from a file, but none was given", "Give --folds")
            return config, make_folds(rois, config.folds.num_folds, config.folds.seed)
        check_labelled(rois.labels.tolist())
        own_folds.check_fits(rois, "--folds")
        return config, own_folds
    saved = load_config(run_dir)
    if config is not None:
        if config.device == "auto":
            config = config.model_copy(update={"device": saved.device})
        changed = difference(saved, config)
        if changed:
            raise ConfigError(
                run_dir.name,
                "this run was begun with another configuration",
                "Repeat the old options to resume, or name a new run folder. Changed:\n  " + "\n  ".join(changed),
            )
    if not elsewhere:
        resolve_device(saved.device)
    info = load_info(run_dir)
    begun_on = info["store"]["manifest_sha256"]
    if begun_on != store_hash:
        raise ConfigError(
            run_dir.name,
            f"this run was begun on another ROI store (manifest {begun_on[:12]}, now {store_hash[:12]})",
            "Give that store, or name a new run folder",
        )
    check_versions(run_dir.name, info)
    folds = load_run_folds(run_dir, saved, info)
    folds.check_fits(rois)
    if own_folds is not None and own_folds != folds:
        raise ConfigError("--folds", "this run was begun with other folds", "Give those, or name a new run folder")
    return saved, folds


def _run_on_this_machine(
    steps: Sequence[Step],
    config: RunConfig,
    rois: RoiBatch,
    folds: Folds,
    store_path: Path,
    run_dir: Path,
    on_step: Callable[[Step, float, str], None],
    workers: int | None,
    lanes: bool,
) -> None:
    if not steps:
        return
    cost = sum(step.cost for step in steps)
    num_workers = workers or max(1, min(num_cores() // config.threads_per_task, round(cost / COST_WORTH_A_PROCESS)))
    num_workers = min(num_workers, len(steps))
    if config.device == "cpu" and num_workers > 1:
        run_in_processes(steps, num_workers, store_path, run_dir, on_step)
        return
    workshop = Workshop(rois, folds, config, run_dir, make_ground(config, load_info(run_dir)))
    if not lanes:
        run_here(steps, workshop, on_step)
        return
    choice = fastest_lanes(config.cnn, config.classifier, len(rois.classes), torch.device(config.device))
    left = {step.name: step for step in steps}
    for members in bundles(steps).values():
        before = with_needs(tuple(left.values()), [name for step in members for name in step.needs])
        run_here(before, workshop, on_step)
        report = lambda step, done, total, text: on_step(step, done / max(total, 1), text)  # noqa: E731
        try:
            workshop.run_together(members, choice, report)
        except LesionaugError:
            raise
        except Exception as error:
            raise as_task_failed(members[0], error) from error
        for step in (*before, *members):
            left.pop(step.name)
    run_here(list(left.values()), workshop, on_step)


def _describe_run(rois: RoiBatch, store_hash: str, config: RunConfig, command: str) -> dict[str, Any]:
    counts = Counter(rois.classes[label] for label in rois.labels.tolist())
    return {
        "schema": RUN_SCHEMA,
        "kind": rois.kind,
        "store": {
            "manifest_sha256": store_hash,
            "num_lesions": len(rois),
            "num_patients": len(set(rois.patient_ids)),
            "classes": list(rois.classes),
            "class_counts": {name: counts[name] for name in rois.classes},
        },
        "contents": dict(zip(rois.lesion_ids, content_hashes(rois), strict=True)),
        "versions": versions(),
        "machine": {"cpu": cpu_model(), "cores": num_cores(), "device": device_name(config.device)},
        "command": command,
    }


def _done(run_dir: Path, steps: Sequence[Step], config: RunConfig) -> tuple[str, ...]:
    """Name the steps that are done.

    Raises:
        DataError: A folder that is no step's, of another configuration, or one whose task.json cannot be read.
    """
    check_folders(run_dir, steps)
    return tuple(committed(run_dir, steps, make_ground(config, load_info(run_dir))))


def _remove_incomplete(run_dir: Path, missing: Sequence[Step]) -> None:
    """Remove folders of steps about to be made; only under the lock.

    A folder without task.json is no half-written commit, for that is a rename of a whole folder: somebody deleted
    files from it, and making it again is what they can only have meant. One with a task.json whose inputs are missing
    stays: where they come out as they were, it is done.
    """
    for step in missing:
        folder = run_dir / step.folder
        if folder.is_symlink() or folder.is_file():
            raise DataError(step.folder, "this is a file or a link, not a step's folder", "Remove it")
        if folder.exists() and not (folder / "task.json").exists():
            shutil.rmtree(folder)
