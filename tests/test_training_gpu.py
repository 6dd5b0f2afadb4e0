"""Training on a GPU: it learns what the CPU learns, waits for nothing, and a run stays on the device it began on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic", reason="needs what the command line needs, which `make gpu` does not fetch")

from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import save_rois
from lesionaug.errors import ConfigError
from lesionaug.experiment.config import preset
from lesionaug.experiment.gan_config import GAN_KINDS, GAN_PRESETS, gan_preset
from lesionaug.experiment.results import load_run
from lesionaug.experiment.run import run_experiment
from lesionaug.models.cnn import CnnConfig
from lesionaug.training.classifier import ClassifierConfig, predict_probabilities, train_classifier
from lesionaug.training.differentiable import DiscriminatorAugmentation, transform
from lesionaug.training.draws import draw_classes, draw_noise, draw_order
from lesionaug.training.gan import Gan, train_step
from lesionaug.training.gan_batches import PoolBatches
from lesionaug.training.gan_run import train_gan
from lesionaug.training.graphs import GraphedSteps
from lesionaug.training.lane_choice import fastest_lanes
from lesionaug.training.lanes import LANE_FORMS, Lane, LaneForm, train_lanes

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        if os.environ.get("LESIONAUG_REQUIRE_CUDA") == "1":
            pytest.fail("no CUDA device, and LESIONAUG_REQUIRE_CUDA=1 says there must be one")
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def test_it_learns_what_the_cpu_learns(cuda: torch.device) -> None:
    """The same initial weights, order and dropout."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    images = 0.4 + 0.1 * torch.rand(48, 1, 64, 64, generator=generator) + 0.1 * labels.view(-1, 1, 1, 1)
    cnn = CnnConfig(channels=(4, 8, 8), dense=16)
    config = ClassifierConfig(batch_size=16, epochs=4, learning_rate=0.02)
    there, here = (
        train_classifier(images, labels, config, num_classes=3, cnn=cnn, seed=1, device=device)
        for device in (cuda, "cpu")
    )
    assert there.mean == pytest.approx(here.mean, abs=1e-9)
    ours, theirs = (predict_probabilities(trained, images) for trained in (there, here))
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # TF32 convolutions keep ten bits


def test_the_global_random_states_are_left_alone(cuda: torch.device) -> None:
    before = torch.cuda.get_rng_state()
    train_classifier(
        torch.rand(8, 1, 64, 64),
        torch.arange(8) % 2,
        ClassifierConfig(batch_size=4, epochs=1),
        num_classes=2,
        cnn=CnnConfig(channels=(4,), dense=8),
        seed=1,
        device=cuda,
    )
    assert torch.equal(torch.cuda.get_rng_state(), before)


def some_rois() -> RoiBatch:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(-50, 150, (48, 48), generator=generator, dtype=torch.int16) for _ in range(18)]
    labels = ["cyst", "metastasis", "hemangioma"] * 6
    return RoiBatch.from_images(images, [[24.0, 24.0]] * 18, [14.0] * 18, labels=labels, kind="phantom")


def test_a_run_stays_on_its_device(cuda: torch.device, tmp_path: Path) -> None:
    store, run = tmp_path / "rois", tmp_path / "run"
    save_rois(some_rois(), store)
    tiny = preset("tiny")
    run_experiment(store, run, tiny)
    results = load_run(run)
    assert results.complete()
    assert results.config.device == "cuda"  # auto found it
    assert run_experiment(store, run, tiny).trained == ()
    with pytest.raises(ConfigError, match="device: cuda -> cpu"):
        run_experiment(store, run, tiny.model_copy(update={"device": "cpu"}))


def test_random_numbers_are_the_cpus(cuda: torch.device) -> None:
    cpu = torch.device("cpu")
    assert torch.equal(draw_noise("uniform", 5, 3, 64, 100, cuda).cpu(), draw_noise("uniform", 5, 3, 64, 100, cpu))
    assert torch.allclose(draw_noise("normal", 5, 3, 9, 7, cuda).cpu(), draw_noise("normal", 5, 3, 9, 7, cpu))
    assert torch.equal(draw_classes(5, 3, 64, 3, cuda).cpu(), draw_classes(5, 3, 64, 3, cpu))
    assert torch.equal(draw_order(5, 3, 64, cuda).cpu(), draw_order(5, 3, 64, cpu))


def test_the_discriminators_transforms_are_the_cpus(cuda: torch.device) -> None:
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    config, often = DiscriminatorAugmentation(), torch.tensor(1.0, dtype=torch.float64)
    on_gpu = transform(images.to(cuda), config, often.to(cuda), 1, 2, 0)
    assert torch.allclose(on_gpu.cpu(), transform(images, config, often, 1, 2, 0), atol=1e-4)


