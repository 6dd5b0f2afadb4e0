"""The plan's random numbers: known answers, an independent implementation, and independence of everything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment.philox import philox
from tests import reference

# Random123's known-answer vectors (kat_vectors, philox4x32 10): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def batch(n=3, device="cpu", ids=None, diameters=None):
    images = [torch.zeros(20 + i, 30, dtype=torch.int16, device=device) for i in range(n)]
    diameters = diameters if diameters is not None else [10.0 + 17.3 * i for i in range(n)]
    ids = ids if ids is not None else [f"lesion {i}" for i in range(n)]
    return la.RoiBatch.from_images(images, [[10, 10]] * n, diameters, lesion_ids=ids, labels=[i % 2 for i in range(n)])


def rows(params):
    return [
        (np.float32(a), int(f), tuple(np.float32(s)), np.float32(w))
        for a, f, s, w in zip(
            params.angle.cpu().numpy(),
            params.flip.cpu(),
            params.shift.cpu().numpy(),
            params.side.cpu().numpy(),
            strict=True,
        )
    ]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(device, counter, key, result):
    words = philox(torch.tensor([counter], device=device), key[0] + (key[1] << 32))
    assert tuple(words[0].tolist()) == result
    assert tuple(reference.philox(counter, key)) == result


def test_the_vectors_of_the_design(device):
    rois = batch(1, device, ids=["case-0"], diameters=[40.0])
    plan = la.AugmentationPlan()
    params = plan.sample(rois, seed=1)
    assert len(params) == len(plan) == 480
    assert params.angle[0].item() == np.float32(77.6722776889801)
    assert params.side[0].item() == 56
    assert params.flip[1].item() == 2
    assert params.shift[4].tolist() == [0.783745288848877, -1.9286599159240723]
    assert params.side[11].item() == np.float32(82.4117841720581)
    assert plan.order(rois, seed=1)[0, :6].tolist() == [281, 461, 86, 327, 192, 270]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**64 - 1])
def test_every_parameter_equals_the_reference_bit_for_bit(device, seed):
    rois = batch(3, device, diameters=[0.37, 41.9, 118.2])
    params = la.AugmentationPlan().sample(rois, seed=seed)
    expected = [
        reference.plan_row(lesion, float(d), k, seed)
        for lesion, d in zip(rois.lesion_ids, rois.diameters.tolist(), strict=True)
        for k in range(480)
    ]
    assert rows(params) == expected
    assert params.roi.tolist() == [i for i in range(3) for _ in range(480)]


def test_other_plans_than_the_papers(device):
    rois = batch(2, device)
    for counts in ((1, 0, 0, 0), (2, 1, 0, 3), (3, 2, 5, 0)):
        plan = la.AugmentationPlan(*counts)
        expected = [
            reference.plan_row(lesion, float(d), k, 9, *counts[1:])
            for lesion, d in zip(rois.lesion_ids, rois.diameters.tolist(), strict=True)
            for k in range(len(plan))
        ]
        assert rows(plan.sample(rois, seed=9)) == expected


def test_ranges_are_the_papers(device):
    rois = batch(3, device, diameters=[17.0, 50.0, 114.0])
    plan = la.AugmentationPlan()
    params = plan.sample(rois, seed=0)
    d = rois.diameters[params.roi]
    assert float(params.angle.min()) >= 0
    assert float(params.angle.max()) < 180
    assert bool((params.shift.abs() <= torch.clamp(0.1 * d, max=4.0)[:, None]).all())
    added = (params.side - 1.4 * d) / 2 / d
    scaled = params.side > 1.4 * d * (1 + 1e-6)
    assert int(scaled.sum()) == 3 * 30 * 5
    assert float(added[scaled].min()) >= 0.1 - 1e-5
    assert float(added[scaled].max()) <= 0.4 + 1e-5
    # Kinds are not composed with each other.
    kinds = torch.stack([params.flip > 0, (params.shift != 0).any(1), scaled])
    assert int(kinds.sum(0).max()) == 1
    variant = torch.arange(len(params), device=params.roi.device) % 16
    assert bool((params.flip[variant == 1] == 2).all())
    assert bool((params.flip[variant == 2] == 1).all())
    assert bool((params.flip[variant == 3] == 3).all())
    assert bool((params.angle.view(3, 30, 16) == params.angle.view(3, 30, 16)[..., :1]).all())


def test_parameters_do_not_depend_on_batch_order_or_split(device):
    rois = batch(4, device)
    plan = la.AugmentationPlan()
    whole = rows(plan.sample(rois, seed=5))
    for i in range(4):
        assert rows(plan.sample(rois[[i]], seed=5)) == whole[480 * i : 480 * (i + 1)]
    backwards = rows(plan.sample(rois[[3, 2, 1, 0]], seed=5))
    assert backwards == [row for i in (3, 2, 1, 0) for row in whole[480 * i : 480 * (i + 1)]]
    order = plan.order(rois, seed=5)
    assert torch.equal(plan.order(rois[[2, 0]], seed=5), order[[2, 0]])


def test_chosen_indices_for_all_and_for_each(device):
    rois = batch(3, device)
    plan = la.AugmentationPlan()
    whole = rows(plan.sample(rois, seed=2))
    some = [479, 0, 17, 17]
    assert rows(plan.sample(rois, seed=2, indices=some)) == [whole[480 * i + k] for i in range(3) for k in some]
    each = plan.order(rois, seed=2)[:, :5]
    expected = [whole[480 * i + k] for i in range(3) for k in each[i].tolist()]
    params = plan.sample(rois, seed=2, indices=each)
    assert rows(params) == expected
    roi = torch.tensor([2, 0, 1, 2], device=rois.device)
    pairs = plan.sample_rows(rois, roi, torch.tensor([3, 479, 0, 0], device=rois.device), seed=2)
    assert rows(pairs) == [whole[480 * 2 + 3], whole[479], whole[480], whole[480 * 2]]
    assert torch.equal(pairs.roi, roi)
    assert len(plan.sample(rois, indices=np.empty((3, 0), np.int64))) == 0
    assert len(plan.sample(rois, indices=[])) == 0


def test_order_is_a_permutation_equal_to_the_reference_and_nested(device):
    rois = batch(3, device)
    order = la.AugmentationPlan().order(rois, seed=11)
    assert order.shape == (3, 480)
    for i, lesion in enumerate(rois.lesion_ids):
        assert order[i].tolist() == reference.plan_order(lesion, 11)
    assert torch.equal(order.sort(1).values, torch.arange(480, device=order.device).expand(3, 480))


def test_one_more_lesion_changes_nobody_elses_numbers():
    plan = la.AugmentationPlan()
    few, more = batch(2), batch(5)
    assert rows(plan.sample(more, seed=1))[: 2 * 480] == rows(plan.sample(few, seed=1))


def test_originals(device):
    rois = batch(3, device)
    params = la.originals(rois)
    assert params.roi.tolist() == [0, 1, 2]
    assert params.side.tolist() == [float(np.float32(1.4 * float(d))) for d in rois.diameters.tolist()]
    assert not params.angle.any()
    assert not params.flip.any()
    assert not params.shift.any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda rois: la.AugmentationPlan(n_rot=0), ValueError, "n_rot"),
        (lambda rois: la.AugmentationPlan(n_flip=4), ValueError, "n_flip"),
        (lambda rois: la.AugmentationPlan(n_rot=2**16, n_scale=2**15), ValueError, "augmentations of a lesion"),
        (lambda rois: la.AugmentationPlan(n_scale=1.5), TypeError, "n_scale"),
        (lambda rois: la.AugmentationPlan(max_shift_px=float("nan")), ValueError, "max_shift_px"),
        (lambda rois: la.AugmentationPlan(max_angle_deg="180"), TypeError, "max_angle_deg"),
        (lambda rois: la.AugmentationPlan().sample(rois, seed=torch.tensor(1.5)), TypeError, "seed"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=np.array([1], np.uint64)), TypeError, "integers"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=[1j]), TypeError, "numbers"),
        (lambda rois: la.augment([], la.originals(rois)), TypeError, "RoiBatch"),
        (lambda rois: la.augment(rois, None), TypeError, "AugmentationParams"),
        (lambda rois: la.originals(rois).patch_to_image(rois, 2.5), TypeError, "size"),
        (lambda rois: la.AugmentationPlan().sample(rois, seed=-1), ValueError, "seed"),
        (lambda rois: la.AugmentationPlan().sample(rois, seed=2**64), ValueError, "seed"),
        (lambda rois: la.AugmentationPlan().sample(rois, seed=1.5), TypeError, "seed"),
        (lambda rois: la.AugmentationPlan().order(rois, seed=-1), ValueError, "seed"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=[480]), ValueError, "0 .. 479"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=[-1]), ValueError, "0 .. 479"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=[0.5]), TypeError, "integers"),
        (lambda rois: la.AugmentationPlan().sample(rois, indices=[[0], [1]]), ValueError, r"\[3, m\]"),
    ],
)
def test_wrong_plans_seeds_and_indices(call, error, words):
    with pytest.raises(error, match=words):
        call(batch(3))


def test_other_constants_than_the_papers(device):
    constants = {
        "max_angle_deg": 90.0,
        "base_side": 1.7,
        "shift_fraction": 0.05,
        "max_shift_px": 1.25,
        "scale_low": 0.2,
        "scale_span": 0.7,
    }
    rois = batch(2, device, diameters=[12.5, 77.0])
    params = la.AugmentationPlan(n_rot=2, **constants).sample(rois, seed=4)
    expected = [
        reference.plan_row(lesion, d, k, 4, **constants)
        for lesion, d in zip(rois.lesion_ids, (12.5, 77.0), strict=True)
        for k in range(32)
    ]
    assert rows(params) == expected


def test_rows_out_of_range_raise_on_the_cpu_and_give_nan_on_cuda(device):
    """The kernel marks such rows and reads nothing for them, however far out they are."""
    from lesionaug.augment import native

    rois = batch(2, device)
    plan = la.AugmentationPlan()
    bad = [(0, 10_000), (1, -3), (2, 0), (-1, 0), (10**12, 0), (1, 5)]
    roi, index = (torch.tensor(column, device=device) for column in zip(*bad, strict=True))
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"roi must lie in 0 \.\. 1"):
            plan.sample_rows(rois, roi, index)
        with pytest.raises(ValueError, match=r"indices must lie in 0 \.\. 479"):
            plan.sample_rows(rois, torch.zeros_like(index), index)
    assert native.backend(rois.device) is not None
    params = plan._draw(rois, 0, len(roi), len(plan), roi, index, True)
    assert params.angle.isnan().tolist() == [True] * 5 + [False]
    assert params.side.isnan().tolist() == [True] * 5 + [False]


def test_params_rows_are_selected_like_a_sequence():
    params = la.AugmentationPlan().sample(batch(1), seed=0)
    for row in (3, -477, np.int64(3), torch.tensor(3)):
        assert rows(params[row]) == rows(params[3:4])
        assert len(params[row]) == 1
    for row in (480, -481):
        with pytest.raises(IndexError, match="480"):
            params[row]
    assert len(params[torch.tensor([1, 1, 2])]) == 3


def test_numpy_params_are_taken_too():
    rois = batch(2)
    params = la.AugmentationPlan(n_rot=1).sample(rois, seed=0)
    plain = la.AugmentationParams(
        *(tensor.numpy() for tensor in (params.roi, params.angle, params.flip, params.shift, params.side))
    )
    assert torch.equal(plain.patch_to_image(rois), params.patch_to_image(rois))
