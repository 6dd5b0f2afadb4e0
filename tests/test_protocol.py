"""The whole protocol on few lesions: every stage, what is chosen, what is refused, and that every schedule agrees."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lesionaug.data.provenance import Provenance, content_hashes
from lesionaug.data.store import load_rois, save_rois
from lesionaug.data.synthetic import load_synthetic, save_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.embedding import embed
from lesionaug.experiment.audit import audit_run
from lesionaug.experiment.choices import choose, size_in_use, smallest_best
from lesionaug.experiment.config import RunConfig, preset, resolve_config
from lesionaug.experiment.protocol import STAGES, plan_steps, task_name
from lesionaug.experiment.results import RunResults, load_run
from lesionaug.experiment.run import run_experiment
from lesionaug.experiment.seeds import derive_seed
from lesionaug.experiment.workshop import Workshop
from lesionaug.training.bovw import load_bovw, predict_bovw
from lesionaug.training.classifier import load_classifier
from lesionaug.training.synthesis import class_probabilities, load_gan
from tests.runs import NUM_LESIONS, classic_only, make_rois, make_store

DCGAN3 = "synthetic/synthetic-dcgan-split2-seed0"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "rois")


@pytest.fixture(scope="module")
def done(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, in two processes."""
    run_dir = tmp_path_factory.mktemp("runs") / "done"
    run_experiment(store, run_dir, preset("tiny"), workers=2)
    return run_dir


@pytest.fixture(scope="module")
def results(done: Path) -> RunResults:
    return load_run(done)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_every_stage_is_there_and_nothing_else(results: RunResults, done: Path) -> None:
    assert results.complete()
    assert {step.stage for step in results.steps} == set(STAGES)
    assert len(results.steps) == len(results.done) == 87
    assert results.arms == (
        "classic", "dcgan", "acgan", "acgan-discriminator", "bovw", "equal-count", "longer", "synthetic-only",
        "gan-originals",
    )  # fmt: skip
    for arm in results.arms:
        for size in results.groups(arm):
            pooled = results.pooled(arm, size, 0)
            assert sorted(pooled.lesion_ids) == sorted(lesion.lesion_id for lesion in results.folds.lesions)
    assert not list(done.rglob("*.tmp"))
    assert not (done / "working").exists()
    folders = {path.parent.relative_to(done).as_posix() for path in done.glob("*/*/task.json")}
    assert folders == {step.folder for step in results.steps}


def test_training_sets_are_those_of_the_protocol(results: RunResults) -> None:
    choice = results.choice("classic")
    assert choice is not None
    tasks = {task.name: task for task in results.tasks}
    for split in range(3):
        train = len(results.folds.train_ids(split))
        optimum = size_in_use(choice, split)
        per_lesion = {0: 0, 100: 12}[optimum]  # round(3 * 100 / 24)
        for kind in ("dcgan", "acgan"):
            for size, per_class in ((30, 20), (60, 40)):  # of two folds, in three classes
                info = tasks[task_name(kind, size, split, 0)].info
                assert info["per_lesion"] == per_lesion
                assert info["num_synthetic"] == 3 * per_class
                assert info["num_train_images"] == train * (1 + per_lesion) + 3 * per_class
        chosen = results.choice("dcgan")
        assert chosen is not None
        count = 2 * size_in_use(chosen, split)
        more = tasks[task_name("equal-count", 0, split, 0)].info
        assert more["num_synthetic"] == 0
        assert more["num_train_images"] == train * (1 + per_lesion + round(count / train))
        for name in ("synthetic-only", "gan-originals"):
            info = tasks[task_name(name, 0, split, 0)].info
            assert (info["per_lesion"], info["num_synthetic"]) == (0, count)
        assert tasks[task_name("longer", 0, split, 0)].info["steps"] == 24
        for label in range(3):
            gan, alone = (
                results.task_info(f"gan-{kind}-class{label}-split{split}-seed0") for kind in ("dcgan", "originals")
            )
            assert gan["num_train_images"] == gan["num_train_lesions"] * (1 + per_lesion)
            assert alone["num_train_images"] == alone["num_train_lesions"] == gan["num_train_lesions"]
            assert alone["steps"] == gan["steps"]


