"""Write a batch's augmentations as safetensors files beside a JSON manifest, in bounded memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lesionaug import __version__
from lesionaug.augment.execute import augment
from lesionaug.augment.plan import AugmentationParams, AugmentationPlan, originals
from lesionaug.data.files import commit_directory, write_bytes_atomic, write_json_atomic
from lesionaug.data.rois import DEFAULT_WINDOW_HU, RoiBatch
from lesionaug.errors import ConfigError

SCHEMA = "lesionaug-augmentations"
SCHEMA_VERSION = 1
ORIGINAL = -1  # stands where the index of an augmentation would
BYTES_PER_FILE = 64 << 20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}

Progress = Callable[[int, int, str], None]


def export_augmentations(
    rois: RoiBatch,
    out: str | os.PathLike[str],
    plan: AugmentationPlan | None = None,
    *,
    per_lesion: int | None = None,
    seed: int = 0,
    size: int = 64,
    window: tuple[float, float] = DEFAULT_WINDOW_HU,
    dtype: Literal["float32", "float16", "uint8"] = "float32",
    source: Mapping[str, Any] | None = None,
    bytes_per_file: int = BYTES_PER_FILE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write every lesion's original and its first `per_lesion` augmentations in the nested order of `plan.order`.

    Rows are lesion-major: a lesion's original first, then its augmentations, so a smaller group is the first rows of
    each lesion. Each file holds `images` [N, 1, size, size], `lesion` int64 [N] (which of the manifest's lesions),
    `augmentation` int64 [N] (index in the plan, -1: the original), `angle_deg`, `flip`, `shift_px` and `side_px`.

    Args:
        rois: The lesions.
        out: Folder to create; it appears whole or not at all.
        plan: The paper's by default.
        per_lesion: Augmentations per lesion; default: the whole plan.
        seed: Of the augmentations and of their order, 0 .. 2^64 - 1.
        size: Height and width of a patch, pixels.
        window: (low, high) HU that become 0 and 1 (0 and 255 for uint8).
        dtype: Of the patches.
        source: What identifies the lesions' origin, noted in the manifest; no paths.
        bytes_per_file: Pixels of a file at most, so also about the memory that is used.
        progress: Called as (patches done, in all, "").

    Returns:
        The manifest.

    Raises:
        ConfigError: An argument out of range, or a folder that exists.
    """
    plan = AugmentationPlan() if plan is None else plan
    count = len(plan) if per_lesion is None else per_lesion
    target = Path(out)
    check_target(target)
    check_options(size, window, seed)
    if not 0 <= count <= len(plan):
        rule = f"it must lie in 0 .. {len(plan)}, the plan's augmentations, got {count}"
        raise ConfigError("--per-lesion", rule, "Choose fewer")
    if dtype not in DTYPES:
        raise ConfigError("--dtype", f"it must be one of {', '.join(DTYPES)}, got {dtype!r}", "Choose one of them")
    order = plan.order(rois, seed=seed)[:, :count].cpu()
    rows_per_lesion = 1 + count
    total = len(rois) * rows_per_lesion
    rows_per_file = max(1, bytes_per_file // (size * size * DTYPES[dtype].itemsize))
    files: list[dict[str, Any]] = []
    with commit_directory(target) as folder:
        for start in range(0, total, rows_per_file):
            rows = torch.arange(start, min(start + rows_per_file, total))
            lesion, place = rows // rows_per_lesion, rows % rows_per_lesion
            indices = torch.full_like(place, ORIGINAL)
            indices[place > 0] = order[lesion[place > 0], place[place > 0] - 1]
            name = f"patches-{len(files):05d}.safetensors"
            content = _patches(rois, plan, lesion, indices, seed, size, window, DTYPES[dtype])
            write_bytes_atomic(folder / name, content)
            files.append({"file": name, "num_patches": len(rows), "sha256": hashlib.sha256(content).hexdigest()})
            if progress is not None:
                progress(start + len(rows), total, "")
        labels = [rois.classes[label] if label >= 0 else None for label in rois.labels.tolist()]
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "kind": rois.kind,
            "source": dict(source or {}),
            "classes": list(rois.classes),
            "lesions": [
                {"id": lesion_id, "patient": patient, "label": label}
                for lesion_id, patient, label in zip(rois.lesion_ids, rois.patient_ids, labels, strict=True)
            ],
            "plan": dataclasses.asdict(plan),
            "seed": seed,
            "per_lesion": count,
            "num_patches": total,
            "size": size,
            "window_hu": [float(bound) for bound in window],
            "value_range": [0, 255] if dtype == "uint8" else [0, 1],
            "dtype": dtype,
            "resampling": {"a": -0.5, "antialias": True, "border": "reflect"},
            "files": files,
            "versions": {"lesionaug": __version__, "python": platform.python_version(), "torch": torch.__version__},
        }
        write_json_atomic(folder / "manifest.json", manifest)
    return manifest


def check_target(target: Path) -> None:
    """Refuse to write over anything, or into a folder that is not there.

    Raises:
        ConfigError: Naming the target.
    """
    if target.exists():
        raise ConfigError(target.name, "it exists already, and nothing is ever overwritten", "Choose a new name")
    if not target.parent.is_dir():
        raise ConfigError(target.name, "the folder that should hold it does not exist", "Create it first")


def check_options(size: int, window: tuple[float, float], seed: int) -> None:
    """Refuse options that no patch can be made with.

    Raises:
        ConfigError: Naming the option.
    """
    if not 1 <= size <= 4096:
        raise ConfigError("--size", f"a patch has 1 to 4096 pixels per side, got {size}", "The paper uses 64")
    if not -1e6 < window[0] < window[1] < 1e6:
        raise ConfigError("--window", f"it must be LOW HIGH with LOW < HIGH in HU, got {window}", "Try -160 240")
    if not 0 <= seed < 2**64:
        raise ConfigError("--seed", f"it must lie in 0 .. 2^64 - 1, got {seed}", "Choose another")


def _patches(
    rois: RoiBatch,
    plan: AugmentationPlan,
    lesion: Tensor,
    indices: Tensor,
    seed: int,
    size: int,
    window: tuple[float, float],
    dtype: torch.dtype,
) -> bytes:
    """One file: the patches of some (lesion, augmentation) pairs and how each was made."""
    from safetensors.torch import save

    drawn = plan.sample_rows(
        rois, lesion.to(rois.device), indices.clamp(min=0).to(rois.device), seed=seed
    )  # the originals' rows are replaced below
    base = originals(rois, plan.base_side)
    is_original = (indices == ORIGINAL).to(rois.device)
    row_of = lesion.to(rois.device)

    def pick(of_base: Tensor, of_drawn: Tensor) -> Tensor:
        mask = is_original if of_drawn.ndim == 1 else is_original[:, None]
        return torch.where(mask, of_base[row_of], of_drawn)

    params = AugmentationParams(
        roi=drawn.roi,
        angle=pick(base.angle, drawn.angle),
        flip=pick(base.flip, drawn.flip),
        shift=pick(base.shift, drawn.shift),
        side=pick(base.side, drawn.side),
    )
    images = augment(rois, params, size=size, window=window, dtype=dtype)
    tensors = {
        "images": images,
        "lesion": lesion,
        "augmentation": indices,
        "angle_deg": params.angle,
        "flip": params.flip,
        "shift_px": params.shift,
        "side_px": params.side,
    }
    content: bytes = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return content
