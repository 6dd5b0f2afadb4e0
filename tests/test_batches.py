"""Endless batches: order by definition, across epochs, resumable."""

from __future__ import annotations

import copy
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch

import lesionaug as la
from lesionaug.augment.execute import PlannedAugmentation
from tests import reference
from tests.conftest import DEVICES, TILED_DEVICES, open_device


@pytest.fixture(params=DEVICES + TILED_DEVICES)
def device(request, monkeypatch):
    return open_device(request.param, monkeypatch)


def make(device, batch_size=7, seed=3, plan=None, **options):
    g = torch.Generator().manual_seed(0)
    images = [torch.randint(-200, 300, (30 + i, 28), generator=g, dtype=torch.int16).to(device) for i in range(3)]
    rois = la.RoiBatch.from_images(images, [[14, 15]] * 3, [9, 10, 11], labels=["b", "a", "b"])
    plan = plan or la.AugmentationPlan(n_rot=2, n_flip=1, n_trans=1, n_scale=1)
    return la.AugmentedBatches(rois, plan, batch_size=batch_size, seed=seed, size=8, window=(-160, 240), **options)


def expected_order(batches, epochs):
    key = (batches.seed & 0xFFFFFFFF, batches.seed >> 32)
    for epoch in range(epochs):
        yield from sorted(
            range(batches.epoch_size), key=lambda i: (reference.philox((i, epoch, 0xFFFFFFFE, 0), key)[0], i)
        )


