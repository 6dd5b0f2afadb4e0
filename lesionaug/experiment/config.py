"""The configuration of a run: presets, a TOML file over them, and what departs from the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lesionaug.errors import ConfigError
from lesionaug.experiment import paper
from lesionaug.models.bovw import BovwConfig
from lesionaug.models.cnn import CnnConfig
from lesionaug.settings import check_keys, merge, read_toml, validate
from lesionaug.training.classifier import ClassifierConfig
from lesionaug.training.gan import GanConfig

if TYPE_CHECKING:
    from lesionaug.augment.plan import AugmentationPlan

PresetName = Literal["tiny", "demo", "quick", "laptop", "workstation", "paper"]
PRESETS: tuple[PresetName, ...] = ("tiny", "demo", "quick", "laptop", "workstation", "paper")
Kind = Literal["dcgan", "acgan"]
GAN_KINDS: tuple[Kind, ...] = ("dcgan", "acgan")
Control = Literal["equal-steps", "equal-count", "longer", "synthetic-only", "gan-originals"]
CONTROLS: tuple[Control, ...] = ("equal-steps", "equal-count", "longer", "synthetic-only", "gan-originals")
Device = Literal["auto", "cpu", "cuda"]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Values that do not change, and no others than those named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanConfig(Frozen):
    """Which augmentations a lesion can have (section III-A): n_rot (1 + n_flip + n_trans + n_scale) of them."""

    n_rot: Annotated[int, Field(ge=1)] = paper.N_ROT
    n_flip: Annotated[int, Field(ge=0, le=3)] = paper.N_FLIP
    n_trans: Count = paper.N_TRANS
    n_scale: Count = paper.N_SCALE
    seed: Annotated[int, Field(ge=0, lt=2**64)] = (
        0  # of the augmentations and of their nested order; the same for every training seed
    )

    @property
    def n_augmentations(self) -> int:
        """Augmentations of one lesion: 480 in the paper."""
        return self.n_rot * (1 + self.n_flip + self.n_trans + self.n_scale)

    def build(self) -> AugmentationPlan:
        """Build the plan itself."""
        from lesionaug.augment.plan import AugmentationPlan

        return AugmentationPlan(n_rot=self.n_rot, n_flip=self.n_flip, n_trans=self.n_trans, n_scale=self.n_scale)


class ImageConfig(Frozen):
    """How a lesion becomes the network's input (docs/definitions.md, section 2); the size is the network's.

    Attributes:
        window_hu: HU that become 0 and 1. The paper gives none; W400 L40 is the usual window for the liver.
        antialias: Low-pass where the slice is finer than the patch.
        a: Parameter of the cubic kernel.
        border: What lies beyond the slice.
    """

    window_hu: tuple[float, float] = (-160.0, 240.0)
    antialias: bool = True
    a: float = -0.5
    border: Literal["reflect", "replicate", "renorm"] = "reflect"

    @field_validator("window_hu")
    @classmethod
    def _increasing(cls, window: tuple[float, float]) -> tuple[float, float]:
        if not -1e6 < window[0] < window[1] < 1e6:
            raise ValueError(f"the window must be (low, high) with low < high in HU, got {window}")
        return window


class FoldsConfig(Frozen):
    """Cross validation (section IV-A)."""

    num_folds: Annotated[int, Field(ge=2)] = paper.NUM_FOLDS
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # scikit-learn takes no larger one


class RunFoldsConfig(FoldsConfig):
    """Cross validation of a run.

    Attributes:
        from_file: The folds were given as a file (`--folds`); number and seed are then the file's.
    """

    from_file: bool = False


class EmbeddingConfig(Frozen):
    """The maps of Fig. 9.

    Attributes:
        per_lesion: Augmentations of every test lesion beside the lesion itself; the paper's number is not printed.
        perplexity: Of t-SNE; None: 30, or less where there are few images.
    """

    per_lesion: Count = 16
    perplexity: Annotated[float, Field(ge=1)] | None = None


class MemorisationConfig(Frozen):
    """Whether the GANs repeat their training lesions.

    Attributes:
        per_class: Synthetic images of each class that are compared.
        lesions: Real lesions of each class that they are compared with, training and held-out ones alike, the first
            by id; None: all.
    """

    per_class: Annotated[int, Field(ge=20)] = 200
    lesions: Annotated[int, Field(ge=4)] | None = None


# How the paper trains its ACGAN; all else is as for the DCGAN.
ACGAN = {"conditioning": "auxiliary", "learning_rate": paper.ACGAN_LEARNING_RATE, "epochs": paper.ACGAN_EPOCHS}


class RunConfig(Frozen):
    """Everything that decides the numbers of a run; saved as config.json. The defaults are the paper's.

    Attributes:
        preset: The preset it started from.
        image: Window and resampling.
        plan: Classic augmentation.
        folds: Cross validation.
        classic_groups: Images added per fold, the sizes of Fig. 8.
        cnn: The network.
        classifier: Its training.
        choice: Which optimum the GANs build on. "paper": the smallest classic group with the most correct test lesions.
            "nested": for every split by cross validation inside its training folds. Both are computed and reported.
        gans: The kinds of GAN that are trained; none: the classic half and the baseline alone.
        dcgan: The DCGANs, one per class, split and seed.
        acgan: The ACGANs, one per split and seed.
        synthetic_groups: Synthetic images added per fold to the optimum, the same number of every class.
        bovw: The baseline of bags of visual words; None: without.
        controls: Trainings that the paper lacks. "equal-steps": every classic group for the optimum's number of steps.
            "equal-count": more classic augmentations instead of the synthetic images. "longer": no augmentation, for
            the most steps of any model. "synthetic-only": the lesions and the DCGANs' images, no classic augmentation.
            "gan-originals": the same with DCGANs that have never seen a classic augmentation either.
        embedding: The maps of Fig. 9; None: without.
        memorisation: What is compared of the GANs' images; None: without.
        seeds: One model per group, split and seed: initial weights, order and dropout.
        device: Where to train; a run stays on the kind of device it began on.
        threads_per_task: Threads of one training; part of the configuration because sums depend on it in the last bit.
    """

    preset: PresetName = "paper"
    image: ImageConfig = ImageConfig()
    plan: PlanConfig = PlanConfig()
    folds: RunFoldsConfig = RunFoldsConfig()
    classic_groups: Annotated[tuple[Count, ...], Field(min_length=1)] = paper.CLASSIC_GROUP_SIZES
    cnn: CnnConfig = CnnConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    choice: Literal["paper", "nested"] = "paper"
    gans: tuple[Kind, ...] = GAN_KINDS
    dcgan: GanConfig = GanConfig()
    acgan: GanConfig = GanConfig.model_validate(ACGAN)
    synthetic_groups: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        paper.SYNTHETIC_GROUP_SIZES
    )
    bovw: BovwConfig | None = BovwConfig()
    controls: tuple[Control, ...] = CONTROLS
    embedding: EmbeddingConfig | None = EmbeddingConfig()
    memorisation: MemorisationConfig | None = MemorisationConfig()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    device: Device = "auto"
    threads_per_task: Annotated[int, Field(ge=1, le=256)] = 1

    @field_validator("classic_groups", "synthetic_groups")
    @classmethod
    def _ascending(cls, groups: tuple[int, ...]) -> tuple[int, ...]:
        if list(groups) != sorted(set(groups)):
            raise ValueError(f"group sizes must ascend and differ, got {list(groups)}")
        return groups

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ, got {list(seeds)}")
        return seeds

    @field_validator("gans", "controls")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"each can be named once, got {list(names)}")
        return names

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        sizes = {"dcgan": self.dcgan, "acgan": self.acgan}
        for kind in self.gans:
            if (kind == "acgan") != (sizes[kind].conditioning != "none"):
                raise ValueError(f"gans: {kind} does not go with {kind}.conditioning {sizes[kind].conditioning!r}")
            if sizes[kind].network.image_size != self.cnn.image_size:
                raise ValueError(
                    f"{kind}.network.image_size is {sizes[kind].network.image_size}, cnn.image_size "
                    f"{self.cnn.image_size}: the classifier sees what the GANs make"
                )
        if self.embedding is not None and self.embedding.per_lesion > self.plan.n_augmentations:
            raise ValueError(
                f"embedding.per_lesion is {self.embedding.per_lesion}, and the plan has {self.plan.n_augmentations} "
                "augmentations of a lesion"
            )
        if self.choice == "nested" and self.folds.num_folds < 3:
            raise ValueError("choice 'nested' needs folds.num_folds of at least 3: inside two folds none is left over")
        return self

    @property
    def used_controls(self) -> tuple[Control, ...]:
        """The controls that can be made: most need a DCGAN, equal steps need trainings of unequal length."""
        no_gan = () if "dcgan" in self.gans else ("equal-count", "synthetic-only", "gan-originals")
        no_steps = ("equal-steps",) if self.classifier.steps is not None else ()
        return tuple(name for name in self.controls if name not in (*no_gan, *no_steps))

    def gan(self, kind: Kind) -> GanConfig:
        """How the GANs of a kind are trained."""
        return self.dcgan if kind == "dcgan" else self.acgan

    @property
    def reductions(self) -> list[str]:
        """Every departure from the paper's protocol, one readable line each; empty for the paper preset."""
        return [
            _reduction(key, ours, theirs)
            for key, theirs, ours in changed_values(preset("paper"), self)
            if key not in _NOT_THE_PAPERS
        ]


