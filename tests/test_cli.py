"""The command line as a user meets it: the whole path on a small phantom, exit codes, errors without tracebacks."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lesionaug import __version__, cli
from lesionaug.cli import main
from lesionaug.cli.progress import progress
from lesionaug.errors import ConfigError, DataError, EnvironmentProblem, TaskFailed
from lesionaug.experiment import config
from tests.conftest import REPOSITORY
from tests.runs import classic_only


def lesionaug(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "lesionaug", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def test_the_demo_goes_from_phantom_to_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "preset", lambda name: classic_only())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "out", "--preset", "tiny", "--lesions", "4", "4", "4", "--workers", "1"])
    assert caught.value.code in (0, None)
    assert capsys.readouterr().out.strip() == "The report (phantom data, not patients): out/run/report.html"
    page = Path("out/run/report.html").read_text(encoding="utf-8")
    assert "Phantom data: synthetic, not patients" in page
    assert str(tmp_path) not in page
    assert len(list(Path("out/run/models").rglob("predictions.csv"))) == 12  # 6, and 6 of the nested choice
    with pytest.raises(SystemExit) as caught:
        main(["demo", "out", "--lesions", "4", "4", "4", "--seed", "1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: out: holds a demo of another phantom")


@pytest.mark.full
def test_a_demo_goes_on_from_where_it_stood(tmp_path):
    small = ("demo", "out", "--preset", "tiny", "--lesions", "5", "5", "5", "--workers", "1")
    first = lesionaug(*small, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    report = tmp_path / "out" / "run" / "report.html"
    assert first.stdout.strip() == "The report (phantom data, not patients): out/run/report.html"
    page = report.read_text(encoding="utf-8")
    assert "Phantom data: synthetic, not patients" in page
    assert str(tmp_path) not in page
    predictions = {p: p.read_bytes() for p in (tmp_path / "out" / "run" / "models").rglob("predictions.csv")}
    assert len(predictions) == 42  # 6 + 6 of the classic groups, 6 + 6 synthetic, 3 discriminators, 3 BoVW, 12 controls
    stamps = {p: p.stat().st_mtime_ns for p in predictions}

    again = lesionaug(*small, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in predictions} == stamps, "finished models were trained again"

    other = lesionaug(*small, "--seed", "1", cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.startswith("error: out: holds a demo of another phantom")
    for path in (tmp_path / "out" / "run").rglob("*.json"):  # what a run says of itself names no place
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


@pytest.mark.full
def test_the_augmentations_of_one_split_of_a_run(tmp_path):
    (tmp_path / "out").mkdir()
    for command in (
        ("phantom", "out/phantom", "--lesions", "4", "4", "4"),
        ("data", "import", "out/phantom", "out/rois"),
        ("run", "out/rois", "out/run", "--preset", "tiny", "--only", "folds"),
    ):
        assert lesionaug(*command, cwd=tmp_path).returncode == 0
    done = lesionaug(
        *("augment", "out/rois", "fold", "--per-lesion", "2", "--run", "out/run", "--split", "1"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    folds = json.loads((tmp_path / "out/run/folds.json").read_text())["lesions"]
    manifest = (tmp_path / "fold" / "manifest.json").read_text()
    for lesion in folds:
        assert (lesion["lesion_id"] in manifest) == (lesion["fold"] != 1)
    alone = lesionaug("augment", "out/rois", "fold2", "--split", "1", cwd=tmp_path)
    assert alone.returncode == 2
    beyond = lesionaug("augment", "out/rois", "fold2", "--run", "out/run", "--split", "3", cwd=tmp_path)
    assert beyond.returncode == 2
    assert "0 .. 2" in beyond.stderr


def test_the_demo_does_not_write_into_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "rois").mkdir()
    (tmp_path / "rois" / "manifest.json").write_text("{}")
    code, _, err = run(["demo", str(tmp_path / "rois"), "--preset", "tiny"], capsys)
    assert code == 2
    assert "no demo's folder" in err
    assert [p.name for p in (tmp_path / "rois").iterdir()] == ["manifest.json"]
    code, _, err = run(["demo", str(tmp_path / "rois" / "manifest.json")], capsys)
    assert code == 2


def test_a_full_or_forbidden_disk_is_one_line(monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "rois/pixels.safetensors")

    monkeypatch.setattr(cli, "build_app", full)
    code, _, err = run([], capsys)
    assert code == 4
    assert err == "error: rois/pixels.safetensors: No space left on device; what was finished is kept\n"


def test_options_have_no_generated_opposites(capsys):
    for command in ("augment", "run", "demo", "phantom"):
        out = run([command, "--help"], capsys)[1]
        assert "--empty" not in out
        assert "--no-" not in out


BEFORE_THE_FIRST_EXAMPLE = """import numpy as np, sys
slices, centers, diameters, labels = [np.zeros((60, 50))] * 2, [(25, 30)] * 2, [20, 22], ["cyst", "metastasis"]
def train_step(x, label):
    print(tuple(x.shape))
    sys.exit()
