"""GAN training: equal to a plain loop, learns, and goes on from any step with the bits of a run that never stopped."""

from __future__ import annotations

import errno
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import lesionaug as la
from lesionaug.data.rois import RoiBatch
from lesionaug.errors import ConfigError, DataError, EnvironmentProblem
from lesionaug.experiment import paper
from lesionaug.models.dcgan import DcganConfig, Discriminator, Generator
from lesionaug.training import checkpoint as checkpoint_module
from lesionaug.training import gan_run
from lesionaug.training.differentiable import DiscriminatorAugmentation
from lesionaug.training.draws import draw_classes, draw_noise
from lesionaug.training.gan import METRICS, Gan, GanConfig, settle_average, train_step
from lesionaug.training.gan_batches import FlyingBatches, PoolBatches
from lesionaug.training.gan_run import STRIP_COLUMNS, STRIP_ROWS, train_gan
from lesionaug.training.synthesis import class_probabilities, generate, load_gan, sample, save_gan

SMALL = DcganConfig(noise_size=6, generator_channels=(16, 8, 8, 4), discriminator_channels=(4, 4, 8, 8))
CONFIG = GanConfig(network=SMALL, batch_size=6, steps=24)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pool(count: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.2 + 0.1 * torch.rand(count, 1, 64, 64, generator=generator) + 0.2 * labels.view(-1, 1, 1, 1)
    return images, labels


def batches(config: GanConfig, count: int = 20) -> PoolBatches:
    return PoolBatches(*pool(count), config.batch_size, 3)


def run(config: GanConfig = CONFIG, **options):
    return train_gan(batches(config), config, num_classes=3, seed=7, **options)


def state(gan: Gan) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in gan.tensors().items()}


def assert_same(first: Gan, second: Gan) -> None:
    mine, theirs = first.tensors(), second.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_defaults_are_the_papers() -> None:
    config = GanConfig()
    assert config.batch_size == paper.GAN_BATCH_SIZE
    assert config.learning_rate == paper.GAN_LEARNING_RATE
    assert config.betas == paper.GAN_ADAM_BETAS
    assert config.epochs == paper.GAN_EPOCHS
    assert (config.noise, config.loss, config.conditioning) == ("uniform", "non-saturating", "none")
    # about 2,947 images of cysts (notes on the paper); what is left of an epoch is left out
    assert config.num_steps(2947) == 70 * 46
    assert GanConfig(steps=9).num_steps(2947) == GanConfig(steps=9).num_steps(3) == 9


@pytest.mark.parametrize("conditioning", ["none", "auxiliary", "projection"])
@pytest.mark.parametrize("loss", ["non-saturating", "minimax", "hinge"])
def test_a_step_is_that_of_a_plain_loop(conditioning, loss) -> None:
    """Written as a textbook would: contiguous, fakes made twice, nothing frozen, losses spelled out.

    In float64: Adam moves a weight by the rate however small its gradient is, so in float32 rounding soon shows.
    """
    config = CONFIG.model_copy(update={"conditioning": conditioning, "loss": loss, "learning_rate": 1e-3})
    gan = Gan.build(config, 3, seed=7)
    classes = gan.num_classes
    g, d = Generator(SMALL, classes), Discriminator(SMALL, classes, conditioning)
    g.load_state_dict(gan.generator.state_dict())
    d.load_state_dict(gan.discriminator.state_dict())
    for network in (gan.generator, gan.discriminator, g, d):
        network.double()
    adam_g = torch.optim.Adam(g.parameters(), 1e-3, (0.5, 0.999))
    adam_d = torch.optim.Adam(d.parameters(), 1e-3, (0.5, 0.999))
    source = batches(config)

    def judge(images, labels):
        return d(images, labels if conditioning == "projection" else None)

    for step in range(20):
        x, labels = source.batch(step)
        x = x.double()
        z = draw_noise("uniform", 7, step, len(x), 6, torch.device("cpu")).double()
        y = draw_classes(7, step, len(x), 3, torch.device("cpu"))
        real, real_class = judge(x, labels)
        fake, fake_class = judge(g(z, y if classes else None).detach(), y)
        ones, zeros = torch.ones_like(real), torch.zeros_like(real)
        if loss == "hinge":
            loss_d = functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()
        else:
            loss_d = functional.binary_cross_entropy(real.sigmoid(), ones)
            loss_d = loss_d + functional.binary_cross_entropy(fake.sigmoid(), zeros)
        if conditioning == "auxiliary":
            loss_d = loss_d + functional.cross_entropy(real_class, labels) + functional.cross_entropy(fake_class, y)
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        fake, fake_class = judge(g(z, y if classes else None), y)
        if loss == "hinge":
            loss_g = -fake.mean()
        elif loss == "minimax":
            loss_g = -functional.binary_cross_entropy(fake.sigmoid(), zeros)
        else:
            loss_g = functional.binary_cross_entropy(fake.sigmoid(), ones)
        if conditioning == "auxiliary":
            loss_g = loss_g + functional.cross_entropy(fake_class, y)
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()

        row = dict(zip(METRICS, train_step(gan, x, labels).tolist(), strict=True))
        assert row["loss_d"] == pytest.approx(float(loss_d.detach()), rel=1e-9), step
        assert row["loss_g"] == pytest.approx(float(loss_g.detach()), rel=1e-9), step
        assert row["d_real"] == pytest.approx(float(real.detach().sigmoid().mean()), rel=1e-9)
    assert gan.step == 20
    for mine, theirs in ((gan.generator, g), (gan.discriminator, d)):
        for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9), name


