"""The machine a run is on: its device, cores and threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from lesionaug.errors import EnvironmentProblem


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
    return str(torch.cuda.get_device_name()) if device == "cuda" else "cpu"


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
