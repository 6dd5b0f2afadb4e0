"""What readers answered: one SQLite file, append-only, every answer on the disk before it is acknowledged.

Rollback journal and full synchronisation, of the folder too: WAL fails on network file systems, and a reader's work
must outlive a crash and a power cut.
"""

from __future__ import annotations

import datetime
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lesionaug.errors import DataError, EnvironmentProblem
from lesionaug.study.files import Study, load_study

FILE = "answers.sqlite3"
IMAGE_SENT = "image"  # kind of the event that the server notes when it sends an image
_VERSION = 2
_SCHEMA = """
CREATE TABLE study(study_id TEXT NOT NULL, study_sha256 TEXT NOT NULL);
CREATE TABLE readers(
    reader INTEGER PRIMARY KEY, slot INTEGER NOT NULL UNIQUE, code TEXT NOT NULL UNIQUE, years INTEGER,
    speciality TEXT NOT NULL, consent_sha256 TEXT NOT NULL, registered_utc TEXT NOT NULL);
CREATE TABLE answers(
    id INTEGER PRIMARY KEY, reader INTEGER NOT NULL REFERENCES readers(reader), trial INTEGER NOT NULL,
    task TEXT NOT NULL, item INTEGER NOT NULL, revision INTEGER NOT NULL, choice INTEGER NOT NULL, note TEXT NOT NULL,
    response_ms REAL NOT NULL, paused_ms REAL NOT NULL, num_pauses INTEGER NOT NULL, window_centre REAL NOT NULL,
    window_width REAL NOT NULL, zoom INTEGER NOT NULL, smooth INTEGER NOT NULL, server_utc TEXT NOT NULL,
    session TEXT NOT NULL, UNIQUE(reader, trial, revision));
CREATE TABLE events(
    id INTEGER PRIMARY KEY, reader INTEGER NOT NULL REFERENCES readers(reader), session TEXT NOT NULL,
    kind TEXT NOT NULL, content TEXT NOT NULL, client_ms REAL NOT NULL, server_utc TEXT NOT NULL);
"""
_TABLES = ("study", "readers", "answers", "events")
_APPEND_ONLY = "".join(
    f"CREATE TRIGGER {table}_{what.lower()} BEFORE {what} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END;\n"
    for table in _TABLES
    for what in ("UPDATE", "DELETE")
)
_FIX = "Restore the file from a copy; it must not be edited"


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        reader: Number.
        slot: Which of the study's orders he is shown.
        code: Code name.
        years: Of experience, or None where not told.
        speciality: As told.
        consent_sha256: Of the text agreed to.
        registered_utc: When.
    """

    reader: int
    slot: int
    code: str
    years: int | None
    speciality: str
    consent_sha256: str
    registered_utc: str


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        reader: Who.
        trial: Running number in the reader's order.
        task: "class" or "origin".
        item: Image.
        revision: 0, and 1, 2, ... where it was changed.
        choice: See `Design.choices`.
        note: Free text.
        response_ms: From the frame in which the image was painted to the choice, without pauses.
        paused_ms: Pauses.
        num_pauses: How many.
        window_centre: Of the display, HU.
        window_width: HU.
        zoom: Screen pixels per pixel.
        smooth: Whether it was shown bicubic, not pixel by pixel.
        server_utc: When it was saved.
        session: Which sitting.
    """

    reader: int
    trial: int
    task: str
    item: int
    revision: int
    choice: int
    note: str
    response_ms: float
    paused_ms: float
    num_pauses: int
    window_centre: float
    window_width: float
    zoom: int
    smooth: bool
    server_utc: str
    session: str


@dataclass(frozen=True)
class Event:
    """Something else that happened.

    Attributes:
        reader: To whom.
        session: In which sitting.
        kind: Such as "contrast", "display", "pause", "resume".
        content: More of it.
        client_ms: On the page's clock.
        server_utc: When.
    """

    reader: int
    session: str
    kind: str
    content: Mapping[str, Any]
    client_ms: float
    server_utc: str


@dataclass(frozen=True)
class AllAnswers:
    """All that a study's readers did.

    Attributes:
        readers: By number.
        answers: Every revision, in the order of saving.
        events: The same.
    """

    readers: tuple[Reader, ...]
    answers: tuple[Answer, ...]
    events: tuple[Event, ...]

    def last(self) -> tuple[Answer, ...]:
        """The last revision of every answer, sorted by reader and trial."""
        found = {(a.reader, a.trial): a for a in sorted(self.answers, key=lambda a: a.revision)}
        return tuple(found[key] for key in sorted(found))


