"""One fold's augmentations, ours and the rivals'; equality is checked before anything is timed."""

from __future__ import annotations

import pytest
import torch

import lesionaug as la
from benchmarks.rivals import RIVALS, Work
from benchmarks.sources import TOLERANCE
from lesionaug.augment import native
from lesionaug.augment.speed import LIKE_TORCH, SIZE, WINDOW, fold


@pytest.fixture(scope="module")
def rois(device):
    return fold(device)


def params_of(rois):
    return la.AugmentationPlan().sample(rois, seed=0)


def against_plain(rois, params, path, monkeypatch, **options):
    """How far an implementation on the GPU is from the plain one, for benchmarks/sources.py."""
    if path != "tiled":
        return {}
    tiled = la.augment(rois, params, SIZE, **options)
    with monkeypatch.context() as changed:
        changed.setattr(native.backend(rois.device), "path", "plain")
        difference = float((tiled - la.augment(rois, params, SIZE, **options)).abs().max())
    low, high = rois.packed.pixels.aminmax()
    difference /= float(high - low)
    assert difference <= TOLERANCE
    return {"difference": difference}


def test_fold_antialiased(rois, path, timed, monkeypatch):
    """The default: antialiased, a = -0.5, float32."""
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    about = against_plain(rois, params, path, monkeypatch)
    timed(lambda: la.augment(rois, params, SIZE, out=out), outputs=len(params), size=SIZE, **about)


def test_fold_antialiased_fresh_output(rois, path, timed):
    """As above with the output allocated by the call."""
    params = params_of(rois)
    timed(lambda: la.augment(rois, params, SIZE), outputs=len(params), size=SIZE)


def test_fold_without_antialias(rois, path, timed, monkeypatch):
    """Plain bicubic, a = -0.75, replicate: what grid_sample computes."""
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    about = against_plain(rois, params, path, monkeypatch, **LIKE_TORCH)
    timed(lambda: la.augment(rois, params, SIZE, out=out, **LIKE_TORCH), outputs=len(params), size=SIZE, **about)


def test_fold_without_antialias_fresh_output(rois, path, timed):
    """As above with the output allocated by the call."""
    params = params_of(rois)
    timed(lambda: la.augment(rois, params, SIZE, **LIKE_TORCH), outputs=len(params), size=SIZE)


def test_fold_int16_windowed(device, path, timed):
    """Stored CT values in, window applied in the same pass."""
    rois = fold(device, torch.int16)
    params = params_of(rois)
    out = torch.empty((len(params), 1, SIZE, SIZE), device=rois.device)
    timed(lambda: la.augment(rois, params, SIZE, window=WINDOW, out=out), outputs=len(params), size=SIZE)


@pytest.mark.parametrize("order", ["first", "shuffled"])
@pytest.mark.parametrize("into", ["fresh", "out"])
def test_batch_of_64(rois, path, timed, order, into):
    """One batch of a training loop: the first rows, which are of one lesion, or any."""
    params = params_of(rois)
    chosen = torch.randperm(len(params), generator=torch.Generator().manual_seed(0)) if order == "shuffled" else None
    batch = params[:64] if chosen is None else params[chosen[:64].to(rois.device)]
    out = torch.empty((64, 1, SIZE, SIZE), device=rois.device) if into == "out" else None
    timed(lambda: la.augment(rois, batch, SIZE, out=out), outputs=64, size=SIZE)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_rival(rois, timed, rival):
    """Others with the same maps, see rivals.py."""
    if not rival.installed:
        pytest.skip(f"{rival.module} is not installed: pip install .[bench]")
    if rois.device.type == "cuda" and not rival.cuda:
        pytest.skip(f"{rival.name} runs on the CPU only")
    work = Work(rois, rival.rotations, torch.get_num_threads())
    with rival.make(work) as run:
        run()
        difference = float((la.augment(rois, work.params, SIZE, **rival.ours) - work.out).abs().max())
        assert rival.tolerance is None or difference < rival.tolerance, "not the same computation"
        timed(
            run,
            outputs=len(work.params),
            size=SIZE,
            antialias=rival.antialias,
            equal=rival.tolerance is not None,
            difference=difference,
            version=rival.version,
            note=rival.note,
        )


def test_floor_writing_the_output(rois, timed):
    """What no implementation can beat: filling the 488 MB."""
    out = torch.empty((len(rois) * 480, 1, SIZE, SIZE), device=rois.device)
    timed(lambda: out.fill_(0.5), outputs=len(out), size=SIZE)
