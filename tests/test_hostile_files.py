"""Whatever is in a file, it is read or refused with one clear error: nothing runs, hangs, or leads out of its folder.

The mutators and checks are those of `make fuzz` (tests/fuzz), for a moment each; below them is what fuzzing found.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword

from lesionaug.data.folds import load_folds
from lesionaug.data.importer import check_source
from lesionaug.data.options import ImportOptions
from lesionaug.data.own_files import parse_json
from lesionaug.data.provenance import Provenance
from lesionaug.data.store import load_rois, read_manifest, save_rois
from lesionaug.data.synthetic import SyntheticRois, load_synthetic, save_synthetic
from lesionaug.errors import DataError, LesionaugError
from lesionaug.experiment.results import load_info, read_json
from lesionaug.study.files import load_study, load_truth
from lesionaug.training.bovw import load_bovw
from lesionaug.training.checkpoint import Checkpoints, Metrics
from lesionaug.training.classifier import load_classifier
from lesionaug.training.synthesis import load_gan
from tests.answered_studies import make_items, make_study
from tests.conftest import REPOSITORY
from tests.dicom_files import ct_dataset, hu_picture
from tests.fuzz import mutators
from tests.fuzz.mutators import as_bytes
from tests.fuzz.targets import TARGETS, Check
from tests.runs import make_rois

BRIEF = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
MARGINS = ("rtstruct", "seg", "table", "coco", "labelme", "slicer", "aim", "deeplesion")
SLOW = ("run",)  # it makes a run first


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Check, list[bytes]]]:
    """A target's check and seeds."""

    @cache
    def prepare(name: str) -> tuple[Check, list[bytes]]:
        return TARGETS[name].prepare(tmp_path_factory.mktemp(name))

    return prepare


@pytest.mark.parametrize("name", MARGINS)
def test_the_seeds_of_the_fuzz_targets_are_read_as_lesions(name: str, target) -> None:
    check, seeds = target(name)
    assert all(check(seed) for seed in seeds)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n in SLOW)) for n in TARGETS])
@BRIEF
@given(seed=st.integers(0, 2**32), which=st.integers(0, 9), plain=st.booleans())
def test_changed_files_give_a_result_or_one_clear_error(name: str, target, seed: int, which: int, plain: bool) -> None:
    check, seeds = target(name)
    mutate = as_bytes if plain else TARGETS[name].mutate
    check(mutate(seeds[which % len(seeds)], Random(seed)))


@pytest.mark.parametrize("name", [n for n in TARGETS if n not in SLOW])
@BRIEF
@given(share=st.floats(0, 1))
def test_files_cut_short_give_a_result_or_one_clear_error(name: str, target, share: float) -> None:
    check, seeds = target(name)
    check(seeds[0][: int(share * len(seeds[0]))])


# Files of our own


class Store:
    """Some file of ours: where it lies, and what reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Write all of them."""
        folder = self.folder
        save_rois(make_rois()[[0, 1]], folder / "rois")
        images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        known = Provenance.of(make_rois()[[0, 1]])
        made = SyntheticRois(images, torch.arange(2), ("a", "b"), "phantom", 1, (-160.0, 240.0), known, {})
        save_synthetic(made, folder / "made")
        Checkpoints(folder / "checkpoints", {"seed": 1}).save(7, {"w": torch.ones(2)})
        folds = {"schema": 1, "num_folds": 1, "seed": 0}
        folds["lesions"] = [{"lesion_id": "l", "patient_id": "P", "label": "a", "fold": 0}]
        (folder / "folds.json").write_text(json.dumps(folds))
        store = {"manifest_sha256": "0", "classes": ["a"]}
        (folder / "run.json").write_text(json.dumps({"schema": 2, "kind": "phantom", "store": store}))

    def read(self, file: str) -> None:
        """Read what a file belongs to."""
        checkpoints = Checkpoints(self.folder / "checkpoints", {"seed": 1})
        {
            "rois": lambda: load_rois(self.folder / "rois"),
            "made": lambda: load_synthetic(self.folder / "made"),
            "checkpoints": checkpoints.newest,
            "folds.json": lambda: load_folds(self.folder / "folds.json"),
            "run.json": lambda: load_info(self.folder),
        }[file.partition("/")[0]]()


