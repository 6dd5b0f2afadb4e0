"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show work under `title` on stderr while the `with` body runs.

    Yields:
        A function (done, total, text) that library code calls as it goes.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(title) as step:
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
            print(f"{title}: {done} of {total}, {text}" if text else f"{title}: {done} of {total}", file=sys.stderr)

    print(f"{title} ...", file=sys.stderr)
    yield step
    print(f"{title}: done in {time.monotonic() - started:.1f} s", file=sys.stderr)
