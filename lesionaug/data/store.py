"""The ROI store: lesions on disk as a JSON manifest beside one safetensors file.

    STORE/manifest.json         what the lesions are: ids, pseudonyms, classes, geometry, hash of the pixels
    STORE/pixels.safetensors    "pixels": int16 or float32 [total], crop after crop, row by row; "masks": uint8 [total]

A reader checks all of it before a number is used, so a damaged or hostile store gives a `DataError`, never a wrong ROI.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lesionaug.data.files import check_new_folder, commit_directory, write_bytes_atomic, write_json_atomic
from lesionaug.data.own_files import MAX_NAME, is_count, is_name, parse_json, read_plain_file
from lesionaug.data.rois import DEFAULT_WINDOW_HU, KINDS, UNLABELLED, RoiBatch
from lesionaug.data.slices import HU_CLIP
from lesionaug.errors import DataError

SCHEMA = "lesionaug-rois"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PIXELS = "pixels.safetensors"

_MAX_MANIFEST_BYTES = 256 << 20
_MAX_SIDE = 1 << 16
_MAX_DIAMETER = 1 << 18
_MAX_NUMBER = 1e30  # whole numbers of a JSON file have no limit, and NaN is at most nothing
_NAME = f"1 .. {MAX_NAME} printable characters"
_FIX = "Import the source again"


def save_rois(
    rois: RoiBatch,
    path: str | os.PathLike[str],
    *,
    details: Mapping[str, Any] | None = None,
    window_hu: tuple[float, float] = DEFAULT_WINDOW_HU,
) -> None:
    """Write a batch as a store; the folder appears whole or not at all.

    Args:
        rois: The lesions; int16 pixels stay, others are kept as float32 where that is exact.
        path: A folder that does not exist yet.
        details: More for the manifest: "lesions", one mapping for each lesion, is merged into its entry; other keys
            stand at the top.
        window_hu: The window recommended to users of the store.

    Raises:
        DataError: When the folder exists, or its parent does not.
        ValueError: When the pixels fit neither int16 nor float32, or details repeat a field.
    """
    target = Path(path)
    check_new_folder(target, "the store")
    with commit_directory(target) as folder:
        write_store(rois, folder, details=details, window_hu=window_hu)


def write_store(
    rois: RoiBatch,
    folder: Path,
    *,
    details: Mapping[str, Any] | None = None,
    window_hu: tuple[float, float] = DEFAULT_WINDOW_HU,
) -> None:
    """Write the two files of a store into an existing folder; see `save_rois`."""
    from safetensors.numpy import save

    rois = rois.to("cpu")
    images = [image.detach() for image in rois.images]
    pixels = _storable(torch.cat([image.reshape(-1) for image in images]))
    tensors: dict[str, NDArray[Any]] = {"pixels": pixels}
    masks = rois.masks
    if masks is not None:
        tensors["masks"] = torch.cat([mask.reshape(-1) for mask in masks]).to(torch.uint8).numpy()
    content = save(tensors)

    low, high = HU_CLIP
    in_clip = bool(pixels.min() >= low) and bool(pixels.max() <= high)
    more = dict(details or {})
    per_lesion: Sequence[Mapping[str, Any]] = more.pop("lesions", [{}] * len(rois))
    if len(per_lesion) != len(rois):
        raise ValueError(f"details['lesions'] must hold {len(rois)} mappings, got {len(per_lesion)}")
    lesions = []
    for index, extra in enumerate(per_lesion):
        label = int(rois.labels[index])
        entry: dict[str, Any] = {
            "id": rois.lesion_ids[index],
            "patient": rois.patient_ids[index],
            "label": None if label == UNLABELLED else rois.classes[label],
            "center": rois.centers[index].tolist(),
            "diameter_px": float(rois.diameters[index]),
            "spacing_mm": None if rois.spacing_mm is None else rois.spacing_mm[index].tolist(),
            "origin": rois.origins[index].tolist(),
            "height": int(images[index].shape[0]),
            "width": int(images[index].shape[1]),
        }
        if set(extra) & set(entry):
            raise ValueError(f"details repeat the fields {sorted(set(extra) & set(entry))}")
        lesions.append(entry | dict(extra))
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "kind": rois.kind,
        "classes": list(rois.classes),
        "hu_clip": [low, high] if in_clip else None,
        "window_hu": [float(window_hu[0]), float(window_hu[1])],
        "pixels": {
            "file": PIXELS,
            "sha256": hashlib.sha256(content).hexdigest(),
            "dtype": pixels.dtype.name,
            "num_pixels": int(pixels.size),
            "masks": masks is not None,
        },
        "versions": _versions(),
        "lesions": lesions,
    }
    if set(more) & set(manifest):
        raise ValueError(f"details repeat the fields {sorted(set(more) & set(manifest))}")
    write_bytes_atomic(folder / PIXELS, content)
    write_json_atomic(folder / MANIFEST, manifest | more)


def _storable(pixels: torch.Tensor) -> NDArray[Any]:
    if pixels.dtype == torch.int16:
        return pixels.numpy()
    if not pixels.is_floating_point() and int(pixels.min()) >= -(1 << 15) and int(pixels.max()) < 1 << 15:
        return pixels.to(torch.int16).numpy()
    single = pixels.to(torch.float32)
    if not bool((single.to(pixels.dtype) == pixels).all()):
        raise ValueError("a store keeps int16 or float32 pixels, and these are not exact in either: round them first")
    return single.numpy()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("lesionaug", "numpy", "torch", "pydicom", "nibabel", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if "lesionaug" not in found:  # from a checkout
        from lesionaug import __version__

        found["lesionaug"] = __version__
    return found


def manifest_sha256(path: str | os.PathLike[str]) -> str:
    """What identifies a store: the SHA-256 of its manifest, which holds the hash of its pixels."""
    return hashlib.sha256(_read(Path(path), MANIFEST, _MAX_MANIFEST_BYTES)).hexdigest()


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a store, its schema checked but not its pixels.

    Raises:
        DataError: When it is missing, no JSON, of another schema or version, or breaks a rule.
    """
    folder = Path(path)
    where = f"{folder.name}/{MANIFEST}"
    content = _read(folder, MANIFEST, _MAX_MANIFEST_BYTES)
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise DataError(where, "the manifest is no valid JSON", _FIX) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise DataError(where, f"this is no ROI store: its schema is not '{SCHEMA}'", "Give a folder of `data import`")
    if manifest.get("version") != SCHEMA_VERSION or isinstance(manifest.get("version"), bool):
        raise DataError(
            where,
            f"this release reads version {SCHEMA_VERSION} of a store, got {str(manifest.get('version'))[:20]}",
            "Use the release that wrote it, or import again",
        )
    _check_manifest(manifest, where)
    return manifest


