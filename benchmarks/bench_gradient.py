"""Gradients with respect to the images, forward and backward: ragged lesions, and the GAN's own case, dense images."""

from __future__ import annotations

import pytest
import torch

import lesionaug as la
from lesionaug.augment.speed import LIKE_TORCH, SIZE, TorchPart, fold, median_seconds

GAN_BATCH, GAN_CHANNELS, GAN_SIZE = 256, 1, 64


def dense_case(device):
    """A batch of generated images, each with a map of its own as in adaptive discriminator augmentation."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(GAN_BATCH, GAN_CHANNELS, GAN_SIZE, GAN_SIZE, generator=generator)
    angle = torch.rand(GAN_BATCH, generator=generator) * 6.28
    zoom = 1 + 0.4 * (torch.rand(GAN_BATCH, generator=generator) - 0.5)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    middle = GAN_SIZE / 2
    across = torch.stack([cosine, -sine, middle - middle * (cosine - sine)], 1)
    down = torch.stack([sine, cosine, middle - middle * (sine + cosine)], 1)
    return images.to(device), torch.stack([across, down], 1).to(device)


def ragged_case(device):
    """A tenth of the fold: three rotations of every lesion."""
    rois = fold(device)
    params = la.AugmentationPlan().sample(rois, seed=0, indices=list(range(48)))
    return rois, params.patch_to_image(rois, SIZE), params.roi


def backward_of(forward, images):
    """The call of the backward pass to `images` from one forward pass, and how many patches that makes."""
    patches = forward()
    incoming = torch.randn(patches.shape, generator=torch.Generator().manual_seed(1)).to(patches.device)
    return lambda: torch.autograd.grad(patches, images, incoming, retain_graph=True)[0], len(patches)


def calls(case, device, **how):
    """(forward, backward, patches in a call)."""
    if case == "dense":
        images, maps = dense_case(device)
        images.requires_grad_()
        index, batch = None, images
    else:
        rois, maps, index = ragged_case(device)
        views = [image.clone().requires_grad_() for image in rois.images]
        batch = la.RoiBatch.from_images(views, rois.centers, rois.diameters)
        images = batch.packed.pixels

    def forward():
        return la.resample(batch, maps, SIZE, image_index=index, **how)

    return forward, *backward_of(forward, images)


def time_backward(forward, backward, count, device, timed, **about):
    """Time the backward pass; `over_forward` is its cost in forward passes of the same patches."""
    seconds = median_seconds(forward, device, 1.0)
    over = median_seconds(backward, device, 1.0) / seconds
    timed(backward, outputs=count, size=SIZE, forward_s=seconds, over_forward=over, **about)


@pytest.mark.parametrize("kernel", ["antialiased", "plain"])
@pytest.mark.parametrize("case", ["ragged", "dense"])
def test_gradient(device, timed, case, kernel):
    how = {} if kernel == "antialiased" else LIKE_TORCH
    time_backward(*calls(case, device, **how), device, timed)


def test_gradient_dense_torch(device, timed):
    """`grid_sample`'s backward of the dense case to the images alone, the grid given."""
    images, maps = dense_case(device)
    images.requires_grad_()
    part = TorchPart(slice(None), images, maps)
    grid = part.grid()

    def forward():
        return part.sample(grid)

    backward, count = backward_of(forward, images)
    _, ours, _ = calls("dense", device, **LIKE_TORCH)
    difference = float((backward() - ours()).abs().max())
    assert difference < 1e-3, "not the same computation"
    time_backward(forward, backward, count, device, timed, difference=difference)
