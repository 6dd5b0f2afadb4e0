"""Training on a GPU: it learns what the CPU learns, and a run stays on the device it began on."""

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
from lesionaug.experiment.results import load_run
from lesionaug.experiment.run import run_experiment
from lesionaug.models.cnn import CnnConfig
from lesionaug.training.classifier import ClassifierConfig, predict_probabilities, train_classifier

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        if os.environ.get("LESIONAUG_REQUIRE_CUDA") == "1":
            pytest.fail("no CUDA device, and LESIONAUG_REQUIRE_CUDA=1 says there must be one")
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def test_it_learns_what_the_cpu_learns(cuda: torch.device) -> None:
    """The same initial weights and order; dropout is off because its random numbers differ between devices."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    images = 0.4 + 0.1 * torch.rand(48, 1, 64, 64, generator=generator) + 0.1 * labels.view(-1, 1, 1, 1)
    cnn = CnnConfig(channels=(4, 8, 8), dense=16, dropout=0.0)
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


def test_a_run_stays_on_its_device(cuda: torch.device, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(-50, 150, (48, 48), generator=generator, dtype=torch.int16) for _ in range(18)]
    labels = ["cyst", "metastasis", "hemangioma"] * 6
    rois = RoiBatch.from_images(images, [[24.0, 24.0]] * 18, [14.0] * 18, labels=labels, kind="phantom")
    store, run = tmp_path / "rois", tmp_path / "run"
    save_rois(rois, store)
    tiny = preset("tiny")
    run_experiment(store, run, tiny)
    results = load_run(run)
    assert results.complete()
    assert results.config.device == "cuda"  # auto found it
    assert run_experiment(store, run, tiny).trained == ()
    with pytest.raises(ConfigError, match="device: cuda -> cpu"):
        run_experiment(store, run, tiny.model_copy(update={"device": "cpu"}))
