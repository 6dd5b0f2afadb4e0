"""Endless batches: order by definition, across epochs, resumable."""

from __future__ import annotations

import itertools

import pytest
import torch

import lesionaug as la
from tests import reference


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
