"""The operator against a float64 reference, independent implementations and exact facts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lesionaug as la
from tests import reference
from tests.conftest import DEVICES, TILED_DEVICES, open_device


@pytest.fixture(params=[*DEVICES, *TILED_DEVICES])
def device(request, monkeypatch):
    """Every implementation of the operator."""
    return open_device(request.param, monkeypatch)


SOURCES = [torch.int16, torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
BORDERS = ["reflect", "replicate", "constant", "renorm"]
# Half a unit of the output, relative for floats, absolute for uint8.
HALF_UNIT = {torch.float32: 2**-24, torch.float64: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.uint8: 0.5}


def random_image(rng, dtype, height, width):
    if dtype.is_floating_point:
        return torch.from_numpy(rng.normal(size=(height, width))).to(dtype)
    if dtype == torch.int16:
        values = rng.integers(-1024, 3072, (height, width))
    elif dtype == torch.uint8:
        values = rng.integers(0, 256, (height, width))
    else:
        values = rng.integers(0, 65536, (height, width))
    return torch.from_numpy(values.astype(str(dtype).removeprefix("torch.")))


def random_matrix(rng, height, width, size, zoom=None):
    """Any linear part (turned, sheared, stretched, mirrored) about a point in or near the image."""
    zoom = rng.choice([0.2, 0.7, 1.0, 1.6, 4.0]) if zoom is None else zoom
    linear = zoom * (np.linalg.qr(rng.normal(size=(2, 2)))[0] + rng.normal(scale=0.15, size=(2, 2)))
    center = np.array([rng.uniform(-0.2, 1.2) * width, rng.uniform(-0.2, 1.2) * height])
    return np.concatenate([linear, (center - linear @ [size / 2, size / 2])[:, None]], axis=1)


def assert_close(ours, expected, image, output_range=None):
    """Within the tolerance of docs/definitions.md: 1e-5 max(range, max |v|), plus half a unit of the output dtype."""
    values = image.double()
    scale = max(float(values.max() - values.min()), float(values.abs().max()))
    if output_range is not None:
        scale = output_range[1] - output_range[0]
    got = ours.double().cpu().numpy()
    allowed = 1e-5 * scale + HALF_UNIT[ours.dtype] * (1 if ours.dtype == torch.uint8 else np.abs(expected))
    if ours.dtype == torch.uint8:
        expected = np.clip(expected, 0, 255)
    if ours.dtype == torch.float16:  # below 2^-14 the unit is absolute
        allowed = np.maximum(allowed, 1e-5 * scale + 2**-25)
    worst = np.max(np.abs(got - expected) - allowed)
    assert worst <= 0, f"{np.abs(got - expected).max()} from the reference, {worst} beyond the tolerance"


@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", SOURCES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_source_border_and_kernel_against_the_reference(device, dtype, border, antialias):
    rng = np.random.default_rng([SOURCES.index(dtype), BORDERS.index(border), antialias])
    size = 7
    sizes = [(1, 1), (1, 9), (13, 2), (40, 57), (200, 160)]
    images = [random_image(rng, dtype, *shape) for shape in sizes]
    index = np.repeat(np.arange(len(images)), 4)
    matrices = np.stack([random_matrix(rng, *sizes[i], size) for i in index])
    for precision in (np.float32, np.float64):
        m = matrices.astype(precision)
        got = la.resample(
            [image.to(device) for image in images],
            torch.from_numpy(m).to(device),
            size,
            image_index=index,
            border=border,
            antialias=antialias,
            fill=3.25,
            a=-0.6,
        )
        assert got.shape == (len(index), 1, size, size)
        for n, i in enumerate(index):
            expected = reference.resample(
                images[i].double().numpy(), m[n], size, border=border, antialias=antialias, fill=3.25, a=-0.6
            )
            assert_close(got[n, 0], expected, images[i])


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("out_range", [None, (-1.0, 1.0)])
def test_windows_and_output_types_against_the_reference(device, dtype, output, out_range):
    if output == torch.uint8 and out_range is not None:
        out_range = (16.0, 235.0)
    rng = np.random.default_rng(5)
    image = random_image(rng, dtype, 60, 50)
    window = (-160.0, 240.0) if dtype == torch.int16 else (-0.5, 1.25)
    limits = out_range or ((0.0, 255.0) if output == torch.uint8 else (0.0, 1.0))
    for border, zoom in (("reflect", 0.8), ("constant", 2.5), ("renorm", 1.3), ("replicate", 0.3)):
        m = random_matrix(rng, 60, 50, 9, zoom)
        got = la.resample(
            [image.to(device)], m[None], 9, window=window, out_range=out_range, dtype=output, border=border, fill=-90.0
        )
        expected = reference.resample(
            image.double().numpy(), m, 9, window=window, out_range=limits, border=border, fill=-90.0
        )
        assert got.dtype == output
        assert_close(got[0, 0], expected, image, limits)
        assert float(got.double().min()) >= limits[0] - 1e-6
        assert float(got.double().max()) <= limits[1] + 1e-6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_map_of_any_image_against_the_reference(data):
    height = data.draw(st.integers(1, 200), "height")
    width = data.draw(st.integers(1, 200), "width")
    size = data.draw(st.integers(1, 6), "size")
    border = data.draw(st.sampled_from(BORDERS))
    antialias = data.draw(st.booleans())
    a = data.draw(st.floats(-1, 0))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    image = random_image(rng, torch.float32, height, width)
    entries = data.draw(st.lists(st.floats(-8, 8), min_size=4, max_size=4), "linear part")
    offset = data.draw(st.lists(st.floats(-300, 300), min_size=2, max_size=2), "offset")
    m = np.array([[entries[0], entries[1], offset[0]], [entries[2], entries[3], offset[1]]])
    got = la.resample([image], m[None], size, border=border, antialias=antialias, a=a)
    expected = reference.resample(image.numpy(), m, size, border=border, antialias=antialias, a=a)
    assert_close(got[0, 0], expected, image)


@pytest.mark.parametrize("target", [(64, 64), (7, 7), (33, 33)])
@pytest.mark.parametrize("source", [(64, 64), (97, 150), (20, 11), (511, 300)])
def test_a_pure_resize_equals_pillow_and_torch(device, source, target):
    rng = np.random.default_rng(1)
    image = random_image(rng, torch.float32, *source)
    size = target[0]
    m = np.array([[[source[1] / size, 0, 0], [0, source[0] / size, 0]]])
    ours = la.resample([image.to(device)], m, size, border="renorm")[0, 0].cpu()
    pillow = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC)
    torch_resize = torch.nn.functional.interpolate(
        image[None, None].double(), (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    assert_close(ours, np.asarray(pillow, dtype=np.float64), image)
    assert_close(ours, torch_resize[0, 0].numpy(), image)


def test_without_antialias_it_equals_grid_sample(device):
    rng = np.random.default_rng(2)
    image = torch.from_numpy(rng.normal(size=(3, 2, 37, 52)))
    size = 19
    m = np.stack([random_matrix(rng, 37, 52, size) for _ in range(3)])
    ours = la.resample(image.float().to(device), m, size, a=-0.75, antialias=False, border="replicate")
    column, row = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    points = np.stack([column, row, np.ones_like(row)], axis=-1) @ m.transpose(0, 2, 1)[:, None]
    grid = torch.from_numpy(2 * points / [52, 37] - 1)
    theirs = torch.nn.functional.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)
    assert_close(ours, theirs.numpy(), image)


@pytest.mark.parametrize("size", [1, 2, 5, 64])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_a_quarter_turn_is_rot90_exactly(device, size, turns):
    image = torch.from_numpy(np.random.default_rng(3).normal(size=(size, size)).astype(np.float32)).to(device)
    rois = la.RoiBatch.from_images([image], [[size / 2, size / 2]], [10.0])
    params = dataclasses.replace(
        la.originals(rois),
        angle=torch.tensor([90.0 * turns], device=device),
        side=torch.tensor([float(size)], device=device),
    )
    assert torch.equal(la.augment(rois, params, size)[0, 0], torch.rot90(image, turns))


def test_the_identity_gives_the_image_itself(device):
    image = torch.arange(30, dtype=torch.float32).reshape(1, 1, 5, 6).to(device)
    got = la.resample(image, np.array([[[1.0, 0, 0], [0, 1, 0]]]), 5)
    assert torch.equal(got[0, 0], image[0, 0, :, :5])


def test_a_flip_changes_only_addresses(device):
    rois, params = _small_batch(device)
    params = dataclasses.replace(params, flip=torch.zeros_like(params.flip))
    plain = la.augment(rois, params, 16)
    symmetric = (params.shift == 0).all(1)  # a shift is along the patch's axes, so it is mirrored with them
    for flip, dims in ((1, [3]), (2, [2]), (3, [2, 3])):
        flipped = la.augment(rois, dataclasses.replace(params, flip=torch.full_like(params.flip, flip)), 16)
        assert torch.equal(flipped[symmetric], torch.flip(plain, dims)[symmetric])


def test_bits_do_not_depend_on_threads_or_split():
    rois, params = _small_batch(torch.device("cpu"))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(la.augment(rois, params, 16, window=(-160, 240)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for step in (1, 7, 31):
        parts = [la.augment(rois, params[i : i + step], 16, window=(-160, 240)) for i in range(0, len(params), step)]
        assert torch.equal(torch.cat(parts), results[0])


def test_bits_do_not_depend_on_the_split_on_this_device(device):
    rois, params = _small_batch(device)
    whole = la.augment(rois, params, 8)
    order = torch.randperm(len(params), generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(la.augment(rois, params[order], 8), whole[order])
    assert torch.equal(la.augment(rois, params[5:9], 8), whole[5:9])


def test_dense_ragged_and_roi_batch_agree(device):
    rng = np.random.default_rng(4)
    dense = torch.from_numpy(rng.normal(size=(4, 3, 21, 17)).astype(np.float32)).to(device)
    m = torch.from_numpy(np.stack([random_matrix(rng, 21, 17, 8) for _ in range(4)])).to(device)
    whole = la.resample(dense, m, 8)
    assert whole.shape == (4, 3, 8, 8)
    for c in range(3):
        images = [dense[n, c] for n in range(4)]
        assert torch.equal(la.resample(images, m, 8), whole[:, c : c + 1])
        rois = la.RoiBatch.from_images(images, [[5, 5]] * 4, [3] * 4)
        assert torch.equal(la.resample(rois, m, 8), whole[:, c : c + 1])
    again = torch.tensor([3, 3, 0], device=device)
    assert torch.equal(la.resample(dense, m[again], 8, image_index=again), whole[again])


def test_a_lesion_far_from_the_corner_of_a_large_slice_loses_nothing(device):
    rng = np.random.default_rng(6)
    image = random_image(rng, torch.int16, 512, 512)
    center, d = (420.0, 400.0), 31.7
    rois = la.RoiBatch.from_images([image.to(device)], [center], [d])
    params = la.AugmentationPlan().sample(rois, seed=3, indices=np.arange(48))
    got = la.augment(rois, params, 12).cpu()
    for n in range(48):
        m = reference.patch_to_image(
            center, float(params.side[n]), float(params.angle[n]), int(params.flip[n]), params.shift[n].tolist(), 12
        )
        assert_close(got[n, 0], reference.resample(image.numpy(), m, 12), image)


@pytest.mark.parametrize("spacing", [(0.9, 0.6), (0.5, 0.8)])
def test_pixels_that_are_not_square(device, spacing):
    rng = np.random.default_rng(7)
    image = random_image(rng, torch.float32, 90, 70)
    rois = la.RoiBatch.from_images([image.to(device)], [(33.5, 47.0)], [22.0], spacing_mm=[spacing])
    params = la.AugmentationPlan().sample(rois, seed=1, indices=[0, 1, 2, 3, 4, 8, 11, 15, 17])
    got = la.augment(rois, params, 11).cpu()
    maps = params.patch_to_image(rois, 11).cpu()
    for n in range(len(params)):
        row = (float(params.side[n]), float(params.angle[n]), int(params.flip[n]), params.shift[n].tolist())
        m = reference.patch_to_image((33.5, 47.0), *row, 11, spacing)
        np.testing.assert_allclose(maps[n].numpy(), m, rtol=1e-6, atol=1e-5)
        assert_close(got[n, 0], reference.resample(image.numpy(), m, 11), image)


def test_resample_with_the_params_matrices_equals_augment(device):
    rois, params = _small_batch(device)
    ours = la.augment(rois, params, 16)
    through_matrices = la.resample(rois, params.patch_to_image(rois, 16), 16, image_index=params.roi)
    # The matrices are float32: half a unit in the offset is up to 2e-6 pixels here, times the steepest slope.
    torch.testing.assert_close(ours, through_matrices, rtol=0, atol=2e-2)


def test_a_zero_scale_samples_one_point(device):
    image = torch.arange(12, dtype=torch.float32).reshape(1, 1, 3, 4).to(device)
    got = la.resample(image, np.array([[[0.0, 0, 1.5], [0, 0, 2.5]]]), 3)
    assert torch.equal(got, torch.full((1, 1, 3, 3), 9.0, device=device))


@pytest.mark.parametrize("border", BORDERS)
def test_points_far_outside_follow_the_border_rule(device, border):
    image = torch.tensor([[[[1.0, 2.0, 3.0]]]], device=device)
    for offset in (1e6, -1e6, 3e9, -3e9, 1e15, 1e300):
        m = np.array([[[0.0, 0, offset], [0, 0, 0.5]]])
        got = float(la.resample(image, m, 1, border=border, fill=7.0).cpu())
        if border == "constant":
            assert got == pytest.approx(7.0)
        elif border == "reflect":
            expected = reference.resample(image[0, 0].cpu().numpy(), m[0] % [[[6.0], [2.0]]][0], 1)
            assert got == pytest.approx(float(expected[0, 0]), rel=1e-5)
        else:
            expected = reference.resample(
                image[0, 0].cpu().numpy(), [[0, 0, 3.0 * (offset > 0)], [0, 0, 0.5]], 1, border=border
            )
            edge = 3.0 if offset > 0 else 1.0
            assert got == pytest.approx(edge if border == "replicate" else float(expected[0, 0]), rel=1e-5)


def test_uint8_rounds_half_to_even_and_saturates(device):
    values = torch.tensor([[[[0.5, 1.5, 2.5, -3.0, 254.5, 255.5, 300.0, 3.49]]]], device=device)
    m = np.array([[[1.0, 0, float(i)], [0, 1, 0]] for i in range(8)])
    got = la.resample(values, m, 1, image_index=[0] * 8, dtype=torch.uint8)
    assert got.flatten().tolist() == [0, 2, 2, 0, 254, 255, 255, 3]


def test_half_precision_conversions_are_torchs_own(device):
    """Every rounding case: an image's own values through the identity must equal torch's conversion."""
    bits = torch.arange(-(2**31), 2**31, 65521 * 31, dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    values = values[torch.isfinite(values)]
    near = torch.tensor([0.0, -0.0, 65504.0, 65519.9, 65520.0, -65520.0, 2**-24, 2**-25, 1.5 * 2**-25, 2**-14, 6.1e-5])
    eye = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], device=device)

    def images(values):  # of 4x4 pixels; what is left over is filled up with zeros
        return torch.cat([values, values.new_zeros(-len(values) % 16)]).reshape(-1, 1, 4, 4).to(device)

    values = torch.cat([values, near])
    huge = values.abs() > 1e37  # differences of such neighbours overflow: each is an image of its own
    for some, size in ((images(values[~huge]), 4), (values[huge].reshape(-1, 1, 1, 1).to(device), 1)):
        for dtype in (torch.float16, torch.bfloat16):
            got = la.resample(some, eye.expand(len(some), 2, 3), size, dtype=dtype)
            assert torch.equal(got, some.to(dtype))
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = images(every[torch.isfinite(every)])
        assert torch.equal(la.resample(every, eye.expand(len(every), 2, 3), 4), every.float())


def test_out_is_written_and_returned(device):
    rois, params = _small_batch(device)
    expected = la.augment(rois, params, 8, dtype=torch.float16)
    out = torch.empty((len(params), 1, 8, 8), dtype=torch.float16, device=device)
    assert la.augment(rois, params, 8, out=out) is out
    assert torch.equal(out, expected)


def test_no_patches_are_no_problem(device):
    image = torch.zeros(1, 2, 5, 5, device=device)
    got = la.resample(
        image, torch.empty(0, 2, 3, device=device), 4, image_index=torch.empty(0, dtype=torch.int64, device=device)
    )
    assert got.shape == (0, 2, 4, 4)


def test_numpy_dlpack_and_odd_memory_layouts_are_read_right():
    image = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    m = np.array([[[1.1, 0.2, 0.5], [-0.1, 0.9, 1.0]]])
    expected = la.resample([torch.from_numpy(image)], m, 5)
    frozen = image.copy()
    frozen.setflags(write=False)
    packed = np.zeros((9, 8), dtype=[("flag", "u1"), ("value", "f4")])["value"]  # neither aligned nor whole strides
    packed[:] = image
    assert torch.equal(la.resample([packed], m, 5), expected)
    for variant in (
        image,
        image.astype(">f4"),
        image[::-1][::-1],
        np.asfortranarray(image),
        frozen,
        _DlpackOnly(image),
    ):
        assert torch.equal(la.resample([variant], m, 5), expected)
    dense = torch.from_numpy(image)[None, None]
    assert torch.equal(la.resample(dense.to(memory_format=torch.channels_last), m, 5), expected)
    assert torch.equal(la.resample(dense.transpose(2, 3).contiguous().transpose(2, 3), m, 5), expected)


class _DlpackOnly:
    """A producer that is neither torch nor NumPy."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


