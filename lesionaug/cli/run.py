"""`lesionaug run` and `lesionaug status`: train what is missing of a run, and say how far it is."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from lesionaug.cli.console import marked, say, table

if TYPE_CHECKING:
    from cyclopts import App

    from lesionaug.experiment.config import RunConfig
    from lesionaug.experiment.results import RunResults
    from lesionaug.experiment.run import RunOutcome

_Flag = Annotated[bool, Parameter(negative=())]
_Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]


def run(
    rois: Path,
    run: Path,
    /,
    *,
    preset: Literal["tiny", "demo", "quick", "paper"] | None = None,
    config: Path | None = None,
    only: Literal["folds", "classic"] | None = None,
    dry_run: _Flag = False,
    workers: int | None = None,
    lanes: _Flag = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seeds: _Seeds = None,
) -> None:
    """Train the paper's classifier on its nested groups of classic augmentations, by cross validation.

    Run the same command again to resume: trained models are kept, and a changed configuration is refused.

    Args:
        rois: ROI store, written by `lesionaug data import`.
        run: Folder of the run; made if missing.
        preset: How much of the paper's protocol: tiny (seconds, for tests), demo (minutes), quick (the default, at most
            10 minutes on two cores) or paper (all of it).
        config: TOML file with values over the preset; the keys are those of a run's config.json.
        only: Make the folds only, or train the classic groups only.
        dry_run: Check everything and list what would be trained; write nothing.
        workers: Models trained at the same time on the CPU; default one per core. It changes no result.
        lanes: Train many models at once on a GPU, as CUDA graphs; not yet verified on one.
        device: Where to train.
        seeds: Training seeds; every group and split is trained once for each.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.experiment.results import load_run
    from lesionaug.experiment.run import run_experiment

    with contextlib.nullcontext() if dry_run else progress("Training") as step:
        outcome = run_experiment(
            rois,
            run,
            _wanted(run, preset, config, device, seeds),
            progress=step,
            only=only,
            dry_run=dry_run,
            workers=workers,
            lanes=lanes,
            command=_command(preset, config, seeds),
        )
    if dry_run:
        _print_plan(outcome)
        return
    if only != "folds":
        _draw_pictures(rois, run)
    _print_accuracy(load_run(run))
    _print_reductions(outcome.config)
    if len(outcome.done_before) + len(outcome.trained) < len(outcome.tasks):
        say("Next: run again without --only to train the models")
    else:
        say(f"Next: lesionaug report {shlex.quote(str(run))}")


def status(run: Path, /) -> None:
    """Say which models of a run are trained and which are missing.

    Args:
        run: Folder that `lesionaug run` wrote.
    """
    from lesionaug.experiment.results import load_run

    results = load_run(run)
    missing = results.missing()
    _print_accuracy(results)
    total = len(results.tasks) + len(missing)
    say(f"{len(results.tasks)} of {total} models are trained, preset {results.config.preset}.")
    for name in missing:
        say(f"  missing: {name}")
    if missing:
        say("Next: run the same `lesionaug run` again, it resumes")
    else:
        say(f"Next: lesionaug report {shlex.quote(str(run))}")


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(run)
    app.command(status)


def _wanted(
    run: Path,
    preset: Literal["tiny", "demo", "quick", "paper"] | None,
    config: Path | None,
    device: Literal["auto", "cpu", "cuda"],
    seeds: tuple[int, ...] | None,
) -> RunConfig:
    """Resolve the options; a run that exists goes on with its own configuration where none is given."""
    from lesionaug.experiment.config import resolve_config
    from lesionaug.experiment.results import load_config

    if preset is None and config is None and not seeds and (run / "config.json").exists():
        return load_config(run).model_copy(update={"device": device} if device != "auto" else {})
    return resolve_config(preset, config, seeds=seeds or None, device=device)


def _command(preset: str | None, config: Path | None, seeds: tuple[int, ...] | None) -> str:
    """Write the command for run.json, without paths: a file's values are in config.json."""
    words = ["run"]
    words += ["--preset", preset] if preset else []
    words += ["--config", "FILE"] if config else []
    words += ["--seeds", *map(str, seeds)] if seeds else []
    return " ".join(words)


def _print_plan(outcome: RunOutcome) -> None:
    done = set(outcome.done_before)
    rows = [
        [
            task.name,
            f"{task.num_images:,}",
            f"{task.per_lesion}" + (" (all there are)" if task.capped else ""),
            f"{task.num_steps:,}",
            "trained" if task.name in done else "to train",
        ]
        for task in outcome.tasks
    ]
    table("Plan; nothing was written", ["model", "training images", "augmentations per lesion", "steps", ""], rows)
    _print_reductions(outcome.config)
    left = [task for task in outcome.tasks if task.name not in done]
    say(
        f"{len(left)} of {len(outcome.tasks)} models to train, {sum(task.num_steps for task in left):,} steps of "
        f"{outcome.config.classifier.batch_size} images, on {outcome.config.device}."
    )


def _print_accuracy(results: RunResults) -> None:
    from lesionaug.evaluation.classification import wilson_interval

    rows = []
    for size in results.groups():
        for seed in results.seeds:
            if not results.complete("classic", size, seed):
                rows.append([f"{size:,}", f"{seed}", "not trained yet", "", ""])
                continue
            summary = results.pooled("classic", size, seed).summary
            low, high = wilson_interval(summary.num_correct, summary.total)
            rows.append(
                [
                    f"{size:,}",
                    f"{seed}",
                    f"{summary.num_correct} of {summary.total}",
                    f"{100 * summary.accuracy:.1f} %",
                    f"{100 * low:.1f} - {100 * high:.1f} %",
                ]
            )
    table(
        f"{marked(results.kind)}accuracy over all test folds, preset {results.config.preset}",
        ["images added per fold", "seed", "correct", "accuracy", "95 % interval (Wilson)"],
        rows,
    )


def _print_reductions(config: RunConfig) -> None:
    if config.reductions:
        say(f"Preset {config.preset} departs from the paper:")
    for line in config.reductions:
        say(f"  {line}")


def _draw_pictures(rois: Path, run_dir: Path) -> None:
    """Draw the pictures of the report while the store is at hand; the report command then needs only the run."""
    if not (run_dir / "pictures" / "pictures.json").exists():
        from lesionaug.experiment.pictures import write_pictures

        write_pictures(run_dir, rois)
