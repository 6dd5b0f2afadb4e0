"""Small reader studies for tests: noise with discs as real lesions, smoother noise as synthetic ones."""

from __future__ import annotations

from pathlib import Path

import torch

from lesionaug.data.provenance import Provenance
from lesionaug.data.store import save_rois
from lesionaug.data.synthetic import SyntheticRois, save_synthetic
from lesionaug.study.design import NewStudy, make_study
from lesionaug.study.options import StudyOptions
from tests.runs import make_rois


def make_synthetic(path: Path, per_class: int = 12, size: int = 64, **changes) -> Path:
    """Synthetic ROIs "learned" from the lesions of `make_rois`."""
    rois = make_rois()
    generator = torch.Generator().manual_seed(7)
    images = 0.5 + 0.1 * torch.randn(3 * per_class, 1, size, size, generator=generator)
    values = {
        "images": images.clamp(0, 1),
        "labels": torch.arange(3).repeat(per_class),
        "classes": rois.classes,
        "kind": "phantom",
        "split": 0,
        "window_hu": (-160.0, 240.0),
        "provenance": Provenance.of(rois),
        "details": {"gan": "dcgan", "seed": 0, "copies_rejected": None},
    }
    save_synthetic(SyntheticRois(**values | changes), path)
    return path


def make_stores(folder: Path) -> tuple[Path, Path]:
    """A ROI store of 24 lesions and a store of synthetic ROIs."""
    save_rois(make_rois(), folder / "rois")
    return folder / "rois", make_synthetic(folder / "synthetic")


def small_study(folder: Path, name: str = "study", **options) -> NewStudy:
    """A study of 6 real and 6 synthetic images, 2 for practice and 2 repeats, for two readers."""
    if not (folder / "rois").exists():
        make_stores(folder)
    wanted = {"num_real": 6, "num_practice": 2, "repeats": 0.17, "num_readers": 2} | options
    return make_study(folder / "rois", folder / name, folder / "synthetic", StudyOptions(**wanted))