IMAGE = torch.zeros(1, 1, 4, 4)
EYE = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])


@pytest.mark.parametrize(
    ("images", "matrices", "options", "error", "words"),
    [
        (IMAGE[0], EYE, {}, ValueError, "N, C, H, W"),
        (IMAGE.to(torch.int32), EYE, {}, TypeError, "int16"),
        ([], EYE, {}, ValueError, "empty"),
        ([np.zeros((2, 2, 2))], EYE, {}, ValueError, "2-D"),
        ([np.zeros((0, 2))], EYE, {}, ValueError, "at least one pixel"),
        (["x"], EYE, {}, TypeError, "array of numbers"),
        ([np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int16)], EYE, {}, TypeError, "one dtype"),
        (IMAGE, EYE[0], {}, ValueError, r"\[N, 2, 3\]"),
        (IMAGE, EYE.to(torch.int32), {}, TypeError, "float32 or float64"),
        (IMAGE, EYE.repeat(2, 1, 1), {}, ValueError, "2 maps for 1 images"),
        (IMAGE, EYE, {"image_index": [0, 0]}, ValueError, "image_index must have shape"),
        (IMAGE, EYE, {"image_index": [0.0]}, TypeError, "integers"),
        (IMAGE, EYE, {"size": 0}, ValueError, "size"),
        (IMAGE, EYE, {"dtype": torch.int16}, TypeError, "dtype"),
        (IMAGE, EYE, {"border": "mirror"}, ValueError, "border"),
        (IMAGE, EYE, {"a": 0.5}, ValueError, "-1 .. 0"),
        (IMAGE, EYE, {"fill": float("nan")}, ValueError, "fill"),
        (IMAGE, EYE, {"fill": 1e39}, ValueError, "1e30"),
        (IMAGE, EYE, {"fill": "0"}, TypeError, "fill"),
        (IMAGE, EYE, {"window": (0, 1e-40)}, ValueError, "low < high"),
        (IMAGE, EYE, {"window": (-1e39, 1e39)}, ValueError, "1e30"),
        (IMAGE, EYE, {"window": (0, 1), "out_range": (0, 1e39)}, ValueError, "1e30"),
        (IMAGE, EYE, {"size": 4.5}, TypeError, "size"),
        (IMAGE, EYE, {"size": True}, TypeError, "size"),
        (IMAGE, EYE, {"size": "4"}, TypeError, "size"),
        (IMAGE, EYE, {"size": 2**63}, ValueError, "size"),
        (IMAGE, EYE, {"size": -1}, ValueError, "size"),
        (IMAGE, EYE, {"dtype": "float32"}, TypeError, "dtype"),
        (IMAGE, EYE, {"border": None}, TypeError, "border"),
        (IMAGE, EYE, {"antialias": "no"}, TypeError, "antialias"),
        (IMAGE, EYE, {"check": "no"}, TypeError, "check"),
        (IMAGE, EYE, {"out": "here"}, TypeError, "out"),
        (IMAGE + 0j, EYE, {}, TypeError, "real numbers"),
        (IMAGE, EYE, {"window": (240, -160)}, ValueError, "low < high"),
        (IMAGE, EYE, {"window": 3}, ValueError, "pair"),
        (IMAGE, EYE, {"out_range": (-1, 1)}, ValueError, "window"),
        (IMAGE, EYE, {"out": torch.empty(1, 1, 3, 3)}, ValueError, "out must be"),
        (IMAGE, EYE, {"size": 4, "out": torch.empty(1, 1, 4, 4, dtype=torch.int16)}, TypeError, "dtype"),
        (IMAGE, EYE, {"size": 4, "out": torch.empty(1, 1, 4, 8)[..., ::2]}, ValueError, "contiguous"),
    ],
)
def test_wrong_arguments_get_one_clear_error(device, images, matrices, options, error, words):
    if isinstance(images, torch.Tensor):
        images, matrices = images.to(device), matrices.to(device)
    if isinstance(options.get("out"), torch.Tensor) and options["out"].is_contiguous():
        options = {**options, "out": options["out"].to(device)}
    with pytest.raises(error, match=words):
        la.resample(images, matrices, **options)


