"""The paper's rival BoVW-MI (section IV-E): patches become words, informative words a histogram, an SVM names it.

The paper prints four numbers (patch, PCA components, words, threshold of the mutual information) and cites Diamant et
al. 2017 for the rest, which is not to be had in full: every other number here is a reading. Everything is NumPy on one
thread and one image at a time, so the result for an image depends on neither the other images nor the machine's cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from lesionaug.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Grid = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class BovwConfig(BaseModel):
    """Sizes of the bag of words and the grid of its SVM; patch, components, words and threshold are the paper's.

    Attributes:
        patch: Pixels per side of a patch, whose raw intensities are the descriptor (brightness tells lesions apart).
        stride: Pixels from one patch to the next; not printed. 2 gives 729 patches of a 64 x 64 ROI, 1 gives 2916.
        components: PCA coefficients of a patch, not whitened.
        words: Words of a dictionary.
        mi_threshold: See `mi_rule`.
        mi_rule: How "a MI threshold of 35 %" is read: "share" keeps that share of the words, the most informative ones
            (262 of 750); "of-largest" keeps the words with at least that share of the highest mutual information.
        mi_levels: Equal-width levels a word's count is quantised to before its mutual information; not printed.
        dual: Two dictionaries, lesion's interior and boundary, histograms concatenated (Diamant et al. 2016); see
            `regions`.
        band: Half the width of the boundary in lesion diameters, but at least half a patch; not printed.
        roi_side: Side of the ROI in lesion diameters; tells where the lesion's circle lies in the image.
        max_patches: Patches that PCA and k-means see, a random subsample (of each region) that bounds time and memory.
        inner_folds: Folds of the inner cross validation that chooses `costs` and `gammas`; not printed.
        costs: Candidates for C of the SVM.
        gammas: Candidates for the RBF's gamma, in units of 1 / (features x their variance), which suits histograms of
            any size (scikit-learn's "scale").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: PositiveInt = 11
    stride: PositiveInt = 2
    components: PositiveInt = 10
    words: Annotated[int, Field(ge=2)] = 750
    mi_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.35
    mi_rule: Literal["share", "of-largest"] = "share"
    mi_levels: Annotated[int, Field(ge=2)] = 5
    dual: bool = False
    band: PositiveFloat = 0.15
    roi_side: PositiveFloat = 1.4
    max_patches: PositiveInt = 30_000
    inner_folds: Annotated[int, Field(ge=2)] = 5
    costs: Grid = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0)
    gammas: Grid = (0.015625, 0.0625, 0.25, 1.0, 4.0)

    @property
    def all_words(self) -> int:
        """Length of a whole histogram: the words of every region."""
        return self.words * (1 + self.dual)

    @model_validator(mode="after")
    def _sizes_fit(self) -> BovwConfig:
        if self.components > self.patch**2:
            raise ValueError(f"a patch of {self.patch}x{self.patch} pixels has no {self.components} components")
        if self.max_patches < self.words:
            raise ValueError(f"max_patches = {self.max_patches} cannot make {self.words} words")
        return self


def patch_windows(images: Tensor, patch: int, stride: int) -> Tensor:
    """Every patch as a view, without a copy: [N, 1, S, S] -> [N, R, R, patch, patch] (row, column, y, x)."""
    return images[:, 0].unfold(1, patch, stride).unfold(2, patch, stride)


def dense_patches(images: Tensor, patch: int = 11, stride: int = 2) -> Tensor:
    """Cut overlapping patches, row by row.

    Args:
        images: [N, 1, S, S] with S >= patch.
        patch: Pixels per side.
        stride: Pixels from one patch to the next; the last few columns and rows may be left over.

    Returns:
        [N, P, patch^2] of the images' type, P = ((S - patch) // stride + 1)^2.
    """
    windows = patch_windows(images, patch, stride)
    return windows.reshape(len(windows), windows.shape[1] * windows.shape[2], patch**2)


