"""Imports point one way, the surface is small, and importing is light."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys

import pytest

import lesionaug as la
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "lesionaug"
EXTRAS = [
    "cyclopts",
    "highdicom",
    "jinja2",
    "matplotlib",
    "nibabel",
    "PIL",
    "pydantic",
    "pydicom",
    "rich",
    "safetensors",
]
EXTRAS += ["scipy", "sklearn", "statsmodels"]
# Which rooms a room may import; the modules of the package's top level have a row each.
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "data": {"errors", "settings"},
    "augment": {"data", "errors"},
    "models": {"errors"},
    "training": {"models", "augment", "data", "errors"},
    "evaluation": {"models", "augment", "data", "errors"},
    "environment": {"augment"},
    "experiment": {"training", "evaluation", "models", "augment", "data", "errors", "environment", "settings"},
    "study": {"experiment", "evaluation", "augment", "data", "errors"},
    "cli": {"study", "experiment", "training", "evaluation", "models", "augment", "data", "errors", "environment"},
    "__main__": {"cli"},
}


def imports():
    """(module, imported room, line) of every import of the package by itself, lazily written ones included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name == "__init__.py" and len(relative.parts) == 1:
            continue
        room = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}:{node.lineno}: imports are absolute here"
                if node.module == "lesionaug":
                    names = [alias.name for alias in node.names]
                elif node.module and node.module.startswith("lesionaug."):
                    names = [node.module.split(".")[1]]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lesionaug.")]
            for name in names:
                yield str(relative), room, name, node.lineno


def test_imports_point_one_way():
    seen = set()
    for file, room, name, line in imports():
        if name in ("__version__", "_native") or name == room:
            continue
        seen.add(room)
        assert name in ALLOWED[room], (
            f"lesionaug/{file}:{line} imports {name}; {room} may import {sorted(ALLOWED[room])}"
        )
    assert {"cli", "experiment", "training", "augment"} <= seen, "the test looked at nothing"


def test_every_room_is_known():
    rooms = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(ALLOWED)


def test_the_public_surface():
    assert set(la.__all__) == {
        "AugmentationParams",
        "AugmentationPlan",
        "AugmentedBatches",
        "RoiBatch",
        "__version__",
        "augment",
        "doctor",
        "load_rois",
        "originals",
        "resample",
    }
    for name in la.__all__:
        assert getattr(la, name) is not None
        assert name in dir(la)
    with pytest.raises(AttributeError, match="no_such_name"):
        la.no_such_name  # noqa: B018


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize(
    "first", ["from lesionaug.augment.plan import originals", "import lesionaug; lesionaug.augment"]
)
def test_augment_is_the_function_whatever_was_imported_first(first):
    then = "from lesionaug.augment import plan\nimport lesionaug\nprint(lesionaug.augment.__name__, plan.__name__)"
    assert run_python(f"{first}\n{then}") == "augment lesionaug.augment.plan\n"


def test_importing_loads_neither_torch_nor_the_extras():
    code = f"import sys, lesionaug; print([m for m in {['torch', 'numpy', *EXTRAS]} if m in sys.modules])"
    assert run_python(code) == "[]\n"


def test_the_backend_needs_torch_and_numpy_only():
    code = (
        f"import sys\nfor m in {EXTRAS}: sys.modules[m] = None\n"
        "import lesionaug as la, torch\n"
        "r = la.RoiBatch.from_images([torch.zeros(40, 40)], [[20, 20]], [10])\n"
        "print(tuple(next(la.AugmentedBatches(r, la.AugmentationPlan(), 8))[0].shape), la.doctor().ok)"
    )
    assert run_python(code) == "(8, 1, 64, 64) True\n"


def test_help_answers_at_once_and_without_torch():
    code = "import sys\nsys.modules['torch'] = None\nfrom lesionaug.cli import main\nmain(['--help'])"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = run_python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for command in ("demo", "phantom", "data", "augment", "run", "report", "doctor"):
        assert command in out
    assert seconds < 0.6, f"--help took {seconds:.2f} s of CPU time (0.2 s on an idle machine; room for a loaded one)"


def test_no_file_of_the_repository_names_a_machine():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    marker = "/wo" + "rk/"
    for name in files.stdout.decode().split("\0"):
        path = REPOSITORY / name
        if name and path.is_file() and path.suffix in (".py", ".md", ".toml", ".txt", ".h", ".cu", ".cpp", ".j2", ""):
            assert marker not in path.read_text(encoding="utf-8", errors="replace"), name
