"""Lanes and recorded steps against the plain loops: the same training, whatever the form, the neighbours, the order."""

from __future__ import annotations

import pytest
import torch

from lesionaug.errors import DataError, EnvironmentProblem
from lesionaug.models.cnn import CnnConfig, LesionCnn
from lesionaug.training import lanes as lanes_module
from lesionaug.training.classifier import ClassifierConfig, build_classifier, train_classifier
from lesionaug.training.draws import draw_kept
from lesionaug.training.gan import Gan, GanConfig, train_step
from lesionaug.training.gan_batches import PoolBatches
from lesionaug.training.graphs import GraphedSteps
from lesionaug.training.lanes import LANE_FORMS, Lane, LaneStack, lane_logits, train_lanes

CNN = CnnConfig(channels=(4, 8, 8), dense=16)
CONFIG = ClassifierConfig(batch_size=16, epochs=4, learning_rate=0.005)
LANES = [Lane("long", 0, 90, 2), Lane("partial", 5, 50, 1), Lane("short", 60, 30, 3), Lane("one batch", 0, 10, 5)]


def pool() -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of different brightness under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    return 0.3 + 0.2 * torch.rand(90, 1, 64, 64, generator=generator) + 0.1 * labels.view(-1, 1, 1, 1), labels


def alone(lane: Lane, config: ClassifierConfig = CONFIG):
    images, labels = (part[lane.first : lane.first + lane.count] for part in pool())
    return train_classifier(images, labels, config, num_classes=3, cnn=CNN, seed=lane.seed)


def together(lanes=LANES, config=CONFIG, **options):
    done = {}
    train_lanes(
        *pool(), lanes, config, num_classes=3, cnn=CNN,
        on_trained=lambda lane, trained: done.update({lane.name: trained}), **{"num_lanes": 3, **options},
    )  # fmt: skip
    assert done.keys() == {lane.name for lane in lanes}
    return done


def check_same(ours, theirs, tolerance):
    for (name, mine), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=0, msg=name)
    assert (ours.mean, ours.num_steps, len(ours.history)) == (theirs.mean, theirs.num_steps, len(theirs.history))
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine.epoch == other.epoch
        assert mine.loss == pytest.approx(other.loss, abs=1e-4)
        assert mine.train_accuracy == pytest.approx(other.train_accuracy, abs=0.05)


@pytest.mark.parametrize("form", LANE_FORMS)
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_every_lane_is_trained_as_if_alone(form, num_lanes) -> None:
    done = together(form=form, num_lanes=num_lanes)
    for lane in LANES:
        # Over 24 steps a rounding can tip which of two pixels is a pool's largest; the network itself rounds alike.
        check_same(done[lane.name], alone(lane), 1e-6 if form == "separate" else 2e-3)


@pytest.mark.parametrize("form", LANE_FORMS)
@pytest.mark.parametrize("dropped", [True, False])
def test_forms_compute_the_network_and_its_gradients(form, dropped) -> None:
    """In float64, so that a wrong term could not hide in rounding."""
    lanes = 4
    like = build_classifier(CNN, 3, 0).double().train()
    networks = [build_classifier(CNN, 3, seed).double().train() for seed in range(lanes)]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(lanes, 6, 1, 64, 64, generator=generator, dtype=torch.float64)
    kept = torch.rand(lanes, 6, 16, generator=generator) < 0.5 if dropped else torch.ones(lanes, 6, 16).bool()
    names = dict(like.named_parameters())
    weights = {
        name: torch.stack([dict(network.named_parameters())[name].detach() for network in networks]).requires_grad_()
        for name in names
    }
    logits = lane_logits(form, weights, images, kept, like)
    logits.square().sum().backward()
    for lane, network in enumerate(networks):
        expected = network(images[lane], kept[lane])
        torch.testing.assert_close(logits[lane], expected, atol=1e-12, rtol=1e-10)
        expected.square().sum().backward()
        for name, weight in network.named_parameters():
            torch.testing.assert_close(weights[name].grad[lane], weight.grad, atol=1e-10, rtol=1e-8)


# Of 24 steps, on AVX-512, the twelfth tips a pool's largest pixel here.
@pytest.mark.parametrize(("steps", "tolerance"), [(8, 1e-6), (24, 2e-3)])
def test_without_dropout_too(steps, tolerance) -> None:
    cnn = CNN.model_copy(update={"dropout": 0.0})
    config = CONFIG.model_copy(update={"steps": steps})
    done = {}
    train_lanes(
        *pool(), LANES[:2], config, num_classes=3, cnn=cnn, num_lanes=2, form="separate",
        on_trained=lambda lane, trained: done.update({lane.name: trained}),
    )  # fmt: skip
    theirs = train_classifier(*pool(), config, num_classes=3, cnn=cnn, seed=2)
    check_same(done["long"], theirs, tolerance)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = together(form="separate")
    monkeypatch.setattr(lanes_module, "BLOCK", 5)
    for name, trained in together(form="separate").items():
        check_same(trained, whole[name], 0)


def test_memory_that_runs_out_halves_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, tried = LaneStack._step, []

    def step(stack):
        tried.append(stack.size)
        if stack.size > 1 and len(tried) > 7:  # in the middle of a training
            raise torch.OutOfMemoryError("CUDA out of memory")
        return steps(stack)

    monkeypatch.setattr(LaneStack, "_step", step)
    done = together(form="separate", num_lanes=4)
    assert {4, 2, 1} == set(tried)
    for lane in LANES:
        check_same(done[lane.name], alone(lane), 1e-6)

    def never(stack):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LaneStack, "_step", never)
    with pytest.raises(EnvironmentProblem, match="one network at a time"):
        together()


