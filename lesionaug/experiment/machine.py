"""The machine a run is on: its device, cores, threads and versions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lesionaug.environment import versions
from lesionaug.errors import ConfigError, EnvironmentProblem

_VERSIONS_THAT_MATTER = ("lesionaug", "torch", "numpy", "scikit-learn")


def resolve_device(device: str) -> str:
    """Turn "auto" into "cuda" where torch finds a device, else "cpu".

    Raises:
        EnvironmentProblem: "cuda" is wanted and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_cuda else "cpu"
    if device == "cuda" and not has_cuda:
        raise EnvironmentProblem("--device", "torch finds no CUDA device here", "Use --device cpu in a new run folder")
    return device


def device_name(device: str) -> str:
    """Name the GPU, or "cpu"."""
    if device == "cpu":
        return "cpu"
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "GPUs of a cluster's workers"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """Name of the processor, where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads in the `with` body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone in the `with` body: slower on a GPU, no change on the CPU."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def versions_that_matter(found: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the versions that a result depends on."""
    return {name: found[name] for name in _VERSIONS_THAT_MATTER if name in found}


def check_versions(where: str, info: Mapping[str, Any]) -> None:
    """Refuse to go on with other versions than a folder's: its models would no longer be of one kind.

    Args:
        where: The folder's name.
        info: Its run.json, with the `versions` it was begun with.

    Raises:
        ConfigError: Naming those that changed.
    """
    begun_with, now = info.get("versions"), versions()
    if not isinstance(begun_with, dict):
        return  # unknown
    changed = [
        f"{name} {begun_with[name]}, now {now[name]}"
        for name in _VERSIONS_THAT_MATTER
        if name in begun_with and name in now and begun_with[name] != now[name]
    ]
    if changed:
        raise ConfigError(
            where,
            f"this run was begun with other versions ({'; '.join(changed)})",
            "Use the old environment or a new run folder",
        )
