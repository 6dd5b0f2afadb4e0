"""`run_experiment`: what it writes, what it refuses, and that no schedule changes a bit."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lesionaug.data.files import locked
from lesionaug.data.folds import select_lesions
from lesionaug.data.store import load_rois, save_rois
from lesionaug.errors import ConfigError, DataError, EnvironmentProblem, TaskFailed
from lesionaug.evaluation.classification import confusion_matrix
from lesionaug.experiment import machine, protocol
from lesionaug.experiment import workers as workers_module
from lesionaug.experiment.config import RunConfig, preset
from lesionaug.experiment.groups import classic_groups
from lesionaug.experiment.results import load_config, load_run
from lesionaug.experiment.run import run_experiment
from lesionaug.experiment.seeds import check_split, derive_seed
from lesionaug.experiment.workshop import Workshop
from lesionaug.training.classifier import load_classifier, predict_probabilities
from lesionaug.training.lane_choice import LaneChoice
from tests.runs import NUM_LESIONS, classic_only, make_store, predictions


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "rois")


@pytest.fixture(scope="module")
def done(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trained in this process."""
    run_dir = tmp_path_factory.mktemp("runs") / "done"
    run_experiment(store, run_dir, classic_only(), workers=1, command="run --preset tiny")
    return run_dir


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copy"))


def test_a_run_directory_holds_what_it_says(store: Path, done: Path) -> None:
    results = load_run(done)
    assert results.config.preset == "tiny"
    assert results.kind == "phantom"
    assert results.complete()
    assert results.groups("classic") == (0, 30)
    assert len(results.tasks) == 2 * 3
    info = json.loads((done / "run.json").read_text())
    assert info["schema"] == 2
    assert info["store"]["num_lesions"] == NUM_LESIONS
    assert info["store"]["num_patients"] == NUM_LESIONS - 3
    assert info["store"]["class_counts"] == {"cyst": 8, "metastasis": 8, "hemangioma": 8}
    assert info["command"] == "run --preset tiny"
    assert set(info["versions"]) >= {"lesionaug", "python", "torch", "numpy"}
    for path in done.rglob("*"):
        if path.suffix in (".json", ".csv"):
            assert str(store.parent) not in path.read_text()  # no source paths in anything written
    task = next(task for task in results.tasks if task.group_size == 30)
    assert task.name == f"cnn-classic-00030-split{task.split}-seed0"
    assert task.per_lesion == classic_groups((30,), 3, NUM_LESIONS, 480)[0].per_lesion == 4
    train = len(results.folds.train_ids(task.split))
    assert task.info["num_train_lesions"] == train
    assert task.info["num_train_images"] == 5 * train
    assert task.info["actual_added_per_fold"] == 4 * train / 2
    assert (done / "models" / task.name / "history.csv").read_text().startswith("epoch,loss,train_accuracy\n1,")


def test_pooled_predictions_hold_every_lesion_once(done: Path) -> None:
    results = load_run(done)
    for size in results.groups():
        pooled = results.pooled("classic", size, 0)
        truth = {lesion.lesion_id: lesion for lesion in results.folds.lesions}
        assert sorted(pooled.lesion_ids) == sorted(truth)
        for row, lesion_id in enumerate(pooled.lesion_ids):
            assert pooled.patient_ids[row] == truth[lesion_id].patient_id
            assert pooled.folds[row] == truth[lesion_id].fold
            assert results.classes[pooled.labels[row]] == truth[lesion_id].label
        assert np.array_equal(pooled.probabilities.argmax(1), pooled.predicted)
        expected = confusion_matrix(pooled.labels, pooled.predicted, 3)
        assert np.array_equal(pooled.summary.confusion, expected)


def test_a_saved_model_gives_the_saved_predictions(store: Path, done: Path) -> None:
    results = load_run(done)
    task = results.tasks[-1]
    trained, classes = load_classifier(done / "models" / task.name)
    assert classes == results.classes
    assert trained.mean == task.info["train_mean"]
    runner = Workshop.open(store, done)
    images, _ = runner.pool(select_lesions(load_rois(store), task.lesion_ids), 0).group(0)
    torch.testing.assert_close(
        predict_probabilities(trained, images), torch.from_numpy(task.probabilities), rtol=1e-4, atol=1e-6
    )