def test_synthetic_rois_are_the_gans_and_nested(results: RunResults, done: Path) -> None:
    rois = load_synthetic(done / DCGAN3 / "rois")
    assert rois.labels.tolist() == [0, 1, 2] * 40
    assert rois.split == 2
    assert rois.provenance.lesions == frozenset(results.folds.train_ids(2))
    gans = [load_gan(done / f"gans/gan-dcgan-class{label}-split2-seed0") for label in range(3)]
    assert [gan.info["classes"] for gan in gans] == [["cyst"], ["metastasis"], ["hemangioma"]]
    assert rois.details["generators"] == {
        f"gan-dcgan-class{label}-split2-seed0": gan.sha256 for label, gan in enumerate(gans)
    }
    from lesionaug.training.synthesis import sample

    for label, gan in enumerate(gans):
        seed = derive_seed(f"synthetic-dcgan-split2-seed0-class{label}")
        torch.testing.assert_close(rois.images[label::3], sample(gan, 40, seed), atol=1e-6, rtol=0)


def test_the_choice_is_a_recount_by_both_rules(results: RunResults, done: Path) -> None:
    choice = results.choice("classic")
    assert choice is not None
    correct = {size: results.pooled("classic", size, 0).num_correct() for size in (0, 100)}
    assert choice["paper"] == {
        "size": min(size for size in correct if correct[size] == max(correct.values())),
        "correct": {str(size): float(count) for size, count in correct.items()},
    }
    assert choice["rule"] == "paper"
    assert choice["in_use"] == {str(split): choice["paper"]["size"] for split in range(3)}
    for split in range(3):
        counted = {}
        for size in (0, 100):
            counted[size] = 0
            for pair in ((0, 1), (0, 2), (1, 2)):
                if split not in pair:
                    continue
                (inside,) = (fold for fold in pair if fold != split)
                file = done / f"models/cnn-inner-{size:05d}-without{pair[0]}and{pair[1]}-seed0/predictions.csv"
                rows = list(csv.DictReader(file.read_text().splitlines()))
                assert {int(row["fold"]) for row in rows} == set(pair)
                counted[size] += sum(row["label"] == row["predicted"] for row in rows if int(row["fold"]) == inside)
        assert choice["nested"][str(split)]["correct"] == {str(size): float(n) for size, n in counted.items()}
        assert choice["nested"][str(split)]["size"] == smallest_best(counted)


def test_inner_models_have_seen_neither_fold(results: RunResults) -> None:
    for step in results.steps:
        if step.arm == "inner":
            info = results.task_info(step.name)
            known = {lesion.fold for lesion in results.folds.lesions if lesion.lesion_id in info["sources"]["lesions"]}
            assert known == set(range(3)) - set(step.settings["held_out"])


def test_a_nested_choice_is_used_split_by_split(store: Path, done: Path, tmp_path: Path) -> None:
    config = preset("tiny").model_copy(
        update={"choice": "nested", "gans": (), "bovw": None, "controls": ("longer",), "embedding": None,
                "memorisation": None}
    )  # fmt: skip
    run_experiment(store, tmp_path / "run", config, workers=1)
    choice, other = load_run(tmp_path / "run").choice("classic"), load_run(done).choice("classic")
    assert choice is not None
    assert other is not None
    assert choice["rule"] == "nested"
    assert choice["nested"] == other["nested"]
    assert choice["in_use"] == {split: of["size"] for split, of in choice["nested"].items()}
    with pytest.raises(ConfigError, match=r"choice .nested. needs folds\.num_folds of at least 3"):
        resolve_config("tiny", None, choice="nested", folds={"num_folds": 2})


