"""Where the paper leaves room for doubt: the reading taken here, and the option that names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lesionaug.experiment import paper

if TYPE_CHECKING:
    from lesionaug.experiment.config import RunConfig


@dataclass(frozen=True)
class Reading:
    """One reading.

    Attributes:
        topic: What it is about.
        printed: What the paper says, or leaves out.
        taken: What is done here.
        options: Keys of the configuration that decide it; none where it is fixed.
    """

    topic: str
    printed: str
    taken: str
    options: tuple[str, ...] = ()


READINGS = (
    Reading(
        "Region of interest",
        "a crop of the lesion with surrounding tissue, relative to its size; the margin is not given",
        f"a square of side {paper.ROI_SIDE_PER_DIAMETER} d around the middle of the margin's bounding box (measured "
        "on the paper's Fig. 3); d is the largest Feret diameter of the margin's mask",
    ),
    Reading(
        "Intensity window",
        "HU are rescaled to (0, 1); the window is not given",
        "values are clipped to an explicit window and scaled before interpolation, and clamped to (0, 1) after it",
        ("image.window_hu",),
    ),
    Reading(
        "Resampling",
        f"bicubic, to {paper.ROI_SIZE} x {paper.ROI_SIZE}",
        "one bicubic resampling straight from the CT slice, never a rotated crop resized again; Keys' kernel",
        ("cnn.image_size", "image.a", "image.antialias", "image.border"),
    ),
    Reading(
        "Kinds of augmentation",
        f"{paper.AUGMENTATIONS_PER_LESION} per lesion from rotations, flips, translations and scalings",
        "each rotated ROI is flipped, translated and scaled; these kinds are not composed with each other",
        ("plan.n_rot", "plan.n_flip", "plan.n_trans", "plan.n_scale"),
    ),
    Reading(
        "Scale",
        "s between 0.1 d and 0.4 d; whether s is the margin or added to it is not said",
        "added margin on each side, so scaling only zooms out: side = 1.4 d + 2 s",
    ),
    Reading(
        "Translation",
        "within p = min(4, 0.1 d); the unit is not said",
        "continuous and uniform, in pixels of the source slice",
    ),
    Reading(
        "Group sizes",
        "augmented samples added to each fold",
        "a training set is every fold but one; with N lesions in all, each gives m = round(folds x size / N) "
        "augmentations, and the number really added is reported",
        ("classic_groups",),
    ),
    Reading(
        "Nested groups",
        "each group contains the smaller ones",
        "a lesion's augmentations have one fixed random order, and a group takes the first m of it",
        ("plan.seed",),
    ),
    Reading(
        "Folds",
        "three folds, separated by patient, balanced (printed as 63, 63 and 62, which is 188 and not 182)",
        "stratified by class and grouped by patient: a patient is in one fold only",
        ("folds.num_folds", "folds.seed"),
    ),
    Reading(
        "Network",
        "three 3 x 3 convolutions with pooling, a dense layer, about 1.3 million parameters; padding is not given",
        f"no padding: {paper.CNN_PARAMETERS:,} parameters with the paper's sizes and three classes",
        ("cnn.channels", "cnn.dense", "cnn.dropout"),
    ),
    Reading(
        "Mean subtraction",
        "the mean of the training images is subtracted",
        "one scalar, over the training images of that group and split only",
    ),
    Reading(
        "Optimiser",
        "stochastic gradient descent with Nesterov momentum; the momentum and the first weights are not given",
        "Glorot-uniform weights; every model is used as it is after the last epoch",
        ("classifier.learning_rate", "classifier.momentum", "classifier.nesterov", "classifier.batch_size"),
    ),
    Reading(
        "Length of training",
        "150 epochs for every group, so 300 steps for the smallest and 70,600 for the largest",
        "the paper's epochs, or the same number of steps for every group where classifier.steps is set",
        ("classifier.epochs", "classifier.steps"),
    ),
    Reading(
        "Choice of the optimum",
        "the smallest group at saturation",
        "the smallest group with the highest number of correct test lesions, pooled over the folds; it sees the "
        "test folds",
    ),
    Reading(
        "Sensitivity",
        "the abstract's sensitivity is averaged with the class sizes as weights",
        "labelled weighted sensitivity, which is the same number as the accuracy; the macro average stands beside it",
    ),
    Reading(
        "Uncertainty",
        "no interval, no test, one run",
        "Wilson 95 % intervals that count each lesion once, and every seed of the run shown",
        ("seeds",),
    ),
)


def option_value(config: RunConfig, key: str) -> Any:
    """The value of a configuration key like `image.window_hu`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def show_value(value: Any) -> str:
    """A configuration value as text."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(show_value(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def readings(config: RunConfig) -> Iterator[tuple[Reading, list[tuple[str, str]]]]:
    """Every reading with its options and their values in this configuration."""
    for reading in READINGS:
        yield reading, [(key, show_value(option_value(config, key))) for key in reading.options]
