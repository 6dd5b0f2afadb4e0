"""Folds: patients stay together, every class is in every fold, and the order of the lesions plays no part."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionaug import cli
from lesionaug.data.folds import FoldedLesion, Folds, assign_folds, load_folds, make_folds
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import save_rois
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment.run import run_experiment
from tests.runs import classic_only

CLASSES = ("cyst", "metastasis", "hemangioma")


def lesions(num_patients: int, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """Ids, patients and labels: patient 0, 3, 6, ... has a cyst, and so on; some have a second lesion of any class."""
    draw = random.Random(seed)
    rows = []
    for patient in range(num_patients):
        rows.append((f"{draw.getrandbits(64):016x}", f"P{patient:03d}", CLASSES[patient % 3]))
        if draw.random() < 0.25:
            rows.append((f"{draw.getrandbits(64):016x}", f"P{patient:03d}", draw.choice(CLASSES)))
    return tuple(map(list, zip(*rows, strict=True)))  # type: ignore[return-value]


@settings(max_examples=40, deadline=None)
@given(num_patients=st.integers(30, 150), num_folds=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_patients_stay_together_and_classes_are_everywhere(num_patients: int, num_folds: int, seed: int) -> None:
    ids, patients, labels = lesions(num_patients, seed)
    folds = assign_folds(ids, patients, labels, num_folds, seed)
    home: dict[str, set[int]] = {}
    for lesion in folds.lesions:
        home.setdefault(lesion.patient_id, set()).add(lesion.fold)
    assert all(len(where) == 1 for where in home.values())
    assert sorted(lesion.lesion_id for lesion in folds.lesions) == sorted(ids)
    for fold in range(num_folds):
        assert set(folds.class_counts()[fold]) == set(CLASSES)
        test, train = set(folds.test_ids(fold)), set(folds.train_ids(fold))
        assert not test & train
        assert test | train == set(ids)


def test_classes_are_balanced_at_the_papers_size() -> None:
    labels = ["cyst"] * 53 + ["metastasis"] * 64 + ["hemangioma"] * 65
    ids = [f"{i:03d}" for i in range(182)]
    for seed in range(5):
        for counts in assign_folds(ids, ids, labels, 3, seed).class_counts():
            assert all(abs(counts[name] - total / 3) <= 1 for name, total in zip(CLASSES, (53, 64, 65), strict=True))


def test_the_order_of_the_lesions_plays_no_part() -> None:
    ids, patients, labels = lesions(60)
    expected = assign_folds(ids, patients, labels, 3, 7)
    order = list(range(len(ids)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        shuffled = assign_folds([ids[i] for i in order], [patients[i] for i in order], [labels[i] for i in order], 3, 7)
        assert shuffled == expected
    assert assign_folds(ids, patients, labels, 3, 8) != expected


def test_folds_come_back_from_a_file(tmp_path: Path) -> None:
    folds = assign_folds(*lesions(40), 3, 1)
    folds.save(tmp_path / "folds.json")
    assert load_folds(tmp_path / "folds.json") == folds
    saved = json.loads((tmp_path / "folds.json").read_text())
    assert saved["schema"] == 1
    assert set(saved["lesions"][0]) == {"lesion_id", "patient_id", "label", "fold"}


def test_an_edited_file_that_leaks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    folds = assign_folds(*lesions(40), 3, 1)
    folds.save(path)
    saved = json.loads(path.read_text())
    patients = [row["patient_id"] for row in saved["lesions"]]
    double = next(row for row in saved["lesions"] if patients.count(row["patient_id"]) == 2)
    double["fold"] = (double["fold"] + 1) % 3
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match=rf"folds.json: patient {double['patient_id']} is in folds"):
        load_folds(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "num_folds": 3}'])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(DataError, match=r"folds\.json: these folds cannot be read"):
        load_folds(tmp_path / "folds.json")


def test_too_few_patients_of_a_class_names_the_class_and_the_count() -> None:
    labels = ["cyst"] * 6 + ["metastasis"] * 5
    patients = [f"P{i}" for i in range(6)] + ["M0", "M0", "M0", "M1", "M1"]
    with pytest.raises(DataError, match=r"class metastasis has 2 patient\(s\); 3 folds need 3 or more"):
        assign_folds([str(i) for i in range(11)], patients, labels, 3, 0)


def test_one_class_and_one_fold_are_refused() -> None:
    ids = [str(i) for i in range(9)]
    with pytest.raises(DataError, match="at least two classes, got cyst"):
        assign_folds(ids, ids, ["cyst"] * 9, 3, 0)
    with pytest.raises(ConfigError, match=r"folds\.num_folds: at least 2"):
        assign_folds(ids, ids, ["cyst", "other", "third"] * 3, 1, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [*rows, rows[0]], "unique and sorted"),
        (lambda rows: [FoldedLesion("a", "p", "cyst", 3), *rows[1:]], "fold 3 is not in 0 .. 2"),
        (lambda rows: [row for row in rows if not (row.fold == 1 and row.label == "cyst")], "fold 1 of 3 has no cyst"),
        (lambda rows: [row for row in rows if row.fold != 2], "fold 2 of 3 has no cyst"),
    ],
)
def test_folds_refuse_what_would_mislead(change, message) -> None:  # type: ignore[no-untyped-def]
    names = "abcdef"
    rows = [FoldedLesion(names[i], f"p{i}", ("cyst", "other")[i % 2], i // 2) for i in range(6)]
    Folds(3, 0, tuple(rows))
    with pytest.raises(DataError, match=message):
        Folds(3, 0, tuple(change(rows)))


def test_unlabelled_lesions_are_refused_and_counted() -> None:
    images = [torch.zeros(8, 8) for _ in range(12)]
    rois = RoiBatch.from_images(
        images, [[4.0, 4.0]] * 12, [4.0] * 12, labels=[0, 1] * 5 + [-1, -1], classes=("cyst", "other")
    )
    with pytest.raises(DataError, match="2 of 12 lesions have no class"):
        make_folds(rois)
    with pytest.raises(DataError, match="no lesion has the class other"):
        make_folds(rois[[0, 2, 4, 6, 8]])
    folds = make_folds(rois[list(range(10))])
    assert {lesion.label for lesion in folds.lesions} == {"cyst", "other"}


def store_rois() -> RoiBatch:
    """36 lesions of 27 patients in three classes."""
    ids, patients, labels = lesions(30)
    images = [torch.zeros(8, 8) for _ in ids]
    return RoiBatch.from_images(
        images,
        [[4.0, 4.0]] * len(ids),
        [4.0] * len(ids),
        labels=[CLASSES.index(name) for name in labels],
        lesion_ids=ids,
        patient_ids=patients,
        classes=CLASSES,
        kind="phantom",
    )


def test_the_names_of_the_patients_play_no_part() -> None:
    ids, patients, labels = lesions(60)
    expected = {lesion.lesion_id: lesion.fold for lesion in assign_folds(ids, patients, labels, 3, 1).lesions}
    renamed = [f"P-{hash(patient) & 0xFFFFFFFF:08x}" for patient in patients]
    assert expected == {lesion.lesion_id: lesion.fold for lesion in assign_folds(ids, renamed, labels, 3, 1).lesions}


def test_the_hash_is_that_of_the_file_and_patients_are_counted(tmp_path: Path) -> None:
    folds = make_folds(store_rois())
    folds.save(tmp_path / "folds.json")
    assert folds.sha256 == hashlib.sha256((tmp_path / "folds.json").read_bytes()).hexdigest()
    for fold, counts in enumerate(folds.patient_counts()):
        for name in CLASSES:
            own = {row.patient_id for row in folds.lesions if row.fold == fold and row.label == name}
            assert counts[name] == len(own)
        assert counts[""] == len({row.patient_id for row in folds.lesions if row.fold == fold})


def test_folds_of_other_lesions_are_refused() -> None:
    rois = store_rois()
    folds = make_folds(rois)
    folds.check_fits(rois)
    folds.check_fits(rois[list(range(len(rois)))[::-1]])  # their order plays no part
    with pytest.raises(DataError, match=r"1 differ.*in the folds, not in the store"):
        folds.check_fits(rois[list(range(1, len(rois)))])


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", *map(str, words)])
    return int(left.value.code or 0)


def test_data_folds_shows_them_and_writes_what_a_run_would_make(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    rois = store_rois()
    save_rois(rois, tmp_path / "rois")
    assert command("folds", tmp_path / "rois", "--out", tmp_path / "folds.json") == 0
    said = capsys.readouterr().out
    folds = make_folds(rois)
    assert load_folds(tmp_path / "folds.json") == folds
    assert folds.sha256 in said
    row = next(line for line in said.splitlines() if "hemangioma" in line)
    lesion_counts, patient_counts = folds.class_counts(), folds.patient_counts()
    assert all(f"{lesion_counts[k]['hemangioma']} ({patient_counts[k]['hemangioma']})" in row for k in range(3))
    assert command("folds", tmp_path / "rois", "--out", tmp_path / "folds.json") == 3
    assert "exists already" in capsys.readouterr().err
    assert command("folds", tmp_path / "rois", "--num-folds", "99") == 3


def test_a_run_takes_folds_of_the_users_own(tmp_path: Path) -> None:
    rois = store_rois()
    save_rois(rois, tmp_path / "rois")
    own = make_folds(rois, 3, seed=5)
    config = classic_only()
    outcome = run_experiment(tmp_path / "rois", tmp_path / "run", config, only="folds", own_folds=own)
    assert outcome.folds == own != make_folds(rois)
    assert load_folds(tmp_path / "run" / "folds.json") == own
    assert (outcome.config.folds.seed, outcome.config.folds.from_file) == (5, True)
    again = run_experiment(tmp_path / "rois", tmp_path / "run", None, only="folds")
    assert again.folds == own
    assert run_experiment(tmp_path / "rois", tmp_path / "run", config, only="folds", own_folds=own).folds == own
    with pytest.raises(ConfigError, match="other folds"):
        run_experiment(tmp_path / "rois", tmp_path / "run", None, only="folds", own_folds=make_folds(rois, 3, 6))
    with pytest.raises(ConfigError, match=r"folds\.from_file"):
        run_experiment(tmp_path / "rois", tmp_path / "run", config, only="folds")
    less = make_folds(rois[list(range(1, len(rois)))])
    with pytest.raises(DataError, match="--folds: its lesions are not those of the store"):
        run_experiment(tmp_path / "rois", tmp_path / "new", config, only="folds", own_folds=less)
    assert not (tmp_path / "new").exists()
