"""What readers' answers say: detection of real images, agreement, and intervals; each measure names its source.

"Real" is the positive answer throughout: sensitivity is the share of real images called real, specificity the share of
synthetic ones called synthetic, and a larger rating means more surely real. Where a measure is not defined (no image of
one origin, a constant answer) it is None, never a number that looks like one. Where every draw of a bootstrap gives the
same, as for a reader who never errs, the bounds are NaN: an interval without width would look like certainty.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lesionaug.evaluation.classification import wilson_interval
from lesionaug.evaluation.distances import Estimate

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

RESAMPLES = 2000  # of every bootstrap
_Reader = TypeVar("_Reader")
_Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Rate:
    """A proportion with Wilson's 95 % interval (Wilson 1927); value, low and high are None where the total is 0."""

    count: int
    total: int
    value: float | None
    low: float | None
    high: float | None


def rate(count: int, total: int) -> Rate:
    """`count` of `total`, by `evaluation.classification.wilson_interval` (statsmodels)."""
    if total == 0:
        return Rate(0, 0, None, None, None)
    return Rate(count, total, count / total, *wilson_interval(count, total))


def rate_difference(first: Rate, second: Rate) -> Estimate | None:
    """First - second of two rates of different images, with Newcombe's interval (1998, his method 10), by statsmodels.

    It takes images as independent. None where one of the rates has no images.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    if first.value is None or second.value is None:
        return None
    low, high = confint_proportions_2indep(
        first.count, first.total, second.count, second.total, method="newcomb", compare="diff"
    )
    return Estimate(first.value - second.value, max(-1.0, float(low)), min(1.0, float(high)))


def balanced_accuracy(sensitivity: Rate, specificity: Rate) -> Estimate | None:
    """Mean of sensitivity and specificity: 50 % for every reader who always gives one answer.

    It is (1 + sensitivity - false alarms) / 2, so its interval is Newcombe's of that difference, halved. None where
    there are no images of one origin.
    """
    false_alarms = rate(specificity.total - specificity.count, specificity.total)
    difference = rate_difference(sensitivity, false_alarms)
    if difference is None:
        return None
    return Estimate(*((1 + x) / 2 for x in (difference.value, difference.low, difference.high)))


def binomial_p(count: int, total: int, chance: float) -> float | None:
    """Exact two-sided binomial test of `count` of `total` against a chance (scipy.stats.binomtest).

    None where there is nothing to test: no images, or a chance of 0 or 1.
    """
    from scipy.stats import binomtest

    if total == 0 or not 0 < chance < 1:
        return None
    return float(binomtest(count, total, chance).pvalue)


@dataclass(frozen=True)
class Detection:
    """Signal detection with two normal distributions of equal variance (Green and Swets 1966).

    Attributes:
        d_prime: How far apart real and synthetic images look, in standard deviations; 0 for a reader who guesses.
        criterion: Where the reader draws the line: above 0 leans to "synthetic", below 0 to "real".
    """

    d_prime: Estimate
    criterion: Estimate


def detection(sensitivity: Rate, specificity: Rate) -> Detection | None:
    """Measure d' and criterion c of one reader, each with a 95 % interval.

    Rates are corrected log-linearly (Hautus 1995): half an image is added to hits and to false alarms and one image to
    each origin, always, so that they exist for a reader who never errs, or gives one answer only. The variance is that
    of Gourevitch and Galanter (1967): p (1 - p) / (n density(z)^2) of each rate.

    Returns:
        None where there are no images of one origin.
    """
    from scipy.stats import norm

    if not sensitivity.total or not specificity.total:
        return None
    counts = np.array([sensitivity.count, specificity.total - specificity.count], dtype=np.float64)
    totals = np.array([sensitivity.total, specificity.total], dtype=np.float64)
    rates = (counts + 0.5) / (totals + 1)
    z = norm.ppf(rates)
    spread = float((rates * (1 - rates) / ((totals + 1) * norm.pdf(z) ** 2)).sum()) ** 0.5
    d_prime, criterion = float(z[0] - z[1]), float(-(z[0] + z[1]) / 2)
    return Detection(
        Estimate(d_prime, d_prime - _Z * spread, d_prime + _Z * spread),
        Estimate(criterion, criterion - _Z * spread / 2, criterion + _Z * spread / 2),
    )


@dataclass(frozen=True, eq=False)
class Cases:
    """The images of a study as a bootstrap draws them.

    Attributes:
        real: [items] bool.
        block: [items] int: images of one block are drawn together. Real images of one patient are a block, for they
            resemble each other; a synthetic image is one by itself.
    """

    real: BoolArray
    block: IntArray

    @classmethod
    def of(cls, real: npt.ArrayLike, patients: Sequence[Hashable | None]) -> Cases:
        """From the origin [items] and the patient of every image; None where it has none."""
        origin = np.asarray(real, dtype=np.bool_)
        names = [("image", i) if patient is None else (bool(origin[i]), patient) for i, patient in enumerate(patients)]
        places = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return cls(origin, np.array([places[name] for name in names], dtype=np.int64))

    def draws(self, seed: int, resamples: int = RESAMPLES) -> FloatArray:
        """[resamples, items]: how often each image was drawn; the blocks of each origin by themselves, as designed."""
        rng = np.random.default_rng(seed)
        weights = np.zeros((resamples, self.real.size))
        for origin in (True, False):
            mine = np.flatnonzero(self.real == origin)
            if mine.size:
                blocks, place = np.unique(self.block[mine], return_inverse=True)
                times = rng.multinomial(blocks.size, np.full(blocks.size, 1 / blocks.size), size=resamples)
                weights[:, mine] = times[:, place]
        return weights


def auc(cases: Cases, ratings: npt.ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate | None:
    """Area under the ROC curve of one reader's ratings (scikit-learn's roc_auc_score), with a case bootstrap.

    The interval is the percentile interval over draws of `cases`: in simulated studies it held the true area in 94.5 %
    at 100 images of each origin, in 92 to 93 % at 30. With ratings 0 and 1 it is the area below the two straight lines
    through the single operating point, which equals the balanced accuracy.

    Args:
        cases: The images the reader has rated.
        ratings: [items], whole numbers; larger is more surely real.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Returns:
        None where there are no images of one origin; and where all ratings are equal, for there is no curve then.
    """
    from sklearn.metrics import roc_auc_score

    values = np.asarray(ratings)
    if cases.real.all() or not cases.real.any() or np.unique(values).size < 2:
        return None
    counted = _counted(cases, values, cases.draws(seed, resamples))
    return _percentiles(float(roc_auc_score(cases.real, values)), area_of_counts(*counted))


def area_of_counts(real: npt.ArrayLike, synthetic: npt.ArrayLike) -> FloatArray:
    """Area under the ROC curve from counts [..., levels] of each rating, ascending.

    It is P(real rated higher) + P(rated alike) / 2 (Bamber 1975), which is the area below straight lines.
    """
    counts_real, counts_synthetic = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
    below = counts_synthetic.cumsum(-1) - counts_synthetic / 2
    with np.errstate(invalid="ignore"):  # no image of one origin drawn: undefined
        return np.asarray((counts_real * below).sum(-1) / (counts_real.sum(-1) * counts_synthetic.sum(-1)))


def _counted(cases: Cases, ratings: npt.NDArray[np.generic], weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Counts [draws, levels] of each rating among real and among synthetic images, ascending."""
    levels = np.unique(ratings)
    hit = (ratings[:, None] == levels).astype(np.float64)
    return (weights * cases.real) @ hit, (weights * ~cases.real) @ hit


