"""Whether real and synthetic images can be told apart by how their numbers are written, which no reader looks at.

What a picture shows is not asked here, only traces of resizing and rounding: grey values that never occur, neighbours
that are equal too often, even and odd values; and apart from these, pixels at the very ends of the window. A small
logistic regression on these is cross-validated, and its accuracy compared with that under shuffled origins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesionaug.study.files import LARGEST_VALUE

EDGE_LEVELS = 2  # at each end of the window these are one: a tanh never quite gets to where clipped HU are
SIGNIFICANT = 0.05
_FOLDS, _PERMUTATIONS, _STEPS, _RIDGE = 5, 199, 6, 1.0
_ENOUGH = 20  # shuffled origins that give as much: no need to go on
_FEW_STEPS = 8
_FAST = 3  # levels from pixel to pixel
_Levels = npt.NDArray[np.int64]

ROUNDING = ("odd values", "values 1 of 4", "values 2 of 4", "values that never occur", "equal neighbours")
ENDS = ("pixels at the lower end", "pixels at the upper end")


@dataclass(frozen=True)
class Told:
    """How well a classifier tells origins by some statistics.

    Attributes:
        balanced_accuracy: Cross-validated; 0.5 is chance.
        p_value: Share of shuffled origins that give at least as much.
        auc: Of each statistic alone; 0.5 is chance, above it synthetic images have more.
    """

    balanced_accuracy: float
    p_value: float
    auc: Mapping[str, float]

    @property
    def better_than_chance(self) -> bool:
        """One study in twenty is, by chance."""
        return self.p_value < SIGNIFICANT and self.balanced_accuracy > 0.5

    def __str__(self) -> str:
        worst = max(self.auc, key=lambda name: abs(self.auc[name] - 0.5))
        found = f"balanced accuracy {self.balanced_accuracy:.2f}, p = {self.p_value:.3f}"
        return f"{found}; {worst}: AUC {self.auc[worst]:.2f}"


@dataclass(frozen=True)
class EncodingCheck:
    """What a classifier makes of traces of the encoding.

    Attributes:
        rounding: By traces of rounding and resizing.
        ends: By the number of pixels at the ends of the window.
    """

    rounding: Told
    ends: Told

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each where origins can be told."""
        said = []
        if self.rounding.better_than_chance:
            said.append(
                f"real and synthetic images differ in how their pixels are rounded or resized ({self.rounding}): see "
                "that both are of one configuration, and say so where you publish"
            )
        if self.ends.better_than_chance:
            said.append(
                f"real and synthetic images differ in how many pixels lie at the ends of the window ({self.ends}): "
                "a part of the picture rather than of its encoding, but one that needs no reader"
            )
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"most_permutations": _PERMUTATIONS, "rounding": asdict(self.rounding), "ends": asdict(self.ends)}


def num_levels(window_hu: tuple[float, float]) -> int:
    """Steps of the pixels of a study: one HU each, where that is 8 to 10 bits."""
    return min(max(round(window_hu[1] - window_hu[0]) + 1, 256), 1024)


def quantise(images: npt.NDArray[np.floating[Any]], levels: int) -> npt.NDArray[np.uint16]:
    """Write images as a study shows them, real and synthetic alike.

    Args:
        images: In (0, 1), the range of the window.
        levels: See `num_levels`.

    Returns:
        uint16 of the same shape, 0 .. 65535 linear over the window, on `levels` equal steps less those at its ends.
    """
    steps = np.rint(np.asarray(images, dtype=np.float64) * (levels - 1))
    steps = np.clip(steps, EDGE_LEVELS, levels - 1 - EDGE_LEVELS)
    return np.rint(steps * (LARGEST_VALUE / (levels - 1))).astype(np.uint16)