def test_choosing() -> None:
    assert smallest_best({0: 104, 500: 130, 5000: 143, 7500: 143, 15000: 142}) == 5000
    chosen = choose({0: 1.0, 5: 2.0}, {0: {0: 3.0, 5: 3.0}, 1: {0: 1.0, 5: 2.0}}, "nested", (0, 1))
    assert chosen["in_use"] == {"0": 0, "1": 5}
    assert chosen["paper"]["size"] == 5
    with pytest.raises(ValueError, match="no nested choice"):
        choose({0: 1.0}, None, "nested", (0,))
    with pytest.raises(DataError, match="names no group for split 7"):
        size_in_use(chosen, 7)


def test_saved_models_give_the_saved_predictions(results: RunResults, done: Path, store: Path) -> None:
    """The baseline and the discriminator, from their files alone."""
    work = Workshop.open(store, done)
    for split in range(3):
        step = results.step(task_name("bovw", 0, split, 0))
        images = work.pool(work.sides(step)[1], 0).group(0)[0]
        trained, _ = load_bovw(done / step.folder)
        task = next(task for task in results.tasks if task.name == step.name)
        np.testing.assert_allclose(predict_bovw(trained, images).numpy(), task.probabilities, atol=1e-6)
        task = next(task for task in results.tasks if task.name == f"acgan-discriminator-split{split}-seed0")
        gan = load_gan(done / f"gans/gan-acgan-split{split}-seed0")
        probabilities = class_probabilities(gan.discriminator, images)
        np.testing.assert_allclose(probabilities.numpy(), task.probabilities, atol=1e-5)


def test_the_maps_are_of_the_models_in_use(results: RunResults, done: Path, store: Path) -> None:
    work = Workshop.open(store, done)
    for name, arm in (("aug", "classic"), ("aug-gan", "dcgan")):
        choice = results.choice(arm)
        assert choice is not None
        step = results.step(f"map-{name}-split1")
        model = task_name(arm, size_in_use(choice, 1), 1, 0)
        assert results.task_info(step.name)["model"] == model
        rows = list(csv.DictReader((done / step.folder / "points.csv").read_text().splitlines()))
        test = work.sides(step)[1]
        assert [row["lesion_id"] for row in rows] == list(test.lesion_ids) * 2
        assert {row["view"] for row in rows} == {"0", "1"}
        trained, _ = load_classifier(done / "models" / model)
        with torch.no_grad():
            features = trained.model.features(work.pool(test, 1).group(1)[0] - trained.mean)
        expected = embed(features.numpy(), seed=derive_seed(step.name) % 2**32)
        found = np.array([[float(row["x"]), float(row["y"])] for row in rows])
        assert found.shape == expected.shape
        spread = np.linalg.norm(found - found.mean(0), axis=1).mean()
        assert spread == pytest.approx(np.linalg.norm(expected - expected.mean(0), axis=1).mean(), rel=0.5)


def test_a_clean_run_passes_its_audit(done: Path, store: Path) -> None:
    for found in (audit_run(done), audit_run(done, store)):
        assert found.findings == ()
        assert found.num_steps == 87
        assert found.num_missing == 0
        assert len(found.exceptions) == 2
        assert found.num_files > 87


def plant_a_test_patients_images(run: Path) -> None:
    """Replace synthetic ROIs by those of a GAN that knows the test fold; a careful cheat writes the hashes anew."""
    folder = run / DCGAN3
    theirs = load_synthetic(folder / "rois")
    other = load_synthetic(run / "synthetic/synthetic-dcgan-split0-seed0/rois")
    shutil.rmtree(folder / "rois")
    save_synthetic(dataclasses.replace(theirs, provenance=other.provenance), folder / "rois")
    write_hashes(folder)


def write_hashes(folder: Path) -> None:
    from lesionaug.experiment.graph import hash_files, hash_json

    task = json.loads((folder / "task.json").read_text())
    task["outputs"] = hash_files(folder)
    task["output_sha256"] = hash_json(task["outputs"])
    (folder / "task.json").write_text(json.dumps(task))