def test_a_gan_learns_what_its_images_have_in_common() -> None:
    images = 0.15 + 0.05 * torch.rand(64, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    config = CONFIG.model_copy(update={"batch_size": 16, "steps": 150, "learning_rate": 2e-3})
    trained = train_gan(PoolBatches(images, torch.zeros(64, dtype=torch.int64), 16, 0), config, num_classes=1, seed=0)
    before = generate(Gan.build(config, 1, 0).generator, "uniform", 1, 32, step=0)
    after = generate(trained.gan.sampler, "uniform", 1, 32, step=0)
    off = [abs(float(made.mean()) - float(images.mean())) for made in (before, after)]
    assert off[0] > 0.3
    assert off[1] < off[0] / 3


def test_an_acgans_classes_come_out_as_they_are_asked_for() -> None:
    config = CONFIG.model_copy(
        update={"conditioning": "auxiliary", "batch_size": 18, "steps": 250, "learning_rate": 2e-3}
    )
    images, labels = pool(60)
    trained = train_gan(PoolBatches(images, labels, 18, 0), config, num_classes=3, seed=0)
    known = class_probabilities(trained.gan.discriminator, images).argmax(1)
    assert float((known == labels).float().mean()) > 0.9
    means = [
        float(generate(trained.gan.sampler, "uniform", 1, 32, labels=torch.full((32,), c), step=0).mean())
        for c in range(3)
    ]
    assert means[0] < means[1] < means[2]
    assert trained.metrics[-1]["class_real"] > 0.9


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"conditioning": "auxiliary", "average": 0.9},
        {
            "conditioning": "projection",
            "loss": "hinge",
            "r1": 2.0,
            "r1_every": 3,
            "network": SMALL.model_copy(update={"discriminator_norm": "spectral"}),
        },
        {"noise": "normal", "bf16": True},
        {"augment": DiscriminatorAugmentation(probability=0.5, adaptive=True, speed=0.01)},
    ],
)
def test_stopped_and_resumed_is_never_stopped(update, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update=update)
    whole = run(config)
    asked = itertools.count()
    for stop_after in (5, 1, 11):  # then to the end
        until = next(asked) * 0 + stop_after
        counter = itertools.count(1)
        part = run(config, folder=tmp_path, checkpoint_every=4, should_stop=lambda: next(counter) == until)  # noqa: B023
        assert not part.finished
    assert part.gan.step == 17
    rest = run(config, folder=tmp_path, checkpoint_every=4)
    assert rest.finished
    assert_same(rest.gan, whole.gan)
    assert torch.equal(rest.strip, whole.strip)
    without_time = [{k: v for k, v in line.items() if k != "seconds"} for line in whole.metrics]
    on_disk = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for lines in (rest.metrics, on_disk):
        assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines] == without_time
    assert [line["step"] for line in whole.metrics] == list(range(1, 25))


def test_a_finished_training_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(folder=tmp_path)
    monkeypatch.setattr(gan_run, "train_step", lambda *_: pytest.fail("trained again"))
    again = run(folder=tmp_path)
    assert again.finished
    assert_same(again.gan, first.gan)


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    whole = run(folder=tmp_path, checkpoint_every=5)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-000000020", "step-000000024"]
    file = folder / "step-000000024" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.warns(UserWarning, match="step-000000024 is damaged .* removed; going on from step-000000020"):
        again = run(folder=tmp_path, checkpoint_every=5)
    assert_same(again.gan, whole.gan)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000000020", "step-000000024"]  # made again, whole
    assert_same(run(folder=tmp_path, checkpoint_every=5).gan, whole.gan)
    for damaged in folder.glob("*/state.json"):
        damaged.write_text("{")
    with pytest.raises(DataError, match="this checkpoint is damaged"):
        run(folder=tmp_path)


