"""A reader at the study's desk: links that work once, the tab that has the study, and which image is whose turn.

Used by one thread, without a pause between look and write, so that requests at once cannot cross.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lesionaug.study.answers import AnswerBook, Reader
from lesionaug.study.files import Study, Trial

LEASE_SECONDS = 15.0
SIX_STEPS = (
    "surely synthetic",
    "probably synthetic",
    "rather synthetic",
    "rather real",
    "probably real",
    "surely real",
)


class Refusal(Exception):
    """What a request is answered with instead of what it asked for.

    Args:
        status: Of HTTP.
        error: What is wrong, a sentence without its full stop.
        fix: What can be done, a sentence.
        more: More for the answer.
    """

    def __init__(self, status: int, error: str, fix: str, more: Mapping[str, Any] | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.said = {"error": error, "fix": fix, **(more or {})}


@dataclass
class Sitting:
    """A reader at work, from the link to the end of the server.

    Attributes:
        code: Code name.
        secret: Keys the names of the images.
        name: Under which answers are stored; tells nothing of the cookie.
        tab: The tab that has the study, or None.
        until: When the tab's lease ends, seconds of the monotonic clock.
        back: Whether the last answer is shown again, to be changed.
    """

    code: str
    secret: bytes
    name: str
    tab: str | None = None
    until: float = 0.0
    back: bool = False


@dataclass
class Desk:
    """What the server knows: the study, its answers, open links and sittings. Used by one thread.

    Attributes:
        study: The study.
        book: Its answers.
        links: Token -> code name, of links that nobody has opened yet.
        sittings: Cookie -> sitting; one reader has one at a time.
        clock: Seconds, never going back.
    """

    study: Study
    book: AnswerBook
    links: dict[str, str] = field(default_factory=dict)
    sittings: dict[str, Sitting] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    @property
    def cookie(self) -> str:
        """Name of the cookie: cookies of one host are shared by its ports, so every study has its own."""
        return f"lesionaug-{self.study.id[:8]}"

    def renew(self, codes: Sequence[str]) -> Mapping[str, str]:
        """New links for readers, code name -> token; older ones that nobody opened are void, sittings go on."""
        fresh = {code: secrets.token_urlsafe(32) for code in codes}
        self.links = {token: code for code, token in fresh.items()}
        return fresh

    def open(self, token: str) -> str:
        """Turn a link's token into a cookie; it works once."""
        links = self.links
        found = next((known for known in links if hmac.compare_digest(known.encode(), token.encode())), None)
        if found is None:
            raise Refusal(403, "This link is wrong or used up", "Press Enter where the server runs: it prints new ones")
        code = links.pop(found)
        for cookie in [cookie for cookie, sitting in self.sittings.items() if sitting.code == code]:
            del self.sittings[cookie]
        cookie = secrets.token_urlsafe(32)
        secret = secrets.token_bytes(32)
        self.sittings[cookie] = Sitting(code, secret, hashlib.sha256(secret).hexdigest()[:16])
        return cookie

    def sitting(self, cookie: str, code: str = "") -> Sitting:
        """Whose cookie it is; where a code name is given, it must be that reader's.

        Tabs of a browser share its cookies: a link that is opened in one makes all of them another reader's.
        """
        found = self.sittings.get(cookie)
        if found is None or (code and code != found.code):
            raise Refusal(401, "This browser has no sitting of the study", "Open the link that the server printed")
        return found

    def at_work(self, cookie: str, tab: str, code: str) -> tuple[Sitting, Reader]:
        """A registered reader, at the tab that has the study."""
        sitting = self.sitting(cookie, code)
        self.hold(sitting, tab)
        reader = self.book.reader(sitting.code)
        if reader is None:
            raise Refusal(403, "Nobody is registered yet", "Read the text, agree and register first")
        return sitting, reader

    def claim(self, sitting: Sitting, tab: str) -> None:
        """Give the study to a tab, unless another one has it."""
        if sitting.tab not in (None, tab) and self.clock() < sitting.until:
            raise Refusal(409, "The study is open in another tab", "Close that one, or go on there")
        sitting.tab, sitting.until = tab, self.clock() + LEASE_SECONDS

    def hold(self, sitting: Sitting, tab: str) -> None:
        """Refuse a tab that does not have the study; else lengthen its lease."""
        if sitting.tab is None or tab != sitting.tab:
            raise Refusal(409, "The study is open in another tab", "Close that one, or go on there")
        sitting.until = self.clock() + LEASE_SECONDS

    def trials(self, reader: Reader) -> tuple[Trial, ...]:
        """What a reader is shown."""
        return self.study.slots[reader.slot]

    def place(self, sitting: Sitting, reader: Reader) -> int:
        """Number of the trial that is shown: the first without an answer, or after a step back the one before."""
        done = self.book.num_answered(reader.reader)
        return done - 1 if sitting.back and done else done

    def may_go_back(self, sitting: Sitting, reader: Reader, place: int) -> bool:
        """Whether the answer before may be changed: by the policy, one step, within a task."""
        trials = self.trials(reader)
        if self.study.design.back == "lock" or sitting.back or place == 0:
            return False
        if self.study.design.order == "combined" or place == len(trials):
            return True
        return trials[place - 1].task == trials[place].task

    def image_name(self, sitting: Sitting, place: int) -> str:
        """What an image is called in an address: tells nothing, and differs from sitting to sitting."""
        return hmac.digest(sitting.secret, f"image {place}".encode(), "sha256").hex()[:32]

    def progress(self, reader: Reader | None) -> dict[str, Any]:
        """How far a reader is, in answers."""
        trials = self.study.slots[0] if reader is None else self.trials(reader)
        done = 0 if reader is None else self.book.num_answered(reader.reader)
        task = trials[min(done, len(trials) - 1)].task
        return {
            "done": done,
            "total": len(trials),
            "task": task,
            "task_done": sum(trial.task == task for trial in trials[:done]),
            "task_total": sum(trial.task == task for trial in trials),
        }

    def choices(self, task: str) -> list[dict[str, Any]]:
        """The answers that can be given, with their keys."""
        design = self.study.design
        if task == "class":
            labels: Sequence[str] = design.classes
        else:
            labels = SIX_STEPS if design.scale == "six-step" else ("synthetic", "real")
        values = design.choices(task)
        return [
            {"value": value, "key": str(number), "label": label}
            for number, (value, label) in enumerate(zip(values, labels, strict=True), 1)
        ]
