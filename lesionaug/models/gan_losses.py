"""The losses of GAN training, one pair for each game; all take logits, so that nothing overflows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

GanLoss = Literal["non-saturating", "minimax", "hinge"]


def discriminator_loss(loss: GanLoss, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar.

    Args:
        loss: "non-saturating" and "minimax" (Goodfellow et al. 2014, and equation 1 of the paper): binary cross
            entropy. "hinge" (Lim and Ye 2017).
        real: Logits of real images, [N].
        fake: Logits of synthetic images, [M].
    """
    if loss == "hinge":
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def generator_loss(loss: GanLoss, fake: Tensor) -> Tensor:
    """What the generator minimises, a scalar.

    Args:
        loss: "non-saturating": -log D(G(z)), the paper's default reading. "minimax": log(1 - D(G(z))) of equation 1,
            whose gradient vanishes where the discriminator is sure. "hinge": -D(G(z)), the logit itself.
        fake: Logits of synthetic images, [N].
    """
    if loss == "hinge":
        return -fake.mean()
    return -functional.softplus(fake).mean() if loss == "minimax" else functional.softplus(-fake).mean()


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The auxiliary classifier's part, L_c of the paper (Odena et al. 2017): both networks minimise it, a scalar."""
    return functional.cross_entropy(logits, labels)


def gradient_penalty(real: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): the mean squared gradient of real images' logits, a scalar that has gradients itself.

    Args:
        real: Logits [N] made from `images`.
        images: Real images [N, 1, S, S] that require gradients.
    """
    (gradient,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
