"""`lesionaug gan train` and `lesionaug gan sample`: the paper's GANs beside the experiment (sections III-B, III-C)."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from lesionaug.cli.console import say, table

if TYPE_CHECKING:
    from types import FrameType

    from lesionaug.experiment.gan import GansOutcome

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
        dry_run: Check everything and list what would be trained; write nothing.
    """
    from lesionaug.cli.progress import progress
    from lesionaug.experiment.gan import class_head_predictions, draw_figures, load_gans, train_gans
    from lesionaug.experiment.gan_config import resolve_gans

    given = (preset, kind, config, split, data, seed, device, threads)
    resume = (out / "config.json").exists() and all(option is None for option in given)
    wanted = None if resume else resolve_gans(
        preset, kind, config, split=split, data=data, seed=seed, device=device, threads=threads
    )  # fmt: skip
    with contextlib.nullcontext() if dry_run else progress("Training") as step, _asked_to_stop() as should_stop:
        outcome = train_gans(rois, out, wanted, progress=step, should_stop=should_stop, dry_run=dry_run)
    _print_tasks(outcome, dry_run)
    if dry_run:
        return 0
    if not outcome.finished:
        say("Stopped; what was done is saved. Run the same command again, it resumes")
        return _INTERRUPTED
    judged = class_head_predictions(load_gans(out), out)
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
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Make synthetic ROIs, the same number of every class, and store them with whom the GANs learned from.

    Such a store is refused wherever patients of those GANs' training folds are tested.

    Args:
        gans: Folder that `lesionaug gan train` wrote.
        out: Folder to create.
        per_class: Images of each class.
        seed: Seed of the noise.
        device: Where to make them.
    """
    from lesionaug.experiment.gan import sample_gans

    rois = sample_gans(gans, out, per_class, seed, device=device)
    say(
        f"{out}: {len(rois):,} synthetic ROIs, {per_class:,} of each of {', '.join(rois.classes)} "
        f"(learned from {rois.kind} data, for split {rois.split} only)"
    )


def register(app: App) -> None:
    """Add the commands to `app`."""
    group = App(name="gan", help="Train GANs on one split, and make synthetic ROIs with them.")
    group.command(train)
    group.command(sample)
    app.command(group)


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
            f"{task.num_images:,}",
            f"{task.num_steps:,}",
            "trained" if task.name in finished else "to train",
        ]
        for task in outcome.tasks
    ]
    marked = "phantom data, not patients: " if outcome.kind == "phantom" else ""
    title = f"{marked}{outcome.config.kind.upper()}, split {outcome.config.split}, preset {outcome.config.preset}"
    table(f"{title}; nothing was written" if dry_run else title, ["classes", "lesions", "images", "steps", ""], rows)
    lines = reductions(outcome.config)
    if lines:
        say("Departs from the paper:")
    for line in lines:
        say(f"  {line}")
