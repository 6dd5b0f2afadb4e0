"""`python -m tests.fuzz TARGET [FILE ...] [--minutes M]`: fuzz a target, or try it with files alone (README.md)."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from random import Random
from types import ModuleType
from typing import BinaryIO

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MOST_BYTES = 1 << 15
# For libFuzzer: an input that hangs, or makes the process grow; the property's own bounds are tighter.
HANG_SECONDS, MEMORY_MIB = 60, 3000
START_SECONDS = 600.0  # imports and seeds, on a busy machine
PROCESS_SECONDS = 300  # atheris keeps some of what it compares: without end a process reaches its bound by that alone
MOST_FINDINGS = 40
INSTRUMENTED = ["lesionaug", "pydicom", "nibabel", "PIL.PngImagePlugin"]


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target, or all")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to try instead of fuzzing")
    parser.add_argument("--minutes", type=float, default=20.0, help="for each target")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "build" / "fuzz", help="corpora and findings")
    parser.add_argument("--worker", type=int, metavar="SECONDS", help=argparse.SUPPRESS)
    given = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    if given.target not in ("all", *TARGETS):
        parser.error(f"the targets are all, {', '.join(TARGETS)}")
    if given.worker:
        return _work(given.target, given.folder / given.target, given.worker)
    if given.files:
        return _try(given.target, given.files)
    from tests.fuzz.targets import available

    names = available() if given.target == "all" else [given.target]
    bad = [name for name in names if not _fuzz(name, given.folder, given.minutes)]
    print(f"findings in {', '.join(bad)}" if bad else f"no findings in {', '.join(names)}")
    return 1 if bad else 0


def _try(name: str, files: list[Path]) -> int:
    """The check alone, so that a failure comes with its traceback."""
    from tests.fuzz.targets import TARGETS

    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            check, _ = TARGETS[name].prepare(Path(folder))
            check(file.read_bytes())
        print(f"{file}: holds")
    return 0


def _fuzz(name: str, folder: Path, minutes: float) -> bool:
    """Fuzz in processes, a new one after each that died, until the time is over; whether nothing was found."""
    place = folder / name
    for part in ("corpus", "findings"):
        (place / part).mkdir(parents=True, exist_ok=True)
    before = set((place / "findings").iterdir())
    end, starts, inputs_tried, last = time.monotonic() + 60 * minutes, 0, 0, "no run came to its end"
    while (left := int(end - time.monotonic())) > 0 or not starts:
        starts += 1
        seconds = min(max(left, 1), PROCESS_SECONDS)
        command = [sys.executable, "-m", "tests.fuzz", name, "--folder", str(folder), "--worker", str(seconds)]
        begun = time.monotonic()
        with (place / "log.txt").open("ab") as log:
            start = log.tell()
            _run(command, log, seconds + START_SECONDS, place)
        said = (place / "log.txt").read_bytes()[start:].decode(errors="replace").splitlines()
        last = next((line for line in reversed(said) if line.startswith("#")), last)
        inputs_tried += int(last[1:].split()[0]) if last in said else 0
        if len(set((place / "findings").iterdir()) - before) > MOST_FINDINGS:
            break
        if time.monotonic() - begun < seconds:  # it died before its time, or could not start
            time.sleep(1)
    found = sorted(set((place / "findings").iterdir()) - before)
    inputs = [path for path in found if path.suffix != ".txt"]
    if last.startswith("#") and " cov: " not in last:
        last = f"no run saw which lines it reached: nothing is instrumented; {last}"
    said_last = " ".join(last.split())[:110]
    print(f"{name}: {len(inputs)} findings, {inputs_tried} inputs, {starts} processes; {said_last}", flush=True)
    for path in inputs:
        print(f"  python -m tests.fuzz {name} {path}", flush=True)
    return not inputs and not last.startswith("no run")


def _run(command: list[str], log: BinaryIO, most_seconds: float, place: Path) -> None:
    """One process; the input that it died or hung on is a finding, whether libFuzzer lived to save it or not."""
    current = place / "current"
    current.unlink(missing_ok=True)
    begun = time.time()
    with (
        tempfile.TemporaryDirectory(prefix="lesionaug-fuzz-", dir=_memory_folder(), ignore_cleanup_errors=True) as work,
        subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=log, env=os.environ | {"LESIONAUG_FUZZ_WORK": work}
        ) as process,
    ):
        while process.poll() is None:
            time.sleep(0.5)
            since = current.stat().st_mtime if current.exists() else begun + START_SECONDS
            if time.time() - since > 2 * HANG_SECONDS or time.time() - begun > most_seconds:
                process.kill()
    if process.returncode and current.exists():
        content = current.read_bytes()
        (place / "findings" / f"died-{hashlib.sha256(content).hexdigest()[:12]}").write_bytes(content)


def _work(name: str, place: Path, seconds: int) -> int:
    """One fuzzing process; what breaks the property is saved and fuzzing goes on, what kills it libFuzzer saves."""
    import atheris

    sys.meta_path.insert(0, _PlainSources())
    # Before anything imports them.
    with atheris.instrument_imports(include=INSTRUMENTED, exclude=["pydicom.sr", "pydicom._dicom_dict"]):
        import nibabel  # noqa: F401
        import PIL.PngImagePlugin  # noqa: F401
        import pydicom.pixels  # noqa: F401

        from tests.fuzz.targets import TARGETS, available

        available()
        target = TARGETS[name]
        folder = Path(os.environ["LESIONAUG_FUZZ_WORK"])  # the parent removes it: libFuzzer ends without a word
        os.environ["XDG_CONFIG_HOME"] = str(folder / "configuration")
        (folder / "work").mkdir()
        check, seeds = target.prepare(folder / "work")
    for seed in seeds:
        (place / "corpus" / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)

    def try_one(data: bytes) -> None:
        (place / "current").write_bytes(data)
        try:
            check(data)
        except Exception as error:
            _save(place / "findings", data, error)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return target.mutate(data, Random(seed))[:most]

    options = [
        str(place / "corpus"),
        f"-max_total_time={seconds}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={MOST_BYTES}",
        f"-artifact_prefix={place / 'findings'}/",
        "-report_slow_units=1000",
        "-print_final_stats=1",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


class _PlainSources(MetaPathFinder):
    """Finds our modules by their files: the finder of an editable installation has loaders that atheris passes over."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of this repository, None for any other and for extension modules."""
        if fullname.split(".")[0] != "lesionaug":
            return None
        place = REPOSITORY.joinpath(*fullname.split("."))
        for file, folders in ((place / "__init__.py", [str(place)]), (place.with_suffix(".py"), None)):
            if file.exists():
                return spec_from_file_location(fullname, file, submodule_search_locations=folders)
        return None


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _save(folder: Path, data: bytes, error: Exception) -> None:
    """One input for each place that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lesionaug" in frame.filename] or frames
    said = f"{type(error).__name__} {own[-1].filename}:{own[-1].lineno}"
    name = hashlib.sha256(said.encode()).hexdigest()[:12]
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text("".join(traceback.format_exception(error))[-20000:])


if __name__ == "__main__":
    sys.exit(main())
