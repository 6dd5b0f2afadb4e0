"""`lesionaug run`, `status` and `audit`: carry out what is missing of a run, say how far it is, prove it clean."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from lesionaug.cli.console import marked, say, table

if TYPE_CHECKING:
    from cyclopts import App

    from lesionaug.experiment.config import PresetName, RunConfig
    from lesionaug.experiment.protocol import Step
    from lesionaug.experiment.results import RunResults
    from lesionaug.experiment.run import RunOutcome

_Flag = Annotated[bool, Parameter(negative=())]
_Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]
_Preset = Literal["tiny", "demo", "quick", "laptop", "workstation", "paper"]
_Stage = Literal["folds", "classic", "baseline", "dcgan", "acgan", "controls", "maps", "memorisation"]
_SECONDS_BETWEEN_LOOKS = 2.0


def run(
    rois: Path,
    run: Path,
    /,
    *,
    preset: _Preset | None = None,
    config: Path | None = None,
    only: _Stage | None = None,
    dry_run: _Flag = False,
    workers: int | None = None,
    lanes: _Flag = False,
    scheduler: str | None = None,
    local_cluster: int | None = None,
    slurm_script: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seeds: _Seeds = None,
    folds: Path | None = None,
) -> None:
    """Carry out the paper's experiment: classic groups, GANs, synthetic groups, baseline, controls, maps.

    Run the same command again to resume: finished steps are kept, and a changed configuration is refused.

    Args:
        rois: ROI store, written by `lesionaug data import`.
        run: Folder of the run; made if missing.
        preset: How much of the paper's protocol: tiny (seconds, for tests), demo (minutes), quick (the default, at most
            10 minutes on two cores), laptop (a night on one), workstation (an hour with a GPU) or paper (all of it).
        config: TOML file with values over the preset; the keys are those of a run's config.json.
        only: Make the folds only, or one stage and what it needs.
        dry_run: Check everything, list the steps and how long they would take; write nothing.
        workers: Processes on the CPU; default one per core. It changes no result.
        lanes: Train many classifiers at once on a GPU, as CUDA graphs; not yet verified on one.
        scheduler: Address of the Dask scheduler of your cluster, whose workers see the same files.
        local_cluster: Use so many `dask.distributed` workers on this machine instead of plain processes.
        slurm_script: Write a script that runs this on a SLURM cluster by dask-jobqueue, and stop.
        device: Where to train.
        seeds: Training seeds; everything is trained once for each.
        folds: File with the folds, as `lesionaug data folds` writes it, in place of those that would be made.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.data.folds import load_folds
    from lesionaug.errors import ConfigError
    from lesionaug.experiment.results import load_run
    from lesionaug.experiment.run import run_experiment

    if slurm_script is not None:
        if dry_run or lanes or workers or scheduler or local_cluster:
            raise ConfigError(
                "--slurm-script",
                "it goes with --preset, --config, --seeds, --folds, --only and --device alone",
                "Leave the rest out",
            )
        _write_slurm_script(slurm_script, rois, run, preset, config, seeds, only, device, folds)
        return
    with contextlib.nullcontext() if dry_run else progress("Running") as step:
        outcome = run_experiment(
            rois,
            run,
            _wanted(run, preset, config, device, seeds),
            progress=step,
            only=only,
            dry_run=dry_run,
            workers=workers,
            lanes=lanes,
            scheduler=scheduler,
            local_cluster=local_cluster,
            command=_command(preset, config, seeds, folds),
            own_folds=None if folds is None else load_folds(folds),
        )
    if dry_run:
        _print_plan(outcome, workers or local_cluster, only)
        return
    if only != "folds":
        _draw_pictures(rois, run)
    results = load_run(run)
    _print_accuracy(results)
    _print_reductions(outcome.config)
    if results.complete():
        say(f"Next: lesionaug report {shlex.quote(str(run))}")
    else:
        say("Next: run again without --only to carry out the rest")


def status(run: Path, /, *, watch: _Flag = False, interval: float = _SECONDS_BETWEEN_LOOKS) -> None:
    """Say which steps of a run are done and which are missing.

    Args:
        run: Folder that `lesionaug run` wrote.
        watch: Look again until nothing is missing; Ctrl-C ends it.
        interval: Seconds between looks.
    """
    from lesionaug.experiment.results import load_run

    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(run, max(interval, 0.05))
    results = load_run(run)
    missing = results.missing()
    _print_accuracy(results)
    _print_stages(results.steps, set(results.done), _seconds(results))
    total = len(results.steps)
    say(f"{total - len(missing)} of {total} steps are done, preset {results.config.preset}.")
    if missing:
        say(f"Missing: {', '.join(missing[:6])}{f' and {len(missing) - 6} more' if len(missing) > 6 else ''}")
        say("Next: run the same `lesionaug run` again, it resumes")
    else:
        say(f"Next: lesionaug report {shlex.quote(str(run))}")


