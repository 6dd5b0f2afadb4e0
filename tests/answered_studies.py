"""Answered reader studies for tests: files as `lesionaug study new` and `serve` leave them, with made-up answers."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

from lesionaug.study.answers import Answer, AnswerBook
from lesionaug.study.files import Trial, TruthItem, load_study

CLASSES = ("cyst", "metastasis", "hemangioma")
Say = Callable[[int, str, TruthItem, bool], int]  # (reader, task, item, repeat) -> choice


def make_items(
    num_real: int, num_synthetic: int, num_practice: int = 0, *, classes: Sequence[str] = CLASSES, shuffle: int = 0
) -> tuple[TruthItem, ...]:
    """Items of a study in random order: classes in turn, two real lesions of a patient, practice half and half."""
    kinds = [(True, False)] * num_real + [(False, False)] * num_synthetic
    kinds += [(k % 2 == 0, True) for k in range(num_practice)]
    random.Random(shuffle).shuffle(kinds)
    found, real_so_far = [], 0
    for item, (real, practice) in enumerate(kinds):
        lesion = real_so_far if real else None
        found.append(
            TruthItem(
                item,
                "real" if real else "synthetic",
                classes[item % len(classes)],
                None if lesion is None else f"lesion-{lesion:03d}",
                None if lesion is None else f"patient-{lesion // 2:03d}",
                {"store": "ab"} if real else {"gan": "dcgan", "split": 0, "number": item},
                practice,
            )
        )
        real_so_far += real
    return tuple(found)


def make_study(
    folder: Path,
    items: Sequence[TruthItem],
    say: Say,
    *,
    num_readers: int = 2,
    tasks: Sequence[str] = ("class", "origin"),
    order: str = "separate",
    scale: str = "six-step",
    num_repeats: int = 0,
    classes: Sequence[str] = CLASSES,
    stop: Mapping[int, int] | None = None,
    note: str = "",
    revise: Mapping[tuple[int, int], int] | None = None,
    slots: int = 4,
    kind: str = "phantom",
) -> Path:
    """Write a study with its truth beside it, and what its readers answered.

    Args:
        folder: To be made; the truth lies at FOLDER.truth.json.
        items: What the images are.
        say: What a reader (1, 2, ...) answers.
        num_readers: Readers who registered.
        tasks: In their order.
        order: "separate" or "combined".
        scale: "six-step" or "two-key".
        num_repeats: Items shown twice in each task.
        classes: Names.
        stop: Reader -> trials answered; all where not named.
        note: Written by every reader beside every answer, and as their speciality.
        revise: (reader, trial) -> a second answer, given after the first.
        slots: Places for readers.
        kind: Of the data.
    """
    folder.mkdir()
    study_id = hashlib.sha256(folder.name.encode()).hexdigest()[:32]
    size, num = 8, len(items)
    practice = [item.item for item in items if item.practice]
    counted = [item.item for item in items if not item.practice]
    orders: list[list[dict[str, Any]]] = []
    for slot in range(slots):
        draw, by_task = random.Random(slot), {}
        for task in tasks if order == "separate" else ["both"]:
            shown = draw.sample(counted, len(counted))
            by_task[task] = [Trial(task, item, True, False) for item in practice]
            by_task[task] += [Trial(task, item, False, False) for item in shown]
            by_task[task] += [Trial(task, item, False, True) for item in shown[:num_repeats]]
        if order == "separate":
            trials = [trial for part in by_task.values() for trial in part]
        else:
            trials = [Trial(task, t.item, t.practice, t.repeat) for t in by_task["both"] for task in tasks]
        orders.append([asdict(trial) for trial in trials])
    truth = {
        "schema": "lesionaug-study-truth", "version": 1, "study_id": study_id, "key": "00" * 16, "provenance": {},
        "items": [{**asdict(item), "class": item.class_name, "cnn": None} for item in items],
    }  # fmt: skip
    truth_bytes = json.dumps(truth).encode()
    folder.with_name(f"{folder.name}.truth.json").write_bytes(truth_bytes)
    files = {
        "images": ("images.u16", bytes(2 * num * size * size)),
        "orders": (
            "orders.json",
            json.dumps(
                {"schema": "lesionaug-study-orders", "version": 1, "study_id": study_id, "slots": orders}
            ).encode(),
        ),
        "consent": ("consent.txt", b"I agree."),
    }
    for name, content in files.values():
        (folder / name).write_bytes(content)
    info = {
        "schema": "lesionaug-study", "version": 1, "study_id": study_id, "kind": kind, "title": "A study",
        "design": {
            "tasks": list(tasks), "order": order, "scale": scale, "classes": list(classes), "num_items": len(counted),
            "num_practice": len(practice), "num_repeats": num_repeats, "repeat_fraction": 0.1, "back": "allow",
            "size": size, "zoom": 6, "num_levels": 65536, "window_hu": [-100, 200], "value_range": [0, 65535],
            "preset": None, "num_readers": slots,
        },
        "display": {"zoom": 6, "smooth": False},
        "truth_sha256": hashlib.sha256(truth_bytes).hexdigest(),
        **{f"{key}_sha256": hashlib.sha256(content).hexdigest() for key, (_, content) in files.items()},
        "versions": {},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(info), encoding="utf-8")
    if num_readers:
        answer_study(folder, items, say, num_readers, stop, note, revise)
    return folder


def answer_study(
    folder: Path,
    items: Sequence[TruthItem],
    say: Say,
    num_readers: int = 2,
    stop: Mapping[int, int] | None = None,
    note: str = "",
    revise: Mapping[tuple[int, int], int] | None = None,
) -> None:
    """Register readers of a study and answer for them; see `make_study`."""
    stop, revise = stop or {}, revise or {}
    study = load_study(folder)
    book = AnswerBook(study)
    readers = [book.register(f"code-{k}", 3 * k, note or "radiology") for k in range(1, num_readers + 1)]
    for reader in readers:
        book.note(reader.reader, "session", "contrast", {"seen": 8, "text": note}, 12.5)
    book.close()
    rows = []
    for reader in readers:
        for number, trial in enumerate(study.slots[reader.slot][: stop.get(reader.reader)]):
            choice = say(reader.reader, trial.task, items[trial.item], trial.repeat)
            for revision, said in enumerate([choice, revise.get((reader.reader, number))]):
                if said is not None:
                    rows.append(
                        Answer(
                            reader.reader, number, trial.task, trial.item, revision, said, note,
                            1000.0 * (1 + number % 4), 0.0, 0, 40.0, 400.0, 6, False, "2026-01-01T00:00:00.000+00:00",
                            "session",
                        )
                    )  # fmt: skip
    names = ", ".join(field.name for field in fields(Answer))
    with sqlite3.connect(folder / "answers.sqlite3") as connection:
        connection.executemany(
            f"INSERT INTO answers({names}) VALUES ({', '.join('?' * len(fields(Answer)))})",
            [astuple(row) for row in rows],
        )
    connection.close()
