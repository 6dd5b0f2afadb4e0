"""The kinds of steps of a run: one function for each, from committed results to a new one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionaug.data.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.synthetic import SyntheticRois, save_synthetic
from lesionaug.environment import versions
from lesionaug.experiment.choices import choose, size_in_use
from lesionaug.experiment.config import Kind
from lesionaug.experiment.gan import GanTask, fit_gan, of_classes, plan_gans, write_gan
from lesionaug.experiment.gan_config import GansConfig
from lesionaug.experiment.graph import Result, read_task
from lesionaug.experiment.machine import deterministic
from lesionaug.experiment.materials import WORKING, Materials
from lesionaug.experiment.protocol import (
    ORIGINALS,
    Step,
    gan_names,
    group_sizes,
    inner_name,
    synthetic_per_class,
    task_name,
)
from lesionaug.experiment.results import Predictions
from lesionaug.experiment.seeds import derive_seed
from lesionaug.training.classifier import (
    Progress,
    load_classifier,
    train_classifier,
)
from lesionaug.training.synthesis import class_probabilities, load_gan, sample

_SAMPLES_AT_ONCE = 256  # as `generate`: whole batches, so that an image has the same bits in a larger sample


def _cnn(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Train the classification network on a group, and classify its test fold."""
    recipe = materials.recipe(step)
    images, labels = materials.training_set(step, recipe)
    trained = train_classifier(
        images,
        labels,
        recipe.config,
        num_classes=materials.num_classes,
        cnn=materials.config.cnn,
        seed=derive_seed(step.name),
        device=materials.config.device,
        progress=progress,
    )
    return materials.classified(step, recipe, trained, "plain loop")