def load_rois(path: str | os.PathLike[str]) -> RoiBatch:
    """Read a ROI store written by `lesionaug data import` or `save_rois`.

    Raises:
        DataError: When anything in it is missing, damaged, of another version, or contradicts itself.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(path)
    manifest = read_manifest(folder)
    where = f"{folder.name}/{PIXELS}"
    stated = manifest["pixels"]
    lesions = manifest["lesions"]
    limit = 8 * stated["num_pixels"] + (1 << 20)
    content = _read(folder, PIXELS, limit)
    if hashlib.sha256(content).hexdigest() != stated["sha256"]:
        raise DataError(where, "the file is not the one the manifest was written for (SHA-256 differs)", _FIX)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise DataError(where, "this is no valid safetensors file", _FIX) from error
    wanted = {"pixels": stated["dtype"]} | ({"masks": "uint8"} if stated["masks"] else {})
    if {name: tensor.dtype.name for name, tensor in tensors.items()} != wanted or any(
        tensor.shape != (stated["num_pixels"],) for tensor in tensors.values()
    ):
        raise DataError(where, "the arrays are not those that the manifest states", _FIX)
    pixels = tensors["pixels"]
    clip = manifest["hu_clip"]
    if not np.isfinite(pixels).all() or (clip and (pixels.min() < clip[0] or pixels.max() > clip[1])):
        raise DataError(where, "pixels must be finite and within hu_clip", _FIX)
    images, masks, start = [], [], 0
    for lesion in lesions:
        shape, size = (lesion["height"], lesion["width"]), lesion["height"] * lesion["width"]
        images.append(torch.from_numpy(pixels[start : start + size].reshape(shape).copy()))
        if stated["masks"]:
            masks.append(torch.from_numpy(tensors["masks"][start : start + size].reshape(shape) != 0))
        start += size
    spacings = [lesion["spacing_mm"] for lesion in lesions]
    classes = manifest["classes"]
    try:
        return RoiBatch.from_images(
            images,
            torch.tensor([lesion["center"] for lesion in lesions], dtype=torch.float64),
            torch.tensor([lesion["diameter_px"] for lesion in lesions], dtype=torch.float64).to(torch.float32),
            labels=torch.tensor(
                [UNLABELLED if lesion["label"] is None else classes.index(lesion["label"]) for lesion in lesions],
                dtype=torch.int64,
            ),
            lesion_ids=[lesion["id"] for lesion in lesions],
            patient_ids=[lesion["patient"] for lesion in lesions],
            spacing_mm=None if spacings[0] is None else torch.tensor(spacings, dtype=torch.float64),
            masks=masks if stated["masks"] else None,
            origins=torch.tensor([lesion["origin"] for lesion in lesions], dtype=torch.int64),
            classes=classes,
            kind=manifest["kind"],
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder.name}/{MANIFEST}", str(error), _FIX) from error


def _read(folder: Path, name: str, limit: int) -> bytes:
    """A file of the store, which must be a plain file within it and no larger than `limit` bytes."""
    if not folder.is_dir():
        raise DataError(folder.name, "there is no such ROI store", "Give the folder that `lesionaug data import` wrote")
    return read_plain_file(folder / name, f"{folder.name}/{name}", limit, _FIX)


def _check_manifest(manifest: dict[str, Any], where: str) -> None:
    def rule(holds: bool, text: str) -> None:
        if not holds:
            raise DataError(where, text, _FIX)

    rule(manifest.get("kind") in KINDS, f"kind must be one of {', '.join(KINDS)}")
    classes: Any = manifest.get("classes")
    rule(
        isinstance(classes, list) and all(is_name(c) for c in classes) and len(set(classes)) == len(classes),
        f"classes must be distinct names of {_NAME}",
    )
    clip: Any = manifest.get("hu_clip", ())
    rule(clip is None or (_are_numbers(clip, 2) and clip[0] < clip[1]), "hu_clip must be two rising numbers or null")
    window: Any = manifest.get("window_hu")
    rule(_are_numbers(window, 2) and window[0] < window[1], "window_hu must be two rising numbers")
    pixels = manifest.get("pixels")
    rule(
        isinstance(pixels, dict)
        and pixels.get("file") == PIXELS
        and pixels.get("dtype") in ("int16", "float32")
        and isinstance(pixels.get("masks"), bool)
        and isinstance(pixels.get("sha256"), str)
        and is_count(pixels.get("num_pixels"), 1, 1 << 40),
        f"pixels must state file '{PIXELS}', sha256, dtype, num_pixels and masks",
    )
    lesions = manifest.get("lesions")
    rule(isinstance(lesions, list) and len(lesions) > 0, "lesions must be a list of at least one")
    assert isinstance(lesions, list)
    assert isinstance(pixels, dict)
    for index, lesion in enumerate(lesions):
        rule(isinstance(lesion, dict), f"lesion {index} must be an object")
        for name in ("id", "patient"):
            rule(is_name(lesion.get(name)), f"lesion {index}: {name} must be {_NAME}")
        rule(
            "label" in lesion and (lesion["label"] is None or lesion["label"] in classes),
            f"lesion {index}: label is none of the classes",
        )
        for name in ("height", "width"):
            rule(is_count(lesion.get(name), 1, _MAX_SIDE), f"lesion {index}: {name} must be a count")
        rule(_are_numbers(lesion.get("center"), 2), f"lesion {index}: center must be two numbers")
        rule(
            _are_numbers([lesion.get("diameter_px")], 1) and 0 < lesion["diameter_px"] <= _MAX_DIAMETER,
            f"lesion {index}: diameter_px must be above 0 and at most {_MAX_DIAMETER}",
        )
        (x, y), diameter = lesion["center"], lesion["diameter_px"]
        rule(
            -diameter <= x <= lesion["width"] + diameter and -diameter <= y <= lesion["height"] + diameter,
            f"lesion {index}: center must lie within its diameter of the crop",
        )
        spacing: Any = lesion.get("spacing_mm", ())
        rule(
            spacing is None or (_are_numbers(spacing, 2) and min(spacing) > 0),
            f"lesion {index}: spacing_mm must be two numbers above 0, or null",
        )
        rule(
            (spacing is None) == (lesions[0]["spacing_mm"] is None),
            "spacing_mm must be known of all lesions or of none",
        )
        origin = lesion.get("origin")
        rule(
            isinstance(origin, list) and len(origin) == 2 and all(is_count(o, -(1 << 31), 1 << 31) for o in origin),
            f"lesion {index}: origin must be two whole numbers",
        )
    rule(
        sum(lesion["height"] * lesion["width"] for lesion in lesions) == pixels["num_pixels"],
        "the sizes of the lesions do not add up to num_pixels",
    )


def _are_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= _MAX_NUMBER for v in value)
    )