def test_lanes_train_the_same_models(store: Path, done: Path, tmp_path: Path) -> None:
    """As a GPU does it, on the CPU: all groups and splits at once, from one pool of images."""
    config = classic_only()
    run_experiment(store, tmp_path / "lanes", config, only="folds")
    runner = Workshop.open(store, tmp_path / "lanes")
    steps = [step for step in runner.steps.values() if step.kind == "cnn"]
    told: list[tuple[str, int]] = []
    runner.run_together(
        sorted(steps, key=lambda step: -step.cost),
        LaneChoice("separate", 4, 0.0),
        lambda step, done, total, text: told.append((step.name, done)),
    )
    runner.run(runner.steps["choice-classic"])
    ours, theirs = load_run(tmp_path / "lanes"), load_run(done)
    assert ours.complete()
    away = []
    for task in steps:
        assert (task.name, config.classifier.steps) in told
        one, other = (load_classifier(run.path / "models" / task.name)[0] for run in (ours, theirs))
        assert one.mean == other.mean
        with torch.no_grad():
            pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
            away.append(max(float((mine - its).abs().max()) for mine, its in pairs))
    # Rounding alone is 1e-7 apart. A unit at its threshold may fall on either side of it, in one model of ten, and then
    # they part by a learning step.
    assert np.median(away) < 1e-6
    assert max(away) < 1e-2
    assert np.mean(np.array(away) > 1e-5) <= 0.25
    for mine, its in zip(ours.tasks, theirs.tasks, strict=True):
        np.testing.assert_allclose(mine.probabilities, its.probabilities, atol=1e-2)
        assert mine.lesion_ids == its.lesion_ids
        assert mine.info["trained_by"] == "4 lanes, separate"
        assert its.info["trained_by"] == "plain loop"
    with pytest.raises(ConfigError, match="many models at once are for a GPU"):
        run_experiment(store, tmp_path / "new", config.model_copy(update={"device": "cpu"}), lanes=True)
    assert not (tmp_path / "new").exists()


def test_worker_processes_change_no_bit(store: Path, done: Path, tmp_path: Path) -> None:
    reports: list[tuple[int, int, str]] = []
    run_experiment(
        store,
        tmp_path / "two",
        classic_only(),
        workers=2,
        progress=lambda finished, total, text: reports.append((finished, total, text)),
    )
    assert predictions(tmp_path / "two") == predictions(done)
    for name in predictions(done):
        ours, theirs = (folder / "models" / name / "model.safetensors" for folder in (tmp_path / "two", done))
        assert ours.read_bytes() == theirs.read_bytes()
    assert {total for _, total, _ in reports} == {1000}
    assert [finished for finished, _, _ in reports] == sorted(finished for finished, _, _ in reports)
    assert reports[-1][0] == 1000
    whole = load_run(done)
    assert load_run(tmp_path / "two").done == whole.done  # every file of every step
    assert len(whole.done) == len(whole.steps) == 13


def test_the_order_of_the_store_changes_no_prediction(store: Path, done: Path, tmp_path: Path) -> None:
    from lesionaug.data.store import load_rois

    rois = load_rois(store)
    save_rois(rois[list(reversed(range(len(rois))))], tmp_path / "reversed")
    run_experiment(tmp_path / "reversed", tmp_path / "run", classic_only(), workers=1)
    assert predictions(tmp_path / "run") == predictions(done)