def regions(config: BovwConfig, image_size: int) -> tuple[Tensor, ...]:
    """Which patches each dictionary is of, by their centres: all of them, or interior and boundary.

    The lesions' contours are not used: the contour is taken to be the circle around the ROI's centre with the lesion's
    diameter, image_size / roi_side pixels here (radius 22.86 of 64 x 64). The boundary is the ring of +-`band` around
    it, the interior what the ring encloses; patches beyond the ring belong to neither.

    Returns:
        bool [P] for each dictionary.

    Raises:
        ConfigError: Images smaller than a patch.
    """
    per_side = (image_size - config.patch) // config.stride + 1
    if image_size < config.patch:
        raise ConfigError(
            "bovw.patch", f"{config.patch} pixels do not fit into images of {image_size}", "Use a smaller patch"
        )
    if not config.dual:
        return (torch.ones(per_side**2, dtype=torch.bool),)
    offset = torch.arange(per_side, dtype=torch.float64) * config.stride + (config.patch - image_size) / 2
    distance = torch.hypot(offset[:, None], offset[None, :]).flatten()  # from the ROI's centre, pixels
    diameter = image_size / config.roi_side
    band = max(config.band * diameter, config.patch / 2)
    return distance < diameter / 2 - band, (distance - diameter / 2).abs() <= band


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Visual words of one region.

    Attributes:
        mean: [patch^2] of the training patches.
        components: [components, patch^2], the principal axes.
        words: [words, components], the centres of k-means.
    """

    mean: FloatArray
    components: FloatArray
    words: FloatArray

    def count(self, patches: FloatArray) -> IntArray:
        """How many patches [P, patch^2] are closest (Euclid) to each word: int64 [words]."""
        projected = (patches - self.mean) @ self.components.T
        distance = (self.words**2).sum(1) - 2 * projected @ self.words.T  # less |projected|^2, which all words share
        return np.bincount(distance.argmin(1), minlength=len(self.words)).astype(np.int64)


def count_words(images: Tensor, dictionaries: tuple[Dictionary, ...], config: BovwConfig) -> IntArray:
    """Counts of every word in every image: [N, 1, S, S] -> [N, all words], the dictionaries one after the other."""
    masks = regions(config, images.shape[-1])
    counts = np.zeros((len(images), config.all_words), dtype=np.int64)
    for row, image in zip(counts, images, strict=True):
        patches = dense_patches(image[None], config.patch, config.stride)[0].double()
        parts = [d.count(patches[mask].numpy()) for d, mask in zip(dictionaries, masks, strict=True)]
        row[:] = np.concatenate(parts)
    return counts


def normalise(counts: IntArray, config: BovwConfig) -> FloatArray:
    """Counts [N, all words] as histograms whose sum over each dictionary's words is 1 (L1), the same shape."""
    parts = counts.reshape(len(counts), config.all_words // config.words, config.words)
    result: FloatArray = (parts / parts.sum(2, keepdims=True)).reshape(counts.shape)
    return result


def quantise(counts: IntArray, levels: int) -> IntArray:
    """Equal-width levels 0 .. levels - 1 between each column's lowest and highest count; a constant column is 0."""
    low, high = counts.min(0), counts.max(0)
    result: IntArray = np.minimum((counts - low) * levels // np.maximum(high - low, 1), levels - 1)  # exact: integers
    return result


def mutual_information(counts: IntArray, labels: IntArray, levels: int) -> FloatArray:
    """Mutual information between each word's quantised count and the class, in nats.

    Args:
        counts: [N, words], N > 0.
        labels: [N].
        levels: Of the quantisation, between the lowest and the highest of these counts.

    Returns:
        [words], at least 0.
    """
    from sklearn.metrics import mutual_info_score

    level = quantise(counts, levels).T[:, :, None] == np.arange(levels)  # [words, N, levels]
    one_hot = labels[:, None] == np.unique(labels)  # [N, classes]
    tables = level.transpose(0, 2, 1).astype(np.int64) @ one_hot.astype(np.int64)  # [words, levels, classes]
    # A table at once: the same function on two vectors spends six times as long on checking them.
    return np.array([mutual_info_score(None, None, contingency=table) for table in tables])


def select_words(information: FloatArray, config: BovwConfig) -> IntArray:
    """Indices of the words to keep, ascending; among equals the first (see `mi_rule`; regions compete together)."""
    if config.mi_rule == "of-largest":
        return np.flatnonzero(information >= config.mi_threshold * information.max())
    number = max(1, int(len(information) * config.mi_threshold + 1e-9))  # 262.5 of 750 are 262
    return np.sort(np.argsort(-information, kind="stable")[:number])


@dataclass(frozen=True, eq=False)
class BagOfWords:
    """Everything between an image and its features, fitted on training lesions.

    Attributes:
        config: As fitted.
        image_size: Pixels per side.
        dictionaries: One, or interior and boundary.
        information: [all words], mutual information of each word with the class, nats.
        bins: int64 [2, all words], lowest and highest training count, between which the levels lie.
        kept: int64 [kept], the words that are features.
    """

    config: BovwConfig
    image_size: int
    dictionaries: tuple[Dictionary, ...]
    information: FloatArray
    bins: IntArray
    kept: IntArray

    def histograms(self, images: Tensor) -> FloatArray:
        """Features of images [N, 1, S, S], N >= 0, on the CPU: the kept words' part of the histograms, [N, kept]."""
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (1, size, size) or images.dtype != torch.float32:
            raise ValueError(f"images must be float32 [N, 1, {size}, {size}], got {images.dtype} {list(images.shape)}")
        return normalise(count_words(images, self.dictionaries, self.config), self.config)[:, self.kept]


@dataclass(frozen=True, eq=False)
class RbfSvm:
    """A support vector machine with a radial kernel, one against one, as plain arrays.

    Attributes:
        support: [M, features], the support vectors.
        coefficients: [pairs, M], their weights in the decision between classes (0, 1), (0, 2), .. (1, 2), ..
        intercepts: [pairs].
        gamma: Of the kernel exp(-gamma |x - y|^2).
        num_classes: Classes.
    """

    support: FloatArray
    coefficients: FloatArray
    intercepts: FloatArray
    gamma: float
    num_classes: int

    def decision(self, features: FloatArray) -> FloatArray:
        """Decisions [N, pairs] for features [N, features]; at 0 and above for the pair's first class."""
        rows = [self.coefficients @ np.exp(-self.gamma * ((self.support - row) ** 2).sum(1)) for row in features]
        return np.array(rows).reshape(len(features), len(self.intercepts)) + self.intercepts

    def scores(self, features: FloatArray) -> FloatArray:
        """Scores [N, classes] whose largest names the class: won pairs, and the summed decisions squeezed below 1/3.

        The squeeze (|x| / 3 (|x| + 1), scikit-learn's "ovr") makes decisions break ties between votes and no more.
        """
        votes, sums = np.zeros((2, len(features), self.num_classes))
        pairs = zip(*np.triu_indices(self.num_classes, 1), strict=True)
        for decided, (first, second) in zip(self.decision(features).T, pairs, strict=True):
            votes[:, first] += decided >= 0
            votes[:, second] += decided < 0
            sums[:, first] += decided
            sums[:, second] -= decided
        result: FloatArray = votes + sums / (3 * (np.abs(sums) + 1))
        return result