def test_a_planted_test_patient_fails_the_run_and_the_audit(copy: Path, store: Path) -> None:
    plant_a_test_patients_images(copy)
    rules = [f"{finding.where}: {finding.rule}" for finding in audit_run(copy).findings]
    assert any("synthetic-dcgan-split2" in rule and "patient(s) to be tested" in rule for rule in rules)
    assert any("another synthetic-dcgan-split2-seed0 than the one that is there" in rule for rule in rules)
    for folder in copy.glob("models/cnn-dcgan-*-split2-*"):
        shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"synthetic ROIs: it learned from \d+ patient\(s\) to be tested"):
        run_experiment(store, copy, workers=1)


def test_the_same_pixels_under_another_patients_id_fail_the_run_and_the_audit(done: Path, tmp_path: Path) -> None:
    """A copy of a lesion by another name: its patient and its id are new, its pixels are not."""
    rois = make_rois()
    images, ids, patients = list(rois.images), list(rois.lesion_ids), list(rois.patient_ids)
    folds = {lesion.lesion_id: lesion.fold for lesion in load_run(done).folds.lesions}
    labels = rois.labels.tolist()
    one = 0
    two = next(i for i in range(NUM_LESIONS) if folds[ids[i]] != folds[ids[one]] and labels[i] == labels[one])
    images[two] = images[one].clone()
    diameters = rois.diameters.clone()
    diameters[two] = diameters[one]
    from lesionaug.data.rois import RoiBatch

    twins = RoiBatch.from_images(
        images, rois.centers, diameters, labels=labels, lesion_ids=ids, patient_ids=patients, classes=rois.classes,
        kind="phantom",
    )  # fmt: skip
    save_rois(twins, tmp_path / "twins")
    with pytest.raises(
        DataError, match=r"learned from the pixels of 1 lesion\(s\) to be tested, which go by other names"
    ):
        run_experiment(tmp_path / "twins", tmp_path / "run", classic_only(), workers=1)
    assert any("have the same pixels" in finding.rule for finding in audit_run(tmp_path / "run").findings)
    # The same in a finished run: its record of the pixels shows it.
    copy = Path(shutil.copytree(done, tmp_path / "copy"))
    info = json.loads((copy / "run.json").read_text())
    info["contents"] = dict(zip(twins.lesion_ids, content_hashes(twins), strict=True))
    (copy / "run.json").write_text(json.dumps(info))
    assert any("have the same pixels" in finding.rule for finding in audit_run(copy).findings)


def remove_a_gan(run: Path) -> None:
    shutil.rmtree(run / "gans/gan-acgan-split0-seed0")


