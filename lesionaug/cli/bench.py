"""`lesionaug bench`: how fast this machine augments, in a minute."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter


def bench(
    *,
    device: str = "cpu",
    threads: int | None = None,
    seconds: float = 5.0,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Time the augmentations of one fold of the paper: 29,760 patches of 64x64 from 62 lesions.

    Beside them stand torch's `grid_sample` on the same maps (checked to give the same patches first) and the time it
    takes to write the patches and nothing else. `make bench` in a checkout compares more libraries.

    Args:
        device: cpu, cuda or cuda:N.
        threads: CPU threads; by default what torch would use.
        seconds: About how long each line is repeated.
        as_json: Print JSON.
    """
    import torch

    from lesionaug.augment import native
    from lesionaug.augment.speed import measure
    from lesionaug.environment import versions
    from lesionaug.errors import ConfigError, EnvironmentProblem

    if not 0 < seconds <= 600:
        raise ConfigError("--seconds", f"must lie above 0 and at most at 600, got {seconds}", "Write --seconds 5")
    if threads is not None:
        if threads < 1:
            raise ConfigError("--threads", f"must be at least 1, got {threads}", "Write --threads 1")
        torch.set_num_threads(threads)
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ConfigError("--device", f"must be cpu, cuda or cuda:N, got {device!r}", "Write --device cpu") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "--device", "torch finds no CUDA device", "Write --device cpu, or see lesionaug doctor"
        )
    backend = native.backend(where)
    path = getattr(backend, "path", "") or backend.module.cpu_paths()[0]
    about = {**versions(), "device": str(where), "path": path, "threads": torch.get_num_threads()}
    if not as_json:
        print(", ".join(f"{key} {value}" for key, value in about.items()))
        print(f"{'':38}{'time':>12}{'patches/s':>14}{'GB/s':>8}{'of floor':>10}")
    timings = []
    for t in measure(where, seconds):
        timings.append(t)
        if not as_json:
            share = t.gb_per_s / timings[0].gb_per_s
            line = f"{t.name:38}{t.seconds * 1e3:9.2f} ms{t.patches_per_s:14,.0f}{t.gb_per_s:8.2f}{share:10.1%}"
            print(line, flush=True)
    if as_json:
        rows = [{"name": t.name.strip(), "patches": t.patches, "seconds": t.seconds} for t in timings]
        print(json.dumps({**about, "results": rows}, indent=1))


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(bench)
