"""The paper's GANs (sections III-B, III-C) on one split, trained: a DCGAN per class or one ACGAN, resumable.

A folder holds config.json, run.json, folds.json and `gans/`, a folder per GAN: checkpoints and metrics while it trains,
and `final/` when it is done.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionaug.augment.batches import AugmentedBatches
from lesionaug.data.files import (
    check_own_folder,
    commit_directory,
    locked,
    remove_leftovers,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from lesionaug.data.folds import Folds, load_folds, make_folds, split_lesions
from lesionaug.data.provenance import Provenance
from lesionaug.data.rois import RoiBatch
from lesionaug.data.store import load_rois, manifest_sha256
from lesionaug.environment import versions
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment.config import changed_values
from lesionaug.experiment.gan_config import GansConfig, gan_preset
from lesionaug.experiment.groups import build_pool, classic_groups
from lesionaug.experiment.machine import (
    check_versions,
    cpu_model,
    deterministic,
    device_name,
    num_cores,
    resolve_device,
    threads,
)
from lesionaug.experiment.results import Predictions, folds_sha256, read_json
from lesionaug.experiment.seeds import check_split, derive_seed
from lesionaug.settings import validate
from lesionaug.training.checkpoint import Metrics
from lesionaug.training.classifier import Progress
from lesionaug.training.gan_batches import Batches, FlyingBatches, PoolBatches
from lesionaug.training.gan_run import GanRun, train_gan
from lesionaug.training.synthesis import class_probabilities, save_gan

GAN_SCHEMA = 1
MetricsReport = Callable[[str, dict[str, Any]], None]  # (name of the GAN, a block of its metrics)
ALL_CLASSES = "all-classes"  # the folder of an ACGAN
_FIX = "Give the folder that `lesionaug gan train` wrote"
_OURS = frozenset({".lock", "config.json", "run.json", "folds.json", "gans", "figures", "evaluation", "tensorboard"})


@dataclass(frozen=True)
class GanTask:
    """One GAN of a folder.

    Attributes:
        name: Its folder below gans/.
        classes: Classes it makes.
        num_lesions: Training lesions.
        num_images: Training images.
        num_steps: Optimiser steps.
        capped: The plan has fewer augmentations than the group asks for.
    """

    name: str
    classes: tuple[str, ...]
    num_lesions: int
    num_images: int
    num_steps: int
    capped: bool


@dataclass(frozen=True)
class GansOutcome:
    """What `train_gans` found and did.

    Attributes:
        config: The resolved configuration.
        kind: What the lesions are: "phantom", "imported" or "user".
        tasks: Every GAN of the folder.
        done_before: Names of those that were finished before the call.
        trained: Names of those that it finished.
    """

    config: GansConfig
    kind: str
    tasks: tuple[GanTask, ...]
    done_before: tuple[str, ...]
    trained: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether every GAN is done."""
        return len(self.done_before) + len(self.trained) == len(self.tasks)


