"""`lesionaug gan`: what it writes and refuses, and that a training killed at any moment ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import lesionaug as la
from lesionaug.cli import main
from lesionaug.data.folds import load_folds
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, save_rois
from lesionaug.data.synthetic import load_synthetic
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.memorisation import view_params
from lesionaug.experiment import gan as gan_module
from lesionaug.experiment import gan_evaluation, gan_samples, paper
from lesionaug.experiment.config import changed_values, preset
from lesionaug.experiment.gan import train_gans
from lesionaug.experiment.gan_config import gan_preset, reductions, resolve_gans
from lesionaug.experiment.gan_evaluation import evaluate_gans
from lesionaug.experiment.gan_samples import load_gans, sample_gans
from lesionaug.experiment.results import Predictions
from lesionaug.experiment.run import run_experiment
from lesionaug.training import gan_run
from tests.runs import classic_only, make_store

TINY = gan_preset("tiny").model_copy(update={"threads": 1})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("gan") / "rois")


@pytest.fixture(scope="module")
def trained(store: Path) -> Path:
    out = store.parent / "gans"
    assert run_cli("gan", "train", store, out, "--preset", "tiny", "--threads", 1) == 0
    return out


def run_cli(*words) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(word) for word in words])
    return int(exited.value.code or 0)


def weights(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("gans/*/final/*.safetensors"))}


def test_what_a_training_leaves(trained: Path, store: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    final = {"gan.json", "generator.safetensors", "discriminator.safetensors", "metrics.jsonl", "strip.safetensors"}
    expected = {f"gans/class-{i}/final/{name}" for i in range(3) for name in final}
    expected |= {f"gans/class-{i}/metrics.jsonl" for i in range(3)}
    expected |= {f"figures/{name}.png" for name in ("training", "strip", "samples")}
    assert names == expected | {"config.json", "run.json", "folds.json", ".lock"}
    folds, rois = load_folds(trained / "folds.json"), load_rois(store)
    train = set(folds.train_ids(0))
    seen = set()
    for index, name in enumerate(rois.classes):
        info = json.loads((trained / f"gans/class-{index}/final/gan.json").read_text())
        assert info["classes"] == [name]
        ids = set(info["sources"]["lesions"])
        assert ids <= train
        assert {rois.classes[int(rois.labels[rois.lesion_ids.index(i)])] for i in ids} == {name}
        seen |= ids
    assert seen == train


def test_a_sample_knows_whom_it_came_from(trained: Path, store: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("gan", "sample", trained, tmp_path / "s", "--per-class", 4, "--seed", 3) == 0
    assert (
        "12 synthetic ROIs, 4 of each of cyst, metastasis, hemangioma (learned from phantom" in capsys.readouterr().out
    )
    rois = load_synthetic(tmp_path / "s")
    assert rois.images.shape == (12, 1, 64, 64)
    assert rois.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    everyone, folds = load_rois(store), load_folds(trained / "folds.json")
    test = everyone[[everyone.lesion_ids.index(i) for i in folds.test_ids(0)]]
    train = everyone[[everyone.lesion_ids.index(i) for i in folds.train_ids(0)]]
    rois.check_apart(test)
    with pytest.raises(DataError, match="Use them in split 0 of their own folds only"):
        rois.check_apart(train[:1])
    copy = RoiBatch.from_images(train.images[:1], train.centers[:1], train.diameters[:1])
    with pytest.raises(DataError, match="go by other names"):
        rois.check_apart(copy)
    more = sample_gans(trained, tmp_path / "more", 6, seed=3)
    for label in range(3):  # a smaller sample is the beginning of a larger one
        few, many = rois.images[rois.labels == label], more.images[more.labels == label]
        assert torch.allclose(few, many[:4], atol=1e-6)
    assert not torch.equal(sample_gans(trained, tmp_path / "other", 4, seed=4).images, rois.images)


def test_an_acgan_is_judged_as_a_classifier(store: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "acgan"
    assert run_cli("gan", "train", store, out, "--preset", "tiny", "--kind", "acgan", "--threads", 1, "--split", 1) == 0
    folds = load_folds(out / "folds.json")
    text = (out / "gans/all-classes/final/predictions.csv").read_text()
    found = Predictions.from_csv(text, load_rois(store).classes)
    assert found.lesion_ids == folds.test_ids(1)
    assert set(found.folds) == {1}
    assert sample_gans(out, tmp_path / "s", 2).labels.tolist() == [0, 0, 1, 1, 2, 2]
    correct = int((found.labels == found.predicted).sum())
    assert (
        f"The discriminator as a classifier: {correct} of {len(found.labels)} test lesions" in capsys.readouterr().out
    )


def test_the_same_command_again_changes_nothing(trained: Path, store: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trained.rglob("final/*")}
    assert train_gans(store, trained).done_before == ("class-0", "class-1", "class-2")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in trained.rglob("final/*")} == before


def test_two_trainings_are_equal_and_seeds_and_splits_are_not(trained: Path, store: Path, tmp_path: Path) -> None:
    train_gans(store, tmp_path / "again", TINY)
    assert weights(tmp_path / "again") == weights(trained)
    for name, change in (("seed", {"seed": 1}), ("split", {"split": 2})):
        train_gans(store, tmp_path / name, TINY.model_copy(update=change))
        assert weights(tmp_path / name).keys() == weights(trained).keys()
        assert all(weights(tmp_path / name)[key] != value for key, value in weights(trained).items())


def test_a_process_that_waited_sees_what_was_begun_meanwhile(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned on an empty folder, and begun by another process with another seed before the lock was free."""
    out = tmp_path / "g"
    remake = gan_module.locked

    def late(folder: Path):
        monkeypatch.setattr(gan_module, "locked", remake)
        train_gans(store, out, TINY.model_copy(update={"seed": 5}))
        return remake(folder)

    monkeypatch.setattr(gan_module, "locked", late)
    with pytest.raises(ConfigError, match="seed: 5 -> 0"):
        train_gans(store, out, TINY)
    before = weights(out)
    monkeypatch.setattr(gan_module, "locked", late)
    assert train_gans(store, out, None).done_before == ("class-0", "class-1", "class-2")
    assert weights(out) == before


