"""What trained GANs are worth: distances from real lesions, diversity and memorisation, each beside a baseline.

Features are those of a classifier trained on the same split (of a run, or trained here), so nothing is downloaded and
nothing has seen the held-out fold. Every distance of synthetic images stands beside that of real held-out lesions, of
blurred real ones and of noise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesionaug.augment.execute import augment
from lesionaug.augment.sheet import figure_png
from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.data.folds import Folds, load_folds, split_lesions
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError
from lesionaug.evaluation.distances import diversity, frechet_distance, kernel_distance, neighbourhoods
from lesionaug.evaluation.memorisation import (
    Nearest,
    chance_of_training,
    copy_limit_of,
    membership_auc,
    nearest_views,
    view_params,
)
from lesionaug.experiment.config import ImageConfig, PlanConfig, preset
from lesionaug.experiment.gan import check_store, of_classes
from lesionaug.experiment.gan_config import GansConfig, describe_gans
from lesionaug.experiment.gan_figures import gallery_figure
from lesionaug.experiment.gan_samples import load_gans
from lesionaug.experiment.groups import build_pool
from lesionaug.experiment.protocol import task_name
from lesionaug.experiment.results import load_config, load_info, load_run_folds
from lesionaug.experiment.seeds import check_split, derive_seed
from lesionaug.training.classifier import (
    Progress,
    TrainedClassifier,
    load_classifier,
    predict_probabilities,
    save_classifier,
    train_classifier,
)
from lesionaug.training.synthesis import SavedGan, sample

EVALUATION_SCHEMA = 1
VIEWS_PER_LESION = 8  # augmentations of each real lesion that distances are taken of, beside the original
CLASSIFIER_PER_LESION = 20  # augmentations of each lesion that the classifier is trained on, where one is trained here
BLUR_PX = 2.0  # standard deviation of the blurred baseline
GALLERY = 6  # closest pairs shown of each class
FeatureArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_gans` found.

    Attributes:
        folder: OUT/evaluation, where evaluation.json and gallery.png are.
        classes: Class -> its numbers, as in evaluation.json.
        features_of: Where the features come from, a sentence.
        kind: What the lesions are: "phantom", "imported" or "user".
    """

    folder: Path
    classes: Mapping[str, Mapping[str, Any]]
    features_of: str
    kind: str


