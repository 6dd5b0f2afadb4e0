"""The reader study in a real browser, answered by keyboard; the whole of it in `make test-full`, a short one always."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionaug.data.provenance import Provenance
from lesionaug.data.synthetic import SyntheticRois, save_synthetic
from lesionaug.study.design import make_study
from lesionaug.study.options import CONSENT_TEXT, StudyOptions
from tests.runs import make_rois, make_store

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of the driver, as it stops
]
WIDE = {"width": 1280, "height": 720}
TABLET = {"width": 820, "height": 1180}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of phantom ROIs, and one of images that pass for synthetic ones."""
    folder = tmp_path_factory.mktemp("stores")
    images = torch.rand((30, 1, 64, 64), generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    made = SyntheticRois(
        images=images,
        labels=torch.arange(30) % 3,
        classes=("cyst", "metastasis", "hemangioma"),
        kind="phantom",
        split=0,
        window_hu=(-160.0, 240.0),
        provenance=Provenance.of(make_rois(seed=9)),
        details={},
    )
    save_synthetic(made, folder / "synthetic")
    return make_store(folder / "rois"), folder / "synthetic"


def new_study(stores: tuple[Path, Path], folder: Path, **options: object) -> Path:
    settings = {"num_real": 4, "num_synthetic": 4, "num_practice": 1, "repeats": 0.0, "num_readers": 3, **options}
    return make_study(stores[0], folder / "study", stores[1], StudyOptions(**settings)).folder  # type: ignore[arg-type]


class Server:
    """`lesionaug study serve` in a process of its own."""

    def __init__(self, study: Path, *codes: str) -> None:
        readers = [word for code in codes for word in ("--reader", code)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lesionaug", "study", "serve", str(study), "--no-browser", *readers],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.links = {}
        assert self.process.stdout is not None
        said = []
        while len(self.links) < len(codes):
            line = self.process.stdout.readline()
            said.append(line)
            assert line, "".join(said)
            if found := re.match(r"(\w+): (http://\S+)", line):
                self.links[found[1]] = found[2]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(study: Path, *codes: str) -> Iterator[Server]:
    server = Server(study, *codes)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def page_of(browser, link: str, size: dict[str, int] = WIDE, *, quiet: bool = True):  # type: ignore[no-untyped-def]
    """A page at a link in a browser of its own; errors of its script fail the test, and so do requests elsewhere."""
    with closing(browser.new_context(viewport=size)) as context:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and "Failed to load" not in message.text
                and "ERR_CONNECTION" not in message.text and errors.append(message.text))  # fmt: skip
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(link)
        yield page
        if quiet:
            assert errors == []
        origin = link.split("#")[0].rstrip("/")
        assert all(url.startswith((origin, "blob:", "data:")) for url in asked), asked


def register(page) -> None:  # type: ignore[no-untyped-def]
    """Consent and display check, by keyboard."""
    register_to_contrast(page)
    page.keyboard.press("1")
    page.wait_for_selector("#part:not([hidden]), #trial:not([hidden])")


def register_to_contrast(page) -> None:  # type: ignore[no-untyped-def]
    """Consent, by keyboard."""
    page.wait_for_selector("#register:not([hidden])")
    page.focus("#years")
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.keyboard.type("radiology")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#contrast:not([hidden])")


def answer_all(page, choose: Callable[[int, str], str], most: int | None = None) -> int:  # type: ignore[no-untyped-def]
    """Answer until the study is done, or so many; `choose(number, question)` gives the key."""
    answered = 0
    while most is None or answered < most:
        page.wait_for_selector("#part:not([hidden]), #trial:not([hidden]), #message:not([hidden])")
        if page.is_visible("#message"):
            assert "Thank you" in page.inner_text("#message")
            return answered
        if page.is_visible("#part"):
            page.keyboard.press("Enter")
            page.wait_for_selector("#trial:not([hidden])")
        before = page.inner_text("#place")
        page.wait_for_selector("#choices[aria-busy=false]")
        page.keyboard.press(choose(answered, page.inner_text("#question")))
        page.wait_for_selector("#confirm:not([disabled])")
        page.keyboard.press("Space")
        page.wait_for_function("before => document.querySelector('#place').textContent !== before", arg=before)
        answered += 1
    return answered


def answers(study: Path, code: str) -> list[tuple[int, str, int, int]]:
    with closing(sqlite3.connect(study / "answers.sqlite3")) as database:
        return database.execute(
            "SELECT trial, task, choice, revision FROM answers JOIN readers USING (reader) WHERE code = ? ORDER BY id",
            (code,),
        ).fetchall()


def test_a_few_images_by_keyboard(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna") as server, page_of(browser, server.links["anna"]) as page:
        assert "#" not in page.url.removesuffix("#")  # the token is gone from the address
        register(page)
        assert "synthetic" not in page.inner_text("#choices") if page.is_visible("#choices") else True
        assert answer_all(page, lambda number, question: "2", most=3) == 3
        page.keyboard.press("Backspace")
        page.wait_for_selector(".choice[aria-pressed=true]")
        page.wait_for_selector("#choices[aria-busy=false]")
        assert page.get_attribute(".choice[aria-pressed=true]", "data-value") == "1"
        page.keyboard.press("3")
        page.keyboard.press("n")
        page.keyboard.type("a note with 1, 2 and p")
        page.keyboard.press("Escape")
        assert "Note written" in page.inner_text("[data-tool=note]")
        page.keyboard.press("Space")
        page.wait_for_function("() => document.querySelector('#note').value === ''")
        assert "written" not in page.inner_text("[data-tool=note]")
    found = answers(study, "anna")
    assert [(trial, choice, revision) for trial, _, choice, revision in found][-1][1:] == (2, 1)
    assert len(found) == 4


@pytest.mark.full
def test_nothing_looks_chosen_before_it_is(browser, stores, tmp_path):
    """Texts on the way, too: of the consent, the part and the phantom."""
    study = new_study(stores, tmp_path, consent=f"Title\nSecond title\n\n{CONSENT_TEXT}\n- one\n- two\n")
    with serving(study, "anna") as server, page_of(browser, server.links["anna"]) as page:
        page.wait_for_selector("#register:not([hidden])")
        told = page.eval_on_selector_all("#consent p", "all => all.map((p) => p.textContent)")
        assert (told[0], told[-1], len(told)) == ("Title\nSecond title", "- one\n- two", 5)
        assert told[1:-1] == [part.replace("\n", " ") for part in CONSENT_TEXT.strip().split("\n\n")]
        register(page)
        page.keyboard.press("Space")
        page.wait_for_selector("#choices[aria-busy=false]")
        assert page.inner_text("#place") == "Part 1 of 2 · image 1 of 9"
        assert page.evaluate("document.activeElement.id") == "question"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "none"
        assert page.locator("[aria-pressed=true]").count() == 0
        page.keyboard.press("Space")
        assert page.inner_text("#trial-fault") == "Choose an answer first"
        page.keyboard.press("Tab")
        page.keyboard.press("Space")  # presses the button that Tab went to
        assert page.get_attribute("[aria-pressed=true]", "data-value") == "0"
        assert page.inner_text("#trial-fault") == ""
        page.keyboard.press("Space")  # and confirms
        page.wait_for_function("() => document.querySelector('#place').textContent === 'Part 1 of 2 · image 2 of 9'")
        answer_all(page, lambda number, question: "1", most=8)
        page.wait_for_selector("#part:not([hidden])")
        assert "“real” means: of the phantom" in page.inner_text("#part-text")
        answer_all(page, lambda number, question: "4", most=1)
        assert page.inner_text("#place") == "Part 2 of 2 · image 2 of 9"
    assert len(answers(study, "anna")) == 10


@pytest.mark.full
def test_a_new_link_in_an_old_tab(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna", "bob") as server, page_of(browser, server.links["anna"], quiet=False) as page:
        register(page)
        page.evaluate("link => { location.hash = link.split('#')[1]; }", server.links["bob"])
        page.wait_for_selector("#register:not([hidden])")
        assert page.inner_text("#reader-code") == "bob"
        page.evaluate("link => { location.hash = link.split('#')[1]; }", server.links["bob"])
        page.wait_for_selector("text=This link does not work")
        page.context.clear_cookies()
        page.reload()
        page.wait_for_selector("text=Your sign-in has ended")
        assert "press Enter where the server runs" in page.inner_text("#message")


@pytest.mark.full
def test_what_is_shown_is_the_image(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna") as server, page_of(browser, server.links["anna"]) as page:
        register(page)
        page.keyboard.press("Space")
        page.wait_for_selector("#choices[aria-busy=false]")
        grab = """() => { const c = document.querySelector('#image');
            return [c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)
                .filter((_, i) => i % 4 === 0)]; }"""
        side, pixels = page.evaluate(grab)
        shown = np.array(pixels, dtype=np.int64).reshape(side, side)
        stored = np.fromfile(study / "images.u16", dtype="<u2").reshape(-1, 64, 64)
        assert side % 64 == 0
        zoom = side // 64
        small = shown[zoom // 2 :: zoom, zoom // 2 :: zoom]
        assert (np.repeat(np.repeat(small, zoom, 0), zoom, 1) == shown).all()  # whole factors, pixels as they are
        grey = np.rint(stored / 65535 * 255).astype(np.int64)
        assert min(abs(grey - small).max(axis=(1, 2))) <= 1
        page.keyboard.press("ArrowLeft")  # a narrower window: more contrast
        assert page.evaluate(grab)[1] != pixels
        page.keyboard.press("r")
        assert page.evaluate(grab)[1] == pixels
        page.keyboard.press("i")
        smooth = np.array(page.evaluate(grab)[1], dtype=np.float64).reshape(side, side)
        assert abs(smooth - shown).max() > 1
        wide = torch.nn.functional.interpolate(
            torch.from_numpy(stored[int(np.argmin(abs(grey - small).max(axis=(1, 2))))].astype(np.float64))[None, None],
            scale_factor=zoom, mode="bicubic", align_corners=False,
        )  # fmt: skip
        expected = np.clip(wide[0, 0].numpy() / 65535 * 255, 0, 255)
        # torch's a is -0.75 and ours -0.5: equal but for that
        assert abs(smooth - expected).mean() < 2


@pytest.mark.full
def test_a_whole_study_by_two_readers_with_the_server_killed_in_the_middle(browser, stores, tmp_path):
    study = new_study(stores, tmp_path, num_real=6, num_synthetic=6, repeats=0.2)
    number = {"anna": 0, "bob": 0}
    with serving(study, "anna", "bob") as server:
        with page_of(browser, server.links["anna"]) as page:
            register(page)
            number["anna"] = answer_all(page, lambda n, question: str(1 + n % 3), most=9)
            page.screenshot(path=tmp_path / "trial.png")
        with page_of(browser, server.links["bob"], TABLET) as page:
            register(page)
            number["bob"] = answer_all(page, lambda n, question: "1", most=5)
            page.wait_for_selector("#choices[aria-busy=false]")
            page.keyboard.press("2")
            server.kill()
            page.keyboard.press("Space")
            page.wait_for_selector("text=The server does not answer")
    assert len(answers(study, "anna")) == 9
    assert len(answers(study, "bob")) == 5
    with serving(study, "anna", "bob") as server:
        for code in ("anna", "bob"):
            with page_of(browser, server.links[code]) as page:
                page.wait_for_selector("#contrast:not([hidden])")  # who has agreed is not asked again
                page.keyboard.press("1")
                number[code] += answer_all(page, lambda n, question: "1" if "real" in question else "3")
    for code in ("anna", "bob"):
        found = answers(study, code)
        assert len(found) == number[code] == len({trial for trial, *_ in found})
        tasks = [task for _, task, *_ in found]
        assert tasks == sorted(tasks)  # all of "class" before "origin"
        assert {choice for _, task, choice, _ in found if task == "origin"} == {1}


@pytest.mark.full
def test_a_second_tab_is_refused_and_a_reload_goes_on(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna") as server, page_of(browser, server.links["anna"], quiet=False) as page:
        register(page)
        answer_all(page, lambda n, question: "1", most=2)
        place = page.inner_text("#place")
        second = page.context.new_page()
        second.goto(page.url)
        second.wait_for_selector("text=Open in another tab")
        page.reload()
        page.wait_for_selector("#contrast:not([hidden])")
        page.keyboard.press("1")
        page.wait_for_selector("#part:not([hidden])")
        page.keyboard.press("Space")
        page.wait_for_selector("#choices[aria-busy=false]")
        assert page.inner_text("#place") == place
        page.close()
        second.click("#message-button")  # the other tab is gone
        second.wait_for_selector("#contrast:not([hidden])")
    assert len(answers(study, "anna")) == 2


@pytest.mark.full
def test_wrong_and_used_links_open_nothing(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna") as server:
        link = server.links["anna"]
        with page_of(browser, link[:-4] + "AAAA", quiet=False) as page:
            page.wait_for_selector("#message:not([hidden])")
            assert not page.is_visible("#register")
        with page_of(browser, link) as page:
            page.wait_for_selector("#register:not([hidden])")
        with page_of(browser, link, quiet=False) as page:
            page.wait_for_selector("#message:not([hidden])")
            assert not page.is_visible("#register")


@pytest.mark.full
@pytest.mark.parametrize("size", [WIDE, TABLET], ids=["1280x720", "tablet"])
def test_every_screen_is_accessible_and_fits(browser, stores, tmp_path, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page, screen: str, fits: bool = True) -> None:  # type: ignore[no-untyped-def]
        found = axe.run(page)
        assert found.violations_count == 0, f"{screen}: {found.generate_report()}"
        wide, high = page.evaluate(
            "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        assert wide <= size["width"], screen
        assert not fits or high <= size["height"] + 2, f"{screen}: {high} of {size['height']} pixels"
        page.screenshot(path=tmp_path / f"{screen}.png")

    study = new_study(stores, tmp_path, back="allow")
    with serving(study, "anna") as server, page_of(browser, server.links["anna"], size) as page:
        page.wait_for_selector("#register:not([hidden])")
        check(page, "register")
        register_to_contrast(page)
        check(page, "contrast")
        page.keyboard.press("Tab")  # the buttons can be reached by those who do not use the digits
        assert page.evaluate("() => document.activeElement.dataset.seen") == "both"
        page.keyboard.press("Enter")
        page.wait_for_selector("#part:not([hidden])")
        check(page, "part")
        page.keyboard.press("Space")
        page.wait_for_selector("#choices[aria-busy=false]")
        check(page, "trial")
        page.keyboard.press("2")
        page.keyboard.press("n")
        check(page, "note", fits=False)
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        check(page, "help")
        page.keyboard.press("Escape")
        page.keyboard.press("p")
        page.wait_for_selector("#pause-dialog[open]")
        assert page.evaluate("() => getComputedStyle(document.querySelector('#image')).visibility") == "hidden"
        check(page, "pause")
        page.keyboard.press("Space")
        page.keyboard.press("Space")
        answer_all(page, lambda n, question: "1")
        check(page, "done")


@pytest.mark.full
def test_another_readers_link_in_a_second_tab_ends_the_first(browser, stores, tmp_path):
    """They share the cookie: what the first reader answers must not become the second's."""
    study = new_study(stores, tmp_path)
    with serving(study, "anna", "bert") as server, page_of(browser, server.links["anna"], quiet=False) as page:
        register(page)
        answer_all(page, lambda n, question: "1", most=2)
        assert page.inner_text("#who") == "Reader anna"
        other = page.context.new_page()
        other.goto(server.links["bert"])
        register(other)
        answer_all(other, lambda n, question: "2", most=1)
        other.close()
        page.wait_for_selector("#choices[aria-busy=false]")
        page.keyboard.press("3")
        page.keyboard.press("Space")
        page.wait_for_selector("text=Your sign-in has ended")
    assert (len(answers(study, "anna")), len(answers(study, "bert"))) == (2, 1)


@pytest.mark.full
def test_the_last_answer_can_be_changed_at_the_end(browser, stores, tmp_path):
    study = new_study(stores, tmp_path, back="allow")
    with serving(study, "anna") as server, page_of(browser, server.links["anna"]) as page:
        register(page)
        total = answer_all(page, lambda n, question: "1")
        page.click("#message-button")
        page.wait_for_selector("#choices[aria-busy=false]")
        page.keyboard.press("2")
        page.keyboard.press("Space")
        page.wait_for_selector("text=Thank you")
    given = answers(study, "anna")
    assert len(given) == total + 1
    assert given[-1][0] == given[-2][0]
    assert given[-1][3] == 1


@pytest.mark.full
def test_pauses_and_hidden_pages_are_taken_out_of_the_time(browser, stores, tmp_path):
    study = new_study(stores, tmp_path)
    with serving(study, "anna") as server, page_of(browser, server.links["anna"]) as page:
        register(page)
        page.keyboard.press("Space")
        page.wait_for_selector("#choices[aria-busy=false]")
        time.sleep(0.5)
        page.keyboard.press("p")
        time.sleep(2.0)
        page.keyboard.press("p")
        time.sleep(0.5)
        page.keyboard.press("1")
        page.keyboard.press("Space")
        page.wait_for_selector("#confirm[disabled]")
    with closing(sqlite3.connect(study / "answers.sqlite3")) as database:
        response, paused, pauses = database.execute("SELECT response_ms, paused_ms, num_pauses FROM answers").fetchone()
    assert 800 < response < 2000
    assert 1900 < paused < 3500
    assert pauses == 1
