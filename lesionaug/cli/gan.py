"""`lesionaug gan train|sample|evaluate`: the paper's GANs beside the experiment (sections III-B, III-C)."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from lesionaug.cli.console import marked, say, table

if TYPE_CHECKING:
    from types import FrameType

    from lesionaug.experiment.gan import GansOutcome
    from lesionaug.experiment.gan_evaluation import Evaluation

_Flag = Annotated[bool, Parameter(negative=())]
_INTERRUPTED = 130


def train(
    rois: Path,
    out: Path,
    /,
    *,
    preset: Literal["tiny", "demo", "quick", "paper", "modern"] | None = None,
    kind: Literal["dcgan", "acgan"] | None = None,
    config: Path | None = None,
    split: int | None = None,
    data: Literal["pool", "fly"] | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    threads: int | None = None,
    deterministic: _Flag = False,
    graphs: _Flag = False,
    tensorboard: _Flag = False,
    dry_run: _Flag = False,
) -> int:
    """Train GANs on the training folds of one split: a DCGAN for each class, or one ACGAN for all.

    Run the same command again to resume. Ctrl-C and SIGTERM finish the step, save it and exit. Training images are
    those of the classic group `group` (config.json), in the training folds only; the fold that is left out is not seen.

    Args:
        rois: ROI store, written by `lesionaug data import` or `lesionaug phantom` and an import.
        out: Folder of the GANs; made if missing.
        preset: paper; quick (the default) and demo: networks of a quarter of the width, 100 and 60 steps; tiny: for
            tests; modern: for few lesions.
        kind: dcgan (the default): one GAN per class. acgan: one for all, whose discriminator is judged as a classifier
            too.
        config: TOML file with values over the preset; the keys are those of config.json.
        split: The fold that is left out; 0 by default.
        data: pool: the augmented images in memory. fly: augmented anew at every step.
        seed: Seed of the training; 0 by default.
        device: Where to train.
        threads: Threads of a training on the CPU; one per core by default.
        deterministic: The same bits again on a GPU too; slower there. The CPU's always are.
        graphs: On a GPU, whole steps as CUDA graphs; not yet verified on one.
        tensorboard: Write OUT/tensorboard as well as metrics.jsonl, which is always written.
        dry_run: Check everything and list what would be trained; write nothing.
    """
    from lesionaug.cli.progress import Stopped, progress
    from lesionaug.experiment.gan import train_gans
    from lesionaug.experiment.gan_config import resolve_gans
    from lesionaug.experiment.gan_samples import class_head_predictions, draw_figures

    exactly = deterministic or None
    given = (preset, kind, config, split, data, seed, device, threads, exactly)
    resume = (out / "config.json").exists() and all(option is None for option in given)
    wanted = None if resume else resolve_gans(
        preset, kind, config, split=split, data=data, seed=seed, device=device, threads=threads,
        deterministic=exactly,
    )  # fmt: skip
    report = _tensorboard(out) if tensorboard and not dry_run else None
    outcome = None
    with contextlib.nullcontext() if dry_run else progress("Training") as step, _asked_to_stop() as should_stop:
        outcome = train_gans(
            rois, out, wanted, progress=step, on_metrics=report, should_stop=should_stop, graphs=graphs, dry_run=dry_run
        )
        if not (dry_run or outcome.finished):
            raise Stopped
    assert outcome is not None
    _print_tasks(outcome, dry_run)
    if dry_run:
        return 0
    if not outcome.finished:
        say("Stopped; what was done is saved. Run the same command again, it resumes")
        return _INTERRUPTED
    judged = class_head_predictions(out)
    if judged is not None:
        summary = judged.summary
        say(
            f"The discriminator as a classifier: {summary.num_correct} of {summary.total} test lesions correct "
            f"({100 * summary.accuracy:.1f} %)"
        )
    for path in draw_figures(rois, out):
        say(f"  {path}")
    say(f"Next: lesionaug gan sample {shlex.quote(str(out))} SYNTHETIC --per-class 1000")
    return 0


def sample(
    gans: Path,
    out: Path,
    /,
    *,
    per_class: int,
    seed: int = 0,
    reject_copies: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Make synthetic ROIs, the same number of every class, and store them with whom the GANs learned from.

    The store carries whom the GANs learned from, and `SyntheticRois.check_apart` refuses it where those are tested.

    Args:
        gans: Folder that `lesionaug gan train` wrote.
        out: Folder to create.
        per_class: Images of each class.
        seed: Seed of the noise.
        reject_copies: The ROI store they were trained on: images nearer to a training lesion, under any flip, angle and
            scale, than lesions of different patients are to each other are left out and replaced.
        device: Where to make them.
    """
    from lesionaug.experiment.gan_samples import sample_gans

    rois = sample_gans(gans, out, per_class, seed, reject_copies=reject_copies, device=device)
    say(
        f"{out}: {len(rois):,} synthetic ROIs, {per_class:,} of each of {', '.join(rois.classes)} "
        f"(learned from {rois.kind} data, for split {rois.split} only)"
    )
    if reject_copies is not None:
        left_out = ", ".join(f"{count} {name}" for name, count in rois.details["copies_rejected"].items())
        say(f"Copies of training lesions left out: {left_out}")