def test_run_again_trains_only_what_is_missing(store: Path, copy: Path, done: Path) -> None:
    names = sorted(predictions(done))
    shutil.rmtree(copy / "models" / names[1])  # the choice that was made from it stays: it comes out the same again
    chosen = "choices/choice-classic/task.json"
    chosen_at = (copy / chosen).stat().st_mtime_ns
    kept = (copy / "models" / names[0] / "task.json").stat().st_mtime_ns
    outcome = run_experiment(store, copy, None, workers=1)  # None: go on with the folder's own configuration
    assert outcome.made == (names[1], "choice-classic")
    assert len(outcome.done_before) == 11
    assert (copy / chosen).stat().st_mtime_ns == chosen_at  # it came out the same, so what needs it was not made anew
    assert (copy / "models" / names[0] / "task.json").stat().st_mtime_ns == kept
    assert predictions(copy) == predictions(done)
    assert run_experiment(store, copy, classic_only(), workers=1).made == ()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda text: text.replace('"config_sha256": "', '"config_sha256": "0'), "another configuration"),
        (lambda text: text.replace('"schema": 2', '"schema": 7'), "its schema is 7"),
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "[]", "not hold a JSON object"),
    ],
)
def test_a_model_that_is_not_the_runs_is_refused_before_training(
    store: Path, copy: Path, damage: Callable[[str], str], message: str
) -> None:
    names = sorted(predictions(copy))
    shutil.rmtree(copy / "models" / names[0])
    _edit(copy / "models" / names[1] / "task.json", damage)
    for dry_run in (True, False):
        with pytest.raises(DataError, match=rf"models/{names[1]}/task\.json: .*{message}.* Delete that folder"):
            run_experiment(store, copy, workers=1, dry_run=dry_run)
    assert not (copy / "models" / names[0]).exists()


def test_models_of_another_configuration_are_refused_in_a_folder_that_lost_its_own(store: Path, copy: Path) -> None:
    (copy / "config.json").unlink()
    tiny = classic_only()
    other = tiny.model_copy(update={"classifier": tiny.classifier.model_copy(update={"learning_rate": 0.03})})
    with pytest.raises(DataError, match="another configuration"):
        run_experiment(store, copy, other, workers=1)
    assert not (copy / "config.json").exists()
    assert len(run_experiment(store, copy, tiny, workers=1).done_before) == 13


def test_a_folder_somebody_deleted_files_from_is_trained_again(store: Path, copy: Path, done: Path) -> None:
    name = sorted(predictions(done))[0]
    (copy / "models" / name / "task.json").unlink()
    assert len(run_experiment(store, copy, dry_run=True).done_before) == 11  # nor what needs it
    run_experiment(store, copy, only="folds")
    assert (copy / "models" / name / "model.safetensors").exists()  # removed for training only
    assert run_experiment(store, copy, workers=1).made == (name, "choice-classic")
    assert predictions(copy) == predictions(done)
    shutil.rmtree(copy / "models" / name)
    (copy / "models" / name).write_text("a file")
    with pytest.raises(DataError, match=f"models/{name}: this is a file or a link"):
        run_experiment(store, copy, workers=1)
    assert (copy / "models" / name).read_text() == "a file"


def test_a_failure_in_this_process_is_a_task_that_failed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Workshop, "run", out_of_memory)
    with pytest.raises(
        TaskFailed, match=r"(classic|inner), group \d+, .*, seed 0: it stopped \(RuntimeError: no memory left\)"
    ):
        run_experiment(store, tmp_path / "run", classic_only(), workers=1)


