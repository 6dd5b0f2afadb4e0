"""How far synthetic images are from real ones, in the features of a classifier: distances that hold for few lesions.

Real images come in blocks (a lesion's augmentations, a patient's lesions) that resemble each other; pairs within a
block are left out of every mean, and intervals draw blocks, not images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LARGEST_SAMPLE = 2000  # images of either kind that a distance is taken of; more are drawn from at random
FEW_FOR_FRECHET = 2048  # below this the Frechet distance says more of the sample's size than of the images


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def kernel_distance(
    features: npt.ArrayLike,
    reference: npt.ArrayLike,
    blocks: npt.ArrayLike | None = None,
    reference_blocks: npt.ArrayLike | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """KID (Binkowski et al. 2018): the squared maximum mean discrepancy with the kernel (a.b / d + 1)^3, unbiased.

    It may be below zero where two sets are alike. All images are used, up to `LARGEST_SAMPLE` of each.

    Args:
        features: [N, d].
        reference: [M, d].
        blocks: [N], what images belong together; each by itself when None. A name that both sides have is one block.
        reference_blocks: [M], likewise.
        draws: Of the block bootstrap behind the interval. A pair of images is weighed by how often its two blocks were
            drawn; pairs within a block stay out, so that a block drawn twice is not compared with itself.
        seed: Of the bootstrap.

    Raises:
        ValueError: Fewer than two blocks of either, values that are not finite, sizes that do not fit.
    """
    x, name_x = _sample(features, blocks, seed)
    y, name_y = _sample(reference, reference_blocks, seed + 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have {x.shape[1]} values, the reference {y.shape[1]}")
    # Images without blocks are blocks of their own, and no one else's.
    keys_x = [("x", i) if blocks is None else ("", str(name)) for i, name in enumerate(name_x)]
    keys_y = [("y", i) if reference_blocks is None else ("", str(name)) for i, name in enumerate(name_y)]
    place = {key: i for i, key in enumerate(sorted({*keys_x, *keys_y}))}
    block_x, block_y = (np.array([place[key] for key in keys]) for keys in (keys_x, keys_y))
    count = len(place)
    size_x, size_y = (np.bincount(block, minlength=count).astype(float) for block in (block_x, block_y))
    # Sums over the images of each pair of blocks: the bootstrap then works on blocks alone.
    side_x, side_y = (x, block_x, size_x), (y, block_y, size_y)
    pairs = [
        (_block_sums(*one[:2], *other[:2], count), one[2], other[2])
        for one, other in ((side_x, side_x), (side_y, side_y), (side_x, side_y))
    ]

    def distance(weight: FloatArray) -> FloatArray:  # [draws, blocks]
        means = [
            ((weight @ sums) * weight).sum(1) / ((weight @ one) * (weight @ other) - (weight**2) @ (one * other))
            for sums, one, other in pairs
        ]
        return np.asarray(means[0] + means[1] - 2 * means[2])

    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, count))
    for group in ((size_x > 0) & (size_y > 0), (size_x > 0) & (size_y == 0), (size_x == 0) & (size_y > 0)):
        members = int(group.sum())
        if members:
            weights[:, group] = rng.multinomial(members, np.full(members, 1 / members), draws)
    with np.errstate(invalid="ignore", divide="ignore"):  # one block drawn every time: left out
        drawn = distance(weights)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Estimate(float(distance(np.ones((1, count)))[0]), float(low), float(high))


def _sample(
    features: npt.ArrayLike, blocks: npt.ArrayLike | None, seed: int, most: int | None = None
) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Features and the names of their blocks, checked, at most `most` of them."""
    most = LARGEST_SAMPLE if most is None else most
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"features must be finite and [N, d], got shape {x.shape}")
    names = np.arange(len(x)) if blocks is None else np.asarray(blocks)
    if names.shape != x.shape[:1]:
        raise ValueError(f"blocks must be [{len(x)}], got {names.shape}")
    if len(x) > most:
        chosen = np.random.default_rng(seed).choice(len(x), most, replace=False)
        x, names = x[chosen], names[chosen]
    if len(np.unique(names)) < 2:
        raise ValueError(f"at least two images that do not belong together are needed, got {len(x)}")
    return x, names


def _block_sums(x: FloatArray, block_x: IntArray, y: FloatArray, block_y: IntArray, count: int) -> FloatArray:
    """Sums of the kernel over the images of each pair of different blocks, [count, count]."""
    kernel = (x @ y.T / x.shape[1] + 1) ** 3
    sums = np.zeros((count, len(y)))
    np.add.at(sums, block_x, kernel)
    pairs = np.zeros((count, count))
    np.add.at(pairs, block_y, sums.T)
    pairs = pairs.T.copy()
    np.fill_diagonal(pairs, 0)
    return pairs


