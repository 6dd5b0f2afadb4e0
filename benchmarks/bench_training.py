"""Training steps of the paper's networks: ours, the same written plainly, and as a loop over a DataLoader.

Ours are timed as they are used, `train_classifier` and `train_step`; in bfloat16 too where the machine computes in it,
and on a GPU as CUDA graphs and in lanes. The plain loops are what a textbook has: contiguous tensors, ReLU before
pooling, fakes made twice and the gradients of the discriminator's weights made in the generator's step too. All compute
the same (tests/test_gan_training.py, test_cnn.py, test_lanes.py). Floors: the floating-point operations of a step over
what one large matrix product reaches here.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import lesionaug as la
from lesionaug.augment.speed import fold, median_seconds
from lesionaug.experiment.gan_config import gan_preset
from lesionaug.models.cnn import CnnConfig
from lesionaug.models.dcgan import Discriminator, Generator
from lesionaug.training.classifier import ClassifierConfig, train_classifier
from lesionaug.training.draws import draw_classes, draw_noise
from lesionaug.training.gan import Gan, train_step
from lesionaug.training.gan_batches import FlyingBatches, PoolBatches
from lesionaug.training.graphs import WARM_UP, GraphedSteps
from lesionaug.training.lanes import BLOCK, LANE_FORMS, Lane, LanePool, LaneStack

BATCH = 64
CNN_FLOP = 168e6  # forward and backward of an image: three times 56.8 MFLOP less the gradient to the image
DCGAN_FLOP = 6.35e9  # of a pair of images: D forward and backward twice and to its input, G forward and backward
POOL = 1024  # images


@pytest.fixture(scope="session")
def peak(device):
    """FLOP/s of a large matrix product, the limit that floors are named by; in TF32 where convolutions use it."""
    a, b = torch.rand(2048, 2048, device=device), torch.rand(2048, 2048, device=device)
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        return 2 * 2048**3 / median_seconds(lambda: a @ b, device, 1.0)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture
def stepped(device, timed, peak):
    """Time a step of `BATCH` images and note its share of the floor."""

    def run(step, flop, steps=1, networks=1):
        images = BATCH * steps * networks
        timed(step, outputs=images, size=64, steps=steps, floor_s=images * flop / peak, peak_gflops=peak / 1e9)

    return run


def pool(device):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(POOL, 1, 64, 64, generator=generator).to(device), (torch.arange(POOL) % 3).to(device)


class PlainCnn(nn.Module):
    """Fig. 2 as it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4608, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


def plain_cnn_step(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, nesterov=True)

    def step():
        x, y = next(batches)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def from_pool(device):
    images, labels = pool(device)
    orders = (torch.randperm(POOL).to(device).split(BATCH) for _ in itertools.count())
    for order in orders:
        for chosen in order:
            yield images[chosen], labels[chosen]


def from_loader(device):
    images, labels = pool(torch.device("cpu"))
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    for _ in itertools.count():
        for x, y in loader:
            yield x.to(device), y.to(device)


def skip_where_it_cannot_be_ours(how, device):
    if how == "graphs" and device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    if how == "bf16" and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor does not compute in bfloat16")


@pytest.mark.parametrize("how", ["ours", "bf16", "plain", "dataloader"])
def test_cnn_step(device, stepped, how):
    skip_where_it_cannot_be_ours(how, device)
    torch.manual_seed(0)
    if how in ("ours", "bf16"):
        steps = 200 if device.type == "cuda" else 10
        config = ClassifierConfig(steps=steps, bf16=how == "bf16")
        images, labels = pool(device)
        stepped(lambda: train_classifier(images, labels, config, num_classes=3, seed=0, device=device), CNN_FLOP, steps)
        return
    batches = from_pool(device) if how == "plain" else from_loader(device)
    stepped(plain_cnn_step(PlainCnn().to(device), batches), CNN_FLOP)


@pytest.mark.parametrize("num_lanes", [4, 32])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("form", LANE_FORMS)
def test_cnn_lanes(device, stepped, form, precision, num_lanes):
    """Several networks at once, on a GPU in one CUDA graph; a step of all of them, or as many as a block has."""
    if device.type == "cpu" and (num_lanes > 4 or precision == "bf16"):
        pytest.skip("on the CPU, four lanes show how they compare")
    config = ClassifierConfig(steps=2**40, bf16=precision == "bf16")
    stack = LaneStack(LanePool(*pool(device), CnnConfig(), 3, config), num_lanes, form)
    for slot in range(num_lanes):
        stack.put(slot, Lane("", 0, POOL, slot))
    steps = BLOCK if device.type == "cuda" else 1
    stepped(lambda: stack.run(steps), CNN_FLOP, steps, num_lanes)


def plain_gan_step(config, batches, device):
    """A step as in a textbook."""
    classes = 3 if config.conditioning != "none" else 0
    g = Generator(config.network, classes).to(device)
    d = Discriminator(config.network, classes, config.conditioning).to(device)
    adam_g, adam_d = (torch.optim.Adam(net.parameters(), config.learning_rate, config.betas) for net in (g, d))
    steps = itertools.count()

    def step():
        t, (x, labels) = next(steps), next(batches)
        z = draw_noise("uniform", 0, t, len(x), config.network.noise_size, device)
        y = draw_classes(0, t, len(x), 3, device) if classes else None
        ones, zeros = torch.ones(len(x), device=device), torch.zeros(len(x), device=device)
        entropy = functional.binary_cross_entropy_with_logits
        (real, real_class), (fake, fake_class) = d(2 * x - 1), d(g(z, y).detach())
        loss = entropy(real, ones) + entropy(fake, zeros)
        if classes:
            loss = loss + functional.cross_entropy(real_class, labels) + functional.cross_entropy(fake_class, y)
        adam_d.zero_grad()
        loss.backward()
        adam_d.step()
        fake, fake_class = d(g(z, y))
        loss = entropy(fake, ones)
        if classes:
            loss = loss + functional.cross_entropy(fake_class, y)
        adam_g.zero_grad()
        loss.backward()
        adam_g.step()

    return step


@pytest.mark.parametrize("how", ["ours", "bf16", "graphs", "graphs-bf16", "plain", "dataloader"])
@pytest.mark.parametrize("kind", ["dcgan", "acgan"])
def test_gan_step(device, stepped, kind, how):
    for part in how.split("-"):
        skip_where_it_cannot_be_ours(part, device)
    torch.manual_seed(0)
    config = gan_preset("paper", kind).gan
    if how not in ("plain", "dataloader"):
        gan = Gan.build(config.model_copy(update={"bf16": "bf16" in how}), 3, 0, device)
        batches = PoolBatches(*pool(device), BATCH, 0)
        take = GraphedSteps(gan) if "graphs" in how else functools.partial(train_step, gan)
        for _ in range(WARM_UP + 1 if "graphs" in how else 0):
            take(*batches.batch(gan.step))

        def step():
            take(*batches.batch(gan.step))

    else:
        step = plain_gan_step(config, from_pool(device) if how == "plain" else from_loader(device), device)
    stepped(step, DCGAN_FLOP)


@pytest.mark.parametrize("data", ["pool", "fly"])
def test_training_batch(device, timed, data):
    """What a batch costs by itself: taken from a pool, or augmented for the step."""
    if data == "pool":
        source = PoolBatches(*pool(device), BATCH, 0)
    else:
        rois = fold(device)
        source = FlyingBatches(la.AugmentedBatches(rois, la.AugmentationPlan(), BATCH, window=(0.0, 1.0)), POOL)
    steps = itertools.count()
    timed(lambda: source.batch(next(steps)), outputs=BATCH, size=64)
