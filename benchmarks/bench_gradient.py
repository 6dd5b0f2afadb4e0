"""Gradients with respect to the images, forward and backward: ragged lesions, and the GAN's own case, dense images."""

from __future__ import annotations

import pytest
import torch

import lesionaug as la
from lesionaug.augment.speed import LIKE_TORCH, SIZE, fold, median_seconds

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


def calls(case, device, **how):
    """(forward, backward, patches in a call)."""
    if case == "dense":
        images, maps = dense_case(device)
        images.requires_grad_()
        make = lambda: la.resample(images, maps, SIZE, **how)  # noqa: E731
        count = len(maps)
    else:
        rois, maps, index = ragged_case(device)
        views = [image.clone().requires_grad_() for image in rois.images]
        batch = la.RoiBatch.from_images(views, rois.centers, rois.diameters)
        images = batch.packed.pixels
        images.retain_grad()
        make = lambda: la.resample(batch, maps, SIZE, image_index=index, **how)  # noqa: E731
        count = len(maps)
    incoming = torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)
    patches = make()
    return make, lambda: torch.autograd.grad(patches, images, incoming, retain_graph=True)[0], count


@pytest.mark.parametrize("kernel", ["antialiased", "plain"])
@pytest.mark.parametrize("case", ["ragged", "dense"])
def test_gradient(device, timed, case, kernel):
    """The backward pass; `over_forward` is its cost in forward passes of the same patches."""
    how = {} if kernel == "antialiased" else LIKE_TORCH
    forward, backward, count = calls(case, device, **how)
    seconds = median_seconds(forward, device, 1.0)
    timed(
        backward,
        outputs=count,
        size=SIZE,
        forward_s=seconds,
        over_forward=median_seconds(backward, device, 1.0) / seconds,
    )


def test_gradient_dense_torch(device, timed):
    """`grid_sample`'s backward of the dense case to the images alone, the grid given."""
    images, maps = dense_case(device)
    images.requires_grad_()
    _, ours, count = calls("dense", device, **LIKE_TORCH)
    centre = torch.arange(SIZE, device=device) + 0.5
    across, down = torch.meshgrid(centre, centre, indexing="xy")
    points = torch.stack([across, down, torch.ones_like(across)], -1)
    grid = torch.matmul(points, maps.transpose(1, 2)[:, None]) * (2 / GAN_SIZE) - 1

    def make():
        return torch.nn.functional.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)

    patches = make()
    incoming = torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)

    def backward():
        return torch.autograd.grad(patches, images, incoming, retain_graph=True)[0]

    difference = float((backward() - ours()).abs().max())
    assert difference < 1e-3, "not the same computation"
    seconds = median_seconds(make, device, 1.0)
    about = {
        "difference": difference,
        "forward_s": seconds,
        "over_forward": median_seconds(backward, device, 1.0) / seconds,
    }
    timed(backward, outputs=count, size=SIZE, **about)