def train_gans(
    store_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: GansConfig | None = None,
    *,
    progress: Progress | None = None,
    on_metrics: MetricsReport | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    graphs: bool = False,
    dry_run: bool = False,
) -> GansOutcome:
    """Train the GANs of one split, or what is missing of them; the same call again resumes, to the same bits.

    Args:
        store_path: ROI store with a class for every lesion.
        out: The folder; made if missing.
        config: What to train; None resumes with the folder's own configuration (`quick` for a new folder).
        progress: Called as (optimiser steps done, in all, text).
        on_metrics: Called as (name of the GAN, block of metrics), see `GanRun.metrics`.
        should_stop: Asked after every step; True saves a checkpoint and returns.
        graphs: On a GPU, whole steps as CUDA graphs: one launch a step.
        dry_run: Plan and check only, write nothing.

    Raises:
        ConfigError: Changed configuration, store or versions, a folder in use or of something else.
        DataError: A store that cannot be trained on, patients on both sides, losses that are no longer finite.
        EnvironmentProblem: No such device, out of memory.
    """
    store_path, out = Path(store_path), Path(out)
    store_hash, rois = manifest_sha256(store_path), load_rois(store_path)
    # Every fault of the input shows before a file is written.
    settled, _, _, tasks = _prepare(out, config, rois, store_hash)
    if graphs and settled.device == "cpu":
        raise ConfigError("--graphs", "CUDA graphs are for a GPU", "Leave it out")
    check_own_folder(out, _OURS, "folder of GANs")
    if dry_run:
        return GansOutcome(settled, rois.kind, tasks, _done(out, tasks), ())
    out.mkdir(parents=True, exist_ok=True)
    trained: list[str] = []
    with locked(out):
        # Again: another process may have begun meanwhile, with another split if none was asked for.
        config, folds, (train, test), tasks = _prepare(out, config, rois, store_hash)
        done = _done(out, tasks)
        remove_leftovers(out, out / "figures", out / "evaluation", *out.glob("gans/*"))
        for name in done:  # of a process that was killed before it could
            shutil.rmtree(out / "gans" / name / "checkpoints", ignore_errors=True)
        if not (out / "config.json").exists():
            folds.save(out / "folds.json")
            write_json_atomic(out / "run.json", _describe(out, rois, store_hash, config))
            write_json_atomic(out / "config.json", config.model_dump(mode="json"))
        missing = [task for task in tasks if task.name not in done]
        total, before = sum(task.num_steps for task in missing), 0
        with threads(config.threads), deterministic(config.deterministic):
            for task in missing:
                report = None if progress is None else _shifted(progress, before, total, task)
                told = None if on_metrics is None else functools.partial(on_metrics, task.name)
                members = of_classes(train, task.classes)
                if not _train_one(out, config, task, members, test, report, told, should_stop, graphs):
                    break
                trained.append(task.name)
                before += task.num_steps
    return GansOutcome(config, rois.kind, tasks, done, tuple(trained))


def _train_one(
    out: Path,
    config: GansConfig,
    task: GanTask,
    train: RoiBatch,
    test: RoiBatch,
    progress: Progress | None,
    on_metrics: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool],
    graphs: bool,
) -> bool:
    """Train one GAN and commit it; False where it was stopped."""
    folder = out / "gans" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    seed = derive_seed(f"gan-{config.kind}-{task.name}-split{config.split}-seed{config.seed}")
    run = fit_gan(folder, config, task, train, seed, progress, on_metrics, should_stop, graphs)
    if not run.finished:
        return False
    with commit_directory(folder / "final") as final:
        write_gan(final, run, config, task, train)
        if config.gan.conditioning == "auxiliary":
            write_text_atomic(final / "predictions.csv", _as_classifier(run, test, config).to_csv())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return True


def fit_gan(
    folder: Path,
    config: GansConfig,
    task: GanTask,
    train: RoiBatch,
    seed: int,
    progress: Progress | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    graphs: bool = False,
) -> GanRun:
    """Train one GAN, or what is left of it.

    Args:
        folder: For its checkpoints; what is there is gone on from.
        config: Of its split.
        task: Which GAN.
        train: Its training lesions.
        seed: Of its training.
        progress: Called as (steps done, steps in all, text).
        on_metrics: Called with every block of metrics.
        should_stop: Asked after every step.
        graphs: On a GPU, whole steps as CUDA graphs.
    """
    return train_gan(
        training_batches(train.to(config.device), config, task, seed),
        config.gan,
        num_classes=len(train.classes),
        seed=seed,
        device=config.device,
        folder=folder,
        progress=progress,
        on_metrics=on_metrics,
        should_stop=should_stop,
        graphs=graphs,
    )