DAMAGES = {
    "a missing file": (lambda run: (run / "models/bovw-split0-seed0/predictions.csv").unlink(), "bovw", "missing"),
    "an added file": (lambda run: (run / "models/bovw-split1-seed0/x.txt").touch(), "x.txt", "was added after"),
    "other bytes": (
        lambda run: flip_a_byte(run / "gans/gan-acgan-split0-seed0/generator.safetensors"), "generator", "its bytes",
    ),
    "a foreign folder": (lambda run: (run / "models/mine").mkdir(), "models/mine", "does not belong to the run"),
    "a missing input": (remove_a_gan, "synthetic-acgan-split0", "which it was made from, is missing"),
    "known patients": (
        lambda run: edit_sources(run / "gans/gan-acgan-split1-seed0", "patients"), "gan-acgan", "patient(s)",
    ),
    "known pixels": (lambda run: edit_sources(run / "models/bovw-split2-seed0", "contents"), "bovw-split2", "pixels"),
    "no task.json": (
        lambda run: (run / "maps/map-aug-split0/task.json").write_text("{"), "map-aug-split0", "cannot be audited",
    ),
    "other folds": (lambda run: edit_folds(run), "folds.json", "it was changed since the run began"),
    "nobody known": (lambda run: edit_sources(run / "models/bovw-split2-seed0", None), "bovw-split2", "exactly"),
    "another configuration": (
        lambda run: edit_text(run / "config.json", '"steps": 12', '"steps": 13'), "bovw-split0", "another config",
    ),
    "another number of lesions": (
        lambda run: edit_text(run / "models/bovw-split0-seed0/task.json", '_lesions": ', '_lesions": 9'),
        "bovw-split0", "number of training lesions",
    ),
    "another key": (
        lambda run: edit_text(run / "models/bovw-split0-seed0/task.json", '"key": "', '"key": "0'), "bovw-split0",
        "key does not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, where, rule", DAMAGES.values(), ids=DAMAGES.keys())
def test_the_audit_finds(copy: Path, damage: Callable[[Path], Any], where: str, rule: str) -> None:
    damage(copy)
    found = audit_run(copy).findings
    assert any(where in finding.where and rule in finding.rule for finding in found), found


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_sources(folder: Path, key: str | None) -> None:
    """Let a step say that it knows the patients, or the pixels, of every fold; None: that it knows nobody."""
    run = folder.parent.parent
    if key is None:
        task = json.loads((folder / "task.json").read_text())
        task["sources"] = {name: [] for name in task["sources"]}
        (folder / "task.json").write_text(json.dumps(task))
        return
    task = json.loads((folder / "task.json").read_text())
    everyone = json.loads((run / "folds.json").read_text())["lesions"]
    contents = json.loads((run / "run.json").read_text())["contents"]
    task["sources"][key] = sorted(
        {lesion["patient_id"] if key == "patients" else contents[lesion["lesion_id"]] for lesion in everyone}
    )
    (folder / "task.json").write_text(json.dumps(task))


def edit_folds(run: Path) -> None:
    folds = json.loads((run / "folds.json").read_text())
    folds["lesions"][0]["label"] = folds["lesions"][0]["label"]
    (run / "folds.json").write_text(json.dumps(folds))


def test_what_was_made_from_other_results_is_made_anew(store: Path, copy: Path, done: Path) -> None:
    """A model with other predictions changes the choice's input, so what hangs on it is no longer done."""
    name = "cnn-acgan-00030-split0-seed0"
    folder = copy / "models" / name
    rows = (folder / "predictions.csv").read_text().splitlines()
    (folder / "predictions.csv").write_text("\n".join([*rows[:-1], rows[-1] + "0"]) + "\n")  # the same number
    write_hashes(folder)
    missing = load_run(copy).missing()
    assert missing == ("choice-acgan",)
    shutil.rmtree(folder)
    assert run_experiment(store, copy, workers=1).made == (name, "choice-acgan")
    assert load_run(copy).done == load_run(done).done


def test_a_gan_goes_on_from_its_checkpoint(
    store: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a GAN: what it had learned is in the run's working folder, and the end is the same."""
    from lesionaug.experiment import steps as steps_module
    from lesionaug.training import gan_run

    run = Path(shutil.copytree(done, tmp_path / "run"))
    name = "gan-acgan-split0-seed0"
    shutil.rmtree(run / "gans" / name)
    fit, seen = steps_module.fit_gan, []

    def stopping(folder: Path, *arguments: Any, **more: Any) -> Any:
        result = (
            fit(folder, *arguments, should_stop=lambda: True, **more) if not seen else fit(folder, *arguments, **more)
        )
        seen.append(result.gan.step)
        if not result.finished:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(steps_module, "fit_gan", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(store, run, workers=1)
    assert list((run / "working" / name / "checkpoints").glob("step-*"))
    run_experiment(store, run, workers=1)
    assert seen == [1, 6]
    assert load_run(run).done == load_run(done).done
    assert gan_run.STRIP_ROWS == 10


def test_a_part_can_be_left_out(store: Path, tmp_path: Path) -> None:
    toml = tmp_path / "less.toml"
    toml.write_text('preset = "tiny"\nbovw = false\nembedding = false\nmemorisation = false\ngans = ["acgan"]\n')
    config = resolve_config(None, toml)
    assert config.used_controls == ("longer",)  # the others need a DCGAN
    outcome = run_experiment(store, tmp_path / "run", config, dry_run=True)
    assert {step.stage for step in outcome.steps} == {"classic", "acgan", "controls"}
    toml.write_text('preset = "tiny"\n[classifier]\nepochs = 3\n[dcgan]\nepochs = 2\n')
    config = resolve_config(None, toml)
    assert config.classifier.steps is config.dcgan.steps is None
    assert "equal-steps" in config.used_controls  # trainings are of unequal length now
    with pytest.raises(ConfigError, match=r"acgan does not go with acgan\.conditioning .none."):
        resolve_config("tiny", None, acgan={"conditioning": "none"})


def test_controls_of_unequal_trainings(store: Path, tmp_path: Path) -> None:
    """In epochs: "equal-steps" gives every group the optimum's steps, "longer" as many as the longest training."""
    config = classic_only(controls=("equal-steps", "longer"))
    config = config.model_copy(update={"classifier": config.classifier.model_copy(update={"steps": None, "epochs": 2})})
    run_experiment(store, tmp_path / "run", config, workers=1)
    results = load_run(tmp_path / "run")
    choice = results.choice("classic")
    assert choice is not None
    steps = {task.name: task.info["steps"] for task in results.tasks}
    for split in range(3):
        train = len(results.folds.train_ids(split))
        own = {size: 2 * -(-train * (1 + m) // 16) for size, m in ((0, 0), (30, 4))}
        for size in (0, 30):
            assert steps[task_name("classic", size, split, 0)] == own[size]
            assert steps[task_name("equal-steps", size, split, 0)] == own[size_in_use(choice, split)]
        assert steps[task_name("longer", 0, split, 0)] == 2 * -(-train * 5 // 16)


def test_provenance_is_in_every_artefact_that_learned(results: RunResults) -> None:
    for step in results.steps:
        if step.kind in ("cnn", "bovw", "gan", "synthetic", "discriminator"):
            sources = Provenance.from_json(results.task_info(step.name)["sources"])
            held_out = step.settings.get("held_out", [step.split])
            tested = {lesion.patient_id for lesion in results.folds.lesions if lesion.fold in held_out}
            assert sources.patients
            assert not sources.patients & tested


def test_nothing_written_names_a_place(done: Path, store: Path) -> None:
    for path in done.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(store.parent).encode() not in content
            assert str(done.parent).encode() not in content


def test_a_stage_leaves_the_checkpoints_of_another(store: Path, done: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "run"))
    name = "gan-acgan-split0-seed0"
    shutil.rmtree(run / "gans" / name)
    (run / "working" / name / "checkpoints").mkdir(parents=True)
    run_experiment(store, run, only="baseline", workers=1)
    assert (run / "working" / name / "checkpoints").exists()
    run_experiment(store, run, workers=1)  # of no known key, so it begins anew
    assert load_run(run).done == load_run(done).done
    assert not (run / "working").exists()


def test_more_views_than_the_plan_has_are_refused_at_once() -> None:
    plan = {"n_rot": 10, "n_flip": 0, "n_trans": 0, "n_scale": 0}
    with pytest.raises(ConfigError, match=r"embedding\.per_lesion is 16, and the plan has 10"):
        resolve_config("paper", None, plan=plan)


def test_every_preset_is_a_whole_plan() -> None:
    from lesionaug.data.folds import assign_folds

    labels = [name for name, n in zip("cmh", (53, 64, 65), strict=True) for _ in range(n)]
    ids = [f"{i:03d}" for i in range(182)]
    folds = assign_folds(ids, ids, labels, 3, 0)
    for name in ("tiny", "demo", "quick", "laptop", "workstation", "paper"):
        config: RunConfig = preset(name)  # type: ignore[arg-type]
        assert {step.stage for step in plan_steps(config, folds)} == set(STAGES)
        assert bool(config.reductions) == (name != "paper")
    assert load_rois is not None
