"""Drawing the parameters of a fold, and feeding a training loop with shuffled batches of 64: ours and usual ways."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import numpy as np
import pytest
import torch

import lesionaug as la
from benchmarks.rivals import CV, opencv_maps
from lesionaug.augment.philox import MASK32, check_seed
from lesionaug.augment.speed import SIZE, fold

BATCH = 64
BATCHES = 100  # of an epoch's 465


@pytest.fixture(scope="module")
def rois(device):
    return fold(device)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_plan(rois, timed, one_thread):
    """The parameters of the fold, on one core or the GPU."""
    plan = la.AugmentationPlan()
    timed(lambda: plan.sample(rois, seed=0), outputs=len(rois) * len(plan), size=0)


def test_plan_order(rois, timed, one_thread):
    """The nested selection order of the fold."""
    plan = la.AugmentationPlan()
    timed(lambda: plan.order(rois, seed=0), outputs=len(rois) * len(plan), size=0)


def test_plan_by_numpy(rois, device, timed):
    """The same distributions by NumPy's Philox generator, whole columns at once: no draw depends on the lesion's id."""
    if device.type == "cuda":
        pytest.skip("NumPy runs on the CPU only")
    d = rois.diameters.double().numpy()[:, None]
    n, plan = len(rois), la.AugmentationPlan()

    def draw():
        rng = np.random.Generator(np.random.Philox(check_seed(0)))
        shape = (n, plan.n_rot, plan.variants)
        angle = np.broadcast_to(rng.random((n, plan.n_rot, 1)) * plan.max_angle_deg, shape).astype(np.float32)
        flip = np.zeros(shape, np.uint8)
        flip[:, :, 1:4] = 2, 1, 3
        shift = np.zeros((*shape, 2), np.float32)
        reach = np.minimum(plan.max_shift_px, plan.shift_fraction * d)[:, :, None, None]
        shift[:, :, 4:11] = (2 * rng.random((n, plan.n_rot, 7, 2)) - 1) * reach
        side = np.empty(shape, np.float32)
        side[:] = plan.base_side * d[:, :, None]
        margin = plan.scale_low + plan.scale_span * rng.random((n, plan.n_rot, 5))
        side[:, :, 11:] += 2 * margin * d[:, :, None]
        roi = np.repeat(np.arange(n), len(plan))
        return roi, angle.reshape(-1), flip.reshape(-1), shift.reshape(-1, 2), side.reshape(-1)

    ours = plan.sample(rois, seed=0)
    for mine, theirs in zip((ours.roi, ours.flip), (draw()[0], draw()[2]), strict=True):
        assert np.array_equal(mine.cpu().numpy(), theirs)
    for mine, theirs in ((ours.angle, draw()[1]), (ours.shift, draw()[3]), (ours.side, draw()[4])):
        assert abs(float(mine.std()) / float(np.std(theirs)) - 1) < 0.05, "not the same distribution"
    timed(draw, outputs=n * len(plan), size=0, version=np.__version__, note="other numbers, columns at once")


def batches_of(rois):
    return la.AugmentedBatches(rois, la.AugmentationPlan(), batch_size=BATCH, seed=0)


def test_batches(rois, path, timed):
    """`AugmentedBatches`, a hundred batches of 64."""
    batches = batches_of(rois)

    def run():
        for _ in range(BATCHES):
            x, _ = next(batches)
        return x

    timed(run, outputs=BATCHES * BATCH, size=SIZE)


def test_batches_bare_operator(rois, path, timed):
    """`la.augment` of the same patches with the parameters at hand: what `AugmentedBatches` may cost in addition."""
    plan = la.AugmentationPlan()
    batches = batches_of(rois)
    rows = torch.cat([batches._take(BATCH * b)[0] for b in range(BATCHES)])
    params = plan.sample_rows(rois, rows >> 32, rows & MASK32, seed=0)
    parts = [params[BATCH * b : BATCH * (b + 1)] for b in range(BATCHES)]
    assert torch.equal(la.augment(rois, parts[0], SIZE), next(batches_of(rois))[0])

    def run():
        for part in parts:
            x = la.augment(rois, part, SIZE)
        return x

    timed(run, outputs=BATCHES * BATCH, size=SIZE)


class OpenCvDataset(torch.utils.data.Dataset):
    """What is usual: parameters by NumPy, one `warpAffine` (plain bicubic) for each item, batches from workers."""

    def __init__(self, rois, plan):
        self.images = [image.numpy() for image in rois.images]
        self.matrices = opencv_maps(plan.sample(rois, seed=0).patch_to_image(rois, SIZE).double().numpy())
        self.per_lesion = len(plan)

    def __len__(self):
        return len(self.matrices)

    def __getitem__(self, row):
        import cv2

        cv2.setNumThreads(1)
        patch = cv2.warpAffine(
            self.images[row // self.per_lesion],
            self.matrices[row],
            (SIZE, SIZE),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )
        return torch.from_numpy(patch)[None], 0


def test_batches_by_dataloader(rois, device, timed):
    """torch's DataLoader with one worker a core over OpenCV, the matrices made before; workers are started before."""
    if device.type == "cuda":
        pytest.skip("OpenCV's warpAffine runs on the CPU only")
    if importlib.util.find_spec("cv2") is None:
        pytest.skip("cv2 is not installed: pip install .[bench]")
    loader = torch.utils.data.DataLoader(
        OpenCvDataset(rois, la.AugmentationPlan()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=torch.get_num_threads(),
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    state = iter(loader)

    def run():
        nonlocal state
        for _ in range(BATCHES):
            x = next(state, None)
            if x is None:
                state = iter(loader)
                x = next(state)
        return x

    note = "plain bicubic, matrices and labels given"
    timed(run, outputs=BATCHES * BATCH, size=SIZE, version=importlib.metadata.version(CV), note=note)
