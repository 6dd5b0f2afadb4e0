"""`lesionaug demo`: phantom -> import -> run -> report, everything a first look needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from cyclopts import App

DEMO_LESIONS = (53, 64, 65)  # cysts, metastases, hemangiomas: the paper's counts


def demo(
    out: Path = Path("lesionaug-demo"),
    /,
    *,
    preset: Literal["tiny", "demo", "quick", "paper"] = "demo",
    lesions: Annotated[tuple[int, int, int], Parameter(negative=())] = DEMO_LESIONS,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make a phantom data set, import it, run the experiment on it and write the report.

    What is there already is kept: run it again to go on after an interruption. The phantom is synthetic; nothing the
    report says is a result about patients.

    Args:
        out: Folder for the phantom, the ROI store and the run.
        preset: Size of the experiment: tiny, demo, quick or paper.
        lesions: Cysts, metastases and hemangiomas of the phantom.
        seed: Of the phantom.
        workers: Processes to train in; default one per core.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.importer import import_source
    from lesionaug.data.phantom import write_phantom
    from lesionaug.experiment.config import preset as preset_config
    from lesionaug.experiment.report import write_report
    from lesionaug.experiment.run import run_experiment

    phantom, store, run = out / "phantom", out / "rois", out / "run"
    out.mkdir(parents=True, exist_ok=True)
    if not phantom.exists() and not store.exists():
        with progress("1/4 Phantom CT slices and margins") as step:
            write_phantom(phantom, lesions=lesions, seed=seed, progress=step)
    if not store.exists():
        with progress("2/4 Importing lesions") as step:
            import_source(phantom, store, progress=step)
    with progress("3/4 Training classifiers") as step:
        run_experiment(store, run, preset_config(preset), progress=step, workers=workers, command="demo")
    with progress("4/4 Writing the report") as step:
        report = write_report(run, store, step)
    print(f"The report (phantom data, not patients): {report}")


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(demo)