def audit(run: Path, /, *, rois: Path | None = None) -> int:
    """Prove that nothing in a run was tested on a patient it had learned from, and that it is as it was written.

    Every artefact says which patients, lesions and pixels it knows; none may be of the fold it is tested on. Every file
    is compared with the hash it was committed with. Exit code 1 where anything is found.

    Args:
        run: Folder that `lesionaug run` wrote.
        rois: The run's ROI store: the lesions' pixels are then hashed anew.
    """
    from lesionaug.experiment.audit import audit_run

    found = audit_run(run, rois)
    for finding in found.findings:
        say(f"{finding.where}: {finding.rule}")
    for exception in found.exceptions:
        say(f"By design: {exception}")
    missing = f"; {found.num_missing} steps are not there" if found.num_missing else ""
    looked = f"{found.num_steps} steps and {found.num_files} files looked at{missing}"
    say(f"{len(found.findings)} finding(s), {looked}." if found.findings else f"Clean: {looked}.")
    return 1 if found.findings else 0


def repeats(*runs: Path) -> None:
    """Take runs of one store together that differ in their folds alone (repeated cross validation).

    Make them with a TOML file that sets `folds.seed`, one run folder each. Every method is compared with CNN-AUG; the
    interval counts in that training sets overlap (Nadeau and Bengio 2003).

    Args:
        runs: Two or more complete runs.
    """
    from lesionaug.experiment.repeats import compare_repeats

    found = compare_repeats(runs)
    rows = []
    for method in found.methods:
        change = method.difference
        rows.append(
            [
                method.name,
                " ".join(f"{100 * accuracy:.1f}" for accuracy in method.accuracies),
                f"{100 * sum(method.accuracies) / len(method.accuracies):.1f}",
                "" if change is None else f"{100 * change.value:+.1f}",
                "" if change is None else f"{100 * change.low:+.1f} to {100 * change.high:+.1f}",
            ]
        )
    table(
        f"{marked(found.kind)}accuracy (%) over {len(runs)} repetitions of {found.num_folds}-fold cross validation",
        ["method", "each repetition", "mean", "minus CNN-AUG (points)", "95 % (corrected t)"],
        rows,
    )


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(run)
    app.command(status)
    app.command(audit)
    app.command(repeats)


