"""Many classifiers of one shape trained at once, each as `train_classifier` would train it.

The folds, groups and seeds of the experiment differ in their images and numbers of steps, not in their networks. On a
GPU one such network at batch 64 leaves most of the device idle, so their weights are stacked, each in a lane of its
own, and one step advances all of them. When a lane is done the next training takes its place.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesionaug.errors import MemoryRanOut
from lesionaug.models.cnn import CnnConfig, LesionCnn, drop
from lesionaug.training.classifier import (
    ClassifierConfig,
    TrainedClassifier,
    build_classifier,
    build_optimizer,
    check_training_set,
    finish_training,
)
from lesionaug.training.device import is_out_of_memory, precision
from lesionaug.training.draws import draw_kept, draw_order
from lesionaug.training.graphs import WARM_UP, Graph, beside, record, side_stream

LaneForm = Literal["separate", "grouped", "matmul"]
LANE_FORMS: tuple[LaneForm, ...] = ("separate", "grouped", "matmul")
STREAMS = 8  # that separate lanes share on a GPU
BLOCK = 32  # steps whose images and dropout are chosen in one go, and after which the host looks


@dataclass(frozen=True)
class Lane:
    """One classifier to train.

    Attributes:
        name: Of the training.
        first: Its first image in the pool.
        count: Its images, from there on.
        seed: Initial weights, order and dropout; 0 <= seed < 2**63.
    """

    name: str
    first: int
    count: int
    seed: int


def train_lanes(
    images: Tensor,
    labels: Tensor,
    lanes: Sequence[Lane],
    config: ClassifierConfig,
    *,
    num_classes: int,
    num_lanes: int,
    on_trained: Callable[[Lane, TrainedClassifier], None],
    form: LaneForm = "grouped",
    cnn: CnnConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Lane, int, str], None] | None = None,
) -> None:
    """Train classifiers, several at a time; each learns what `train_classifier` teaches it, up to rounding.

    Args:
        images: [N, 1, S, S] float32 in (0, 1), the pool that all lanes take theirs from; moved to `device` once.
        labels: [N] int64.
        lanes: What is trained, in the order in which it is begun: the longest first leaves the fewest lanes idle.
        config: Of every training.
        num_classes: Outputs of the networks.
        num_lanes: How many at a time; halved as often as memory runs out.
        on_trained: Called with every lane that is done, and its classifier.
        form: How their convolutions are computed: "separate", one after another or, on a GPU, each on a stream of its
            own; "grouped", one grouped convolution; "matmul", batched matrix products of unfolded images.
        cnn: Sizes of the networks; Fig. 2 when None.
        device: Where to train.
        progress: Called as (lane, steps done of it, text) after every block of steps.

    Raises:
        DataError: Images or labels that cannot be trained on; a training that diverged.
        MemoryRanOut: Memory ran out with a single lane.
        ValueError: Shapes or types; lanes beyond the pool; an unknown form.
    """
    cnn, device = cnn or CnnConfig(), torch.device(device)
    check_training_set(images, labels, num_classes, cnn.image_size)
    if form not in LANE_FORMS:
        raise ValueError(f"form must be one of {', '.join(LANE_FORMS)}, got {form!r}")
    if num_lanes < 1:
        raise ValueError(f"num_lanes must be at least 1, got {num_lanes}")
    for lane in lanes:
        if lane.first < 0 or lane.count < 1 or lane.first + lane.count > len(images):
            raise ValueError(
                f"lane {lane.name} wants images {lane.first} .. {lane.first + lane.count} of {len(images)}"
            )
    pool = LanePool(images.to(device), labels.to(device), cnn, num_classes, config)
    waiting, size = deque(lanes), min(num_lanes, len(lanes))
    stack: LaneStack | None = None
    while waiting or (stack is not None and stack.running):
        done: list[tuple[_Running, TrainedClassifier]] = []
        ran_out: RuntimeError | None = None
        try:
            stack = stack or LaneStack(pool, size, form)
            stack = _filled(stack, waiting)  # two lines: where this raises, what runs in the stack is known
            stack.run(min(BLOCK, *(state.remaining for state in stack.running)))
            for slot, state in enumerate(stack.lanes):
                if state is not None and state.remaining == 0:
                    done.append((state, stack.take(slot)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            ran_out = error
        for state in [state for state, _ in done] + (stack.running if stack is not None else []):
            if progress is not None and ran_out is None:
                progress(state.lane, state.step, f"epoch {state.epoch}")
        for state, trained in done:
            on_trained(state.lane, trained)
        if ran_out is None:
            continue
        used = size if stack is None else stack.size
        if used == 1:
            raise _one_is_too_many() from ran_out
        # Some of the weights may have moved and others not: what was running starts again, to the same result.
        waiting.extendleft(state.lane for state in reversed(stack.running if stack is not None else []))
        size = used // 2
        ran_out = stack = None  # with it goes what its frames hold
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _filled(stack: LaneStack, waiting: deque[Lane]) -> LaneStack:
    """The stack with trainings in its free lanes; a narrower one where half of them are left over."""
    for slot in range(stack.size):
        if stack.lanes[slot] is None and waiting:
            stack.put(slot, waiting[0])
            waiting.popleft()  # not before it has its place
    if not waiting and len(stack.running) <= stack.size // 2:
        return stack.narrowed()  # or half of the work would be for nothing
    return stack


def _one_is_too_many() -> MemoryRanOut:
    return MemoryRanOut(
        "batch_size",
        "memory ran out with one network at a time",
        "Use a smaller batch or group, or close what else uses the device",
    )


def time_lanes(
    form: LaneForm,
    num_lanes: int,
    config: ClassifierConfig,
    *,
    num_classes: int,
    cnn: CnnConfig,
    device: torch.device,
    seconds: float,
) -> float:
    """Train `num_lanes` networks on noise for about `seconds`: images that all of them took in a second.

    Arguments are those of `train_lanes`.

    Raises:
        MemoryRanOut: Memory ran out.
    """
    num = BLOCK * config.batch_size  # as many as a block of steps takes, so that they come from memory as a pool's do
    images = torch.rand(num, 1, cnn.image_size, cnn.image_size, device=device)
    labels = torch.arange(num, device=device) % num_classes
    endless = config.model_copy(update={"steps": 2**40, "learning_rate": 1e-6})
    try:
        stack = LaneStack(LanePool(images, labels, cnn, num_classes, endless), num_lanes, form)
        for slot in range(num_lanes):
            stack.put(slot, Lane("", 0, num, slot))
        stack.run(1)
        steps, block, elapsed = 0, 1, 0.0
        started = _now(device)
        while elapsed < seconds:
            stack.run(block)
            steps, block = steps + block, min(2 * block, BLOCK)
            elapsed = _now(device) - started
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if num_lanes == 1:
            raise _one_is_too_many() from error
        raise MemoryRanOut("num_lanes", f"memory ran out with {num_lanes}", "Use fewer") from error
    return steps * num_lanes * config.batch_size / elapsed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True, eq=False)
class LanePool:
    """What all lanes share.

    Attributes:
        images: [N, 1, S, S] float32 in (0, 1), on the device.
        labels: int64 [N].
        cnn: Sizes of the networks.
        num_classes: Their outputs.
        config: Of every training.
    """

    images: Tensor
    labels: Tensor
    cnn: CnnConfig
    num_classes: int
    config: ClassifierConfig


@dataclass(eq=False)
class _Running:
    """Where a lane is."""

    lane: Lane
    batch_size: int
    total: int
    mean: Tensor
    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    rows: list[Tensor] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.total - self.step

    @property
    def per_epoch(self) -> int:
        return math.ceil(self.lane.count / self.batch_size)

    @property
    def epoch(self) -> int:
        return (self.step - 1) // self.per_epoch + 1

    def choose(self, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images of the next steps in the pool, int64 [steps, B], and 1 or 0 for those that fill up a batch."""
        parts, step, end = [], self.step, self.step + steps
        while step < end:
            epoch, place = divmod(step, self.per_epoch)
            if place == 0 or not len(self.order):
                order = draw_order(self.lane.seed, epoch, self.lane.count, device)
                self.order = functional.pad(order, (0, self.per_epoch * self.batch_size - self.lane.count), value=-1)
            taken = min(self.per_epoch - place, end - step)
            parts.append(self.order.view(-1, self.batch_size)[place : place + taken])
            step += taken
        chosen = torch.cat(parts)
        return chosen.clamp_min(0) + self.lane.first, (chosen >= 0).float()


