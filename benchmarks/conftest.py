"""Timing, and the file of results: benchmarks/results/<device>.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

import lesionaug as la
from benchmarks.rivals import RIVALS
from benchmarks.sources import RESULTS, cuda_hash, source_hash
from benchmarks.table import FLOOR, table, text
from lesionaug.augment import native


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu or cuda; cuda fails without a GPU")


@pytest.fixture(scope="session")
def device(request):
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda, but torch finds no CUDA device")
    return device


def pytest_generate_tests(metafunc):
    """On a GPU, what asks for `path` runs once for each implementation of the operator."""
    if "path" in metafunc.fixturenames:
        paths = native.CUDA_PATHS if metafunc.config.getoption("--device") == "cuda" else ("cpu",)
        metafunc.parametrize("path", paths, indirect=True)


@pytest.fixture
def path(request, device, monkeypatch):
    """The implementation that resamples."""
    if device.type == "cuda":
        current = torch.device("cuda", torch.cuda.current_device())
        monkeypatch.setattr(native.backend(current), "path", request.param)
    return request.param


@pytest.fixture
def timed(benchmark, device):
    """Time a call, the GPU awaited, and note what it makes."""

    def run(call, *, outputs, size, **notes):
        def awaited():
            result = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.extra_info.update(outputs=outputs, bytes_written=4 * outputs * size * size, **notes)
        awaited()
        benchmark.pedantic(awaited, rounds=5, iterations=1, warmup_rounds=1)

    return run


def machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def slug(device_name: object) -> str:
    """Of a machine's device, for the name of its file of results."""
    return re.sub(r"[^a-z0-9]+", "-", str(device_name).lower()).strip("-")


def commit() -> str:
    """Of the checkout, "+" behind it where something was changed since; LESIONAUG_COMMIT where there is no git."""
    if "LESIONAUG_COMMIT" in os.environ:
        return os.environ["LESIONAUG_COMMIT"]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except OSError:
        return ""


def pytest_configure(config):
    if config.getoption("--device", "cpu") == "cpu":
        return
    if not commit():
        pytest.exit("this is no git checkout: say which commit it is, LESIONAUG_COMMIT=... make gpu", returncode=1)
    if native.native_module.cuda_sha256 != cuda_hash():
        pytest.exit("csrc/ has changed since the kernels were built: install again, as `make gpu` does", returncode=1)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1) if found else platform.machine()


def pytest_sessionfinish(session, exitstatus):
    benchmarks = getattr(getattr(session.config, "_benchmarksession", None), "benchmarks", [])
    if not benchmarks:
        return
    device = torch.device(session.config.getoption("--device"))
    about = machine(device)
    rows = {}
    for entry in benchmarks:
        info = dict(entry.extra_info)
        seconds = entry.stats.median
        rows[entry.name.removeprefix("test_").removesuffix("[cpu]")] = {
            "median_s": seconds,
            "min_s": entry.stats.min,
            "max_s": entry.stats.max,
            "outputs_per_s": info["outputs"] / seconds,
            "gb_per_s_written": info["bytes_written"] / seconds / 1e9,
            **{key: value for key, value in info.items() if key not in ("outputs", "bytes_written")},
        }
    found = {
        "lesionaug": la.__version__,
        "csrc_sha256": source_hash(),
        "cuda_sha256": cuda_hash() if device.type == "cuda" else None,  # what ran
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        **about,
        "rivals_missing": sorted({rival.name for rival in RIVALS if not rival.installed}),
        "results": rows,
    }
    print(f"\n{about['device']}, {about['threads']} threads, torch {about['torch']}\n")
    if FLOOR in rows:
        print(text(table(found)) + "\n")
    for name, row in rows.items():
        more = f"  {row['over_forward']:.1f} forward passes" if "over_forward" in row else ""
        print(f"{name:44} {row['median_s'] * 1e3:10.2f} ms {row['outputs_per_s']:12,.0f} outputs/s{more}")
    whole = [Path(path).resolve() for path in session.config.args] == [Path(__file__).resolve().parent]
    if exitstatus != 0 or session.config.option.keyword or not whole or FLOOR not in rows:
        print("not written to benchmarks/results: this was a part, or something failed")
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{slug(about['device'])}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to benchmarks/results/{path.name}")
