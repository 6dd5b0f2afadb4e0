"""RoiBatch: what enters is checked, what comes out is a view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.data.rois import lesion_key


def images(n=3, dtype=np.int16):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, (10 + i, 12 - i)).astype(dtype) for i in range(n)]


def make(n=3, **options):
    return la.RoiBatch.from_images(images(n), [[5, 6]] * n, [4.0] * n, **options)


def test_defaults_and_views():
    rois = make()
    assert len(rois) == 3
    assert rois.lesion_ids == rois.patient_ids == ("0", "1", "2")
    assert rois.labels.tolist() == [-1, -1, -1]
    assert rois.labels.dtype == torch.int64
    assert rois.classes == ()
    assert rois.masks is None
    assert rois.spacing_mm is None
    assert rois.kind == "user"
    assert rois.origins.tolist() == [[0, 0]] * 3
    assert rois.diameters.dtype == torch.float32
    for view, image in zip(rois.images, images(), strict=True):
        assert np.array_equal(view.numpy(), image)
        assert view.untyped_storage().data_ptr() == rois.packed.pixels.untyped_storage().data_ptr()


def test_labels_as_names_or_indices():
    assert make(labels=["b", "a", "b"]).classes == ("a", "b")
    assert make(labels=["b", "a", "b"]).labels.tolist() == [1, 0, 1]
    assert make(labels=["b", "a", "b"], classes=("b", "a", "c")).labels.tolist() == [0, 1, 0]
    assert make(labels=np.array(["b", "a", "b"])).labels.tolist() == [1, 0, 1]
    assert make(labels=[2, -1, 0]).classes == ("0", "1", "2")
    assert make(labels=torch.tensor([1, -1, 0]), classes=("x", "y")).labels.tolist() == [1, -1, 0]


def test_everything_else_is_kept():
    masks = [image > 100 for image in images()]
    rois = make(
        lesion_ids=["x", "y", "z"],
        patient_ids=["p", "p", "q"],
        spacing_mm=[(0.7, 0.8), (0.9, 1.0), (1.1, 1.2)],
        masks=masks,
        origins=[[1, 2], [3, 4], [5, 6]],
        kind="phantom",
    )
    assert make(spacing_mm=(0.7, 0.8)).spacing_mm.tolist() == [[0.7, 0.8]] * 3
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(rois.masks, masks, strict=True))
    part = rois[[2, 0]]
    assert part.lesion_ids == ("z", "x")
    assert part.patient_ids == ("q", "p")
    assert part.origins.tolist() == [[5, 6], [1, 2]]
    assert part.spacing_mm.tolist() == [[1.1, 1.2], [0.7, 0.8]]
    assert np.array_equal(part.masks[0].numpy(), masks[2])
    assert np.array_equal(part.images[1].numpy(), images()[0])
    assert "phantom" in repr(part)


def test_selections():
    rois = make()
    for selection in (
        [1],
        torch.tensor([1]),
        np.array([1]),
        slice(1, 2),
        1,
        torch.tensor([False, True, False]),
        [-2],
        range(1, 2),
    ):
        assert rois[selection].lesion_ids == ("1",)
    for selection, error in (([], ValueError), ([3], IndexError), ([0, 0], ValueError), ([0.5], TypeError)):
        with pytest.raises(error):
            rois[selection]
    with pytest.raises(IndexError):
        rois[torch.tensor([True, False])]
    with pytest.raises(TypeError, match=r"rois\.images"):
        list(rois)


def test_the_key_is_the_ids_truncated_blake2b():
    import hashlib

    digest = hashlib.blake2b(b"case-0").digest()
    assert len(digest) == 64
    assert lesion_key("case-0") == sum(byte << (8 * i) for i, byte in enumerate(digest[:8]))
    rois = make(lesion_ids=["a", "b", "c"])
    assert [key % 2**64 for key in rois.lesion_keys.tolist()] == [lesion_key(i) for i in "abc"]


def test_inputs_are_copied_where_they_could_change():
    arrays = images()
    centers = np.array([[5.0, 6.0]] * 3)
    rois = la.RoiBatch.from_images(arrays, centers, [4.0] * 3)
    arrays[0][:] = 7
    centers[:] = 0
    assert not (rois.images[0] == 7).all()
    assert rois.centers.tolist() == [[5, 6]] * 3


NAN_IMAGE = np.full((3, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.RoiBatch.from_images([], [], []), ValueError, "empty"),
        (lambda: la.RoiBatch.from_images("ab", [], []), TypeError, "sequence"),
        (lambda: la.RoiBatch.from_images(None, [], []), TypeError, "sequence"),
        (lambda: la.RoiBatch.from_images([NAN_IMAGE], [[1, 1]], [1]), ValueError, "NaN"),
        (lambda: la.RoiBatch.from_images([np.ones((3, 3, 1))], [[1, 1]], [1]), ValueError, "2-D"),
        (lambda: la.RoiBatch.from_images([np.ones((3, 0))], [[1, 1]], [1]), ValueError, "at least one pixel"),
        (lambda: la.RoiBatch.from_images([np.ones((3, 3), np.int64)], [[1, 1]], [1]), TypeError, "int64"),
        (lambda: la.RoiBatch.from_images([np.ones((3, 3), bool)], [[1, 1]], [1]), TypeError, "bool"),
        (lambda: la.RoiBatch.from_images([np.ones((3, 3), complex)], [[1, 1]], [1]), TypeError, "numbers"),
        (lambda: la.RoiBatch.from_images([[["a"]]], [[1, 1]], [1]), TypeError, "numbers"),
        (
            lambda: la.RoiBatch.from_images([*images(1), *images(1, np.uint8)], [[1, 1]] * 2, [1, 1]),
            TypeError,
            "one dtype",
        ),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1, 1]], [1]), ValueError, "centers must have shape"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, np.inf]], [1]), ValueError, "centers holds NaN"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1]], [0]), ValueError, "diameters must be above 0"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1]], [np.nan]), ValueError, "diameters holds NaN"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1]], [1, 2]), ValueError, "diameters must have shape"),
        (lambda: make(labels=[0, 1]), ValueError, "labels must be"),
        (lambda: make(labels=[0, 1, -2]), ValueError, "-1"),
        (lambda: make(labels=[0.5, 1, 2]), ValueError, "integers"),
        (lambda: make(labels=["a", "b", "c"], classes=("a", "b")), ValueError, "which classes"),
        (lambda: make(labels=[0, 1, 2], classes=("a", "a", "b")), ValueError, "distinct"),
        (lambda: make(lesion_ids=["a", "a", "b"]), ValueError, "unique"),
        (lambda: make(lesion_ids=["a", "b"]), ValueError, "3 strings"),
        (lambda: make(lesion_ids="abc"), ValueError, "3 strings"),
        (lambda: make(patient_ids=[1, 2, 3]), ValueError, "3 strings"),
        (lambda: make(spacing_mm=[0.7]), ValueError, "spacing_mm must have shape"),
        (lambda: make(spacing_mm=(0.7, 0.0)), ValueError, "above 0 mm"),
        (lambda: make(masks=images(2)), ValueError, "3 arrays"),
        (lambda: make(masks=[image[:5] for image in images()]), ValueError, r"masks\[0\]"),
        (lambda: make(origins=[[0.5, 1]] * 3), TypeError, "integers"),
        (lambda: make(masks=[np.full(i.shape, np.nan) for i in images()]), TypeError, "boolean or integer"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1j]], [1]), TypeError, "numbers"),
        (lambda: la.RoiBatch.from_images(images(1), torch.ones(1, 2) + 1j, [1]), TypeError, "real numbers"),
        (lambda: la.RoiBatch.from_images(images(1), [[1, 1]], [1e39]), ValueError, "diameters holds"),
        (lambda: make(kind="real"), ValueError, "kind"),
    ],
)
def test_wrong_input_gets_one_clear_error(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_images_keep_their_gradients():
    image = torch.zeros(6, 6, requires_grad=True)
    rois = la.RoiBatch.from_images([image], [[3, 3]], [3])
    la.augment(rois, la.originals(rois), size=4).sum().backward()
    assert image.grad is not None
    assert image.grad.sum() == pytest.approx(16, rel=1e-5)
