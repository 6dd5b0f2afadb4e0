"""The study's server over real HTTP: who may ask for what, and that no answer is ever lost or counted twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lesionaug.cli import main
from lesionaug.errors import ConfigError, DataError, EnvironmentProblem
from lesionaug.study.answers import FILE, AnswerBook, read_answers
from lesionaug.study.desk import LEASE_SECONDS, Desk
from lesionaug.study.files import load_study
from lesionaug.study.server import build_app, check_codes, http_server, open_port
from tests.studies import small_study

DISPLAY = {"centre": 40.0, "width": 400.0, "zoom": 6, "smooth": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A study whose truth is not there at all: nothing that is served needs it."""
    study = small_study(tmp_path_factory.mktemp("study"))
    study.truth.rename(study.truth.with_name("elsewhere.json"))
    return study.folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "study")
    return tmp_path / "study"


class Served:
    """A study served from a thread of this process."""

    def __init__(self, folder: Path, codes=("A", "B")) -> None:
        self.study = load_study(folder)
        self.codes = codes

    def __enter__(self) -> Served:
        self.stack = contextlib.ExitStack()
        book = self.stack.enter_context(contextlib.closing(AnswerBook(self.study)))
        listening = self.stack.enter_context(open_port(0))
        self.port = listening.getsockname()[1]
        self.now = 0.0
        self.links = {f"token-of-{code}": code for code in self.codes}
        self.desk = Desk(self.study, book, dict(self.links), clock=lambda: self.now)
        self.server = http_server(build_app(self.desk, self.port))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]})
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.stack.close()
        assert not self.thread.is_alive()

    def browser(self, code: str = "A", register: bool = True) -> Browser:
        browser = Browser(self.port)
        assert browser.post("/api/open", {"token": f"token-of-{code}"})[:2] == (200, {"reader": code})
        assert browser.post("/api/claim", {"tab": browser.tab})[0] == 200
        if register:
            assert browser.post("/api/register", {"years": 7, "speciality": "radiology", "agreed": True})[0] == 200
        return browser