class LaneStack:
    """Networks of one shape, stacked: weights [lanes, ...], and one step that advances all of them.

    On a GPU the step is recorded once and repeated (graphs.py).

    Args:
        pool: Images and what is common to all.
        size: Lanes.
        form: See `train_lanes`.
    """

    def __init__(self, pool: LanePool, size: int, form: LaneForm) -> None:
        cnn, batch, device = pool.cnn, pool.config.batch_size, pool.images.device
        self._pool, self._form = pool, form
        self.size = size
        self.lanes: list[_Running | None] = [None] * size
        self._like = build_classifier(cnn, pool.num_classes, 0).train()
        self._weights = {name: _stacked(weight, size, device) for name, weight in self._like.named_parameters()}
        self._optimizer = build_optimizer(self._weights.values(), pool.config)
        self._mean = torch.zeros(size, 1, 1, 1, 1, device=device)
        # What a block of steps works on, read at `_at`, which every step moves on.
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._chosen = torch.zeros(BLOCK, size, batch, dtype=torch.int64, device=device)
        self._counts = torch.zeros(BLOCK, size, batch, device=device)
        self._kept = torch.ones(BLOCK, size, batch, cnn.dense, dtype=torch.bool, device=device)
        self._rows = torch.zeros(BLOCK, size, 2, device=device)
        self._graph: Graph | None = None
        self._warm = False

    @property
    def running(self) -> list[_Running]:
        """The trainings that have a lane."""
        return [state for state in self.lanes if state is not None]

    def put(self, slot: int, lane: Lane) -> None:
        """Begin a training."""
        pool = self._pool
        model = build_classifier(pool.cnn, pool.num_classes, lane.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                self._weights[name][slot] = weight.to(pool.images.device)
            for momentum in self._momenta():
                momentum[slot] = 0
            mean = pool.images[lane.first : lane.first + lane.count].mean(dtype=torch.float64)
            self._mean[slot] = mean
        self.lanes[slot] = _Running(lane, pool.config.batch_size, pool.config.num_steps(lane.count), mean)

    def take(self, slot: int) -> TrainedClassifier:
        """End a training: its classifier."""
        state, pool = self.lanes[slot], self._pool
        assert state is not None
        model = build_classifier(pool.cnn, pool.num_classes, 0).to(pool.images.device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(self._weights[name][slot])
        trained = finish_training(model, float(state.mean), torch.cat(state.rows), state.lane.count, pool.config)
        self.lanes[slot] = None
        self._counts[:, slot] = 0
        return trained

    def narrowed(self) -> LaneStack:
        """The same with as many slots as trainings are running."""
        kept = [slot for slot, state in enumerate(self.lanes) if state is not None]
        stack = LaneStack(self._pool, len(kept), self._form)
        stack.lanes = [self.lanes[slot] for slot in kept]
        stack._warm_up()
        with torch.no_grad():
            for name, weight in stack._weights.items():
                weight.copy_(self._weights[name][kept])
            for new, old in zip(stack._momenta(), self._momenta(), strict=True):
                new.copy_(old[kept])
            stack._mean.copy_(self._mean[kept])
        return stack

    def run(self, steps: int) -> None:
        """Take steps of every running training, no more than the shortest has left."""
        pool, device = self._pool, self._pool.images.device
        self._warm_up()
        for slot, state in enumerate(self.lanes):
            if state is None:
                continue
            self._chosen[:steps, slot], self._counts[:steps, slot] = state.choose(steps, device)
            if pool.cnn.dropout:
                numbers = torch.arange(state.step, state.step + steps, device=device)
                batch, cnn = pool.config.batch_size, pool.cnn
                self._kept[:steps, slot] = draw_kept(state.lane.seed, numbers, batch, cnn.dense, cnn.dropout, device)
        self._at.zero_()
        for _ in range(steps):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        for slot, state in enumerate(self.lanes):
            if state is not None:
                state.rows.append(self._rows[:steps, slot].clone())
                state.step += steps

    def _warm_up(self) -> None:
        """Steps in which no image counts: no weight moves, momenta come into being, and a graph can be recorded."""
        if self._warm:
            return
        self._counts.zero_()
        device = self._at.device
        for _ in range(WARM_UP if device.type == "cuda" else 1):
            self._at.zero_()
            beside(self._step, device)
        if device.type == "cuda":
            self._graph = record(self._step)
        self._warm = True

    def _momenta(self) -> list[Tensor]:
        states = (self._optimizer.state[weight] for weight in self._weights.values())
        return [state["momentum_buffer"] for state in states if state.get("momentum_buffer") is not None]

    def _step(self) -> Tensor:
        pool, cnn = self._pool, self._pool.cnn
        chosen, counts, kept = (part.index_select(0, self._at)[0] for part in (self._chosen, self._counts, self._kept))
        images = pool.images[chosen] - self._mean  # [L, B, 1, S, S]
        targets = pool.labels[chosen]  # [L, B]
        with precision(pool.config.bf16, images.device):
            logits = lane_logits(self._form, self._weights, images, kept if cnn.dropout else None, self._like)
        losses = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        sums = (losses.view_as(counts) * counts).sum(1)
        self._optimizer.zero_grad(set_to_none=True)
        (sums / counts.sum(1).clamp_min(1)).sum().backward()
        self._optimizer.step()
        correct = ((logits.detach().argmax(2) == targets) * counts).sum(1)
        self._rows.index_copy_(0, self._at, torch.stack([sums.detach(), correct], 1)[None])
        self._at += 1
        return sums


def _stacked(weight: Tensor, size: int, device: torch.device) -> nn.Parameter:
    """Room for `size` of a weight, each laid out as it is."""
    room = torch.zeros(size, weight.numel(), device=device)
    return nn.Parameter(room.as_strided((size, *weight.shape), (weight.numel(), *weight.stride())))


def lane_logits(
    form: LaneForm, weights: Mapping[str, Tensor], images: Tensor, kept: Tensor | None, like: LesionCnn
) -> Tensor:
    """Compute the logits of each lane's images.

    Args:
        form: See `train_lanes`.
        weights: By name, [L, ...].
        images: [L, B, 1, S, S], means subtracted.
        kept: bool [L, B, dense], what dropout keeps; None: everything.
        like: A network of the lanes' shape.

    Returns:
        [L, B, classes].
    """
    if form == "separate":
        return _separate(weights, images, kept, like)
    return (_grouped if form == "grouped" else _matmul)(weights, images, kept, like.config)


def _separate(weights: Mapping[str, Tensor], images: Tensor, kept: Tensor | None, like: LesionCnn) -> Tensor:
    """By the network itself, lane after lane; on a GPU each on a stream of its own."""
    of_lane = {name: weight.unbind() for name, weight in weights.items()}
    cuda = images.is_cuda
    here = torch.cuda.current_stream(images.device) if cuda else None
    # From 1 on: the stream beside the current one may be the one that this runs on.
    streams = [side_stream(images.device, 1 + number) for number in range(min(STREAMS, len(images)))] if here else []
    for stream in streams:
        assert here is not None
        stream.wait_stream(here)
    logits = []
    try:
        for lane, shown in enumerate(images.unbind()):
            own = {name: parts[lane] for name, parts in of_lane.items()}
            with torch.cuda.stream(streams[lane % STREAMS] if streams else None):
                arguments = (shown.contiguous(memory_format=torch.channels_last), None if kept is None else kept[lane])
                logits.append(torch.func.functional_call(like, own, arguments))
    finally:  # also where memory ran out: a recording cannot end with streams that never came back
        for stream in streams:
            assert here is not None
            here.wait_stream(stream)
    return torch.stack(logits)


def _grouped(weights: Mapping[str, Tensor], images: Tensor, kept: Tensor | None, cnn: CnnConfig) -> Tensor:
    """The lanes are the groups of grouped convolutions."""
    lanes = len(images)
    x = images.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)  # [B, L, S, S]
    for i in range(len(cnn.channels)):
        weight, bias = weights[f"convolutions.{i}.weight"], weights[f"convolutions.{i}.bias"]
        x = functional.conv2d(x, weight.flatten(0, 1), bias.flatten(), groups=lanes)
        x = functional.relu(functional.max_pool2d(x, cnn.pool))
    return _dense(weights, x.unflatten(1, (lanes, -1)).transpose(0, 1).flatten(2), kept, cnn)


def _matmul(weights: Mapping[str, Tensor], images: Tensor, kept: Tensor | None, cnn: CnnConfig) -> Tensor:
    """Convolutions as products of unfolded images."""
    lanes, batch = images.shape[:2]
    x = images.flatten(0, 1).permute(0, 2, 3, 1)  # [L B, S, S, 1], channels last from here on
    for i in range(len(cnn.channels)):
        weight, bias = weights[f"convolutions.{i}.weight"], weights[f"convolutions.{i}.bias"]
        patches = x.unfold(1, cnn.kernel, 1).unfold(2, cnn.kernel, 1).permute(0, 1, 2, 4, 5, 3)  # [L B, H, W, k, k, C]
        height, width = patches.shape[1:3]
        kernels = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # [L, k k C, O]
        y = torch.baddbmm(bias[:, None], patches.reshape(lanes, batch * height * width, -1), kernels)
        y = y.view(lanes * batch, height, width, -1).permute(0, 3, 1, 2)
        x = functional.relu(functional.max_pool2d(y, cnn.pool)).permute(0, 2, 3, 1)
    return _dense(weights, x.permute(0, 3, 1, 2).reshape(lanes, batch, -1), kept, cnn)


def _dense(weights: Mapping[str, Tensor], x: Tensor, kept: Tensor | None, cnn: CnnConfig) -> Tensor:
    """The two dense layers on [L, B, features]."""
    x = functional.relu(torch.baddbmm(weights["dense.bias"][:, None], x, weights["dense.weight"].mT))
    if kept is not None:
        x = drop(x, kept, cnn.dropout)
    return torch.baddbmm(weights["output.bias"][:, None], x, weights["output.weight"].mT)