def now_utc() -> str:
    """The time, as it is written."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class AnswerBook:
    """The answers of a study, open for writing. One process at a time; not for use by several threads at once.

    Args:
        study: The study; its file of answers is made where there is none.

    Raises:
        EnvironmentProblem: The folder cannot be written.
        DataError: The file is damaged, or of another study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        path = study.folder / FILE
        _check_plain(path)
        try:
            if not path.exists():  # notes may hold what others should not read; the journal takes the same rights
                path.touch(0o600)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
        except sqlite3.Error as error:
            raise EnvironmentProblem(
                FILE, f"it cannot be opened ({error})", "See that the folder can be written"
            ) from error
        try:
            with refused():
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.execute("PRAGMA synchronous=EXTRA")  # FULL, and the folder when the journal is removed
                self._db.execute("PRAGMA foreign_keys=ON")
                self._db.execute("PRAGMA trusted_schema=OFF")
                with self._writing():
                    if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                        self._make()
            _check(self._db, study)
        except BaseException:
            self._db.close()
            raise

    def _make(self) -> None:
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise DataError(FILE, "it is a database of something else", _FIX)
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                self._db.execute(statement)
        for statement in _APPEND_ONLY.splitlines():
            self._db.execute(statement)
        self._db.execute("INSERT INTO study VALUES (?, ?)", (self.study.id, self.study.sha256))
        self._db.execute(f"PRAGMA user_version={_VERSION}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all of it or nothing, on the disk when the `with` ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def reader(self, code: str) -> Reader | None:
        """A registered reader."""
        row = self._db.execute(f"SELECT {_names(Reader)} FROM readers WHERE code = ?", (code,)).fetchone()
        return None if row is None else Reader(*row)

    def codes(self) -> tuple[str, ...]:
        """Code names of all registered readers."""
        return tuple(row[0] for row in self._db.execute("SELECT code FROM readers ORDER BY reader"))

    def register(self, code: str, years: int | None, speciality: str) -> Reader:
        """Register a reader, who takes the first free slot.

        Raises:
            LookupError: No slot is free.
            sqlite3.Error: The code is taken, or the disk refused.
        """
        with self._writing():
            taken = {row[0] for row in self._db.execute("SELECT slot FROM readers")}
            free = [slot for slot in range(len(self.study.slots)) if slot not in taken]
            if not free:
                raise LookupError("no slot is free")
            self._db.execute(
                "INSERT INTO readers(slot, code, years, speciality, consent_sha256, registered_utc) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (free[0], code, years, speciality, self.study.consent_sha256, now_utc()),
            )
        found = self.reader(code)
        assert found is not None
        return found

    def num_answered(self, reader: int) -> int:
        """Trials that a reader has answered: always the first ones of his order."""
        row = self._db.execute("SELECT count(DISTINCT trial) FROM answers WHERE reader = ?", (reader,)).fetchone()
        return int(row[0])

    def num_saved(self) -> int:
        """Answers of all readers."""
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def last(self, reader: int, trial: int) -> tuple[int, int, str] | None:
        """(revision, choice, note) of the last answer to a trial."""
        row = self._db.execute(
            "SELECT revision, choice, note FROM answers WHERE reader = ? AND trial = ? ORDER BY revision DESC LIMIT 1",
            (reader, trial),
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def add(self, answer: Answer) -> None:
        """Save an answer; it is on the disk when this returns.

        Raises:
            sqlite3.Error: It is there already, or the disk refused.
        """
        with self._writing():
            marks = ", ".join("?" * len(fields(Answer)))
            self._db.execute(f"INSERT INTO answers({_names(Answer)}) VALUES ({marks})", astuple(answer))

    def note(self, reader: int, session: str, kind: str, content: Mapping[str, Any], client_ms: float) -> None:
        """Save an event; `content` is plain JSON.

        Raises:
            sqlite3.Error: The disk refused.
        """
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
        with self._writing():
            self._db.execute(
                f"INSERT INTO events({_names(Event)}) VALUES (?, ?, ?, ?, ?, ?)",
                (reader, session, kind, text, client_ms, now_utc()),
            )


def read_answers(study: Study) -> AllAnswers:
    """Read and check the answers of a study, without writing; nobody has to have answered yet.

    Raises:
        DataError: A damaged file, or answers that do not fit the study.
    """
    path = study.folder / FILE
    if not path.exists():
        return AllAnswers((), (), ())
    _check_plain(path)
    # After a crash, half an answer may be in the file, with the journal that takes it out: that needs a writer.
    mode = "rw" if path.with_name(f"{FILE}-journal").exists() else "ro"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)) as db:
            db.execute("PRAGMA trusted_schema=OFF")
            return _check(db, study)
    except sqlite3.Error as error:
        raise DataError(FILE, f"it cannot be read ({error})", _FIX) from error