def test_folds_that_were_changed_are_refused(store: Path, copy: Path, done: Path) -> None:
    """Swapping the folds of two lesions of one class leaves a file that is whole, fits the store and leaks nothing."""
    path = copy / "folds.json"
    written = path.read_text()
    info = json.loads((copy / "run.json").read_text())
    assert info["folds_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    folds = json.loads(written)
    alone = [row for row in folds["lesions"] if row["label"] == "cyst"]
    alone = [row for row in alone if sum(row["patient_id"] == other["patient_id"] for other in folds["lesions"]) == 1]
    one, two = alone[0], next(row for row in alone if row["fold"] != alone[0]["fold"])
    one["fold"], two["fold"] = two["fold"], one["fold"]
    path.write_text(json.dumps(folds))
    shutil.rmtree(copy / "models")
    for again in (lambda: run_experiment(store, copy, workers=1), lambda: load_run(copy)):
        with pytest.raises(ConfigError, match=r"folds\.json: it was changed since the run began \(SHA-256 .*Restore"):
            again()
    path.write_text(json.dumps({**json.loads(written), "seed": 9}))
    with pytest.raises(ConfigError, match=r"its seed is 9, but folds\.seed in config\.json is 0"):
        run_experiment(store, copy, workers=1)
    path.write_text(json.dumps({**json.loads(written), "num_folds": 4}))
    with pytest.raises(DataError, match=r"folds\.json"):  # an empty fold
        run_experiment(store, copy, workers=1)
    assert not (copy / "models").exists()
    path.write_text(written)
    assert load_run(copy).missing()


@pytest.mark.parametrize("name", ["lesionaug", "torch", "numpy", "scikit-learn"])
def test_other_versions_do_not_go_on_with_a_run(
    store: Path, copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_with = json.loads((copy / "run.json").read_text())["versions"]
    monkeypatch.setattr(machine, "versions", lambda: {**begun_with, name: "99.1"})
    with pytest.raises(
        ConfigError,
        match=rf"begun with other versions \({name} {re.escape(begun_with[name])}, now 99\.1\)\. Use the old environ",
    ):
        run_experiment(store, copy, workers=1)
    assert load_run(copy).complete()  # reading needs no old environment


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path, copy: Path) -> None:
    outcome = run_experiment(store, tmp_path / "new", classic_only(), dry_run=True)
    assert not (tmp_path / "new").exists()
    assert len(outcome.steps) == 13
    assert outcome.done_before == outcome.made == ()
    before = sorted(copy.rglob("*"))
    assert len(run_experiment(store, copy, dry_run=True).done_before) == 13
    assert sorted(copy.rglob("*")) == before


def test_stages(store: Path, tmp_path: Path) -> None:
    outcome = run_experiment(store, tmp_path / "run", classic_only(), only="folds")
    assert outcome.made == ()
    assert (tmp_path / "run" / "folds.json").exists()
    results = load_run(tmp_path / "run")
    assert not results.complete()
    assert len(results.missing("classic")) == 6
    assert len(results.missing()) == 13
    with pytest.raises(ConfigError, match=r"not trained yet: cnn-classic-00030-split0-seed0, .*lesionaug run.* again"):
        results.pooled("classic", 30, 0)
    with pytest.raises(ConfigError, match=r"--only: there is no stage 'gan'. Choose one of folds, classic, baseline"):
        run_experiment(store, tmp_path / "run", only="gan")
    outcome = run_experiment(store, tmp_path / "run", only="classic", workers=1)
    assert outcome.complete


def test_a_changed_configuration_is_refused_with_a_diff(store: Path, copy: Path) -> None:
    changed = classic_only(seeds=(0, 1), classic_groups=(0, 40))
    with pytest.raises(ConfigError) as caught:
        run_experiment(store, copy, changed)
    assert "classic_groups: 0, 30 -> 0, 40" in str(caught.value)
    assert "seeds: 0 -> 0, 1" in str(caught.value)
    assert "new run folder" in str(caught.value)
    assert caught.value.exit_code == 2


def test_another_store_is_refused(copy: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="begun on another ROI store"):
        run_experiment(other, copy, classic_only())


def test_unlabelled_stores_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = make_store(tmp_path / "unlabelled", labelled=False)
    with pytest.raises(DataError, match="24 of 24 lesions have no class"):
        run_experiment(store, tmp_path / "run", classic_only())
    assert not (tmp_path / "run").exists()


def test_two_runs_cannot_share_a_folder(store: Path, copy: Path) -> None:
    with locked(copy), pytest.raises(ConfigError, match="another process is running in this folder"):
        run_experiment(store, copy)
    run_experiment(store, copy)  # the lock is gone with its holder


def test_a_folder_of_other_things_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ConfigError, match=r"photos: this folder is no run, it holds cat\.jpg"):
        run_experiment(store, tmp_path / "photos", classic_only())
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["cat.jpg"]
    with pytest.raises(ConfigError, match=r"cat\.jpg: this is a file"):
        run_experiment(store, tmp_path / "photos" / "cat.jpg", classic_only())


def test_leftovers_of_killed_runs_are_removed(store: Path, copy: Path, done: Path) -> None:
    name = sorted(predictions(done))[0]
    shutil.rmtree(copy / "models" / name)
    half = copy / "models" / f".{name}.abc.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (copy / ".folds.json.abc.tmp").write_text("half")
    run_experiment(store, copy, workers=1)
    assert not half.exists()
    assert not (copy / ".folds.json.abc.tmp").exists()
    assert predictions(copy) == predictions(done)


