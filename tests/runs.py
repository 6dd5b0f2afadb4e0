"""Small stores and configurations for tests of runs."""

from __future__ import annotations

from pathlib import Path

import torch

from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import save_rois
from lesionaug.experiment.config import RunConfig, preset

NUM_LESIONS = 24


def make_store(path: Path, seed: int = 0, labelled: bool = True) -> Path:
    """Noise with a bright, dark or ringed disc; every seventh lesion belongs to the patient before it."""
    save_rois(make_rois(seed, labelled), path)
    return path


def make_rois(seed: int = 0, labelled: bool = True) -> RoiBatch:
    """The lesions of `make_store`."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64.0) + 0.5, torch.arange(64.0) + 0.5, indexing="ij")
    images, diameters, labels = [], [], []
    for i in range(NUM_LESIONS):
        diameter = 16 + 6 * float(torch.rand((), generator=generator))
        radius = ((x - 32) ** 2 + (y - 32) ** 2).sqrt()
        hu = 60 + 20 * torch.randn(64, 64, generator=generator)
        hu += torch.where(radius < diameter / 2, (-80.0, 80.0, -40.0)[i % 3], 0.0)
        hu += torch.where((radius > diameter / 3) & (radius < diameter / 2) & (i % 3 == 2), 160.0, 0.0)
        images.append(hu.round().to(torch.int16))
        diameters.append(diameter)
        labels.append(i % 3 if labelled else -1)
    return RoiBatch.from_images(
        images,
        [[32.0, 32.0]] * NUM_LESIONS,
        diameters,
        labels=labels,
        lesion_ids=[f"{37 * i % 101:03d}" for i in range(NUM_LESIONS)],
        patient_ids=[f"P{i - (i % 7 == 6):02d}" for i in range(NUM_LESIONS)],
        classes=("cyst", "metastasis", "hemangioma"),
        kind="phantom",
    )


def classic_only(**more: object) -> RunConfig:
    """The `tiny` preset without all that builds on the classic groups: 13 steps instead of 87."""
    less = {
        "classic_groups": (0, 30),
        "gans": (),
        "bovw": None,
        "controls": (),
        "embedding": None,
        "memorisation": None,
    }
    return preset("tiny").model_copy(update={**less, **more})


def predictions(run_dir: Path) -> dict[str, bytes]:
    """The saved predictions of every model, by its name."""
    return {path.parent.name: path.read_bytes() for path in sorted(run_dir.glob("models/*/predictions.csv"))}
