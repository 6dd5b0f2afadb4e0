"""The paper's GAN networks and losses: sizes as printed or inferred, and formulas against their plain form."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from lesionaug.experiment import paper
from lesionaug.models.dcgan import DcganConfig, Discriminator, Generator, num_parameters
from lesionaug.models.gan_losses import class_loss, discriminator_loss, generator_loss, gradient_penalty

SMALL = DcganConfig(noise_size=6, generator_channels=(16, 8, 8, 4), discriminator_channels=(4, 8, 8, 16))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_sizes_are_the_papers() -> None:
    config = DcganConfig()
    assert config.noise_size == paper.GAN_NOISE_SIZE
    assert config.kernel == paper.GAN_KERNEL
    assert config.leaky_slope == paper.GAN_LEAKY_SLOPE
    assert config.weight_std == paper.GAN_WEIGHT_STD
    assert config.discriminator_channels == paper.GAN_DISCRIMINATOR_CHANNELS
    assert config.image_size == paper.ROI_SIZE
    generator, discriminator = Generator(config), Discriminator(config)
    assert num_parameters(generator) == paper.GENERATOR_PARAMETERS == 18_848_640
    assert num_parameters(discriminator) == paper.DISCRIMINATOR_PARAMETERS == 4_312_449

    shapes = []
    for layer in (*generator.convolutions,):
        layer.register_forward_hook(lambda _, inputs, output: shapes.append((*output.shape[2:], output.shape[1])))
    assert generator(torch.rand(2, 100)).shape == (2, 1, 64, 64)
    first = (4, 4, config.generator_channels[0])
    assert (first, *shapes) == paper.GAN_GENERATOR_SHAPES
    assert {layer.stride for layer in (*generator.convolutions, *discriminator.convolutions)} == {(2, 2)}
    assert paper.GAN_STRIDE == 2


def test_the_acgan_adds_a_class_head_and_an_embedding() -> None:
    assert num_parameters(Generator(DcganConfig(), 3)) == paper.GENERATOR_PARAMETERS + 3 * 100
    head = 3 * 512 * 16 + 3
    assert num_parameters(Discriminator(DcganConfig(), 3, "auxiliary")) == paper.DISCRIMINATOR_PARAMETERS + head


def test_initial_weights() -> None:
    generator, discriminator = Generator(DcganConfig(), 3), Discriminator(DcganConfig(), 3, "auxiliary")
    for layer in (generator.dense, *generator.convolutions, *discriminator.convolutions, discriminator.classes):
        weight = layer.weight.detach()
        assert float(weight.mean()) == pytest.approx(0, abs=2e-3)
        assert float(weight.std()) == pytest.approx(paper.GAN_WEIGHT_STD, rel=0.05)
        assert layer.bias is None or not layer.bias.any()
    assert float(generator.embedding.weight.detach().std()) == pytest.approx(1, rel=0.15)


def test_where_batch_normalisation_and_biases_are() -> None:
    generator, discriminator = Generator(SMALL), Discriminator(SMALL)
    assert [norm.num_features for norm in generator.norms] == [16, 8, 8, 4]  # all layers but the output
    assert [norm.num_features for norm in discriminator.norms] == [8, 8, 16]  # not after the input layer
    assert all(layer.bias is None for layer in (generator.dense, *generator.convolutions))
    assert [layer.bias is not None for layer in discriminator.convolutions] == [True, False, False, False]


def test_images_are_in_range_and_of_their_own_noise_in_evaluation() -> None:
    generator = Generator(SMALL).eval()
    noise = torch.rand(5, 6) * 2 - 1
    images = generator(noise).detach()
    assert float(images.abs().max()) < 1
    assert torch.allclose(generator(noise[2:3]), images[2:3], atol=1e-6)


def test_the_class_multiplies_the_noise() -> None:
    generator = Generator(SMALL, 3).eval()
    noise, labels = torch.rand(4, 6), torch.tensor([0, 1, 2, 1])
    plain = Generator(SMALL).eval()
    plain.load_state_dict({k: v for k, v in generator.state_dict().items() if not k.startswith("embedding")})
    assert torch.equal(generator(noise, labels), plain(noise * generator.embedding.weight[labels]))


def test_the_projection_adds_the_classs_inner_product() -> None:
    discriminator = Discriminator(SMALL, 3, "projection").eval()
    images, labels = torch.rand(4, 1, 64, 64), torch.tensor([0, 1, 2, 1])
    real, classes = discriminator(images, labels)
    features = discriminator.features(images)
    inner = torch.einsum("nf,nf->n", features, discriminator.embedding.weight[labels])
    assert classes is None
    assert torch.allclose(real, discriminator.real(features)[:, 0] + inner)


def test_spectral_normalisation_bounds_every_layer() -> None:
    config = SMALL.model_copy(update={"discriminator_norm": "spectral"})
    discriminator = Discriminator(config, 2, "projection")
    assert discriminator.norms is None
    for _ in range(30):  # power iterations
        discriminator(torch.rand(2, 1, 64, 64), torch.tensor([0, 1]))
    for layer in (*discriminator.convolutions, discriminator.real, discriminator.embedding):
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, rel=0.02)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="as many convolutions"):
        DcganConfig(generator_channels=(8, 4))
    with pytest.raises(ValueError, match="kernel must be odd"):
        DcganConfig(kernel=4)
    with pytest.raises(ValueError, match="takes no labels"):
        Generator(SMALL)(torch.rand(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs labels"):
        Generator(SMALL, 2)(torch.rand(2, 6))
    with pytest.raises(ValueError, match="does not go with"):
        Discriminator(SMALL, 0, "auxiliary")
    with pytest.raises(ValueError, match="needs labels"):
        Discriminator(SMALL, 2, "projection")(torch.rand(2, 1, 64, 64))


def test_other_image_sizes() -> None:
    for count in range(1, 5):
        config = DcganConfig(noise_size=3, generator_channels=(4,) * count, discriminator_channels=(4,) * count)
        images = Generator(config)(torch.rand(2, 3))
        assert images.shape == (2, 1, config.image_size, config.image_size) == (2, 1, 4 * 2**count, 4 * 2**count)
        assert Discriminator(config)(images)[0].shape == (2,)


def test_the_losses_are_their_formulas() -> None:
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    entropy = -(d_real.log().mean() + (1 - d_fake).log().mean())
    assert torch.allclose(discriminator_loss("minimax", real, fake), entropy)
    assert torch.allclose(discriminator_loss("non-saturating", real, fake), entropy)
    assert torch.allclose(generator_loss("minimax", fake), (1 - d_fake).log().mean())
    assert torch.allclose(generator_loss("non-saturating", fake), -d_fake.log().mean())
    hinge = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    assert torch.allclose(discriminator_loss("hinge", real, fake), hinge)
    assert torch.allclose(generator_loss("hinge", fake), -fake.mean())
    assert all(
        torch.isfinite(generator_loss(loss, torch.tensor([-1e4, 1e4]))) for loss in ("minimax", "non-saturating")
    )
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert torch.allclose(class_loss(logits, labels), -functional.log_softmax(logits, 1)[range(5), labels].mean())


def test_the_gradient_penalty_of_a_linear_judge() -> None:
    weight = torch.randn(1, 1, 8, 8, requires_grad=True)
    images = torch.randn(3, 1, 8, 8, requires_grad=True)
    penalty = gradient_penalty((weight * images).sum(dim=(1, 2, 3)), images)
    assert torch.allclose(penalty, weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert torch.allclose(gradient, 2 * weight)


def test_every_parameter_learns() -> None:
    for conditioning, loss in itertools.product(("none", "auxiliary", "projection"), ("non-saturating", "hinge")):
        classes = 0 if conditioning == "none" else 3
        labels = torch.tensor([0, 1, 2, 0]) if classes else None
        generator, discriminator = Generator(SMALL, classes), Discriminator(SMALL, classes, conditioning)
        shown = labels if conditioning == "projection" else None
        real, known = discriminator(generator(torch.rand(4, 6), labels), shown)
        total = generator_loss(loss, real) + (0 if known is None else class_loss(known, labels))
        total.backward()
        for network in (generator, discriminator):
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name
