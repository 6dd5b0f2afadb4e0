"""The study's server: one page on the loopback interface, and an answer on the disk before the next image is sent.

It never opens the truth file. What is asked for is checked here, before anything looks at it; what readers may do is
said in desk.py.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import socket
import sqlite3
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lesionaug.data.files import locked
from lesionaug.errors import ConfigError, EnvironmentProblem
from lesionaug.study.answers import IMAGE_SENT, Answer, AnswerBook, disk_advice, now_utc
from lesionaug.study.desk import LEASE_SECONDS, Desk, Refusal
from lesionaug.study.files import Study, load_study

HOST = "127.0.0.1"
MAX_BODY = 16 << 10
MAX_CODE = 40
_MAX_NOTE, _MAX_SPECIALITY, _MAX_KIND = 2000, 100, 40
_MAX_MS = 1e9
_MAX_CONNECTIONS = 512
_PAGE = Path(__file__).parent / "page"
_MEDIA = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_Handler = Callable[[Desk, Request], Awaitable[Response]]


def _cookie(desk: Desk, request: Request) -> str:
    return request.cookies.get(desk.cookie, "")


def _tab(request: Request) -> str:
    return request.headers.get("x-tab", "")


def _code(request: Request) -> str:
    """The reader that the page believes to be at."""
    return unquote(request.headers.get("x-reader", ""))


async def _open(desk: Desk, request: Request) -> Response:
    body = await _body(request, {"token"})
    token = _text(body, "token", 200)
    cookie = desk.open(token)
    response = JSONResponse({"reader": desk.sittings[cookie].code})
    response.set_cookie(desk.cookie, cookie, path="/", httponly=True, samesite="strict")
    return response


async def _study(desk: Desk, request: Request) -> Response:
    sitting = desk.sitting(_cookie(desk, request), _code(request))
    reader = desk.book.reader(sitting.code)
    design = desk.study.design
    shown = {
        "tasks": list(design.tasks),
        "order": design.order,
        "scale": design.scale,
        "classes": list(design.classes),
        "num_items": design.num_items,
        "num_practice": design.num_practice,
        "back": design.back,
        "size": design.size,
        "num_levels": design.num_levels,
        "window_hu": list(design.window_hu),
        "value_range": [0, 65535],
    }
    return JSONResponse(
        {
            "title": desk.study.title,
            "kind": desk.study.kind,
            "design": shown,
            "display": dict(desk.study.display),
            "consent": desk.study.consent,
            "reader": {"code": sitting.code, "registered": reader is not None},
            "progress": desk.progress(reader),
            "keys": {task: desk.choices(task) for task in design.tasks},
        }
    )


async def _register(desk: Desk, request: Request) -> Response:
    body = await _body(request, {"years", "speciality", "agreed"})
    sitting = desk.sitting(_cookie(desk, request), _code(request))
    if body.get("agreed") is not True:
        raise Refusal(400, "Nobody takes part without agreeing", "Agree to the text, or close the page")
    years = body.get("years")
    if years is not None:
        years = _count(body, "years", 0, 80)
    speciality = _text(body, "speciality", _MAX_SPECIALITY, default="")
    if desk.book.reader(sitting.code) is not None:
        raise Refusal(409, "You are registered already", "Go on with the study")
    try:
        desk.book.register(sitting.code, years, speciality)
    except LookupError:
        raise Refusal(409, "Every place of this study is taken", "Make a study with more readers") from None
    return JSONResponse({"ok": True})


async def _claim(desk: Desk, request: Request) -> Response:
    body = await _body(request, {"tab"})
    tab = _text(body, "tab", 64)
    if len(tab) < 8 or not tab.isascii() or not tab.isprintable():
        raise Refusal(400, "tab must be 8 .. 64 printable ASCII characters", "Load the page again")
    desk.claim(desk.sitting(_cookie(desk, request), _code(request)), tab)
    return JSONResponse({"ok": True, "lease_seconds": LEASE_SECONDS})


async def _release(desk: Desk, request: Request) -> Response:
    await _body(request, set())
    sitting = desk.sitting(_cookie(desk, request), _code(request))
    desk.hold(sitting, _tab(request))
    sitting.tab = None
    return JSONResponse({"ok": True})


async def _beat(desk: Desk, request: Request) -> Response:
    await _body(request, set())
    desk.hold(desk.sitting(_cookie(desk, request), _code(request)), _tab(request))
    return JSONResponse({"ok": True})


async def _trial(desk: Desk, request: Request) -> Response:
    sitting, reader = desk.at_work(_cookie(desk, request), _tab(request), _code(request))
    place, trials = desk.place(sitting, reader), desk.trials(reader)
    can_go_back = desk.may_go_back(sitting, reader, place)
    if place == len(trials):
        return JSONResponse({"done": True, "progress": desk.progress(reader), "can_go_back": can_go_back})
    trial = trials[place]
    last = desk.book.last(reader.reader, place)
    return JSONResponse(
        {
            "trial": place,
            "task": trial.task,
            "image": desk.image_name(sitting, place),
            "practice": trial.practice,
            "number": place + 1,
            "of": len(trials),
            "choices": desk.choices(trial.task),
            "can_go_back": can_go_back,
            "previous": None if last is None else {"choice": last[1], "note": last[2]},
            "progress": desk.progress(reader),
        }
    )


async def _image(desk: Desk, request: Request) -> Response:
    sitting, reader = desk.at_work(_cookie(desk, request), _tab(request), _code(request))
    place, trials = desk.place(sitting, reader), desk.trials(reader)
    wanted = desk.image_name(sitting, place).encode()
    if place == len(trials) or not hmac.compare_digest(wanted, request.path_params["name"].encode()):
        raise Refusal(404, "There is no such image now", "Ask for the trial again")
    pixels = desk.study.images[trials[place].item].tobytes()
    desk.book.note(reader.reader, sitting.name, IMAGE_SENT, {"trial": place}, 0.0)
    return Response(pixels, media_type="application/octet-stream")


async def _answer(desk: Desk, request: Request) -> Response:
    allowed = {"trial", "choice", "note", "response_ms", "paused_ms", "num_pauses", "display", "revision"}
    body = await _body(request, allowed)
    sitting, reader = desk.at_work(_cookie(desk, request), _tab(request), _code(request))
    place, trials = desk.place(sitting, reader), desk.trials(reader)
    number = _count(body, "trial", 0, 1 << 31)
    if number != place or place == len(trials):
        raise Refusal(
            409, "This is not the image that is asked about now", "Ask for the trial again: what was answered is saved",
            {"trial": place if place < len(trials) else None},
        )  # fmt: skip
    trial = trials[place]
    choice = _count(body, "choice", -1, 1 << 31)
    if choice not in desk.study.design.choices(trial.task):
        raise Refusal(400, "This is none of the choices", "Choose one of those that are shown")
    last = desk.book.last(reader.reader, place)
    revision = 0 if last is None else last[0] + 1
    if body.get("revision") is not None and _count(body, "revision", 0, 1 << 31) != revision:
        raise Refusal(409, f"The next answer to this is number {revision}", "Ask for the trial again", {"trial": place})
    display = body.get("display")
    if not isinstance(display, dict) or set(display) != {"centre", "width", "zoom", "smooth"}:
        raise Refusal(400, "display must hold centre, width, zoom and smooth", "Load the page again")
    smooth = display["smooth"]
    if not isinstance(smooth, bool):
        raise Refusal(400, "smooth must be true or false", "Load the page again")
    desk.book.add(
        Answer(
            reader=reader.reader,
            trial=place,
            task=trial.task,
            item=trial.item,
            revision=revision,
            choice=choice,
            note=_text(body, "note", _MAX_NOTE, default=""),
            response_ms=_number(body, "response_ms", 0, _MAX_MS),
            paused_ms=_number(body, "paused_ms", 0, _MAX_MS),
            num_pauses=_count(body, "num_pauses", 0, 1 << 31),
            window_centre=_number(display, "centre", -1e6, 1e6),
            window_width=_number(display, "width", 0, 1e6),
            zoom=_count(display, "zoom", 1, 64),
            smooth=smooth,
            server_utc=now_utc(),
            session=sitting.name,
        )
    )
    sitting.back = False
    return JSONResponse({"ok": True, "progress": desk.progress(reader)})


async def _back(desk: Desk, request: Request) -> Response:
    await _body(request, set())
    sitting, reader = desk.at_work(_cookie(desk, request), _tab(request), _code(request))
    if not desk.may_go_back(sitting, reader, desk.place(sitting, reader)):
        raise Refusal(409, "There is no way back from here", "Answer the image that is shown")
    sitting.back = True
    return JSONResponse({"ok": True, "trial": desk.place(sitting, reader)})


async def _event(desk: Desk, request: Request) -> Response:
    body = await _body(request, {"kind", "content", "client_ms"})
    sitting, reader = desk.at_work(_cookie(desk, request), _tab(request), _code(request))
    content = body.get("content", {})
    if not isinstance(content, dict):
        raise Refusal(400, "content must be an object", "Load the page again")
    kind = _text(body, "kind", _MAX_KIND)
    if not (kind.isascii() and kind.replace("-", "").isalnum()):
        raise Refusal(400, "kind must be letters, digits and dashes", "Load the page again")
    desk.book.note(reader.reader, sitting.name, kind, content, _number(body, "client_ms", 0, 1e15))
    return JSONResponse({"ok": True})


async def _body(request: Request, allowed: set[str]) -> dict[str, Any]:
    """The JSON object that a request carries, read to at most `MAX_BODY` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "A request must be JSON", "Load the page again")
    too_long = Refusal(413, f"A request has at most {MAX_BODY:,} bytes", "Write a shorter note")
    stated = request.headers.get("content-length", "0")
    if not stated.isascii() or not stated.isdigit() or len(stated) > 9 or int(stated) > MAX_BODY:
        raise too_long
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise too_long
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # half surrogates, 1e999
    except (ValueError, RecursionError):
        raise Refusal(400, "The request is no valid JSON", "Load the page again") from None
    if not isinstance(value, dict):
        raise Refusal(400, "The request must be a JSON object", "Load the page again")
    if set(value) - allowed:
        raise Refusal(400, "The request holds something that is not asked for", "Load the page again")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _text(body: Mapping[str, Any], key: str, most: int, default: str | None = None) -> str:
    value = body.get(key, default)
    if not isinstance(value, str) or len(value) > most or (default is None and not value):
        raise Refusal(400, f"{key} must be text of at most {most} characters", "Write it shorter")
    if any(ord(letter) < 32 and letter not in "\n\t\r" for letter in value):
        raise Refusal(400, f"{key} must hold no control characters", "Write it anew")
    return value


