"""The paper's measures (section IV-A): accuracy, confusion matrix, sensitivity and specificity, averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def confusion_matrix(labels: npt.ArrayLike, predicted: npt.ArrayLike, num_classes: int) -> IntArray:
    """Count true class against predicted class.

    Args:
        labels: [N] integers, 0 .. num_classes - 1.
        predicted: [N] integers, 0 .. num_classes - 1.
        num_classes: Rows and columns of the result, also for classes that do not occur.

    Returns:
        [num_classes, num_classes] int64; rows true, columns predicted.
    """
    from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

    truth, guess = np.asarray(labels), np.asarray(predicted)
    if truth.ndim != 1 or truth.shape != guess.shape:
        raise ValueError(
            f"labels and predicted must be two vectors of one length, got shapes {truth.shape} and {guess.shape}"
        )
    if truth.size == 0:
        raise ValueError("labels must not be empty")
    for name, values in (("labels", truth), ("predicted", guess)):
        if values.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got {values.dtype}")
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(f"{name} must be in 0 .. {num_classes - 1}, got {values.min()} .. {values.max()}")
    counts: IntArray = sklearn_confusion_matrix(truth, guess, labels=list(range(num_classes))).astype(np.int64)
    return counts


@dataclass(frozen=True, eq=False)
class ClassificationSummary:
    """The measures of one confusion matrix; fractions in 0 .. 1, NaN where a class does not occur.

    `weighted_sensitivity` is what the paper's abstract calls sensitivity. It equals the accuracy by definition; the
    macro averages, which weigh each class alike, do not.

    Attributes:
        classes: Class names.
        confusion: [C, C] int64, rows true, columns predicted.
        sensitivity: [C] correct of each true class.
        specificity: [C] of the lesions of the other classes, the part not called this class.
    """

    classes: tuple[str, ...]
    confusion: IntArray
    sensitivity: FloatArray
    specificity: FloatArray

    @classmethod
    def from_confusion(cls, confusion: npt.ArrayLike, classes: Sequence[str]) -> ClassificationSummary:
        """Summarise a confusion matrix [C, C] of counts; one class name per row."""
        counts = np.asarray(confusion)
        if counts.ndim != 2 or counts.shape != (len(classes), len(classes)) or len(classes) < 2:
            raise ValueError(
                f"confusion must be [C, C] with C = {len(classes)} >= 2 class names, got shape {counts.shape}"
            )
        if counts.dtype.kind not in "iu" or counts.min() < 0 or counts.sum() == 0:
            raise ValueError("confusion must hold counts: integers, none negative, not all zero")
        counts = counts.astype(np.int64)
        positives, called, hits, total = counts.sum(1), counts.sum(0), counts.diagonal(), counts.sum()
        negatives = total - positives
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: a class that does not occur has no sensitivity
            sensitivity = hits / positives
            specificity = (negatives - (called - hits)) / negatives
        return cls(tuple(classes), counts, sensitivity, specificity)

    @property
    def total(self) -> int:
        """Lesions."""
        return int(self.confusion.sum())

    @property
    def num_correct(self) -> int:
        """Correctly classified lesions."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Total accuracy, the paper's main measure."""
        return self.num_correct / self.total

    @property
    def weighted_sensitivity(self) -> float:
        """Sensitivities averaged with the class sizes as weights: equal to the accuracy."""
        return self._weighted(self.sensitivity)

    @property
    def weighted_specificity(self) -> float:
        """Specificities averaged with the class sizes as weights."""
        return self._weighted(self.specificity)

    @property
    def macro_sensitivity(self) -> float:
        """Plain mean of the sensitivities over the classes that occur (balanced accuracy)."""
        return float(np.nanmean(self.sensitivity))

    @property
    def macro_specificity(self) -> float:
        """Plain mean of the specificities over the classes that occur."""
        return float(np.nanmean(np.where(self.confusion.sum(1) > 0, self.specificity, np.nan)))

    def _weighted(self, values: FloatArray) -> float:
        positives = self.confusion.sum(1)
        present = positives > 0
        return float((values[present] * positives[present]).sum() / positives.sum())


def wilson_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Args:
        count: Successes.
        total: Trials, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper bound as fractions.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= count <= total or total < 1:
        raise ValueError(f"wanted 0 <= count <= total and total >= 1, got {count} of {total}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    low, high = proportion_confint(count, total, alpha=1.0 - confidence, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))