def _bovw(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Train the baseline on un-augmented lesions, and classify the test fold (section IV-E)."""
    from lesionaug.training.bovw import predict_bovw, save_bovw, train_bovw

    assert materials.config.bovw is not None
    train, test = materials.sides(step)
    images, labels = materials.pool(train, 0).group(0)
    trained = train_bovw(
        images,
        labels,
        train.patient_ids,
        materials.config.bovw,
        num_classes=materials.num_classes,
        seed=derive_seed(step.name),
    )
    probabilities = predict_bovw(trained, materials.pool(test, 0).group(0)[0])
    predictions = materials.predictions(step, test, probabilities)

    def write(folder: Path) -> None:
        save_bovw(trained, folder, materials.rois.classes)
        write_text_atomic(folder / "predictions.csv", predictions.to_csv())

    info = {"num_train_images": len(train), "inner_folds": trained.inner_folds, "kept_words": len(trained.bag.kept)}
    return Result(write, info | materials.described(train))


def _gan_config(materials: Materials, step: Step) -> GansConfig:
    """How a step's GAN is trained: on the classic group at its optimum, or on the lesions alone."""
    config, split = materials.config, step.split
    kind: Kind = "acgan" if step.arm == "acgan" else "dcgan"
    optimum = materials.optimum(split)
    gans = GansConfig(
        kind=kind,
        gan=config.gan(kind),
        group=optimum.size,
        image=config.image,
        plan=config.plan,
        folds=config.folds,
        split=split,
        seed=step.seed,
        device=config.device,
        threads=config.threads_per_task,
    )
    if step.arm != ORIGINALS:
        return gans
    # As many steps as those that see the augmentations take.
    train = materials.sides(step)[0]
    steps = _gan_task(materials, step, gans, train).num_steps
    alone = gans.gan.model_copy(update={"steps": steps})
    return gans.model_copy(update={"group": 0, "gan": alone})


def _gan_task(materials: Materials, step: Step, config: GansConfig, train: RoiBatch) -> GanTask:
    return plan_gans(config, train, len(materials.folds.lesions))[step.settings["class"] or 0]


def _gan(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Train a GAN on the training folds of a split (sections III-B, III-C), resumed from its checkpoints."""
    train, test = materials.sides(step)
    config = _gan_config(materials, step)
    task = _gan_task(materials, step, config, train)
    members = of_classes(train, task.classes)
    Provenance.of(members).check_apart(Provenance.of(test), step.name, "Start a new run folder")
    with deterministic(config.deterministic):
        run = fit_gan(materials.run_dir / WORKING / step.name, config, task, members, derive_seed(step.name), progress)

    def write(folder: Path) -> None:
        write_gan(folder, run, config, task, members, times=False)

    info = {
        "classes": list(task.classes),
        "group_size": config.group,
        "num_train_images": task.num_images,
        "steps": task.num_steps,
        "capped": task.capped,
    }
    return Result(write, info | materials.described(members))


def _synthetic(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Make the synthetic ROIs of a split, class by class in turn, as many as its largest group takes."""
    config, split = materials.config, step.split
    largest = synthetic_per_class(config, config.synthetic_groups[-1], materials.num_classes)
    made: list[Tensor | None] = [None] * materials.num_classes
    sources, hashes = [], {}
    for name in gan_names(step.arm, split, step.seed, materials.num_classes):  # type: ignore[arg-type]
        gan = load_gan(materials.run_dir / materials.steps[name].folder)
        gan.generator.to(config.device)
        sources.append(Provenance.from_json(gan.info["sources"]))
        hashes[name] = gan.sha256
        for index, label in enumerate(gan.info["classes"]):
            wanted = index if gan.generator.num_classes else None
            whole = -(-largest // _SAMPLES_AT_ONCE) * _SAMPLES_AT_ONCE
            seed = derive_seed(f"{step.name}-class{materials.rois.classes.index(label)}")
            made[materials.rois.classes.index(label)] = sample(gan, whole, seed, wanted)[:largest]
    rois = SyntheticRois(
        images=torch.stack([images for images in made if images is not None], 1).flatten(0, 1),
        labels=torch.arange(materials.num_classes).repeat(largest),
        classes=materials.rois.classes,
        kind=materials.rois.kind,
        split=split,
        window_hu=config.image.window_hu,
        provenance=Provenance.union(sources),
        details={"gan": step.arm, "seed": step.seed, "generators": hashes, "versions": versions()},
    )
    rois.check_apart(materials.sides(step)[1])

    def write(folder: Path) -> None:
        save_synthetic(rois, folder / "rois")

    info = {"num_images": len(rois), "sources": rois.provenance.to_json(), "versions": versions()}
    return Result(write, info)


def _discriminator(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """What the class head of an ACGAN's discriminator says of the test fold (section IV-C)."""
    train, test = materials.sides(step)
    (name,) = gan_names("acgan", step.split, step.seed, materials.num_classes)
    gan = load_gan(materials.run_dir / materials.steps[name].folder)
    Provenance.from_json(gan.info["sources"]).check_apart(Provenance.of(test), name, "Delete it and run again")
    gan.discriminator.to(materials.config.device)
    probabilities = class_probabilities(gan.discriminator, materials.pool(test, 0).group(0)[0])
    predictions = materials.predictions(step, test, probabilities)
    info = {"num_train_images": read_task(materials.run_dir, materials.steps[name])["num_train_images"]}
    return Result(
        lambda folder: write_text_atomic(folder / "predictions.csv", predictions.to_csv()),
        info | materials.described(train),
    )


def _choice(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Choose the group that the next stage builds on; see choices.py."""
    config, splits = materials.config, range(materials.folds.num_folds)

    def correct(name: str, fold: int | None = None) -> int:
        folder = materials.run_dir / materials.steps[name].folder
        predictions = Predictions.from_csv(
            (folder / "predictions.csv").read_text(encoding="utf-8"), materials.rois.classes
        )
        return predictions.num_correct(fold)

    def mean(counts: Sequence[int]) -> float:
        return sum(counts) / len(config.seeds)

    tested = {
        size: mean([correct(task_name(step.arm, size, split, seed)) for seed in config.seeds for split in splits])
        for size in group_sizes(config, step.arm)
    }
    inner = None
    if step.arm == "classic" and materials.folds.num_folds > 2:
        inner = {
            split: {
                size: mean(
                    [
                        correct(inner_name(size, sorted((split, fold)), seed), fold)
                        for seed in config.seeds
                        for fold in splits
                        if fold != split
                    ]
                )
                for size in config.classic_groups
            }
            for split in splits
        }
    chosen = choose(tested, inner, step.settings["rule"], splits)
    return Result(lambda folder: write_json_atomic(folder / "choice.json", chosen), {"versions": versions()})


@torch.no_grad()
def _embedding(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Map test lesions and their augmentations by a classifier's dense layer (Fig. 9)."""
    from lesionaug.evaluation.embedding import embed

    config, split = materials.config, step.split
    assert config.embedding is not None
    arm = "classic" if step.arm == "aug" else "dcgan"
    size = size_in_use(materials.choice(arm), split)
    model = task_name(arm, size, split, step.seed)
    trained, _ = load_classifier(materials.run_dir / materials.steps[model].folder, config.device)
    _, test = materials.sides(step)
    images, labels = materials.pool(test, config.embedding.per_lesion).group(config.embedding.per_lesion)
    features = [
        trained.model.features((part - trained.mean).contiguous(memory_format=torch.channels_last)).cpu()
        for part in torch.split(images, _SAMPLES_AT_ONCE)
    ]
    points = embed(
        torch.cat(features).numpy(), seed=derive_seed(step.name) % 2**32, perplexity=config.embedding.perplexity
    )
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["lesion_id", "label", "view", "x", "y"])
    for row, (x, y) in enumerate(points.tolist()):
        view, lesion = divmod(row, len(test))
        rows.writerow([test.lesion_ids[lesion], materials.rois.classes[int(labels[row])], view, f"{x:.6g}", f"{y:.6g}"])
    info = {"model": model, "group_size": size, "num_points": len(points), "versions": versions()}
    return Result(lambda folder: write_text_atomic(folder / "points.csv", text.getvalue()), info)


def _first_of_each(rois: RoiBatch, most: int | None) -> RoiBatch:
    """The first `most` lesions of every class."""
    if most is None:
        return rois
    labels = rois.labels.tolist()
    return rois[[i for i, label in enumerate(labels) if labels[:i].count(label) < most]]


def _memorisation(materials: Materials, step: Step, progress: Progress | None) -> Result:
    """Compare synthetic ROIs with the lesions they learned from and with held-out ones."""
    from lesionaug.augment.sheet import figure_png
    from lesionaug.experiment.gan_evaluation import evaluate_gan
    from lesionaug.experiment.gan_figures import gallery_figure

    config, split = materials.config, step.split
    assert config.memorisation is not None
    train, test = materials.sides(step)
    model = task_name("classic", materials.optimum(split).size, split, step.seed)
    classifier, _ = load_classifier(materials.run_dir / materials.steps[model].folder)
    results: dict[str, Any] = {}
    pairs = {}
    sides = tuple(_first_of_each(side.to("cpu"), config.memorisation.lesions) for side in (train, test))
    for name in gan_names(step.arm, split, step.seed, materials.num_classes):  # type: ignore[arg-type]
        gan = load_gan(materials.run_dir / materials.steps[name].folder)
        images, seeds = {}, {}
        for index, label in enumerate(gan.info["classes"]):
            patients = [len(set(of_classes(side, [label]).patient_ids)) for side in sides]
            if min(patients) < 2:
                there = f"{patients[0]} training and {patients[1]} held-out patients"
                results[label] = {"not_measured": f"{there}, two of each are needed"}
                continue
            seed = derive_seed(f"{step.name}-{label}")
            wanted = index if gan.generator.num_classes else None
            images[label] = sample(gan, config.memorisation.per_class, seed, wanted)
            seeds[label] = seed % 2**32
        if images:
            found = evaluate_gan(gan, images, sides[0], sides[1], config.image, config.plan, classifier, seeds)
            for label, (numbers, closest) in found.items():
                results[label], pairs[label] = numbers, closest
    gallery = None
    if pairs:
        reduced = any(line.startswith(step.arm) or "GAN" in line for line in config.reductions)
        note = f"{step.arm.upper()}, split {split}; the images nearest to any training lesion"
        note += "\nReduced GANs: config.json says how" if reduced else ""
        gallery = figure_png(gallery_figure(pairs, kind=materials.rois.kind, note=note))

    def write(folder: Path) -> None:
        write_json_atomic(folder / "evaluation.json", {"features_of": model, "classes": results})
        if gallery is not None:
            write_bytes_atomic(folder / "gallery.png", gallery)

    return Result(write, {"features_of": model, "versions": versions()})


FUNCTIONS: Mapping[str, Callable[[Materials, Step, Progress | None], Result]] = {
    "cnn": _cnn,
    "bovw": _bovw,
    "gan": _gan,
    "synthetic": _synthetic,
    "discriminator": _discriminator,
    "choice": _choice,
    "embedding": _embedding,
    "memorisation": _memorisation,
}
