"""`lesionaug study new|serve|export|analyse`: the reader study (paper IV-D)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from lesionaug.cli.console import marked, say

if TYPE_CHECKING:
    from types import FrameType

_Flag = Annotated[bool, Parameter(negative=())]


def new(
    rois: Path,
    out: Path,
    /,
    *,
    synthetic: Path,
    preset: Literal["paper"] | None = None,
    real: int | None = None,
    fake: int | None = None,
    practice: int | None = None,
    repeats: float | None = None,
    order: Literal["separate", "combined"] = "separate",
    scale: Literal["six-step", "two-key"] | None = None,
    readers: int = 8,
    back: Literal["allow", "lock"] = "allow",
    gan: tuple[Literal["dcgan", "acgan"], ...] = (),
    consent: Path | None = None,
    seed: int = 0,
    title: str | None = None,
    truth: Path | None = None,
) -> None:
    """Make a reader study of real and synthetic ROIs.

    Which images are real stands in a file beside the folder, OUT.truth.json, that the server never opens: keep it away
    from readers, and keep it.

    Args:
        rois: ROI store of the real lesions.
        out: Folder to create.
        synthetic: Where the synthetic ROIs are: a store of `lesionaug gan sample`, or a run on the same ROI store.
        preset: paper: 182 real and 120 synthetic images, two keys, no practice, no repeats.
        real: Real images; 60 by default, or as many as there are. Equally of every class, as far as possible.
        fake: Synthetic images; as many as real ones by default.
        practice: Images before each task that do not count; 10 by default.
        repeats: Share of the images that is shown twice; 0.1 by default.
        order: separate: all images for the class, then all for their origin. combined: both questions about each image.
        scale: Of the origin. six-step: how sure, without a middle. two-key: synthetic or real.
        readers: How many can take part; each has its own order.
        back: Whether the last answer can be changed.
        gan: Of a run: dcgan, acgan or both; the first of its GANs by default.
        consent: Text file that readers agree to.
        seed: Seed of the choice of images; the order has a random key of its own.
        title: Shown to readers.
        truth: Where to write the truth; not into the study's folder.
    """
    from lesionaug.study.design import count_lines, make_study
    from lesionaug.study.options import StudyOptions, consent_of

    chosen = StudyOptions(
        preset=preset, num_real=real, num_synthetic=fake, num_practice=practice, repeats=repeats, order=order,
        scale=scale, num_readers=readers, back=back, seed=seed, gans=tuple(dict.fromkeys(gan)),
        **({} if title is None else {"title": title}),
        **({} if consent is None else {"consent": consent_of(consent)}),
    )  # fmt: skip
    made = make_study(rois, out, synthetic, chosen, truth)
    say(f"{made.folder}: {marked(made.kind)}a study for {readers} readers, {made.trials_per_reader} answers of each")
    for line in count_lines(made.counts):
        say(f"  {line}")
    if made.num_practice:
        say(f"  and {made.num_practice} for practice")
    for warning in made.warnings:
        say(f"warning: {warning}")
    say(f"{made.truth}: the truth (SHA-256 {made.truth_sha256}). Keep it where readers do not come")
    say(f"Next: lesionaug study serve {made.folder} --reader CODE")


def serve(
    study: Path,
    /,
    *,
    reader: tuple[str, ...] = (),
    port: int = 0,
    no_browser: _Flag = False,
) -> None:
    """Serve a study to readers at this computer, until Ctrl-C. It can be stopped and started at any moment.

    Prints a link for each reader that works once; Enter prints new ones in a terminal. Nothing but this computer can
    reach it; to read from another one use `ssh -L PORT:127.0.0.1:PORT`.

    Args:
        study: Folder of `lesionaug study new`.
        reader: Code names, e.g. A7; no person's name. By default those that have begun, or else reader-1.
        port: Port of the loopback interface; 0 takes a free one.
        no_browser: Do not open a browser.
    """
    import signal
    import sys
    import webbrowser

    from lesionaug.study.server import serve_study

    opened: list[bool] = []  # by itself only the first time
    asks = sys.stdin is not None and sys.stdin.isatty()

    def announce(links: Mapping[str, str]) -> None:
        for code, link in links.items():
            say(f"{code}: {link}")
        again = "Enter prints new ones" if asks else "start this again for new ones"
        say(f"Each link works once; {again}. Ctrl-C stops; every answer is saved as it is given")
        if len(links) == 1 and not no_browser and sys.stdout.isatty() and not opened:
            opened.append(webbrowser.open(next(iter(links.values()))))

    def terminate(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)  # uvicorn stops first, then hands the signal on
    saved = serve_study(study, reader, port, announce)
    say(f"Stopped; {saved} answers are saved in {study}")


def export(study: Path, out: Path, /, *, truth: Path | None = None) -> None:
    """Write the answers as CSV and JSON, and where the truth is given as the frame that iMRMC reads.

    Args:
        study: Folder of `lesionaug study new`.
        out: Folder to create.
        truth: The truth file of the study.
    """
    from lesionaug.study.answers import progress_lines
    from lesionaug.study.export import export_study

    written = sorted(path.name for path in export_study(study, out, truth).iterdir())
    say(f"{out}: {', '.join(written)}")
    for line in progress_lines(study):
        say(f"  {line}")
    if truth is not None:
        say("caution: truth.csv tells which images are real: keep it from readers until all have finished")


def analyse(study: Path, out: Path, /, *, truth: Path | None = None, run: Path | None = None) -> None:
    """Analyse the answers: how well readers tell classes and origins, and how well they agree, with intervals.

    Args:
        study: Folder of `lesionaug study new`.
        out: Folder to create.
        truth: The truth file; beside the study by default.
        run: A run on the same lesions: its CNN is compared with the readers, and its report gets a page.
    """
    from lesionaug.study.analysis import analyse_study
    from lesionaug.study.answers import progress_lines

    page = analyse_study(study, out, truth, run)
    say(f"{page}: the analysis; beside it analysis.json, measures.csv and figures")
    if run is not None:
        say(f"{run / 'study'}: the same for the run's report. Next: lesionaug report {run}")
    for line in progress_lines(study):
        say(f"  {line}")


def register(app: App) -> None:
    """Add the commands to `app`."""
    study = App(name="study", help="The reader study: can people tell synthetic lesions, and which class do they see?")
    for command in (new, serve, export, analyse):
        study.command(command)
    app.command(study)