@pytest.mark.parametrize(
    ("matrix", "index", "words"),
    [
        ([[float("nan"), 0, 0], [0, 1, 0]], 0, "not finite"),
        ([[1, 0, 0], [0, float("inf"), 0]], 0, "not finite"),
        ([[1, 0, 0], [0, 1, -float("inf")]], 0, "not finite"),
        ([[1, 0, 0], [0, 1, 0]], 1, "image_index"),
        ([[1, 0, 0], [0, 1, 0]], -1, "image_index"),
        ([[1, 0, 0], [0, 1, 0]], 2**40, "image_index"),
        ([[300, 0, 0], [0, 1, 0]], 0, "256"),
    ],
)
def test_bad_values_raise_on_the_cpu_and_give_nan_on_cuda(device, checks_values, matrix, index, words):
    image = torch.ones(1, 1, 4, 4, device=device)
    m = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], matrix, [[1.0, 0, 0], [0, 1, 0]]], device=device)
    image_index = torch.tensor([0, index, 0], device=device)
    with pytest.raises(ValueError, match=words):
        la.resample(image, m, 3, image_index=image_index, check=True)
    if checks_values:
        with pytest.raises(ValueError, match="patch 1"):
            la.resample(image, m, 3, image_index=image_index)
        return
    got = la.resample(image, m, 3, image_index=image_index)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], torch.ones(2, 1, 3, 3, device=device))
    assert (la.resample(image, m, 3, image_index=image_index, dtype=torch.uint8)[1] == 0).all()


