"""The training of a GAN from its first step to its last, stopped and resumed at any of them.

Everything random comes from the seed and the step (draws.py), so a run that was stopped ends with the bits of one that
was not.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionaug.errors import DataError, MemoryRanOut
from lesionaug.training.checkpoint import Checkpoints, Metrics
from lesionaug.training.classifier import Progress
from lesionaug.training.device import is_out_of_memory
from lesionaug.training.draws import STRIP_STEP
from lesionaug.training.gan import METRICS, Gan, GanConfig, settle_average, train_step
from lesionaug.training.gan_batches import Batches
from lesionaug.training.graphs import GraphedSteps
from lesionaug.training.synthesis import generate

STRIP_COLUMNS = 8  # images of the fixed noise, for each class
STRIP_ROWS = 10  # times at which they are made


@dataclass(eq=False)
class GanRun:
    """What `train_gan` returns.

    Attributes:
        gan: As far as it was trained.
        finished: False where it was asked to stop before its last step.
        metrics: One entry for each block of steps: "step" (the last of the block), "epoch", "seconds" spent so far
            and the block's means of `METRICS`, without those that it has not.
        strip: uint8 [moments, classes or 1, STRIP_COLUMNS, S, S]: images of one fixed noise as training went on.
    """

    gan: Gan
    finished: bool
    metrics: list[dict[str, Any]]
    strip: Tensor


def train_gan(
    batches: Batches,
    config: GanConfig,
    *,
    num_classes: int,
    seed: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    checkpoint_every: int | None = None,
    progress: Progress | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    graphs: bool = False,
) -> GanRun:
    """Train a GAN, or what is left of a training that was stopped.

    On one machine type the same seed and number of threads give the same bits on the CPU, stopped and resumed or not.

    Args:
        batches: The training images.
        config: What is trained and how.
        num_classes: Classes of the data.
        seed: Of initial weights, noise and classes; 0 <= seed < 2**63.
        device: Where to train; `batches` give their images there.
        folder: An existing folder for `checkpoints/` and `metrics.jsonl`; what is in it is gone on from. None: nothing
            is written.
        checkpoint_every: Steps between checkpoints; a twentieth of the training when None.
        progress: Called as (steps done, steps in all, text) after every step.
        on_metrics: Called with every block of metrics, see `GanRun`.
        should_stop: Asked after every step; where it answers True the state is saved and the call returns.
        graphs: On a GPU, record whole steps as CUDA graphs (graphs.py).

    Raises:
        DataError: Losses that are no longer finite; checkpoints that are damaged, of another training or version.
        MemoryRanOut: Out of memory.
    """
    device = torch.device(device)
    total = config.num_steps(batches.num_images)
    block = max(total // 200, 1)
    every = checkpoint_every if checkpoint_every is not None else max(total // 20, 1)
    rows_at = {total * (k + 1) // STRIP_ROWS for k in range(STRIP_ROWS)} - {0}
    with _memory(config):
        gan = Gan.build(config, num_classes, seed, device)
    log = _Log(gan, batches)
    checkpoints = metrics_file = None
    if folder is not None:
        belongs_to = {
            "configuration": config.model_dump(mode="json"),
            "seed": seed,
            "training images": batches.fingerprint,
            "number of steps": total,
            "kind of device": device.type,
        }
        checkpoints, metrics_file = Checkpoints(folder / "checkpoints", belongs_to), Metrics(folder / "metrics.jsonl")
        saved = checkpoints.newest()
        if saved is not None:
            gan.seek(saved[0])
            log.resume(saved[1], metrics_file.read())
        metrics_file.cut(gan.step)

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save(gan.step, gan.tensors() | log.tensors())

    take_step = GraphedSteps(gan) if graphs and device.type == "cuda" else functools.partial(train_step, gan)
    with _memory(config):
        while gan.step < total:
            log.add(take_step(*batches.batch(gan.step)))
            if gan.step in rows_at:
                log.add_strip()
            if gan.step % block == 0 or gan.step == total:
                line = log.close_block()
                if metrics_file is not None:
                    metrics_file.append([line])
                if on_metrics is not None:
                    on_metrics(line)
            if progress is not None:
                progress(gan.step, total, log.text)
            stop = gan.step < total and should_stop()
            if gan.step % every == 0 or gan.step == total or stop:
                save()
            if stop:
                break
    return GanRun(gan, gan.step == total, log.lines, log.strip)


@dataclass(eq=False)
class _Log:
    """Metrics and images of fixed noise as training goes on; nothing waits for the device within a block."""

    gan: Gan
    batches: Batches
    lines: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    strips: list[Tensor] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    text: str = ""

    def add(self, row: Tensor) -> None:
        self.rows.append(row)

    def close_block(self) -> dict[str, Any]:
        """The means of the steps since the last block.

        Raises:
            DataError: The losses are no longer finite.
        """
        means = torch.stack(self.rows).mean(0).tolist()
        self.rows.clear()
        gan = self.gan
        if not all(math.isfinite(loss) for loss in means[:2]):
            raise DataError(
                "learning_rate",
                f"the losses of the GAN are no longer finite after {gan.step} steps at rate {gan.config.learning_rate}",
                "Use a smaller rate in a new folder; checkpoints from before are kept",
            )
        values = {name: round(value, 6) for name, value in zip(METRICS, means, strict=True) if not math.isnan(value)}
        epoch = (gan.step - 1) // gan.config.steps_per_epoch(self.batches.num_images) + 1
        self.lines.append(
            {"step": gan.step, "epoch": epoch, "seconds": round(time.monotonic() - self.started, 3), **values}
        )
        self.text = f"epoch {epoch}, D(x) {values['d_real']:.2f}, D(G(z)) {values['d_fake']:.2f}"
        return self.lines[-1]

    def add_strip(self) -> None:
        gan = self.gan
        settle_average(gan)
        classes = max(gan.num_classes, 1)
        images = generate(
            gan.sampler,
            gan.config.noise,
            gan.seed,
            STRIP_COLUMNS * classes,
            labels=torch.arange(classes).repeat_interleave(STRIP_COLUMNS) if gan.num_classes else None,
            step=STRIP_STEP,
        )
        self.strips.append((images * 255).round().to(torch.uint8).view(classes, STRIP_COLUMNS, *images.shape[2:]))

    @property
    def strip(self) -> Tensor:
        if self.strips:
            return torch.stack(self.strips)
        size = self.gan.config.network.image_size
        return torch.empty(0, max(self.gan.num_classes, 1), STRIP_COLUMNS, size, size, dtype=torch.uint8)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, beside the lines of the metrics file."""
        rows = torch.stack(self.rows) if self.rows else torch.empty(0, len(METRICS))
        return {"log.rows": rows, "log.strip": self.strip}

    def resume(self, tensors: dict[str, Tensor], lines: list[dict[str, Any]]) -> None:
        """Take a checkpoint back.

        Raises:
            DataError: Its tensors are not those of this training.
        """
        try:
            self.rows = list(tensors.pop("log.rows").to(self.gan.device))
            self.strips = list(tensors.pop("log.strip"))
            self.gan.load_tensors(tensors)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"step-{self.gan.step:09d}",
                f"this checkpoint does not fit the networks ({error})",
                "Delete the checkpoints to begin anew",
            ) from error
        self.lines = [line for line in lines if line["step"] <= self.gan.step]
        if self.lines:
            self.started -= self.lines[-1]["seconds"]


@contextlib.contextmanager
def _memory(config: GanConfig) -> Iterator[None]:
    """Say what to do when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryRanOut(
            "batch_size",
            f"memory ran out with {config.batch_size} images a step",
            "Use a smaller batch or narrower networks, or close what else uses the device",
        ) from error
