"""The random numbers of GAN training: of the right law, and functions of seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from lesionaug.training.draws import draw_classes, draw_noise, draw_order, draw_transforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind, law", [("uniform", stats.uniform(-1, 2)), ("normal", stats.norm())])
def test_noise_follows_its_law(kind, law) -> None:
    z = draw_noise(kind, 5, 3, 200, 100, CPU)
    assert z.shape == (200, 100)
    assert z.dtype == torch.float32
    assert stats.kstest(z.flatten().numpy(), law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(z[:, :-1].flatten(), z[:, 1:].flatten())[0, 1]) < 0.03
    assert float(z.isfinite().all())


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_depends_on_seed_step_and_place_alone(kind) -> None:
    z = draw_noise(kind, 5, 3, 64, 100, CPU)
    assert torch.equal(draw_noise(kind, 5, 3, 64, 100, CPU), z)
    assert torch.equal(draw_noise(kind, 5, 3, 10, 100, CPU), z[:10])  # a smaller sample is the beginning of a larger
    for seed, step in ((6, 3), (5, 4), (2**63 - 1, 3)):
        assert not torch.equal(draw_noise(kind, seed, step, 64, 100, CPU), z)
    assert draw_noise(kind, 5, 3, 3, 7, CPU).shape == (3, 7)


def test_classes_are_equally_likely() -> None:
    labels = draw_classes(1, 9, 30_000, 3, CPU)
    counts = torch.bincount(labels)
    assert len(counts) == 3
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_an_order_is_a_permutation_of_its_epoch() -> None:
    first, second = draw_order(1, 0, 1000, CPU), draw_order(1, 1, 1000, CPU)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)


def test_transforms_are_uniform_and_apart_from_the_noise() -> None:
    u = draw_transforms(5, 3, 2000, CPU)
    assert u.shape == (2000, 12)
    assert 0 < float(u.min()) < float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    z = draw_noise("uniform", 5, 3, 2000, 12, CPU)
    assert abs(np.corrcoef(u.flatten(), z.flatten())[0, 1]) < 0.03
