"""Augmentation inside the discriminator: what it does to pictures, its gradients, and how its strength adapts."""

from __future__ import annotations

import pytest
import torch

from lesionaug.training.differentiable import DiscriminatorAugmentation, adapt, transform
from lesionaug.training.gan import Gan, GanConfig, train_step
from tests.test_gan_training import CONFIG, batches

ALL = DiscriminatorAugmentation()
STILL = DiscriminatorAugmentation(shift=0, zoom=0, brightness=0, contrast=0)


def often(value: float = 1.0) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pictures(count: int = 64, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 8, 8, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")


def test_never_is_the_identity() -> None:
    images = pictures()
    assert torch.allclose(transform(images, ALL, often(0), 1, 2, 0), images, atol=1e-6)


def test_half_the_pictures_are_moved_and_half_are_shaded() -> None:
    images = torch.linspace(-1, 1, 32).view(1, 1, 1, 32).expand(2000, 1, 32, 32).contiguous()
    only_moved = DiscriminatorAugmentation(brightness=0, contrast=0)
    moved = (transform(images, only_moved, often(0.5), 1, 2, 0) - images).abs().amax(dim=(1, 2, 3)) > 1e-3
    only_shaded = DiscriminatorAugmentation(shift=0, zoom=0, brightness=0.2, contrast=0.2)
    flat = torch.zeros(2000, 1, 8, 8)
    shaded = transform(flat, only_shaded, often(0.5), 1, 2, 0).abs().amax(dim=(1, 2, 3)) > 1e-3
    for share in (moved, shaded):
        assert float(share.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_turns_and_flips_keep_what_a_disc_shows() -> None:
    """About the middle of the picture: a ring's mean does not change, and pictures are mirrored as often as not."""
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    radius, images = (x**2 + y**2).sqrt(), pictures()
    seen = transform(images, STILL, often(), 1, 2, 0)
    inside = radius < 10
    assert torch.allclose(seen[:, 0, inside].mean(1), images[:, 0, inside].mean(1), atol=0.02)
    assert not torch.allclose(seen, images, atol=0.1)
    # three marks in the order red, green, blue round the middle: a mirrored picture has them the other way round
    marks = torch.zeros(400, 3, 32, 32)
    for channel, degrees in enumerate((0.0, 90.0, 180.0)):
        a = torch.deg2rad(torch.tensor(degrees))
        marks[:, channel] = torch.exp(-((x - 9 * a.cos()) ** 2 + (y - 9 * a.sin()) ** 2) / 8)
    seen = transform(marks, STILL, often(), 1, 2, 0)
    weight = seen / seen.sum(dim=(2, 3), keepdim=True)
    px, py = (weight * x).sum(dim=(2, 3)), (weight * y).sum(dim=(2, 3))
    turn = px[:, 0] * py[:, 1] - py[:, 0] * px[:, 1]
    assert float((turn > 0).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_shifts_and_zooms_are_within_their_limits() -> None:
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    blob = torch.exp(-(x**2 + y**2) / 50).expand(500, 1, 64, 64).contiguous()
    moved = transform(blob, DiscriminatorAugmentation(zoom=0, brightness=0, contrast=0), often(), 1, 2, 0)
    weight = moved[:, 0] / moved[:, 0].sum(dim=(1, 2), keepdim=True)
    away = torch.stack([(weight * x).sum(dim=(1, 2)), (weight * y).sum(dim=(1, 2))], 1)
    assert 0.9 * 8 * 2**0.5 < float(away.norm(dim=1).max()) < 1.02 * 8 * 2**0.5
    zoomed = transform(blob, DiscriminatorAugmentation(shift=0, brightness=0, contrast=0), often(), 1, 2, 0)
    area = zoomed.sum(dim=(1, 2, 3)) / blob[0].sum()
    assert 1 / 1.2**2 - 0.01 < float(area.min()) < 0.73
    assert 1.37 < float(area.max()) < 1.2**2 + 0.01


def test_brightness_and_contrast_are_within_their_limits() -> None:
    images = pictures(2000, 8)
    seen = transform(images, DiscriminatorAugmentation(shift=0, zoom=0), often(), 1, 2, 0)
    brighter = seen.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert float(brighter.abs().max()) < 0.2 + 0.1  # turning changes the mean of a picture's corners a little
    plain = transform(images, STILL, often(), 1, 2, 0)
    brighter = seen.mean(dim=(1, 2, 3)) - plain.mean(dim=(1, 2, 3))
    ratio = seen.std(dim=(1, 2, 3)) / plain.std(dim=(1, 2, 3))
    assert 0.19 < float(brighter.abs().max()) <= 0.2001
    assert 1 / 1.2 - 1e-3 <= float(ratio.min()) < 0.85
    assert 1.18 < float(ratio.max()) <= 1.2 + 1e-3
    assert abs(float(torch.corrcoef(torch.stack([brighter, ratio.log()]))[0, 1])) < 0.08


def test_it_depends_on_seed_step_turn_and_place_alone() -> None:
    images = pictures()
    first = transform(images, ALL, often(), 1, 2, 0)
    assert torch.equal(transform(images, ALL, often(), 1, 2, 0), first)
    assert torch.equal(transform(images[:5], ALL, often(), 1, 2, 0), first[:5])
    for seed, step, turn in ((2, 2, 0), (1, 3, 0), (1, 2, 1), (1, 2, 2)):
        assert not torch.allclose(transform(images, ALL, often(), seed, step, turn), first, atol=0.01)


def test_gradients_come_back_and_again() -> None:
    images = pictures(3, 8).double().requires_grad_()
    function = lambda x: transform(x, ALL, often(), 1, 2, 0)  # noqa: E731
    assert torch.autograd.gradcheck(function, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, images, fast_mode=True)


def test_the_probability_follows_how_sure_the_discriminator_is() -> None:
    config = DiscriminatorAugmentation(probability=0.5, adaptive=True, speed=0.001)
    p = often(0.5)
    adapt(p, config, torch.ones(50))
    assert float(p) == pytest.approx(0.55)
    adapt(p, config, torch.tensor([1.0, -1.0] * 25))
    assert float(p) == pytest.approx(0.5)
    for _ in range(30):
        adapt(p, config, torch.ones(50))
    assert float(p) == 1
    for _ in range(60):
        adapt(p, config, -torch.ones(50))
    assert float(p) == 0
    fixed = often(0.5)
    adapt(fixed, DiscriminatorAugmentation(probability=0.5), torch.ones(50))
    assert float(fixed) == 0.5


def test_the_generator_learns_through_it() -> None:
    config = CONFIG.model_copy(update={"augment": ALL, "r1": 1.0, "loss": "hinge"})
    gan = Gan.build(config, 3, 0)
    before = [p.clone() for p in gan.generator.parameters()]
    metrics = train_step(gan, *batches(config).batch(0))
    assert bool(metrics[:4].isfinite().all())
    assert all(not torch.equal(a, b) for a, b in zip(before, gan.generator.parameters(), strict=True))
    plain = Gan.build(CONFIG, 3, 0)
    assert "augmenting" in plain.tensors()
    assert GanConfig().augment is None