@dataclass(frozen=True)
class Neighbourhoods:
    """What synthetic and real images are among each other's neighbours; fractions, density may be above 1.

    Attributes:
        precision: Synthetic images within the reach of a real one (Kynkaanniemi et al. 2019).
        recall: Real images within the reach of a synthetic one.
        density: How many real ones' reach a synthetic image lies in, over k (Naeem et al. 2020).
        coverage: Real images in whose reach a synthetic one lies.
        k: Neighbours that make the reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int


def neighbourhoods(
    features: npt.ArrayLike,
    reference: npt.ArrayLike,
    k: int = 5,
    *,
    size: int | None = None,
    draws: int = 50,
    seed: int = 0,
) -> Neighbourhoods:
    """Precision, recall, density and coverage of images against a reference.

    All four grow or shrink with the number of images: compare numbers of one `size` and k only.

    Args:
        features: [N, d], at least two.
        reference: [M, d], at least two; images of one block count as they are, so give one of each.
        k: Neighbours; fewer where there are not so many images.
        size: Take the mean over `draws` random choices of so many of the N images.
        draws: How many.
        seed: Of the choices.
    """
    from scipy.spatial.distance import cdist

    x, _ = _sample(features, None, 0)
    y, _ = _sample(reference, None, 1)
    size = len(x) if size is None else min(size, len(x))
    k = min(k, size - 1, len(y) - 1)
    among_x, apart = cdist(x, x), cdist(x, y)
    reach_y = np.sort(cdist(y, y), axis=1)[:, k]  # column 0 is the image itself
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if size < len(x) else 1):
        chosen = rng.choice(len(x), size, replace=False) if size < len(x) else np.arange(len(x))
        reach_x = np.sort(among_x[np.ix_(chosen, chosen)], axis=1)[:, k]
        in_y = apart[chosen] <= reach_y[None, :]
        recalled = (apart[chosen] <= reach_x[:, None]).any(axis=0)
        found.append((in_y.any(axis=1).mean(), recalled.mean(), in_y.sum(axis=1).mean() / k, in_y.any(axis=0).mean()))
    precision, recall, density, coverage = (float(value) for value in np.mean(found, axis=0))
    return Neighbourhoods(precision, recall, density, coverage, k)


@dataclass(frozen=True)
class FrechetDistance:
    """FID and whether it can be relied upon; `warning` is empty where it can."""

    value: float
    warning: str


def frechet_distance(
    features: npt.ArrayLike, reference: npt.ArrayLike, num_independent: int | None = None
) -> FrechetDistance:
    """FID (Heusel et al. 2017): the Frechet distance of two normal distributions fitted to the features.

    Args:
        features: [N, d].
        reference: [M, d].
        num_independent: Of the smaller set, how many images are not augmentations of each other; all when None.
    """
    x, _ = _sample(features, None, 0, most=len(np.asarray(features)))
    y, _ = _sample(reference, None, 1, most=len(np.asarray(reference)))
    cov_x, cov_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    # tr sqrt(A B) by the eigenvalues of sqrt(A) B sqrt(A), which is symmetric and not negative
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_y @ root), 0)).sum()
    value = float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * middle)
    fewest = min(len(x), len(y)) if num_independent is None else num_independent
    warning = ""
    if fewest < FEW_FOR_FRECHET:
        warning = (
            f"from {fewest} independent images and {x.shape[1]} features: too large, the more so the fewer; prefer KID"
        )
    return FrechetDistance(max(value, 0.0), warning)


@dataclass(frozen=True)
class Diversity:
    """How much images differ among themselves, against real ones of their class.

    Attributes:
        spread: Median distance of two images, over that of two real images (of other blocks).
        doubles: Part of the images with another one nearer than 99 of 100 real images have.
        collapsed: Whether either says that the generator makes too few different images.
    """

    spread: float
    doubles: float
    collapsed: bool


def diversity(
    features: npt.ArrayLike, reference: npt.ArrayLike, reference_blocks: npt.ArrayLike | None = None
) -> Diversity:
    """Compare the distances of images among themselves with those of real ones.

    Args:
        features: [N, d].
        reference: [M, d].
        reference_blocks: [M], what real images belong together.
    """
    from scipy.spatial.distance import cdist

    x, _ = _sample(features, None, 0)
    y, names = _sample(reference, reference_blocks, 1)
    _, block = np.unique(names, return_inverse=True)
    among_x, among_y = cdist(x, x), cdist(y, y)
    other = block[:, None] != block[None, :]
    np.fill_diagonal(among_x, np.inf)
    real = among_y[other]
    spread = float(np.median(among_x[np.isfinite(among_x)]) / max(float(np.median(real)), 1e-12))
    nearest_real = np.where(other, among_y, np.inf).min(axis=1)
    doubles = float((among_x.min(axis=1) < np.quantile(nearest_real, 0.01)).mean())
    return Diversity(spread, doubles, bool(spread < 0.5 or doubles > 0.2))
