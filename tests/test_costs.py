"""Costs of steps against torch's own count of operations, and times made of them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lesionaug.experiment import costs
from lesionaug.experiment.config import preset
from lesionaug.experiment.estimate import known_rates, measure_rates, seconds_of, show_seconds
from lesionaug.experiment.protocol import Step
from lesionaug.models.cnn import CnnConfig, LesionCnn
from lesionaug.models.dcgan import DcganConfig
from lesionaug.training.classifier import ClassifierConfig
from lesionaug.training.gan import Gan, GanConfig, train_step

SMALL = DcganConfig(generator_channels=(64, 32, 16, 8), discriminator_channels=(8, 16, 32, 64))


@pytest.mark.parametrize("cnn", [CnnConfig(), CnnConfig(channels=(8, 16, 32), dense=64)])
def test_a_classifiers_step_costs_what_torch_counts(cnn: CnnConfig) -> None:
    model = LesionCnn(cnn, 3)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(16, 1, cnn.image_size, cnn.image_size)).sum().backward()
    counted = counter.get_total_flops() / 2  # multiply-adds
    ours = costs.classifier(cnn, ClassifierConfig(steps=1, batch_size=16), 100)
    assert ours == pytest.approx(counted, rel=0.1)  # the first layer needs no gradient of its input


def test_a_gans_step_costs_what_torch_counts() -> None:
    config = GanConfig(network=SMALL, batch_size=8, steps=1)
    gan = Gan.build(config, 3, 0)
    with FlopCounterMode(display=False) as counter:
        train_step(gan, torch.rand(8, 1, 64, 64), torch.zeros(8, dtype=torch.int64))
    assert costs.gan(config, 100) == pytest.approx(counter.get_total_flops() / 2, rel=0.35)


def test_times() -> None:
    rates = measure_rates(preset("tiny").model_copy(update={"device": "cpu"}), 3)
    assert set(rates) == {"cnn", "gan"}
    assert all(1e6 < rate < 1e14 for rate in rates.values())
    steps = [
        Step("a", "cnn", "classic", cost=10.0),
        Step("b", "cnn", "classic", cost=30.0),
        Step("c", "bovw", "baseline"),
    ]
    known = known_rates(steps, {"a": 2.0, "c": 0.0})
    assert known == {"cnn": 5.0}
    assert seconds_of(steps[:2], known) == 8.0
    assert seconds_of([Step("d", "synthetic", "dcgan", cost=10.0)], {"gan": 5.0}) == 2.0
    shown = [show_seconds(seconds) for seconds in (40, 300, 4 * 3600, 36 * 3600, 6 * 86400)]
    assert shown == ["40 s", "5 min", "4.0 h", "1.5 days", "6.0 days"]
