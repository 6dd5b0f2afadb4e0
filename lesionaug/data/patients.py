"""Who is who: patients under several ids, and the pseudonyms that stand for them in everything that is written."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lesionaug.data.csv_files import read_rows
from lesionaug.data.slices import Finding, Lesion, patient_key
from lesionaug.errors import ConfigError, DataError

LEAST_KEY_BYTES = 16


@dataclass(frozen=True)
class Aliases:
    """Ids that mean another: {id: the id of the same person that all are known by}, both as `patient_key` has them."""

    to: Mapping[str, str]
    name: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)  # of the rows, by patient_id

    @classmethod
    def read(cls, path: Path) -> Aliases:
        """Read `patient_id,same_as`; chains are followed.

        Raises:
            DataError: For missing columns, empty cells, an id with two meanings, or a circle.
        """
        if not path.is_file():
            raise DataError(f"--patient-aliases {path.name}", "there is no such file", "Give the CSV with the aliases")
        to: dict[str, str] = {}
        lines: dict[str, int] = {}
        for row in read_rows(path, path.name):
            where = f"{path.name} line {row['__line__']}"
            if "patient_id" not in row or "same_as" not in row:
                raise DataError(path.name, "an alias table needs the columns patient_id and same_as", "Add them")
            one, other = patient_key(row["patient_id"]), patient_key(row["same_as"])
            if not one or not other:
                raise DataError(where, "patient_id and same_as must not be empty", "Fill them in")
            if to.setdefault(one, other) != other:
                raise DataError(where, "this patient_id has another same_as further up", "Keep one of the rows")
            lines.setdefault(one, int(row["__line__"]))
        followed = {}
        for one, other in to.items():
            seen = {one}
            while other in to and other != to[other]:
                if other in seen:
                    raise DataError(path.name, "its aliases go in a circle", "Let every id lead to one that stands")
                seen.add(other)
                other = to[other]
            followed[one] = other
        return cls(followed, path.name, lines)

    def of(self, patient: str) -> str:
        """The id that a patient is known by."""
        return self.to.get(patient, patient)

    def unused(self, patients: Collection[str]) -> list[Finding]:
        """Warnings for rows that join nobody among these patients: a slip in an id is a leak that nobody would see."""
        found = []
        for one, line in self.lines.items():
            where = f"{self.name} line {line}"
            if one not in patients:
                rule = "its patient_id is no patient of this source, so the row does nothing"
                found.append(Finding("warning", where, rule, "Check how the id is written there"))
            elif self.to[one] not in patients:
                rule = "its same_as is no patient of this source"
                found.append(Finding("warning", where, rule, "Right if it is one of another source; else correct it"))
        return found


NO_ALIASES = Aliases({})


def default_key_path() -> Path:
    """Where the user's own key is: lesionaug/pseudonym.key in $XDG_CONFIG_HOME, else in ~/.config."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "lesionaug" / "pseudonym.key"


def check_key(path: Path | None, store: Path) -> None:
    """As `pseudonym_key`, but a key that is not there yet is not made: it will be when it is needed.

    Raises:
        ConfigError: See there.
    """
    key_path = default_key_path() if path is None else path
    if key_path.exists() or store.resolve() in key_path.resolve().parents:
        pseudonym_key(path, store)
    elif path is not None and not path.parent.is_dir():
        raise ConfigError(
            "--pseudonym-key", "the folder of the key file does not exist", "Check the path, or create it"
        )


def pseudonym_key(path: Path | None, store: Path) -> bytes:
    """The secret that pseudonyms are made with; a new one where there is none yet.

    Args:
        path: The key file, None for the user's own.
        store: The store to be written; a key in it would undo the pseudonyms.

    Raises:
        ConfigError: A key in the store's folder, open to other users, too short, or not readable.
    """
    key_path = default_key_path() if path is None else path
    where = "--pseudonym-key" if path is not None else f"pseudonym key {key_path.name}"
    if store.resolve() in key_path.resolve().parents:
        raise ConfigError(where, "the key must not lie in the store, for it leads back to people", "Keep it elsewhere")
    try:
        if not key_path.exists():
            if path is None:
                key_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not key_path.parent.is_dir():
                raise ConfigError(where, "the folder of the key file does not exist", "Check the path, or create it")
            _make_key(key_path)
        if stat.S_IMODE(key_path.stat().st_mode) & 0o077:
            raise ConfigError(
                where, "other users can read the key file", f"Make it yours alone: chmod 600 '{key_path}'"
            )
        key = key_path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            where,
            f"the key file cannot be read or made ({error.strerror})",
            "Give a path that you can write with --pseudonym-key",
        ) from error
    if len(key) < LEAST_KEY_BYTES:
        rule = f"the key must have {LEAST_KEY_BYTES} bytes or more"
        raise ConfigError(where, rule, "Remove the file, and a new key is made")
    return key


def _make_key(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def pseudonyms(lesions: Sequence[Lesion], key: bytes | None) -> dict[str, str]:
    """A name for each patient: HMAC-SHA256 of the id with the secret, or P001, P002, ... without one (phantoms).

    Keyed names are the same in every store made with the key, and say nothing to those who have not got it (a plain
    hash would: record numbers are few enough to try them all). The numbers follow the smallest lesion id of each
    patient, so they are the same in every import of a phantom.
    """
    patients = list(dict.fromkeys(lesion.margin.patient for lesion in lesions))
    if key is not None:
        digests = {p: hmac.new(key, p.encode(errors="surrogatepass"), hashlib.sha256).hexdigest() for p in patients}
        return {patient: f"P-{digest[:16]}" for patient, digest in digests.items()}
    smallest = {p: min(lesion.lesion_id for lesion in lesions if lesion.margin.patient == p) for p in patients}
    digits = max(3, len(str(len(patients))))
    return {p: f"P{number:0{digits}d}" for number, p in enumerate(sorted(patients, key=smallest.__getitem__), 1)}