def encoding_check(images: npt.NDArray[np.uint16], synthetic: npt.NDArray[np.bool_], levels: int) -> EncodingCheck:
    """Try to tell synthetic images by traces of their encoding.

    Args:
        images: [N, S, S], of `quantise`.
        synthetic: [N], both kinds must occur.
        levels: Of the quantisation.
    """
    steps = np.rint(images.astype(np.float64) * ((levels - 1) / LARGEST_VALUE)).astype(np.int64)
    rounding = np.array([_rounding(image, levels) for image in steps])
    ends = np.array([[np.log1p(np.count_nonzero(image == end)) for end in _ends(levels)] for image in steps])
    return EncodingCheck(_told(rounding, ROUNDING, synthetic), _told(ends, ENDS, synthetic))


def _told(table: npt.NDArray[np.float64], names: tuple[str, ...], truth: npt.NDArray[np.bool_]) -> Told:
    auc = {name: _auc(table[:, i], truth) for i, name in enumerate(names)}
    spread = table.std(axis=0)
    table = (table - table.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    table = np.column_stack([table, np.ones(len(table))])
    draws = np.random.default_rng(0)
    found = _balanced_accuracy(table, truth, draws)
    tries = as_good = 0
    while tries < _PERMUTATIONS and as_good < _ENOUGH:
        tries += 1
        as_good += _balanced_accuracy(table, draws.permutation(truth), draws) >= found
    # Stopped early it is far from small, and this is its value (Besag and Clifford 1991).
    p_value = as_good / tries if as_good == _ENOUGH else (1 + as_good) / (1 + tries)
    return Told(found, p_value, auc)


def _ends(levels: int) -> tuple[int, int]:
    return EDGE_LEVELS, levels - 1 - EDGE_LEVELS


def _rounding(image: _Levels, levels: int) -> list[float]:
    """The numbers of `ROUNDING`, each made so that contrast, sharpness and texture hardly move it."""
    low, high = _ends(levels)
    inside = image[(image > low) & (image < high)]
    bits, missing = [0.5, 0.25, 0.25], 0.0  # of an image of a few steps alone they would be its picture
    first, last = (int(value) for value in np.percentile(inside, (20, 80))) if len(inside) else (0, 0)
    if last - first >= _FEW_STEPS:
        share = np.bincount(inside % 4, minlength=4) / len(inside)
        bits = [share[1] + share[3], share[1], share[2]]
        # In the middle of the histogram every step has many pixels, unless the rounding leaves it out.
        missing = 1 - len(np.unique(inside[(inside >= first) & (inside <= last)])) / (last - first + 1)
    # Where values change fast, differences of 0 are half as frequent as those of 1 and -1 together.
    equal = one_apart = 0
    for axis in (0, 1):
        apart = np.abs(np.diff(np.moveaxis(image, axis, 0), axis=0))
        between = apart[1:-1][(apart[:-2] >= _FAST) & (apart[2:] >= _FAST)]
        equal, one_apart = equal + int((between == 0).sum()), one_apart + int((between == 1).sum())
    ties = (equal + 1) / (equal + one_apart / 2 + 2)
    return [*(float(value) for value in bits), missing, ties]


def _balanced_accuracy(
    table: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], draws: np.random.Generator
) -> float:
    """Of a ridge logistic regression [N, features + 1], cross-validated in folds that hold both kinds alike."""
    fold = np.empty(len(truth), dtype=np.int64)
    for kind in (False, True):
        members = draws.permutation(np.flatnonzero(truth == kind))
        fold[members] = np.arange(len(members)) % _FOLDS
    said = np.zeros(len(truth), dtype=bool)
    for number in range(_FOLDS):
        inner = fold != number
        if len(set(truth[inner].tolist())) == 2:
            said[~inner] = table[~inner] @ _fit(table[inner], truth[inner]) > 0
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)


def _fit(table: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Weights by Newton steps; both kinds weigh the same."""
    share = np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
    penalty = np.full(table.shape[1], _RIDGE)
    penalty[-1] = 1e-6
    weights = np.zeros(table.shape[1])
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(table @ weights, -30, 30)))
        slope = table.T @ (share * (probability - truth)) + penalty * weights
        curvature = (table * (share * probability * (1 - probability) + 1e-9)[:, None]).T @ table + np.diag(penalty)
        weights = weights - np.linalg.solve(curvature, slope)
    return weights


def _auc(values: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    above = values[truth][:, None] - values[~truth][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())