# These do not touch the protocol of the paper: it fixes neither seeds, nor the machine.
_NOT_THE_PAPERS = frozenset(
    {"preset", "seeds", "device", "threads_per_task", "plan.seed", "folds.seed", "folds.from_file"}
)

_MEANING = {
    "classic_groups": "classic images added per fold",
    "synthetic_groups": "synthetic images added per fold",
    "dcgan.steps": "optimiser steps of a DCGAN",
    "acgan.steps": "optimiser steps of an ACGAN",
    "dcgan.network.generator_channels": "channels of the DCGANs' generators",
    "dcgan.network.discriminator_channels": "channels of the DCGANs' discriminators",
    "acgan.network.generator_channels": "channels of the ACGANs' generators",
    "acgan.network.discriminator_channels": "channels of the ACGANs' discriminators",
    "choice": "optimum that is built on",
    "gans": "kinds of GAN",
    "controls": "controls",
    "dcgan.batch_size": "batch size of the DCGANs",
    "acgan.batch_size": "batch size of the ACGANs",
    "dcgan.learning_rate": "learning rate of the DCGANs",
    "acgan.learning_rate": "learning rate of the ACGANs",
    "dcgan.average": "moving average of the DCGANs' generators",
    "acgan.average": "moving average of the ACGANs' generators",
    "memorisation.lesions": "real lesions per class compared for memorisation",
    "memorisation.per_class": "synthetic images per class compared for memorisation",
    "bovw.max_patches": "patches the dictionary of visual words is made of",
    "bovw.words": "words of the bag of visual words",
    "embedding.per_lesion": "augmentations per lesion in the maps of Fig. 9",
    "classifier.epochs": "epochs of the classifier",
    "classifier.learning_rate": "learning rate of the classifier",
    "classifier.batch_size": "batch size of the classifier",
    "classifier.momentum": "momentum of the classifier",
    "classifier.nesterov": "Nesterov momentum",
    "cnn.channels": "channels of the CNN's convolutions",
    "cnn.dense": "units of the CNN's dense layer",
    "cnn.dropout": "dropout of the CNN",
    "cnn.image_size": "pixels per side of the CNN's input",
    "folds.num_folds": "folds of the cross validation",
    "image.window_hu": "HU window",
    "plan.n_rot": "rotations per lesion",
    "plan.n_flip": "flips per rotation",
    "plan.n_trans": "shifts per rotation",
    "plan.n_scale": "scalings per rotation",
}