"""


def test_the_readmes_python_examples_run():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first, second = (part.split("```")[0] for part in text.split("```python")[1:])
    for code in (BEFORE_THE_FIRST_EXAMPLE + first, second + "print(tuple(x.shape))"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "(64, 1, 64, 64)\n", done.stderr


def run(arguments, capsys):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    captured = capsys.readouterr()
    return done.value.code, captured.out, captured.err


def test_version_and_usage_errors(capsys):
    assert run(["--version"], capsys)[:2] == (0, f"{__version__}\n")
    code, out, err = run(["nonsense"], capsys)
    assert code == 2
    assert "nonsense" in out + err
    code, out, err = run(["run", "only-one-argument"], capsys)
    assert code == 2
    code, out, err = run(["demo", "x", "--preset", "huge"], capsys)
    assert code == 2
    assert "huge" in out + err


@pytest.mark.parametrize(
    ("error", "code"), [(TaskFailed, 1), (ConfigError, 2), (DataError, 3), (EnvironmentProblem, 4)]
)
def test_every_error_has_its_exit_code_and_one_line(monkeypatch, capsys, error, code):
    def broken():
        raise error("slice.dcm", "must hold pixels", "Export it again.")

    monkeypatch.setattr(cli, "build_app", broken)
    assert run([], capsys) == (code, "", "error: slice.dcm: must hold pixels. Export it again.\n")


def test_names_of_others_reach_the_terminal_on_one_line_of_text(monkeypatch, capsys):
    def broken():
        raise DataError("b\udcff.dcm", "ROI 'A\x1b[31mB\nerror: C\ud800\u202eé' must be closed", "Close it")

    monkeypatch.setattr(cli, "build_app", broken)
    assert run([], capsys)[2] == "error: b?.dcm: ROI 'A?[31mB?error: C??é' must be closed. Close it\n"


def test_a_missing_extra_is_named_with_its_fix(monkeypatch, capsys):
    def lacking():
        raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")

    monkeypatch.setattr(cli, "build_app", lacking)
    code, _, err = run([], capsys)
    assert code == 4
    assert err == 'error: pydicom: not installed. Install it with: pip install "lesionaug[full]"\n'


def test_without_cyclopts_the_command_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['cyclopts'] = None; from lesionaug.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert 'pip install "lesionaug[full]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_interruption_is_no_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_app", interrupted)
    code, _, err = run([], capsys)
    assert code == 130
    assert err == "error: interrupted; what was finished is kept\n"


def test_bad_sources_are_data_errors(tmp_path, capsys):
    (tmp_path / "notes.dcm").write_text("no DICOM")
    assert run(["data", "import", str(tmp_path / "missing"), str(tmp_path / "rois")], capsys)[0] == 3
    assert run(["data", "check", str(tmp_path)], capsys)[0] == 3
    assert run(["data", "import", str(tmp_path), str(tmp_path / "rois")], capsys)[0] == 3
    assert not (tmp_path / "rois").exists()
    assert run(["run", str(tmp_path), str(tmp_path / "run")], capsys)[0] == 3
    assert run(["augment", str(tmp_path), str(tmp_path / "out")], capsys)[0] == 3


def test_progress_is_plain_lines_when_nobody_watches(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("Working") as step:
        for i in range(1000):
            step(i, 1000, "")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Working ..."
    assert lines[-1].startswith("Working: done in")
    assert len(lines) < 10


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("Working") as step:
        step(1, 2, "half")
    assert "Working" in stream.getvalue()
    assert "2/2" in stream.getvalue()


def test_doctor_runs_as_a_program(tmp_path):
    done = lesionaug("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True
