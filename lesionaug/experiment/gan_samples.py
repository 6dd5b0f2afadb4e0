"""Finished GANs of a split read back: synthetic ROIs of them, and the figures of their training."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lesionaug.augment.sheet import figure_png, random_lesions
from lesionaug.data.files import check_new_folder, write_bytes_atomic
from lesionaug.data.folds import load_folds, select_lesions, split_lesions
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois
from lesionaug.data.synthetic import SyntheticRois, save_synthetic
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.memorisation import copy_limit, nearest_views
from lesionaug.experiment.gan import ALL_CLASSES, check_store, load_gans_config, load_gans_info
from lesionaug.experiment.gan_config import GansConfig, describe_gans
from lesionaug.experiment.gan_figures import curves_figure, samples_figure, strip_figure
from lesionaug.experiment.groups import build_pool
from lesionaug.experiment.machine import resolve_device
from lesionaug.experiment.results import Predictions
from lesionaug.experiment.seeds import derive_seed
from lesionaug.training.checkpoint import Metrics
from lesionaug.training.synthesis import SavedGan, load_gan, sample

_MOST_TRIES = 16  # images made for each one wanted, where copies are rejected


@dataclass(frozen=True)
class TrainedGans:
    """The finished GANs of a folder.

    Attributes:
        config: Of the folder.
        gans: By name.
        kind: What the lesions are: "phantom", "imported" or "user".
        classes: Of the data, in their order.
    """

    config: GansConfig
    gans: dict[str, SavedGan]
    kind: str
    classes: tuple[str, ...]


def load_gans(out: str | os.PathLike[str]) -> TrainedGans:
    """Read a folder of `train_gans`.

    Raises:
        ConfigError: GANs that are not finished.
        DataError: Not such a folder, or damaged files.
    """
    out = Path(out)
    if out.is_file():
        pickled = out.suffix in (".pt", ".pth", ".pkl", ".ckpt")
        rule = "this is a pickle, which can run any code as it is read" if pickled else "this is a file"
        raise DataError(out.name, rule, "Give the folder that `lesionaug gan train` wrote")
    config, info = load_gans_config(out), load_gans_info(out)
    folders = sorted((out / "gans").glob("[!.]*")) if (out / "gans").is_dir() else []
    gans = {folder.name: load_gan(folder / "final") for folder in folders if (folder / "final").is_dir()}
    classes = tuple(info["classes"])
    for name, gan in gans.items():
        if not {"classes", "split", "kind", "sources", "window_hu"} <= gan.info.keys():
            raise DataError(f"{out.name}/gans/{name}", "gan.json is incomplete", "Delete the folder and train again")
    made = {name for gan in gans.values() for name in gan.info["classes"]}
    if made != set(classes):
        missing = [name for name in classes if name not in made]
        raise ConfigError(
            out.name, f"no GAN for {', '.join(missing)} is finished", "Run `lesionaug gan train` again; it resumes"
        )
    for name, gan in gans.items():
        if gan.info["split"] != config.split or gan.info["kind"] != config.kind:
            raise DataError(f"{out.name}/gans/{name}", "it is of another split or kind than config.json", "Train anew")
    return TrainedGans(config, gans, info["kind"], classes)


def class_head_predictions(out: str | os.PathLike[str]) -> Predictions | None:
    """What the discriminator of a finished ACGAN says of the test fold; None of other GANs.

    Raises:
        DataError: A damaged file.
    """
    out = Path(out)
    if load_gans_config(out).gan.conditioning != "auxiliary":
        return None
    file = out / "gans" / ALL_CLASSES / "final" / "predictions.csv"
    try:
        return Predictions.from_csv(file.read_text(encoding="utf-8"), tuple(load_gans_info(out)["classes"]))
    except (OSError, ValueError) as error:
        raise DataError(file.name, f"it cannot be read ({error})", "Train in a new folder") from error


def sample_gans(
    out: str | os.PathLike[str],
    target: str | os.PathLike[str],
    per_class: int,
    seed: int = 0,
    *,
    reject_copies: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> SyntheticRois:
    """Make the same number of images of every class, as the paper does, and write them as a store of synthetic ROIs.

    Args:
        out: Folder of `train_gans`.
        target: The store's folder, which must not exist.
        per_class: Images of each class, at least 1.
        seed: Of the noise, 0 .. 2^64 - 1; the first images of a larger sample are those of a smaller one.
        reject_copies: The ROI store they were trained on: copies of its training lesions (memorisation.py) are left out
            and replaced by the next images of the noise.
        device: Where to make them.

    Raises:
        ConfigError: Fewer than one image, GANs that are not finished, another store.
        DataError: A folder that exists already, damaged files, a GAN that makes hardly anything but copies.
    """
    if per_class < 1:
        raise ConfigError("--per-class", f"at least one image is needed, got {per_class}", "Give a larger number")
    check_new_folder(Path(target))  # before anything is computed
    trained = load_gans(out)
    if reject_copies is not None:
        check_store(Path(out), Path(reject_copies), "--reject-copies")
    images: list[torch.Tensor] = [torch.empty(0)] * len(trained.classes)
    rejected: dict[str, int] = {}
    for gan in trained.gans.values():
        gan.generator.to(resolve_device(device))
        for name in gan.info["classes"]:
            label = gan.info["classes"].index(name) if gan.generator.num_classes else None
            draw = functools.partial(sample, gan, seed=derive_seed(f"sample-{seed}-{name}"), label=label)
            if reject_copies is None:
                images[trained.classes.index(name)] = draw(per_class)
            else:
                lesions = select_lesions(load_rois(reject_copies), tuple(gan.info["sources"]["lesions"]))
                images[trained.classes.index(name)], rejected[name] = _without_copies(
                    draw, per_class, lesions, trained.config, name
                )
    first = next(iter(trained.gans.values())).info
    sources = [Provenance.from_json(gan.info["sources"]) for gan in trained.gans.values()]
    rois = SyntheticRois(
        images=torch.cat(images),
        labels=torch.arange(len(images)).repeat_interleave(per_class),
        classes=trained.classes,
        kind=trained.kind,
        split=trained.config.split,
        window_hu=(first["window_hu"][0], first["window_hu"][1]),
        provenance=Provenance.union(sources),
        details={
            "gan": trained.config.kind,
            "preset": trained.config.preset,
            "per_class": per_class,
            "seed": seed,
            "generators": {name: gan.sha256 for name, gan in trained.gans.items()},
            "copies_rejected": rejected if reject_copies is not None else None,
            "versions": versions(),
        },
    )
    save_synthetic(rois, target)
    return rois


def _without_copies(
    draw: Callable[[int], torch.Tensor], count: int, lesions: RoiBatch, config: GansConfig, name: str
) -> tuple[torch.Tensor, int]:
    """The first `count` images that copy no lesion, and how many were left out before them."""
    window = config.image.window_hu
    if len(set(lesions.patient_ids)) < 2:
        raise DataError("--reject-copies", f"{name} has lesions of one patient, no measure of a copy", "Leave it out")
    limit = copy_limit(lesions, window, config.gan.network.image_size)
    wanted = count
    while wanted <= _MOST_TRIES * count:
        images = draw(wanted)
        apart = torch.from_numpy(nearest_views(images, lesions, window).distance.min(axis=1) >= limit)
        if int(apart.sum()) >= count:
            last = int(torch.nonzero(apart)[count - 1])
            return images[: last + 1][apart[: last + 1]], last + 1 - count
        wanted = 2 * wanted
    raise DataError(
        "--reject-copies",
        f"of {wanted // 2} images of {name}, {int(apart.sum())} are no copies of training lesions",
        "Train for fewer steps or with --preset modern; see `lesionaug gan evaluate`",
    )


def draw_figures(store_path: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[Path]:
    """Draw OUT/figures of finished GANs: training curves, images of one noise over time, samples beside real ROIs.

    Returns:
        The PNG files.

    Raises:
        ConfigError, DataError: As `load_gans`; a folder that changed.
    """
    from safetensors.torch import load

    out = Path(out)
    check_store(out, Path(store_path), "ROIS")
    trained, rois = load_gans(out), load_rois(store_path)
    config, folds = trained.config, load_folds(out / "folds.json")
    train, _ = split_lesions(rois, folds, config.split)
    note = describe_gans(config)
    metrics, strips, made, real = {}, {}, {}, {}
    for name, gan in trained.gans.items():
        folder = out / "gans" / name / "final"
        title = ", ".join(gan.info["classes"])
        metrics[title] = Metrics(folder / "metrics.jsonl").read()
        strip = load((folder / "strip.safetensors").read_bytes())["strip"].numpy()  # [moments, classes, columns, S, S]
        for index, label in enumerate(gan.info["classes"]):
            strips[label] = (strip[:, index], int(gan.info["steps"]))
            wanted = index if gan.generator.num_classes else None
            made[label] = sample(gan, 16, derive_seed(f"sample-0-{label}"), wanted)[:, 0].numpy()
    for label, members in random_lesions(train, 16, config.seed):
        pool = build_pool(train[members], 0, size=config.gan.network.image_size, plan=config.plan, image=config.image)
        real[label] = pool.images[0, :, 0].numpy()
    pages = {
        "training": curves_figure(metrics, kind=trained.kind, note=note),
        "strip": strip_figure(strips, kind=trained.kind, note=note),
        "samples": samples_figure(made, real, kind=trained.kind, note=note),
    }
    (out / "figures").mkdir(exist_ok=True)
    paths = [out / "figures" / f"{name}.png" for name in pages]
    for path, figure in zip(paths, pages.values(), strict=True):
        write_bytes_atomic(path, figure_png(figure))
    return paths
