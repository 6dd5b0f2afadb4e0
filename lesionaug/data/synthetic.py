"""Stores of synthetic ROIs: images a GAN made, with whom it learned from, so that they never meet those in a test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionaug.data.files import check_new_folder, commit_directory, write_bytes_atomic, write_json_atomic
from lesionaug.data.own_files import is_count, is_name, parse_json, read_plain_file
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import KINDS, RoiBatch
from lesionaug.errors import DataError

SCHEMA = "lesionaug-synthetic"
SCHEMA_VERSION = 1
_MANIFEST, _IMAGES = "manifest.json", "images.safetensors"
_FIX = "Sample the GAN again"
_MAX_MANIFEST_BYTES, _MAX_IMAGES_BYTES = 256 << 20, 16 << 30


@dataclass(frozen=True, eq=False)
class SyntheticRois:
    """Synthetic ROIs of one split.

    Attributes:
        images: float32 [N, 1, S, S] in (0, 1), the range of `window_hu`.
        labels: int64 [N], index into `classes`.
        classes: Names of the classes.
        kind: What the GAN learned from: "phantom", "imported" or "user".
        split: The fold that it has not seen.
        window_hu: HU that are 0 and 1.
        provenance: The lesions it learned from.
        details: What else the manifest says: generators, seed, versions.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    kind: str
    split: int
    window_hu: tuple[float, float]
    provenance: Provenance
    details: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def check_apart(self, test: RoiBatch) -> None:
        """Refuse to be trained on where the GAN's own patients are tested.

        Raises:
            DataError: A patient, a lesion or its pixels are on both sides.
        """
        self.provenance.check_apart(
            Provenance.of(test), "synthetic ROIs", f"Use them in split {self.split} of their own folds only"
        )


def save_synthetic(rois: SyntheticRois, path: str | os.PathLike[str]) -> None:
    """Write a store; the folder appears whole or not at all.

    Raises:
        DataError: When it exists already, or its parent does not.
        ValueError: When images, labels and classes do not fit each other.
    """
    from safetensors.torch import save

    target = Path(path)
    check_new_folder(target)
    _check(rois.images, rois.labels, rois.classes)
    content = save({"images": rois.images.cpu().contiguous(), "labels": rois.labels.cpu().contiguous()})
    manifest = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "synthetic": True,
        "kind": rois.kind,
        "classes": list(rois.classes),
        "num_images": len(rois),
        "split": rois.split,
        "window_hu": [float(bound) for bound in rois.window_hu],
        "sources": rois.provenance.to_json(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "details": dict(rois.details),
    }
    with commit_directory(target) as folder:
        write_bytes_atomic(folder / _IMAGES, content)
        write_json_atomic(folder / _MANIFEST, manifest)


def load_synthetic(path: str | os.PathLike[str]) -> SyntheticRois:
    """Read what `save_synthetic` wrote.

    Raises:
        DataError: Anything in it is missing, damaged, of another version, or contradicts itself.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            folder.name, "there is no such store of synthetic ROIs", "Give the folder that `lesionaug gan sample` wrote"
        )
    where = f"{folder.name}/{_MANIFEST}"
    try:
        manifest = parse_json(read_plain_file(folder / _MANIFEST, where, _MAX_MANIFEST_BYTES, _FIX))
        if manifest["schema"] != SCHEMA:
            raise DataError(where, f"this is no store of synthetic ROIs: its schema is not '{SCHEMA}'", _FIX)
        if not is_count(manifest["version"], SCHEMA_VERSION, SCHEMA_VERSION):
            raise DataError(
                where,
                f"this release reads version {SCHEMA_VERSION} of a store, got {str(manifest['version'])[:20]}",
                "Use the release that wrote it, or sample the GAN again",
            )
        low, high = manifest["window_hu"]
        if not all(isinstance(bound, float) for bound in (low, high)) or not low < high:
            raise ValueError("window_hu must be two rising numbers")
        if manifest["kind"] not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        classes = manifest["classes"]
        if not all(is_name(name) for name in classes) or len(set(classes)) != len(classes):
            raise ValueError("classes must be distinct names that print")
        if not is_count(manifest["split"], 0, 1 << 31) or not isinstance(manifest["details"], dict):
            raise ValueError("split must be a whole number, details an object")
        content = read_plain_file(folder / _IMAGES, f"{folder.name}/{_IMAGES}", _MAX_IMAGES_BYTES, _FIX)
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            raise DataError(
                f"{folder.name}/{_IMAGES}", "the file is not the one the manifest was written for (SHA-256)", _FIX
            )
        tensors = load(content)
        if tensors.keys() != {"images", "labels"}:
            raise ValueError("the arrays must be images and labels")
        found = SyntheticRois(
            images=tensors["images"],
            labels=tensors["labels"],
            classes=tuple(classes),
            kind=manifest["kind"],
            split=manifest["split"],
            window_hu=(low, high),
            provenance=Provenance.from_json(manifest["sources"]),
            details=manifest["details"],
        )
        _check(found.images, found.labels, found.classes)
        if len(found) != manifest["num_images"]:
            raise ValueError("num_images")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError, SafetensorError) as error:
        raise DataError(where, f"the store cannot be read ({type(error).__name__}: {error})", _FIX) from error
    return found


def _check(images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3] or images.dtype != torch.float32:
        raise ValueError(f"images must be float32 [N, 1, S, S], got {images.dtype} {list(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}")
    if len(images):
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise ValueError(f"pixels must be finite and in (0, 1), got {low} to {high}")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(f"labels must lie in 0 .. {len(classes) - 1}")