def evaluate_gans(
    store_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    per_class: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure finished GANs against their training lesions and the fold they have not seen.

    Args:
        store_path: The ROI store they were trained on.
        out: Their folder.
        run: A run on the same folds, whose classifier of this split gives the features; one is trained when None.
        per_class: Synthetic images of each class, at least 20.
        seed: Of their noise and of the bootstraps.
        progress: Called as (done, in all, text) while a classifier is trained.

    Raises:
        ConfigError: GANs that are not finished; another store; a run of other folds; too few images.
        DataError: Damaged files, patients on both sides, a class with fewer than two patients on either side.
    """
    out = Path(out)
    if per_class < 20:
        raise ConfigError("--per-class", f"at least 20 images are needed, got {per_class}", "The default is 200")
    if not 0 <= seed < 2**32:
        raise ConfigError("--seed", f"it must lie in 0 .. 2^32 - 1, got {seed}", "The default is 0")
    trained = load_gans(out)
    check_store(out, Path(store_path), "ROIS")
    config, folds = trained.config, load_folds(out / "folds.json")
    train, test = split_lesions(load_rois(store_path), folds, config.split)
    check_split(train, test, config.split)
    folder = out / "evaluation"
    folder.mkdir(exist_ok=True)
    classifier, features_of = _classifier(config, folds, train, folder, run, Path(store_path), progress)
    results, pairs = {}, {}
    for gan in trained.gans.values():
        images = {
            name: sample(
                gan,
                per_class,
                derive_seed(f"evaluate-{seed}-{name}"),
                gan.info["classes"].index(name) if gan.generator.num_classes else None,
            )
            for name in gan.info["classes"]
        }
        for name, found in evaluate_gan(
            gan, images, train, test, config.image, config.plan, classifier, dict.fromkeys(images, seed)
        ).items():
            results[name], pairs[name] = found
    write_json_atomic(
        folder / "evaluation.json",
        {
            "schema": EVALUATION_SCHEMA,
            "kind": trained.kind,
            "gan": config.kind,
            "preset": config.preset,
            "split": config.split,
            "per_class": per_class,
            "seed": seed,
            "features_of": features_of,
            "classes": results,
            "versions": versions(),
        },
    )
    gallery = gallery_figure(pairs, kind=trained.kind, note=describe_gans(config))
    write_bytes_atomic(folder / "gallery.png", figure_png(gallery))
    return Evaluation(folder, results, features_of, trained.kind)


def _classifier(
    config: GansConfig,
    folds: Folds,
    train: RoiBatch,
    folder: Path,
    run: str | os.PathLike[str] | None,
    store_path: Path,
    progress: Progress | None,
) -> tuple[TrainedClassifier, str]:
    """The network whose dense layer gives the features, trained on this split's training folds alone."""
    size = config.gan.network.image_size
    if run is not None:
        return _classifier_of_run(Path(run), config, folds, store_path)
    kept = folder / "classifier"
    if not (kept / "model.json").exists():
        narrow = preset("quick")
        if size < 32:
            raise ConfigError(
                "--run", f"images of {size} pixels are too small for the quick CNN", "Give a run with --run"
            )
        cnn = narrow.cnn.model_copy(update={"image_size": size})
        pool = build_pool(train, CLASSIFIER_PER_LESION, size=size, plan=config.plan, image=config.image)
        images, labels = pool.group(CLASSIFIER_PER_LESION)
        trained = train_classifier(
            images,
            labels,
            narrow.classifier,
            num_classes=len(train.classes),
            cnn=cnn,
            seed=derive_seed(f"features-split{config.split}-seed{config.seed}"),
            progress=progress,
        )
        kept.mkdir(exist_ok=True)
        save_classifier(trained, kept, train.classes)
    return load_classifier(kept)[0], "a CNN of the quick preset, trained for this on the split's training folds"


def _classifier_of_run(run: Path, config: GansConfig, folds: Folds, store_path: Path) -> tuple[TrainedClassifier, str]:
    run_config, info = load_config(run), load_info(run)
    if info["store"]["manifest_sha256"] != manifest_sha256(store_path):
        raise ConfigError("--run", "that run was made from another ROI store", "Leave it out, or give its store")
    if load_run_folds(run, run_config, info).lesions != folds.lesions or run_config.image != config.image:
        raise ConfigError(
            "--run", "that run has other folds or another window than the GANs", "Leave it out, or name a run of these"
        )
    for group in reversed(run_config.classic_groups):
        name = task_name("classic", group, config.split, run_config.seeds[0])
        if (run / "models" / name).is_dir():
            trained, _ = load_classifier(run / "models" / name)
            if trained.model.config.image_size != config.gan.network.image_size:
                raise ConfigError("--run", "its networks see images of another size", "Leave it out")
            return trained, f"the run's CNN of classic group {group} on this split"
    raise ConfigError("--run", f"no model of split {config.split} is trained in it yet", "Finish it, or leave it out")


@torch.no_grad()
def _features(classifier: TrainedClassifier, images: Tensor) -> FeatureArray:
    """The direction of the dense layer's features, at a mean square of 1; zero where no unit answers.

    A few lesions with large activations would decide every distance otherwise: blurred training lesions then came out
    nearer than real held-out ones, and one image more or less changed a distance tenfold.
    """
    parts = [classifier.model.features(part - classifier.mean) for part in torch.split(images, 256)]
    features = torch.cat(parts).double()
    length = features.norm(dim=1, keepdim=True)
    directions: FeatureArray = (features * features.shape[1] ** 0.5 / length.clamp_min(1e-12)).numpy()
    return directions


Pairs = list[tuple[Any, Any, Any, float, float]]  # for `gallery_figure`


def evaluate_gan(
    gan: SavedGan,
    images: Mapping[str, Tensor],
    train: RoiBatch,
    test: RoiBatch,
    image: ImageConfig,
    plan: PlanConfig,
    classifier: TrainedClassifier,
    seeds: Mapping[str, int],
) -> dict[str, tuple[dict[str, Any], Pairs]]:
    """Compare synthetic images of a GAN, class by class, with training lesions and with held-out ones.

    Args:
        gan: What made the images.
        images: Class -> [N, 1, S, S] float32 in (0, 1).
        train: The split's training lesions, of every class.
        test: Its held-out lesions.
        image: Window and resampling.
        plan: Classic augmentation.
        classifier: Gives the features; trained on this split's training folds alone.
        seeds: Class -> seed of its bootstraps.

    Returns:
        Class -> its numbers, as in evaluation.json, and the closest pairs for `gallery_figure`.

    Raises:
        DataError: Fewer than two patients of a class on either side.
    """
    size, window = gan.config.network.image_size, image.window_hu
    # An ACGAN may repeat a lesion of another class too.
    learned = train if gan.generator.num_classes else of_classes(train, list(images))
    sides = {name: (of_classes(train, [name]), of_classes(test, [name])) for name in images}

    def originals(rois: RoiBatch) -> Tensor:
        return build_pool(rois, 0, size=size, plan=plan, image=image).images[0]

    for name in images:
        for side, where in zip(sides[name], ("training", "held-out"), strict=True):
            if len(set(side.patient_ids)) < 2:
                raise DataError("ROIs", f"{name} has fewer than two {where} patients", "Choose another split")
    # In one pass, for the views of a lesion are what takes time: training lesions, synthetic images, held-out lesions.
    queries = [originals(learned)]
    for name, made in images.items():
        queries += [made, originals(sides[name][1])]
    near, begin = nearest_views(torch.cat(queries), learned, window), len(learned)
    limit = copy_limit_of(near.distance[:begin], learned.patient_ids)
    found = {}
    for name, made in images.items():
        middle, end = begin + len(made), begin + len(made) + len(sides[name][1])
        found[name] = _evaluate_class(
            made, *sides[name], gan, image, plan, classifier, name, seeds[name], limit,
            near_learned=Nearest(near.distance[begin:middle], near.view[begin:middle]),
            held_to_learned=near.distance[middle:end],
            own=[i for i, label in enumerate(learned.labels.tolist()) if learned.classes[label] == name],
        )  # fmt: skip
        begin = end
    return found


def _evaluate_class(
    images: Tensor,
    train: RoiBatch,
    test: RoiBatch,
    gan: SavedGan,
    image: ImageConfig,
    plan: PlanConfig,
    classifier: TrainedClassifier,
    name: str,
    seed: int,
    limit: float,
    *,
    near_learned: Nearest,
    held_to_learned: npt.NDArray[np.float32],
    own: list[int],
) -> tuple[dict[str, Any], Pairs]:
    """Compare images with the lesions of their class; `own` are the columns of its training lesions."""
    size, window = gan.config.network.image_size, image.window_hu
    label = train.classes.index(name)

    def views(rois: RoiBatch, per_lesion: int) -> Tensor:
        return build_pool(rois, per_lesion, size=size, plan=plan, image=image).images

    num_views = min(VIEWS_PER_LESION, plan.n_augmentations)
    of_train, of_test = views(train, num_views), views(test, num_views)  # [1 + views, lesions, 1, S, S]
    real, held = of_train.flatten(0, 1), of_test.flatten(0, 1)
    who_train, who_test = (
        np.tile(np.array(rois.patient_ids), 1 + num_views) for rois in (train, test)
    )  # patients: their lesions resemble each other too
    generator = torch.Generator().manual_seed(seed)
    sets = {
        "synthetic": (images, None),
        "held-out lesions": (held, who_test),
        "blurred training lesions": (_blurred(real), who_train),
        "noise": (torch.rand(images.shape, generator=generator), None),
    }
    reference = _features(classifier, real)
    features = {key: _features(classifier, shown) for key, (shown, _) in sets.items()}
    synthetic, of_held = features["synthetic"], features["held-out lesions"]
    kid = {
        key: asdict(kernel_distance(features[key], reference, blocks, who_train, seed=seed))
        for key, (_, blocks) in sets.items()
    }
    to_held = kernel_distance(synthetic, of_held, None, who_test, seed=seed)
    # One view of each lesion, turned like any other: several of one would be each other's neighbours.
    one_train, one_test = reference[len(train) : 2 * len(train)], of_held[len(test) : 2 * len(test)]
    near_test = nearest_views(images, test, window)
    near_train = Nearest(near_learned.distance[:, own], near_learned.view[:, own])

    def copies(distance: npt.NDArray[np.float32]) -> float:
        return float((distance.min(axis=1) < limit).mean())

    def as_wanted(shown: Tensor) -> float:
        return float((predict_probabilities(classifier, shown).argmax(1) == label).float().mean())

    fewest = min(len(train), len(test))
    k = min(5, len(test) - 1, len(train) - 1)
    return {
        "num_training_lesions": len(train),
        "num_held_out_lesions": len(test),
        "kid_to_training": kid,
        "kid_to_held_out": asdict(to_held),
        "neighbourhoods": {
            "synthetic": asdict(neighbourhoods(synthetic, one_train, k, size=len(one_test), seed=seed)),
            "held-out lesions": asdict(neighbourhoods(one_test, one_train, k)),
        },
        "frechet": {
            "synthetic": asdict(frechet_distance(synthetic, reference, len(train))),
            "held-out lesions": asdict(frechet_distance(of_held, reference, fewest)),
        },
        "diversity": {
            "synthetic": asdict(diversity(synthetic, reference, who_train)),
            "held-out lesions": asdict(diversity(one_test, reference, who_train)),
        },
        "classified_as_wanted": {"synthetic": as_wanted(images), "held-out lesions": as_wanted(held)},
        "memorisation": {
            "nearer_to_training": asdict(
                chance_of_training(near_train.distance, near_test.distance, train.patient_ids, test.patient_ids)
            ),
            "copy_limit": limit,
            "copies": {
                "synthetic": copies(near_learned.distance),
                "held-out lesions": copies(held_to_learned),
            },
            "membership_by_discriminator": asdict(_by_discriminator(gan, of_train[0], of_test[0], train, test, label)),
            "membership_by_distance": asdict(
                membership_auc(
                    -near_train.distance.min(axis=0), -near_test.distance.min(axis=0), train.patient_ids,
                    test.patient_ids, seed=seed,
                )
            ),
        },
    }, _closest(images, near_train, near_test, train, test, window, size)  # fmt: skip


def _blurred(images: Tensor) -> Tensor:
    """Real images that lost their detail: what an over-smooth generator could do at best."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, BLUR_PX, BLUR_PX)))


@torch.no_grad()
def _by_discriminator(
    gan: SavedGan, members: Tensor, others: Tensor, train: RoiBatch, test: RoiBatch, label: int
) -> Any:
    """Whether the discriminator finds the lesions it was trained on more real than others of their class."""

    def score(images: Tensor) -> FeatureArray:
        claimed = torch.full((len(images),), label) if gan.discriminator.conditioning == "projection" else None
        logits: Tensor = gan.discriminator(images * 2 - 1, claimed)[0]
        return logits.double().numpy()

    return membership_auc(score(members), score(others), train.patient_ids, test.patient_ids)


def _closest(
    images: Tensor,
    near_train: Nearest,
    near_test: Nearest,
    train: RoiBatch,
    test: RoiBatch,
    window: tuple[float, float],
    size: int,
) -> list[tuple[Any, Any, Any, float, float]]:
    """The images nearest to a training lesion: with its view, the nearest held-out lesion's, and both distances."""
    pairs = []
    for i in np.argsort(near_train.distance.min(axis=1))[:GALLERY].tolist():
        row = [images[i, 0].numpy()]
        distances = []
        for near, rois in ((near_train, train), (near_test, test)):
            lesion = int(near.distance[i].argmin())
            params = view_params(rois, [lesion], [int(near.view[i, lesion])])
            row.append(augment(rois, params, size=size, window=window)[0, 0].numpy())
            distances.append(float(near.distance[i, lesion]))
        pairs.append((row[0], row[1], row[2], distances[0], distances[1]))
    return pairs