def _percentiles(value: float, drawn: FloatArray) -> Estimate | None:
    """The percentile interval of what was drawn; bounds are NaN where all draws are alike, for that is no certainty."""
    known = drawn[np.isfinite(drawn)]
    if known.size == 0:
        return None
    if known.min() == known.max():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(known, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True, eq=False)
class ReaderRatings:
    """What one reader said of some of the images.

    Attributes:
        items: [n] indices into the study's `Cases`, each once.
        ratings: [n] ints; larger is more surely real.
        called_real: [n] bool, the two-way answer.
    """

    items: IntArray
    ratings: IntArray
    called_real: BoolArray


def pooled_detection(
    cases: Cases, readers: Sequence[ReaderRatings], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate | None]:
    """Means over the readers, with an interval that draws readers and images.

    Both are drawn with replacement (the multi-reader bootstrap that Gallas et al. 2009 describe). With one reader only
    images are drawn. With fewer than some five the interval hardly knows how readers differ and is too narrow: it is a
    summary, not a claim about other readers.

    Args:
        cases: All images.
        readers: Those who have answered for both origins; images may differ from reader to reader.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Returns:
        "sensitivity", "specificity", "balanced_accuracy", "accuracy", "d_prime", "criterion", "auc"; the area None
        where a reader's ratings are all equal, d' and criterion without bounds (NaN) where a reader gave all images of
        an origin one answer. Nothing without readers.
    """
    from scipy.stats import norm

    weights = cases.draws(seed, resamples)

    def measured(reader: ReaderRatings, drawn: FloatArray) -> dict[str, FloatArray]:
        mine = Cases(cases.real[reader.items], cases.block[reader.items])
        levels = np.unique(reader.ratings).size
        area_counts = _counted(mine, reader.ratings, drawn)
        called = reader.called_real.astype(np.float64)
        real, synthetic = (drawn * mine.real).sum(1), (drawn * ~mine.real).sum(1)
        hits, alarms = (drawn * mine.real) @ called, (drawn * ~mine.real) @ called
        with np.errstate(invalid="ignore"):
            sensitivity, specificity = hits / real, 1 - alarms / synthetic
        z_hits, z_alarms = norm.ppf((hits + 0.5) / (real + 1)), norm.ppf((alarms + 0.5) / (synthetic + 1))
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "accuracy": (hits + synthetic - alarms) / (real + synthetic),
            "d_prime": z_hits - z_alarms,
            "criterion": -(z_hits + z_alarms) / 2,
            "auc": area_of_counts(*area_counts) if levels > 1 else np.full(len(drawn), np.nan),
        }

    found = _pooled(readers, weights, lambda reader: reader.items, measured, seed)
    if any(_says_one_thing(cases, reader) for reader in readers):
        for name in ("d_prime", "criterion"):
            estimate = found[name]
            found[name] = None if estimate is None else Estimate(estimate.value, float("nan"), float("nan"))
    return found