def test_a_header_that_was_cut_short_is_written_anew(store: Path, tmp_path: Path, done: Path) -> None:
    """Killed before config.json: whatever else is there may be half of another configuration's."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "folds.json").write_text("{}")
    run_experiment(store, run_dir, classic_only(), only="folds")
    assert (run_dir / "folds.json").read_bytes() == (done / "folds.json").read_bytes()


def test_leaks_are_refused_even_when_the_folds_are_right(
    store: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rois = load_rois(store)
    shared = sorted(rois.patient_ids)[5]
    rows = [row for row, patient in enumerate(rois.patient_ids) if patient >= shared]
    with pytest.raises(DataError, match=rf"split 1 .* 1 patient\(s\) to be tested, for one {shared}\."):
        check_split(rois[[row for row, patient in enumerate(rois.patient_ids) if patient <= shared]], rois[rows], 1)
    runner = Workshop.open(store, copy)
    shutil.rmtree(copy / "models")
    everyone = tuple(lesion.lesion_id for lesion in runner.folds.lesions)
    monkeypatch.setattr(type(runner.folds), "train_ids", lambda *_: everyone)
    with pytest.raises(DataError, match=r"patient\(s\) to be tested"):
        runner.run(next(iter(runner.steps.values())))
    assert not (copy / "models").exists()


def test_a_task_that_fails_is_named_and_the_rest_stays(store: Path, tmp_path: Path) -> None:
    tiny = classic_only()
    broken = tiny.model_copy(update={"classifier": tiny.classifier.model_copy(update={"learning_rate": 1e9})})
    for workers in (1, 2):
        with pytest.raises(DataError, match="loss is no longer finite"):
            run_experiment(store, tmp_path / f"{workers}", broken, workers=workers)
        assert not list((tmp_path / f"{workers}" / "models").glob("*"))


def test_predictions_that_are_not_finite_are_never_committed(store: Path, tmp_path: Path) -> None:
    """The only step's loss is finite: what it did shows in the parameters or the predictions alone."""
    tiny = classic_only()
    broken = tiny.model_copy(
        update={"classifier": tiny.classifier.model_copy(update={"learning_rate": 1e38, "steps": 1})}
    )
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"classifier\.learning_rate: .* no longer finite after 1 steps"):
            run_experiment(store, tmp_path / f"{workers}", broken, workers=workers)
        assert not list((tmp_path / f"{workers}" / "models").glob("*"))


def test_a_worker_that_is_always_killed_is_one_clear_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module.Processes, "_start", killed_at_once(workers_module.Processes._start, 99))
    with pytest.raises(
        TaskFailed, match=r"(classic|inner), group \d+, .*, seed 0: its worker process was killed by signal 9, 3 times"
    ) as caught:
        run_experiment(store, tmp_path / "run", classic_only(), workers=2)
    assert caught.value.exit_code == 1
    assert load_run(tmp_path / "run").missing()


def test_a_worker_that_is_killed_is_replaced(
    store: Path, tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module.Processes, "_start", killed_at_once(workers_module.Processes._start, 2))
    run_experiment(store, tmp_path / "run", classic_only(), workers=2)
    assert load_run(tmp_path / "run").done == load_run(done).done


def killed_at_once(start: Callable[..., Any], times: int) -> Callable[..., Any]:
    """`Processes._start`, whose first `times` processes are killed."""
    started = []

    def start_and_kill(self: object) -> object:
        worker = start(self)
        started.append(worker)
        if len(started) <= times:
            worker.process.kill()
        return worker

    return start_and_kill


def test_memory_that_ran_out_is_tried_again_and_other_failures_are_not(tmp_path: Path) -> None:
    """The same for every way of running: `is_out_of_memory` alone decides."""
    from lesionaug.training.device import is_out_of_memory

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(ValueError("shape"))
    assert not is_out_of_memory(DataError("a", "b", "c"))


