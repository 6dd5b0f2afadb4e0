"""The operators as torch sees them: schemas, fake tensors, torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.augment.ops import Sources
from tests.test_resample import _small_batch, random_matrix


def _calls():
    """Arguments of `lesionaug::resample` in its kinds: dense, ragged, placed lesions."""
    rng = np.random.default_rng(0)
    dense = torch.from_numpy(rng.normal(size=(2, 3, 8, 9)).astype(np.float32))
    m = torch.from_numpy(np.stack([random_matrix(rng, 8, 9, 5) for _ in range(2)]))
    rois, params = _small_batch(torch.device("cpu"))
    placed = params[:6].sources(rois)
    return {
        "dense": Sources(dense.requires_grad_(), matrix=m),
        "ragged": Sources(placed.pixels, placed.offsets, placed.sizes, torch.tensor([2, 0]), None, m),
        "placed": placed,
    }


@pytest.mark.parametrize("kind", ["dense", "ragged", "placed"])
def test_opcheck(kind):
    sources = _calls()[kind].tensors()
    sampling = (True, "reflect", -0.5, 0.0)
    pixels = sources[0].detach()
    torch.library.opcheck(
        torch.ops.lesionaug.resample.default, (*sources, 5, *sampling, None, [0.0, 1.0], torch.float32, False)
    )
    window = (*sampling, [-1.0, 1.0], [0.0, 1.0])
    torch.library.opcheck(
        torch.ops.lesionaug.resample.default, (pixels, *sources[1:], 5, *window, torch.float16, False)
    )
    count, channels = Sources(*sources).num_patches, Sources(*sources).channels
    out = torch.empty(count, channels, 5, 5)
    torch.library.opcheck(torch.ops.lesionaug.resample_out.default, (pixels, *sources[1:], 5, *window, out, False))
    gradient = torch.rand(count, channels, 5, 5, requires_grad=True)
    pixels = pixels if pixels.is_floating_point() else pixels.float()
    torch.library.opcheck(
        torch.ops.lesionaug.resample_adjoint.default, (gradient, pixels, *sources[1:], True, "reflect", -0.5, False)
    )
    torch.library.opcheck(torch.ops.lesionaug.patch_to_image.default, (*sources, 5, False))


def _loss(images, m):
    return la.resample(images, m, 6, window=(-1.0, 1.0)).square().sum()


def _check_compiled(backend):
    sources = _calls()["dense"]
    images = sources.pixels
    compiled = torch.compile(_loss, fullgraph=True, backend=backend)
    expected = _loss(images, sources.matrix)
    (expected_gradient,) = torch.autograd.grad(expected, images)
    value = compiled(images, sources.matrix)
    (gradient,) = torch.autograd.grad(value, images)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_compiles_in_one_graph():
    _check_compiled("aot_eager")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_compiles_with_inductor():
    _check_compiled("inductor")


@pytest.mark.parametrize("num", [2, 5])
def test_compiles_for_any_batch_size_and_window(num):
    def run(images, m, low):
        return la.resample(images, m, 5, window=(low, 1.0))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    rng = np.random.default_rng(num)
    for count in (num, num + 1):
        images = torch.from_numpy(rng.normal(size=(count, 1, 8, 8)))
        m = torch.from_numpy(np.stack([random_matrix(rng, 8, 8, 5) for _ in range(count)]))
        torch.testing.assert_close(compiled(images, m, -0.5 * count), run(images, m, -0.5 * count))


def test_augment_compiles_in_one_graph():
    rois, params = _small_batch(torch.device("cpu"))

    def run(angle):
        import dataclasses

        return la.augment(rois, dataclasses.replace(params, angle=angle * 2), 8)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params.angle), run(params.angle))


def test_fake_tensors_are_checked_like_real_ones():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        images = torch.zeros(2, 3, 8, 9)
        m = torch.zeros(2, 2, 3)
        assert la.resample(images, m, 5).shape == (2, 3, 5, 5)
        with pytest.raises(ValueError, match="3 maps for 2 images"):
            la.resample(images, torch.zeros(3, 2, 3), 5)


def test_the_operator_checks_what_the_public_functions_leave_to_it():
    sources = _calls()["placed"]
    tensors = list(sources.tensors())
    tensors[8] = tensors[8].double()  # angle
    with pytest.raises(TypeError, match="angle must be float32"):
        torch.ops.lesionaug.resample(*tensors, 5, True, "reflect", -0.5, 0.0, None, [0.0, 1.0], torch.float32, False)
    tensors = list(sources.tensors())
    tensors[2] = None  # sizes
    with pytest.raises(ValueError, match="offsets and sizes"):
        torch.ops.lesionaug.resample(*tensors, 5, True, "reflect", -0.5, 0.0, None, [0.0, 1.0], torch.float32, False)


def test_the_adjoint_checks_its_gradient():
    sources = _calls()["dense"].tensors()
    pixels = sources[0].detach()
    rest = (pixels, *sources[1:], True)
    for shape in ((2, 3, 3, 7), (0, 3, 5, 5), (2, 1, 5, 5), (2, 3, 5), ()):
        with pytest.raises(ValueError, match="gradient must be"):
            torch.ops.lesionaug.resample_adjoint(torch.zeros(shape), *rest, "reflect", -0.5, False)
    with pytest.raises(ValueError, match="gradient must be floating"):
        torch.ops.lesionaug.resample_adjoint(torch.zeros(2, 3, 5, 5).to(torch.uint8), *rest, "reflect", -0.5, False)
    with pytest.raises(ValueError, match="border must be"):
        torch.ops.lesionaug.resample_adjoint(torch.zeros(2, 3, 5, 5), *rest, "mirror", -0.5, False)
