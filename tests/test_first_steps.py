"""The paper's models at their real sizes: the first twenty steps of each, beside loops as a textbook has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lesionaug.experiment.config import preset
from lesionaug.experiment.gan_config import gan_preset
from lesionaug.models.dcgan import Discriminator, Generator
from lesionaug.training.classifier import build_classifier, train_classifier
from lesionaug.training.draws import draw_classes, draw_kept, draw_noise, draw_order
from lesionaug.training.gan import METRICS, Gan, train_step
from lesionaug.training.gan_batches import PoolBatches

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]
CPU = torch.device("cpu")
STEPS = 20


def lesion_like(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Discs of three contrasts on a noisy ground."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    x = torch.arange(64) - 31.5
    disc = torch.sigmoid(20 - (x[:, None] ** 2 + x**2).sqrt())
    noise = 0.05 * torch.randn(count, 1, 64, 64, generator=generator)
    return (0.6 - (0.1 + 0.15 * labels.view(-1, 1, 1, 1)) * disc + noise).clamp(0, 1), labels


def test_the_cnn_of_the_paper() -> None:
    config = preset("paper")
    images, labels = lesion_like(300)  # the fifth batch of an epoch is a smaller one
    trained = train_classifier(
        images, labels, config.classifier.model_copy(update={"steps": STEPS}), num_classes=3, cnn=config.cnn, seed=5
    )
    layers = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4608, 256), nn.ReLU(),
    )  # fmt: skip
    output = nn.Linear(256, 3)
    weights = [*layers.parameters(), *output.parameters()]
    for weight, start in zip(weights, build_classifier(config.cnn, 3, 5).parameters(), strict=True):
        weight.data.copy_(start)
    optimizer = torch.optim.SGD(weights, lr=0.001, momentum=0.9, nesterov=True)
    losses = []
    for step in range(STEPS):
        epoch, place = divmod(step, 5)
        chosen = draw_order(5, epoch, 300, CPU)[64 * place : 64 * place + 64]
        features = layers(images[chosen] - images.mean())
        features = features * draw_kept(5, step, len(chosen), 256, 0.5, CPU) * 2
        loss = functional.cross_entropy(output(features), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(chosen))
    for ours, theirs in zip(trained.model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    epochs = [sum(losses[i : i + 5]) / 300 for i in range(0, STEPS, 5)]
    assert [line.loss for line in trained.history] == pytest.approx(epochs, abs=1e-4)
    assert epochs[-1] < epochs[0]


@pytest.mark.parametrize("kind", ["dcgan", "acgan"])
def test_the_gans_of_the_paper(kind) -> None:
    config = gan_preset("paper", kind).gan
    source = PoolBatches(*lesion_like(128), config.batch_size, 0)
    gan = Gan.build(config, 3, 7)
    classes = gan.num_classes
    g, d = Generator(config.network, classes), Discriminator(config.network, classes, config.conditioning)
    g.load_state_dict(gan.generator.state_dict())
    d.load_state_dict(gan.discriminator.state_dict())
    rows = torch.stack([train_step(gan, *source.batch(step)) for step in range(STEPS)])
    # The first step, spelled out.
    x, labels = source.batch(0)
    y = draw_classes(7, 0, 64, 3, CPU) if classes else None
    fake = g(draw_noise("uniform", 7, 0, 64, 100, CPU), y)
    (real_logits, real_classes), (fake_logits, fake_classes) = d(x), d(fake)
    loss = functional.binary_cross_entropy_with_logits(real_logits, torch.ones(64))
    loss = loss + functional.binary_cross_entropy_with_logits(fake_logits, torch.zeros(64))
    if classes:
        loss = loss + functional.cross_entropy(real_classes, labels) + functional.cross_entropy(fake_classes, y)
    assert rows[0, 0].item() == pytest.approx(loss.item(), abs=1e-4)
    named = dict(zip(METRICS, rows.T, strict=True))
    assert all(named[name].isfinite().all() for name in ("loss_d", "loss_g", "d_real", "d_fake"))
    assert named["d_real"][-5:].mean() > named["d_fake"][-5:].mean()  # D has begun to tell them apart
    assert all(math.isnan(value) != bool(classes) for value in named["class_real"].tolist())
    moved = max((a - b).abs().max().item() for a, b in zip(gan.generator.parameters(), g.parameters(), strict=True))
    assert 1e-4 < moved < STEPS * 2 * config.learning_rate  # Adam moves a weight by about its rate a step