def progress_lines(folder: Path) -> Iterator[str]:
    """How far the readers of a study are, a line for each; the last one warns where nobody has answered anything.

    Raises:
        DataError: See `load_study` and `read_answers`.
    """
    study = load_study(folder)
    found = read_answers(study)
    done = Counter(answer.reader for answer in found.last())
    for reader in found.readers:
        total = len(study.slots[reader.slot])
        end = "" if done[reader.reader] == total else ", not finished"
        yield f"reader {reader.reader} ({reader.code}): answered {done[reader.reader]} of {total}{end}"
    if not done:
        yield "warning: nobody has answered anything yet"


@contextmanager
def refused() -> Iterator[None]:
    """Turn what SQLite refuses into an error with a place and a fix."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DataError(FILE, f"the file is damaged ({error})", _FIX) from error
        raise EnvironmentProblem(FILE, f"it cannot be written ({error})", disk_advice(error)) from error


def disk_advice(error: sqlite3.Error) -> str:
    """What can be done about an error of SQLite."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_FULL:
        return "The disk is full: make room, then go on"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return "See that the study's folder can be written"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "Another program holds the file: close it"
    return "See to the disk, then go on"


def _check_plain(path: Path) -> None:
    for file in (path, path.with_name(f"{FILE}-journal")):
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise DataError(FILE, "it must be a plain file", _FIX)


def _names(row: type[Reader] | type[Answer] | type[Event]) -> str:
    return ", ".join(field.name for field in fields(row))


def _check(db: sqlite3.Connection, study: Study) -> AllAnswers:
    """Read all rows, and refuse those that cannot be."""

    def rule(holds: bool, text: str) -> None:
        if not holds:
            raise DataError(FILE, text, _FIX)

    version = db.execute("PRAGMA user_version").fetchone()[0]
    rule(version == _VERSION, f"this release reads version {_VERSION} of the answers, got {version}")
    tables = {
        row[0]: row[1] for row in db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')")
    }
    rule(all(tables.get(name) == "table" for name in _TABLES), "a table is missing")
    rows = db.execute("SELECT study_id, study_sha256 FROM study").fetchall()
    rule([row[0] for row in rows] == [study.id], "these are answers of another study")
    rule(rows[0][1] == study.sha256, "study.json is not the one that the answers were given to (SHA-256 differs)")
    readers = tuple(Reader(*row) for row in db.execute(f"SELECT {_names(Reader)} FROM readers ORDER BY reader"))
    for reader in readers:
        rule(
            isinstance(reader.slot, int)
            and 0 <= reader.slot < len(study.slots)
            and all(isinstance(text, str) for text in (reader.code, reader.speciality, reader.registered_utc))
            and (reader.years is None or isinstance(reader.years, int)),
            f"reader {reader.reader} does not fit the study",
        )
        rule(reader.consent_sha256 == study.consent_sha256, f"reader {reader.reader} agreed to another text")
    slots = {reader.reader: study.slots[reader.slot] for reader in readers}
    answers = []
    next_revision: dict[tuple[int, int], int] = {}
    answered = dict.fromkeys(slots, 0)
    for row in db.execute(f"SELECT id, {_names(Answer)} FROM answers ORDER BY id"):
        where = f"answer {row[0]}"
        answer = Answer(*row[1:])
        rule(answer.reader in slots, f"{where} is of an unknown reader")
        trials = slots[answer.reader]
        rule(isinstance(answer.trial, int) and 0 <= answer.trial < len(trials), f"{where} is to no trial")
        trial = trials[answer.trial]
        rule((trial.task, trial.item) == (answer.task, answer.item), f"{where} is to another trial than the order's")
        rule(
            isinstance(answer.choice, int) and answer.choice in study.design.choices(answer.task),
            f"{where} is none of the choices",
        )
        key = (answer.reader, answer.trial)
        rule(answer.revision == next_revision.get(key, 0), f"{where}: a revision is missing")
        if answer.revision == 0:
            rule(answer.trial == answered[answer.reader], f"{where}: the answer before it is missing")
            answered[answer.reader] += 1
        next_revision[key] = answer.revision + 1
        numbers = (answer.response_ms, answer.paused_ms, answer.num_pauses, answer.window_centre, answer.window_width)
        rule(
            all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers) and isinstance(answer.note, str),
            f"{where}: a time, a window or the note is no number or text",
        )
        answers.append(replace(answer, smooth=bool(answer.smooth)))
    events = []
    for row in db.execute(f"SELECT {_names(Event)} FROM events ORDER BY id"):
        rule(row[0] in slots, "an event is of an unknown reader")
        try:
            content = json.loads(row[3])
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(FILE, "the content of an event is no JSON", _FIX) from error
        rule(isinstance(content, dict), "the content of an event is no JSON object")
        events.append(Event(row[0], row[1], row[2], content, row[4], row[5]))
    return AllAnswers(readers, tuple(answers), tuple(events))
