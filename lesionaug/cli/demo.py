"""`lesionaug demo`: phantom -> import -> run -> report, everything a first look needs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import App

DEMO_LESIONS = (53, 64, 65)  # cysts, metastases, hemangiomas: the paper's counts


def demo(
    out: Path = Path("lesionaug-demo"),
    /,
    *,
    preset: Literal["tiny", "demo", "quick", "laptop", "workstation", "paper"] = "demo",
    lesions: Annotated[tuple[int, int, int], Parameter(negative=())] = DEMO_LESIONS,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make a phantom data set, import it, run the experiment on it and write the report.

    What is there already is kept: run it again to go on after an interruption. The phantom is synthetic; nothing the
    report says is a result about patients.

    Args:
        out: Folder for the phantom, the ROI store and the run.
        preset: Size of the experiment; see `lesionaug run --help`.
        lesions: Cysts, metastases and hemangiomas of the phantom.
        seed: Of the phantom.
        workers: Processes to train in; default one per core.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.importer import import_source
    from lesionaug.data.phantom import write_phantom
    from lesionaug.errors import ConfigError
    from lesionaug.experiment.config import preset as preset_config
    from lesionaug.experiment.report import write_report
    from lesionaug.experiment.run import run_experiment

    phantom, store, run = out / "phantom", out / "rois", out / "run"
    if out.exists() and not (out / "demo.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(str(out), "exists and is no demo's folder", "Name a new or an empty folder.")
    out.mkdir(parents=True, exist_ok=True)
    _settle(out / "demo.json", {"lesions": list(lesions), "seed": seed})
    if not phantom.exists() and not store.exists():
        with progress("1/4 Phantom CT slices and margins") as step:
            write_phantom(phantom, lesions=lesions, seed=seed, progress=step, workers=workers or os.cpu_count() or 1)
    if not store.exists():
        with progress("2/4 Importing lesions") as step:
            import_source(phantom, store, progress=step)
    with progress("3/4 Running the experiment") as step:
        run_experiment(store, run, preset_config(preset), progress=step, workers=workers, command="demo")
    with progress("4/4 Writing the report") as step:
        report = write_report(run, store, step)
    print(f"The report (phantom data, not patients): {report}")


def _settle(path: Path, settings: dict[str, Any]) -> None:
    """Save what the phantom was asked to be, or refuse to go on with another one."""
    from lesionaug.data.files import write_json_atomic
    from lesionaug.errors import ConfigError

    if not path.exists():
        write_json_atomic(path, settings)
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    if there != settings:
        rule = f"holds a demo of another phantom ({there}, asked for {settings})"
        raise ConfigError(str(path.parent), rule, "Name another folder, or remove this one.")


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(demo)
