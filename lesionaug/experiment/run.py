"""`lesionaug run`: the classic half of the protocol (section IV-B), resumable per trained model."""

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
from lesionaug.data.folds import Folds, make_folds
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError, LesionaugError
from lesionaug.experiment.config import RunConfig, difference, preset
from lesionaug.experiment.machine import check_versions, cpu_model, device_name, num_cores, resolve_device, threads
from lesionaug.experiment.results import (
    RUN_SCHEMA,
    folds_sha256,
    load_config,
    load_info,
    load_run_folds,
    load_task_info,
)
from lesionaug.experiment.task import Task, TaskRunner, describe, plan_tasks
from lesionaug.experiment.workers import as_task_failed, run_in_processes
from lesionaug.training.classifier import Progress
from lesionaug.training.lane_choice import fastest_lanes

STAGES = ("folds", "classic")
SAMPLES_WORTH_A_PROCESS = 2000  # about five seconds of training the paper's network on one core
_OURS = frozenset({".lock", "config.json", "run.json", "folds.json", "models", "pictures", "report", "report.html"})


@dataclass(frozen=True)
class RunOutcome:
    """What a call of `run_experiment` found and did.

    Attributes:
        config: The resolved configuration.
        kind: "phantom", "imported" or "user".
        folds: Of the run.
        tasks: Every task of the run.
        done_before: Names of those that were committed before the call.
        trained: Names of those that it trained.
    """

    config: RunConfig
    kind: str
    folds: Folds
    tasks: tuple[Task, ...]
    done_before: tuple[str, ...]
    trained: tuple[str, ...]


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
    command: str = "run",
) -> RunOutcome:
    """Run the experiment, or what is missing of it.

    Every trained model is committed by a rename, so a killed run loses at most the models in training; the same call
    again resumes. Which worker trains what, and when, changes no bit of the result.

    On the CPU tasks run in spawned processes, so a script that calls this needs `if __name__ == "__main__":`, as with
    every use of multiprocessing; `workers=1` trains in this process.

    Args:
        store_path: ROI store with a class for every lesion.
        run_dir: The run's folder; made if missing.
        config: What to run; None resumes with the folder's own configuration (`quick` for a new folder).
        progress: Called as (optimiser steps done, in all, text).
        only: A stage, "folds" or "classic"; None is all.
        dry_run: Plan and check only, write nothing.
        workers: Processes on the CPU; None is one per core that `threads_per_task` leaves, fewer for little work.
        lanes: On a GPU, train many models at once (training/lanes.py); how many is measured at the first call on a
            machine. Each is equal to one trained by itself but for rounding.
        command: How the run was asked for, without paths; saved in run.json.

    Raises:
        ConfigError: Changed configuration, store, folds or versions, unknown stage, a folder in use or not a run's.
        DataError: A store that cannot be trained on.
        EnvironmentProblem: No such device.
        TaskFailed: A task failed; committed ones stay.
    """
    store_path, run_dir = Path(store_path), Path(run_dir)
    if only is not None and only not in STAGES:
        raise ConfigError("--only", f"there is no stage {only!r}", f"Choose one of {', '.join(STAGES)}")
    if workers is not None and workers < 1:
        raise ConfigError("--workers", f"at least one is needed, got {workers}", "Leave it out for one per core")
    store_hash = manifest_sha256(store_path)
    rois = load_rois(store_path)
    # Every fault of the input shows before a file is written.
    config, folds = _settle(run_dir, config, rois, store_hash)
    if lanes and config.device == "cpu":
        raise ConfigError(
            "--lanes", "many models at once are for a GPU; on the CPU every core trains one by itself", "Leave it out"
        )
    tasks = plan_tasks(config, folds)
    if dry_run:
        return RunOutcome(config, rois.kind, folds, tasks, _committed(run_dir, tasks, config), ())
    check_own_folder(run_dir, _OURS, "run")
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir):
        config, folds = _settle(run_dir, config, rois, store_hash)  # again: another process may have begun meanwhile
        done_before = _committed(run_dir, tasks, config)
        remove_leftovers(run_dir, run_dir / "models")
        if not (run_dir / "config.json").exists():
            folds.save(run_dir / "folds.json")
            described = _describe_run(rois, store_hash, config, command)
            write_json_atomic(run_dir / "run.json", {**described, "folds_sha256": folds_sha256(run_dir)})
            # Last, for its presence says that the two above are whole.
            write_json_atomic(run_dir / "config.json", config.model_dump(mode="json"))
        (run_dir / "models").mkdir(exist_ok=True)
        missing = [] if only == "folds" else [task for task in tasks if task.name not in done_before]
        _remove_incomplete(run_dir, missing)
        _train(missing, config, rois, folds, store_path, run_dir, progress, workers, lanes)
        return RunOutcome(config, rois.kind, folds, tasks, done_before, tuple(task.name for task in missing))


