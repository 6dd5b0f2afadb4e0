"""Endless augmented batches for a training loop, made on the ROIs' device, without workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lesionaug.augment.execute import augment
from lesionaug.augment.philox import check_seed, philox
from lesionaug.augment.plan import AugmentationPlan
from lesionaug.augment.resample import whole_number
from lesionaug.data.rois import RoiBatch

EPOCH_WORD = 0xFFFFFFFE  # in place of a lesion's key: these words order an epoch


class AugmentedBatches:
    """Every lesion's every augmentation once an epoch, shuffled, augmented as they are asked for.

        batches = la.AugmentedBatches(rois, plan, batch_size=64, seed=0, window=(-160, 240))
        for x, label in itertools.islice(batches, 10 * len(batches)):
            ...

    The order of epoch e is that of Philox word 0 of the counters (i, e, 0xFFFFFFFE, 0), where i = lesion x len(plan) +
    augmentation; batches run across the ends of epochs, so every batch is full and batch b is the same however it was
    reached. With several processes, each takes its share of every `world_size` batches; together they see what one
    process would with a batch `world_size` times as large.

    Args:
        rois: n lesions, on any device.
        plan: The augmentations; an epoch has n x len(plan) patches.
        batch_size: Patches per batch.
        seed: 0 .. 2^64 - 1, for the order and the parameters; the same on every rank.
        rank: This process among `world_size`, from 0.
        world_size: Processes that share the batches (`torch.distributed.get_world_size()`).
        **options: Passed on to `lesionaug.augment`: size, window, out_range, dtype, a, antialias, border, fill.

    Yields:
        x [batch_size, 1, size, size] and label int64 [batch_size], on the ROIs' device.
    """

    def __init__(
        self,
        rois: RoiBatch,
        plan: AugmentationPlan,
        batch_size: int = 64,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        if whole_number(batch_size, "batch_size") < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= whole_number(rank, "rank") < whole_number(world_size, "world_size"):
            raise ValueError(f"rank must lie in 0 .. world_size - 1, got rank {rank} of {world_size}")
        if "out" in options:
            raise ValueError("out cannot be given here: every batch is a new tensor")
        self.rois = rois
        self.plan = plan
        self.batch_size = int(batch_size)
        self.seed = check_seed(seed)
        self.rank, self.world_size = int(rank), int(world_size)
        self.options = options
        self._position = 0  # patches given out so far, on all ranks
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def epoch_size(self) -> int:
        """Patches per epoch."""
        return len(self.rois) * len(self.plan)

    def __len__(self) -> int:
        """Batches per epoch on this rank, the last one counted though it may run into the next epoch."""
        return -(-self.epoch_size // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        chosen = self._take(self._position + self.rank * self.batch_size, self.batch_size)
        self._position += self.world_size * self.batch_size
        roi = chosen // len(self.plan)
        params = self.plan.sample_rows(self.rois, roi, chosen % len(self.plan), self.seed)
        return augment(self.rois, params, **self.options), self.rois.labels[roi]

    def state_dict(self) -> dict[str, int | str]:
        """Where the iteration stands: enough to go on from, with equal lesions, plan and batch size, on any rank."""
        about = "\n".join([repr(self.plan), *self.rois.lesion_ids])
        return {
            "position": self._position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "plan_and_lesions": hashlib.blake2b(about.encode(), digest_size=8).hexdigest(),
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: When the state belongs to another seed, batch size, plan or other lesions.
        """
        mine = self.state_dict()
        if set(state) != set(mine):
            raise ValueError(f"the state must have the entries {sorted(mine)}, got {sorted(state)}")
        for name in ("seed", "batch_size", "plan_and_lesions"):
            if state[name] != mine[name]:
                raise ValueError(f"the state was saved with {name} {state[name]}, these batches have {mine[name]}")
        position = state["position"]
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"the state's position must be a whole number of at least 0, got {position!r}")
        self._position = position

    def _take(self, position: int, count: int) -> Tensor:
        """`count` patches from `position` on as lesion x len(plan) + augmentation, int64 [count]."""
        parts = []
        while count:
            epoch, start = divmod(position, self.epoch_size)
            if epoch != self._epoch:
                self._order, self._epoch = self._epoch_order(epoch), epoch
            part = self._order[start : start + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return torch.cat(parts)

    def _epoch_order(self, epoch: int) -> Tensor:
        i = torch.arange(self.epoch_size, device=self.rois.device)
        counters = torch.stack([i, torch.full_like(i, epoch), torch.full_like(i, EPOCH_WORD), torch.zeros_like(i)], 1)
        return philox(counters, self.seed)[:, 0].sort(stable=True).indices
