"""The training images of a GAN: a pool on the device, or augmented as they are asked for."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from lesionaug.augment.batches import AugmentedBatches
from lesionaug.data.arrays import check_unit_range
from lesionaug.training.draws import draw_order


class Batches(Protocol):
    """Training images, a batch for each step.

    Attributes:
        num_images: Images of an epoch.
        fingerprint: What tells one set of images from another; a training is only resumed on its own.
    """

    num_images: int
    fingerprint: str

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Real images [m, 1, S, S] in (-1, 1) and their classes int64 [m] of step 0, 1, ..., on the device."""


class PoolBatches:
    """A pool that lies on the device whole, in an order of its own each epoch.

    Args:
        images: [N, 1, S, S] float32 in (0, 1), at least two.
        labels: int64 [N].
        batch_size: Images per step; all of them where there are fewer.
        seed: Of the order.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int) -> None:
        check_unit_range(images)
        self.num_images = len(images)
        self._images, self._labels = images * 2 - 1, labels
        self._size, self._seed = min(batch_size, len(images)), seed
        digest = hashlib.blake2b(images.cpu().numpy().tobytes(), digest_size=16)
        digest.update(labels.cpu().numpy().tobytes())
        self.fingerprint = f"{digest.hexdigest()}-{batch_size}-{seed}"
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:  # noqa: D102 - see Batches
        epoch, place = divmod(step, self.num_images // self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = draw_order(self._seed, epoch, self.num_images, self._images.device)
        chosen = self._order[place * self._size : (place + 1) * self._size]
        return self._images[chosen], self._labels[chosen]


class FlyingBatches:
    """Augmented as they are asked for, from every augmentation of the plan; nothing lies in memory but the lesions.

    Args:
        batches: Made with a window and no out_range, so that its images are in (0, 1).
        num_images: What counts as an epoch, so that steps compare with those of a pool.
    """

    def __init__(self, batches: AugmentedBatches, num_images: int) -> None:
        self.num_images = num_images
        self._batches, self._next = batches, 0
        # Which lesions and plan, in which order; and the first batch, for whatever else decides the pixels.
        images, labels = self.batch(0)
        digest = hashlib.blake2b(images.cpu().numpy().tobytes(), digest_size=16)
        digest.update(labels.cpu().numpy().tobytes())
        state = batches.state_dict()
        self.fingerprint = "-".join(str(state[key]) for key in ("plan_and_lesions", "seed", "batch_size"))
        self.fingerprint += f"-{digest.hexdigest()}"

    def batch(self, step: int) -> tuple[Tensor, Tensor]:  # noqa: D102 - see Batches
        if step != self._next:
            state = self._batches.state_dict()
            self._batches.load_state_dict({**state, "position": step * self._batches.batch_size})
        images, labels = next(self._batches)
        self._next = step + 1
        return images * 2 - 1, labels