def write_gan(
    folder: Path, run: GanRun, config: GansConfig, task: GanTask, train: RoiBatch, *, times: bool = True
) -> None:
    """Write a finished GAN into an existing folder: gan.json, both networks, metrics.jsonl and strip.safetensors.

    Without `times` the metrics say nothing of seconds, so that equal trainings are equal bytes.
    """
    from safetensors.torch import save

    described: dict[str, Any] = {
        "kind": config.kind,
        "classes": list(task.classes),
        "split": config.split,
        "seed": config.seed,
        "window_hu": list(config.image.window_hu),
        "sources": Provenance.of(train).to_json(),
        "source_kind": train.kind,
        "num_images": task.num_images,
        "versions": versions(),
    }
    save_gan(run.gan, folder, described)
    Metrics(folder / "metrics.jsonl").append(
        [{key: value for key, value in block.items() if times or key != "seconds"} for block in run.metrics]
    )
    write_bytes_atomic(folder / "strip.safetensors", save({"strip": run.strip.contiguous()}))


def training_batches(train: RoiBatch, config: GansConfig, task: GanTask, seed: int) -> Batches:
    """The training images of one GAN, on its lesions' device."""
    size = config.gan.network.image_size
    if config.data == "fly":
        batches = AugmentedBatches(
            train,
            config.plan.build(),
            config.gan.batch_size,
            config.plan.seed,
            size=size,
            window=config.image.window_hu,
            a=config.image.a,
            antialias=config.image.antialias,
            border=config.image.border,
        )
        return FlyingBatches(batches, task.num_images)
    per_lesion = task.num_images // len(train) - 1
    pool = build_pool(train, per_lesion, size=size, plan=config.plan, image=config.image)
    images, labels = pool.group(per_lesion)
    return PoolBatches(images, labels, config.gan.batch_size, seed)


def _prepare(
    out: Path, config: GansConfig | None, rois: RoiBatch, store_hash: str
) -> tuple[GansConfig, Folds, tuple[RoiBatch, RoiBatch], tuple[GanTask, ...]]:
    """Settle what is to be done, and check it: configuration, folds, lesions trained on and tested, GANs."""
    config, folds = _settle(out, config, rois, store_hash)
    train, test = split_lesions(rois, folds, config.split)
    check_split(train, test, config.split)
    return config, folds, (train, test), plan_gans(config, train, len(rois))


def _settle(out: Path, config: GansConfig | None, rois: RoiBatch, store_hash: str) -> tuple[GansConfig, Folds]:
    """Bring the wanted configuration and the folder's own together, and get the folds."""
    if not (out / "config.json").exists():
        config = config or gan_preset("quick")
        update = {"device": resolve_device(config.device), "threads": config.threads or num_cores()}
        config = config.model_copy(update=update)
        folds = make_folds(rois, config.folds.num_folds, config.folds.seed)
        if config.split >= folds.num_folds:
            raise ConfigError(
                "--split", f"there are splits 0 .. {folds.num_folds - 1}, got {config.split}", "Choose one"
            )
        return config, folds
    saved, info = load_gans_config(out), load_gans_info(out)
    if config is not None:
        update = {"device": saved.device} if config.device == "auto" else {}
        update |= {"threads": saved.threads} if config.threads == 0 else {}
        changed = changed_values(saved, config.model_copy(update=update))
        if changed:
            raise ConfigError(
                out.name,
                "these GANs were begun with another configuration",
                "Repeat the old options to resume, or name a new folder. Changed:\n  "
                + "\n  ".join(f"{key}: {old} -> {new}" for key, old, new in changed),
            )
    resolve_device(saved.device)
    check_versions(out.name, info)
    if info["manifest_sha256"] != store_hash:
        raise ConfigError(
            out.name,
            f"these GANs were begun on another ROI store (manifest {info['manifest_sha256'][:12]}, now "
            f"{store_hash[:12]})",
            "Give that store, or name a new folder",
        )
    if info["folds_sha256"] != folds_sha256(out):
        raise ConfigError("folds.json", "it was changed since the training began", "Restore the file")
    return saved, load_folds(out / "folds.json")


