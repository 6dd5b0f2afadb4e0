"""The GANs of sections III-B and III-C: how they are trained, their state, and one step of both networks.

`train_step` is the whole algorithm on one page; gan_run.py repeats it.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from lesionaug.errors import ConfigError
from lesionaug.models.dcgan import Conditioning, DcganConfig, Discriminator, Generator
from lesionaug.models.gan_losses import GanLoss, class_loss, discriminator_loss, generator_loss, gradient_penalty
from lesionaug.training.device import precision
from lesionaug.training.differentiable import DiscriminatorAugmentation, adapt, transform
from lesionaug.training.draws import SETTLING_STEP, Noise, draw_classes, draw_noise

_SETTLING_BATCHES = 16
METRICS = ("loss_d", "loss_g", "d_real", "d_fake", "class_real", "class_fake")


class GanConfig(BaseModel):
    """How a GAN is built and trained; the defaults are the paper's DCGAN.

    Attributes:
        network: Sizes of the two networks.
        conditioning: "none": one GAN per class (DCGAN). "auxiliary": all classes at once, with a class head (ACGAN).
            "projection": all classes at once, the class projected into the discriminator.
        loss: See gan_losses.py.
        noise: What z is drawn from, in training and afterwards.
        batch_size: Real images per step, and as many synthetic ones.
        learning_rate: Of both Adam optimisers.
        betas: Of both Adam optimisers.
        epochs: Passes over the training images.
        steps: Instead of `epochs`, a number of optimiser steps.
        average: Decay per step of the moving average of the generator's weights that images are made with; 0: the
            weights themselves.
        r1: Weight of the gradient penalty on real images (times one half); 0: none.
        r1_every: It is taken at every so many steps, that many times as strong.
        augment: Transforms of all that the discriminator sees (differentiable.py); None: none, as in the paper.
        bf16: Forward and backward passes in bfloat16 where torch deems it safe; weights and optimisers stay float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: DcganConfig = DcganConfig()
    conditioning: Conditioning = "none"
    loss: GanLoss = "non-saturating"
    noise: Noise = "uniform"
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.0002
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.5, 0.999)
    epochs: Annotated[int, Field(ge=1)] = 70
    steps: Annotated[int, Field(ge=1)] | None = None
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    r1: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    r1_every: Annotated[int, Field(ge=1)] = 1
    augment: DiscriminatorAugmentation | None = None
    bf16: bool = False

    def steps_per_epoch(self, num_images: int) -> int:
        """Full batches in an epoch, at least one; what is left of an epoch is left out."""
        return max(num_images // self.batch_size, 1)

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps on `num_images`."""
        return self.steps if self.steps is not None else self.epochs * self.steps_per_epoch(num_images)


def build_networks(config: GanConfig, num_classes: int, seed: int) -> tuple[Generator, Discriminator]:
    """Build both networks on the CPU, laid out channels-last; torch's random state is left alone.

    Args:
        config: Their sizes.
        num_classes: Classes they are conditioned on, or 0.
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = Generator(config.network, num_classes)
        discriminator = Discriminator(config.network, num_classes, config.conditioning)
    for network in (generator, discriminator):
        nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    return generator, discriminator


@dataclass(eq=False)
class Gan:
    """The two networks, their optimisers, and how far they are trained.

    Attributes:
        generator: In training mode.
        discriminator: In training mode.
        average: Moving average of the generator in evaluation mode, or None.
        optimizer_g: Adam over the generator.
        optimizer_d: Adam over the discriminator.
        augmenting: Float64 scalar, the probability of the discriminator's transforms.
        num_classes: Classes that it is conditioned on, or 0.
        counter: Int64 scalar on the device, the same as `step`: what a CUDA graph counts by itself.
        step: Optimiser steps taken.
    """

    config: GanConfig
    generator: Generator
    discriminator: Discriminator
    average: Generator | None
    optimizer_g: torch.optim.Adam
    optimizer_d: torch.optim.Adam
    augmenting: Tensor
    counter: Tensor
    num_classes: int
    seed: int
    step: int = 0

    @classmethod
    def build(cls, config: GanConfig, num_classes: int, seed: int, device: torch.device | str = "cpu") -> Gan:
        """Build networks whose initial weights depend on `seed` alone, not on the device.

        Args:
            config: Sizes and optimisers.
            num_classes: Classes of the data; not used where nothing is conditioned on them.
            seed: 0 <= seed < 2**63.
            device: Where to train.
        """
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        conditioned = num_classes if config.conditioning != "none" else 0
        if config.conditioning != "none" and num_classes < 2:
            raise ConfigError("conditioning", f"{num_classes} class(es) leave nothing to condition on", "Use none")
        generator, discriminator = build_networks(config, conditioned, seed)
        generator.to(device)
        discriminator.to(device)
        rate, betas = config.learning_rate, config.betas
        # One kernel for all weights, and the count of steps on the device, where a CUDA graph can see it.
        fused = {"fused": True, "capturable": True} if torch.device(device).type == "cuda" else {}
        return cls(
            config,
            generator.train(),
            discriminator.train(),
            copy.deepcopy(generator).eval().requires_grad_(False) if config.average else None,
            torch.optim.Adam(generator.parameters(), rate, betas, **fused),
            torch.optim.Adam(discriminator.parameters(), rate, betas, **fused),
            torch.tensor(config.augment.probability if config.augment else 0.0, dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            conditioned,
            seed,
        )

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.generator.dense.weight.device

    @property
    def sampler(self) -> Generator:
        """The generator that images are made with: the moving average where there is one."""
        return self.generator if self.average is None else self.average

    @property
    def penalised(self) -> bool:
        """Whether the next step takes the gradient penalty."""
        return self.config.r1 > 0 and self.step % self.config.r1_every == 0

    def seek(self, step: int) -> None:
        """Say how many steps were taken."""
        self.step = step
        self.counter.fill_(step)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        return networks if self.average is None else networks | {"average": self.average}

    def _optimizers(self) -> dict[str, torch.optim.Adam]:
        return {"optimizer_g": self.optimizer_g, "optimizer_d": self.optimizer_d}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of its state, by name; see `load_tensors`."""
        found: dict[str, Tensor] = {"augmenting": self.augmenting}
        for name, network in self._networks().items():
            found |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                found |= {f"{name}.{index}.{key}": tensor for key, tensor in state.items()}
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state back that `tensors` gave.

        Raises:
            ValueError: Tensors that are missing, left over or of another shape.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        tensors = dict(tensors)
        if "augmenting" not in tensors:
            raise ValueError("augmenting is missing")
        self.augmenting.copy_(tensors.pop("augmenting"))
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = tensor
        if parts.keys() - self._optimizers() != self._networks().keys():
            raise ValueError(f"the state holds {sorted(parts)}")
        for name, network in self._networks().items():
            try:
                network.load_state_dict(parts[name])
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        for name, optimizer in self._optimizers().items():
            states: dict[int, dict[str, Tensor]] = {}
            for key, tensor in parts.get(name, {}).items():
                index, _, what = key.partition(".")
                states.setdefault(int(index), {})[what] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
            for parameter, state in optimizer.state.items():  # laid out like the weights, or each step is slower
                for key, tensor in state.items():
                    if tensor.shape == parameter.shape:
                        state[key] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)


def train_step(gan: Gan, images: Tensor, labels: Tensor) -> Tensor:
    """Take one optimiser step of both networks.

    The discriminator sees real and synthetic images in batches of their own, so that neither is normalised with the
    other's statistics; the generator learns from the same synthetic images once the discriminator has learned.

    Args:
        gan: What is trained.
        images: Real images [m, 1, S, S] in (-1, 1).
        labels: int64 [m], their classes; not used where nothing is conditioned on them.

    Returns:
        float32 [6], the `METRICS`, on the device: losses, mean D(x), mean D(G(z)) before the discriminator's step, and
        how many of the real and the synthetic images its class head got right (NaN without one).
    """
    config, seed, step, device = gan.config, gan.seed, gan.counter, gan.device
    noise = draw_noise(config.noise, seed, step, len(images), config.network.noise_size, device).to(images.dtype)
    wanted = draw_classes(seed, step, len(images), gan.num_classes, device) if gan.num_classes else None
    of_real, of_fake = (labels, wanted) if config.conditioning == "projection" else (None, None)
    penalised = gan.penalised

    images = _seen(gan, images, 0).contiguous(memory_format=torch.channels_last)
    images = images.detach().requires_grad_(penalised)  # the caller's own tensor may come through unchanged
    with precision(config.bf16, device):
        fake = gan.generator(noise, wanted)
    with precision(config.bf16, device):
        real_logits, real_classes = gan.discriminator(images, of_real)
        with _statistics_kept(gan.discriminator):
            fake_logits, fake_classes = gan.discriminator(_seen(gan, fake.detach(), 1), of_fake)
    loss_d = discriminator_loss(config.loss, _wide(real_logits), _wide(fake_logits))
    if real_classes is not None and fake_classes is not None and wanted is not None:
        loss_d = loss_d + class_loss(_wide(real_classes), labels) + class_loss(_wide(fake_classes), wanted)
    if penalised:
        loss_d = loss_d + config.r1 * config.r1_every / 2 * gradient_penalty(_wide(real_logits), images)
    gan.optimizer_d.zero_grad(set_to_none=True)
    loss_d.backward()
    gan.optimizer_d.step()

    with _frozen(gan.discriminator), _statistics_kept(gan.discriminator), precision(config.bf16, device):
        logits, classes = gan.discriminator(_seen(gan, fake, 2), of_fake)
    loss_g = generator_loss(config.loss, _wide(logits))
    if classes is not None and wanted is not None:
        loss_g = loss_g + class_loss(_wide(classes), wanted)
    gan.optimizer_g.zero_grad(set_to_none=True)
    loss_g.backward()
    gan.optimizer_g.step()
    if gan.average is not None:
        _move_average(gan.average, gan.generator, config.average)
    if config.augment is not None:
        adapt(gan.augmenting, config.augment, real_logits)
    gan.step += 1
    gan.counter += 1

    with torch.no_grad():
        nothing = torch.full((), math.nan, device=device)
        right = [nothing, nothing]
        if real_classes is not None and fake_classes is not None and wanted is not None:
            right = [
                (real_classes.argmax(1) == labels).float().mean(),
                (fake_classes.argmax(1) == wanted).float().mean(),
            ]
        d_real, d_fake = _wide(real_logits).sigmoid().mean(), _wide(fake_logits).sigmoid().mean()
        return torch.stack([loss_d.detach(), loss_g.detach(), d_real, d_fake, *right])


def _seen(gan: Gan, images: Tensor, turn: int) -> Tensor:
    """Images as the discriminator sees them."""
    config = gan.config.augment
    if config is None:
        return images
    return transform(images.float(), config, gan.augmenting, gan.seed, gan.counter, turn)


def _wide(logits: Tensor) -> Tensor:
    """Losses are sums of exponentials: not in bfloat16."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Gradients go through the network and not to its weights: a third of a backward pass saved."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _momentum(network: nn.Module, value: float | None) -> Iterator[None]:
    """How fast batch normalisation moves its running statistics; None: they are the plain mean over the batches."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _statistics_kept(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """What is normalised here does not move the running statistics: in evaluation they are those of real images."""
    return _momentum(network, 0.0)


@torch.no_grad()
def _move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


@torch.no_grad()
def settle_average(gan: Gan) -> None:
    """Take the running statistics of the averaged generator anew, from noise of its own.

    Those of the generator it follows are of other activations. Call it before images are made with it.
    """
    if gan.average is None:
        return
    config, device, count = gan.config, gan.device, gan.config.batch_size
    for norm in gan.average.norms:
        norm.reset_running_stats()  # type: ignore[operator]
    gan.average.train()
    with _momentum(gan.average, None):
        for step in range(SETTLING_STEP, SETTLING_STEP + _SETTLING_BATCHES):
            noise = draw_noise(config.noise, gan.seed, step, count, config.network.noise_size, device)
            wanted = draw_classes(gan.seed, step, count, gan.num_classes, device) if gan.num_classes else None
            gan.average(noise, wanted)
    gan.average.eval()