def test_other_versions_are_refused_and_what_kills_left_is_removed(trained: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "g"
    shutil.copytree(trained, out)
    (out / "gans/class-1/checkpoints/step-000000012").mkdir(parents=True)
    (out / "figures/.strip.png.abc.tmp").write_text("x")
    train_gans(store, out)
    assert not (out / "gans/class-1/checkpoints").exists()
    assert not (out / "figures/.strip.png.abc.tmp").exists()
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "versions": {**info["versions"], "torch": "1.0"}}))
    with pytest.raises(ConfigError, match=r"begun with other versions \(torch 1\.0, now"):
        train_gans(store, out)


def test_a_dry_run_writes_nothing(store: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("gan", "train", store, tmp_path / "g", "--preset", "paper", "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())  # a title may be broken
    assert "nothing was written" in out
    assert "Departs" not in out
    assert not (tmp_path / "g").exists()


def test_a_changed_configuration_store_or_folder_is_refused(trained: Path, store: Path, tmp_path: Path, capsys) -> None:
    assert run_cli("gan", "train", store, trained, "--preset", "tiny", "--seed", 5) == 2
    assert "seed: 0 -> 5" in capsys.readouterr().err
    other = make_store(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="begun on another ROI store"):
        train_gans(other, trained)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds thesis\.txt"):
        train_gans(store, tmp_path / "full", TINY)
    with pytest.raises(ConfigError, match="this is a file"):
        train_gans(store, tmp_path / "full" / "thesis.txt", TINY)
    with pytest.raises(ConfigError, match=r"there are splits 0 \.\. 2, got 3"):
        train_gans(store, tmp_path / "g", TINY.model_copy(update={"split": 3}))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "folds.json").write_text((copy / "folds.json").read_text() + " ")
    with pytest.raises(ConfigError, match="changed since the training began"):
        train_gans(store, copy)


def test_copies_of_test_lesions_are_refused(store: Path, tmp_path: Path) -> None:
    """The same pixels under the name of another patient, in the other folds."""
    rois = load_rois(store)
    images = list(rois.images)
    folds = load_folds_of(store)
    tested, trained_on = folds.test_ids(0)[0], folds.train_ids(0)[0]
    source, target = rois.lesion_ids.index(tested), rois.lesion_ids.index(trained_on)
    images[target] = images[source]
    centers, diameters = rois.centers.clone(), rois.diameters.clone()
    centers[target], diameters[target] = centers[source], diameters[source]
    forged = RoiBatch.from_images(
        images, centers, diameters, labels=rois.labels, lesion_ids=rois.lesion_ids, patient_ids=rois.patient_ids,
        classes=rois.classes, kind="phantom",
    )  # fmt: skip
    save_rois(forged, tmp_path / "forged")
    with pytest.raises(DataError, match="pixels of 1 lesion"):
        train_gans(tmp_path / "forged", tmp_path / "g", TINY)
    assert not (tmp_path / "g").exists()


def load_folds_of(store: Path):
    from lesionaug.data.folds import make_folds

    return make_folds(load_rois(store), 3, 0)


def test_pickles_and_other_folders_are_not_read(tmp_path: Path, store: Path, capsys) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "generator.pt")
    assert run_cli("gan", "sample", tmp_path / "generator.pt", tmp_path / "s", "--per-class", 1) == 3
    assert "this is a pickle, which can run any code" in capsys.readouterr().err
    assert run_cli("gan", "sample", store, tmp_path / "s", "--per-class", 1) == 3
    assert "there is no config.json in it" in capsys.readouterr().err