def plan_gans(config: GansConfig, train: RoiBatch, num_lesions: int) -> tuple[GanTask, ...]:
    """List the GANs of a split: one per class, or one for all.

    Args:
        config: What is trained.
        train: The split's training lesions.
        num_lesions: Of the whole data set; the size of the classic group follows from it.

    Raises:
        DataError: A class with fewer than two training images.
    """
    group = classic_groups((config.group,), config.folds.num_folds, num_lesions, config.plan.n_augmentations)[0]
    labels = train.labels.tolist()
    wanted: list[tuple[str, tuple[str, ...]]] = [(f"class-{i}", (name,)) for i, name in enumerate(train.classes)]
    if config.kind == "acgan":
        wanted = [(ALL_CLASSES, train.classes)]
    tasks = []
    for name, classes in wanted:
        lesions = sum(train.classes[label] in classes for label in labels)
        images = lesions * (1 + group.per_lesion)
        if images < 2:
            raise DataError("ROIs", f"{images} training image(s) of {', '.join(classes)}", "A GAN needs two or more")
        tasks.append(GanTask(name, classes, lesions, images, config.gan.num_steps(images), group.capped))
    return tuple(tasks)


def _describe(out: Path, rois: RoiBatch, store_hash: str, config: GansConfig) -> dict[str, Any]:
    return {
        "schema": GAN_SCHEMA,
        "folds_sha256": folds_sha256(out),
        "kind": rois.kind,
        "classes": list(rois.classes),
        "manifest_sha256": store_hash,
        "versions": versions(),
        "machine": {"cpu": cpu_model(), "cores": num_cores(), "device": device_name(config.device)},
    }


def _done(out: Path, tasks: Sequence[GanTask]) -> tuple[str, ...]:
    return tuple(task.name for task in tasks if (out / "gans" / task.name / "final").is_dir())


def check_store(out: Path, store_path: Path, where: str) -> None:
    """Refuse another store than the one a folder's GANs were trained on, whatever its ids are.

    Raises:
        ConfigError: It is another.
    """
    wanted, found = load_gans_info(out)["manifest_sha256"], manifest_sha256(store_path)
    if wanted != found:
        raise ConfigError(
            where,
            f"this is not the store the GANs were trained on (manifest {wanted[:12]}, this one {found[:12]})",
            "Give that store",
        )


def of_classes(rois: RoiBatch, names: Sequence[str]) -> RoiBatch:
    """The lesions of some classes."""
    return rois[[i for i, label in enumerate(rois.labels.tolist()) if rois.classes[label] in names]]


def _shifted(progress: Progress, before: int, total: int, task: GanTask) -> Progress:
    name = task.classes[0] if len(task.classes) == 1 else "all classes"
    return lambda done, _, text: progress(before + done, total, f"{name}: {text}" if text else name)


def _as_classifier(run: GanRun, test: RoiBatch, config: GansConfig) -> Predictions:
    """What the class head of an ACGAN's discriminator makes of the test fold (section IV-C)."""
    pool = build_pool(test, 0, size=config.gan.network.image_size, plan=config.plan, image=config.image)
    probabilities = class_probabilities(run.gan.discriminator, pool.group(0)[0])
    return Predictions.of_fold(test, config.split, probabilities)


def load_gans_config(out: Path) -> GansConfig:
    """Read config.json of a folder of GANs.

    Raises:
        DataError: Not such a folder, or not JSON.
        ConfigError: Keys or values that this version does not know.
    """
    return validate(GansConfig, read_json(out, "config.json", fix=_FIX), "config.json")


def load_gans_info(out: Path) -> dict[str, Any]:
    """Read run.json of a folder of GANs.

    Raises:
        DataError: Not such a folder, not JSON, or of another version.
    """
    info = read_json(out, "run.json", fix=_FIX)
    if info.get("schema") != GAN_SCHEMA:
        raise DataError(
            "run.json",
            f"its schema is {str(info.get('schema'))[:20]}, this release reads {GAN_SCHEMA}",
            "Use the release that wrote it",
        )
    return info
