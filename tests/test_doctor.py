"""The doctor finds what is wrong, and says so."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

import lesionaug as la
from lesionaug import environment
from lesionaug.cli import main
from tests.conftest import REPOSITORY


def test_a_sound_installation_is_ok():
    diagnosis = la.doctor()
    assert diagnosis.ok
    text = str(diagnosis)
    assert "a quarter turn is exact" in text
    assert la.__version__ in text


def test_a_wrong_kernel_fails(monkeypatch):
    monkeypatch.setattr(environment, "_kernel_errors", lambda device: (1e-3, True))
    assert not la.doctor().ok
    monkeypatch.setattr(environment, "_kernel_errors", lambda device: (1e-7, False))
    assert "NOT exact" in str(la.doctor())


def test_a_kernel_that_does_not_run_is_reported_not_raised(monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(environment, "_kernel_errors", broken)
    diagnosis = la.doctor()
    assert not diagnosis.ok
    assert "no kernel image" in str(diagnosis)


def test_missing_extras_are_a_warning_with_the_fix(monkeypatch):
    monkeypatch.setattr(environment, "EXTRAS", ("torch", "surely-not-installed"))
    diagnosis = la.doctor()
    assert diagnosis.ok
    assert "surely-not-installed" in str(diagnosis)
    assert "pip install" in str(diagnosis)


def test_whatever_the_full_installation_needs_is_looked_for():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [name for extra in ("full", "study") for name in pyproject["project"]["optional-dependencies"][extra]]
    names = {re.split(r"[<>=]", name)[0].lower() for name in wanted} - {"lesionaug[study]"}
    assert set(environment.EXTRAS) == names


def test_the_command_prints_json_and_exits_with_4_when_something_is_broken(capsys, monkeypatch):
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--json"])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    monkeypatch.setattr(environment, "_kernel_errors", lambda device: (1.0, True))
    with pytest.raises(SystemExit) as done:
        main(["doctor"])
    assert done.value.code == 4
