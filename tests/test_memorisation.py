"""Memorisation: a copy is found under any flip, angle and scale, and what knows nobody is not accused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment.plan import AugmentationParams
from lesionaug.data.rois import RoiBatch
from lesionaug.evaluation.memorisation import (
    chance_of_training,
    copy_limit,
    membership_auc,
    nearer_to_training,
    nearest_views,
    num_views,
    view_params,
)

WINDOW = (-160.0, 240.0)


def lesions(count: int, seed: int) -> RoiBatch:
    """Smooth random pictures, each unlike the others."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 12, 12, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic")[:, 0] * 60 + 60
    diameters = 24 + 8 * torch.rand(count, generator=generator)
    return RoiBatch.from_images(
        list(images), [[48.0, 48.0]] * count, diameters, lesion_ids=[f"{seed}-{i}" for i in range(count)]
    )


def patches(rois: RoiBatch, roi, angle, flip, side_in_d) -> torch.Tensor:
    roi = torch.tensor(roi)
    params = AugmentationParams(
        roi, torch.tensor(angle, dtype=torch.float32), torch.tensor(flip, dtype=torch.uint8), torch.zeros(len(roi), 2),
        torch.tensor(side_in_d) * rois.diameters[roi],
    )  # fmt: skip
    return la.augment(rois, params, window=WINDOW)


def test_a_view_is_found_again() -> None:
    rois = lesions(6, 0)
    rng = np.random.default_rng(0)
    views = rng.integers(num_views(), size=40).tolist()
    who = rng.integers(6, size=40).tolist()
    found = nearest_views(la.augment(rois, view_params(rois, who, views), window=WINDOW), rois, WINDOW)
    assert found.distance.shape == (40, 6)
    assert found.distance.argmin(1).tolist() == who
    assert float(found.distance.min(1).max()) < 0.02
    assert [int(found.view[i, w]) for i, w in enumerate(who)] == views


def test_a_copy_is_found_between_the_views_and_with_other_contrast() -> None:
    rois, others = lesions(6, 0), lesions(6, 1)
    cases = list(itertools.product((17.3, 98.0, 251.4), (0, 1, 2, 3), (1.45, 1.9)))
    images = patches(rois, [i % 6 for i in range(len(cases))], *zip(*cases, strict=True))
    images = (0.7 * images + 0.1).clamp(0, 1)
    near, far = nearest_views(images, rois, WINDOW), nearest_views(images, others, WINDOW)
    assert near.distance.argmin(1).tolist() == [i % 6 for i in range(len(cases))]
    assert float(near.distance.min(1).max()) < 0.1 < float(far.distance.min())


def test_four_flips_are_two_flips_and_rotations() -> None:
    rois = lesions(1, 0)
    both = patches(rois, [0, 0], [30.0, 210.0], [3, 0], [1.6, 1.6])
    assert torch.allclose(both[0], both[1], atol=1e-4)


def test_equal_numbers_are_compared_fairly() -> None:
    """Forty training lesions against twenty held out: the chance is that of a draw of twenty, counted out."""
    rng = np.random.default_rng(0)
    train, held = rng.random((5, 6)), rng.random((5, 3))
    counted = [
        np.mean([min(draw) < h.min() for draw in itertools.combinations(t, 3)])
        for t, h in zip(train, held, strict=True)
    ]
    assert np.allclose(nearer_to_training(train, held), counted)
    assert np.allclose(nearer_to_training(held, train), 1 - np.array(counted))
    fair = nearer_to_training(rng.random((4000, 40)), rng.random((4000, 20)))
    assert fair.mean() == pytest.approx(0.5, abs=0.03)
    assert (fair >= 0).all()
    assert (fair <= 1).all()
    with pytest.raises(ValueError, match="distances must be"):
        nearer_to_training(train, held[:4])


def test_a_gan_that_copies_is_told_from_one_that_does_not() -> None:
    train, held, fresh = lesions(12, 0), lesions(8, 1), lesions(12, 2)
    angles, flips, sides = [37.0] * 12, [1] * 12, [1.7] * 12
    copies = patches(train, list(range(12)), angles, flips, sides)
    new = patches(fresh, list(range(12)), angles, flips, sides)

    def chance(images: torch.Tensor) -> float:
        known, unknown = nearest_views(images, train, WINDOW), nearest_views(images, held, WINDOW)
        return float(nearer_to_training(known.distance, unknown.distance).mean())

    assert chance(copies) > 0.6  # eight of twelve are drawn, so the copied one is there in two draws of three
    assert 0.25 < chance(new) < 0.75
    limit = copy_limit(train, WINDOW)
    assert (nearest_views(copies, train, WINDOW).distance.min(1) < limit).all()
    assert (nearest_views(new, train, WINDOW).distance.min(1) < limit).mean() < 0.3


