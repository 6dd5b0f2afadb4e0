"""Settings from a TOML file over defaults: errors name the key, the rule and what was written instead."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionaug.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")


def read_toml(path: Path, fix: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file; errors show its name alone.
        fix: What the user is told when it cannot be read.

    Raises:
        ConfigError: The file cannot be read, is not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path.name, f"this is not a readable TOML file ({error})", fix) from error


def validate(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Build a pydantic model from plain values.

    Raises:
        ConfigError: The first key at fault, what is wrong with it, and what it was.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            raise ConfigError(
                where, f"unknown key {key}", "Remove it, or use the version of lesionaug that wrote it"
            ) from error
        rule = fault["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{where}, {key}", f"{rule[0].lower()}{rule[1:]} (got {fault['input']!r})", "Correct the value"
        ) from error


def merge(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `wanted` over `base`, table by table."""
    merged = dict(base)
    for key, value in wanted.items():
        merged[key] = (
            merge(base[key], value) if isinstance(base.get(key), Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def check_keys(wanted: Mapping[str, Any], known: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Refuse keys that are not known, and values where a table belongs.

    Raises:
        ConfigError: The first unknown key, with the nearest known one.
    """
    for key, value in wanted.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {prefix}{near[0]}?" if near else f"Known here: {', '.join(known)}."
            raise ConfigError(where, f"unknown key {prefix}{key}", hint.removesuffix("."))
        if isinstance(known[key], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    where, f"{prefix}{key} must be a table, got {value!r}", f"Write [{prefix}{key}] and its keys below"
                )
            check_keys(value, known[key], where, f"{prefix}{key}.")