JSON_FILES = (
    "rois/manifest.json",
    "made/manifest.json",
    "checkpoints/step-000000007/state.json",
    "folds.json",
    "run.json",
)
TENSORS = ("rois/pixels.safetensors", "made/images.safetensors", "checkpoints/step-000000007/state.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("whole"))
    made.make()
    for file in JSON_FILES:
        made.read(file)
    return made


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    """A copy to be changed."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return Store(tmp_path / "copy")


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("{", '{"a": 1, "a": 2,', 1),
        lambda text: text.replace("{", '{"extra": NaN,', 1),
        lambda text: text.replace("{", '{"extra": [-Infinity],', 1),
        lambda text: text.replace("{", '{"extra": 1e400,', 1),
        lambda text: text.replace("{", '{"extra": ' + "1" * 5000 + ",", 1),
        lambda text: text.replace("{", '{"extra": ' + "[" * 100_000 + "]" * 100_000 + ",", 1),
        lambda text: "[" * 100_000,
        lambda text: '{"a":' * 100_000,
        lambda text: "[]",
        lambda text: "null",
        lambda text: '"text"',
        lambda text: text + text,
        lambda text: "",
        lambda text: "\0" * 100,
        lambda text: text.replace('"schema": ', '"schema": [[]], "other": ', 1),
        lambda text: (
            text.replace('"version": 1', '"version": 2').replace('"schema": 1', '"schema": 3').replace("2", "9")
        ),
        lambda text: text.replace('"version": 1', '"version": true').replace('"schema":', '"schemas":'),
    ],
)
def test_json_that_we_never_write_is_refused(store: Store, file: str, damage) -> None:
    path = store.folder / file
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError) as caught:
        store.read(file)
    assert str(store.folder) not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("file", "kind"),
    [(file, kind) for file in (*JSON_FILES[:4], *TENSORS) for kind in ("folder", "missing")]
    + [(file, kind) for file in (*JSON_FILES[:2], *TENSORS[:2]) for kind in ("pipe", "link", "device")]
    + [("folds.json", "pipe"), ("folds.json", "device")],  # the user names it, so it may be a link
)
def test_only_plain_files_within_the_folder_are_read(store: Store, file: str, kind: str, tmp_path_factory) -> None:
    path = store.folder / file
    outside = tmp_path_factory.mktemp("outside") / "file"
    path.rename(outside)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError):
        store.read(file)


class Runs:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _pickles(path: Path, folder: Path) -> list[bytes]:
    """What a pickle can come in: bare, as torch saves it, in an npz."""
    torch.save({"images": Runs(path)}, folder / "torch")
    np.savez(folder / "numpy.npz", pixels=np.array([Runs(path)], dtype=object))
    return [pickle.dumps(Runs(path)), (folder / "torch").read_bytes(), (folder / "numpy.npz").read_bytes()]


@pytest.mark.parametrize("file", [*JSON_FILES, *TENSORS])
def test_a_pickle_in_place_of_a_file_never_runs(store: Store, file: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for content in _pickles(ran, tmp_path):
        (store.folder / file).write_bytes(content)
        with pytest.raises(DataError):
            store.read(file)
        if file.endswith(".safetensors"):  # with the SHA-256 that belongs to it
            described = next(p for p in (store.folder / file).parent.glob("*.json"))
            manifest = json.loads(described.read_text())
            manifest.get("pixels", manifest)["sha256"] = hashlib.sha256(content).hexdigest()
            described.write_text(json.dumps(manifest))
            with pytest.raises(DataError):
                store.read(file)
    pickle.loads(_pickles(ran, tmp_path)[0])
    assert ran.exists(), "the pickle does nothing, so the test proves nothing"


@pytest.mark.parametrize("reader", [load_classifier, load_bovw, load_gan])
def test_a_pickle_in_place_of_a_model_never_runs(reader, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    for content in _pickles(ran, tmp_path):
        for name in ("model.json", "model.safetensors", "gan.json", "generator.safetensors"):
            (folder / name).write_bytes(content)
        with pytest.raises(DataError):
            reader(folder)
    assert not ran.exists()


FORBIDDEN = {"eval", "exec", "compile", "__import__"}


def test_no_file_is_unpickled_or_evaluated_anywhere() -> None:
    """`guard.py` unpickles what its own parent sends through a pipe; nothing else does."""
    found = []
    for path in sorted((REPOSITORY / "lesionaug").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                bad = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "xml.dom", "xml.sax"}
                found += [(path.name, name) for name in names if name in bad or name.split(".")[0] in bad]
                if isinstance(node, ast.ImportFrom) and node.module == "xml.etree.ElementTree":
                    parsers = {"parse", "fromstring", "XML", "iterparse", "XMLParser"}
                    found += [(path.name, alias.name) for alias in node.names if alias.name in parsers]
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                    called = f"{node.func.value.id}.{node.func.attr}"
                keywords = {keyword.arg for keyword in node.keywords}
                loads = called in ("np.load", "numpy.load", "torch.load", "torch.jit.load", "pickle.load")
                if loads or called in FORBIDDEN or {"allow_pickle", "weights_only"} & keywords:
                    found.append((path.name, called))
    assert found == [("guard.py", "pickle")]


# What fuzzing found


def test_json_of_our_own_is_strict() -> None:
    assert parse_json('{"a": [1, 2.5, "x", null, true]}') == {"a": [1, 2.5, "x", None, True]}
    for text in ("NaN", "[Infinity]", "1e999", '{"a": 1, "a": 1}', "[" * 10**6, "", "{", "1" * 10_000):
        with pytest.raises(ValueError):
            parse_json(text)


@pytest.mark.parametrize("name", ["hu_clip", "window_hu", "classes", "pixels", "kind", "lesions"])
def test_a_manifest_without_a_field_is_refused(store: Store, name: str) -> None:
    path = store.folder / "rois" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError):
        load_rois(store.folder / "rois")


@pytest.mark.parametrize("name", ["spacing_mm", "label", "id", "origin", "center"])
def test_a_lesion_without_a_field_is_refused(store: Store, name: str) -> None:
    path = store.folder / "rois" / "manifest.json"
    manifest = json.loads(path.read_text())
    for lesion in manifest["lesions"]:
        del lesion[name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError):
        load_rois(store.folder / "rois")


def test_a_store_that_claims_terabytes_takes_no_memory(store: Store) -> None:
    path = store.folder / "rois" / "manifest.json"
    manifest = json.loads(path.read_text())
    side = 1 << 16
    manifest["lesions"] = [{**manifest["lesions"][0], "id": f"l{n}", "height": side, "width": side} for n in range(200)]
    manifest["pixels"]["num_pixels"] = 200 * side * side
    path.write_text(json.dumps(manifest))
    read_manifest(store.folder / "rois")
    with pytest.raises(DataError, match=r"SHA-256|arrays"):
        load_rois(store.folder / "rois")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_folds": 10**12},
        {"num_folds": "1"},
        {"num_folds": True},
        {"num_folds": 0},
        {"seed": -1},
        {"seed": 0.5},
        {"lesions": [{"lesion_id": "l", "patient_id": "P", "label": "a", "fold": "0"}]},
        {"lesions": [{"lesion_id": 1, "patient_id": "P", "label": "a", "fold": 0}]},
        {"lesions": [{"lesion_id": "l", "patient_id": "P\x1b[2J", "label": "a", "fold": 0}]},
        {"lesions": {"a": 1}},
        {"lesions": []},
    ],
)
def test_folds_of_wrong_types_are_refused(store: Store, changes: dict) -> None:
    path = store.folder / "folds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError):
        load_folds(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"window_hu": ["-160", "240"]},
        {"window_hu": [True, 5.0]},
        {"classes": [1, 2]},
        {"classes": ["a", "a"]},
        {"classes": ["a", "b\n"]},
        {"split": "1"},
        {"split": -1},
        {"details": [["a", 1]]},
        {"version": True},
        {"kind": ["phantom"]},
    ],
)
def test_synthetic_rois_of_wrong_types_are_refused(store: Store, changes: dict) -> None:
    path = store.folder / "made" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError):
        load_synthetic(store.folder / "made")


@pytest.mark.parametrize("changes", [{"contents": ["a"]}, {"contents": {"l": []}}, {"versions": [1]}, {"store": []}])
def test_a_run_of_wrong_types_is_refused(store: Store, changes: dict) -> None:
    path = store.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError):
        load_info(store.folder)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b'{"step": "3"}', b'{"step": {}}', b'{"loss": 1}', b"[" * 10**5])
def test_metrics_go_as_far_as_they_are_whole(tmp_path: Path, line: bytes) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b'\n{"step": 2}\n')
    metrics.cut(5)
    assert metrics.read() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("keyword", ["PatientID", "SOPClassUID", "PixelSpacing", "ImageType", "Rows", "RescaleSlope"])
@pytest.mark.parametrize("depth", [1, 30, 100, 400])
def test_sequences_in_place_of_values_are_not_written_out(keyword: str, depth: int, tmp_path: Path) -> None:
    """pydicom's text of nested sequences, for an error or an id, took gigabytes and never ended."""
    dataset = ct_dataset(hu_picture(0, 8, 8))
    tag = tag_for_keyword(keyword)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=False)
    elements, _ = mutators._elements(stream.getvalue(), 132, len(stream.getvalue()))
    place = next(element for element in elements if element[0] == struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    inner: list = [
        [place[0], b"US", b"\1"]
    ]  # no whole number of values, so its text is an error about an error about ...
    for _ in range(depth):
        inner = [[place[0], b"SQ", [inner]]]
    place[1:] = inner[0][1:]
    path = tmp_path / "a.dcm"
    path.write_bytes(stream.getvalue()[:132] + mutators._written(elements, Random(0), 0.0))
    begun = time.process_time()
    findings = check_source(path, ImportOptions(isolate=False))
    assert any(finding.severity == "error" for finding in findings) or keyword in ("PatientID", "ImageType")
    assert time.process_time() - begun < 2


# ROINumber, ContourData, ReferencedROINumber, FileMetaInformationGroupLength
@pytest.mark.parametrize("tag", [0x30060022, 0x30060050, 0x30060084, 0x00020000])
def test_nor_are_they_in_a_structure_set(tag: int, target) -> None:
    check, seeds = target("rtstruct")
    elements, _ = mutators._elements(seeds[0], 132, len(seeds[0]))
    wanted = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    places = [e for place in mutators._places(elements) for e in place if e[0] == wanted]
    inner: list = [[wanted, b"US", b"\1"]]
    for _ in range(100):
        inner = [[wanted, b"SQ", [inner]]]
    if places:
        places[0][1:] = inner[0][1:]
    else:  # the seeds are written without the length of their meta information
        assert tag == 0x00020000
        elements.insert(0, inner[0])
    check(seeds[0][:132] + mutators._written(elements, Random(0), 0.0))


def test_endless_nesting_in_a_run_is_a_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("[" * 100_000)
    with pytest.raises(LesionaugError, match="nested"):
        read_json(tmp_path, "task.json")


@pytest.mark.parametrize("belongs_to", [[[1, 2], ["a", 3]], [["seed", 1]], "seed", None])
def test_a_checkpoint_that_belongs_to_no_object_is_damaged(tmp_path: Path, belongs_to: object) -> None:
    """Found by fuzzing: pairs make a dict too, and its keys cannot be sorted."""
    checkpoints = Checkpoints(tmp_path, {"seed": 1})
    checkpoints.save(7, {"w": torch.ones(2)})
    (file,) = tmp_path.glob("*/state.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"belongs_to": belongs_to}))
    with pytest.raises(DataError, match=r"is damaged \(state\.json: belongs_to"):
        checkpoints.newest()


def test_fields_that_may_be_null_may_be_absent_from_a_study(tmp_path: Path) -> None:
    """Found by fuzzing: they were asked for with [] after they had been checked with get()."""
    folder = make_study(tmp_path / "study", make_items(4, 4, 1), lambda *_: 0, num_readers=0)
    truth = folder.with_name("study.truth.json")
    content = json.loads(truth.read_text())
    for item in content["items"]:
        for key in ("lesion_id", "patient"):
            if item[key] is None:
                del item[key]
    truth.write_text(json.dumps(content))
    info = json.loads((folder / "study.json").read_text())
    del info["design"]["preset"]
    info["truth_sha256"] = hashlib.sha256(truth.read_bytes()).hexdigest()
    (folder / "study.json").write_text(json.dumps(info))
    assert [item.lesion_id is None for item in load_truth(load_study(folder)).items].count(True) == 4
