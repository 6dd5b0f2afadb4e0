"""Whole training steps as CUDA graphs: one launch a step, however many kernels it has.

A graph repeats what the device did while the step was recorded, with the same addresses. So all that changes from step
to step lies in tensors that stay where they are: images are copied in, and the steps count themselves (draws.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lesionaug.training.gan import METRICS, Gan, train_step

WARM_UP = 3  # steps before one is recorded, in which libraries choose their kernels and take their workspaces


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Do it again."""


Record = Callable[[Callable[[], object]], Graph]


def record(step: Callable[[], object]) -> Graph:
    """Record what `step` does on the current CUDA device; nothing is executed.

    The step must have run before (`WARM_UP` times, on a side stream; see `beside`).
    """
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            step()
    finally:
        torch.cuda.set_stream(here)  # where ending a broken recording raises, PyTorch leaves its own stream current
    return graph


_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def side_stream(device: torch.device, number: int = 0) -> torch.cuda.Stream:
    """A stream beside the current one, the same at each call: the memory that is cached for a stream stays its own."""
    key = (device, number)
    if key not in _streams:
        _streams[key] = torch.cuda.Stream(device)
    return _streams[key]


def beside(step: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Run `step` on a stream of its own, as work must be that is recorded afterwards; others wait for it."""
    if device.type != "cuda":
        return step()
    here, there = torch.cuda.current_stream(device), side_stream(device)
    there.wait_stream(here)
    try:
        with torch.cuda.stream(there):
            result = step()
    finally:
        here.wait_stream(there)
    result.record_stream(here)
    return result


@dataclass(eq=False)
class _Recorded:
    graph: Graph
    images: Tensor
    labels: Tensor
    metrics: Tensor


class GraphedSteps:
    """`train_step` of one GAN, from the fourth of a kind on as a graph.

    A step with the gradient penalty and one without are of different kinds.

    Args:
        gan: What is trained; its weights stay where they are from here on.
        record: Replaced in tests.
    """

    def __init__(self, gan: Gan, record: Record = record) -> None:
        self._gan, self._record = gan, record
        self._recorded: dict[tuple[bool, int], _Recorded] = {}
        self._seen: Counter[tuple[bool, int]] = Counter()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do what `train_step` does, with the same arguments and result."""
        gan = self._gan
        kind = (gan.penalised, len(images))
        if kind not in self._recorded:
            if self._seen[kind] < WARM_UP:
                self._seen[kind] += 1
                return beside(lambda: train_step(gan, images, labels), gan.device)
            self._recorded[kind] = self._record_step(images, labels)
        recorded = self._recorded[kind]
        recorded.images.copy_(images)
        recorded.labels.copy_(labels)
        recorded.graph.replay()
        gan.step += 1
        return recorded.metrics.clone()

    def _record_step(self, images: Tensor, labels: Tensor) -> _Recorded:
        gan, images, labels = self._gan, images.clone(), labels.clone()
        metrics = torch.empty(len(METRICS), device=gan.device)
        before = gan.step
        graph = self._record(lambda: metrics.copy_(train_step(gan, images, labels)))
        gan.step = before  # it was recorded, not taken
        return _Recorded(graph, images, labels, metrics)
