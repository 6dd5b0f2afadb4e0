"""Distances between sets of images: exact facts, plain formulas, and what the intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from lesionaug.evaluation import distances
from lesionaug.evaluation.distances import diversity, frechet_distance, kernel_distance, neighbourhoods


def normal(n: int, d: int = 8, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def plain_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The estimator as Binkowski et al. print it, pair by pair."""
    kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (m * n)
    return xx + yy - 2 * xy


def test_kid_is_its_formula() -> None:
    x, y = normal(9), normal(7, shift=0.5, seed=1)
    assert kernel_distance(x, y).value == pytest.approx(plain_kid(x, y), rel=1e-12)


def test_pairs_within_a_block_stay_out() -> None:
    x, y = normal(6), normal(8, seed=1)
    blocks = [0, 0, 1, 1, 2, 2]
    kernel = lambda a, b: (a @ b / 8 + 1) ** 3  # noqa: E731
    pairs = [kernel(x[i], x[j]) for i in range(6) for j in range(6) if blocks[i] != blocks[j]]
    yy = [kernel(y[i], y[j]) for i in range(8) for j in range(8) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    wanted = np.mean(pairs) + np.mean(yy) - 2 * np.mean(xy)
    assert kernel_distance(x, y, blocks).value == pytest.approx(wanted, rel=1e-12)
    assert kernel_distance(y, x, None, blocks).value == pytest.approx(wanted, rel=1e-12)
    assert kernel_distance(x, y, list("aabbcc")).value == pytest.approx(wanted, rel=1e-12)


def test_repeating_lesions_does_not_make_sets_alike_or_sure() -> None:
    """Ten copies of each of twelve images are no more images than twelve."""
    x, y = normal(12), normal(12, seed=1)
    many, block = np.repeat(x, 10, axis=0), np.repeat(np.arange(12), 10)
    once, again = kernel_distance(x, y), kernel_distance(many, y, block)
    assert again.value == pytest.approx(once.value, rel=1e-9)
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.1)
    naive = kernel_distance(many, y)  # what blocks are for
    assert naive.high - naive.low < 0.8 * (once.high - once.low)


def test_a_set_against_itself_is_what_a_set_against_another_is() -> None:
    """Names that both sides have: a lesion is not compared with itself, nor drawn twice."""
    block = np.repeat(np.arange(20), 3)
    values, found = [], []
    for s in range(100):
        x = np.repeat(normal(20, seed=s), 3, axis=0) + 0.1 * normal(60, seed=500 + s)
        found.append(kernel_distance(x, x, block, block, draws=200, seed=s))
        values.append(found[-1].value)
        assert kernel_distance(x, x, block, block + 1000, draws=2).value < values[-1]  # other names: each beside itself
    assert abs(np.mean(values)) < 1e-9
    assert all(abs(each.low) < 1e-9 and abs(each.high) < 1e-9 for each in found)


def test_kid_of_one_law_is_nought_on_average_and_grows_with_the_shift() -> None:
    values = [kernel_distance(normal(30, seed=s), normal(30, seed=1000 + s), draws=2).value for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    shifted = [kernel_distance(normal(60), normal(60, shift=s, seed=1)).value for s in (0, 0.5, 1, 2)]
    assert shifted == sorted(shifted)


def test_the_interval_covers_as_often_as_it_says() -> None:
    truth = kernel_distance(normal(2000, 4), normal(2000, 4, shift=0.5, seed=1), draws=2).value
    hits = 0
    for s in range(120):
        blocks = np.repeat(np.arange(25), 2)
        x = np.repeat(normal(25, 4, seed=10 + s), 2, axis=0) + 0.05 * normal(50, 4, seed=7000 + s)
        found = kernel_distance(x, normal(50, 4, shift=0.5, seed=9000 + s), blocks, draws=300)
        hits += found.low <= truth <= found.high
    assert hits / 120 > 0.85


def test_large_sets_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "LARGEST_SAMPLE", 50)
    found = kernel_distance(normal(500), normal(400, shift=1, seed=1))
    assert found == kernel_distance(normal(500), normal(400, shift=1, seed=1))
    monkeypatch.undo()
    assert found.low < kernel_distance(normal(500), normal(400, shift=1, seed=1)).value < found.high


@pytest.mark.parametrize(
    "x, y, options, message",
    [
        (normal(1), normal(5), {}, "at least two images"),
        (normal(4), normal(5), {"blocks": [0, 0, 0, 0]}, "do not belong together"),
        (normal(4), normal(5, 9), {}, "features have 8 values, the reference 9"),
        (normal(4) * np.inf, normal(5), {}, "finite"),
        (normal(4), normal(5), {"blocks": [0, 1]}, r"blocks must be \[4\]"),
    ],
)
def test_what_makes_no_sense_is_refused(x, y, options, message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
        kernel_distance(x, y, **options)


def test_neighbourhoods_of_plain_cases() -> None:
    line = np.arange(20.0)[:, None]
    same = neighbourhoods(line, line, k=2)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = neighbourhoods(line + 1000, line, k=2)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    half = neighbourhoods(line[:10], line, k=1)  # one mode of two
    assert half.precision == 1
    assert half.coverage == pytest.approx(11 / 20)  # the one at 10 reaches to 9
    assert neighbourhoods(line[:3], line, k=5).k == 2


def test_more_images_cover_more_and_a_common_size_is_fair() -> None:
    real, made = normal(40, 6), normal(400, 6, seed=1)
    held = neighbourhoods(normal(20, 6, seed=2), real)
    assert neighbourhoods(made, real).coverage > held.coverage + 0.1
    fair = neighbourhoods(made, real, size=20)
    assert fair.coverage == pytest.approx(held.coverage, abs=0.15)
    assert fair.k == held.k
    assert fair == neighbourhoods(made, real, size=20)
    half = made[made[:, 0] > 0]  # one half of the space
    assert neighbourhoods(half, real, size=20).coverage < fair.coverage - 0.1


def test_coverage_is_not_fooled_by_an_outlier_and_density_counts() -> None:
    """The examples of Naeem et al. 2020: one far real image must not make everything precise."""
    real = np.concatenate([normal(50, 2), [[100.0, 100.0]]])
    fake = normal(50, 2, shift=20, seed=1)
    found = neighbourhoods(fake, real)
    assert found.precision == 1
    assert found.density == pytest.approx(1 / found.k)
    assert found.coverage < 0.05


def test_the_frechet_distance_is_its_formula_and_warns() -> None:
    x, y = normal(60), normal(50, shift=0.3, seed=1) * 1.5
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root
    )
    found = frechet_distance(x, y)
    assert found.value == pytest.approx(wanted, rel=1e-8)
    assert "from 50 independent images and 8 features" in found.warning
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-8)
    assert frechet_distance(normal(3000, 2), normal(3000, 2, seed=1)).warning == ""


def test_collapse_is_seen() -> None:
    real = normal(60)
    fine = diversity(normal(100, seed=1), real)
    assert not fine.collapsed
    assert fine.spread == pytest.approx(1, abs=0.1)
    assert diversity(normal(1, seed=1) + 0.1 * normal(100, seed=2), real).collapsed  # one mode
    few = np.repeat(normal(5, seed=1), 20, axis=0) + 0.01 * normal(100, seed=2)  # five images again and again
    found = diversity(few, real)
    assert found.collapsed
    assert found.doubles == 1
    blocks = np.repeat(np.arange(30), 2)
    twins = np.repeat(normal(30), 2, axis=0) + 1e-6 * normal(60, seed=3)
    assert diversity(normal(100, seed=1), twins, blocks).doubles < 0.2  # augmentations are no yardstick
