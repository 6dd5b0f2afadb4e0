"""Gradients with respect to the images: the adjoint of the operator, deterministic, differentiable again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import lesionaug as la
from tests.test_resample import BORDERS, _small_batch, random_matrix


def _setting(device, dtype=torch.float64, seed=0, channels=2):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(3, channels, 9, 7))).to(device=device, dtype=dtype)
    maps = np.stack([random_matrix(rng, 9, 7, 4, zoom) for zoom in (0.6, 1.0, 2.7, 1.4)])
    index = torch.tensor([0, 2, 2, 0], device=device)
    return image, torch.from_numpy(maps).to(device), index


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("antialias", [True, False])
def test_the_adjoint_is_the_transpose(device, border, antialias):
    """<A x, y> = <x, A^T y> for the linear part of the operator."""
    image, m, index = _setting(device)
    image.requires_grad_()
    patches = la.resample(image, m, 4, image_index=index, border=border, antialias=antialias, dtype=torch.float64)
    other = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(patches.shape))).to(device)
    (gradient,) = torch.autograd.grad(patches, image, other)
    assert gradient.shape == image.shape
    with torch.no_grad():
        assert float((patches * other).sum()) == pytest.approx(float((image * gradient).sum()), rel=1e-9)
    assert (gradient[1] == 0).all(), "no patch looks at image 1"


@pytest.mark.parametrize("border", BORDERS)
def test_gradcheck_and_gradgradcheck(device, border):
    image, m, index = _setting(device, channels=1)
    image = image[:, :, :5, :4].contiguous().requires_grad_()

    def run(pixels):
        return la.resample(pixels, m, 3, image_index=index, border=border, dtype=torch.float64)

    assert torch.autograd.gradcheck(run, (image,))
    assert torch.autograd.gradgradcheck(run, (image,))


def test_a_window_masks_what_was_clipped(device):
    image, m, index = _setting(device)
    reference = image.clone().requires_grad_()
    image.requires_grad_()
    window, out_range = (-0.4, 0.9), (-1.0, 1.0)
    options = {"image_index": index, "dtype": torch.float64, "border": "constant", "fill": 0.3}
    ours = la.resample(image, m, 4, window=window, out_range=out_range, **options)
    # The same by hand: clip and scale, resample without a window, clamp, map.
    scaled = ((reference - window[0]) / (window[1] - window[0])).clamp(0, 1)
    fill = (0.3 - window[0]) / (window[1] - window[0])
    by_hand = -1 + 2 * la.resample(scaled, m, 4, **{**options, "fill": fill}).clamp(0, 1)
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(ours, la.resample(image, m, 4, window=window, out_range=out_range, **options))
    weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64, device=device).reshape(ours.shape)
    (ours_gradient,) = torch.autograd.grad((ours * weight).sum(), image)
    (hand_gradient,) = torch.autograd.grad((by_hand * weight).sum(), reference)
    torch.testing.assert_close(ours_gradient, hand_gradient)
    outside = (image < window[0]) | (image > window[1])
    assert outside.any()
    assert (ours_gradient[outside] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_dtype_of_the_image(device, dtype):
    image, m, index = _setting(device)
    small = image.to(dtype).requires_grad_()
    exact = small.detach().double().requires_grad_()
    weight = torch.linspace(-1, 1, 4 * 2 * 16, dtype=torch.float64, device=device).reshape(4, 2, 4, 4)
    patches = la.resample(small, m, 4, image_index=index, dtype=torch.float32)
    (gradient,) = torch.autograd.grad((patches * weight).sum(), small)
    wide = la.resample(exact, m, 4, image_index=index, dtype=torch.float64)
    (expected,) = torch.autograd.grad((wide * weight).sum(), exact)
    assert gradient.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_the_same_bits_every_time_and_for_any_threads(device):
    rois, params = _small_batch(device)
    images = [image.float().requires_grad_() for image in rois.images]

    def gradients():
        batch = la.RoiBatch.from_images(images, rois.centers, rois.diameters)
        patches = la.augment(batch, params, 16)
        weight = torch.linspace(-1, 1, patches.numel(), device=device).reshape(patches.shape)
        return torch.autograd.grad((patches * weight).sum(), images)

    threads = torch.get_num_threads()
    first = gradients()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for a, b in zip(first, gradients(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
    assert all(gradient.abs().sum() > 0 for gradient in first)


def test_gradients_that_are_not_finite_stay_visible(device):
    image, m, index = _setting(device, torch.float32)
    image.requires_grad_()
    patches = la.resample(image, m, 4, image_index=index)
    for bad in (float("inf"), float("nan")):
        weight = torch.zeros_like(patches)
        weight[0, 0, 1, 1] = bad
        (gradient,) = torch.autograd.grad(patches, image, weight, retain_graph=True)
        assert not torch.isfinite(gradient).all(), "an overflowing loss must not look like a zero gradient"


def test_very_small_and_zero_gradients(device):
    image, m, index = _setting(device)
    image.requires_grad_()
    patches = la.resample(image, m, 4, image_index=index, dtype=torch.float64)
    (one,) = torch.autograd.grad(patches, image, torch.ones_like(patches), retain_graph=True)
    (tiny,) = torch.autograd.grad(patches, image, torch.full_like(patches, 2.0**-600), retain_graph=True)
    torch.testing.assert_close(tiny * 2.0**600, one, rtol=1e-9, atol=1e-12)
    (zero,) = torch.autograd.grad(patches, image, torch.zeros_like(patches))
    assert (zero == 0).all()


def test_images_that_were_not_selected_get_no_gradient(device):
    images = [torch.rand(6, 7, device=device, requires_grad=True) for _ in range(3)]
    part = la.RoiBatch.from_images(images, [[3, 3]] * 3, [3.0] * 3)[[1]]
    for window in (None, (0.2, 0.8)):
        patches = la.augment(part, la.originals(part), 5, window=window)
        gradients = torch.autograd.grad(patches.sum(), images)
        assert (gradients[0] == 0).all()
        assert (gradients[2] == 0).all()
        assert gradients[1].abs().sum() > 0


def test_parameters_carry_no_gradients(device):
    rois, params = _small_batch(device)
    params = dataclasses.replace(params, angle=params.angle.clone().requires_grad_())
    assert not la.augment(rois, params, 4, window=(-160, 240)).requires_grad


def test_every_share_of_every_patch_on_one_pixel(device):
    """The most that can meet on one pixel: the sums must not overflow on any device."""
    image = torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=device, requires_grad=True)
    m = torch.tensor([[[0.3, 0, 0], [0, 0.3, 0]]], device=device).repeat(50, 1, 1)
    patches = la.resample(image, m, 16, image_index=torch.zeros(50, dtype=torch.int64, device=device))
    (gradient,) = torch.autograd.grad(patches.double().sum(), image)
    assert gradient.item() == pytest.approx(50 * 16 * 16, rel=1e-6)


def test_a_patch_without_a_map_leaves_the_other_gradients_alone(device, checks_values):
    if checks_values:
        pytest.skip("the CPU raises instead")
    image = torch.rand(2, 1, 5, 5, device=device, requires_grad=True)
    m = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], device=device).repeat(4, 1, 1)
    m[1, 0, 0] = float("nan")
    patches = la.resample(image, m, 5, image_index=torch.tensor([0, 0, 2**40, 1], device=device))
    weight = torch.ones_like(patches)
    (gradient,) = torch.autograd.grad(patches, image, weight)
    torch.testing.assert_close(gradient, torch.ones_like(image))


def test_what_cannot_carry_gradients_is_refused():
    image = torch.zeros(1, 1, 4, 4, requires_grad=True)
    m = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    with pytest.raises(ValueError, match="detach"):
        la.resample(image, m, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="detach"):
        la.resample(image, m, 4, out=torch.empty(1, 1, 4, 4))
    with torch.no_grad():
        la.resample(image, m, 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="floating"):
        torch.zeros(1, 1, 4, 4, dtype=torch.int16, requires_grad=True)