def _says_one_thing(cases: Cases, reader: ReaderRatings) -> bool:
    """Whether a reader gave all images of an origin one answer: every draw repeats it, though it is no certainty."""
    real = cases.real[reader.items]
    return any(np.unique(reader.called_real[real == kind]).size == 1 for kind in (True, False))


def pooled_class_accuracy(
    cases: Cases, readers: Sequence[tuple[IntArray, BoolArray]], *, seed: int = 0
) -> dict[str, Estimate | None]:
    """Mean class accuracy over the readers, on real and on synthetic images, with the bootstrap of `pooled_detection`.

    Args:
        cases: All images.
        readers: (items [n], right [n] bool) of each reader who has answered for both origins.
        seed: Of the bootstrap.

    Returns:
        "real", "synthetic", "difference" (real - synthetic). Nothing without readers.
    """

    def measured(reader: tuple[IntArray, BoolArray], drawn: FloatArray) -> dict[str, FloatArray]:
        items, right = reader[0], reader[1].astype(np.float64)
        found = {}
        for name, mine in (("real", cases.real[items]), ("synthetic", ~cases.real[items])):
            with np.errstate(invalid="ignore"):
                found[name] = ((drawn * mine) @ right) / (drawn * mine).sum(1)
        return {**found, "difference": found["real"] - found["synthetic"]}

    return _pooled(readers, cases.draws(seed), lambda reader: reader[0], measured, seed)


