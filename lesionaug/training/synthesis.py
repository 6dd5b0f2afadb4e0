"""Trained GANs on disk, and images of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.errors import DataError
from lesionaug.models.dcgan import Discriminator, Generator
from lesionaug.training.draws import SAMPLE_STEP, Noise, draw_noise
from lesionaug.training.gan import Gan, GanConfig, build_networks

GAN_FILE_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class SavedGan:
    """A trained GAN read from disk.

    Attributes:
        config: How it was trained.
        generator: What images are made with, in evaluation mode.
        discriminator: In evaluation mode.
        sha256: Of the generator's file.
        info: What else was saved with it.
    """

    config: GanConfig
    generator: Generator
    discriminator: Discriminator
    sha256: str
    info: Mapping[str, Any]


def save_gan(gan: Gan, folder: Path, info: Mapping[str, Any]) -> None:
    """Write gan.json and both networks as safetensors; the generator is its moving average where it has one.

    Args:
        gan: What was trained.
        folder: An existing folder.
        info: More for gan.json, plain JSON values.
    """
    from safetensors.torch import save

    hashes = {}
    for name, network in (("generator", gan.sampler), ("discriminator", gan.discriminator)):
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()})
        write_bytes_atomic(folder / f"{name}.safetensors", content)
        hashes[name] = hashlib.sha256(content).hexdigest()
    write_json_atomic(
        folder / "gan.json",
        {
            **info,
            "schema": GAN_FILE_SCHEMA,
            "gan": gan.config.model_dump(mode="json"),
            "num_classes": gan.num_classes,
            "steps": gan.step,
            "sha256": hashes,
        },
    )


def load_gan(folder: Path) -> SavedGan:
    """Read what `save_gan` wrote.

    Raises:
        DataError: A missing, unknown or damaged file.
    """
    from safetensors.torch import load

    try:
        info = json.loads((folder / "gan.json").read_text(encoding="utf-8"))
        if info["schema"] != GAN_FILE_SCHEMA:
            raise ValueError(f"schema {info['schema']}, this release reads {GAN_FILE_SCHEMA}")
        config = GanConfig.model_validate(info["gan"])
        generator, discriminator = build_networks(config, int(info["num_classes"]), 0)
        for name, network in (("generator", generator), ("discriminator", discriminator)):
            content = (folder / f"{name}.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != info["sha256"][name]:
                raise ValueError(f"{name}.safetensors is not the file that was written (SHA-256)")
            network.load_state_dict(load(content))
        return SavedGan(config, generator.eval(), discriminator.eval(), str(info["sha256"]["generator"]), info)
    except Exception as error:
        where = "/".join(folder.parts[-3:])
        raise DataError(
            where, f"this is not a readable GAN ({type(error).__name__}: {error})", "Delete the folder and train again"
        ) from error


@torch.no_grad()
def generate(
    generator: Generator,
    noise: Noise,
    seed: int,
    count: int,
    *,
    labels: Tensor | None = None,
    step: int,
    batch_size: int = 256,
) -> Tensor:
    """Make images; the k-th depends on the seed, `step` and k alone, up to the last bits of a sum.

    Args:
        generator: In evaluation mode while this runs, so that an image does not depend on its neighbours.
        noise: What its noise is drawn from: what it was trained with.
        seed: Of the noise, 0 .. 2^64 - 1.
        count: How many.
        labels: int64 [count], their classes; for a generator with classes.
        step: Tells draws of one seed apart.
        batch_size: Images at once.

    Returns:
        [count, 1, S, S] float32 in (0, 1), on the CPU.
    """
    device = generator.dense.weight.device
    z = draw_noise(noise, seed, step, count, generator.config.noise_size, device)
    parts = []
    with _evaluating(generator):
        for start in range(0, count, batch_size):
            part = None if labels is None else labels[start : start + batch_size].to(device)
            parts.append(((generator(z[start : start + batch_size], part) + 1) / 2).float().cpu())
    size = generator.config.image_size
    return torch.cat(parts) if parts else torch.empty(0, 1, size, size)


def sample(gan: SavedGan, count: int, seed: int, label: int | None = None) -> Tensor:
    """Make images; the k-th does not depend on how many there are.

    Args:
        gan: The trained GAN.
        count: How many.
        seed: Of the noise, 0 .. 2^64 - 1.
        label: The class, for a generator that has classes.

    Returns:
        [count, 1, S, S] float32 in (0, 1), on the CPU.
    """
    labels = None if label is None else torch.full((count,), label)
    return generate(gan.generator, gan.config.noise, seed, count, labels=labels, step=SAMPLE_STEP)


@torch.no_grad()
def class_probabilities(discriminator: Discriminator, images: Tensor, batch_size: int = 256) -> Tensor:
    """What the class head of an ACGAN's discriminator says (section IV-C).

    Args:
        discriminator: With an auxiliary class head; it judges in evaluation mode.
        images: [N, 1, S, S] float32 in (0, 1).
        batch_size: Images at once.

    Returns:
        [N, classes] float32 on the CPU.

    Raises:
        ValueError: It has no class head.
    """
    if discriminator.classes is None:
        raise ValueError("this discriminator has no class head")
    device = discriminator.real.weight.device
    with _evaluating(discriminator):
        parts = [discriminator(part.to(device) * 2 - 1)[1].softmax(1).cpu() for part in torch.split(images, batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, discriminator.num_classes)


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode in the `with` body, and the mode that it was in after it."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
