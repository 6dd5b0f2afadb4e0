"""How long the steps of a run will take here: their costs over rates that are measured, or known from steps done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lesionaug.experiment import costs
from lesionaug.experiment.config import RunConfig
from lesionaug.experiment.machine import resolve_device, threads
from lesionaug.experiment.protocol import Step
from lesionaug.training.classifier import ClassifierConfig, train_classifier
from lesionaug.training.gan import Gan, GanConfig, train_step

_STEPS = 4  # of a classifier that are timed, and as many that warm up
Rates = Mapping[str, float]  # kind of step -> multiply-adds a second


def measure_rates(config: RunConfig, num_classes: int) -> Rates:
    """Time a few training steps of the run's own networks on its device, one training at a time."""
    device = torch.device(resolve_device(config.device))
    size, batch = config.cnn.image_size, config.classifier.batch_size
    images, labels = (
        torch.rand(batch, 1, size, size, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )

    def classify(steps: int) -> None:
        wanted = ClassifierConfig.model_validate(
            {**config.classifier.model_dump(), "steps": steps, "learning_rate": 1e-9}
        )
        train_classifier(images, labels, wanted, num_classes=num_classes, cnn=config.cnn, seed=0, device=device)

    with threads(config.threads_per_task):
        classify(_STEPS)
        seconds = _timed(lambda: classify(_STEPS), device)
        wanted = config.classifier.model_copy(update={"steps": _STEPS})
        rates = {"cnn": costs.classifier(config.cnn, wanted, batch) / seconds}
        if config.gans:
            rates["gan"] = _gan_rate(config.gan(config.gans[0]), num_classes, device)
    return rates


def _gan_rate(gan: GanConfig, num_classes: int, device: torch.device) -> float:
    size = gan.network.image_size
    built = Gan.build(gan, num_classes, 0, device)
    images = torch.rand(gan.batch_size, 1, size, size, device=device)
    labels = torch.zeros(gan.batch_size, dtype=torch.int64, device=device)
    train_step(built, images, labels)
    seconds = _timed(lambda: train_step(built, images, labels), device)
    return costs.gan(gan.model_copy(update={"steps": 1}), gan.batch_size) / seconds


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - started, 1e-6)


def known_rates(steps: Sequence[Step], seconds: Mapping[str, float]) -> Rates:
    """Rates of the steps that are done, by kind.

    Args:
        steps: Of the run.
        seconds: That those which are done took, by name.
    """
    rates = {}
    for kind in {step.kind for step in steps}:
        done = [step for step in steps if step.kind == kind and step.name in seconds]
        spent = sum(seconds[step.name] for step in done)
        if spent > 0:
            rates[str(kind)] = sum(step.cost for step in done) / spent
    return rates


def seconds_of(steps: Sequence[Step], rates: Rates) -> float:
    """Seconds that steps take one after another; those of a kind that has no rate count as `costs.PLAIN`."""
    alike = {"synthetic": "gan", "discriminator": "gan"}
    total = 0.0
    for step in steps:
        rate = rates.get(step.kind) or rates.get(alike.get(step.kind, ""), costs.PLAIN)
        total += step.cost / rate
    return total


def show_seconds(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h, 6 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {name}" if name == "h" and value < 10 else f"{value:.0f} {name}"
    return f"{seconds / 86400:.1f} days"
