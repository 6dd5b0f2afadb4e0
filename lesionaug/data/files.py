"""Writing files so that a killed process leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lesionaug.errors import ConfigError, DataError


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path` as temp + fsync + rename; the parent folder must exist."""
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600; colleagues must be able to read a report
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _fsync(target.parent)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, see `json_text`."""
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """`value` as JSON with sorted keys: equal content is equal text; NaN and infinity are refused."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def commit_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a temporary sibling of `path` in the `with` body; on success it is synced and renamed, else removed.

    Raises:
        FileExistsError: When `path` exists already: nothing is ever overwritten here.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _fsync(Path(folder) / name)
            _fsync(Path(folder))
        os.rename(temporary, target)  # refuses a non-empty target that appeared meanwhile
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(target.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of the lock when the process ends, however it ends.

    Raises:
        ConfigError: Another process holds it.
    """
    import fcntl  # POSIX alone has it

    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                folder.name,
                "another process is running in this folder",
                "Wait for it, stop it, or name another folder",
            ) from error
        yield


def is_leftover(path: Path) -> bool:
    """Whether it is what a process left that was killed as it wrote: the temporary of one of the functions above."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_leftovers(*folders: Path) -> None:
    """Remove what killed processes left half-written; only under the lock, when nobody is writing."""
    for folder in folders:
        for entry in folder.iterdir() if folder.is_dir() else ():
            if is_leftover(entry):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def check_new_folder(target: Path, what: str = "it") -> None:
    """Refuse to write over anything, or into a folder that is not there.

    Args:
        target: The folder that is to be made.
        what: What it will be, for the error.

    Raises:
        DataError: It exists, or its parent does not.
    """
    if target.exists():
        raise DataError(target.name, "the folder exists already, and nothing is ever overwritten", "Choose a new name")
    if not target.parent.is_dir():
        raise DataError(target.name, f"the folder that should hold {what} does not exist", "Create it first")


def check_new_file(target: Path) -> None:
    """Refuse to write over anything, or into a folder that is not there.

    Raises:
        DataError: It exists, or its folder does not.
    """
    if target.exists():
        raise DataError(target.name, "the file exists already, and nothing is ever overwritten", "Choose a new name")
    if not target.parent.is_dir():
        raise DataError(target.name, "the folder that should hold it does not exist", "Create it first")


def check_own_folder(folder: Path, own: Collection[str], what: str) -> None:
    """Refuse a folder that was made by something else; one with a config.json is ours.

    Args:
        folder: It may be missing or empty.
        own: Names of what we write there.
        what: What it is to be, for the error.

    Raises:
        ConfigError: A file, or a folder that holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(folder.name, "this is a file", f"Name a folder for the {what}")
    if not folder.exists() or (folder / "config.json").exists():
        return
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in own and not is_leftover(entry))
    if foreign:
        raise ConfigError(
            folder.name, f"this folder is no {what}, it holds {foreign[0]}", "Name a new or an empty folder"
        )
