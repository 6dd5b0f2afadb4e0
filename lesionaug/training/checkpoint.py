"""Checkpoints and metrics of a long training: killed at any moment, it goes on from a whole one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lesionaug.data.files import (
    commit_directory,
    remove_leftovers,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from lesionaug.data.own_files import is_count, parse_json
from lesionaug.errors import DataError

CHECKPOINT_SCHEMA = 1
_NAME = re.compile(r"step-(\d{9})")
_STATE, _INFO = "state.safetensors", "state.json"


class Checkpoints:
    """The states of one training, each in a folder of its own that appears whole or not at all.

    Args:
        folder: Where they are; made when the first is saved.
        belongs_to: What a state must have been saved with to be taken up again (configuration, seed, data), plain
            JSON values.
        keep: How many are kept, the newest.
    """

    def __init__(self, folder: Path, belongs_to: Mapping[str, Any], keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        self._belongs_to: dict[str, Any] = json.loads(json.dumps(belongs_to))

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the state after `step` steps, then remove those that are too old.

        Raises:
            OSError: It cannot be written, a full disk for one; the earlier ones stay.
        """
        from safetensors.torch import save

        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder)
        target = self._folder / f"step-{step:09d}"
        if not target.exists():  # else it is whole: `newest` has seen to it
            content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
            described = {
                "schema": CHECKPOINT_SCHEMA,
                "step": step,
                "belongs_to": self._belongs_to,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            with commit_directory(target) as folder:
                write_bytes_atomic(folder / _STATE, content)
                write_json_atomic(folder / _INFO, described)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)

    def newest(self) -> tuple[int, dict[str, Tensor]] | None:
        """The newest whole state: steps and tensors; None where there is none.

        One that is damaged is passed over with a warning where an older one is whole.

        Raises:
            DataError: A state of another training or another version of this software, or none that is whole.
        """
        folders = self._all()
        damaged: list[tuple[Path, _Damaged]] = []
        for folder in reversed(folders):
            try:
                found = self._read(folder)
            except _Damaged as damage:
                if folder == folders[0]:
                    raise DataError(
                        folder.name, f"this checkpoint is damaged ({damage})", "Delete the checkpoints to begin anew"
                    ) from damage
                damaged.append((folder, damage))
                continue
            for broken, fault in damaged:
                warnings.warn(
                    f"{broken.name} is damaged ({fault}) and removed; going on from {folder.name}", stacklevel=2
                )
                shutil.rmtree(broken)
            return found
        return None

    def _all(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _read(self, folder: Path) -> tuple[int, dict[str, Tensor]]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            info = parse_json((folder / _INFO).read_text(encoding="utf-8"))
            schema = info["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Damaged(f"{_INFO}: {type(error).__name__}") from error
        if schema != CHECKPOINT_SCHEMA:
            raise DataError(
                folder.name,
                f"this release reads version {CHECKPOINT_SCHEMA} of a checkpoint, got {str(schema)[:20]}",
                "Finish the training with the release that began it, or delete the checkpoints to begin anew",
            )
        try:
            content = (folder / _STATE).read_bytes()
            if hashlib.sha256(content).hexdigest() != info["sha256"]:
                raise _Damaged(f"{_STATE}: its SHA-256 is not the one noted")
            step, belongs_to, tensors = info["step"], info["belongs_to"], load(content)
            if not is_count(step, 0, 1 << 53):
                raise _Damaged(f"{_INFO}: step")
            if not isinstance(belongs_to, dict):
                raise _Damaged(f"{_INFO}: belongs_to")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _Damaged(f"{type(error).__name__}") from error
        changed = sorted(
            key
            for key in belongs_to.keys() | self._belongs_to.keys()
            if belongs_to.get(key) != self._belongs_to.get(key)
        )
        if changed:
            raise DataError(
                folder.name,
                f"this checkpoint was saved with another {', '.join(changed)}",
                "Train with what it was saved with, or in a new folder",
            )
        return step, tensors


class _Damaged(Exception):
    """A checkpoint that cannot be read."""


class Metrics:
    """A JSON Lines file: one object a line, each with its "step"."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines at the end; they are on the disk before a checkpoint says they are."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Every whole line with its step; what follows one that is cut short or damaged is left out."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        lines: list[dict[str, Any]] = []
        for line in content.splitlines():
            try:
                parsed = dict(parse_json(line))
            except (ValueError, TypeError):
                break
            if not is_count(parsed.get("step"), 0, 1 << 53):
                break
            lines.append(parsed)
        return lines

    def cut(self, step: int) -> None:
        """Remove what was written after `step`, which is done again."""
        kept = [line for line in self.read() if line["step"] <= step]
        write_text_atomic(self._path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))
