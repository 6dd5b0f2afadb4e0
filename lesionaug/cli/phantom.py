"""`lesionaug phantom OUT`: write the phantom data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


def phantom(
    out: Path,
    /,
    *,
    lesions: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    seed: int = 0,
    patients: int | None = None,
    config: Path | None = None,
    workers: int | None = None,
) -> None:
    """Write made-up patients with liver lesions as DICOM CT and DICOM SEG, marked synthetic.

    The same seed, counts and configuration give the same files.

    Args:
        out: Folder to create; it must not exist.
        lesions: Number of lesions of each class; 53 cysts, 64 metastases and 65 hemangiomas by default.
        seed: Seed of all randomness, 0 to 2^64 - 1.
        patients: Number of patients, one to three lesions each; 150 for every 182 lesions by default.
        config: TOML file with other sizes, contrasts, classes, scanners or another organ; see docs/phantom.md.
        workers: Processes that draw patients; default one per core.
    """
    import os

    from lesionaug.cli.progress import progress
    from lesionaug.data.phantom import load_recipe, write_phantom

    if workers is None:
        workers = os.cpu_count() or 1
    recipe = None if config is None else load_recipe(config)
    with progress("Drawing the phantom") as step:
        summary = write_phantom(out, lesions, seed, step, patients=patients, workers=workers, recipe=recipe)
    counts = ", ".join(f"{count} {name}" for name, count in summary.lesions.items())
    print(f"phantom (synthetic): {counts} in {summary.num_patients} patients, {summary.num_slices} slices, seed {seed}")
    print(f"next: lesionaug data import {out} ROIS")


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(phantom)