@pytest.mark.parametrize("output", [torch.float16, torch.bfloat16, torch.float64])
def test_a_patch_without_a_map_is_nan_in_every_floating_type(device, checks_values, output):
    if checks_values:
        pytest.skip("the CPU raises instead")
    image = torch.ones(1, 1, 4, 4, device=device)
    got = la.resample(image, torch.full((1, 2, 3), float("nan"), device=device), 3, dtype=output)
    assert got.isnan().all()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("sigma", [150.0, 255.9, 256.0])
def test_the_strongest_shrinking_is_exact_too(device, sigma, antialias):
    rng = np.random.default_rng(9)
    image = random_image(rng, torch.float32, 200, 170)
    for linear in ([[sigma, 0], [0, sigma]], [[0, -sigma], [sigma, 0]], [[sigma, 0], [0, 0.5]]):
        m = np.concatenate([linear, [[40.0], [60.0]]], axis=1)
        got = la.resample([image.to(device)], m[None], 2, antialias=antialias)
        assert_close(got[0, 0], reference.resample(image.numpy(), m, 2, antialias=antialias), image)


def test_256_source_pixels_are_the_limit_with_antialias_only(device):
    image = torch.ones(1, 1, 3, 3, device=device)
    beyond = np.array([[[np.nextafter(256.0, 300), 0, 0], [0, 1, 0]]])
    with pytest.raises(ValueError, match="256"):
        la.resample(image, beyond, 2, check=True)
    assert torch.equal(
        la.resample(image, beyond, 2, antialias=False, check=True), torch.ones(1, 1, 2, 2, device=device)
    )