@pytest.mark.parametrize("change", ["configuration", "seed", "images", "steps"])
def test_a_checkpoint_of_another_training_is_refused(change: str, tmp_path: Path) -> None:
    run(folder=tmp_path)
    config, seed, source = CONFIG, 7, batches(CONFIG)
    if change == "configuration":
        config = CONFIG.model_copy(update={"learning_rate": 1e-3})
    elif change == "seed":
        seed = 8
    elif change == "images":
        source = PoolBatches(*pool(20, seed=1), 6, 3)
    else:
        config = CONFIG.model_copy(update={"steps": None, "epochs": 4})
    with pytest.raises(DataError, match=f"saved with another .*{change}"):
        train_gan(source, config, num_classes=3, seed=seed, folder=tmp_path)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run(folder=tmp_path)
    for file in (tmp_path / "checkpoints").glob("*/state.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99}))
    with pytest.raises(DataError, match=r"reads version 1 of a checkpoint, got 99.*release that began it"):
        run(folder=tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run()
    write = checkpoint_module.write_bytes_atomic

    def full(path, content):
        if "000000012" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoint_module, "write_bytes_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        run(folder=tmp_path, checkpoint_every=4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000000004", "step-000000008"]
    monkeypatch.undo()
    assert_same(run(folder=tmp_path, checkpoint_every=4).gan, whole.gan)


def test_losses_that_overflow_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no longer finite after \d+ steps at rate 1e\+20"):
        run(CONFIG.model_copy(update={"learning_rate": 1e20}), folder=tmp_path)


def test_running_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(gan_run, "train_step", fail)
        with pytest.raises(EnvironmentProblem, match="memory ran out with 6 images a step"):
            run()
    monkeypatch.setattr(gan_run, "train_step", lambda *_: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        run()


def test_the_strip_shows_one_noise_over_time() -> None:
    strip = run(CONFIG.model_copy(update={"conditioning": "auxiliary"})).strip
    assert strip.shape == (STRIP_ROWS, 3, STRIP_COLUMNS, 64, 64)
    assert strip.dtype == torch.uint8
    assert run(CONFIG.model_copy(update={"steps": 3})).strip.shape[:2] == (3, 1)


def test_the_moving_average_is_one(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"average": 0.75, "steps": 1})
    start = Gan.build(config, 3, 7)
    after = run(config).gan
    assert after.sampler is after.average
    for before, mean, now in zip(
        start.generator.parameters(), after.average.parameters(), after.generator.parameters(), strict=True
    ):
        assert torch.allclose(mean, 0.75 * before + 0.25 * now, atol=1e-7)


def test_the_average_is_settled_with_statistics_of_its_own() -> None:
    config = CONFIG.model_copy(update={"average": 0.9, "batch_size": 16})
    gan = run(config).gan
    settle_average(gan)
    noise = draw_noise("uniform", 99, 0, 512, 6, torch.device("cpu"))
    with torch.no_grad():
        seen = []
        for norm in gan.average.norms:
            norm.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
        gan.average(noise)
    for output in seen:  # normalised to mean 0 and variance 1, as in training
        assert float(output.mean(dim=(0, 2, 3)).abs().max()) < 0.15
        assert float((output.std(dim=(0, 2, 3)) - 1).abs().max()) < 0.15
    before = state(gan)
    settle_average(gan)
    assert all(torch.equal(before[name], tensor) for name, tensor in gan.tensors().items())


def test_the_discriminators_statistics_are_those_of_real_images() -> None:
    gan = Gan.build(CONFIG, 3, 7)
    images, labels = batches(CONFIG).batch(0)
    with torch.no_grad():
        slope = SMALL.leaky_slope
        first = functional.leaky_relu(gan.discriminator.convolutions[0](images), slope)
        inputs = gan.discriminator.convolutions[1](first)
    train_step(gan, images, labels)
    norm = gan.discriminator.norms[0]
    assert torch.allclose(norm.running_mean, 0.1 * inputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-7)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * inputs.var(dim=(0, 2, 3)), rtol=1e-5)
    assert norm.momentum == 0.1