def _settle(run_dir: Path, config: RunConfig | None, rois: RoiBatch, store_hash: str) -> tuple[RunConfig, Folds]:
    """Bring the wanted configuration and the folder's own together, and get the folds.

    Raises:
        ConfigError: They differ, or the folder was begun on another store.
    """
    if not (run_dir / "config.json").exists():
        config = config or preset("quick")
        config = config.model_copy(update={"device": resolve_device(config.device)})
        return config, make_folds(rois, config.folds.num_folds, config.folds.seed)
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
    names = [rois.classes[label] if label >= 0 else "" for label in rois.labels.tolist()]
    in_store = sorted(zip(rois.lesion_ids, rois.patient_ids, names, strict=True))
    if in_store != [(lesion.lesion_id, lesion.patient_id, lesion.label) for lesion in folds.lesions]:
        raise DataError("folds.json", "its lesions are not those of the store", "Name a new run folder")
    return saved, folds


def _train(
    tasks: Sequence[Task],
    config: RunConfig,
    rois: RoiBatch,
    folds: Folds,
    store_path: Path,
    run_dir: Path,
    progress: Progress | None,
    workers: int | None,
    lanes: bool,
) -> None:
    if not tasks:
        return
    longest_first = sorted(tasks, key=lambda task: (-task.num_steps, -task.num_images, task.name))
    total = sum(task.num_steps for task in tasks)
    steps: dict[str, int] = {}

    def on_step(task: Task, done: int, text: str) -> None:
        steps[task.name] = done
        if progress is not None:
            progress(sum(steps.values()), total, f"{describe(task)}, {text}")

    num_workers = workers or _worth(total * config.classifier.batch_size, num_cores() // config.threads_per_task)
    num_workers = min(num_workers, len(tasks))
    if config.device == "cpu" and num_workers > 1:
        run_in_processes(
            longest_first, num_workers, store_path, run_dir, on_step, lambda task: on_step(task, task.num_steps, "done")
        )
        return
    with threads(config.threads_per_task):
        runner = TaskRunner(rois, folds, config, run_dir)
        if lanes:
            device = torch.device(config.device)
            choice = fastest_lanes(config.cnn, config.classifier, len(rois.classes), device)
            runner.run_together(longest_first, choice, on_step)
            return
        for task in longest_first:
            try:
                runner.run(task, _step_of(task, on_step))
            except LesionaugError:
                raise
            except Exception as error:
                raise as_task_failed(task, error) from error


def _worth(num_samples: int, num_cores: int) -> int:
    """Choose a number of processes: starting one costs two seconds, so each must have that much to do and more."""
    return max(1, min(num_cores, num_samples // SAMPLES_WORTH_A_PROCESS))


def _step_of(task: Task, on_step: Callable[[Task, int, str], None]) -> Progress:
    return lambda done, _, text: on_step(task, done, text)


def _committed(run_dir: Path, tasks: Sequence[Task], config: RunConfig) -> tuple[str, ...]:
    """Name the tasks whose folder is there: it is renamed into place only when complete.

    Raises:
        DataError: A model of another configuration, or one whose task.json cannot be read.
    """
    models = run_dir / "models"
    done = [task for task in tasks if (models / task.name / "task.json").exists()]
    for task in done:
        load_task_info(models / task.name, task.group_size, task.split, task.seed, config)
    return tuple(task.name for task in done)


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
        "versions": versions(),
        "machine": {"cpu": cpu_model(), "cores": num_cores(), "device": device_name(config.device)},
        "command": command,
    }


def _remove_incomplete(run_dir: Path, missing: Sequence[Task]) -> None:
    """Remove folders of models about to be trained; only under the lock.

    A folder without task.json is no half-written commit, for that is a rename of a whole folder: somebody deleted
    files from it, and training it again is what they can only have meant.
    """
    for task in missing:
        folder = run_dir / "models" / task.name
        if folder.is_symlink() or folder.is_file():
            raise DataError(f"models/{task.name}", "this is a file or a link, not a model's folder", "Remove it")
        if folder.exists():
            shutil.rmtree(folder)
