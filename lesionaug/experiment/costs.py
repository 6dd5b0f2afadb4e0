"""What the steps of a run cost, in multiply-adds: enough to show progress by, and to estimate times with a rate."""

from __future__ import annotations

from lesionaug.models.bovw import BovwConfig
from lesionaug.models.cnn import CnnConfig
from lesionaug.models.dcgan import DcganConfig
from lesionaug.training.classifier import ClassifierConfig
from lesionaug.training.gan import GanConfig

_BACKWARD = 2  # a backward pass costs twice the forward one
PLAIN = (
    5e9  # multiply-adds a second of a core, what the steps without networks are counted by: only their order matters
)


def classifier(cnn: CnnConfig, config: ClassifierConfig, num_images: int) -> float:
    """Of training the classification network."""
    per_step = min(config.batch_size, num_images)
    return config.num_steps(num_images) * per_step * _cnn(cnn) * (1 + _BACKWARD)


def gan(config: GanConfig, num_images: int) -> float:
    """Of training a GAN: generator forwards twice and backwards once, discriminator three times both ways."""
    made, judged = _generator(config.network), _discriminator(config.network)
    return config.num_steps(num_images) * config.batch_size * ((2 + _BACKWARD) * made + 3 * (1 + _BACKWARD) * judged)


def images(config: GanConfig, count: int) -> float:
    """Of making synthetic images."""
    return count * _generator(config.network)


def bovw(config: BovwConfig, num_lesions: int, image_size: int) -> float:
    """Of the baseline: some seconds."""
    patches = num_lesions * ((image_size - config.patch) // config.stride + 1) ** 2
    return 20 * min(patches, config.max_patches) * config.words * config.components + 2 * PLAIN


def embedding(num_points: int) -> float:
    """Of a t-SNE: some seconds for a thousand points."""
    return PLAIN * (1 + num_points / 200)


def memorisation(per_class: int, num_lesions: int, num_classes: int) -> float:
    """Of comparing synthetic images with every view of every lesion."""
    return PLAIN * num_classes * (0.5 + num_lesions / num_classes * (0.02 + per_class / 10_000))


def _cnn(cnn: CnnConfig) -> float:
    size, before, total = cnn.image_size, 1, 0.0
    for channels in cnn.channels:
        size = size - cnn.kernel + 1
        total += size**2 * channels * before * cnn.kernel**2
        size, before = size // cnn.pool, channels
    return total + size**2 * before * cnn.dense


def _generator(network: DcganConfig) -> float:
    size, channels, total = 4, network.generator_channels, 0.0
    total += network.noise_size * channels[0] * size**2
    for before, after in zip(channels, (*channels[1:], 1), strict=True):
        total += size**2 * before * after * network.kernel**2
        size *= 2
    return total


def _discriminator(network: DcganConfig) -> float:
    size, before, total = network.image_size, 1, 0.0
    for channels in network.discriminator_channels:
        size //= 2
        total += size**2 * before * channels * network.kernel**2
        before = channels
    return total