def _pooled(
    readers: Sequence[_Reader],
    weights: FloatArray,
    items_of: Callable[[_Reader], IntArray],
    measured: Callable[[_Reader, FloatArray], Mapping[str, FloatArray]],
    seed: int,
) -> dict[str, Estimate | None]:
    """Means over readers of measures that a reader has in every draw of the images, the readers drawn too."""
    if not readers:
        return {}
    whole = np.ones((1, weights.shape[1]))
    points = [measured(reader, whole[:, items_of(reader)]) for reader in readers]
    drawn = [measured(reader, weights[:, items_of(reader)]) for reader in readers]
    count = len(readers)
    times = np.random.default_rng([seed, 1]).multinomial(count, np.full(count, 1 / count), size=len(weights)).T
    found: dict[str, Estimate | None] = {}
    for name in points[0]:
        value = float(np.mean([point[name][0] for point in points]))
        table = np.stack([one[name] for one in drawn])  # [readers, draws]
        known = np.isfinite(table)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, table * times, 0).sum(0) / (known * times).sum(0)
        found[name] = _percentiles(value, mean) if np.isfinite(value) else None
    return found


@dataclass(frozen=True)
class Agreement:
    """How often two rows of answers are the same.

    Attributes:
        agreed: Equal answers, with Wilson's interval of their share.
        kappa: Cohen's kappa (1960) with a bootstrap interval over images; None where it is not defined, as where both
            gave one and the same answer throughout.
    """

    agreed: Rate
    kappa: Estimate | None


def agreement(first: npt.ArrayLike, second: npt.ArrayLike, cases: Cases, *, seed: int = 0) -> Agreement:
    """Compare two rows of answers about the same images (scikit-learn's cohen_kappa_score).

    Args:
        first: [items], answers as integers.
        second: [items], likewise.
        cases: The same images, for the bootstrap.
        seed: Of the bootstrap.
    """
    from sklearn.metrics import cohen_kappa_score

    one, other = np.asarray(first), np.asarray(second)
    agreed = rate(int((one == other).sum()), one.size)
    levels = np.unique([one, other])
    if levels.size < 2:
        return Agreement(agreed, None)
    pair = (one[:, None] == levels)[:, :, None] & (other[:, None] == levels)[:, None, :]
    tables = cases.draws(seed) @ pair.reshape(one.size, -1).astype(np.float64)
    drawn = kappa_of_tables(tables.reshape(-1, levels.size, levels.size))
    return Agreement(agreed, _percentiles(float(cohen_kappa_score(one, other)), drawn))


def kappa_of_tables(tables: npt.ArrayLike) -> FloatArray:
    """Cohen's kappa of tables of counts [..., answers, answers]; NaN where chance alone explains full agreement."""
    counts = np.asarray(tables, dtype=np.float64)
    total = counts.sum((-2, -1))
    with np.errstate(invalid="ignore"):
        observed = counts.diagonal(axis1=-2, axis2=-1).sum(-1) / total
        expected = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
        return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))


@dataclass(frozen=True)
class Times:
    """Median and quartiles of response times in seconds, pauses taken out; None without any."""

    count: int
    lower_quartile: float | None
    median: float | None
    upper_quartile: float | None


def times(seconds: npt.ArrayLike) -> Times:
    """Summarise response times [n] in seconds (quartiles by linear interpolation, NumPy's default)."""
    values = np.asarray(seconds, dtype=np.float64)
    if values.size == 0:
        return Times(0, None, None, None)
    return Times(values.size, *(float(x) for x in np.percentile(values, (25, 50, 75))))
