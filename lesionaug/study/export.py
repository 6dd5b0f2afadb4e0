"""`lesionaug study export`: every answer as CSV and JSON, and with the truth the frame that iMRMC reads.

What readers wrote is in the CSV and JSON of the answers and nowhere else. Spreadsheets run cells that begin like a
formula; such cells are given an apostrophe in the CSV, which spreadsheets take for "text". The folder can be read
by its owner alone, for notes may hold anything.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lesionaug.data.files import check_new_folder, commit_directory, write_text_atomic
from lesionaug.study.analysis import Judged, judge, says_real
from lesionaug.study.answers import AllAnswers, Answer, Event, Reader, read_answers
from lesionaug.study.files import Study, Truth, load_study, load_truth

SCHEMA, VERSION = "lesionaug-study-export", 1
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_study(study: Path, out: Path, truth: Path | None = None) -> Path:
    """Write OUT/{answers, readers, events}.csv and study.json; with the truth also truth.csv and imrmc.csv.

    Args:
        study: Folder of `lesionaug study new`, finished or not.
        out: A folder that does not exist yet.
        truth: The truth file; without it nothing about the truth is written, and none is looked for.

    Returns:
        The folder.

    Raises:
        DataError: Files that are missing or were changed, or a truth of another study.
    """
    check_new_folder(out, "the export")
    found = load_study(study)
    right = None if truth is None else load_truth(found, truth)
    answers = read_answers(found)
    with commit_directory(out) as folder:
        folder.chmod(0o700)
        write_text_atomic(folder / "answers.csv", _answers(found, answers))
        write_text_atomic(folder / "readers.csv", _csv(_names(Reader), map(_cells, answers.readers)))
        write_text_atomic(folder / "events.csv", _csv(_names(Event), map(_cells, answers.events)))
        everything = {
            "schema": SCHEMA,
            "version": VERSION,
            "study": dict(found.info),
            "readers": [asdict(reader) for reader in answers.readers],
            "answers": [asdict(answer) for answer in answers.answers],
            "events": [asdict(event) for event in answers.events],
        }
        # ASCII: what a browser sent as half a character cannot be written as UTF-8.
        write_text_atomic(folder / "study.json", json.dumps(everything, indent=1, sort_keys=True) + "\n")
        if right is not None:
            write_text_atomic(folder / "truth.csv", _truth(right))
            if "origin" in found.design.tasks:
                write_text_atomic(folder / "imrmc.csv", _imrmc(right, judge(found, right, answers)))
        for path in folder.iterdir():
            path.chmod(0o600)
    return out


def _answers(study: Study, answers: AllAnswers) -> str:
    """One row for each revision of each answer; `counts` marks the last, `answer` says the choice in words."""
    slots = {reader.reader: study.slots[reader.slot] for reader in answers.readers}
    last = {(answer.reader, answer.trial): answer.revision for answer in answers.last()}
    rows = []
    for answer in answers.answers:
        trial = slots[answer.reader][answer.trial]
        if answer.task == "class":
            words = study.design.classes[answer.choice]
        else:
            words = "real" if says_real(study.design, answer.choice) else "synthetic"
        counts = last[answer.reader, answer.trial] == answer.revision
        rows.append([*_cells(answer), words, int(trial.practice), int(trial.repeat), int(counts)])
    return _csv([*_names(Answer), "answer", "practice", "repeat", "counts"], rows)


def _truth(truth: Truth) -> str:
    rows = [
        [t.item, t.origin, t.class_name, t.lesion_id, t.patient, _generator(t.source), int(t.practice)]
        for t in truth.items
    ]
    return _csv(["item", "origin", "class", "lesion_id", "patient", "generator", "practice"], rows)


def _imrmc(truth: Truth, judged: Judged) -> str:
    """The frame of the R package iMRMC: a row for the truth of every case, 1 where it is real, then the ratings.

    A kind of GAN is a modality: its synthetic images, and the real ones with the same ratings beside each of them.
    First showings only, practice left out.
    """
    shown = [item for item in truth.items if not item.practice]
    modalities = sorted({_generator(item.source) for item in shown if item.origin != "real"}) or ["none"]
    rows: list[list[Any]] = [["truth", f"case{t.item}", "truth", int(t.origin == "real")] for t in shown]
    for reader in judged.readers:
        for item, rating in sorted(judged.counted[reader.reader, "origin"].first.items()):
            one = truth.items[item]
            for modality in modalities if one.origin == "real" else [_generator(one.source)]:
                rows.append([f"reader{reader.reader}", f"case{item}", modality, rating])
    return _csv(["readerID", "caseID", "modalityID", "score"], rows)


def _generator(source: Any) -> str:
    return str(source.get("gan") or "")


def _names(row: type[Reader] | type[Answer] | type[Event]) -> list[str]:
    return [field.name for field in fields(row)]


def _cells(row: Reader | Answer | Event) -> list[Any]:
    return list(asdict(row).values())


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _safe(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers stay as they are."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return int(cell)
    if isinstance(cell, int | float):
        return cell
    text = cell if isinstance(cell, str) else json.dumps(cell, sort_keys=True)
    text = text.replace("\0", "")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
