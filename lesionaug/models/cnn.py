"""The paper's classification network (Fig. 2): three pooled convolutions, a dense layer of 256, dropout, logits."""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn import functional

PositiveInt = Annotated[int, Field(ge=1)]


class CnnConfig(BaseModel):
    """Sizes of the network; the defaults are Fig. 2.

    Attributes:
        image_size: Pixels per side of the input.
        channels: Output channels of the convolutions.
        kernel: Pixels per side of a convolution's kernel; valid padding.
        pool: Pixels per side and stride of the max pooling.
        dense: Units of the dense layer, the features of Fig. 9.
        dropout: Probability of dropping a unit of the dense layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: PositiveInt = 64
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 64, 128)
    kernel: PositiveInt = 3
    pool: PositiveInt = 2
    dense: PositiveInt = 256
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5

    @property
    def final_size(self) -> int:
        """Pixels per side after the last pooling: 64 -> 62-31-29-14-12-6 in the paper."""
        size = self.image_size
        for _ in self.channels:
            size = (size - self.kernel + 1) // self.pool
        return size

    @model_validator(mode="after")
    def _something_is_left(self) -> CnnConfig:
        if self.final_size < 1:
            raise ValueError(f"{len(self.channels)} convolutions leave nothing of {self.image_size} pixels")
        return self


def drop(features: torch.Tensor, kept: torch.Tensor, dropped: float) -> torch.Tensor:
    """Apply dropout with given choices: features that are not kept become 0, the others grow by 1 / (1 - dropped)."""
    return features * kept.to(features.dtype) * (1 / (1 - dropped))


class LesionCnn(nn.Module):
    """The network of Fig. 2 for any number of classes; 1,273,347 parameters for three.

    Weights are Glorot-uniform and biases zero, the defaults of Keras, which the paper used. Pooling stands before ReLU:
    the two commute, and ReLU then works on a quarter of the elements.

    Args:
        config: The sizes.
        num_classes: Outputs.
        generator: Source of the initial weights; torch's global one when None.
    """

    def __init__(self, config: CnnConfig, num_classes: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.config = config
        self.num_classes = num_classes
        widths = (1, *config.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, config.kernel) for before, after in itertools.pairwise(widths)
        )
        self.dense = nn.Linear(config.channels[-1] * config.final_size**2, config.dense)
        self.output = nn.Linear(config.dense, num_classes)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the dense layer after ReLU, before dropout (Fig. 9).

        Args:
            images: [N, 1, S, S] float32, mean subtracted.

        Returns:
            [N, dense] float32.
        """
        x = images  # [N, 1, 64, 64]
        for convolution in self.convolutions:
            x = functional.relu(functional.max_pool2d(convolution(x), self.config.pool))
        return functional.relu(self.dense(x.flatten(1)))  # [N, 4608] -> [N, 256]

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits.

        Args:
            images: [N, 1, S, S] float32, mean subtracted.
            kept: bool [N, dense], what dropout keeps; in training mode drawn from torch's random state when None.

        Returns:
            [N, classes].
        """
        x = self.features(images)
        if kept is None:
            x = functional.dropout(x, self.config.dropout, self.training)
        else:
            x = drop(x, kept, self.config.dropout)
        logits: torch.Tensor = self.output(x)
        return logits

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