def _reduction(key: str, ours: Any, theirs: Any) -> str:
    if key == "classifier.steps":
        return (
            f"equal steps: every model takes {ours} optimiser steps whatever its group, instead of "
            f"{paper.CNN_EPOCHS} epochs (300 to 70,600 steps in the paper's groups)"
        )
    name = _MEANING.get(key, key)
    if key == "image.window_hu":  # the paper gives no window, so ours is only another reading
        return f"{name}: {_show(ours)} instead of this software's default {_show(theirs)} (the paper gives none)"
    return f"{name}: {_show(ours)} instead of {_show(theirs)}"


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_show(item) for item in value)
    return "none" if value is None else f"{value}"


# Sized by time: docs/experiment.md. At equal steps the full network still under-fits when its time is up; a narrower
# one gets further. What augmentation gains on the phantom is measured with the full network: see docs/phantom.md.
_EIGHTH = {"generator_channels": (128, 64, 32, 16), "discriminator_channels": (8, 16, 32, 64)}
_TINY_GAN: dict[str, Any] = {
    "network": {"generator_channels": (16, 8, 8, 4), "discriminator_channels": (4, 4, 8, 8), "noise_size": 8},
    "steps": 6,
    "batch_size": 8,
}


def _small_gans(steps: int, **more: Any) -> dict[str, Any]:
    """Both kinds, an eighth as wide as the paper's, in batches of 16: more steps in the same time."""
    gan = {"network": _EIGHTH, "batch_size": 16, "steps": steps, "average": 0.98, **more}
    return {"dcgan": gan, "acgan": {**gan, "steps": 2 * steps}}


