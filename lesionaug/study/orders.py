"""The order of a study for a reader slot: random under a key, without long runs, repeats far from the first showing."""

from __future__ import annotations

import hmac
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

LONGEST_RUN = 4  # of one class or of one origin
REPEAT_GAP = 20  # trials between an image and its repeat, at least
_MOST_SWAPS = 20_000


def keyed(key: bytes, label: str) -> random.Random:
    """Random numbers that only the holder of the key can draw again; each label has its own."""
    return random.Random(int.from_bytes(hmac.digest(key, label.encode(), "sha256"), "big"))


def slot_trials(
    key: bytes,
    slot: int,
    kinds: Sequence[tuple[str, ...]],
    practice: Sequence[int],
    tasks: Sequence[str],
    num_repeats: int,
    order: str,
) -> list[dict[str, Any]]:
    """The trials of a reader slot, as they are written.

    Args:
        key: Of the study.
        slot: Number of the slot.
        kinds: Class and origin of every item.
        practice: Items that come first and do not count.
        tasks: In their order.
        num_repeats: Items that are shown twice.
        order: "separate" or "combined".
    """
    counted = [item for item in range(len(kinds)) if item not in practice]

    def shown(label: str) -> list[dict[str, Any]]:
        draws = keyed(key, f"slot {slot} {label}")
        first = arrange(practice, kinds, draws)
        main = arrange(counted + _repeated(counted, kinds, num_repeats, draws), kinds, draws)
        seen: set[int] = set()
        trials = []
        for item in first + main:
            trials.append({"item": item, "practice": item in practice, "repeat": item in seen})
            seen.add(item)
        return trials

    if order == "combined":
        return [{"task": task, **trial} for trial in shown("combined") for task in tasks]
    return [{"task": task, **trial} for task in tasks for trial in shown(task)]


def _repeated(items: list[int], kinds: Sequence[tuple[str, ...]], count: int, draws: random.Random) -> list[int]:
    """Items to be shown twice, as equally of both origins as there are, and in each of its classes."""
    return [item for origin in _shares(items, kinds, 1, count, draws) for item in origin]


def _shares(
    items: list[int], kinds: Sequence[tuple[str, ...]], number: int, count: int, draws: random.Random
) -> list[list[int]]:
    """Random items of every value of a property, shared out equally, and within it of the properties before it."""
    cells: dict[str, list[int]] = {}
    for item in items:
        cells.setdefault(kinds[item][number], []).append(item)
    members = list(cells.values())
    draws.shuffle(members)
    chosen = []
    for cell, share in zip(members, spread(count, [len(cell) for cell in members]), strict=True):
        draws.shuffle(cell)
        inner = [cell[:share]] if number == 0 else _shares(cell, kinds, number - 1, share, draws)
        chosen.append([item for part in inner for item in part])
    return chosen


def arrange(items: Sequence[int], kinds: Sequence[tuple[str, ...]], draws: random.Random) -> list[int]:
    """Put items into a random order without long runs, and with room between the two showings of an item.

    A random order is mended by random swaps, as few as it takes.

    Args:
        items: Numbers; those to be repeated occur twice.
        kinds: What each number is, one value for each property (class, origin), none of which may run on.
        draws: Random numbers.
    """
    order = list(items)
    draws.shuffle(order)
    longest = []
    for values in zip(*(kinds[item] for item in items), strict=True):
        most = max(Counter(values).values())
        within = math.ceil(most / (len(values) - most + 1))  # the shortest that is possible at all
        longest.append(max(LONGEST_RUN, within + (within > 1)))
    gap = min(REPEAT_GAP, len(order) // 3)
    left = _faults(order, kinds, longest, gap)
    for _ in range(_MOST_SWAPS):
        if not left:
            break
        here = left[draws.randrange(len(left))]
        there = draws.randrange(len(order))
        order[here], order[there] = order[there], order[here]
        now = _faults(order, kinds, longest, gap)
        if len(now) <= len(left):
            left = now
        else:
            order[here], order[there] = order[there], order[here]
    return order


def _faults(order: Sequence[int], kinds: Sequence[tuple[str, ...]], longest: Sequence[int], gap: int) -> list[int]:
    """Positions where a run is too long or a repeat too early; one as often as it is at fault."""
    found: list[int] = []
    for number, most in enumerate(longest):
        run = 0
        for position, item in enumerate(order):
            run = run + 1 if position and kinds[item][number] == kinds[order[position - 1]][number] else 1
            if run > most:
                found.append(position)
    last: dict[int, int] = {}
    for position, item in enumerate(order):
        if item in last and position - last[item] < gap:
            found += [position] * (gap - (position - last[item]))
        last[item] = position
    return found


def spread(total: int, available: Sequence[int]) -> list[int]:
    """Share a number over classes as equally as what is available allows; all of it where that is less."""
    counts = [0] * len(available)
    while sum(counts) < min(total, sum(available)):
        open_ = [i for i, most in enumerate(available) if counts[i] < most]
        lowest = min(counts[i] for i in open_)
        counts[next(i for i in open_ if counts[i] == lowest)] += 1
    return counts
