"""The CPU kernels under the address and undefined-behaviour sanitizers. Long, so `make test-full` only."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY
from tests.test_build import build

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]


def runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc's sanitizer runtimes")
def test_the_operator_tests_pass_under_the_sanitizers(tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONAUG_SANITIZE", "ON")
    code, output, _ = build(tmp_path, cuda="OFF")
    assert code == 0, output[-3000:]
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython's own
        # -S keeps an editable installation's import hook away, so that the sanitized module is the one imported.
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "unpacked"), *site.getsitepackages()]),
    }
    check = "import lesionaug._native as n; print(n.__file__)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", check], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in found.stdout
    shutil.copytree(REPOSITORY / "tests", tmp_path / "tests")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("-m", "not gpu and not full", "-k", "not emulated and not more_threads"),
            *("tests/test_resample.py", "tests/test_cpu_paths.py", "tests/test_gradients.py"),
            *("tests/test_plan.py", "tests/test_batches.py"),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "runtime error" not in done.stdout + done.stderr
    assert "passed" in done.stdout