def _count(body: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refusal(400, f"{key} must be a whole number of {low} .. {high}", "Load the page again")
    return value


def _number(body: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = body.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise Refusal(400, f"{key} must be a number of {low:g} .. {high:g}", "Load the page again")
    return float(value) if math.isfinite(value) else low


class _Guard:
    """Refuses requests that come from elsewhere, before anything looks at them; puts the headers on every answer.

    Against DNS rebinding the host must be the loopback's own name; against other sites in the same browser, so must
    the origin.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["type"] != "http":
            return
        refusal = self._refusal(Headers(scope=scope))
        app = self.app if refusal is None else _said(refusal)
        await app(scope, receive, with_headers)

    def _refusal(self, headers: Headers) -> Refusal | None:
        host = headers.getlist("host")
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return Refusal(400, "The study is not served under this name", "Open the link that the server printed")
        site = headers.get("sec-fetch-site", "none")
        if headers.get("origin", f"http://{host[0]}") != f"http://{host[0]}" or site not in ("same-origin", "none"):
            return Refusal(403, "The request comes from another page", "Open the link that the server printed")
        return None


def _said(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.said, status_code=refusal.status)


def build_app(desk: Desk, port: int) -> ASGIApp:
    """The server as an ASGI application for one port."""

    def route(path: str, handler: _Handler, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await handler(desk, request)
            except Refusal as refusal:
                return _said(refusal)
            except sqlite3.Error as error:
                return _said(Refusal(503, f"The answer could not be saved ({error})", disk_advice(error)))
            except ClientDisconnect:
                return Response(status_code=400)

        found = Route(path, endpoint, methods=[method])
        found.methods = {method}  # no HEAD beside GET
        return found

    api = [
        route("/api/open", _open, "POST"),
        route("/api/study", _study, "GET"),
        route("/api/register", _register, "POST"),
        route("/api/claim", _claim, "POST"),
        route("/api/release", _release, "POST"),
        route("/api/beat", _beat, "POST"),
        route("/api/trial", _trial, "GET"),
        route("/api/image/{name}", _image, "GET"),
        route("/api/answer", _answer, "POST"),
        route("/api/back", _back, "POST"),
        route("/api/event", _event, "POST"),
    ]
    pages = [_page_route(name, content, media) for name, content, media in _page_files()]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _crash}
    app = Starlette(routes=api + pages, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _Guard(app, port)


def _page_files() -> Iterator[tuple[str, bytes, str]]:
    for file in sorted(_PAGE.iterdir()):
        if file.suffix in _MEDIA and file.is_file():
            yield "" if file.name == "index.html" else file.name, file.read_bytes(), _MEDIA[file.suffix]
    yield "favicon.ico", b"", "image/x-icon"  # browsers ask for one


def _page_route(name: str, content: bytes, media: str) -> Route:
    async def endpoint(_: Request) -> Response:
        return Response(content, status_code=200 if content else 204, headers={"Content-Type": media})

    found = Route(f"/{name}", endpoint, methods=["GET"])
    found.methods = {"GET"}
    return found


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _said(Refusal(405, "This is not how it is asked for", "Load the page again"))
    return _said(Refusal(error.status_code, "There is nothing here", "Open the link that the server printed"))


async def _crash(_: Request, error: Exception) -> Response:
    traceback.print_exception(error)  # to the terminal of whoever serves
    return _said(Refusal(500, "The server failed", "Load the page again; what was answered is saved"))


def check_codes(codes: Sequence[str], study: Study, book: AnswerBook) -> tuple[str, ...]:
    """The code names to be served: those that are given, or else all that are registered, or one.

    Raises:
        ConfigError: A code name that is none, is given twice, or has no slot.
    """
    known = book.codes()
    wanted = tuple(codes) or known or ("reader-1",)
    for code in wanted:
        if not 0 < len(code) <= MAX_CODE or not (code.isascii() and code.replace("-", "").replace("_", "").isalnum()):
            raise ConfigError(
                "--reader", f"a code name is 1 .. {MAX_CODE} letters, digits, - and _, got {code[:60]!r}",
                "Choose a code name, not a person's name",
            )  # fmt: skip
    if len(set(wanted)) != len(wanted):
        raise ConfigError("--reader", "a code name is given twice", "Give every reader another one")
    if len(set(wanted) | set(known)) > len(study.slots):
        raise ConfigError(
            "--reader", f"the study is made for {len(study.slots)} readers, {len(known)} are registered",
            "Serve fewer, or make a study with more --readers",
        )  # fmt: skip
    return wanted


@contextlib.contextmanager
def open_port(port: int) -> Iterator[socket.socket]:
    """A listening socket on the loopback interface; 0 takes a free port.

    Raises:
        ConfigError: The port is no port.
        EnvironmentProblem: It is taken, or not ours to take.
    """
    if not 0 <= port <= 65535:
        raise ConfigError("--port", f"a port lies in 0 .. 65535, got {port}", "Choose 0 for a free one")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, port))
            found.listen(128)
        except OSError as error:
            raise EnvironmentProblem(
                "--port", f"port {port} cannot be had ({error.strerror})", "Choose another, or 0"
            ) from error
        yield found


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The application behind HTTP, silent: what is asked for stands in no log, and no header tells of the machine."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def _on_enter(action: Callable[[], None]) -> None:
    """Act at every line that is typed; a daemon thread's work, for a terminal cannot be waited for otherwise."""
    if sys.stdin is not None and sys.stdin.isatty():
        for _ in sys.stdin:
            action()


@contextlib.contextmanager
def _alone(study: Study) -> Iterator[None]:
    """Hold the study for this process."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(study.folder))
        except ConfigError as error:
            raise ConfigError(
                study.folder.name, "the study is being served by another process", "Use its links, or stop it first"
            ) from error
        yield


def serve_study(
    path: Path,
    codes: Sequence[str] = (),
    port: int = 0,
    announce: Callable[[Mapping[str, str]], None] = lambda links: None,
) -> int:
    """Serve a study until Ctrl-C or SIGTERM.

    Args:
        path: The study's folder.
        codes: Code names of the readers.
        port: Of the loopback interface; 0 takes a free one.
        announce: Called with code name -> link as soon as they work, and again with new ones when Enter is pressed.

    Returns:
        How many answers are saved, of all readers.

    Raises:
        DataError: A study or answers that cannot be read.
        ConfigError: Another process serves it; wrong code names.
        EnvironmentProblem: The folder cannot be written, the port is taken.
    """
    study = load_study(path)
    with _alone(study), contextlib.closing(AnswerBook(study)) as book, open_port(port) as listening:
        wanted, found_port = check_codes(codes, study, book), listening.getsockname()[1]
        desk = Desk(study, book)
        server = http_server(build_app(desk, found_port))

        def print_links() -> None:
            announce({code: f"http://{HOST}:{found_port}/#t={token}" for code, token in desk.renew(wanted).items()})

        with contextlib.suppress(KeyboardInterrupt):
            print_links()
            threading.Thread(target=_on_enter, args=(print_links,), daemon=True).start()
            server.run(sockets=[listening])
        return book.num_saved()
