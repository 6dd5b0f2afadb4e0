"""What GANs are trained and how: the paper's, reduced ones, and a modern mode for few lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lesionaug.errors import ConfigError
from lesionaug.experiment import paper
from lesionaug.experiment.config import (
    ACGAN,
    GAN_KINDS,
    FoldsConfig,
    Frozen,
    ImageConfig,
    Kind,
    PlanConfig,
    Seed,
    changed_values,
)
from lesionaug.settings import check_keys, merge, read_toml, validate
from lesionaug.training.gan import GanConfig

GanPreset = Literal["tiny", "demo", "quick", "paper", "modern"]
GAN_PRESETS: tuple[GanPreset, ...] = ("tiny", "demo", "quick", "paper", "modern")


class GansConfig(Frozen):
    """Everything that decides the GANs of one split; saved as config.json. The defaults are the paper's DCGANs.

    Attributes:
        preset: The preset it started from.
        kind: "dcgan": one GAN per class. "acgan": one for all classes, conditioned on them.
        gan: The networks and their training.
        group: Classic augmentations per fold that the GANs are trained on, beside the originals: the optimum of Fig. 8.
        data: "pool": these, held in memory. "fly": drawn from all augmentations of the plan at every step.
        image: Window and resampling.
        plan: Classic augmentation.
        folds: Cross validation.
        split: The fold that is not seen.
        seed: Of the training.
        device: Where to train.
        deterministic: The same bits again on a GPU too, with the algorithms that give them.
        threads: Of the training on the CPU; sums depend on it in the last bit. 0: one per core, written down when the
            training begins.
    """

    preset: GanPreset = "paper"
    kind: Kind = "dcgan"
    gan: GanConfig = GanConfig()
    group: Annotated[int, Field(ge=0)] = paper.CLASSIC_OPTIMUM
    data: Literal["pool", "fly"] = "pool"
    image: ImageConfig = ImageConfig()
    plan: PlanConfig = PlanConfig()
    folds: FoldsConfig = FoldsConfig()
    split: Annotated[int, Field(ge=0)] = 0
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    threads: Annotated[int, Field(ge=0, le=256)] = 0

    @model_validator(mode="after")
    def _kinds_are_conditioned(self) -> GansConfig:
        if (self.kind == "acgan") != (self.gan.conditioning != "none"):
            raise ValueError(
                f"kind {self.kind} does not go with gan.conditioning {self.gan.conditioning!r}: a dcgan has "
                "conditioning none, an acgan auxiliary or projection"
            )
        return self


_QUARTER = {"generator_channels": (256, 128, 64, 32), "discriminator_channels": (16, 32, 64, 128)}
# For few lesions: the discriminator sees transformed images (as often as it is too sure; none to begin with), its
# gradient on real ones is kept small, and images are made with an average of the generators. Spectral normalisation
# with the hinge loss, also tried, is far slower to begin: docs/gans.md.
_MODERN = {
    "average": 0.995,
    "r1": 0.05,
    "r1_every": 4,
    "augment": {"probability": 0.0, "adaptive": True},
}
_PRESETS: dict[GanPreset, dict[str, Any]] = {
    "paper": {},
    "modern": {"gan": _MODERN},
    "quick": {"gan": {"network": _QUARTER, "steps": 100}},
    "demo": {"gan": {"network": _QUARTER, "steps": 60}, "group": 2000},
    "tiny": {
        "gan": {
            "network": {"generator_channels": (16, 8, 8, 4), "discriminator_channels": (4, 4, 8, 8), "noise_size": 8},
            "steps": 12,
            "batch_size": 8,
        },
        "group": 30,
    },
}


def gan_preset(name: GanPreset, kind: Kind = "dcgan") -> GansConfig:
    """Return a preset: the paper's GANs, reduced ones, or the modern mode.

    Args:
        name: "paper"; "quick", "demo" and "tiny" are narrower and shorter; "modern" is meant for few lesions.
        kind: "dcgan" or "acgan".

    Raises:
        ConfigError: No such preset or kind.
    """
    for key, value, known in (("preset", name, GAN_PRESETS), ("kind", kind, GAN_KINDS)):
        if value not in known:
            raise ConfigError(f"--{key}", f"there is no {key} {value!r}", f"Choose one of {', '.join(known)}")
    conditioned: dict[str, Any] = {"gan": ACGAN} if kind == "acgan" else {}
    if kind == "acgan" and name == "modern":
        conditioned = {"gan": {"conditioning": "projection"}}
    values = merge(GansConfig().model_dump(mode="json"), merge(conditioned, _PRESETS[name]))
    return GansConfig.model_validate({**values, "preset": name, "kind": kind})


def resolve_gans(
    name: GanPreset | None = None, kind: Kind | None = None, toml: Path | None = None, **overrides: Any
) -> GansConfig:
    """Combine a preset, a TOML file over it, and single values over both; as `resolve_config` does for a run.

    Raises:
        ConfigError: Unreadable file, unknown key, value out of range, a kind that contradicts the conditioning.
    """
    where = "configuration"
    wanted: dict[str, Any] = {}
    if toml is not None:
        where = toml.name
        wanted = read_toml(toml, "See the keys in config.json of a folder that `lesionaug gan train` wrote")
    chosen: dict[str, Any] = {}
    for key, given in (("preset", name), ("kind", kind)):
        in_file = wanted.pop(key, None)
        if given is not None and in_file not in (None, given):
            raise ConfigError(
                where, f"the file says {key} {in_file!r} and the command line {given!r}", "Give it in one place"
            )
        chosen[key] = given or in_file
    base = gan_preset(chosen["preset"] or "quick", chosen["kind"] or "dcgan").model_dump(mode="json")
    gan = wanted.get("gan")
    if isinstance(gan, dict) and "epochs" in gan and "steps" not in gan:
        base["gan"]["steps"] = None  # a preset's steps would win over the epochs that are asked for
    if isinstance(gan, dict) and gan.get("augment") is False:
        wanted["gan"] = {**gan, "augment": None}  # TOML has no word for nothing
        base["gan"]["augment"] = None
    check_keys(wanted, base, where)
    wanted.update({key: value for key, value in overrides.items() if value is not None})
    return validate(GansConfig, merge(base, wanted), where)


# These do not touch what the paper says of its GANs.
_NOT_THE_PAPERS = frozenset(
    {"preset", "split", "seed", "device", "deterministic", "threads", "plan.seed", "folds.seed"}
)


def reductions(config: GansConfig) -> list[str]:
    """Every departure from the paper's GANs, one readable line each."""
    theirs = gan_preset("paper", config.kind)
    return [
        f"{key}: {after} instead of {before}"
        for key, before, after in changed_values(theirs, config)
        if key not in _NOT_THE_PAPERS
    ]


def describe_gans(config: GansConfig) -> str:
    """One line for a figure: what was trained, and whether as in the paper."""
    count = len(reductions(config))
    how = f"{count} departures from the paper, see config.json" if count else "as in the paper"
    return f"{config.kind.upper()}, split {config.split}, preset {config.preset}; {how}"