def test_out_must_not_be_the_images():
    image = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="share memory"):
        la.resample(image, EYE, 4, out=image)
    with pytest.raises(ValueError, match="requires gradients"):
        la.resample(image, EYE, 4, out=torch.empty(1, 1, 4, 4, requires_grad=True))


def test_more_threads_than_can_be_had():
    """Where no thread can be made, the calling one does the work; nothing ends the process."""
    code = """
import resource, torch, lesionaug as la
image = torch.rand(1, 1, 32, 32)
m = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).repeat(600, 1, 1)
index = torch.zeros(600, dtype=torch.int64)
expected = la.resample(image, m, 16, image_index=index)
torch.set_num_threads(500)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, -1))
got = la.resample(image, m, 16, image_index=index)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
torch.set_num_threads(1)
print(bool((got == expected).all()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "True\n", done.stderr[-500:]


def test_nan_in_a_list_is_no_business_of_resample_but_of_from_images():
    image = np.full((4, 4), np.nan, np.float32)
    assert la.resample([image], EYE, 2).isnan().all()
    with pytest.raises(ValueError, match=r"images\[0\] holds NaN"):
        la.RoiBatch.from_images([image], [[2, 2]], [2])


def _small_batch(device):
    """Three lesions of different sizes and all variants of two rotations of each."""
    rng = np.random.default_rng(8)
    images, centers, diameters = [], [], []
    for d in (9.0, 31.0, 57.5):
        side = int(3.3 * d) + 16
        images.append(random_image(rng, torch.int16, side, side + 3).to(device))
        centers.append((side / 2 + 0.3, side / 2 - 0.2))
        diameters.append(d)
    rois = la.RoiBatch.from_images(images, centers, diameters, lesion_ids=["a", "b", "c"])
    return rois, la.AugmentationPlan(n_rot=2).sample(rois, seed=7)