def gan_pool(device: torch.device, batch_size: int) -> PoolBatches:
    labels = torch.arange(40) % 3
    noise = torch.rand(40, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    images = 0.2 + 0.1 * noise + 0.2 * labels.view(-1, 1, 1, 1)
    return PoolBatches(images.to(device), labels.to(device), batch_size, 3)


@pytest.mark.parametrize("kind", GAN_KINDS)
@pytest.mark.parametrize("name", GAN_PRESETS)
def test_a_gan_step_is_the_cpus_and_waits_for_nothing(cuda: torch.device, kind: str, name: str) -> None:
    config = gan_preset(name, kind).gan.model_copy(update={"batch_size": 8})
    gans = {device: Gan.build(config, 3, 7, device) for device in (torch.device("cpu"), cuda)}
    metrics = {}
    for device, gan in gans.items():
        source = gan_pool(device, 8)
        rows = [train_step(gan, *source.batch(0))]  # plans and workspaces are made here
        batch = source.batch(1)
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            rows.append(train_step(gan, *batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        metrics[device.type] = torch.stack(rows).cpu()
    assert torch.allclose(metrics["cuda"], metrics["cpu"], rtol=2e-2, atol=2e-3, equal_nan=True)  # TF32 in convolutions


@pytest.mark.parametrize("kind", GAN_KINDS)
@pytest.mark.parametrize("name", GAN_PRESETS)
def test_recorded_gan_steps_are_those_of_the_plain_loop(cuda: torch.device, kind: str, name: str) -> None:
    config = gan_preset(name, kind).gan.model_copy(update={"batch_size": 8, "r1": 1.0, "r1_every": 4})
    plain, recorded = Gan.build(config, 3, 7, cuda), Gan.build(config, 3, 7, cuda)
    source, steps = gan_pool(cuda, 8), GraphedSteps(recorded)
    rows = []
    for step in range(20):
        batch = source.batch(step)
        rows.append((train_step(plain, *batch), steps(*batch)))
    ours, theirs = (torch.stack(side).cpu() for side in zip(*rows, strict=True))
    assert recorded.step == recorded.counter.item() == 20
    # In TF32 a difference of rounding grows from step to step.
    assert torch.allclose(ours[:8], theirs[:8], rtol=1e-3, atol=1e-3, equal_nan=True)
    assert torch.allclose(ours, theirs, rtol=5e-2, atol=5e-2, equal_nan=True)


def test_a_recorded_gan_step_waits_for_nothing(cuda: torch.device) -> None:
    config = gan_preset("modern").gan.model_copy(update={"batch_size": 8})
    gan, source = Gan.build(config, 3, 7, cuda), gan_pool(cuda, 8)
    steps = GraphedSteps(gan)
    for step in range(6):  # 0 and 4 take the penalty; 1, 2, 3 warm up, 5 records
        steps(*source.batch(step))
    batch = source.batch(6)
    try:
        torch.cuda.set_sync_debug_mode("error")
        steps(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", LANE_FORMS)
@pytest.mark.parametrize("num_lanes", [1, 3, 8])
def test_lanes_learn_what_the_plain_loop_learns(cuda: torch.device, form: LaneForm, num_lanes: int) -> None:
    """More trainings than lanes, of different lengths, as CUDA graphs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 3
    images = 0.3 + 0.2 * torch.rand(200, 1, 64, 64, generator=generator) + 0.1 * labels.view(-1, 1, 1, 1)
    cnn, config = CnnConfig(channels=(4, 8, 8), dense=16), ClassifierConfig(batch_size=16, epochs=5)
    lanes = [Lane(str(i), first, count, i) for i, (first, count) in enumerate([(0, 200), (20, 90), (50, 64), (7, 10)])]
    done = {}
    train_lanes(
        images, labels, lanes, config, num_classes=3, cnn=cnn, num_lanes=num_lanes, form=form, device=cuda,
        on_trained=lambda lane, trained: done.update({lane.name: trained}),
    )  # fmt: skip
    assert len(done) == 4
    for lane in lanes:
        members = slice(lane.first, lane.first + lane.count)
        alone = train_classifier(
            images[members], labels[members], config, num_classes=3, cnn=cnn, seed=lane.seed, device=cuda
        )
        ours, theirs = done[lane.name], alone
        assert ours.mean == pytest.approx(theirs.mean, abs=1e-9)
        for mine, its in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(mine, its, atol=2e-3, rtol=0)
        for mine, its in zip(ours.history, theirs.history, strict=True):
            assert mine.loss == pytest.approx(its.loss, abs=5e-3)


def test_the_fastest_lanes_are_found(cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = ClassifierConfig()
    best = fastest_lanes(CnnConfig(), config, 3, cuda)
    assert best.samples_per_s > 0
    assert fastest_lanes(CnnConfig(), config, 3, cuda) == best


def test_a_run_in_lanes_is_the_run(cuda: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # The classic groups alone: of this task's few lesions no GAN can be made.
    less = {"gans": (), "bovw": None, "controls": (), "embedding": None, "memorisation": None}
    store, tiny = tmp_path / "rois", preset("tiny").model_copy(update=less)
    save_rois(some_rois(), store)
    run_experiment(store, tmp_path / "plain", tiny)
    run_experiment(store, tmp_path / "lanes", tiny, lanes=True)
    plain, lanes = load_run(tmp_path / "plain"), load_run(tmp_path / "lanes")
    assert lanes.complete()
    for mine, its in zip(lanes.tasks, plain.tasks, strict=True):
        assert "lanes" in mine.info["trained_by"]
        assert abs(mine.probabilities - its.probabilities).max() < 0.02


@pytest.mark.parametrize("graphs", [False, True])
def test_a_gan_is_resumed_on_the_gpu(cuda: torch.device, tmp_path: Path, graphs: bool) -> None:
    config = gan_preset("tiny").gan
    steps = iter(range(1, 100))
    part = train_gan(
        gan_pool(cuda, 8), config, num_classes=3, seed=7, device=cuda, folder=tmp_path, graphs=graphs,
        should_stop=lambda: next(steps) == 5,
    )  # fmt: skip
    assert not part.finished
    rest = train_gan(gan_pool(cuda, 8), config, num_classes=3, seed=7, device=cuda, folder=tmp_path, graphs=graphs)
    whole = train_gan(gan_pool(cuda, 8), config, num_classes=3, seed=7, device=cuda)
    for name, tensor in rest.gan.tensors().items():
        assert torch.allclose(tensor.float(), whole.gan.tensors()[name].float(), rtol=1e-2, atol=1e-3), name
