"""Every way to build: CUDA, no CUDA, and a CUDA source that does not compile. Long, so `make test-full` only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
SOURCES = ["CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "csrc", "lesionaug", "tests"]
NVCC = shutil.which("nvcc")


def build(tmp_path, *, cuda, archs="90", with_nvcc=True, change=None):
    """Build a wheel of a copy of the sources; returns (exit code, output, names of the wheel's files)."""
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        path = REPOSITORY / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, source / name)
    if change is not None:
        change(source)
    environment = {**os.environ, "LESIONAUG_CUDA": cuda, "LESIONAUG_ARCHS": archs}
    environment.pop("CUDACXX", None)
    if not with_nvcc:
        environment["PATH"] = os.pathsep.join(
            folder
            for folder in os.environ["PATH"].split(os.pathsep)
            if not os.path.exists(os.path.join(folder, "nvcc"))
        )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-v", "-w", str(tmp_path / "wheel"), str(source)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    wheels = list((tmp_path / "wheel").glob("*.whl"))
    names = zipfile.ZipFile(wheels[0]).namelist() if wheels else []
    return done.returncode, done.stdout + done.stderr, names


def native_attributes(tmp_path):
    """What the wheel's module says of itself, in a process without a driver."""
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    unpacked = str(tmp_path / "unpacked")
    code = f"import sys; sys.path.insert(0, {unpacked!r})\nfrom lesionaug import _native; print(_native.cuda_archs)"
    module = next((tmp_path / "unpacked" / "lesionaug").glob("_native*.so"))
    linked = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    archs = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    return archs.strip(), linked


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH")
def test_auto_builds_cuda_for_all_major_architectures_and_links_nothing_of_it(tmp_path):
    code, output, names = build(tmp_path, cuda="AUTO", archs="")
    assert code == 0, output[-3000:]
    archs, linked = native_attributes(tmp_path)
    assert archs == "all-major"
    for library in ("libcuda", "libcudart", "libtorch", "libgomp", "libc10"):
        assert library not in linked
    assert not any("emulated" in name or name.startswith("tests/") for name in names)
    assert any(name.endswith("py.typed") for name in names)
    assert any(name.endswith("report.html.j2") for name in names)


def test_auto_without_nvcc_builds_for_the_cpu_and_says_so(tmp_path):
    code, output, _ = build(tmp_path, cuda="AUTO", with_nvcc=False)
    assert code == 0, output[-3000:]
    assert "building for the CPU only" in output
    assert native_attributes(tmp_path)[0] == ""


def test_on_without_nvcc_is_an_error(tmp_path):
    code, output, _ = build(tmp_path, cuda="ON", with_nvcc=False)
    assert code != 0
    assert "put nvcc on the PATH" in output


def test_off_builds_for_the_cpu(tmp_path):
    code, output, _ = build(tmp_path, cuda="OFF")
    assert code == 0, output[-3000:]
    assert native_attributes(tmp_path)[0] == ""


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH")
def test_a_cuda_source_that_does_not_compile_is_an_error(tmp_path):
    def spoil(source):
        path = source / "csrc" / "plan_cuda.cu"
        path.write_text(path.read_text() + "\nthis is no CUDA;\n")

    code, _, names = build(tmp_path, cuda="AUTO", change=spoil)
    assert code != 0
    assert names == []


def test_a_wrong_setting_is_an_error(tmp_path):
    code, output, _ = build(tmp_path, cuda="MAYBE")
    assert code != 0
    assert "must be AUTO, ON or OFF" in output
