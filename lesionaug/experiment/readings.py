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
        "the smallest group at saturation, judged on the test folds",
        "paper: the smallest group with the highest number of correct test lesions, pooled over the folds. nested: for "
        "each split the same rule on lesions of its training folds, held out in turn. Both are computed; the option "
        "says which one the GANs, CNN-AUG and the maps build on",
        ("choice",),
    ),
    Reading(
        "Choice of the number of synthetic images",
        "the same rule on the second curve of Fig. 8",
        "the smallest with the highest number of correct test lesions, for each kind of GAN; it sees the test folds "
        "under either option",
    ),
    Reading(
        "Number of synthetic images",
        "100 to 4,000 for each of three classes in each fold",
        "sizes count the images of all classes in one fold, the same number of every class; a training set, of every "
        "fold but one, gets folds - 1 times as many",
        ("synthetic_groups",),
    ),
    Reading(
        "What a GAN sees",
        "a GAN for each class and fold, from the augmented ROIs",
        "only the split's training folds: the lesions and their classic augmentations of the group in use. A DCGAN "
        "sees one class, the ACGAN all",
        ("gans",),
    ),
    Reading(
        "Networks of the GANs",
        "Fig. 5 shows the generator; the discriminator's channels are not given",
        f"{paper.GENERATOR_PARAMETERS:,} and {paper.DISCRIMINATOR_PARAMETERS:,} parameters with the paper's sizes: no "
        "bias beside batch normalisation, discriminator channels inferred",
        (
            "dcgan.network.generator_channels",
            "dcgan.network.discriminator_channels",
            "acgan.network.generator_channels",
            "acgan.network.discriminator_channels",
        ),
    ),
    Reading(
        "GAN loss",
        "the minimax formula; what the generator is trained with is not said",
        "non-saturating cross entropy unless the option says minimax",
        ("dcgan.loss", "acgan.loss"),
    ),
    Reading(
        "Noise",
        "uniform in (-1, 1) for training; once normal for sampling",
        "the same noise for both",
        ("dcgan.noise", "acgan.noise"),
    ),
    Reading(
        "Length of GAN training",
        f"{paper.GAN_EPOCHS} epochs (DCGAN), {paper.ACGAN_EPOCHS} (ACGAN)",
        "epochs of full batches, or a number of steps where one is set; the last generator is used, or the moving "
        "average of its weights where average is above 0",
        (
            "dcgan.epochs",
            "dcgan.steps",
            "dcgan.batch_size",
            "dcgan.average",
            "acgan.epochs",
            "acgan.steps",
            "acgan.batch_size",
            "acgan.average",
        ),
    ),
    Reading(
        "Conditioning of the ACGAN",
        "the class is given to the generator; how is not said",
        "an embedding of the class, multiplied with the noise; a class head beside the discriminator's answer, which "
        "is also judged as a classifier",
        ("acgan.conditioning",),
    ),
    Reading(
        "BoVW-MI: patches and words",
        f"{paper.BOVW_PATCH} x {paper.BOVW_PATCH} patches, {paper.BOVW_PCA_COMPONENTS} components, "
        f"{paper.BOVW_WORDS} words; the stride is not given",
        "raw intensities, one dictionary, from the split's training lesions without augmentation",
        ("bovw.patch", "bovw.stride", "bovw.components", "bovw.words", "bovw.dual"),
    ),
    Reading(
        "BoVW-MI: informative words",
        "a mutual information threshold of 35 %",
        "share: the 35 % of the words with the highest mutual information; of-largest: those with at least 35 % of the "
        "highest",
        ("bovw.mi_threshold", "bovw.mi_rule", "bovw.mi_levels"),
    ),
    Reading(
        "BoVW-MI: support vector machine",
        "an SVM; kernel and parameters are not given",
        "radial basis functions; C and gamma by cross validation inside the training folds, grouped by patient",
        ("bovw.costs", "bovw.gammas", "bovw.inner_folds"),
    ),
    Reading(
        "Maps of Fig. 9",
        "t-SNE of the last layer's features; how many augmentations is not said",
        "of the dense layer, one map for each split and model, never pooled over splits",
        ("embedding.per_lesion", "embedding.perplexity"),
    ),
    Reading(
        "Sensitivity",
        "the abstract's sensitivity is averaged with the class sizes as weights",
        "labelled weighted sensitivity, which is the same number as the accuracy; the macro average stands beside it",
    ),
    Reading(
        "Uncertainty",
        "no interval, no test, one run",
        "Wilson 95 % intervals that count each lesion once, exact McNemar tests adjusted after Holm, differences with "
        "intervals over patients, and every seed of the run shown",
        ("seeds",),
    ),
)


_GAN_TOPICS = ("Choice of the number of synthetic images",)


def option_value(config: RunConfig, key: str) -> Any:
    """The value of a configuration key like `image.window_hu`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _used(reading: Reading, config: RunConfig) -> bool:
    """Whether the run has what a reading is about."""
    parts = {key.partition(".")[0] for key in reading.options}
    if reading.topic in _GAN_TOPICS or parts & {"dcgan", "acgan", "gans", "synthetic_groups"}:
        return bool(config.gans)
    return not any(part in ("bovw", "embedding") and getattr(config, part) is None for part in parts)


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
    """Every reading that concerns this run, with its options and their values in this configuration."""
    for reading in READINGS:
        if _used(reading, config):
            keys = [key for key in reading.options if key.partition(".")[0] not in _absent(config)]
            yield reading, [(key, show_value(option_value(config, key))) for key in keys]


def _absent(config: RunConfig) -> set[str]:
    """Tables of the configuration that nothing in this run reads."""
    return {kind for kind in ("dcgan", "acgan") if kind not in config.gans}