def _wanted(
    run: Path,
    preset: PresetName | None,
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


def _command(preset: str | None, config: Path | None, seeds: tuple[int, ...] | None, folds: Path | None = None) -> str:
    """Write the command for run.json, without paths: a file's values are in config.json."""
    words = ["run"]
    words += ["--preset", preset] if preset else []
    words += ["--config", "FILE"] if config else []
    words += ["--seeds", *map(str, seeds)] if seeds else []
    words += ["--folds", "FILE"] if folds else []
    return " ".join(words)


def _write_slurm_script(
    target: Path,
    rois: Path,
    run: Path,
    preset: str | None,
    config: Path | None,
    seeds: tuple[int, ...] | None,
    only: str | None,
    device: str,
    folds: Path | None,
) -> None:
    from lesionaug.experiment.slurm import write_slurm_script

    more = ["--preset", preset] if preset else []
    more += ["--config", str(config.resolve())] if config else []
    more += ["--seeds", *map(str, seeds)] if seeds else []
    more += ["--only", only] if only else []
    more += ["--folds", str(folds.resolve())] if folds else []
    write_slurm_script(target, rois, run, more, gpu=device != "cpu")
    say(f"Next: look at the partition, times and number of jobs in {target}, then run it on the login node")


def _print_plan(outcome: RunOutcome, workers: int | None, only: str | None) -> None:
    from lesionaug.experiment.estimate import measure_rates, seconds_of, show_seconds
    from lesionaug.experiment.machine import num_cores
    from lesionaug.experiment.protocol import with_needs

    done = set(outcome.done_before)
    classes = len({lesion.label for lesion in outcome.folds.lesions})
    rates = measure_rates(outcome.config, classes)
    wanted = outcome.steps
    if only is not None:
        wanted = with_needs(wanted, [step.name for step in wanted if step.stage == only])
    left = [step for step in wanted if step.name not in done]
    rows = []
    for stage, arm in dict.fromkeys((step.stage, _what(step)) for step in wanted):
        members = [step for step in wanted if (step.stage, _what(step)) == (stage, arm)]
        open_ones = [step for step in members if step.name not in done]
        rows.append(
            [
                stage,
                arm,
                f"{len(members)}",
                f"{len(members) - len(open_ones)}",
                show_seconds(seconds_of(open_ones, rates)),
            ]
        )
    table("Plan; nothing was written", ["stage", "steps", "number", "done", "one after another"], rows)
    _print_reductions(outcome.config)
    at_once = 1
    if outcome.config.device == "cpu":
        at_once = min(workers or max(1, num_cores() // outcome.config.threads_per_task), max(len(left), 1))
    seconds = seconds_of(left, rates)
    longest = max((seconds_of([step], rates) for step in left), default=0.0)
    together = show_seconds(max(seconds / at_once, longest))
    say(
        f"{len(left)} of {len(wanted)} steps to do on {outcome.config.device}: about {show_seconds(seconds)} "
        f"one after another, {together} with {at_once} at a time. From a few training steps timed here just now; the "
        "optimum, which decides the sizes, is a guess."
    )


def _what(step: Step) -> str:
    return f"{step.arm} {step.kind}" if step.arm else step.kind


def _print_stages(steps: Sequence[Step], done: set[str], seconds: dict[str, float]) -> None:
    from lesionaug.experiment.estimate import known_rates, seconds_of, show_seconds

    rates = known_rates(steps, seconds)
    rows = []
    for stage in dict.fromkeys(step.stage for step in steps):
        members = [step for step in steps if step.stage == stage]
        left = [step for step in members if step.name not in done]
        spent = sum(seconds.get(step.name, 0.0) for step in members)
        rows.append(
            [
                stage,
                f"{len(members) - len(left)} of {len(members)}",
                show_seconds(spent),
                show_seconds(seconds_of(left, rates)) if left else "",
            ]
        )
    table("Steps", ["stage", "done", "spent", "left, about"], rows)


def _seconds(results: RunResults) -> dict[str, float]:
    return {name: float(results.task_info(name)["seconds"]) for name in results.done}


def _watch(run: Path, interval: float) -> None:
    """Say how far the run is, whenever it gets further."""
    from lesionaug.experiment.estimate import known_rates, seconds_of, show_seconds
    from lesionaug.experiment.results import load_run

    before = -1
    while True:
        results = load_run(run)
        if len(results.done) != before:
            before = len(results.done)
            left = [step for step in results.steps if step.name not in results.done]
            about = show_seconds(seconds_of(left, known_rates(results.steps, _seconds(results))))
            say(f"{before} of {len(results.steps)} steps done" + (f", about {about} of work left" if left else ""))
        if not results.missing():
            return
        time.sleep(interval)


def _print_accuracy(results: RunResults) -> None:
    from lesionaug.evaluation.classification import wilson_interval

    rows = []
    for arm in results.arms:
        for size in results.groups(arm):
            for seed in results.seeds:
                shown = f"{size:,}" if results.groups(arm) != (0,) else ""
                if not results.complete(arm, size, seed):
                    rows.append([arm, shown, f"{seed}", "not done yet", "", ""])
                    continue
                summary = results.pooled(arm, size, seed).summary
                low, high = wilson_interval(summary.num_correct, summary.total)
                rows.append(
                    [
                        arm,
                        shown,
                        f"{seed}",
                        f"{summary.num_correct} of {summary.total}",
                        f"{100 * summary.accuracy:.1f} %",
                        f"{100 * low:.1f} - {100 * high:.1f} %",
                    ]
                )
    table(
        f"{marked(results.kind)}accuracy over all test folds, preset {results.config.preset}",
        ["arm", "images added per fold", "seed", "correct", "accuracy", "95 % interval (Wilson)"],
        rows,
    )


def _print_reductions(config: RunConfig) -> None:
    if config.reductions:
        say(f"Preset {config.preset} departs from the paper:")
    for line in config.reductions:
        say(f"  {line}")


def _draw_pictures(rois: Path, run_dir: Path) -> None:
    """Draw the pictures of the report while the store is at hand; the report command then needs only the run."""
    from lesionaug.experiment.pictures import pictures_are_whole, write_pictures

    if not pictures_are_whole(run_dir):
        write_pictures(run_dir, rois)
