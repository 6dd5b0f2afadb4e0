"""The folder of a reader study, read as untrusted input, and the truth file that lies outside it.

STUDY/study.json     what the study is, and the hashes of all the rest; nothing about any single item
STUDY/images.u16     uint16, little-endian [N, S, S], real and synthetic in a keyed random order
STUDY/orders.json    what each reader slot is shown, trial by trial
STUDY/consent.txt    what readers agree to
STUDY/answers.sqlite3    made by the first `serve` (answers.py)
STUDY.truth.json     which items are real, and of which class: `serve` never opens it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lesionaug.errors import DataError

STUDY_SCHEMA, ORDERS_SCHEMA, TRUTH_SCHEMA = "lesionaug-study", "lesionaug-study-orders", "lesionaug-study-truth"
VERSION = 1
STUDY, IMAGES, ORDERS, CONSENT = "study.json", "images.u16", "orders.json", "consent.txt"
TASKS = ("class", "origin")
LARGEST_VALUE = 65535  # of a pixel: the upper end of the window
SAME_MIX = 0.1  # shares of a class among real and among synthetic images that differ by more are worth a word
MAX_CLASSES = 9  # a class is a digit key
MAX_ITEMS, MAX_SLOTS = 5000, 64
MIN_SIZE, MAX_SIZE = 8, 256
MAX_CONSENT_BYTES = 64 << 10
_MAX_JSON_BYTES = 64 << 20
_MAX_TEXT = 200
_FIX = "Make the study again, or restore its folder from a copy"
_KINDS = ("phantom", "imported", "user")


@dataclass(frozen=True)
class Trial:
    """One question about one image.

    Attributes:
        task: "class" or "origin".
        item: Number of the image.
        practice: Shown first, and not counted.
        repeat: The second showing of this item in this task, to see whether a reader agrees with himself.
    """

    task: str
    item: int
    practice: bool
    repeat: bool


@dataclass(frozen=True)
class Design:
    """How a study asks.

    Attributes:
        tasks: "class", "origin" or both, in their order.
        order: "separate": all of one task before the other. "combined": both questions about an image in a row.
        scale: Of the origin: "six-step" (1 surely synthetic .. 6 surely real) or "two-key" (0 synthetic, 1 real).
        classes: Names of the classes.
        num_items: Images that count.
        num_practice: Images of the practice.
        num_repeats: Images shown twice in each task.
        back: "allow" or "lock": whether the last answer may be changed.
        size: Pixels per side.
        num_levels: Steps that the pixel values have within the window.
        window_hu: HU of the values 0 and 65535.
        preset: "paper" or None.
    """

    tasks: tuple[str, ...]
    order: str
    scale: str
    classes: tuple[str, ...]
    num_items: int
    num_practice: int
    num_repeats: int
    back: str
    size: int
    num_levels: int
    window_hu: tuple[float, float]
    preset: str | None

    def choices(self, task: str) -> range:
        """The values that an answer of a task can have."""
        if task == "class":
            return range(len(self.classes))
        return range(2) if self.scale == "two-key" else range(1, 7)


@dataclass(frozen=True, eq=False)
class Study:
    """A study without its truth.

    Attributes:
        folder: Where it is.
        id: Random, 128 bits in hex.
        kind: What the lesions are: "phantom", "imported" or "user".
        title: Shown to readers.
        design: How it asks.
        display: Defaults of the page.
        consent: What readers agree to.
        consent_sha256: Of that text.
        truth_sha256: Of the truth file's bytes.
        images: uint16 [N, S, S].
        slots: For each reader slot its trials; the index of a trial is its number.
        info: study.json as it is.
        sha256: Of study.json's bytes, which name all the others' but the answers'.
    """

    folder: Path
    id: str
    kind: str
    title: str
    design: Design
    display: Mapping[str, Any]
    consent: str
    consent_sha256: str
    truth_sha256: str
    images: npt.NDArray[np.uint16]
    slots: tuple[tuple[Trial, ...], ...]
    info: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True)
class TruthItem:
    """What an item is.

    Attributes:
        item: Its number.
        origin: "real" or "synthetic".
        class_name: Its class.
        lesion_id: Of a real lesion, else None.
        patient: Pseudonym, of a real lesion, else None.
        source: Where it is from: the store's hash, or the GAN's kind, split, seed and number.
        practice: Whether it is of the practice.
    """

    item: int
    origin: str
    class_name: str
    lesion_id: str | None
    patient: str | None
    source: Mapping[str, Any]
    practice: bool


@dataclass(frozen=True)
class Truth:
    """The truth of a study.

    Attributes:
        items: By their number.
        provenance: Of the whole: sources, seed, outcome of the encoding check.
    """

    items: tuple[TruthItem, ...]
    provenance: Mapping[str, Any]


def uneven_classes(
    real: Sequence[str], synthetic: Sequence[str], classes: Sequence[str]
) -> list[tuple[str, float, float]]:
    """Classes whose shares of the real and of the synthetic images differ by more than `SAME_MIX`, with both shares."""
    if not real or not synthetic:
        return []
    shares = [(name, real.count(name) / len(real), synthetic.count(name) / len(synthetic)) for name in classes]
    return [(name, one, other) for name, one, other in shares if abs(one - other) > SAME_MIX]


def default_truth(folder: Path) -> Path:
    """Where the truth of a study lies by default: beside its folder."""
    return folder.parent / f"{folder.name}.truth.json"


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's folder; the truth is not looked at.

    Raises:
        DataError: Anything in it is missing, damaged, of another version, or contradicts itself.
    """
    folder = Path(path).absolute()
    if not folder.is_dir():
        raise DataError(folder.name, "there is no such study", "Give the folder that `lesionaug study new` wrote")
    written = _read(folder, STUDY, _MAX_JSON_BYTES)
    info = _object(written, STUDY, STUDY_SCHEMA)
    design = _check_study(info)
    size, num = design.size, design.num_items + design.num_practice
    content = {
        IMAGES: _read(folder, IMAGES, 2 * num * size * size),
        ORDERS: _read(folder, ORDERS, _MAX_JSON_BYTES),
        CONSENT: _read(folder, CONSENT, MAX_CONSENT_BYTES),
    }
    for name, key in ((IMAGES, "images_sha256"), (ORDERS, "orders_sha256"), (CONSENT, "consent_sha256")):
        if hashlib.sha256(content[name]).hexdigest() != info[key]:
            raise DataError(name, "the file is not the one that study.json was written for (SHA-256 differs)", _FIX)
    if len(content[IMAGES]) != 2 * num * size * size:
        raise DataError(IMAGES, f"{num} images of {size} x {size} pixels must be {2 * num * size * size} bytes", _FIX)
    images = np.frombuffer(content[IMAGES], dtype="<u2").reshape(num, size, size)
    try:
        consent = content[CONSENT].decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(CONSENT, "the text must be UTF-8", _FIX) from error
    orders = _object(content[ORDERS], ORDERS, ORDERS_SCHEMA)
    slots = _check_orders(orders, info, design)
    return Study(
        folder, info["study_id"], info["kind"], info["title"], design, dict(info["display"]), consent,
        info["consent_sha256"], info["truth_sha256"], images, slots, info, hashlib.sha256(written).hexdigest(),
    )  # fmt: skip