def test_order_pixels_and_labels_follow_the_definition_across_epochs(device):
    batches = make(device)
    everything = la.augment(batches.rois, batches.plan.sample(batches.rois, seed=3), size=8, window=(-160, 240))
    assert batches.epoch_size == 24
    assert len(batches) == 4
    order = list(expected_order(batches, 3))
    taken = list(itertools.islice(batches, 10))
    for b, (x, label) in enumerate(taken):
        rows = torch.tensor(order[7 * b : 7 * b + 7], device=device)
        assert torch.equal(x, everything[rows])
        assert torch.equal(label, batches.rois.labels[rows // 8])


def test_every_patch_once_an_epoch_and_epochs_differ():
    batches = make("cpu", batch_size=24)
    first, second = (next(batches)[0].flatten(1) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


def test_a_batch_larger_than_an_epoch():
    x, label = next(make("cpu", batch_size=60))
    assert x.shape == (60, 1, 8, 8)
    assert label.shape == (60,)


def test_resumes_where_it_stood(device):
    whole = list(itertools.islice(make(device), 9))
    first = make(device)
    list(itertools.islice(first, 5))
    state = first.state_dict()
    again = make(device)
    again.load_state_dict(state)
    for (x, label), (expected_x, expected_label) in zip(itertools.islice(again, 4), whole[5:], strict=True):
        assert torch.equal(x, expected_x)
        assert torch.equal(label, expected_label)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_process_would_see(world_size):
    whole = list(itertools.islice(make("cpu"), 6 * world_size))
    ranks = [make("cpu", rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(len(batches) == -(-24 // (7 * world_size)) for batches in ranks)
    for step in range(6):
        for rank, batches in enumerate(ranks):
            x, label = next(batches)
            expected_x, expected_label = whole[step * world_size + rank]
            assert torch.equal(x, expected_x)
            assert torch.equal(label, expected_label)
    assert all(batches.state_dict() == ranks[0].state_dict() for batches in ranks), "one saved state serves all ranks"
    again = make("cpu", rank=1, world_size=world_size)
    again.load_state_dict(ranks[0].state_dict())
    assert torch.equal(next(again)[0], next(ranks[1])[0])


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"batch_size": 8}, {"plan": la.AugmentationPlan(n_rot=2, n_flip=1, n_trans=2, n_scale=0)}]
)
def test_a_state_of_other_batches_is_refused(change):
    with pytest.raises(ValueError, match="the state was saved with"):
        make("cpu", **change).load_state_dict(make("cpu").state_dict())


@pytest.mark.parametrize("options", [{}, {"dtype": torch.uint8, "size": 12, "border": "constant", "fill": -300.0}])
def test_rows_are_drawn_and_augmented_as_one_after_the_other(device, options):
    rois, plan = make(device).rois, la.AugmentationPlan(n_rot=3)
    spaced = la.RoiBatch.from_images(rois.images, rois.centers, rois.diameters, spacing_mm=[[0.7, 0.8]] * 3)
    options = {"size": 16, "window": (-160, 240)} | options
    for lesions in (rois, spaced):
        params = plan.sample(lesions, seed=2**40 + 1)
        order = torch.randperm(len(params), generator=torch.Generator().manual_seed(1)).to(device)
        rows = (order // len(plan) << 32) + order % len(plan)
        got = PlannedAugmentation(lesions, plan, seed=2**40 + 1, **options)(rows)
        assert torch.equal(got, la.augment(lesions, params, **options)[order])


def test_rows_that_do_not_exist_are_nan(device):
    rois = make(device).rois
    plan = la.AugmentationPlan(n_rot=1)
    rows = torch.tensor([-1, 3 << 32, 2**62, -(2**62), len(plan), 5], device=device)
    x = PlannedAugmentation(rois, plan, size=8)(rows)
    assert x[:5].isnan().all()
    assert torch.equal(x[5:], la.augment(rois, plan.sample(rois), size=8)[5:6])
    assert PlannedAugmentation(rois, plan, size=8)(rows[:0]).shape == (0, 1, 8, 8)


def test_a_lesion_too_large_for_a_patch_of_the_plan_is_named_at_once():
    rois = make("cpu").rois
    huge = la.RoiBatch.from_images(rois.images, rois.centers, [9, 1000, 9], lesion_ids=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"lesion 'b' is too large: .*1000 pixels, .*side of 2200, more than 2048"):
        la.AugmentedBatches(huge, la.AugmentationPlan(), size=8)
    for options in ({"size": 9}, {"size": 8, "antialias": False}):
        la.AugmentedBatches(huge, la.AugmentationPlan(), **options)
    unscaled = la.AugmentationPlan(n_scale=0)  # 1.4 diameters at most
    assert next(la.AugmentedBatches(huge, unscaled, size=8))[0].isfinite().all()


def test_lesions_that_move_in_memory_are_followed(device):
    """Sharing a tensor with another process moves it."""
    expected = [x for x, _ in itertools.islice(make(device), 3)]
    batches = make(device)
    assert torch.equal(next(batches)[0], expected[0])
    rois = batches.rois
    old = rois.packed.pixels.clone()
    for tensor in (rois.packed.pixels, rois.packed.offsets, rois.centers, rois.diameters, rois.lesion_keys):
        tensor.set_(tensor.clone())
    assert torch.equal(rois.packed.pixels, old)
    assert torch.equal(next(batches)[0], expected[1])


def test_batches_are_copied_and_pickled_where_they_stand():
    batches = make("cpu")
    next(batches)
    expected = list(itertools.islice(make("cpu"), 3))[1:]
    for again in (copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        for x, label in expected:
            got = next(again)
            assert torch.equal(got[0], x)
            assert torch.equal(got[1], label)


def test_a_batch_taken_in_inference_mode_leaves_no_trace():
    batches = make("cpu")
    with torch.inference_mode():
        next(batches)
    x, label = next(batches)
    weight = torch.zeros(64, 2, requires_grad=True)
    torch.nn.functional.cross_entropy(x.flatten(1) @ weight, label).backward()
    assert weight.grad is not None


def test_pixels_that_require_gradients_are_refused():
    image = torch.rand(20, 20, requires_grad=True)
    rois = la.RoiBatch.from_images([image], [[10, 10]], [8])
    with pytest.raises(ValueError, match="require gradients"):
        la.AugmentedBatches(rois, la.AugmentationPlan())


class FakeStream:
    """Stands in for a CUDA stream: nothing is asynchronous, what is asked of it is written down."""

    def __init__(self):
        self.calls = []

    def wait_stream(self, other):
        self.calls.append("wait")

    def wait_event(self, event):
        self.calls.append(event)

    def record_event(self):
        self.calls.append("record")
        return f"event {self.calls.count('record')}"


def raises(error):
    raise error


def test_batches_made_ahead_are_the_same_and_are_waited_for(monkeypatch):
    """The logic of prefetching; tests/test_cuda.py has the rest."""
    current, aside = FakeStream(), FakeStream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: current.calls.append("keep"))
    expected = list(itertools.islice(make("cpu"), 12))
    batches = make("cpu")
    batches._stream = aside
    state = {}
    for b, (x, label) in enumerate(expected[:8]):
        state[b] = batches.state_dict()
        got = next(batches)
        assert torch.equal(got[0], x)
        assert torch.equal(got[1], label)
        assert current.calls[-3:] == [f"event {b + 1}", "keep", "keep"]
    assert aside.calls == ["wait", "record"] * 9  # one is ahead
    with monkeypatch.context() as failing:  # no memory for the next batch, then an interruption: nothing is lost
        failing.setattr(batches, "_make_aside", lambda position: raises(torch.OutOfMemoryError))
        assert torch.equal(next(batches)[0], expected[8][0])
        failing.setattr(batches, "_make_aside", lambda position: raises(KeyboardInterrupt))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                next(batches)
    assert torch.equal(next(batches)[0], expected[9][0])
    batches.load_state_dict(state[2])
    for x, label in expected[2:12]:
        got = next(batches)
        assert torch.equal(got[0], x)
        assert torch.equal(got[1], label)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="batch_size"):
        make("cpu", batch_size=0)
    with pytest.raises(ValueError, match="seed"):
        make("cpu", seed=-1)
    with pytest.raises(ValueError, match="out"):
        make("cpu", out=torch.empty(1))
    with pytest.raises(ValueError, match="entries"):
        make("cpu").load_state_dict({"position": 3})
    with pytest.raises(ValueError, match="position"):
        make("cpu").load_state_dict({**make("cpu").state_dict(), "position": -1})
    for rank, world_size in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match="rank must lie in"):
            make("cpu", rank=rank, world_size=world_size)
    with pytest.raises(TypeError, match="rank"):
        make("cpu", rank=0.5, world_size=2)
    with pytest.raises(TypeError, match="prefetch"):
        make("cpu", prefetch=1)
    with pytest.raises(ValueError, match="size"):
        la.AugmentedBatches(make("cpu").rois, la.AugmentationPlan(), size=0)
