"""Making a reader study (paper IV-D): which images, in which order for whom, and the truth apart from all of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesionaug import __version__
from lesionaug.data.files import check_new_file, check_new_folder, commit_directory, json_text, write_bytes_atomic
from lesionaug.data.rois import UNLABELLED, RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.errors import ConfigError, DataError
from lesionaug.study.encoding import encoding_check, num_levels, quantise
from lesionaug.study.files import (
    CONSENT,
    IMAGES,
    LARGEST_VALUE,
    MAX_CLASSES,
    ORDERS,
    ORDERS_SCHEMA,
    STUDY,
    STUDY_SCHEMA,
    TRUTH_SCHEMA,
    VERSION,
    default_truth,
    uneven_classes,
)
from lesionaug.study.images import Candidate, choose, draw_real, find_sources, synthetic_candidates
from lesionaug.study.options import DEFAULT_NUM, StudyOptions, settled
from lesionaug.study.orders import keyed, slot_trials

_ZOOM = 6


@dataclass(frozen=True)
class NewStudy:
    """What `make_study` made.

    Attributes:
        folder: The study.
        truth: The truth file.
        truth_sha256: Of its bytes; whoever has written it down can show later that nothing was changed.
        kind: What the lesions are: "phantom", "imported" or "user".
        counts: (origin, class) -> images that count.
        num_practice: Images of the practice.
        trials_per_reader: Answers that a reader gives.
        warnings: Sentences, none identifying.
    """

    folder: Path
    truth: Path
    truth_sha256: str
    kind: str
    counts: dict[tuple[str, str], int]
    num_practice: int
    trials_per_reader: int
    warnings: tuple[str, ...]


def make_study(
    rois_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    synthetic: str | os.PathLike[str],
    options: StudyOptions | None = None,
    truth: str | os.PathLike[str] | None = None,
) -> NewStudy:
    """Choose images, put them in order for every reader slot, and write the study and, apart from it, its truth.

    Args:
        rois_path: ROI store of the real lesions.
        out: Folder to create.
        synthetic: Store of `lesionaug gan sample`, or a run on the same ROI store.
        options: What the study is to be.
        truth: The truth file to create; beside the folder by default.

    Raises:
        ConfigError: Options that contradict each other.
        DataError: Stores or runs that cannot be read or do not belong together; too few images; files that exist.
    """
    options = settled(options or StudyOptions())
    folder, rois_path, synthetic = Path(out), Path(rois_path), Path(synthetic)
    truth_file = default_truth(folder.absolute()) if truth is None else Path(truth)
    if folder.absolute() in truth_file.absolute().parents:
        raise ConfigError("--truth", "the truth must not lie in the study's folder", "Name a file somewhere else")
    check_new_folder(folder, "the study")
    check_new_file(truth_file)
    warnings: list[str] = []
    rois, store_hash = load_rois(rois_path), manifest_sha256(rois_path)
    unlabelled = int((rois.labels == UNLABELLED).sum())
    if unlabelled == len(rois):
        raise DataError(rois_path.name, "no lesion has a class", "Import them with their classes")
    if unlabelled:
        warnings.append(f"{unlabelled} lesions without a class are left out")
        rois = rois[rois.labels != UNLABELLED]
    if len(rois.classes) > MAX_CLASSES:
        raise DataError(
            rois_path.name, f"there are {len(rois.classes)} classes, and {MAX_CLASSES} digit keys", "Merge some"
        )
    most = (options.num_synthetic or options.num_real or DEFAULT_NUM) + (options.num_practice or 0)
    with _option("--synthetic"):
        sources, image = find_sources(synthetic, store_hash, options)
        made, window, size = synthetic_candidates(sources, rois, most, options.seed, synthetic.name, warnings)
    chosen = choose(*draw_real(rois, window, size, image, rois_path.name, warnings), made, options)
    key = secrets.token_bytes(32)
    keyed(key, "items").shuffle(chosen)
    return _write(folder, truth_file, rois, chosen, window, key, options, warnings, {
        "seed": options.seed,
        "store_manifest_sha256": store_hash,
        "synthetic": [source.about for source in sources],
        "image": image.model_dump(mode="json") | {"window_hu": list(window)},
    })  # fmt: skip


@contextlib.contextmanager
def _option(option: str) -> Iterator[None]:
    """Name the option that an error comes from."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if error.where.startswith("--"):
            raise
        raise type(error)(f"{option} {error.where}", error.rule, error.fix) from error