def test_an_interrupt_leaves_no_process_and_no_half_model(store: Path, tmp_path: Path) -> None:
    import multiprocessing

    def interrupt(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(store, tmp_path / "run", classic_only(), workers=2, progress=interrupt)
    assert not multiprocessing.active_children()
    assert load_run(tmp_path / "run").missing()


def test_the_callers_threads_and_random_state_are_left_alone(store: Path, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_experiment(store, tmp_path / "run", classic_only(), workers=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_come_from_task_names_alone() -> None:
    assert derive_seed("cnn-classic-00000-split0-seed0") == 2881622976162648268  # a change here changes every run
    names = [f"cnn-classic-00000-split{k}-seed{s}" for k in range(3) for s in range(3)]
    assert len({derive_seed(name) for name in names}) == 9
    assert all(0 <= derive_seed(name) < 2**63 for name in names)


def test_several_seeds_are_several_models(store: Path, tmp_path: Path, done: Path) -> None:
    config = classic_only(seeds=(0, 5), classic_groups=(0,))
    run_experiment(store, tmp_path / "run", config, workers=1)
    results = load_run(tmp_path / "run")
    first, second = (results.pooled("classic", 0, seed) for seed in (0, 5))
    assert first.lesion_ids == second.lesion_ids
    assert not np.array_equal(first.probabilities, second.probabilities)
    assert np.array_equal(first.probabilities, load_run(done).pooled("classic", 0, 0).probabilities)
    with pytest.raises(ConfigError, match="no classic group 0 with seed 7"):
        results.pooled("classic", 0, 7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_an_environment_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="--device: torch finds no CUDA device"):
        run_experiment(store, tmp_path / "run", classic_only().model_copy(update={"device": "cuda"}))
    assert run_experiment(store, tmp_path / "run", classic_only(), dry_run=True).config.device == "cpu"


def test_a_run_goes_on_only_where_its_device_is(store: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's device is asked for, also when the call names none."""
    _edit(copy / "config.json", lambda text: text.replace('"device": "cpu"', '"device": "cuda"'))
    assert load_config(copy).device == "cuda"
    shutil.rmtree(copy / "models")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for dry_run in (True, False):
        with pytest.raises(EnvironmentProblem, match="--device: torch finds no CUDA device"):
            run_experiment(store, copy, dry_run=dry_run)
    assert not (copy / "models").exists()


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


NAME = "cnn-classic-00030-split1-seed0"


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda run: (run / "config.json").unlink(), DataError, r"there is no config\.json in it"),
        (lambda run: (run / "config.json").write_text("{"), DataError, r"config\.json: it cannot be read"),
        (lambda run: (run / "run.json").write_text("[]"), DataError, r"run\.json: it does not hold a JSON object"),
        (lambda run: (run / "run.json").write_text('{"schema": 1}'), DataError, r"run\.json: its schema is 1"),
        (lambda run: (run / "run.json").write_text('{"schema": 2}'), DataError, r"run\.json: kind, store"),
        (lambda run: (run / "folds.json").write_text("{}"), DataError, r"folds\.json: these folds cannot be read"),
        (lambda run: (run / "models" / "extra").mkdir(), DataError, r"models/extra: this task does not belong"),
        (
            lambda run: (run / "models" / NAME / "predictions.csv").unlink(),
            DataError,
            r"predictions\.csv: it cannot be",
        ),
        (
            lambda run: _edit(run / "models" / NAME / "task.json", lambda text: text.replace('"seed": 0', '"seed": 1')),
            DataError,
            "it belongs to another task",
        ),
        (
            lambda run: _edit(run / "config.json", lambda text: text.replace('"steps": 12', '"steps": 13')),
            DataError,
            "it belongs to another configuration",
        ),
        (
            lambda run: _edit(run / "config.json", lambda text: text.replace('"steps": 12', '"stops": 12')),
            ConfigError,
            r"config\.json: unknown key classifier\.stops",
        ),
        (
            lambda run: _edit(run / "models" / NAME / "predictions.csv", lambda text: text[: len(text) // 2]),
            DataError,
            r"predictions\.csv: it",
        ),
        (
            lambda run: _edit(
                run / "models" / NAME / "predictions.csv", lambda text: "\n".join(text.splitlines()[:-1]) + "\n"
            ),
            DataError,
            "its lesions are not those of fold 1",
        ),
        (
            lambda run: _edit(
                run / "models" / NAME / "predictions.csv",
                lambda text: text.replace("cyst", "wart").replace("p_wart", "p_cyst"),
            ),
            DataError,
            "unknown class",
        ),
    ],
)
def test_a_damaged_run_is_one_clear_error(
    copy: Path, damage: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    damage(copy)
    with pytest.raises(error, match=message):
        load_run(copy)


def test_a_prediction_that_was_changed_by_hand_is_noticed(copy: Path) -> None:
    path = copy / "models" / NAME / "predictions.csv"
    lines = path.read_text().splitlines()
    row = lines[1].split(",")
    row[4] = next(name for name in ("cyst", "metastasis", "hemangioma") if name != row[4])
    path.write_text("\n".join([lines[0], ",".join(row), *lines[2:]]) + "\n")
    with pytest.raises(DataError, match="not its row's most probable one"):
        load_run(copy)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no config\.json in it. Give the folder that `lesionaug run` wrote"):
        load_run(tmp_path)
    with pytest.raises(DataError, match=r"there is no config\.json"):
        load_run(tmp_path / "nowhere")


def test_the_papers_preset_fits_the_papers_data() -> None:
    """A plan of the whole protocol without training: 27 classic models, 626 thousand steps (notes on the paper)."""
    from lesionaug.data.folds import assign_folds
    from lesionaug.experiment import costs

    labels = [name for name, n in zip("cmh", (53, 64, 65), strict=True) for _ in range(n)]
    ids = [f"{i:03d}" for i in range(182)]
    config = preset("paper")
    folds = assign_folds(ids, ids, labels, 3, 0)
    steps = protocol.plan_steps(config, folds)
    classic = [step for step in steps if step.arm == "classic" and step.kind == "cnn"]
    assert len(classic) == 27
    one = costs.classifier(config.cnn, config.classifier.model_copy(update={"steps": 1}), 10**6)
    assert sum(step.cost for step in classic) / one == pytest.approx(626e3, rel=0.02)
    assert isinstance(config, RunConfig)
    count = Counter((step.kind, step.arm) for step in steps)
    assert count == {
        ("cnn", "classic"): 27, ("cnn", "inner"): 27, ("choice", "classic"): 1, ("bovw", "bovw"): 3,
        ("gan", "dcgan"): 9, ("synthetic", "dcgan"): 3, ("cnn", "dcgan"): 18, ("choice", "dcgan"): 1,
        ("gan", "acgan"): 3, ("synthetic", "acgan"): 3, ("cnn", "acgan"): 18, ("choice", "acgan"): 1,
        ("discriminator", "acgan-discriminator"): 3, ("cnn", "equal-steps"): 27, ("cnn", "equal-count"): 3,
        ("cnn", "longer"): 3, ("cnn", "synthetic-only"): 3, ("gan", "originals"): 9, ("synthetic", "originals"): 3,
        ("cnn", "gan-originals"): 3, ("embedding", "aug"): 3, ("embedding", "aug-gan"): 3,
        ("memorisation", "dcgan"): 3, ("memorisation", "acgan"): 3,
    }  # fmt: skip
    seen: set[str] = set()
    for step in steps:  # each after what it needs, and under a name of its own
        assert set(step.needs) <= seen
        assert step.name not in seen
        seen.add(step.name)
    assert [protocol.synthetic_per_class(config, size, 3) for size in config.synthetic_groups] == [
        200, 1000, 2000, 4000, 6000, 8000,
    ]  # fmt: skip


def test_what_a_lost_worker_left_half_written_is_gone_at_the_end(store: Path, tmp_path: Path) -> None:
    left = tmp_path / "run" / "models" / ".cnn-lost.x1y2.tmp"

    def lose_one(done: int, total: int, text: str) -> None:
        left.mkdir(parents=True, exist_ok=True)

    assert run_experiment(store, tmp_path / "run", classic_only(), progress=lose_one, workers=1).complete
    assert not left.exists()
    assert (tmp_path / "run" / "models").is_dir()
