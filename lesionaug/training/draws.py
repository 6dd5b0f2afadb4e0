"""Everything random in a training, drawn from its seed and the step (Philox, docs/definitions.md section 3).

Nothing has a state: step t draws the same whether it was reached in one go or after a stop, on the CPU or on a GPU, by
the plain loop or in a CUDA graph. There the step is a tensor that the graph itself counts up.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lesionaug.augment.philox import philox

Noise = Literal["uniform", "normal"]
Step = int | Tensor  # a tensor is int64, on the device that is drawn on; a scalar but where several steps are allowed
# In place of a lesion's key (a lesion's own may collide with one in 2^64).
_ORDER, _NOISE, _CLASSES, _TRANSFORMS, _DROPOUT = 0xFFFFFF00, 0xFFFFFF01, 0xFFFFFF02, 0xFFFFFF03, 0xFFFFFF04
_UNIT = 2.0**-32
# In place of a step: no training has that many. Noise for running statistics (from this one on), for samples, and for
# the images of one noise as training goes on.
SETTLING_STEP, SAMPLE_STEP, STRIP_STEP = 0xFFFFFF00, 0xFFFFFFFE, 0xFFFFFFFF


def _words(seed: int, purpose: int, step: Step, count: int, device: torch.device) -> Tensor:
    """Words of 32 bits: [count, 4], or [steps, count, 4] for a vector of steps."""
    several = step.shape if isinstance(step, Tensor) else ()
    counters = torch.zeros(*several, count, 4, dtype=torch.int64, device=device)
    counters[..., 0] = torch.arange(count, device=device)
    counters[..., 1] = step[..., None] if isinstance(step, Tensor) else step
    counters[..., 2] = purpose
    return philox(counters.view(-1, 4), seed).view_as(counters)


def _uniform(words: Tensor) -> Tensor:
    """Float64 in (0, 1), never an end."""
    return (words.double() + 0.5) * _UNIT


def draw_noise(kind: Noise, seed: int, step: Step, count: int, size: int, device: torch.device) -> Tensor:
    """Draw z for the generator: "uniform" in (-1, 1), as the paper trains, or "normal", as it says once (IV-B.2).

    Returns:
        [count, size] float32.
    """
    needed = count * size
    if kind == "uniform":
        u = _uniform(_words(seed, _NOISE, step, -(-needed // 4), device))
        return (2 * u.flatten()[:needed] - 1).float().view(count, size)
    u = _uniform(_words(seed, _NOISE, step, -(-needed // 4), device)).view(-1, 2, 2)  # Box-Muller takes pairs
    radius, angle = (-2 * u[:, 0].log()).sqrt(), 2 * math.pi * u[:, 1]
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return normal.flatten()[:needed].float().view(count, size)


def draw_classes(seed: int, step: Step, count: int, num_classes: int, device: torch.device) -> Tensor:
    """Draw the classes that the generator is to make, each as likely as the others: int64 [count]."""
    return _words(seed, _CLASSES, step, count, device)[:, 0] * num_classes >> 32


def draw_order(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
    """Draw the order of an epoch: a permutation int64 [count]."""
    return _words(seed, _ORDER, epoch, count, device)[:, 0].sort(stable=True).indices


def draw_transforms(seed: int, step: Step, count: int, device: torch.device) -> Tensor:
    """Twelve uniform numbers in (0, 1) for each of `count` images: float64 [count, 12]."""
    return _uniform(_words(seed, _TRANSFORMS, step, 3 * count, device)).view(count, 12)


def draw_kept(seed: int, step: Step, count: int, size: int, dropped: float, device: torch.device) -> Tensor:
    """Draw what dropout keeps, each unit of `count` images with probability 1 - `dropped`.

    Fewer images are the first of more.

    Returns:
        bool [count, size], or [steps, count, size] for a vector of steps.
    """
    words = _words(seed, _DROPOUT, step, -(-count * size // 4), device).flatten(-2)[..., : count * size]
    return torch.unflatten(words < round((1 - dropped) * 2**32), -1, (count, size))