@pytest.mark.parametrize(
    "name, calls", [("__init__", 1), ("put", 3), ("put", 4), ("run", 3), ("take", 1), ("take", 3), ("narrowed", 1)]
)
def test_memory_may_run_out_anywhere_and_nothing_is_lost_or_told_twice(
    monkeypatch: pytest.MonkeyPatch, name: str, calls: int
) -> None:
    """Once, at a certain call of a part of the stack."""
    whole, count = getattr(LaneStack, name), 0

    def part(*arguments):
        nonlocal count
        count += 1
        if count == calls:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("the recording broke off")
        return whole(*arguments)

    monkeypatch.setattr(LaneStack, name, part)
    trained = []
    train_lanes(
        *pool(), LANES, CONFIG, num_classes=3, cnn=CNN, num_lanes=3, form="separate",
        on_trained=lambda lane, classifier: trained.append((lane.name, classifier)),
    )  # fmt: skip
    assert count >= calls, "nothing was tried"
    assert sorted(name for name, _ in trained) == sorted(lane.name for lane in LANES)
    for lane in LANES:
        check_same(dict(trained)[lane.name], alone(lane), 1e-6)


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(stack):
        raise RuntimeError("something else")

    monkeypatch.setattr(LaneStack, "_step", step)
    with pytest.raises(RuntimeError, match="something else"):
        together()


def test_a_lane_that_diverges_is_refused_and_does_not_touch_its_neighbours() -> None:
    images, _ = pool()
    like = build_classifier(CNN, 3, 0)
    weights = {
        name: torch.stack([w.detach(), w.detach() * float("inf")]).requires_grad_()
        for name, w in like.named_parameters()
    }
    for form in LANE_FORMS:
        for weight in weights.values():
            weight.grad = None
        lane_logits(form, weights, images[:32].view(2, 16, 1, 64, 64), None, like).sum().backward()
        assert all(weight.grad[0].isfinite().all() for weight in weights.values()), form
    with pytest.raises(DataError, match="no longer finite"):
        together(config=CONFIG.model_copy(update={"learning_rate": 1e6}))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="form must be one of"):
        together(form="sideways")
    with pytest.raises(ValueError, match="num_lanes"):
        together(num_lanes=0)
    with pytest.raises(ValueError, match=r"wants images 80 \.\. 100 of 90"):
        together([Lane("beyond", 80, 20, 0)])


def test_progress_is_told_of_every_lane() -> None:
    told = []
    together(progress=lambda lane, step, text: told.append((lane.name, step, text)))
    assert {(lane.name, CONFIG.num_steps(lane.count)) for lane in LANES} <= {(name, step) for name, step, _ in told}
    assert ("long", 24, "epoch 4") in told


def test_dropout_is_drawn_the_same_for_one_step_and_for_several() -> None:
    cpu = torch.device("cpu")
    several = draw_kept(3, torch.tensor([4, 5, 9]), 7, 10, 0.3, cpu)
    for kept, step in zip(several, (4, 5, 9), strict=True):
        assert torch.equal(kept, draw_kept(3, step, 7, 10, 0.3, cpu))
        assert torch.equal(kept[:2], draw_kept(3, step, 2, 10, 0.3, cpu))  # a last, smaller batch
    share = draw_kept(0, 0, 1000, 256, 0.3, cpu).double().mean().item()
    assert share == pytest.approx(0.7, abs=5 * (0.21 / 256_000) ** 0.5)
    network = LesionCnn(CNN, 3, torch.Generator().manual_seed(0)).train()
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(network(x, torch.ones(2, 16).bool()), network.output(network.features(x) * 2))


class FakeGraphs:
    """What a CUDA graph does, on the CPU: recording executes nothing, replaying runs no Python of ours."""

    def __init__(self, gan: Gan) -> None:
        self.gan, self.recorded, self.replayed = gan, 0, 0

    def __call__(self, step):
        self.recorded += 1
        gan = self.gan
        before = {name: tensor.clone() for name, tensor in gan.tensors().items()}
        counter = gan.counter.clone()
        step()
        for name, tensor in gan.tensors().items():
            tensor.copy_(before[name])
        gan.counter.copy_(counter)
        fakes = self

        class Fake:
            def replay(self):
                fakes.replayed += 1
                counted = gan.step
                step()
                gan.step = counted

        return Fake()


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("r1_every", [1, 3])
def test_recorded_steps_are_those_of_the_plain_loop(r1_every, augmented) -> None:
    config = GanConfig.model_validate(
        {
            "network": {"generator_channels": (16, 8, 8, 4), "discriminator_channels": (4, 4, 8, 8), "noise_size": 6},
            "conditioning": "auxiliary",
            "batch_size": 8,
            "average": 0.9,
            "r1": 0.5 if r1_every > 1 else 0.0,
            "r1_every": r1_every,
            "augment": {"probability": 0.5, "adaptive": True, "speed": 1e-3} if augmented else None,
        }
    )
    source = PoolBatches(*pool(), 8, 3)
    plain, recorded = Gan.build(config, 3, 7), Gan.build(config, 3, 7)
    graphs = FakeGraphs(recorded)
    steps = GraphedSteps(recorded, record=graphs)
    for step in range(16):
        batch = source.batch(step)
        assert torch.equal(train_step(plain, *batch), steps(*batch))
        assert not batch[0].requires_grad  # the caller's images are left as they are
        assert plain.step == recorded.step == recorded.counter.item() == step + 1
    assert graphs.recorded == (2 if r1_every > 1 else 1)
    assert graphs.replayed == 16 - 3 * graphs.recorded
    for (name, mine), theirs in zip(recorded.tensors().items(), plain.tensors().values(), strict=True):
        assert torch.equal(mine, theirs), name