def test_the_limit_of_a_copy_leaves_a_patients_own_lesions_out() -> None:
    """A lesion that is in the store twice, as two of one patient's, must not make everything else a copy."""
    rois = lesions(8, 0)
    images = [*rois.images, rois.images[0]]
    patients = [*"abcdefgh", "a"]
    twice = RoiBatch.from_images(
        images, torch.cat([rois.centers, rois.centers[:1]]), torch.cat([rois.diameters, rois.diameters[:1]]),
        patient_ids=patients,
    )  # fmt: skip
    assert copy_limit(twice, WINDOW) == pytest.approx(copy_limit(rois, WINDOW), abs=0.02)
    with pytest.raises(ValueError, match="at least two patients"):
        copy_limit(twice[[0, 8]], WINDOW)


def test_the_interval_does_not_accuse_who_knows_nobody() -> None:
    """Images and lesions of one law: a half is inside as often as promised, however many images there are."""
    inside = 0
    for s in range(80):
        rng = np.random.default_rng(s)
        image, train, held = (rng.normal(size=(n, 8)) for n in (400, 40, 20))
        distances = [np.linalg.norm(image[:, None] - lesions[None], axis=2) for lesions in (train, held)]
        found = chance_of_training(*distances, [str(i // 2) for i in range(40)], [str(i) for i in range(20)])
        inside += found.low <= 0.5 <= found.high
        assert 0 <= found.low <= found.value <= found.high <= 1
    assert 0.87 < inside / 80 < 0.999
    with pytest.raises(ValueError, match="at least two patients"):
        chance_of_training(*distances, ["a"] * 40, [str(i) for i in range(20)])


def test_shifted_copies_are_found() -> None:
    """The plan's shifts, of discs in noise as of smooth pictures."""
    plan = la.AugmentationPlan(n_rot=4)
    for rois, others in ((lesions(6, 0), lesions(6, 1)), (discs(6, 0), discs(6, 1))):
        shifted = [r * plan.variants + v for r in range(4) for v in range(4, 11)]
        params = plan.sample(rois, seed=3, indices=shifted)
        images = la.augment(rois, params, window=WINDOW)
        near, far = (nearest_views(images, which, WINDOW).distance for which in (rois, others))
        assert (near.argmin(1) == params.roi.numpy()).all()
        assert (near.min(1) < copy_limit(rois, WINDOW)).mean() > 0.9
        assert (far.min(1) < copy_limit(rois, WINDOW)).mean() < 0.5  # of six lesions


def discs(count: int, seed: int) -> RoiBatch:
    """Discs in smooth noise: lesions that are much alike."""
    rois = lesions(count, seed)
    y, x = torch.meshgrid(torch.arange(96.0) - 47.5, torch.arange(96.0) - 47.5, indexing="ij")
    images = [
        image - 60.0 * ((x**2 + y**2).sqrt() < float(d) / 2)
        for image, d in zip(rois.images, rois.diameters, strict=True)
    ]
    return RoiBatch.from_images(images, rois.centers, rois.diameters, lesion_ids=rois.lesion_ids)


def test_membership_is_the_mann_whitney_statistic() -> None:
    members, others = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    found = membership_auc(members, others)
    assert found.value == pytest.approx((2 + 1 + 1.5) / 6)
    assert found.low <= found.value <= found.high
    sure = membership_auc(np.arange(10, 20), np.arange(10))
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)
    rng = np.random.default_rng(0)
    blind = membership_auc(rng.random(100), rng.random(80))
    assert blind.low < 0.5 < blind.high
    with pytest.raises(ValueError, match="finite"):
        membership_auc([math.nan], [1])


def test_patients_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    scores, others = np.repeat(rng.normal(size=20), 5), rng.normal(size=40)
    alone = membership_auc(scores, others)
    together = membership_auc(scores, others, np.repeat(np.arange(20), 5))
    assert together.value == alone.value
    assert together.high - together.low > 1.2 * (alone.high - alone.low)


def test_a_constant_image_has_nothing_in_common() -> None:
    found = nearest_views(torch.full((2, 1, 64, 64), 0.5), lesions(3, 0), WINDOW)
    assert np.allclose(found.distance, 1, atol=1e-3)
