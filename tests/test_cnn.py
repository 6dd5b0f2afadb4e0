"""The paper's CNN: parameter count, shapes, initial weights, and that pooling before ReLU changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lesionaug.experiment import paper
from lesionaug.models.cnn import CnnConfig, LesionCnn


def test_three_classes_have_the_papers_parameter_count() -> None:
    assert LesionCnn(CnnConfig(), 3).num_parameters == 1_273_347


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
def test_any_number_of_classes(num_classes: int) -> None:
    model = LesionCnn(CnnConfig(), num_classes)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, num_classes)
    assert model.num_parameters == 1_273_347 + (num_classes - 3) * 257
    with pytest.raises(ValueError, match="at least 2"):
        LesionCnn(CnnConfig(), 1)


def test_the_defaults_are_the_papers() -> None:
    config = CnnConfig()
    assert (config.image_size, config.channels, config.kernel) == (paper.ROI_SIZE, paper.CNN_CHANNELS, paper.CNN_KERNEL)
    assert (config.pool, config.dense, config.dropout) == (paper.CNN_POOL, paper.CNN_DENSE, paper.CNN_DROPOUT)
    assert config.final_size == 6


def test_it_equals_the_plain_keras_like_network() -> None:
    """The oracle is written the way the paper draws it: convolution, ReLU, pooling."""
    model = LesionCnn(CnnConfig(), 3).eval()
    plain = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4608, 256), nn.ReLU(), nn.Linear(256, 3)),
    ).eval()
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            theirs.copy_(ours)
        images = torch.rand(5, 1, 64, 64)
        torch.testing.assert_close(model(images), plain(images))
        torch.testing.assert_close(model.features(images), plain[:-1](images))
        assert model.features(images).shape == (5, 256)


def test_dropout_works_on_the_dense_layer_in_training_only() -> None:
    model = LesionCnn(CnnConfig(), 3)
    images = torch.rand(4, 1, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    model = LesionCnn(CnnConfig(), 3, torch.Generator().manual_seed(1))
    fans = {"convolutions.0": (9, 288), "convolutions.1": (288, 576), "convolutions.2": (576, 1152)}
    fans |= {"dense": (4608, 256), "output": (256, 3)}
    for name, (fan_in, fan_out) in fans.items():
        layer = model.get_submodule(name)
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.97 * limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.15)
        assert not layer.bias.any()


def test_a_generator_decides_the_initial_weights() -> None:
    first, second, other = (LesionCnn(CnnConfig(), 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.dense.weight, other.dense.weight)


def test_reduced_widths_come_from_the_configuration() -> None:
    model = LesionCnn(CnnConfig(channels=(4, 8), dense=16, image_size=32), 3)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    assert model.config.final_size == 6


@pytest.mark.parametrize(
    "wrong", [{"channels": ()}, {"dropout": 1.0}, {"dense": 0}, {"widht": 3}, {"image_size": 16, "channels": (4,) * 5}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CnnConfig.model_validate(wrong)


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        CnnConfig().dense = 3  # type: ignore[misc]