class Browser:
    """What a browser sends, and keeps."""

    def __init__(self, port: int, tab: str = "the-first-tab") -> None:
        self.port, self.tab, self.cookie = port, tab, None

    def ask(self, method: str, path: str, body: bytes | None = None, **headers):
        """(status, JSON or bytes, headers). Underscores of header names stand for dashes; None leaves one out."""
        wanted = {"X-Tab": self.tab} | {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            wanted.setdefault("Cookie", self.cookie)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            host = wanted.pop("Host", f"127.0.0.1:{self.port}")
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in ({"Host": host} | wanted).items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "Transfer-Encoding" not in wanted and "Content-Length" not in wanted:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
        given = response.headers
        if given.get("Set-Cookie"):
            self.cookie = given["Set-Cookie"].partition(";")[0]
        if content and given.get("Content-Type") == "application/json":
            content = json.loads(content)
        return response.status, content, given

    def get(self, path: str, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: object, **headers):
        return self.ask("POST", path, json.dumps(body).encode(), **{"Content_Type": "application/json"} | headers)

    def answer(self, trial: dict | int, choice: int = 1, **changes):
        number = trial if isinstance(trial, int) else trial["trial"]
        body = {"trial": number, "choice": choice, "note": "", "response_ms": 812.5, "paused_ms": 0, "num_pauses": 0}
        return self.post("/api/answer", body | {"display": DISPLAY} | changes)


@pytest.fixture
def served(folder: Path):
    with Served(folder) as running:
        yield running


def rows(folder: Path, table: str = "answers") -> list[tuple]:
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def test_a_whole_study_of_two_readers(served: Served, folder: Path) -> None:
    lengths, headers = set(), set()
    for slot, code in enumerate("AB"):
        browser = served.browser(code)
        wanted = served.study.slots[slot]
        for number, trial in enumerate(wanted):
            status, shown, _ = browser.get("/api/trial")
            assert (status, shown["trial"], shown["task"], shown["practice"]) == (
                200,
                number,
                trial.task,
                trial.practice,
            )
            assert set(shown) == {
                "trial", "task", "image", "practice", "number", "of", "choices", "can_go_back", "previous", "progress",
            }  # fmt: skip
            assert shown["previous"] is None
            status, pixels, given = browser.get(f"/api/image/{shown['image']}")
            assert status == 200
            assert pixels == served.study.images[trial.item].astype("<u2").tobytes()
            lengths.add(len(pixels))
            headers.add(tuple(sorted(given.items())))
            values = [choice["value"] for choice in shown["choices"]]
            assert [choice["key"] for choice in shown["choices"]] == [str(i + 1) for i in range(len(values))]
            status, said, _ = browser.answer(shown, values[number % len(values)], note=f"é {number}")
            assert status == 200
            assert said["progress"]["done"] == number + 1
        assert browser.get("/api/trial")[1]["done"] is True
        assert browser.answer(len(wanted))[0] == 409
    assert len(headers) == 1, "the headers of images differ"
    assert lengths == {8192}
    assert not {"date", "server", "etag", "last-modified"} & {name.lower() for name, _ in headers.pop()}
    found = read_answers(served.study)
    assert (folder / FILE).stat().st_mode & 0o077 == 0
    assert [(reader.code, reader.slot, reader.years) for reader in found.readers] == [("A", 0, 7), ("B", 1, 7)]
    assert len(found.last()) == len(found.answers) == sum(len(slot) for slot in served.study.slots)
    for answer in found.answers:
        trial = served.study.slots[answer.reader - 1][answer.trial]
        assert (answer.task, answer.item, answer.revision) == (trial.task, trial.item, 0)
        assert answer.note == f"é {answer.trial}"
        assert (answer.response_ms, answer.window_width, answer.smooth) == (812.5, 400.0, False)


def test_what_a_reader_is_told_holds_no_truth(served: Served) -> None:
    browser = served.browser()
    study = browser.get("/api/study")[1]
    assert study["reader"] == {"code": "A", "registered": True}
    assert set(study["design"]) == {
        "tasks", "order", "scale", "classes", "num_items", "num_practice", "back", "size", "num_levels", "window_hu",
        "value_range",
    }  # fmt: skip
    assert study["design"]["num_items"] == 12
    assert study["kind"] == "phantom"
    assert "voluntary" in study["consent"]
    assert [key["label"] for key in study["keys"]["class"]] == ["cyst", "metastasis", "hemangioma"]
    assert [key["value"] for key in study["keys"]["origin"]] == [1, 2, 3, 4, 5, 6]


def test_links_work_once(served: Served) -> None:
    browser = Browser(served.port)
    for token in ("wrong", "token-of-", "token-of-AA", "tokén", "x" * 200):
        assert browser.post("/api/open", {"token": token})[0] == 403
    assert browser.get("/api/study")[0] == 401
    status, said, given = browser.post("/api/open", {"token": "token-of-A"})
    assert (status, said) == (200, {"reader": "A"})
    cookie = given["Set-Cookie"]
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "token-of-A" not in cookie
    status, said, _ = Browser(served.port).post("/api/open", {"token": "token-of-A"})
    assert status == 403
    assert said == {
        "error": "This link is wrong or used up",
        "fix": "Press Enter where the server runs: it prints new ones",
    }
    assert browser.get("/api/study")[0] == 200


def test_new_links_void_old_ones_and_leave_sittings(served: Served) -> None:
    browser = served.browser("A")
    fresh = served.desk.renew(("A", "B"))
    stranger = Browser(served.port)
    assert stranger.post("/api/open", {"token": "token-of-B"})[0] == 403
    assert browser.get("/api/trial")[0] == 200
    assert stranger.post("/api/open", {"token": fresh["A"]})[1] == {"reader": "A"}
    assert browser.get("/api/trial")[0] == 401  # the same reader sits elsewhere now


def test_nothing_works_without_the_cookie(served: Served) -> None:
    served.browser()
    stranger = Browser(served.port)
    for cookie in (None, f"{served.desk.cookie}=", f"{served.desk.cookie}=abc", "lesionaug-00000000=x"):
        for path in ("/api/study", "/api/trial", "/api/image/0"):
            assert stranger.get(path, Cookie=cookie)[0] == 401
        for path in (
            "/api/claim",
            "/api/register",
            "/api/answer",
            "/api/back",
            "/api/event",
            "/api/beat",
            "/api/release",
        ):
            body = {"tab": "the-first-tab"} if path == "/api/claim" else {}
            status = stranger.post(path, {"agreed": True} if "register" in path else body, Cookie=cookie)[0]
            assert status == 401, path


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1"}, 400),
        ({"Host": "127.0.0.1.nip.io:{port}"}, 400),
        ({"Host": None}, 400),
        ({"Host": "localhost:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://localhost:{port}"}, 403),  # not that of this host
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_requests_from_elsewhere(served: Served, headers: dict, status: int) -> None:
    browser = served.browser()
    sent = {name: value and value.format(port=served.port) for name, value in headers.items()}
    for method, path, body in (("GET", "/", None), ("GET", "/api/trial", None), ("POST", "/api/beat", b"{}")):
        found, _, given = browser.ask(method, path, body, **{"Content-Type": "application/json"} | sent)
        assert found == status, path
        if "Host" in sent and sent["Host"] is None:
            continue  # refused before the application
        assert "Access-Control-Allow-Origin" not in given


def test_headers_of_every_answer(served: Served) -> None:
    browser = Browser(served.port)
    for path in (
        "/",
        "/page.js",
        "/page.css",
        "/favicon.ico",
        "/api/study",
        "/nothing",
        "/api/image/x",
        "/../study.json",
    ):
        given = browser.get(path)[2]
        policy = given["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert given["Cache-Control"] == "no-store"
        assert given["X-Content-Type-Options"] == "nosniff"
        assert given["Referrer-Policy"] == "no-referrer"
        assert given["Cross-Origin-Resource-Policy"] == given["Cross-Origin-Opener-Policy"] == "same-origin"
    status, page, given = browser.get("/")
    assert status == 200
    assert given["Content-Type"].startswith("text/html")
    assert b"<script" in page
    assert not re.search(rb"<script(?![^>]*src=)", page), "the policy forbids scripts within the page"
    assert browser.get("/page.js")[2]["Content-Type"].startswith("text/javascript")


def test_unknown_routes_and_methods(served: Served) -> None:
    browser = served.browser()
    for path in (
        "/nothing",
        "/api",
        "/api/",
        "/api/trial/",
        "/study.json",
        "/truth",
        "/page",
        "/index.html",
        "/page.js/",
        "//",
    ):
        status, said, _ = browser.get(path)
        assert status == 404, path
        assert set(said) == {"error", "fix"}
    wrong = "POST /, GET /api/answer, PUT /api/answer, DELETE /api/trial, HEAD /api/trial, OPTIONS /api/trial, TRACE /"
    for method, path in (words.split() for words in wrong.split(", ")):
        assert browser.ask(method, path)[0] == 405, method


def test_bodies_that_are_none(served: Served, folder: Path) -> None:
    browser = served.browser()
    shown = browser.get("/api/trial")[1]
    good = {"trial": 0, "choice": 1, "note": "", "response_ms": 1, "paused_ms": 0, "num_pauses": 0, "display": DISPLAY}

    def status(content: bytes, **headers) -> int:
        return browser.ask("POST", "/api/answer", content, **{"Content_Type": "application/json"} | headers)[0]

    for content in (b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff", b'{"trial": NaN}', b'{"trial": 1e999}',
                    b"[" * 9000, b'{"note": "\\ud800"}', b'{"trial": ' + b"9" * 5000 + b"}", b"{}",
                    b'{"truth": 1}'):  # fmt: skip
        assert status(content) == 400, content[:30]
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/form-data"):
        assert status(json.dumps(good).encode(), Content_Type=kind) == 415, kind
    assert status(json.dumps(good | {"note": "x" * 20_000}).encode()) == 413
    assert status(b"", Content_Length="99999999999999999999") in (400, 413)
    chunks = b"4000\r\n" + b" " * 0x4000 + b"\r\n" + b"2\r\n{}\r\n0\r\n\r\n"
    assert status(chunks, Transfer_Encoding="chunked") == 413
    for change in (
        {"trial": "0"}, {"trial": True}, {"trial": 0.0}, {"trial": None}, {"trial": -1}, {"choice": "1"},
        {"choice": True}, {"choice": 3}, {"choice": -1}, {"choice": 1.0}, {"choice": None}, {"note": 1}, {"note": None},
        {"note": "x" * 2001}, {"note": "\0"}, {"response_ms": "1"}, {"response_ms": -1}, {"response_ms": True},
        {"response_ms": 1e12}, {"response_ms": None}, {"paused_ms": -1}, {"num_pauses": 0.5}, {"display": None},
        {"display": []}, {"display": {}}, {"display": DISPLAY | {"more": 1}}, {"display": DISPLAY | {"smooth": 1}},
        {"display": DISPLAY | {"zoom": 0}}, {"display": DISPLAY | {"width": -1}},
        {"display": DISPLAY | {"centre": "x"}},
        {"revision": "0"}, {"more": 1},
    ):  # fmt: skip
        found, said, _ = browser.post("/api/answer", good | change)
        assert found == 400, change
        assert set(said) == {"error", "fix"}
    for event in (
        {"kind": ""},
        {"kind": "<b>"},
        {"kind": "x", "content": []},
        {"kind": "x", "client_ms": "1"},
        {"kind": "x" * 41},
    ):
        assert browser.post("/api/event", {"client_ms": 1.0} | event)[0] == 400, event
    assert rows(folder) == rows(folder, "events") == []
    assert browser.get("/api/trial")[1] == shown
    assert browser.post("/api/answer", good)[0] == 200
    assert browser.post("/api/event", {"kind": "contrast", "content": {"seen": "both"}, "client_ms": 5})[0] == 200
    assert read_answers(served.study).events[0].content == {"seen": "both"}


def test_registering(served: Served, folder: Path) -> None:
    browser = served.browser(register=False)
    good = {"years": None, "speciality": "", "agreed": True}
    for path in ("/api/trial", "/api/image/x"):
        assert browser.get(path)[0] == 403
    assert browser.answer(0)[0] == 403
    for change in ({"agreed": False}, {"agreed": 1}, {"agreed": None}, {"years": -1}, {"years": "3"}, {"years": 2.5},
                   {"years": True}, {"speciality": 1}, {"speciality": "x" * 101}, {"name": "me"}):  # fmt: skip
        assert browser.post("/api/register", good | change)[0] == 400, change
    assert rows(folder, "readers") == []
    assert browser.post("/api/register", good)[0] == 200
    assert browser.post("/api/register", good)[0] == 409
    (row,) = rows(folder, "readers")
    assert row[1:6] == (0, "A", None, "", served.study.consent_sha256)


def test_a_tab_that_believes_to_be_another_readers_is_refused(served: Served, folder: Path) -> None:
    """Tabs of one browser share its cookie: B's link, opened in a second tab, must not make A's answers B's."""
    first = served.browser("A")
    second = served.browser("B")
    first.cookie = second.cookie
    assert first.get("/api/trial", X_Reader="B")[0] == 200
    answer = {
        "trial": 0,
        "choice": 1,
        "note": "",
        "response_ms": 1,
        "paused_ms": 0,
        "num_pauses": 0,
        "display": DISPLAY,
    }
    for path, body in (("answer", answer), ("claim", {"tab": "another-tab"}), ("back", {}), ("event", {"kind": "x"})):
        assert first.post(f"/api/{path}", body, X_Reader="A")[0] == 401, path
    assert first.get("/api/trial", X_Reader="A")[0] == 401
    assert rows(folder) == []


def test_every_image_that_is_sent_is_noted(served: Served, folder: Path) -> None:
    browser = served.browser()
    for _ in range(2):
        assert browser.get(f"/api/image/{browser.get('/api/trial')[1]['image']}")[0] == 200
    browser.answer(0)
    browser.get(f"/api/image/{browser.get('/api/trial')[1]['image']}")
    events = [(event.kind, event.content) for event in read_answers(load_study(folder)).events]
    assert events == [("image", {"trial": 0}), ("image", {"trial": 0}), ("image", {"trial": 1})]


def test_a_second_tab_is_refused_until_the_first_is_gone(served: Served, folder: Path) -> None:
    first = served.browser()
    second = Browser(served.port, tab="another-tab")
    second.cookie = first.cookie
    assert second.post("/api/claim", {"tab": second.tab})[0] == 409
    assert second.get("/api/trial")[0] == second.answer(0)[0] == first.get("/api/trial", X_Tab=None)[0] == 409
    assert {second.post(f"/api/{name}", {})[0] for name in ("back", "beat", "release")} == {409}
    assert rows(folder) == []
    served.now = LEASE_SECONDS - 1
    assert first.post("/api/beat", {})[0] == 200
    served.now += LEASE_SECONDS - 1
    assert second.post("/api/claim", {"tab": second.tab})[0] == 409  # the beat has lengthened it
    assert first.post("/api/claim", {"tab": first.tab})[0] == 200  # the same tab, loaded again
    served.now += LEASE_SECONDS + 1
    assert first.get("/api/trial")[0] == 200  # asleep for a while, and nobody took it
    served.now += LEASE_SECONDS + 1
    assert second.post("/api/claim", {"tab": second.tab})[0] == 200
    assert first.answer(0)[0] == 409
    assert second.post("/api/release", {})[0] == 200
    assert first.post("/api/claim", {"tab": first.tab})[0] == 200
    assert first.answer(0)[0] == 200
    for tab in ("short", "x" * 65, "tab with é...", 5, None):
        assert first.post("/api/claim", {"tab": tab})[0] == 400


def test_an_answer_counts_once_and_in_its_turn(served: Served, folder: Path) -> None:
    browser = served.browser()
    assert browser.answer(1)[0] == 409
    assert browser.answer(0)[0] == 200
    for choice in (1, 2):  # sent again, as after an answer that got lost on its way
        status, said, _ = browser.answer(0, choice)
        assert status == 409
        assert said["trial"] == 1
    assert browser.answer(1, revision=1)[0] == 409
    assert browser.answer(1, revision=0)[0] == 200
    assert [row[2:7] for row in rows(folder)] == [
        (number, trial.task, trial.item, 0, 1) for number, trial in enumerate(served.study.slots[0][:2])
    ]


def test_images_are_those_of_the_moment(served: Served) -> None:
    one, two = served.browser("A"), served.browser("B")
    first = one.get("/api/trial")[1]["image"]
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert two.get("/api/trial")[1]["image"] != first
    assert two.get(f"/api/image/{first}")[0] == 404
    for name in ("0", first[:-1], first + "0", f"{first}%20", "%2e%2e%2fstudy.json", "%C3%A9", "%00"):
        assert one.get(f"/api/image/{name}")[0] == 404
    assert one.get(f"/api/image/{first}")[0] == 200
    one.answer(0)
    assert one.get(f"/api/image/{first}")[0] == 404
    one.post("/api/back", {})
    assert one.get(f"/api/image/{first}")[0] == 200


def test_going_back(served: Served, folder: Path) -> None:
    browser = served.browser()
    assert browser.get("/api/trial")[1]["can_go_back"] is False
    assert browser.post("/api/back", {})[0] == 409
    browser.answer(0, 0, note="first thought")
    assert browser.get("/api/trial")[1]["can_go_back"] is True
    assert browser.answer(0, 2)[0] == 409  # not without going back
    assert browser.post("/api/back", {})[1] == {"ok": True, "trial": 0}
    assert browser.post("/api/back", {})[0] == 409  # one step only
    shown = browser.get("/api/trial")[1]
    assert (shown["trial"], shown["previous"]) == (0, {"choice": 0, "note": "first thought"})
    assert browser.answer(1)[0] == 409
    assert browser.answer(0, 2)[0] == 200
    assert browser.get("/api/trial")[1]["trial"] == 1
    assert [row[5:7] for row in rows(folder)] == [(0, 0), (1, 2)]
    (last,) = read_answers(served.study).last()
    assert (last.revision, last.choice) == (1, 2)
    per_task = len(served.study.slots[0]) // 2
    for number in range(1, per_task):
        browser.answer(number)
    shown = browser.get("/api/trial")[1]
    assert (shown["task"], shown["can_go_back"]) == ("origin", False)  # a task that is done stays done
    assert browser.post("/api/back", {})[0] == 409


def test_no_way_back_where_the_policy_locks_it(made: Path, tmp_path: Path) -> None:
    study = small_study(made.parent, name=f"locked-{os.getpid()}", back="lock", order="combined")
    with Served(study.folder) as running:
        browser = running.browser()
        browser.answer(0)
        assert browser.get("/api/trial")[1]["can_go_back"] is False
        assert browser.post("/api/back", {})[0] == 409
        assert browser.get("/api/trial")[1]["task"] == "origin"


def test_a_hundred_requests_at_once(served: Served, folder: Path) -> None:
    browser = served.browser()
    with ThreadPoolExecutor(100) as pool:
        same = list(pool.map(lambda i: browser.answer(0, i % 3)[0], range(100)))
        mixed = list(pool.map(lambda i: browser.get(("/api/trial", "/api/study", "/page.js")[i % 3])[0], range(100)))
    assert sorted(same) == [200] + [409] * 99
    assert mixed == [200] * 100
    assert len(rows(folder)) == 1


def test_a_disk_that_refuses_loses_nothing(served: Served, folder: Path) -> None:
    browser = served.browser()
    browser.answer(0)
    pages = served.desk.book._db.execute("PRAGMA page_count").fetchone()[0]
    served.desk.book._db.execute(f"PRAGMA max_page_count={pages}")  # SQLITE_FULL, as of a full disk
    number = 1
    while (found := browser.answer(number, 0, note="x" * 2000))[0] == 200:
        number += 1
    status, said, _ = found
    assert status == 503
    assert "full" in said["error"]
    assert said["fix"] == "The disk is full: make room, then go on"
    assert len(rows(folder)) == number
    served.desk.book._db.execute("PRAGMA max_page_count=100000")
    assert browser.get("/api/trial")[1]["trial"] == number
    assert browser.answer(number)[0] == 200
    assert len(rows(folder)) == number + 1
    served.desk.book._db.execute("PRAGMA query_only=1")
    status, said, _ = browser.answer(number + 1)
    assert status == 503
    assert "written" in said["fix"]


def test_a_failure_of_the_server_tells_nothing(served: Served, monkeypatch, capsys) -> None:
    browser = served.browser()
    monkeypatch.setattr(served.desk, "choices", lambda task: 1 / 0)
    status, said, given = browser.get("/api/trial")
    assert (status, said["error"]) == (500, "The server failed")
    assert given["Cache-Control"] == "no-store"
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_answers_are_append_only(served: Served, folder: Path) -> None:
    browser = served.browser()
    browser.answer(0)
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        for statement in (
            "UPDATE answers SET choice = 2",
            "DELETE FROM answers",
            "DELETE FROM readers",
            "UPDATE study SET study_id = ''",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                db.execute(statement)


@pytest.mark.parametrize(
    "statement, rule",
    [
        ("UPDATE answers SET choice = 7", "none of the choices"),
        ("UPDATE answers SET item = item + 1", "another trial than the order's"),
        ("UPDATE answers SET trial = 99", "to no trial"),
        ("UPDATE answers SET trial = trial + 1", "to another trial|the answer before it is missing"),
        ("UPDATE answers SET revision = 1", "a revision is missing"),
        ("UPDATE answers SET response_ms = 'x'", "no number"),
        ("UPDATE readers SET slot = 5", "does not fit"),
        ("UPDATE readers SET consent_sha256 = 'x'", "another text"),
        ("UPDATE study SET study_id = 'x'", "another study"),
        ("UPDATE study SET study_sha256 = 'x'", "study.json is not the one"),
        ("UPDATE events SET content = '['", "no JSON"),
        ("DROP TABLE events", "a table is missing"),
        ("PRAGMA user_version = 3", "version"),
    ],
)
def test_answers_that_were_tampered_with(folder: Path, statement: str, rule: str) -> None:
    with Served(folder) as running:
        browser = running.browser()
        browser.answer(0)
        browser.post("/api/event", {"kind": "pause", "client_ms": 1})
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement)
        db.commit()
    study = load_study(folder)
    for read in (read_answers, AnswerBook):
        with pytest.raises(DataError, match=rule):
            read(study)


def test_files_that_are_no_answers(folder: Path) -> None:
    study = load_study(folder)
    assert read_answers(study).answers == ()
    (folder / FILE).write_bytes(b"no database at all" * 100)
    for read in (read_answers, AnswerBook):
        with pytest.raises(DataError):
            read(study)
    (folder / FILE).unlink()
    (folder / FILE).symlink_to(folder / "elsewhere")
    with pytest.raises(DataError, match="plain file"):
        AnswerBook(study)


def test_code_names(folder: Path) -> None:
    study = load_study(folder)
    with contextlib.closing(AnswerBook(study)) as book:
        assert check_codes((), study, book) == ("reader-1",)
        for wrong in ("", "a b", "é", "x" * 41, "<b>", "a/b"):
            with pytest.raises(ConfigError, match="a code name is"):
                check_codes((wrong,), study, book)
        with pytest.raises(ConfigError, match="twice"):
            check_codes(("A", "A"), study, book)
        with pytest.raises(ConfigError, match="made for 2 readers"):
            check_codes(("A", "B", "C"), study, book)
        book.register("A", None, "")
        assert check_codes((), study, book) == ("A",)
        with pytest.raises(ConfigError, match="1 are registered"):
            check_codes(("B", "C"), study, book)
        book.register("B", None, "")
        with pytest.raises(LookupError):
            book.register("C", None, "")


def test_ports() -> None:
    with pytest.raises(ConfigError), open_port(70_000):
        pass
    with (
        open_port(0) as taken,
        pytest.raises(EnvironmentProblem, match="cannot be had"),
        open_port(taken.getsockname()[1]),
    ):
        pass


class Command:
    """`lesionaug study serve` as a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "lesionaug", "study", "serve", str(folder), "--no-browser", *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if "Ctrl-C" in line:  # the last of them
                break
        links = re.findall(r"^(\S+): http://127\.0\.0\.1:(\d+)/#t=(\S+)$", "".join(self.lines), re.M)
        assert links, self.process.stderr.read()
        self.tokens = {code: token for code, _, token in links}
        self.port = int(links[0][1])

    def browser(self, code: str) -> Browser:
        browser = Browser(self.port)
        assert browser.post("/api/open", {"token": self.tokens[code]})[0] == 200
        assert browser.post("/api/claim", {"tab": browser.tab})[0] == 200
        return browser

    def end(self, sign: int) -> tuple[int, str, str]:
        self.process.send_signal(sign)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def test_killed_in_the_middle_nothing_is_lost_or_doubled(made: Path) -> None:
    folder = small_study(made.parent, name=f"long-{os.getpid()}", num_real=19, repeats=1.0).folder
    study = load_study(folder)
    acknowledged = []
    for round_ in range(3):
        running = Command(folder, "--reader", "A", "--reader", "B")
        browser = running.browser("A")
        if round_ == 0:
            assert browser.post("/api/register", {"agreed": True})[0] == 200
        killer, first = threading.Timer(0.02, running.process.kill), len(acknowledged)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                shown = browser.get("/api/trial")[1]
                assert shown["trial"] in (len(acknowledged), len(acknowledged) + 1)
                if shown["trial"] > len(acknowledged):
                    acknowledged.append(shown["trial"] - 1)  # was saved, though the answer got lost with the server
                if browser.answer(shown)[0] == 200:
                    acknowledged.append(shown["trial"])
                if len(acknowledged) == first + 3:
                    killer.start()  # SIGKILL while further answers come in
        killer.join()
        assert running.process.wait(30) == -signal.SIGKILL
        running.process.stdout.close()
        running.process.stderr.close()
    saved = [answer.trial for answer in read_answers(study).answers]
    assert acknowledged
    assert saved == list(range(len(saved)))
    assert acknowledged == list(range(len(acknowledged)))
    assert len(saved) - len(acknowledged) in (0, 1)


def test_enter_prints_new_links(folder: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "lesionaug", "study", "serve", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        assert "Enter prints new ones" in process.stdout.readline()
        os.write(ours, b"\n")
        second = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert first.partition("#")[0] == second.partition("#")[0] != ""
    assert first != second
    assert process.returncode == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_cleanly(folder: Path, sign: int) -> None:
    running = Command(folder)
    assert list(running.tokens) == ["reader-1"]
    browser = running.browser("reader-1")
    assert browser.post("/api/register", {"agreed": True})[0] == 200
    assert browser.answer(0)[0] == 200
    other = subprocess.run(
        [sys.executable, "-m", "lesionaug", "study", "serve", str(folder)], capture_output=True, text=True, timeout=60
    )
    assert other.returncode == 2
    assert "the study is being served by another process" in other.stderr
    assert "Enter" not in "".join(running.lines)  # nobody types here
    code, out, err = running.end(sign)
    assert (code, err) == (0, "")
    assert f"Stopped; 1 answers are saved in {folder}" in out
    assert running.tokens["reader-1"] not in out


def test_a_folder_that_cannot_be_written(folder: Path, capsys, monkeypatch) -> None:
    def refuse(*_, **__):
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    monkeypatch.setattr(AnswerBook, "_make", refuse)
    with pytest.raises(SystemExit) as exited:
        main(["study", "serve", str(folder), "--no-browser"])
    assert exited.value.code == EnvironmentProblem.exit_code
    assert "See that the study's folder can be written" in capsys.readouterr().err
