"""Which group of Fig. 8 the next stage builds on: the paper's rule, and a nested one that sees no test fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lesionaug.errors import DataError


def smallest_best(correct: Mapping[int, float]) -> int:
    """The paper's rule, "the smallest group at saturation": the smallest with the highest number of correct lesions.

    Args:
        correct: Correct lesions of each group, by its size; means over seeds.
    """
    best = max(correct.values())
    return min(size for size, count in correct.items() if count == best)


def choose(
    correct: Mapping[int, float], inner: Mapping[int, Mapping[int, float]] | None, rule: str, splits: Sequence[int]
) -> dict[str, Any]:
    """Choose by both rules.

    Args:
        correct: Correct test lesions of each group, over all test folds; means over the seeds.
        inner: Of each split, correct lesions of each group inside its training folds; None where there are none.
        rule: The one in use, "paper" or "nested".
        splits: Of the run.

    Returns:
        What choice.json holds: "rule", "paper" (size, correct), "nested" (per split: size, correct; None where there
        are none) and "in_use" (per split: size).
    """
    paper = smallest_best(correct)
    nested = None
    if inner is not None:
        nested = {
            str(split): {"size": smallest_best(counts), "correct": {str(size): counts[size] for size in sorted(counts)}}
            for split, counts in inner.items()
        }
    if rule == "nested" and nested is None:
        raise ValueError("there is no nested choice without inner trainings")
    return {
        "rule": rule,
        "paper": {"size": paper, "correct": {str(size): correct[size] for size in sorted(correct)}},
        "nested": nested,
        "in_use": {
            str(split): nested[str(split)]["size"] if rule == "nested" and nested is not None else paper
            for split in splits
        },
    }


def size_in_use(choice: Mapping[str, Any], split: int) -> int:
    """The size a choice.json names for a split.

    Raises:
        DataError: It is damaged.
    """
    try:
        return int(choice["in_use"][str(split)])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "choice.json", f"it names no group for split {split}", "Delete its folder and run again"
        ) from error
