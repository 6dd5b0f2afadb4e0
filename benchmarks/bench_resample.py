"""One fold's augmentations, ours beside torch's grid_sample; equality is checked before anything is timed."""

from __future__ import annotations

import pytest
import torch

import lesionaug as la
from benchmarks.workload import fold

SIZE = 64
WINDOW = (-160.0, 240.0)


@pytest.fixture(scope="module")
def rois(device):
    return fold(device)


def params_of(rois):
    return la.AugmentationPlan().sample(rois, seed=0)


def test_fold_antialiased(rois, timed):
    """The default: antialiased, a = -0.5, float32."""
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    timed(lambda: la.augment(rois, params, SIZE, out=out), outputs=len(params), size=SIZE)


def test_fold_antialiased_fresh_output(rois, timed):
    """As above with the output allocated by the call."""
    params = params_of(rois)
    timed(lambda: la.augment(rois, params, SIZE), outputs=len(params), size=SIZE)


def test_fold_without_antialias(rois, timed):
    """Plain bicubic, a = -0.75, replicate: what grid_sample computes."""
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    options = {"a": -0.75, "antialias": False, "border": "replicate"}
    timed(lambda: la.augment(rois, params, SIZE, out=out, **options), outputs=len(params), size=SIZE)


def test_fold_int16_windowed(device, timed):
    """Stored CT values in, window applied in the same pass."""
    rois = fold(device, torch.int16)
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    timed(lambda: la.augment(rois, params, SIZE, window=WINDOW, out=out), outputs=len(params), size=SIZE)


def test_batch_of_64(rois, timed):
    """One batch of a training loop."""
    params = params_of(rois)[:64]
    timed(lambda: la.augment(rois, params, SIZE), outputs=64, size=SIZE)


def test_plan(rois, timed):
    """Drawing the parameters of the fold."""
    plan = la.AugmentationPlan()
    timed(lambda: plan.sample(rois, seed=0), outputs=len(rois) * len(plan), size=0)


def test_rival_torch_grid_sample(rois, timed):
    """torch: grids made from the same maps, one grid_sample per lesion, not antialiased."""
    params = params_of(rois)
    maps = params.patch_to_image(rois, SIZE)
    centre = torch.arange(SIZE, device=rois.device) + 0.5
    points = torch.stack(
        [*torch.meshgrid(centre, centre, indexing="xy"), torch.ones(SIZE, SIZE, device=rois.device)], -1
    )
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    images = [image[None, None] for image in rois.images]
    scales = [torch.tensor([2 / i.shape[3], 2 / i.shape[2]], device=rois.device) for i in images]

    def run():
        for i, image in enumerate(images):
            part = slice(480 * i, 480 * (i + 1))
            grid = torch.matmul(points, maps[part].transpose(1, 2)[:, None]) * scales[i] - 1
            out[part] = torch.nn.functional.grid_sample(
                image.expand(480, -1, -1, -1), grid, mode="bicubic", padding_mode="border", align_corners=False
            )
        return out

    ours = la.augment(rois, params, SIZE, a=-0.75, antialias=False, border="replicate")
    difference = float((run() - ours).abs().max())
    assert difference < 5e-4, "not the same computation"  # float32 grids; the exact tests use float64
    timed(run, outputs=len(params), size=SIZE, difference=difference)


def test_floor_writing_the_output(rois, timed):
    """What no implementation can beat: filling the 488 MB."""
    out = torch.empty((len(rois) * 480, 1, SIZE, SIZE), device=rois.device)
    timed(lambda: out.fill_(0.5), outputs=len(out), size=SIZE)
