"""Augmentation inside the discriminator, for few lesions: real and synthetic images alike, with gradients.

What the discriminator sees is turned, flipped, shifted, scaled and re-windowed at random, so that it cannot learn its
few real images by heart. Synthetic images go the same way, and gradients come back through our own operator, so the
generator does not learn the transforms (DiffAugment, Zhao et al. 2020). How often they are used can follow from how
sure the discriminator is of real images (ADA, Karras et al. 2020).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lesionaug.augment.resample import resample
from lesionaug.training.draws import Step, draw_transforms

Part = Annotated[float, Field(ge=0.0, le=1.0)]


class DiscriminatorAugmentation(BaseModel):
    """Which transforms the discriminator's images go through, and how often.

    Attributes:
        probability: Of the geometric, and by itself of the grey-value transforms of an image; where it adapts, of the
            first step.
        adaptive: Raise the probability while the discriminator is sure of more than `target` of the real images, and
            lower it while it is not.
        target: Mean sign of the real images' logits that is aimed at.
        speed: Change of the probability per image seen.
        shift: Of the picture, at most, in parts of its side.
        zoom: By a factor of at most 1 + zoom, in or out.
        brightness: Added to values of (-1, 1), at most.
        contrast: Factor of at most 1 + contrast, up or down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    probability: Part = 1.0
    adaptive: bool = False
    target: Part = 0.6
    speed: Annotated[float, Field(ge=0.0, le=1.0)] = 2e-5
    shift: Part = 0.125
    zoom: Part = 0.2
    brightness: Part = 0.2
    contrast: Part = 0.2


def transform(
    images: Tensor, config: DiscriminatorAugmentation, probability: Tensor, seed: int, step: Step, turn: int
) -> Tensor:
    """Transform images at random, each by itself; nothing waits for the device.

    Args:
        images: [N, C, S, S] in (-1, 1); gradients flow back to them.
        config: The transforms.
        probability: Float64 scalar on the images' device.
        seed: Of the draw.
        step: Of the training.
        turn: 0, 1 or 2: which set of images of the step.

    Returns:
        [N, C, S, S]; beyond the border a picture is reflected.
    """
    u = draw_transforms(seed, 3 * step + turn, len(images), images.device)  # [N, 12]
    size = images.shape[-1]
    moved, shaded = (u[:, 6] < probability).double(), (u[:, 7] < probability).double()
    angle = 2 * math.pi * u[:, 0] * moved  # all the way round: lesions have no up
    mirror = 1 - 2 * (u[:, 1] < 0.5).double() * moved
    zoom = torch.exp((2 * u[:, 2] - 1) * math.log1p(config.zoom) * moved)
    shift = (2 * u[:, 3:5] - 1) * config.shift * size * moved[:, None]
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    linear = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)  # [N, 2, 2]
    middle = torch.full((2,), size / 2, dtype=torch.float64, device=images.device)
    offset = middle + shift - linear @ middle
    matrices = torch.cat([linear, offset[:, :, None]], 2)
    seen = resample(images.contiguous(), matrices, size=size, antialias=False, dtype=images.dtype)
    bright = (2 * u[:, 5] - 1) * config.brightness * shaded
    contrast = torch.exp((2 * u[:, 8] - 1) * math.log1p(config.contrast) * shaded)
    factor, added = (value.to(seen.dtype).view(-1, 1, 1, 1) for value in (contrast, bright))
    mean = seen.mean(dim=(1, 2, 3), keepdim=True)
    result: Tensor = (seen - mean) * factor + mean + added
    return result


@torch.no_grad()
def adapt(probability: Tensor, config: DiscriminatorAugmentation, real_logits: Tensor) -> None:
    """Move the probability, in place, by what the discriminator made of a step's real images."""
    if config.adaptive:
        sure = real_logits.sign().double().mean()
        probability.add_((sure - config.target).sign() * config.speed * len(real_logits)).clamp_(0, 1)
