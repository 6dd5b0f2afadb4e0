"""The map of Fig. 9: neighbours stay neighbours, the same numbers give the same map, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.embedding import embed


def activations(n: int, seed: int = 0, d: int = 32) -> np.ndarray:
    """Of a layer with ReLU; half of the values are 0, and the last unit never answers."""
    values = np.maximum(np.random.default_rng(seed).normal(size=(n, d)), 0).astype(np.float32)
    values[:, -1] = 0
    return values


def with_its_kind(placed: np.ndarray, kind: np.ndarray) -> float:
    """Part of the rows whose nearest other row is of their kind."""
    apart = cdist(placed, placed)
    np.fill_diagonal(apart, np.inf)
    return float((kind[apart.argmin(1)] == kind).mean())


def test_classes_that_are_apart_are_apart_on_the_map() -> None:
    kind = np.repeat([0, 1, 2], 20)
    features = activations(60)
    features[np.arange(60), kind] += 8
    placed = embed(features, seed=0)
    assert placed.shape == (60, 2)
    assert placed.dtype == np.float32
    assert with_its_kind(placed, kind) == 1
    assert with_its_kind(placed, np.random.default_rng(0).permutation(kind)) < 0.6  # the measure can fail


def test_features_are_not_standardised() -> None:
    """One strong unit tells two kinds apart; sixty faint ones would drown it if each were made as loud."""
    kind = np.tile([0, 1], 20)
    features = np.random.default_rng(0).normal(0, 1e-2, (40, 61))
    features[:, 0] += kind
    assert with_its_kind(embed(features, seed=0), kind) == 1
    standardised = (features - features.mean(0)) / features.std(0)
    assert with_its_kind(embed(standardised, seed=0), kind) < 0.95


def test_the_same_numbers_give_the_same_map() -> None:
    features = activations(50)
    np.random.seed(0)  # noqa: NPY002 - it must not be asked
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    placed = embed(features, seed=4)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (embed(features.tolist(), seed=4) == placed).all()


def test_it_runs_on_one_thread_whatever_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """From some 600 rows on, two threads lead to another map than one: too slow to be shown here."""
    threads: list[int] = []
    fit = TSNE.fit_transform

    def spy(self: TSNE, features: np.ndarray) -> np.ndarray:
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        return fit(self, features)

    monkeypatch.setattr(TSNE, "fit_transform", spy)
    with threadpool_limits(3):
        embed(activations(10), seed=0)
        assert 3 in [pool["num_threads"] for pool in threadpool_info()]
    assert set(threads) == {1}


def test_perplexity_suits_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isfinite(embed(activations(4), seed=0)).all()
    asked: list[float] = []

    def spy(self: TSNE, features: np.ndarray) -> np.ndarray:
        asked.append(self.perplexity)
        assert (self.init, self.random_state) == ("pca", 7)
        return features[:, :2]

    monkeypatch.setattr(TSNE, "fit_transform", spy)
    for rows in (4, 10, 91, 92, 5000):
        embed(activations(rows), seed=7)
    embed(activations(10), seed=7, perplexity=9)
    assert asked == [1, 3, 30, 30, 30, 9]


def test_rows_that_are_alike_do_no_harm() -> None:
    features = np.repeat(activations(4), 5, axis=0)
    placed = embed(features, seed=0)
    assert np.isfinite(placed).all()
    assert with_its_kind(placed, np.repeat(np.arange(4), 5)) == 1


@pytest.mark.parametrize("shape", [(10,), (10, 1), (2, 5, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be \[N, d\] with d >= 2, got shape"):
        embed(np.zeros(shape), seed=0)


def test_features_that_cannot_be_placed_are_refused() -> None:
    with pytest.raises(DataError, match=r"features: t-SNE needs at least 4 rows, got 3\. Embed more"):
        embed(activations(3), seed=0)
    broken = activations(10)
    broken[2, 5], broken[7, 0], broken[7, 1] = np.nan, np.inf, np.nan
    with pytest.raises(DataError, match=r"features: 2 of 10 rows hold values that are not finite"):
        embed(broken, seed=0)
    with pytest.raises(DataError, match="features: all 6 rows are the same"):
        embed(np.ones((6, 8)), seed=0)


@pytest.mark.parametrize("perplexity", [0.5, 10, np.nan])
def test_a_perplexity_that_does_not_fit_is_refused(perplexity: float) -> None:
    with pytest.raises(ConfigError, match="perplexity: it must be at least 1 and below the 10 rows, got"):
        embed(activations(10), seed=0, perplexity=perplexity)
