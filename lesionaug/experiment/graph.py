"""Which steps of a run are done, and how one is committed: by the hash of all that decides its result.

The key of a step is the hash of its settings and options, of the versions, store and folds of the run, and of the
outputs of the steps that it needs. A step whose folder holds that key is done; the folder appears by a rename, with
task.json and the hashes of all its files in it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionaug.data.files import commit_directory, write_json_atomic
from lesionaug.data.own_files import parse_json
from lesionaug.errors import DataError
from lesionaug.experiment.protocol import Step

TASK_SCHEMA = 2
TRAIN_ANEW = "Delete that folder and run again; it is made anew"


@dataclass(frozen=True)
class Result:
    """What a step made.

    Attributes:
        write: Fills a folder with its files; equal results are equal bytes.
        info: More for task.json, plain JSON values.
    """

    write: Callable[[Path], None]
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Ground:
    """What all steps of a run stand on.

    Attributes:
        values: Hashes of store and folds, versions, device and threads: plain JSON values.
        config_sha256: Of the whole configuration.
    """

    values: Mapping[str, Any]
    config_sha256: str

    def key(self, step: Step, inputs: Mapping[str, str]) -> str:
        """Hash all that decides a step's result; `inputs` are the output hashes of the steps that it needs."""
        return hash_json(
            {
                "name": step.name,
                "kind": step.kind,
                "settings": dict(step.settings),
                "options": dict(step.options),
                "ground": dict(self.values),
                "inputs": dict(inputs),
            }
        )


def hash_json(value: Any) -> str:
    """SHA-256 of plain JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a step's folder but task.json, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "task.json")
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_task(run_dir: Path, step: Step) -> dict[str, Any]:
    """Read task.json of a committed step.

    Raises:
        DataError: Missing, not JSON, of another version of the format, or of another step.
    """
    where = f"{step.folder}/task.json"
    try:
        info = parse_json((run_dir / step.folder / "task.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(where, f"it cannot be read ({error})", TRAIN_ANEW) from error
    if not isinstance(info, dict):
        raise DataError(where, "it does not hold a JSON object", TRAIN_ANEW)
    if info.get("schema") != TASK_SCHEMA:
        raise DataError(where, f"its schema is {info.get('schema')!r}, not {TASK_SCHEMA}", TRAIN_ANEW)
    if info.get("task") != step.name or any(info.get(key) != value for key, value in step.settings.items()):
        raise DataError(where, "it belongs to another task", TRAIN_ANEW)
    if not isinstance(info.get("output_sha256"), str) or not isinstance(info.get("outputs"), dict):
        raise DataError(where, "the hashes of its files are missing", TRAIN_ANEW)
    return info


def committed(run_dir: Path, steps: Iterable[Step], ground: Ground) -> dict[str, str]:
    """Find the steps that are done, and the hashes of their outputs.

    A step whose inputs came out differently from those it was made from is not done.

    Raises:
        DataError: A folder whose task.json is damaged, of another step or of another configuration.
    """
    done: dict[str, str] = {}
    for step in steps:  # each after those that it needs
        if not (run_dir / step.folder / "task.json").exists():
            continue
        info = read_task(run_dir, step)
        _check_configuration(step, info, ground.config_sha256)
        inputs = {name: done[name] for name in step.needs if name in done}
        if len(inputs) == len(step.needs) and info.get("key") == ground.key(step, inputs):
            done[step.name] = info["output_sha256"]
    return done


def check_configuration(run_dir: Path, steps: Iterable[Step], config_sha256: str) -> None:
    """Refuse steps of another configuration, in a folder that has lost its own.

    Raises:
        DataError: Naming one.
    """
    for step in steps:
        if (run_dir / step.folder / "task.json").exists():
            _check_configuration(step, read_task(run_dir, step), config_sha256)


def _check_configuration(step: Step, info: Mapping[str, Any], config_sha256: str) -> None:
    if info.get("config_sha256") != config_sha256:
        raise DataError(f"{step.folder}/task.json", "it belongs to another configuration", TRAIN_ANEW)


def inputs_of(run_dir: Path, step: Step, by_name: Mapping[str, Step]) -> dict[str, str]:
    """The output hashes of what a step needs.

    Raises:
        DataError: One of them is missing or damaged.
    """
    return {name: read_task(run_dir, by_name[name])["output_sha256"] for name in step.needs}


def commit(
    run_dir: Path, step: Step, ground: Ground, inputs: Mapping[str, str], result: Result, started: float
) -> None:
    """Write a step's files and task.json and rename them into place, whole or not at all.

    Where another worker has committed the same step meanwhile, this one's result is dropped: it is the same.

    Args:
        run_dir: The run.
        step: What was done.
        ground: Of the run.
        inputs: Output hashes of the steps that it needs.
        result: What it made.
        started: `time.monotonic()` at its beginning.
    """
    target, key = run_dir / step.folder, ground.key(step, inputs)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with commit_directory(target) as folder:
            result.write(folder)
            outputs = hash_files(folder)
            write_json_atomic(
                folder / "task.json",
                {
                    **result.info,
                    **step.settings,
                    "schema": TASK_SCHEMA,
                    "task": step.name,
                    "kind": step.kind,
                    "stage": step.stage,
                    "key": key,
                    "inputs": dict(inputs),
                    "outputs": outputs,
                    "output_sha256": hash_json(outputs),
                    "config_sha256": ground.config_sha256,
                    "seconds": round(time.monotonic() - started, 3),
                },
            )
    except OSError:
        if not (target / "task.json").exists() or read_task(run_dir, step).get("key") != key:
            raise