def test_resuming_keeps_the_layout_of_weights_and_moments(tmp_path: Path) -> None:
    for norm in ("batch", "spectral"):
        config = CONFIG.model_copy(update={"network": SMALL.model_copy(update={"discriminator_norm": norm})})
        folder = tmp_path / norm
        folder.mkdir()
        counter = itertools.count(1)
        run(config, folder=folder, should_stop=lambda: next(counter) == 3)  # noqa: B023
        gan = run(config, folder=folder).gan
        fresh = Gan.build(config, 3, 7)
        for mine, theirs in zip(gan.discriminator.parameters(), fresh.discriminator.parameters(), strict=True):
            assert mine.stride() == theirs.stride()
        for optimizer in (gan.optimizer_g, gan.optimizer_d):
            for parameter, moments in optimizer.state.items():
                assert moments["exp_avg"].stride() == parameter.stride()
        widest = max(gan.discriminator.convolutions, key=lambda layer: layer.weight.numel())
        assert widest.weight.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Gan.build(CONFIG, 3, 7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(first, Gan.build(CONFIG, 3, 7))
    assert not torch.equal(first.generator.dense.weight, Gan.build(CONFIG, 3, 8).generator.dense.weight)


def test_bfloat16_stays_near_float32() -> None:
    plain, narrow = run(), run(CONFIG.model_copy(update={"bf16": True}))
    assert all(p.dtype == torch.float32 for p in narrow.gan.generator.parameters())
    for a, b in zip(plain.metrics[:5], narrow.metrics[:5], strict=True):
        assert a["loss_d"] == pytest.approx(b["loss_d"], rel=0.05)


def test_batches_of_a_pool_see_every_image_once_an_epoch() -> None:
    images, labels = pool(20)
    source = PoolBatches(images, labels, 6, 3)
    rows = [row for step in range(3) for row in source.batch(step)[0]]
    found = {int((images * 2 - 1 - row).abs().sum(dim=(1, 2, 3)).argmin()) for row in rows}
    assert len(found) == 18
    again = PoolBatches(images, labels, 6, 3)
    for step in (7, 0, 3, 2):  # any order
        assert torch.equal(again.batch(step)[0], source.batch(step)[0])
    assert len(PoolBatches(images[:4], labels[:4], 6, 3).batch(5)[0]) == 4  # all there are
    with pytest.raises(DataError, match=r"pixels must be finite and in \(0, 1\)"):
        PoolBatches(images * 3, labels, 6, 3)


def lesions(count: int = 5) -> RoiBatch:
    generator = torch.Generator().manual_seed(0)
    images = [(60 + 20 * torch.randn(64, 64, generator=generator)).to(torch.int16) for _ in range(count)]
    return RoiBatch.from_images(images, [[32, 32]] * count, [20] * count, labels=[i % 3 for i in range(count)])


def flying() -> FlyingBatches:
    options = {"window": (-160, 240), "size": 64}
    return FlyingBatches(la.AugmentedBatches(lesions(), la.AugmentationPlan(n_rot=2), 6, 0, **options), 30)


def test_augmented_on_the_fly_stopped_and_resumed(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 10})
    whole = train_gan(flying(), config, num_classes=3, seed=7)
    counter = itertools.count(1)
    train_gan(flying(), config, num_classes=3, seed=7, folder=tmp_path, should_stop=lambda: next(counter) == 4)
    assert_same(train_gan(flying(), config, num_classes=3, seed=7, folder=tmp_path).gan, whole.gan)
    images, labels = flying().batch(3)
    assert images.shape == (6, 1, 64, 64)
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert torch.equal(images, list(map(flying().batch, range(4)))[3][0])
    assert labels.dtype == torch.int64


def test_a_gan_comes_back_from_its_files(tmp_path: Path) -> None:
    trained = run(CONFIG.model_copy(update={"conditioning": "auxiliary", "average": 0.5}))
    save_gan(trained.gan, tmp_path, {"classes": ["a", "b", "c"]})
    state_before = torch.get_rng_state()
    loaded = load_gan(tmp_path)
    assert torch.equal(torch.get_rng_state(), state_before)
    assert loaded.info["classes"] == ["a", "b", "c"]
    images = sample(loaded, 5, seed=4, label=2)
    assert images.shape == (5, 1, 64, 64)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.allclose(sample(loaded, 3, seed=4, label=2), images[:3], atol=1e-6)
    assert not torch.equal(sample(loaded, 5, seed=4, label=1), images)
    assert not torch.equal(sample(loaded, 5, seed=5, label=2), images)
    mine = generate(trained.gan.average, "uniform", 4, 5, labels=torch.full((5,), 2), step=0xFFFFFFFE)
    assert torch.equal(mine, images)
    shown = torch.rand(4, 1, 64, 64)
    before = class_probabilities(trained.gan.discriminator, shown)
    assert torch.equal(class_probabilities(loaded.discriminator, shown), before)
    assert torch.allclose(before.sum(1), torch.ones(4))
    for name in ("generator.safetensors", "gan.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-20] + b" " * 20)
        with pytest.raises(DataError, match="not a readable GAN"):
            load_gan(tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave nothing to condition on"):
        Gan.build(CONFIG.model_copy(update={"conditioning": "auxiliary"}), 1, 0)
    with pytest.raises(ValueError, match="seed must be"):
        Gan.build(CONFIG, 1, -1)
    with pytest.raises(ValueError, match="no class head"):
        class_probabilities(Gan.build(CONFIG, 1, 0).discriminator, torch.rand(2, 1, 64, 64))
