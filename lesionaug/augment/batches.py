"""Endless augmented batches for a training loop, made on the ROIs' device, without workers."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lesionaug.augment.execute import PlannedAugmentation
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
        prefetch: On a CUDA device, make the next batch on a stream of its own while the caller works on this one; it
            costs the memory of a batch. Without effect on the CPU.
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
        prefetch: bool = True,
        **options: Any,
    ) -> None:
        if whole_number(batch_size, "batch_size") < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= whole_number(rank, "rank") < whole_number(world_size, "world_size"):
            raise ValueError(f"rank must lie in 0 .. world_size - 1, got rank {rank} of {world_size}")
        if not isinstance(prefetch, bool):
            raise TypeError(f"prefetch must be True or False, got {prefetch!r}")
        if "out" in options:
            raise ValueError("out cannot be given here: every batch is a new tensor")
        self.rois = rois
        self.plan = plan
        self.batch_size = int(batch_size)
        self.seed = check_seed(seed)
        self.rank, self.world_size = int(rank), int(world_size)
        self._augment = PlannedAugmentation(rois, plan, self.seed, **options)
        self._position = 0  # patches given out so far, on all ranks
        self._epoch = -1
        self._rows = self._labels = torch.empty(0, dtype=torch.int64)  # of that epoch, in its order
        self._prefetch = prefetch and rois.device.type == "cuda"
        self._open()

    def _open(self) -> None:
        self._stream = torch.cuda.Stream(self.rois.device) if self._prefetch else None
        self._ahead: tuple[Tensor, Tensor, torch.cuda.Event] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

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
        position, step = self._position, self.world_size * self.batch_size
        if self._stream is None:
            x, label = self._make(position)
            self._position += step
            return x, label
        ahead, self._ahead = self._ahead, None
        x, label, made = ahead or self._make_aside(position)
        with contextlib.suppress(torch.OutOfMemoryError):  # the next call tries again, and says so
            self._ahead = self._make_aside(position + step)
        self._position += step  # last: after an interruption the same batch comes again
        current = torch.cuda.current_stream(self.rois.device)
        current.wait_event(made)
        for tensor in (x, label):  # not to be reused before the current stream is done with it
            tensor.record_stream(current)
        return x, label

    def _make(self, position: int) -> tuple[Tensor, Tensor]:
        """Make the batch of this rank in the step that begins at `position`."""
        with torch.inference_mode(False):  # tables and batches outlive the caller's mode
            rows, labels = self._take(position + self.rank * self.batch_size)
            return self._augment(rows), labels

    def _make_aside(self, position: int) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        """The same on a stream of its own, beside what the caller's stream is given from now on."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.rois.device))
        with torch.cuda.stream(self._stream):
            x, labels = self._make(position)
            return x, labels, self._stream.record_event()

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
        self._position, self._epoch, self._ahead = position, -1, None

    def _take(self, position: int) -> tuple[Tensor, Tensor]:
        """The rows (lesion x 2^32 + augmentation) and labels of the batch from `position` on, int64 [batch_size]."""
        parts: list[tuple[Tensor, Tensor]] = []
        wanted = self.batch_size
        while wanted:
            epoch, start = divmod(position, self.epoch_size)
            if epoch != self._epoch:
                order = self._epoch_order(epoch)
                lesion = order // len(self.plan)
                self._rows, self._labels = (lesion << 32) + order % len(self.plan), self.rois.labels[lesion]
                self._epoch = epoch
            part = slice(start, start + wanted)
            parts.append((self._rows[part], self._labels[part]))
            position += len(parts[-1][0])
            wanted -= len(parts[-1][0])
        if len(parts) == 1:
            return parts[0]
        rows, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return rows, labels

    def _epoch_order(self, epoch: int) -> Tensor:
        i = torch.arange(self.epoch_size, device=self.rois.device)
        counters = torch.stack([i, torch.full_like(i, epoch), torch.full_like(i, EPOCH_WORD), torch.zeros_like(i)], 1)
        return philox(counters, self.seed)[:, 0].sort(stable=True).indices