_REDUCED: dict[PresetName, dict[str, Any]] = {
    "paper": {},
    "workstation": {
        "classifier": {"steps": 6000},
        "dcgan": {"steps": 2000},
        "acgan": {"steps": 4000},
        "synthetic_groups": (300, 1500, 3000, 6000),
    },
    "laptop": {
        "classic_groups": (0, 500, 1000, 2000, 5000),
        "synthetic_groups": (300, 1500, 3000),
        "classifier": {"steps": 3000, "learning_rate": 0.01},
        "cnn": {"channels": (16, 32, 64), "dense": 128},
        **_small_gans(
            4000, network={"generator_channels": (256, 128, 64, 32), "discriminator_channels": (16, 32, 64, 128)}
        ),
    },
    "quick": {
        "classic_groups": (0, 500, 2000, 5000),
        "synthetic_groups": (1000, 3000),
        "classifier": {"steps": 300, "learning_rate": 0.01},
        "cnn": {"channels": (8, 16, 32), "dense": 64},
        **_small_gans(160, learning_rate=0.0005, average=0.95),
        "embedding": {"per_lesion": 6},
        "memorisation": {"per_class": 50},
    },
    "demo": {
        "classic_groups": (0, 500, 2000),
        "synthetic_groups": (1000,),
        "classifier": {"steps": 160, "learning_rate": 0.01},
        "cnn": {"channels": (8, 16, 32), "dense": 64},
        **_small_gans(100, learning_rate=0.001, batch_size=8, average=0.9),
        "bovw": {"words": 250, "max_patches": 10_000},
        "controls": ("equal-count", "longer", "synthetic-only"),
        "embedding": {"per_lesion": 4},
        "memorisation": {"per_class": 30, "lesions": 15},
    },
    "tiny": {
        "classic_groups": (0, 100),
        "synthetic_groups": (30, 60),
        "classifier": {"steps": 12, "learning_rate": 0.02, "batch_size": 16},
        "cnn": {"channels": (4, 8, 8), "dense": 16},
        "dcgan": _TINY_GAN,
        "acgan": _TINY_GAN,
        "bovw": {"stride": 8, "words": 20, "costs": (2.0,), "gammas": (1.0,)},
        "embedding": {"per_lesion": 1},
        "memorisation": {"per_class": 20, "lesions": 5},
    },
}


def preset(name: PresetName) -> RunConfig:
    """Return a preset: the paper's protocol, or a reduced one.

    Every preset carries out every stage, with the paper's folds, window, augmentation plan and order. `quick` (at most
    10 minutes on two cores for 182 lesions) and `demo` (at most 6) train narrower networks for the same number of steps
    in every group, at ten times the paper's rate; `laptop` is a night on one, `workstation` an hour with a GPU; `tiny`
    only proves that everything runs. `RunConfig.reductions` says what differs.

    Raises:
        ConfigError: No such preset.
    """
    if name not in PRESETS:
        raise ConfigError("--preset", f"there is no preset {name!r}", f"Choose one of {', '.join(PRESETS)}")
    return RunConfig.model_validate(merge(RunConfig().model_dump(mode="json"), {"preset": name, **_REDUCED[name]}))


def resolve_config(name: PresetName | None = None, toml: Path | None = None, **overrides: Any) -> RunConfig:
    """Combine a preset, a TOML file over it, and single values over both.

    Args:
        name: The preset; None takes the file's `preset`, or `quick`.
        toml: File with the keys of `RunConfig`, nested ones in tables; unknown keys are refused by name.
        **overrides: Top-level values; those that are None are left alone.

    Raises:
        ConfigError: Unreadable file, unknown key, value out of range.
    """
    wanted: dict[str, Any] = {}
    where = "configuration"
    if toml is not None:
        where = toml.name
        wanted = read_toml(toml, "See the keys in the run's config.json")
    in_file = wanted.pop("preset", None)
    if name is not None and in_file not in (None, name):
        raise ConfigError(
            where, f"the file says preset {in_file!r} and the command line {name!r}", "Give it in one place"
        )
    base = preset(name or in_file or "quick").model_dump(mode="json")
    for key in ("bovw", "embedding", "memorisation"):  # TOML has no word for nothing
        if wanted.get(key) is False:
            wanted[key] = base[key] = None
    for key in ("classifier", "dcgan", "acgan"):  # a preset's steps would win over the epochs that are asked for
        table = wanted.get(key)
        if isinstance(table, dict) and "epochs" in table and "steps" not in table:
            base[key]["steps"] = None
    check_keys(wanted, base, where)
    wanted.update({key: value for key, value in overrides.items() if value is not None})
    return validate_config(merge(base, wanted), where)


def validate_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build a RunConfig from plain values.

    Raises:
        ConfigError: The first key at fault, what is wrong with it, and what it was.
    """
    return validate(RunConfig, values, where)


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Readable lines `key: old -> new`, one per value that differs; empty when the two are equal."""
    return [f"{key}: {_show(before)} -> {_show(after)}" for key, before, after in changed_values(old, new)]


def changed_values(old: BaseModel, new: BaseModel) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of every value in which two configurations of one class differ; nested keys have dots."""
    return list(_changes(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for key, before in old.items():
        after = new[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after, f"{prefix}{key}.")
        elif before != after:  # one of them may be None where the other has keys of its own
            yield f"{prefix}{key}", before, after
