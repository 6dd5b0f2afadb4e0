"""Measures: the paper's printed tables are the test vectors, counting by hand is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionaug.evaluation.classification import ClassificationSummary, confusion_matrix, wilson_interval
from lesionaug.experiment import paper
from lesionaug.experiment.paper import PrintedResult


@pytest.mark.parametrize("printed", [paper.CNN_AUG, paper.CNN_AUG_GAN], ids=lambda printed: printed.name)
def test_the_papers_tables_come_out(printed: PrintedResult) -> None:
    summary = ClassificationSummary.from_confusion(printed.confusion, paper.CLASSES)
    assert summary.num_correct == printed.correct
    assert summary.total == paper.NUM_LESIONS
    # Printed percentages are truncated here and rounded there, so they hold within 0.1.
    np.testing.assert_allclose(100 * summary.sensitivity, printed.sensitivity_pct, atol=0.1)
    np.testing.assert_allclose(100 * summary.specificity, printed.specificity_pct, atol=0.1)
    assert 100 * summary.weighted_sensitivity == pytest.approx(printed.weighted_sensitivity_pct, abs=0.1)
    assert 100 * summary.weighted_specificity == pytest.approx(printed.weighted_specificity_pct, abs=0.1)


def test_table_i_to_two_decimals() -> None:
    summary = ClassificationSummary.from_confusion(paper.TABLE_I_CONFUSION, paper.CLASSES)
    assert round(100 * summary.accuracy, 2) == 78.57
    assert round(100 * summary.weighted_specificity, 2) == 88.39
    assert round(100 * summary.macro_sensitivity, 1) == 79.7
    assert round(100 * summary.macro_specificity, 1) == 89.0


counts = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(counts.filter(lambda rows: all(sum(row) > 0 for row in rows)))
def test_every_measure_by_counting(rows: list[list[int]]) -> None:
    labels = [i for i in range(3) for j in range(3) for _ in range(rows[i][j])]
    predicted = [j for i in range(3) for j in range(3) for _ in range(rows[i][j])]
    confusion = confusion_matrix(labels, predicted, 3)
    assert confusion.tolist() == rows
    summary = ClassificationSummary.from_confusion(confusion, ("a", "b", "c"))
    pairs = list(zip(labels, predicted, strict=True))
    for name in range(3):
        mine = [guess == name for truth, guess in pairs if truth == name]
        others = [guess != name for truth, guess in pairs if truth != name]
        assert summary.sensitivity[name] == pytest.approx(sum(mine) / len(mine))
        assert summary.specificity[name] == pytest.approx(sum(others) / len(others))
    assert summary.accuracy == pytest.approx(sum(truth == guess for truth, guess in pairs) / len(pairs))
    assert summary.weighted_sensitivity == pytest.approx(
        summary.accuracy
    )  # an identity, whatever the abstract calls it
    assert summary.macro_sensitivity == pytest.approx(summary.sensitivity.mean())
    assert summary.weighted_specificity == pytest.approx(
        sum(summary.specificity[truth] for truth in labels) / len(labels)
    )


def test_a_class_that_does_not_occur_is_nan_and_left_out_of_averages() -> None:
    summary = ClassificationSummary.from_confusion([[3, 0, 1], [0, 4, 0], [0, 0, 0]], ("a", "b", "c"))
    assert np.isnan(summary.sensitivity[2])
    assert summary.macro_sensitivity == pytest.approx((0.75 + 1) / 2)
    assert summary.weighted_sensitivity == summary.accuracy == 7 / 8
    assert summary.macro_specificity == pytest.approx(1.0)


@pytest.mark.parametrize(
    "labels, predicted, message",
    [
        ([0, 1], [0], "one length"),
        ([], [], "not be empty"),
        ([0, 3], [0, 1], r"labels must be in 0 .. 2, got 0 .. 3"),
        ([0, -1], [0, 1], "labels must be in"),
        ([0, 1], [0, 5], "predicted must be in"),
        ([0.0, 1.0], [0, 1], "integers"),
    ],
)
def test_wrong_predictions_are_refused(labels: list[int], predicted: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predicted, 3)


@pytest.mark.parametrize("wrong", [[[1, 2]], [[1, 2, 3]] * 3, [[1, -1], [0, 2]], [[0.5, 1], [1, 1]], [[0, 0], [0, 0]]])
def test_wrong_confusion_matrices_are_refused(wrong: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="confusion must"):
        ClassificationSummary.from_confusion(wrong, ("a", "b"))


def test_wilson_intervals_of_the_papers_counts() -> None:
    """Reference values: section 3.1 of the study of the paper, and the closed formula."""
    assert [round(100 * bound, 1) for bound in wilson_interval(143, 182)] == [72.1, 83.9]
    assert [round(100 * bound, 1) for bound in wilson_interval(156, 182)] == [79.9, 90.1]
    for count, total in [(0, 5), (5, 5), (3, 7), (1, 1)]:
        z, p = 1.959963984540054, count / total
        middle = (p + z * z / (2 * total)) / (1 + z * z / total)
        half = z * np.sqrt(p * (1 - p) / total + z * z / (4 * total**2)) / (1 + z * z / total)
        assert wilson_interval(count, total) == pytest.approx((middle - half, middle + half), abs=1e-9)
        assert 0 <= wilson_interval(count, total)[0] <= wilson_interval(count, total)[1] <= 1


@pytest.mark.parametrize("count, total, confidence", [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 1.0)])
def test_impossible_proportions_are_refused(count: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        wilson_interval(count, total, confidence)
