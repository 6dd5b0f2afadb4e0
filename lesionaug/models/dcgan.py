"""Generator and discriminator of the paper's DCGAN (section III-B, Fig. 5) and, with classes, its ACGAN (III-C)."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

Channels = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=6)]
Conditioning = Literal["none", "auxiliary", "projection"]
START_SIZE = 4  # pixels per side where the generator's convolutions begin and the discriminator's end


class DcganConfig(BaseModel):
    """Sizes of the two networks; the defaults are the paper's (the discriminator's channels are inferred).

    Attributes:
        noise_size: Length of z.
        generator_channels: Channels of the 4x4 start and after each convolution but the last, which gives the image.
        discriminator_channels: Channels after each convolution.
        kernel: Pixels per side of a convolution's kernel; odd.
        leaky_slope: Of the discriminator's LeakyReLU.
        weight_std: Standard deviation of the initial weights; their mean is 0.
        discriminator_norm: "batch": batch normalisation after every convolution but the first (the paper). "spectral":
            spectral normalisation of every layer instead (Miyato et al. 2018).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_size: Annotated[int, Field(ge=1)] = 100
    generator_channels: Channels = (1024, 512, 256, 128)
    discriminator_channels: Channels = (64, 128, 256, 512)
    kernel: Annotated[int, Field(ge=3)] = 5
    leaky_slope: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    weight_std: Annotated[float, Field(gt=0.0)] = 0.02
    discriminator_norm: Literal["batch", "spectral"] = "batch"

    @property
    def image_size(self) -> int:
        """Pixels per side of an image: each convolution has a stride of two."""
        return int(START_SIZE * 2 ** len(self.generator_channels))

    @model_validator(mode="after")
    def _fit(self) -> DcganConfig:
        if len(self.generator_channels) != len(self.discriminator_channels):
            raise ValueError(
                f"generator and discriminator must have as many convolutions as each other, got "
                f"{len(self.generator_channels)} and {len(self.discriminator_channels)}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        return self


class Generator(nn.Module):
    """Noise to images: a dense layer to 4x4, then convolutions of a fractional stride; 18,848,640 parameters.

    Batch normalisation and ReLU follow every layer but the last, whose output goes through tanh. Layers before a batch
    normalisation have no bias, nor has the last.

    With classes the noise is multiplied by a learned vector of the wanted class (Odena et al. 2017). These vectors
    start from N(0, 1), not from `weight_std`: noise fifty times smaller would vanish in the first normalisation's eps.

    Args:
        config: The sizes.
        num_classes: Classes to condition on; 0 for one GAN per class, as the paper's DCGAN.
    """

    def __init__(self, config: DcganConfig, num_classes: int = 0) -> None:
        super().__init__()
        channels = config.generator_channels
        self.config, self.num_classes = config, num_classes
        self.embedding = nn.Embedding(num_classes, config.noise_size) if num_classes else None
        self.dense = nn.Linear(config.noise_size, channels[0] * START_SIZE**2, bias=False)
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(
                before, after, config.kernel, stride=2, padding=config.kernel // 2, output_padding=1, bias=False
            )
            for before, after in itertools.pairwise((*channels, 1))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)  # before each convolution
        for layer in (self.dense, *self.convolutions):
            nn.init.normal_(layer.weight, std=config.weight_std)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images [N, 1, S, S] in (-1, 1) of noise [N, noise_size], of the classes `labels` int64 [N] where it has them.

        Raises:
            ValueError: Labels for a generator without classes, or none for one with.
        """
        _check_labels(labels, self.num_classes > 0, "generator")
        z = noise if self.embedding is None else noise * self.embedding(labels)
        x = self.dense(z).view(len(z), -1, START_SIZE, START_SIZE)  # [N, 1024, 4, 4]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = convolution(functional.relu(norm(x), inplace=True))  # 8, 16, 32, 64 pixels
        return torch.tanh(x)


class Discriminator(nn.Module):
    """Images to the logit of being real, and with classes to theirs; 4,312,449 parameters without.

    Convolutions of stride 2, LeakyReLU after each, then a dense layer; batch normalisation after every convolution but
    the first. Layers before a batch normalisation have no bias.

    Args:
        config: The sizes.
        num_classes: How many classes it knows.
        conditioning: "none". "auxiliary": a second dense layer gives the class logits (ACGAN). "projection": the logit
            of being real is that of an image of the given class (Miyato and Koyama 2018).
    """

    def __init__(self, config: DcganConfig, num_classes: int = 0, conditioning: Conditioning = "none") -> None:
        super().__init__()
        if (num_classes > 0) != (conditioning != "none"):
            raise ValueError(f"conditioning {conditioning!r} does not go with {num_classes} classes")
        channels = config.discriminator_channels
        self.config, self.num_classes, self.conditioning = config, num_classes, conditioning
        batch = config.discriminator_norm == "batch"
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, config.kernel, stride=2, padding=config.kernel // 2, bias=not batch or i == 0)
            for i, (before, after) in enumerate(itertools.pairwise((1, *channels)))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels[1:]) if batch else None
        features = channels[-1] * START_SIZE**2
        self.real = nn.Linear(features, 1)
        self.classes = nn.Linear(features, num_classes) if conditioning == "auxiliary" else None
        self.embedding = nn.Embedding(num_classes, features) if conditioning == "projection" else None
        for layer in self._weighted():
            nn.init.normal_(layer.weight, std=config.weight_std)  # type: ignore[arg-type]
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            if not batch:
                if isinstance(layer, nn.Conv2d):  # cannot be laid out anew once it is parametrised
                    nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
                nn.utils.parametrizations.spectral_norm(layer)

    def _weighted(self) -> list[nn.Module]:
        return [m for m in (*self.convolutions, self.real, self.classes, self.embedding) if m is not None]

    def features(self, images: Tensor) -> Tensor:
        """What the dense layers see, [N, 512 x 4 x 4], of images [N, 1, S, S] in (-1, 1)."""
        slope = self.config.leaky_slope
        x = images
        for i, convolution in enumerate(self.convolutions):  # 32, 16, 8, 4 pixels
            x = convolution(x)
            if self.norms is not None and i > 0:
                x = self.norms[i - 1](x)
            x = functional.leaky_relu(x, slope)
        return x.flatten(1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Judge images.

        Args:
            images: [N, 1, S, S] in (-1, 1).
            labels: int64 [N], the classes they claim to be of; with "projection" only.

        Returns:
            The logits of being real [N], and of the classes [N, classes] or None.
        """
        _check_labels(labels, self.conditioning == "projection", "discriminator")
        x = self.features(images)
        real = self.real(x).squeeze(1)
        if self.embedding is not None:
            real = real + (self.embedding(labels) * x).sum(1)
        return real, None if self.classes is None else self.classes(x)


def _check_labels(labels: Tensor | None, wanted: bool, who: str) -> None:
    if (labels is not None) != wanted:
        raise ValueError(f"this {who} {'needs' if wanted else 'takes no'} labels")


def num_parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
