"""Training of the classification network (section II-B): mean subtraction, SGD with Nesterov momentum, last epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional

from lesionaug.data.arrays import check_unit_range
from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.errors import DataError
from lesionaug.models.cnn import CnnConfig, LesionCnn
from lesionaug.training.device import precision
from lesionaug.training.draws import draw_kept, draw_order

Progress = Callable[[int, int, str], None]
MODEL_SCHEMA = 1


class ClassifierConfig(BaseModel):
    """How the network is trained; the defaults are the paper's (the momentum's value is not printed there).

    Attributes:
        batch_size: Images per step; the last, smaller batch of an epoch is used too.
        learning_rate: Of SGD, constant.
        momentum: Of SGD.
        nesterov: Nesterov's form of the momentum.
        epochs: Passes over the training images.
        bf16: Forward and backward passes in bfloat16 where torch deems it safe; weights and optimiser stay float32.
        steps: Instead of `epochs`, the same number of optimiser steps for every training set, however small (the
            equal-steps control: 150 epochs are 300 steps for the paper's smallest group and 70,600 for its largest).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.001
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    epochs: Annotated[int, Field(ge=1)] = 150
    steps: Annotated[int, Field(ge=1)] | None = None
    bf16: bool = False

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps on a training set of `num_images`."""
        return self.steps if self.steps is not None else self.epochs * math.ceil(num_images / self.batch_size)

    def num_epochs(self, num_images: int) -> int:
        """Epochs on a training set of `num_images`; the last is cut short when `steps` says so."""
        return math.ceil(self.num_steps(num_images) / math.ceil(num_images / self.batch_size))


@dataclass(frozen=True)
class Epoch:
    """One line of the training history; loss and accuracy are running values of the epoch, with dropout active."""

    epoch: int
    loss: float
    train_accuracy: float


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network with the scalar that is subtracted from every image it sees.

    Attributes:
        model: In evaluation mode, on the device it was trained on.
        mean: One scalar over the training images.
        history: One entry per epoch.
        num_steps: Optimiser steps taken.
    """

    model: LesionCnn
    mean: float
    history: tuple[Epoch, ...]
    num_steps: int


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: ClassifierConfig,
    *,
    num_classes: int,
    cnn: CnnConfig | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TrainedClassifier:
    """Train the network of Fig. 2 on one training set.

    Initial weights, order and dropout come from `seed` and the step alone (draws.py), the same on every device; torch's
    random state is neither used nor changed. On one machine type the same seed and number of threads give the same bits
    on the CPU. lanes.py trains many of these at once.

    Args:
        images: [N, 1, S, S] float32 in (0, 1). They are moved to `device` once; there is no loader.
        labels: [N] int64, 0 .. num_classes - 1.
        config: Batch size, rate, epochs.
        num_classes: Outputs of the network.
        cnn: Sizes of the network; Fig. 2 when None.
        seed: 0 <= seed < 2**63.
        device: Where to train.
        progress: Called as (steps done, steps in all, text) after every step.

    Raises:
        DataError: Images that are not finite or outside (0, 1), labels out of range, a rate that is too large.
        ValueError: Shapes or types.
    """
    cnn = cnn or CnnConfig()
    check_training_set(images, labels, num_classes, cnn.image_size)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    device = torch.device(device)
    images, labels = images.to(device), labels.to(device)
    mean = float(images.mean(dtype=torch.float64))
    model = build_classifier(cnn, num_classes, seed).to(device).train()
    optimizer = build_optimizer(model.parameters(), config)
    total, per_epoch = config.num_steps(len(images)), math.ceil(len(images) / config.batch_size)
    rows = []  # stay on the device: reading them here would wait for every step
    for step in range(total):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = draw_order(seed, epoch, len(images), device)
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        kept = draw_kept(seed, step, len(chosen), cnn.dense, cnn.dropout, device) if cnn.dropout else None
        target = labels[chosen]
        with precision(config.bf16, device):
            logits = model((images[chosen] - mean).contiguous(memory_format=torch.channels_last), kept)
        loss = functional.cross_entropy(logits.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        correct = (logits.detach().argmax(1) == target).sum()
        rows.append(torch.stack([loss.detach() * len(chosen), correct]))
        if progress is not None:
            progress(step + 1, total, f"epoch {epoch + 1}")
    return finish_training(model, mean, torch.stack(rows), len(images), config)


def build_classifier(cnn: CnnConfig, num_classes: int, seed: int) -> LesionCnn:
    """Build a network on the CPU whose initial weights depend on `seed` alone; torch's random state is left alone.

    Its convolutions are laid out as the CPU and the GPU like them: a quarter faster on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = LesionCnn(cnn, num_classes)
    return _channels_last(model)


def build_optimizer(parameters: Iterable[torch.Tensor], config: ClassifierConfig) -> torch.optim.SGD:
    """Make the optimiser of a training."""
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


def finish_training(
    model: LesionCnn, mean: float, rows: torch.Tensor, num_images: int, config: ClassifierConfig
) -> TrainedClassifier:
    """Make the result of a training that is over.

    Args:
        model: As trained.
        mean: That was subtracted.
        rows: [steps, 2], for each step the sum of the losses and the number of images that were right.
        num_images: Of the training set.
        config: Of the training.

    Raises:
        DataError: It diverged.
    """
    rows = rows.double().cpu()
    history, done = [], 0
    for epoch, part in enumerate(torch.split(rows, math.ceil(num_images / config.batch_size)), 1):
        seen = min(len(part) * config.batch_size, num_images)
        done += len(part)
        loss, correct = part.sum(0).tolist()
        history.append(Epoch(epoch, loss / seen, correct / seen))
    # The loss is taken before its step, so the last step shows in the parameters alone.
    if not (math.isfinite(history[-1].loss) and all(bool(p.isfinite().all()) for p in model.parameters())):
        raise diverged("training loss", config, done)
    return TrainedClassifier(model.eval(), mean, tuple(history), done)


def diverged(what: str, config: ClassifierConfig, num_steps: int) -> DataError:
    """Make the error of a training whose `what` overflowed."""
    return DataError(
        "classifier.learning_rate",
        f"the {what} is no longer finite after {num_steps} steps at rate {config.learning_rate}",
        "Use a smaller rate",
    )


@torch.no_grad()
def predict_probabilities(trained: TrainedClassifier, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Class probabilities.

    Args:
        trained: The network and its mean.
        images: [N, 1, S, S] float32 in (0, 1), on any device.
        batch_size: Images at once.

    Returns:
        [N, classes] float32 on the CPU.
    """
    device = next(trained.model.parameters()).device
    parts = [
        trained.model((part.to(device) - trained.mean).contiguous(memory_format=torch.channels_last)).softmax(1).cpu()
        for part in torch.split(images, batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, trained.model.num_classes)


def save_classifier(trained: TrainedClassifier, folder: Path, classes: tuple[str, ...]) -> None:
    """Write `model.safetensors` and `model.json` (sizes, classes and the mean to subtract) into an existing folder."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.model.state_dict().items()}
    write_bytes_atomic(folder / "model.safetensors", save(state))
    sizes = trained.model.config.model_dump(mode="json")
    write_json_atomic(
        folder / "model.json",
        {"schema": MODEL_SCHEMA, "network": "cnn", "cnn": sizes, "classes": list(classes), "train_mean": trained.mean},
    )


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> tuple[TrainedClassifier, tuple[str, ...]]:
    """Read what `save_classifier` wrote: the classifier (without history) and its class names.

    Raises:
        DataError: A missing, unknown or damaged file.
    """
    from safetensors.torch import load

    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if described["schema"] != MODEL_SCHEMA or described["network"] != "cnn":
            raise ValueError(f"schema {described['schema']}, network {described['network']!r}")
        classes = tuple(described["classes"])
        # The initial weights are thrown away; leave the caller's random state alone.
        with torch.random.fork_rng(devices=[]):
            model = LesionCnn(CnnConfig.model_validate(described["cnn"]), len(classes))
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
        mean = float(described["train_mean"])
    except Exception as error:
        raise unreadable_model(folder, error) from error
    model = _channels_last(model.to(torch.device(device)))
    return TrainedClassifier(model.eval(), mean, (), 0), classes


def unreadable_model(folder: Path, error: Exception) -> DataError:
    """Make the error of a model's folder that cannot be read."""
    return DataError(
        f"models/{folder.name}",
        f"this is not a readable model ({type(error).__name__}: {error})",
        "Train it again: delete the folder and run",
    )


def check_training_set(
    images: torch.Tensor, labels: torch.Tensor, num_classes: int, size: int, what: str = "images"
) -> None:
    """Refuse what cannot be trained on.

    Args:
        images: Wanted as float32 [N, 1, size, size] in (0, 1), N > 0.
        labels: Wanted as int64 [N], 0 .. num_classes - 1.
        num_classes: Classes.
        size: Pixels per side.
        what: The images are called that in errors.

    Raises:
        DataError: Pixels or labels out of range.
        ValueError: Shapes or types.
    """
    if images.ndim != 4 or images.shape[1:] != (1, size, size) or images.dtype != torch.float32 or len(images) == 0:
        raise ValueError(
            f"images must be float32 [N, 1, {size}, {size}] with N > 0, got {images.dtype} {list(images.shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}")
    check_unit_range(images)
    if int(labels.min()) < 0:
        raise DataError(
            "labels",
            f"{int((labels < 0).sum())} of {len(labels)} {what} have no class",
            "Give every lesion a class, or leave it out",
        )
    if int(labels.max()) >= num_classes:
        raise DataError(
            "labels", f"label {int(labels.max())} is not below num_classes = {num_classes}", "Check the class list"
        )


def _channels_last(model: LesionCnn) -> LesionCnn:
    """Lay the convolutions' weights out as the CPU and the GPU like them: a quarter faster on the CPU."""
    converted: LesionCnn = nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
    return converted