def load_truth(study: Study, path: str | os.PathLike[str] | None = None) -> Truth:
    """Read the truth of a study; never called by the server.

    Args:
        study: The study.
        path: The truth file; beside the study's folder by default.

    Raises:
        DataError: It is missing, not the one that the study was made with, or damaged.
    """
    file = default_truth(study.folder) if path is None else Path(path)
    content = _read(file.parent, file.name, _MAX_JSON_BYTES)
    if hashlib.sha256(content).hexdigest() != study.truth_sha256:
        raise DataError(
            file.name, "this is not the truth file that the study was made with (SHA-256 differs)",
            "Give the file that `lesionaug study new` wrote; it must not be edited",
        )  # fmt: skip
    value = _object(content, file.name, TRUTH_SCHEMA)
    rule = _Rule(file.name)
    rule(value.get("study_id") == study.id, "it is of another study")
    items, provenance = value.get("items"), value.get("provenance")
    rule(isinstance(provenance, dict), "provenance must be an object")
    num = len(study.images)
    rule(isinstance(items, list) and len(items) == num, f"items must be a list of {num}")
    assert isinstance(items, list)
    assert isinstance(provenance, dict)
    found = []
    for number, entry in enumerate(items):
        where = f"item {number}"
        rule(isinstance(entry, dict) and entry.get("item") == number, f"{where} must be an object with its number")
        rule(entry.get("origin") in ("real", "synthetic"), f"{where}: origin must be real or synthetic")
        rule(entry.get("class") in study.design.classes, f"{where}: class is none of the study's")
        rule(isinstance(entry.get("practice"), bool), f"{where}: practice must be true or false")
        rule(isinstance(entry.get("source"), dict), f"{where}: source must be an object")
        real = entry["origin"] == "real"
        for key in ("lesion_id", "patient"):
            rule(
                _is_text(entry.get(key)) if real else entry.get(key) is None, f"{where}: {key} does not fit its origin"
            )
        found.append(
            TruthItem(
                number,
                entry["origin"],
                entry["class"],
                entry.get("lesion_id"),
                entry.get("patient"),
                entry["source"],
                entry["practice"],
            )
        )
    rule(sum(item.practice for item in found) == study.design.num_practice, "the practice is not the study's")
    shown = {trial.item: trial.practice for trials in study.slots for trial in trials}
    rule(all(found[item].practice == practice for item, practice in shown.items()), "the practice is not the orders'")
    return Truth(tuple(found), provenance)