def evaluate(
    rois: Path,
    gans: Path,
    /,
    *,
    run: Path | None = None,
    per_class: int = 200,
    seed: int = 0,
) -> None:
    """Measure GANs: distance from real lesions, diversity, memorisation; each number beside its baseline.

    Writes GANS/evaluation/evaluation.json and gallery.png, the synthetic images nearest to a training lesion.

    Args:
        rois: The ROI store they were trained on.
        gans: Folder that `lesionaug gan train` wrote.
        run: A run on the same store and folds, whose classifier gives the features; one is trained by default.
        per_class: Synthetic images of each class.
        seed: Of their noise and of the intervals.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.experiment.gan_evaluation import evaluate_gans

    with progress("Evaluating") as step:
        found = evaluate_gans(rois, gans, run=run, per_class=per_class, seed=seed, progress=step)
    _print_evaluation(found)
    say(f"Features of {found.features_of}. Details: docs/gan-evaluation.md")
    for name in ("evaluation.json", "gallery.png"):
        say(f"  {found.folder / name}")


def _print_evaluation(found: Evaluation) -> None:
    def row(name: str, show: Callable[[Mapping[str, Any]], str]) -> list[str]:
        return [name, *(show(numbers) for numbers in found.classes.values())]

    def kid(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda numbers: _interval(numbers["kid_to_training"][key], 3)

    def beside(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda numbers: _both(numbers["neighbourhoods"], key, ".2f")

    def known(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda numbers: _interval(numbers["memorisation"][key])

    rows = [
        row("KID to training lesions", kid("synthetic")),
        row("  of held-out lesions", kid("held-out lesions")),
        row("  of blurred lesions", kid("blurred training lesions")),
        row("  of noise", kid("noise")),
        row("density", beside("density")),
        row("coverage", beside("coverage")),
        row("seen as their class", lambda numbers: _percent(numbers["classified_as_wanted"])),
        row("spread", lambda numbers: _both(numbers["diversity"], "spread", ".2f")),
        row("doubles", lambda numbers: _both(numbers["diversity"], "doubles", ".0%")),
        row("collapsed", lambda numbers: "YES" if numbers["diversity"]["synthetic"]["collapsed"] else "no"),
        row("nearer to training (0.5)", known("nearer_to_training")),
        row("copies", lambda numbers: _percent(numbers["memorisation"]["copies"])),
        row("members known by D (0.5)", known("membership_by_discriminator")),
        row("by distance (0.5)", known("membership_by_distance")),
    ]
    title = f"{marked(found.kind)}synthetic ROIs, with [95 % intervals], and (the same of held-out lesions)"
    table(title, ["", *found.classes], rows)


def _both(numbers: Mapping[str, Mapping[str, float]], key: str, how: str) -> str:
    return f"{numbers['synthetic'][key]:{how}} ({numbers['held-out lesions'][key]:{how}})"


def _percent(numbers: Mapping[str, float]) -> str:
    return f"{numbers['synthetic']:.0%} ({numbers['held-out lesions']:.0%})"


def _interval(value: Mapping[str, float], digits: int = 2) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def register(app: App) -> None:
    """Add the commands to `app`."""
    group = App(name="gan", help="Train GANs on one split, and make synthetic ROIs with them.")
    group.command(train)
    group.command(sample)
    group.command(evaluate)
    app.command(group)


def _tensorboard(out: Path) -> Callable[[str, dict[str, Any]], None]:
    """Writes blocks of metrics for TensorBoard, a run for each GAN."""
    from lesionaug.errors import EnvironmentProblem

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EnvironmentProblem(
            "--tensorboard", f"it needs the package tensorboard ({error})", "pip install tensorboard, or leave it out"
        ) from error
    writers: dict[str, Any] = {}

    def write(name: str, line: dict[str, Any]) -> None:
        if name not in writers:  # what was written after the checkpoint gone on from is hidden
            writers[name] = SummaryWriter(str(out / "tensorboard" / name), purge_step=line["step"])
        for key, value in line.items():
            if key not in ("step", "seconds"):
                writers[name].add_scalar(key, value, line["step"])
        writers[name].flush()

    return write


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into an answer at the end of the step; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_tasks(outcome: GansOutcome, dry_run: bool) -> None:
    from lesionaug.experiment.gan_config import reductions

    finished = {*outcome.done_before, *outcome.trained}
    rows = [
        [
            ", ".join(task.classes),
            f"{task.num_lesions}",
            f"{task.num_images:,}" + (" (all there are)" if task.capped else ""),
            f"{task.num_steps:,}",
            "trained" if task.name in finished else "to train",
        ]
        for task in outcome.tasks
    ]
    config = outcome.config
    title = f"{marked(outcome.kind)}{config.kind.upper()}, split {config.split}, preset {config.preset}"
    table(f"{title}; nothing was written" if dry_run else title, ["classes", "lesions", "images", "steps", ""], rows)
    lines = reductions(config)
    if lines:
        say("Departs from the paper:")
    for line in lines:
        say(f"  {line}")
