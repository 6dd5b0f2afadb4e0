"""`lesionaug phantom OUT`: write the phantom data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter


def phantom(
    out: Path,
    /,
    *,
    lesions: Annotated[tuple[int, int, int], Parameter(negative=())] = (53, 64, 65),
    seed: int = 0,
    patients: int | None = None,
    workers: int = 1,
) -> None:
    """Write made-up patients with liver lesions as DICOM CT and DICOM SEG, marked synthetic.

    The same seed and counts give the same files.

    Args:
        out: Folder to create; it must not exist.
        lesions: Number of cysts, metastases and hemangiomas.
        seed: Seed of all randomness, 0 to 2^64 - 1.
        patients: Number of patients, one or two lesions each; 150 for every 182 lesions by default.
        workers: Processes that draw patients.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.phantom import write_phantom

    with progress("Drawing the phantom") as step:
        summary = write_phantom(out, lesions, seed, step, patients=patients, workers=workers)
    counts = ", ".join(f"{count} {name}" for name, count in summary.lesions.items())
    print(f"phantom (synthetic): {counts} in {summary.num_patients} patients, {summary.num_slices} slices, seed {seed}")
    print(f"next: lesionaug data import {out} ROIS")


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(phantom)
