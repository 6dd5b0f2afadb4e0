"""The report in a real browser: it shows, and asks the network for nothing. `make test-full` only."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --hide-scrollbars"

pytestmark = [pytest.mark.full, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")]


def browse(tmp_path, *options):
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *QUIET.split(), profile, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def test_the_report_shows_in_a_browser_and_asks_for_nothing(tmp_path):
    from tests.test_cli import lesionaug

    done = lesionaug("demo", "out", "--preset", "tiny", "--lesions", "5", "5", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "run" / "report.html").as_uri()
    log = tmp_path / "net.json"
    dom = browse(tmp_path, f"--log-net-log={log}", "--dump-dom", page).stdout
    assert "Phantom data: synthetic, not patients" in dom
    assert dom.count("<img") + dom.count("<svg") >= 5
    hosts = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text()))
    own = ("google.com", "googleapis.com", "gvt1.com")  # Chromium's own, whatever page it shows
    assert not [host for host in hosts if not host.endswith(own)]
    browse(tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,5000", page)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    rows = pixels.reshape(50, 100, 1200).std(axis=(1, 2))
    assert (rows > 1).mean() > 0.8, "most of the page is empty"
