"""What the readers of files with many named margins share: one after the other, and one at fault alone left out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lesionaug.data.slices import Finding, Margin, MarginOnSlice, SourceFile
from lesionaug.data.sources.dicom_file import reading
from lesionaug.data.sources.given import Given
from lesionaug.errors import DataError

Item = TypeVar("Item")

_MOST_OF_A_NAME = 64  # characters shown
_MOST_NUMBERS = 10  # listed


@dataclass(frozen=True)
class Drawn:
    """What came of one margin.

    Attributes:
        slices: Its masks, along the normal.
        missing: Its contours or frames that have no slice here.
        patient: Whose it is, '' where nothing says it.
    """

    slices: list[MarginOnSlice]
    missing: int
    patient: str


def read_named(
    source: SourceFile,
    given: Given,
    kind: str,
    items: Iterable[tuple[int, Item]],
    names_of: Callable[[Item], tuple[str, tuple[str, ...]]],
    draw: Callable[[Item, int, str], Drawn | None],
    *,
    names_its_class: bool = False,
) -> Generator[Margin, None, bool]:
    """The margins of a file; one that the label map leaves out is not drawn, one at fault is refused, others go on.

    Args:
        source: The file.
        given: The options and findings.
        kind: What a margin is called there: 'ROI', 'segment'.
        items: Number and content of each; the number is its key.
        names_of: A content's name, and what else it is called.
        draw: (content, number, where) to its masks; None where it has none, which `draw` says itself if it is worth it.
        names_its_class: Whether the names are classes.

    Yields:
        Margins.

    Returns:
        Whether there was any margin, taken or not.
    """
    findings, items, any_margin = given.findings, list(items), False
    for done, (number, item) in enumerate(items):
        given.step(done, len(items), "drawing margins")
        before, where = len(findings), f"{source.name} {kind} {number}"
        drawn: Drawn | None = None
        try:
            with reading(where):
                name, names = names_of(item)
            where = f"{where} '{name[:_MOST_OF_A_NAME]}'"
            with reading(where):
                if given.leaves_out(name, names):
                    given.note_left_out(where, source, number)
                else:
                    drawn = draw(item, number, where)
        except DataError as error:
            findings.append(Finding.refused(error, source, number))
        any_margin |= drawn is not None or any(finding.reason for finding in findings[before:])
        if drawn is not None:
            yield Margin(
                source=source,
                where=where,
                number=number,
                key=str(number),
                name=name,
                patient=drawn.patient,
                slices=drawn.slices,
                names_its_class=names_its_class,
                parts_missing=drawn.missing,
                also_named=names,
            )
    return any_margin


def listed(kind: str, numbers: Sequence[int | str]) -> str:
    """'ROI 2', 'ROIs 2, 3', and no more than the first ten."""
    more = f" and {len(numbers) - _MOST_NUMBERS} more" if len(numbers) > _MOST_NUMBERS else ""
    return f"{kind}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:_MOST_NUMBERS]))}{more}"