def test_unfinished_gans_are_not_sampled(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "part")
    shutil.rmtree(tmp_path / "part/gans/class-1")
    with pytest.raises(ConfigError, match="no GAN for metastasis is finished"):
        load_gans(tmp_path / "part")
    with pytest.raises(ConfigError, match="at least one image"):
        sample_gans(trained, tmp_path / "s", 0)
    with pytest.raises(DataError, match="exists already"):
        sample_gans(trained, tmp_path, 1)


def test_copies_of_training_lesions_are_left_out(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Every other image of the first class is replaced by a training lesion, turned."""
    rois = load_rois(store)
    folds = load_folds(trained / "folds.json")
    cyst = rois[[i for i, id_ in enumerate(rois.lesion_ids) if id_ in folds.train_ids(0) and int(rois.labels[i]) == 0]]
    who, views = torch.arange(40) % len(cyst), torch.arange(40) * 27
    copies = la.augment(cyst, view_params(cyst, who, views), window=(-160, 240))
    honest = gan_samples.sample

    def half(gan, count, seed, label=None):
        images = honest(gan, count, seed, label)
        if gan.info["classes"] == ["cyst"]:
            images[::2] = copies[: len(images[::2])]
        return images

    monkeypatch.setattr(gan_samples, "sample", half)
    assert run_cli("gan", "sample", trained, tmp_path / "s", "--per-class", 6, "--reject-copies", store) == 0
    assert "left out: 6 cyst, 0 metastasis, 0 hemangioma" in capsys.readouterr().out
    kept = load_synthetic(tmp_path / "s")
    assert kept.details["copies_rejected"] == {"cyst": 6, "metastasis": 0, "hemangioma": 0}
    monkeypatch.undo()
    whole = sample_gans(trained, tmp_path / "t", 12)
    assert torch.allclose(kept.images[:6], whole.images[1:12:2], atol=1e-6)

    monkeypatch.setattr(gan_samples, "sample", lambda gan, count, seed, label=None: copies[:1].repeat(count, 1, 1, 1))
    with pytest.raises(DataError, match="0 are no copies of training lesions"):
        sample_gans(trained, tmp_path / "u", 6, reject_copies=store)
    assert not (tmp_path / "u").exists()
    with pytest.raises(ConfigError, match="not the store the GANs were trained on"):
        sample_gans(trained, tmp_path / "u", 6, reject_copies=make_other(tmp_path / "other"))


def make_other(path: Path) -> Path:
    """Other lesions under the same ids."""
    return make_store(path, seed=1)


def test_an_evaluation(trained: Path, store: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    gans = tmp_path / "gans"
    shutil.copytree(trained, gans)
    preset_steps(monkeypatch)
    assert run_cli("gan", "evaluate", store, gans, "--per-class", 20) == 0
    out = capsys.readouterr().out
    for text in (
        "phantom data, not patients",
        "KID to training lesions",
        "copies",
        "collapsed",
        "docs/gan-evaluation.md",
    ):
        assert text in out
    found = json.loads((gans / "evaluation/evaluation.json").read_text())
    assert (found["split"], found["kind"], found["gan"], found["per_class"]) == (0, "phantom", "dcgan", 20)
    for numbers in found["classes"].values():
        kid = numbers["kid_to_training"]
        assert kid["held-out lesions"]["value"] < kid["noise"]["value"]
        assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in kid.values())
        assert numbers["diversity"]["synthetic"]["collapsed"]  # twelve steps teach nothing
        assert not numbers["diversity"]["held-out lesions"]["collapsed"]
        assert 0 <= numbers["memorisation"]["nearer_to_training"]["value"] <= 1
        assert numbers["frechet"]["synthetic"]["warning"].startswith(f"from {numbers['num_training_lesions']} indep")
    # Of the two to four held-out lesions of a class here, a chance neighbour is half of them.
    copies = [numbers["memorisation"]["copies"]["held-out lesions"] for numbers in found["classes"].values()]
    assert min(copies) < 0.5
    before = (gans / "evaluation/classifier/model.safetensors").stat().st_mtime_ns
    evaluate_gans(store, gans, per_class=20)
    assert (gans / "evaluation/classifier/model.safetensors").stat().st_mtime_ns == before
    assert json.loads((gans / "evaluation/evaluation.json").read_text()) == found

    run = tmp_path / "run"
    run_experiment(store, run, classic_only(), workers=1)
    with_run = evaluate_gans(store, gans, run=run, per_class=20)
    assert with_run.features_of == "the run's CNN of classic group 30 on this split"
    other = classic_only(folds=classic_only().folds.model_copy(update={"seed": 1}))
    run_experiment(store, tmp_path / "run2", other, only="folds")
    with pytest.raises(ConfigError, match="other folds or another window"):
        evaluate_gans(store, gans, run=tmp_path / "run2", per_class=20)
    with pytest.raises(ConfigError, match="at least 20 images"):
        evaluate_gans(store, gans, per_class=5)
    with pytest.raises(ConfigError, match="--seed"):
        evaluate_gans(store, gans, seed=-1)
    with pytest.raises(ConfigError, match="not the store the GANs were trained on"):
        evaluate_gans(make_other(tmp_path / "other"), gans)


def preset_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier for the features in seconds."""
    quick = preset("quick")
    short = quick.model_copy(update={"classifier": quick.classifier.model_copy(update={"steps": 40})})
    monkeypatch.setattr(gan_evaluation, "preset", lambda name: short)


def test_presets_and_files() -> None:
    assert reductions(gan_preset("paper")) == reductions(gan_preset("paper", "acgan")) == []
    acgan = gan_preset("paper", "acgan").gan
    assert (acgan.learning_rate, acgan.epochs) == (paper.ACGAN_LEARNING_RATE, paper.ACGAN_EPOCHS)
    assert (acgan.conditioning, acgan.network) == ("auxiliary", gan_preset("paper").gan.network)
    for name in ("quick", "demo"):
        config = gan_preset(name)
        assert config.gan.network.generator_channels == (256, 128, 64, 32)
        assert 60 <= config.gan.steps <= 100
        assert any("generator_channels" in line for line in reductions(config))
    assert gan_preset("modern", "acgan").gan.conditioning == "projection"
    for kind in ("dcgan", "acgan"):  # a part that the paper's has not, and the other way round
        assert any(line.startswith("gan.augment: {") for line in reductions(gan_preset("modern", kind)))
    without = gan_preset("modern").model_copy(update={"gan": gan_preset("paper").gan})
    assert [key for key, _, after in changed_values(gan_preset("modern"), without) if after is None] == ["gan.augment"]
    with pytest.raises(ConfigError, match="no preset 'best'"):
        gan_preset("best")


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('preset = "tiny"\nkind = "acgan"\n[gan]\nsteps = 7\n')
    config = resolve_gans(toml=file, split=2)
    assert (config.preset, config.kind, config.gan.steps, config.split) == ("tiny", "acgan", 7, 2)
    file.write_text('preset = "quick"\n[gan]\nepochs = 3\n')
    assert (resolve_gans(toml=file).gan.steps, resolve_gans(toml=file).gan.epochs) == (
        None,
        3,
    )  # not the preset's steps
    file.write_text('preset = "modern"\n[gan]\naugment = false\n')
    assert resolve_gans(toml=file).gan.augment is None
    file.write_text('preset = "modern"\n[gan.augment]\nshift = 0.5\n')
    assert resolve_gans(toml=file).gan.augment.shift == 0.5
    assert resolve_gans(toml=file).gan.augment.adaptive
    for text, message in (
        ('preset = "tiny"', "says preset 'tiny' and the command line 'paper'"),
        ("[gan]\nstep = 7", r"unknown key gan\.step\. Did you mean gan\.steps"),
        ("[gan]\nbatch_size = 1", r"gan\.batch_size"),
        ('[gan]\nconditioning = "auxiliary"', "kind dcgan does not go with"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            resolve_gans("paper", toml=file)


def start(store: Path, out: Path, config: Path) -> subprocess.Popen:
    words = ["gan", "train", str(store), str(out), "--config", str(config), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lesionaug", *words], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_for_steps(process: subprocess.Popen, out: Path, least: int) -> None:
    """Until metrics show that training is under way."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        lines = sum(len(file.read_text().splitlines()) for file in out.glob("gans/*/metrics.jsonl"))
        if lines >= least:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.timeout(900)
def test_killed_again_and_again(kills: int, store: Path, tmp_path: Path) -> None:
    config = tmp_path / "f.toml"
    config.write_text(f'preset = "tiny"\n[gan]\nsteps = {max(60, 20 * kills)}\n')
    out, chance = tmp_path / "g", random.Random(kills)
    killed, progress = 0, 0
    while True:
        process = start(store, out, config)
        if killed < kills:
            if killed != 1:  # the second is hit wherever it is: it loads torch, or begins the folder
                wait_for_steps(process, out, progress + 1)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        _, errors = process.communicate(timeout=300)
        progress = sum(len(file.read_text().splitlines()) for file in out.glob("gans/*/metrics.jsonl"))
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
        killed += 1
    assert killed == kills
    train_gans(store, tmp_path / "whole", resolve_gans(toml=config, threads=1))
    assert weights(out) == weights(tmp_path / "whole")
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_finishes_the_step_and_saves(number: int, store: Path, tmp_path: Path) -> None:
    config = tmp_path / "f.toml"
    config.write_text('preset = "tiny"\n[gan]\nsteps = 400\n')
    process = start(store, tmp_path / "g", config)
    wait_for_steps(process, tmp_path / "g", 2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert b"Stopped; what was done is saved" in out
    (checkpoint,) = sorted((tmp_path / "g/gans/class-0/checkpoints").iterdir())[-1:]
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    lines = (tmp_path / "g/gans/class-0/metrics.jsonl").read_text().splitlines()
    assert 0 < step < 400
    assert step - 2 < json.loads(lines[-1])["step"] <= step


def test_metrics_reach_a_listener_and_tensorboard_asks_for_its_package(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    told = []
    train_gans(store, tmp_path / "g", TINY, on_metrics=lambda name, line: told.append((name, line["step"])))
    assert told == [(f"class-{i}", step) for i in range(3) for step in range(1, 13)]

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.name, self.first = Path(folder).name, purge_step
            written.append(self)
            self.rows: list[tuple[str, float, int]] = []

        def add_scalar(self, key: str, value: float, step: int) -> None:
            self.rows.append((key, value, step))

        def flush(self) -> None:
            pass

    written: list[Writer] = []
    words = ("gan", "train", store, tmp_path / "t", "--preset", "tiny", "--threads", 1, "--tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run_cli(*words) == 4
    assert "pip install tensorboard" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    assert run_cli(*words) == 0
    assert [(w.name, w.first) for w in written] == [(f"class-{i}", 1) for i in range(3)]
    lines = [json.loads(line) for line in (tmp_path / "t/gans/class-2/metrics.jsonl").read_text().splitlines()]
    keys = [key for key in lines[0] if key not in ("step", "seconds")]
    wanted = [(key, line[key], line["step"]) for line in lines for key in keys]
    assert written[2].rows == wanted


def test_deterministic_algorithms_are_asked_for_and_given_back(store: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []
    step = gan_run.train_step
    monkeypatch.setattr(
        gan_run, "train_step", lambda *a: asked.append(torch.are_deterministic_algorithms_enabled()) or step(*a)
    )
    train_gans(store, tmp_path / "g", TINY.model_copy(update={"deterministic": True}))
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_figures_say_what_they_show(trained: Path) -> None:
    from PIL import Image

    for name in ("training", "strip", "samples"):
        picture = np.asarray(Image.open(trained / "figures" / f"{name}.png").convert("L"))
        assert picture.std() > 10
