"""Files that this package writes, read back as if a stranger had written them."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from lesionaug.errors import DataError

MAX_NAME = 200  # of an id, a pseudonym or a class


def read_plain_file(path: Path, where: str, most_bytes: int, fix: str) -> bytes:
    """The bytes of a plain file: no link that leads elsewhere, no pipe or device that never ends.

    Raises:
        DataError: When it is anything else, is missing, cannot be read, or is larger than `most_bytes`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(where, "this must be a plain file", fix)
            if status.st_size > most_bytes:
                raise DataError(where, f"the file is larger than it may be ({most_bytes} bytes)", fix)
            return stream.read()
    except OSError as error:
        if path.is_symlink():
            raise DataError(where, "this must be a plain file, not a link", "Copy the folder whole") from error
        raise DataError(where, f"the file cannot be read ({error.strerror})", fix) from error


def parse_json(content: str | bytes) -> Any:
    """Parse JSON; NaN, numbers beyond float64, a key given twice and endless nesting are refused.

    Raises:
        ValueError: For any of those, and for what is no JSON.
    """
    try:
        return json.loads(content, parse_constant=_number, parse_float=_number, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested deeper than any file of this package") from error


def is_name(value: object) -> bool:
    """Whether it is a text of 1 .. `MAX_NAME` printable characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def is_count(value: object, low: int, high: int) -> bool:
    """Whether it is a whole number (and not true or false) of low .. high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(written: str) -> float:
    value = float(written)
    if not math.isfinite(value):
        raise ValueError(f"{written[:20]} is no number that JSON has")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice in one object")
    return found
