"""Every instruction set's vector kernels against the reference loop, and the facts that each must keep."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment import native

CPU = torch.device("cpu")
PATHS = native.native_module.cpu_paths()
FAST = [path for path in PATHS if path != "reference"]
BORDERS = ["reflect", "replicate", "constant", "renorm"]


@pytest.fixture
def on_path(monkeypatch):
    """Run a call on one path."""

    def run(path, call):
        with monkeypatch.context() as patch:
            patch.setattr(native.backend(CPU), "path", path)
            return call()

    return run


def lesions(dtype=torch.float32, seed=0):
    """Lesions whose patches lie inside, reach over the edge, shrink and grow."""
    rng = np.random.default_rng(seed)
    images, centers, diameters = [], [], []
    for d in (5.0, 21.0, 48.0, 130.0):
        side = int(2.4 * d) + 9  # too small for the larger patches: borders are met
        values = rng.normal(60, 200, size=(side, side + 5))
        images.append(torch.from_numpy(np.rint(values)).to(dtype))
        centers.append((side / 2 + 0.4, side / 2 - 0.3))
        diameters.append(d)
    rois = la.RoiBatch.from_images(images, centers, diameters)
    return rois, la.AugmentationPlan(n_rot=2).sample(rois, seed=3)


def test_the_portable_path_and_the_reference_are_everywhere():
    assert PATHS[-2:] == ["portable", "reference"]


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [64, 3, 7, 65, 130])
def test_a_path_equals_the_reference(on_path, path, border, antialias, size):
    rois, params = lesions()
    options = {"size": size, "border": border, "antialias": antialias, "fill": -200.0, "a": -0.6}
    expected = on_path("reference", lambda: la.augment(rois, params, dtype=torch.float64, **options))
    got = on_path(path, lambda: la.augment(rois, params, **options))
    scale = max(float(image.abs().max()) for image in rois.images)
    assert float((got - expected).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_windows_and_types(on_path, path, dtype, output):
    rois, params = lesions(dtype)
    options = {"size": 20, "window": (-160.0, 240.0), "dtype": output}
    expected = on_path("reference", lambda: la.augment(rois, params, **options)).double()
    got = on_path(path, lambda: la.augment(rois, params, **options)).double()
    allowed = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3, torch.uint8: 1.0}[output]
    assert float((got - expected).abs().max()) <= allowed
    if output == torch.uint8:
        assert float((got != expected).double().mean()) < 1e-3  # a value at a half may round either way


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("window", [None, (-160.0, 240.0)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_bits_do_not_depend_on_threads_split_or_order(on_path, path, antialias, window, dtype):
    rois, params = lesions(dtype)  # not antialiased, cubics are made in advance for all together, but not for one
    options = {"window": window, "antialias": antialias}
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(on_path(path, lambda: la.augment(rois, params, 24, **options)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    order = torch.randperm(len(params), generator=torch.Generator().manual_seed(1))
    assert torch.equal(on_path(path, lambda: la.augment(rois, params[order], 24, **options)), results[0][order])
    for n in range(0, len(params), 7):
        alone = on_path(path, lambda n=n: la.augment(rois, params[n : n + 1], 24, **options))
        assert torch.equal(alone, results[0][n : n + 1])


@pytest.mark.parametrize("path", PATHS)
def test_exact_facts(on_path, path):
    image = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 1, 64, 64)).astype(np.float32))
    eye = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    assert torch.equal(on_path(path, lambda: la.resample(image, eye)), image)
    turn = torch.tensor([[[0.0, -1, 64], [1, 0, 0]]])
    turned = on_path(path, lambda: la.resample(image, turn))
    assert torch.equal(turned, torch.rot90(image, 1, (2, 3)))


@pytest.mark.parametrize("path", PATHS)
def test_flips_share_the_sampling_and_its_bits(on_path, path):
    rois, params = lesions()
    got = on_path(path, lambda: la.augment(rois, params, 48))
    for n in range(0, len(params), 16):
        for k, dims in ((1, [1]), (2, [2]), (3, [1, 2])):
            assert torch.equal(got[n + k], torch.flip(got[n], dims))


@pytest.mark.parametrize("path", PATHS)
def test_large_calls_are_streamed_to_any_address(on_path, path):
    image = torch.rand(1, 1, 40, 40)
    m = torch.tensor([[[0.5, 0.1, 3.0], [-0.1, 0.5, 5.0]]]).repeat(600, 1, 1)
    index = torch.zeros(600, dtype=torch.int64)
    one = on_path(path, lambda: la.resample(image, m[:1], image_index=index[:1]))
    for offset in (0, 1, 4):
        flat = torch.full((600 * 64 * 64 + 8,), -1.0)
        out = flat[offset : offset + 600 * 64 * 64].view(600, 1, 64, 64)
        on_path(path, lambda out=out: la.resample(image, m, image_index=index, out=out))
        assert torch.equal(out, one.expand(600, -1, -1, -1))
        assert (flat[:offset] == -1).all()
        assert (flat[offset + 600 * 64 * 64 :] == -1).all()


def test_an_unknown_path_is_an_error_that_names_the_known():
    code = "import lesionaug as la, torch; la.resample(torch.ones(1, 1, 4, 4), torch.eye(2, 3)[None])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"LESIONAUG_CPU_PATH": "sse9", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "LESIONAUG_CPU_PATH" in done.stderr
    assert "portable" in done.stderr


def gradient(rois, params, incoming, **options):
    """What `incoming`, the gradient of the patches, gives for every pixel of the lesions."""
    images = [image.to(incoming.dtype).requires_grad_() for image in rois.images]
    again = la.RoiBatch.from_images(images, rois.centers, rois.diameters)
    patches = la.augment(again, params, incoming.shape[-1], dtype=incoming.dtype, **options)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(patches, images, incoming)])


def incoming_of(params, size):
    return torch.from_numpy(np.random.default_rng(size).normal(size=(len(params), 1, size, size))).float()


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [64, 3, 7, 65])
def test_gradients_equal_the_reference(on_path, path, border, antialias, size):
    rois, params = lesions()
    options = {"border": border, "antialias": antialias, "a": -0.6}
    incoming = incoming_of(params, size)
    expected = on_path("reference", lambda: gradient(rois, params, incoming.double(), **options))
    got = on_path(path, lambda: gradient(rois, params, incoming, **options))
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_reaches_the_same_pixels(on_path, path, bad):
    rois, params = lesions()
    incoming = incoming_of(params, 24)
    incoming[5, 0, 3, 4] = bad
    expected = on_path("reference", lambda: gradient(rois, params, incoming))
    got = on_path(path, lambda: gradient(rois, params, incoming))
    assert 0 < int((~got.isfinite()).sum()) < 200
    assert torch.equal(got.isfinite(), expected.isfinite())


@pytest.mark.parametrize("path", PATHS)
def test_bits_of_gradients_do_not_depend_on_threads(on_path, path):
    rois, params = lesions()
    order = torch.randperm(len(params), generator=torch.Generator().manual_seed(1))  # images come back again and again
    incoming = incoming_of(params, 24)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(on_path(path, lambda: gradient(rois, params[order], incoming)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_dense_channels(on_path, path):
    image = torch.rand(3, 2, 21, 30, requires_grad=True)
    maps = torch.tensor([[[0.9, 0.3, -2.0], [-0.3, 0.9, 4.0]], [[2.1, 0, 1], [0, 2.1, -9]], [[1.0, 0, 0], [0, 1, 0]]])
    incoming = torch.rand(3, 2, 17, 17)

    def run(pixels, weight):
        return torch.autograd.grad(la.resample(pixels, maps, 17, dtype=pixels.dtype), pixels, weight)[0]

    expected = on_path("reference", lambda: run(image.detach().double().requires_grad_(), incoming.double()))
    got = on_path(path, lambda: run(image, incoming))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_map_is_named_before_anything_is_written(threads):
    maps = torch.eye(2, 3).repeat(9000, 1, 1)
    maps[[8000, 2500, 7000], 0, 0] = float("nan")
    out = torch.full((9000, 1, 1, 1), 5.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match="map of patch 2500 is not finite"):
            la.resample(torch.ones(1, 1, 4, 4), maps, 1, image_index=torch.zeros(9000, dtype=torch.int64), out=out)
    finally:
        torch.set_num_threads(before)
    assert (out == 5).all()


PATCHES = """
import os, sys, threading
import torch
import lesionaug as la
from lesionaug.augment.speed import fold

torch.set_num_threads(2)
rois = fold(torch.device("cpu"), num_lesions=3)
params = la.AugmentationPlan().sample(rois, seed=0)
patches = lambda: la.augment(rois, params).numpy().tobytes()
expected = patches()
"""


def test_threads_stay_for_the_next_call():
    code = """
before = threading.active_count(), len(os.listdir("/proc/self/task"))
assert all(patches() == expected for _ in range(50))
assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc")
    subprocess.run([sys.executable, "-c", PATCHES + code], check=True, timeout=120)


def test_a_forked_process_has_threads_of_its_own():
    code = """
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(patches() == expected for _ in range(3)) else 1)
    assert patches() == expected
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", PATCHES + code], check=True, timeout=120)


def test_several_callers_at_once():
    code = """
wrong = []
def call():
    wrong.extend(0 for _ in range(20) if patches() != expected)
callers = [threading.Thread(target=call) for _ in range(5)]
for caller in callers: caller.start()
for caller in callers: caller.join()
sys.exit(len(wrong))
"""
    subprocess.run([sys.executable, "-c", PATCHES + code], check=True, timeout=120)
