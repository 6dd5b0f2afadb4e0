"""How fast this machine augments: one fold of the paper, beside torch's `grid_sample` and the time to write the output.

The short version of `benchmarks/`, which compares more libraries; both work on the same lesions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionaug.augment.execute import augment
from lesionaug.augment.plan import AugmentationParams, AugmentationPlan
from lesionaug.data.rois import RoiBatch

NUM_LESIONS = 62
SIZE = 64
WINDOW = (-160.0, 240.0)
LIKE_TORCH: dict[str, Any] = {"a": -0.75, "antialias": False, "border": "replicate"}  # what grid_sample computes
TOLERANCE = 1e-4  # between ours and grid_sample's, whose positions are float32 shares of the image


def fold(device: torch.device, dtype: torch.dtype = torch.float32, num_lesions: int = NUM_LESIONS) -> RoiBatch:
    """The lesions of the reference workload: 17 to 114 pixels, each in a crop of 3.3 d + 16, smooth texture and noise.

    Args:
        device: Where they are.
        dtype: float32 (about 0 to 1) or int16 (HU).
        num_lesions: 62 stand for one fold of the paper: 29,760 augmentations, 488 MB of 64x64 float32.
    """
    rng = np.random.default_rng(2018)
    diameters = np.exp(rng.uniform(np.log(17), np.log(114), num_lesions))
    images = []
    for d in diameters:
        n = int(3.3 * d + 16)
        y, x = np.mgrid[:n, :n] / d
        waves = sum(np.sin(rng.normal(scale=4) * x + rng.normal(scale=4) * y + rng.uniform(0, 6)) for _ in range(6))
        hu = 60 + 25 * waves + rng.normal(scale=12, size=(n, n))
        values = np.rint(hu) if dtype == torch.int16 else (hu + 160) / 400
        images.append(torch.from_numpy(values.astype(str(dtype).removeprefix("torch."))))
    centers = [[image.shape[1] / 2, image.shape[0] / 2] for image in images]
    return RoiBatch.from_images(images, centers, diameters).to(device)


@dataclass(frozen=True)
class Timing:
    """One line of the table.

    Attributes:
        name: What was timed.
        patches: How many it makes.
        seconds: Median over the rounds.
        gb_per_s: Bytes of the patches over the time.
    """

    name: str
    patches: int
    seconds: float
    gb_per_s: float

    @property
    def patches_per_s(self) -> float:
        """Patches a second."""
        return self.patches / self.seconds


def measure(device: torch.device, seconds: float = 5.0) -> Iterator[Timing]:
    """Time the reference workload case by case.

    Args:
        device: The CPU (torch's number of threads) or a CUDA device.
        seconds: About how long each case is repeated, at least three times.

    Yields:
        A timing as soon as it is known. The first is the floor: writing the fold's patches and nothing else.

    Raises:
        RuntimeError: Where ours and `grid_sample` do not compute the same.
    """
    rois = fold(device)
    params = AugmentationPlan().sample(rois, seed=0)
    out = torch.zeros((len(params), 1, SIZE, SIZE), device=device)

    def timed(name: str, call: Callable[[], Any], patches: int) -> Timing:
        median = median_seconds(call, device, seconds)
        return Timing(name, patches, median, patches * SIZE * SIZE * out.element_size() / median / 1e9)

    yield timed("floor: writing the patches", lambda: out.fill_(0.5), len(params))
    yield timed("one fold, antialiased (the default)", lambda: augment(rois, params, SIZE, out=out), len(params))
    yield timed("  into fresh memory", lambda: augment(rois, params, SIZE), len(params))
    yield timed("one fold, plain bicubic", lambda: augment(rois, params, SIZE, out=out, **LIKE_TORCH), len(params))
    stored = fold(device, torch.int16)
    yield timed("one fold of int16, windowed", lambda: augment(stored, params, SIZE, WINDOW, out=out), len(params))
    batch = params[torch.randperm(len(params), generator=torch.Generator().manual_seed(0))[:64].to(device)]
    yield timed("a batch of 64", lambda: augment(rois, batch, SIZE), 64)
    every_tenth = list(range(0, len(AugmentationPlan()), 10))
    part = AugmentationPlan().sample(rois, seed=0, indices=every_tenth)
    parts, theirs = torch_parts(rois, part), out[: len(part)]

    def grid_sample() -> None:
        for p in parts:
            theirs[p.rows] = p.sample(p.grid())

    grid_sample()
    difference = float((augment(rois, part, SIZE, **LIKE_TORCH) - theirs).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"lesionaug and grid_sample differ by {difference}: not the same computation")
    yield timed("torch grid_sample, plain bicubic", grid_sample, len(part))


def median_seconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The median of at least three rounds, the device awaited; a first one is not counted."""

    def once() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    rounds: list[float] = []
    while len(rounds) < 3 or (sum(rounds) < seconds and len(rounds) < 1000):
        rounds.append(once())
    return statistics.median(rounds)


@dataclass(frozen=True)
class TorchPart:
    """The patches of one lesion, or of as many images of one size, as `grid_sample` makes them.

    Attributes:
        rows: Which patches these are; rows are lesion-major, equally many for each lesion.
        image: [1 or n, 1, height, width].
        maps: float32 [n, 2, 3], `patch_to_image`.
    """

    rows: slice
    image: Tensor
    maps: Tensor

    def grid(self) -> Tensor:
        """Where each patch pixel looks, in shares of the image, [n, 64, 64, 2]."""
        device, (height, width) = self.image.device, self.image.shape[2:]
        centre = torch.arange(SIZE, device=device) + 0.5
        across, down = torch.meshgrid(centre, centre, indexing="xy")
        points = torch.stack([across, down, torch.ones_like(across)], -1)
        scale = torch.tensor([2 / width, 2 / height], device=device)
        return torch.matmul(points, self.maps.transpose(1, 2)[:, None]) * scale - 1

    def sample(self, grid: Tensor) -> Tensor:
        """The patches [n, 1, 64, 64], plain bicubic."""
        image = self.image.expand(len(self.maps), -1, -1, -1)
        return torch.nn.functional.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)


def torch_parts(rois: RoiBatch, params: AugmentationParams) -> list[TorchPart]:
    """The work of `params` for `grid_sample`, one call for each lesion."""
    maps = params.patch_to_image(rois, SIZE)
    per_lesion = len(params) // len(rois)
    rows = [slice(per_lesion * i, per_lesion * (i + 1)) for i in range(len(rois))]
    return [TorchPart(part, image[None, None], maps[part]) for part, image in zip(rows, rois.images, strict=True)]
