"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


class Stopped(Exception):
    """Raised in the body of `progress` when work stopped on request: what is shown is not counted to its end."""


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show work under `title` on stderr while the `with` body runs.

    Yields:
        A function (done, total, text) that library code calls as it goes.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with contextlib.suppress(Stopped), show(title) as step:
        yield step


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)
        if (total := bar.tasks[0].total) is not None:  # the last step may have been announced, not counted
            bar.update(task, completed=total, text="")


@contextmanager
def _lines(title: str) -> Iterator[Callable[[int, int, str], None]]:
    started = last = time.monotonic()

    def step(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = f", about {_duration((now - started) / done * (total - done))} left" if 0 < done < total else ""
            print(f"{title}: {done} of {total}{left}{f', {text}' if text else ''}", file=sys.stderr)

    print(f"{title} ...", file=sys.stderr)
    yield step
    print(f"{title}: done in {time.monotonic() - started:.1f} s", file=sys.stderr)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