class _Rule:
    """Raises a `DataError` for a file where a rule does not hold."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, holds: bool, text: str) -> None:
        if not holds:
            raise DataError(self.where, text, _FIX)


def _read(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a plain file of at most `limit` bytes."""
    path = folder / name
    if path.is_symlink():
        raise DataError(name, "files of a study must be plain files, this one is a link", "Copy the study whole")
    try:
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise DataError(name, f"the file cannot be read ({error.strerror})", _FIX) from error
    if len(content) > limit:
        raise DataError(name, f"the file is larger than {limit:,} bytes, the most it may have", _FIX)
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _object(content: bytes, name: str, schema: str) -> dict[str, Any]:
    """A JSON object of this schema and version."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(name, "the file is no valid JSON", _FIX) from error
    if not isinstance(value, dict) or value.get("schema") != schema:
        raise DataError(name, f"its schema is not '{schema}'", "Give the folder that `lesionaug study new` wrote")
    if value.get("version") != VERSION or isinstance(value.get("version"), bool):
        raise DataError(
            name, f"this release reads version {VERSION}, got {str(value.get('version'))[:20]}",
            "Use the release that wrote it",
        )  # fmt: skip
    return value


def _check_study(info: Mapping[str, Any]) -> Design:
    rule = _Rule(STUDY)
    rule(_is_hex(info.get("study_id"), 32), "study_id must be 32 hexadecimal digits")
    rule(info.get("kind") in _KINDS, f"kind must be one of {', '.join(_KINDS)}")
    rule(_is_text(info.get("title")), f"title must be 1 .. {_MAX_TEXT} printable characters")
    for key in ("consent_sha256", "truth_sha256", "images_sha256", "orders_sha256"):
        rule(_is_hex(info.get(key), 64), f"{key} must be a SHA-256")
    display, design = info.get("display"), info.get("design")
    rule(
        isinstance(display, dict) and _is_count(display.get("zoom"), 1, 32) and isinstance(display.get("smooth"), bool),
        "display must hold zoom, a count, and smooth, true or false",
    )
    rule(isinstance(design, dict), "design must be an object")
    assert isinstance(design, dict)
    classes, tasks = design.get("classes"), design.get("tasks")
    rule(
        isinstance(classes, list)
        and 0 < len(classes) <= MAX_CLASSES
        and all(_is_text(name) for name in classes)
        and len(set(classes)) == len(classes),
        f"design: classes must be 1 .. {MAX_CLASSES} distinct names",
    )
    rule(tasks in (["class", "origin"], ["origin", "class"], ["class"], ["origin"]), "design: unknown tasks")
    for key, allowed in (
        ("order", ("separate", "combined")),
        ("scale", ("six-step", "two-key")),
        ("back", ("allow", "lock")),
        ("preset", ("paper", None)),
    ):
        rule(design.get(key) in allowed, f"design: {key} must be one of {', '.join(map(str, allowed))}")
    for key, low, high in (
        ("num_items", 1, MAX_ITEMS),
        ("num_practice", 0, MAX_ITEMS),
        ("num_repeats", 0, MAX_ITEMS),
        ("size", MIN_SIZE, MAX_SIZE),
        ("num_levels", 2, LARGEST_VALUE + 1),
    ):
        rule(_is_count(design.get(key), low, high), f"design: {key} must be a count of {low} .. {high}")
    rule(design["num_items"] + design["num_practice"] <= MAX_ITEMS, f"a study has at most {MAX_ITEMS} items")
    rule(design["num_repeats"] <= design["num_items"], "design: more repeats than items")
    window = design.get("window_hu")
    rule(
        isinstance(window, list) and len(window) == 2 and all(_is_number(v) for v in window) and window[0] < window[1],
        "design: window_hu must be two rising numbers",
    )
    rule(design.get("value_range") == [0, LARGEST_VALUE], f"design: value_range must be [0, {LARGEST_VALUE}]")
    assert isinstance(classes, list)
    assert isinstance(tasks, list)
    assert isinstance(window, list)
    return Design(
        tuple(tasks), design["order"], design["scale"], tuple(classes), design["num_items"], design["num_practice"],
        design["num_repeats"], design["back"], design["size"], design["num_levels"],
        (float(window[0]), float(window[1])), design.get("preset"),
    )  # fmt: skip


def _check_orders(orders: Mapping[str, Any], info: Mapping[str, Any], design: Design) -> tuple[tuple[Trial, ...], ...]:
    rule = _Rule(ORDERS)
    rule(orders.get("study_id") == info["study_id"], "it is of another study")
    slots = orders.get("slots")
    rule(isinstance(slots, list) and 0 < len(slots) <= MAX_SLOTS, f"slots must be a list of 1 .. {MAX_SLOTS}")
    assert isinstance(slots, list)
    num = design.num_items + design.num_practice
    per_task = num + design.num_repeats
    practice: set[int] | None = None
    found = []
    for number, entries in enumerate(slots):
        where = f"slot {number}"
        rule(
            isinstance(entries, list) and len(entries) == per_task * len(design.tasks),
            f"{where} must hold {per_task} trials for each task",
        )
        trials = []
        for entry in entries:
            rule(
                isinstance(entry, dict)
                and entry.get("task") in design.tasks
                and _is_count(entry.get("item"), 0, num - 1)
                and isinstance(entry.get("practice"), bool)
                and isinstance(entry.get("repeat"), bool),
                f"{where} holds something that is no trial",
            )
            trials.append(Trial(entry["task"], entry["item"], entry["practice"], entry["repeat"]))
        for task in design.tasks:
            of_task = [trial for trial in trials if trial.task == task]
            seen: set[int] = set()
            for trial in of_task:
                rule(trial.repeat == (trial.item in seen), f"{where}: repeats are not marked as they are")
                seen.add(trial.item)
            rule(len(of_task) == per_task and len(seen) == num, f"{where}: an item is missing from a task")
            rehearsed = {trial.item for trial in of_task if trial.practice}
            rule(
                len(rehearsed) == design.num_practice
                and all(trial.practice for trial in of_task[: design.num_practice])
                and practice in (None, rehearsed),
                f"{where}: the practice must come first, and be the same for all",
            )
            practice = rehearsed
        names = [trial.task for trial in trials]
        if design.order == "separate":
            rule(names == [task for task in design.tasks for _ in range(per_task)], f"{where}: tasks are mixed")
        else:
            rule(
                names == list(design.tasks) * per_task
                and all(len({t.item for t in trials[i : i + len(design.tasks)]}) == 1
                        for i in range(0, len(trials), len(design.tasks))),
                f"{where}: the questions about an item must follow each other",
            )  # fmt: skip
        found.append(tuple(trials))
    return tuple(found)


def _is_count(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e6


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and set(value) <= set("0123456789abcdef")