def _write(
    folder: Path,
    truth_file: Path,
    rois: RoiBatch,
    chosen: list[tuple[Candidate, bool]],
    window: tuple[float, float],
    key: bytes,
    options: StudyOptions,
    warnings: list[str],
    provenance: dict[str, Any],
) -> NewStudy:
    levels = num_levels(window)
    images = quantise(np.stack([candidate.image for candidate, _ in chosen]), levels)
    counted = np.array([not practice for _, practice in chosen])
    origins = np.array([candidate.origin == "synthetic" for candidate, _ in chosen])
    check = encoding_check(images[counted], origins[counted], levels)
    warnings += check.warnings
    warnings += _mix_warnings([candidate for candidate, practice in chosen if not practice], rois.classes)
    num_items = int(counted.sum())
    num_repeats = round((options.repeats or 0) * num_items)
    tasks = ["class", "origin"] if len(rois.classes) > 1 else ["origin"]
    study_id = secrets.token_hex(16)
    kinds = [(candidate.class_name, candidate.origin) for candidate, _ in chosen]
    practice = [item for item, (_, rehearsed) in enumerate(chosen) if rehearsed]
    slots = [
        slot_trials(key, slot, kinds, practice, tasks, num_repeats, options.order)
        for slot in range(options.num_readers)
    ]
    orders = {"schema": ORDERS_SCHEMA, "version": VERSION, "study_id": study_id, "slots": slots}
    truth = {
        "schema": TRUTH_SCHEMA,
        "version": VERSION,
        "study_id": study_id,
        "key": key.hex(),
        "items": [
            {
                "item": item,
                "origin": candidate.origin,
                "class": candidate.class_name,
                "lesion_id": candidate.lesion_id,
                "patient": candidate.patient,
                "source": candidate.source,
                "practice": practice,
                "cnn": None,
            }
            for item, (candidate, practice) in enumerate(chosen)
        ],
        "provenance": provenance | {"encoding_check": check.to_json(), "warnings": warnings},
    }
    content = {
        IMAGES: images.astype("<u2").tobytes(),
        ORDERS: json_text(orders).encode(),
        CONSENT: options.consent.encode(),
    }
    truth_bytes = json_text(truth).encode()
    study = {
        "schema": STUDY_SCHEMA,
        "version": VERSION,
        "study_id": study_id,
        "kind": rois.kind,
        "title": options.title,
        "design": {
            "tasks": tasks,
            "order": options.order,
            "scale": options.scale,
            "classes": list(rois.classes),
            "num_items": num_items,
            "num_practice": len(chosen) - num_items,
            "num_repeats": num_repeats,
            "repeat_fraction": options.repeats,
            "back": options.back,
            "size": images.shape[-1],
            "num_levels": levels,
            "window_hu": list(window),
            "value_range": [0, LARGEST_VALUE],
            "preset": options.preset,
            "num_readers": options.num_readers,
        },
        "display": {"zoom": _ZOOM, "smooth": False},
        "consent_sha256": hashlib.sha256(content[CONSENT]).hexdigest(),
        "truth_sha256": hashlib.sha256(truth_bytes).hexdigest(),
        "images_sha256": hashlib.sha256(content[IMAGES]).hexdigest(),
        "orders_sha256": hashlib.sha256(content[ORDERS]).hexdigest(),
        "versions": {"lesionaug": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    _write_secret(truth_file, truth_bytes)
    try:
        with commit_directory(folder) as temporary:
            for name, written in content.items():
                write_bytes_atomic(temporary / name, written)
            write_bytes_atomic(temporary / STUDY, json_text(study).encode())
    except BaseException:
        truth_file.unlink(missing_ok=True)
        raise
    counts = Counter((candidate.origin, candidate.class_name) for candidate, practice in chosen if not practice)
    return NewStudy(
        folder,
        truth_file,
        hashlib.sha256(truth_bytes).hexdigest(),
        rois.kind,
        dict(counts),
        len(chosen) - num_items,
        len(slots[0]),
        tuple(warnings),
    )


def _mix_warnings(shown: Sequence[Candidate], classes: Sequence[str]) -> Iterator[str]:
    """Where the class of an image is a hint at its origin."""
    real, synthetic = (
        [candidate.class_name for candidate in shown if candidate.origin == origin] for origin in ("real", "synthetic")
    )
    for name, one, other in uneven_classes(real, synthetic, classes):
        yield (
            f"{one:.0%} of the real images are {name}, and {other:.0%} of the synthetic ones: the class is a hint "
            "at the origin, and class accuracies on the two are not of the same lesions"
        )


def _write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def count_lines(counts: dict[tuple[str, str], int]) -> Iterable[str]:
    """The images of a study, a line for each origin."""
    for origin in ("real", "synthetic"):
        found = {name: count for (of, name), count in counts.items() if of == origin}
        parts = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
        yield f"{sum(found.values())} {origin}: {parts}"
