"""Training: learns, repeats bit for bit, ignores the global random state, and refuses what it cannot train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lesionaug.errors import DataError
from lesionaug.experiment import paper
from lesionaug.models.cnn import CnnConfig, LesionCnn
from lesionaug.training.classifier import (
    ClassifierConfig,
    TrainedClassifier,
    load_classifier,
    predict_probabilities,
    save_classifier,
    train_classifier,
)

SMALL = CnnConfig(channels=(4, 8, 8), dense=16)
FAST = ClassifierConfig(batch_size=16, epochs=4, learning_rate=0.02)


@pytest.fixture(autouse=True)
def _one_thread():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that differ by brightness of the middle, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.4 + 0.1 * torch.rand(count, 1, 64, 64, generator=generator)
    images[:, :, 16:48, 16:48] += 0.3 * (labels.view(-1, 1, 1, 1) - 1)
    return images, labels


def train(
    images: torch.Tensor, labels: torch.Tensor, config: ClassifierConfig = FAST, seed: int = 1
) -> TrainedClassifier:
    return train_classifier(images, labels, config, num_classes=3, cnn=SMALL, seed=seed)


def same(first: TrainedClassifier, second: TrainedClassifier) -> bool:
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return first.history == second.history and all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_and_predicts() -> None:
    trained = train(*blobs(96), ClassifierConfig(batch_size=16, epochs=30, learning_rate=0.02))
    images, labels = blobs(60, seed=5)
    probabilities = predict_probabilities(trained, images, batch_size=7)
    assert probabilities.shape == (60, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(60))
    assert (probabilities.argmax(1) == labels).float().mean() > 0.95
    assert trained.history[-1].loss < trained.history[0].loss
    assert not trained.model.training


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state() -> None:
    images, labels = blobs(50)
    torch.manual_seed(1)
    first = train(images, labels)
    state = torch.get_rng_state()
    torch.rand(1000)
    second = train(images, labels)
    assert same(first, second)
    assert not same(first, train(images, labels, seed=2))
    torch.set_rng_state(state)
    before = torch.rand(3)
    torch.set_rng_state(state)
    train(images, labels)
    assert torch.equal(torch.rand(3), before)


def test_the_mean_is_one_scalar_over_the_training_images() -> None:
    images, labels = blobs(50)
    trained = train(images, labels)
    assert isinstance(trained.mean, float)
    assert trained.mean == pytest.approx(images.double().mean().item(), abs=1e-12)
    shifted = TrainedClassifier(trained.model, trained.mean + 0.25, (), 0)
    torch.testing.assert_close(predict_probabilities(shifted, images + 0.25), predict_probabilities(trained, images))


def test_one_step_is_sgd_with_nesterov_momentum() -> None:
    """Two full-batch steps by hand: v = 0.9 v + g; w -= lr (g + 0.9 v)."""
    images, labels = blobs(12)
    cnn = CnnConfig(channels=(4, 8, 8), dense=16, dropout=0.0)
    config = ClassifierConfig(batch_size=12, epochs=2, learning_rate=0.01)
    trained = train_classifier(images, labels, config, num_classes=3, cnn=cnn, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LesionCnn(cnn, 3).double()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(2):
        loss = nn_loss(model, images.double() - images.double().mean(), labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, speed, gradient in zip(model.parameters(), velocity, gradients, strict=True):
                speed.mul_(0.9).add_(gradient)
                parameter -= 0.01 * (gradient + 0.9 * speed)
    for ours, theirs in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-4)


def nn_loss(model: LesionCnn, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return -model(images).log_softmax(1)[torch.arange(len(labels)), labels].mean()


def test_the_last_partial_batch_is_kept_and_every_step_reported() -> None:
    reports: list[tuple[int, int, str]] = []
    trained = train_classifier(
        *blobs(50),
        ClassifierConfig(batch_size=16, epochs=3),
        num_classes=3,
        cnn=SMALL,
        seed=0,
        progress=lambda done, total, text: reports.append((done, total, text)),
    )
    assert trained.num_steps == 3 * 4
    assert [(done, total) for done, total, _ in reports] == [(step, 12) for step in range(1, 13)]
    assert reports[-1][2] == "epoch 3"


def test_equal_steps_cut_the_last_epoch() -> None:
    config = ClassifierConfig(batch_size=16, steps=10)
    assert config.num_steps(50) == config.num_steps(5000) == 10
    trained = train(*blobs(50), config)
    assert trained.num_steps == 10
    assert [line.epoch for line in trained.history] == [1, 2, 3]


def test_the_defaults_are_the_papers() -> None:
    config = ClassifierConfig()
    assert config.batch_size == paper.CNN_BATCH_SIZE
    assert config.learning_rate == paper.CNN_LEARNING_RATE
    assert config.momentum == paper.CNN_MOMENTUM
    assert config.epochs == paper.CNN_EPOCHS
    assert config.nesterov
    assert config.steps is None
    # Notes on the paper: 300 steps for its smallest group, 70,600 for its largest (two folds of 61 lesions).
    assert config.num_steps(122) == 300
    assert config.num_steps(2 * (15000 + 61)) == pytest.approx(70_600, rel=0.001)


def test_images_that_are_not_finite_or_not_in_the_unit_range_are_refused() -> None:
    images, labels = blobs(12)
    for value in (float("nan"), float("inf"), -0.01, 1.01):
        wrong = images.clone()
        wrong[7, 0, 3, 3] = value
        with pytest.raises(DataError, match=r"pixels must be finite and in \(0, 1\)"):
            train(wrong, labels)


def test_labels_out_of_range_are_refused() -> None:
    images, labels = blobs(12)
    with pytest.raises(DataError, match="2 of 12 images have no class"):
        train(images, torch.where(torch.arange(12) < 2, -1, labels))
    with pytest.raises(DataError, match="label 3 is not below num_classes = 3"):
        train(images, labels + 1)


@pytest.mark.parametrize(
    "images, labels",
    [
        (torch.zeros(4, 64, 64), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 1, 64, 64, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(0, 1, 64, 64), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(4, 1, 64, 64), torch.zeros(4)),
        (torch.zeros(4, 1, 64, 64), torch.zeros(5, dtype=torch.int64)),
    ],
)
def test_wrong_shapes_and_types_are_refused(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        train(images, labels)


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(DataError, match="loss is no longer finite"):
        train(*blobs(48), ClassifierConfig(batch_size=16, epochs=30, learning_rate=1e6))


def test_a_classifier_comes_back_from_its_files(tmp_path: Path) -> None:
    images, labels = blobs(24)
    trained = train(images, labels)
    save_classifier(trained, tmp_path, ("cyst", "metastasis", "hemangioma"))
    state = torch.get_rng_state()
    loaded, classes = load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert classes == ("cyst", "metastasis", "hemangioma")
    assert loaded.mean == trained.mean
    assert torch.equal(predict_probabilities(loaded, images), predict_probabilities(trained, images))


def test_a_damaged_model_is_one_clear_error(tmp_path: Path) -> None:
    save_classifier(train(*blobs(24)), tmp_path, ("a", "b", "c"))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(DataError, match="not a readable model"):
        load_classifier(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "model.json").write_text('{"schema": 9}')
    with pytest.raises(DataError, match="not a readable model"):
        load_classifier(tmp_path)
