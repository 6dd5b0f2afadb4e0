"""Training of the rival BoVW-MI (section IV-E): dictionary, choice of words and SVM, all on training lesions only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from lesionaug.data.arrays import check_unit_range
from lesionaug.data.files import write_bytes_atomic, write_json_atomic
from lesionaug.errors import ConfigError, DataError
from lesionaug.models.bovw import (
    BagOfWords,
    BovwConfig,
    Dictionary,
    FloatArray,
    IntArray,
    RbfSvm,
    count_words,
    mutual_information,
    normalise,
    patch_windows,
    regions,
    select_words,
)
from lesionaug.training.classifier import check_training_set, unreadable_model

BOVW_SCHEMA = 1
FIXED_COST, FIXED_GAMMA = 1.0, 1.0  # scikit-learn's defaults, where there are too few patients to choose by
MOST_ITERATIONS = 100  # of k-means
Splits = list[tuple[IntArray, IntArray]]


@dataclass(frozen=True)
class TrainedBovw:
    """A trained baseline.

    Attributes:
        bag: From images to features.
        svm: From features to classes.
        cost: C of the SVM, as chosen.
        gamma_scale: Its gamma in the units of `BovwConfig.gammas`, as chosen.
        inner_folds: Folds of the inner cross validation; 0: too few patients, so cost and gamma are fixed at 1.
        inner_accuracy: Best accuracy of the inner cross validation; None where there was none.
    """

    bag: BagOfWords
    svm: RbfSvm
    cost: float
    gamma_scale: float
    inner_folds: int
    inner_accuracy: float | None


def train_bovw(
    images: Tensor,
    labels: Tensor,
    patient_ids: Sequence[str],
    config: BovwConfig,
    *,
    num_classes: int,
    seed: int,
) -> TrainedBovw:
    """Train BoVW-MI on one training set.

    PCA and k-means (k-means++, Lloyd) see a random subsample of the patches, not mini-batches: a dictionary that has
    converged, in seconds. The same seed gives the same bits whatever the number of threads, the random state of others
    and the order of the lesions: they are sorted by their pixels first.

    The SVM's C and gamma are those with the most correct lesions in a cross validation stratified by class and grouped
    by patient, among equals the smallest. It selects its words anew in each fold; the dictionary, which sees no labels,
    is shared.

    Args:
        images: [N, 1, S, S] float32 in (0, 1), un-augmented ROIs (`originals`): the rival sees "the same ROI input".
        labels: [N] int64, 0 .. num_classes - 1, every class at least once.
        patient_ids: [N], whose lesions stay together in the inner folds.
        config: Sizes and grid.
        num_classes: Classes, at least 2.
        seed: 0 <= seed < 2**63.

    Raises:
        ConfigError: Fewer patches than words, or images smaller than a patch.
        DataError: Images that are not finite or outside (0, 1), or too alike for so many words; labels out of range, a
            class without lesions.
        ValueError: Shapes or types.
    """
    import sklearn.cluster  # noqa: F401  (now, for the limit below reaches only libraries that are loaded)

    _check_training_set(images, labels, patient_ids, num_classes)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
    images, target = images.cpu(), labels.cpu().numpy()
    keys = [
        (hashlib.blake2b(image.numpy().tobytes()).digest(), int(label), patient)
        for image, label, patient in zip(images, target, patient_ids, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    images, target = images[order], target[order]
    first_seen: dict[str, int] = {}  # so the patients' names play no part either
    patients = np.array([first_seen.setdefault(patient_ids[i], len(first_seen)) for i in order])
    with threadpool_limits(1):
        masks = regions(config, images.shape[-1])
        dictionaries = tuple(_fit_dictionary(images, mask, config, (seed, i)) for i, mask in enumerate(masks))
        counts = count_words(images, dictionaries, config)
        splits = inner_splits(target, patients, config.inner_folds, seed)
        cost, gamma_scale, accuracy = _choose(counts, target, splits, config)
        information = mutual_information(counts, target, config.mi_levels)
        kept = select_words(information, config)
        svm = export_svm(_fit_svm(normalise(counts, config)[:, kept], target, cost, gamma_scale))
    bins = np.stack([counts.min(0), counts.max(0)])
    bag = BagOfWords(config, images.shape[-1], dictionaries, information, bins, kept)
    return TrainedBovw(bag, svm, cost, gamma_scale, len(splits), accuracy)


def _fit_dictionary(images: Tensor, mask: Tensor, config: BovwConfig, seed: tuple[int, int]) -> Dictionary:
    """PCA and words of the patches of one region."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    here = mask.nonzero().flatten()
    total = len(images) * len(here)
    needed = max(config.words, config.components)
    if total < needed:
        raise ConfigError(
            "bovw.words",
            f"{len(images)} training lesions have {total} patches (region {seed[1] + 1} of {1 + config.dual}), too few "
            f"for {config.words} words of {config.components} components",
            "Use fewer words (bovw.words), a smaller stride (bovw.stride) or more lesions",
        )
    draw, cluster = np.random.SeedSequence(seed).spawn(2)
    chosen = np.arange(total)
    if total > config.max_patches:
        chosen = np.sort(np.random.default_rng(draw).choice(total, config.max_patches, replace=False))
    windows = patch_windows(images, config.patch, config.stride)
    image, place = torch.from_numpy(chosen // len(here)), here[torch.from_numpy(chosen % len(here))]
    patches = windows[image, place // windows.shape[2], place % windows.shape[2]].flatten(1).double().numpy()
    distinct = len(np.unique(patches, axis=0))
    if distinct < needed:
        raise DataError(
            "images",
            f"only {distinct} of {len(patches)} training patches differ, too few for {config.words} words",
            "Use fewer words (bovw.words), or a window that does not clip most of the image",
        )
    pca = PCA(config.components, svd_solver="covariance_eigh").fit(patches)
    state = int(cluster.generate_state(1)[0])
    kmeans = KMeans(config.words, n_init=1, max_iter=MOST_ITERATIONS, random_state=state)
    kmeans.fit((patches - pca.mean_) @ pca.components_.T)
    arrays = (np.ascontiguousarray(a) for a in (pca.mean_, pca.components_, kmeans.cluster_centers_))
    return Dictionary(*arrays)


def inner_splits(labels: IntArray, patients: IntArray, folds: int, seed: int) -> Splits:
    """Training and validation rows of the inner cross validation: stratified, no patient on both sides.

    As many folds as possible up to `folds`: no class has fewer patients, and every training part has every class.
    Empty where not even two are possible.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    classes = np.unique(labels)
    most = min(folds, *(len(np.unique(patients[labels == label])) for label in classes))
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    for number in range(most, 1, -1):
        splitter = StratifiedGroupKFold(number, shuffle=True, random_state=state)
        splits = list(splitter.split(np.zeros(len(labels)), labels, patients))
        if all(len(test) and len(np.unique(labels[train])) == len(classes) for train, test in splits):
            return splits
    return []


def _choose(
    counts: IntArray, labels: IntArray, splits: Splits, config: BovwConfig
) -> tuple[float, float, float | None]:
    """C and gamma with the most correct lesions over the inner folds, and their accuracy."""
    if not splits:
        return FIXED_COST, FIXED_GAMMA, None
    grid = [(cost, gamma) for cost in sorted(config.costs) for gamma in sorted(config.gammas)]
    correct = np.zeros(len(grid), dtype=np.int64)
    for train, test in splits:
        kept = select_words(mutual_information(counts[train], labels[train], config.mi_levels), config)
        features = normalise(counts, config)[:, kept]
        for i, (cost, gamma) in enumerate(grid):
            svm = _fit_svm(features[train], labels[train], cost, gamma)
            correct[i] += int((svm.predict(features[test]) == labels[test]).sum())
    best = int(correct.argmax())
    return *grid[best], int(correct[best]) / len(labels)


def _fit_svm(features: FloatArray, labels: IntArray, cost: float, gamma_scale: float) -> Any:
    """scikit-learn's SVC; its gamma in units of 1 / (features x their variance)."""
    from sklearn.svm import SVC

    spread = features.shape[1] * float(features.var())
    gamma = gamma_scale / spread if spread > 0 else gamma_scale
    # Votes alone would leave ties between three classes to the classes' order: the decisions break them. The random
    # state plays no part in the fit, but None would draw from NumPy's global one.
    return SVC(C=cost, gamma=gamma, break_ties=True, random_state=0).fit(features, labels)


def export_svm(svc: Any) -> RbfSvm:
    """Take the arrays out of a fitted SVC of all classes 0 .. n - 1.

    libsvm keeps, for a support vector of class a, its weights against the other classes in n - 1 rows; here each pair
    of classes has its row. With two classes scikit-learn turns the sign round.
    """
    number = len(svc.classes_)
    sign = -1.0 if number == 2 else 1.0
    owner = np.repeat(np.arange(number), svc.n_support_)
    coefficients = np.zeros((number * (number - 1) // 2, len(owner)))
    for row, (first, second) in zip(coefficients, zip(*np.triu_indices(number, 1), strict=True), strict=True):
        row[owner == first] = sign * svc.dual_coef_[second - 1, owner == first]
        row[owner == second] = sign * svc.dual_coef_[first, owner == second]
    intercepts = sign * np.asarray(svc.intercept_, dtype=np.float64)
    return RbfSvm(np.ascontiguousarray(svc.support_vectors_), coefficients, intercepts, float(svc.gamma), number)


def predict_bovw(trained: TrainedBovw, images: Tensor) -> Tensor:
    """Class probabilities: the softmax of the SVM's scores, so the most probable class is the one the SVM names.

    They rank and are not calibrated. Platt scaling, scikit-learn's probability=True, would refit the SVM inside an
    ungrouped cross validation, and its most probable class may differ from the SVM's.

    Args:
        trained: The baseline.
        images: [N, 1, S, S] float32 in (0, 1), N >= 0. The bits for one image do not depend on the others.

    Returns:
        [N, classes] float32 on the CPU; rows sum to 1 within rounding.

    Raises:
        DataError: Pixels that are not finite or outside (0, 1).
        ValueError: Shapes or types.
    """
    if images.numel():
        check_unit_range(images)
    with threadpool_limits(1):
        scores = torch.from_numpy(trained.svm.scores(trained.bag.histograms(images.cpu())))
    probabilities = scores.softmax(1).float()
    # Scores closer than float32 tells apart must not change the winner: it gets the next number above.
    winner = scores.argmax(1, keepdim=True)
    highest = probabilities.amax(1, keepdim=True)
    tied = (probabilities == highest).sum(1, keepdim=True) > 1
    return probabilities.scatter(1, winner, torch.where(tied, highest.nextafter(torch.ones(())), highest))


def save_bovw(trained: TrainedBovw, folder: Path, classes: tuple[str, ...]) -> None:
    """Write `model.safetensors` (the arrays) and `model.json` (all else, and a digest of both) into an existing folder.

    Raises:
        ValueError: Not as many class names as classes.
    """
    from safetensors.numpy import save

    bag, svm = trained.bag, trained.svm
    if len(classes) != svm.num_classes:
        raise ValueError(f"classes must be {svm.num_classes} names, got {list(classes)}")
    arrays: dict[str, Any] = {"information": bag.information, "bins": bag.bins, "kept": bag.kept}
    arrays |= {f"svm.{name}": getattr(svm, name) for name in ("support", "coefficients", "intercepts")}
    arrays |= {f"dictionary.{i}.{name}": a for i, d in enumerate(bag.dictionaries) for name, a in vars(d).items()}
    described = {
        "schema": BOVW_SCHEMA,
        "network": "bovw",
        "bovw": bag.config.model_dump(mode="json"),
        "classes": list(classes),
        "image_size": bag.image_size,
        "gamma": svm.gamma,
        "cost": trained.cost,
        "gamma_scale": trained.gamma_scale,
        "inner_folds": trained.inner_folds,
        "inner_accuracy": trained.inner_accuracy,
    }
    content = save(arrays)
    write_bytes_atomic(folder / "model.safetensors", content)
    write_json_atomic(folder / "model.json", {**described, "digest": _digest(content, described)})


def _digest(content: bytes, described: dict[str, Any]) -> str:
    return hashlib.blake2b(content + json.dumps(described, sort_keys=True).encode(), digest_size=16).hexdigest()


def load_bovw(folder: Path) -> tuple[TrainedBovw, tuple[str, ...]]:
    """Read what `save_bovw` wrote: the baseline and its class names.

    Raises:
        DataError: A missing, unknown or damaged file.
    """
    from safetensors.numpy import load

    try:
        saved = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if saved["schema"] != BOVW_SCHEMA or saved["network"] != "bovw":
            raise ValueError(f"schema {saved['schema']}, network {saved['network']!r}")
        content = (folder / "model.safetensors").read_bytes()
        if saved.pop("digest") != _digest(content, saved):
            raise ValueError("model.safetensors and model.json are not as they were written")
        arrays = load(content)
        config, classes = BovwConfig.model_validate(saved["bovw"]), tuple(saved["classes"])
        dictionaries = tuple(
            Dictionary(*(arrays[f"dictionary.{i}.{name}"] for name in ("mean", "components", "words")))
            for i in range(1 + config.dual)
        )
        information, bins, kept = (arrays[name] for name in ("information", "bins", "kept"))
        bag = BagOfWords(config, saved["image_size"], dictionaries, information, bins, kept)
        support, coefficients, intercepts = (
            arrays[f"svm.{name}"] for name in ("support", "coefficients", "intercepts")
        )
        svm = RbfSvm(support, coefficients, intercepts, saved["gamma"], len(classes))
        chosen = (saved[name] for name in ("cost", "gamma_scale", "inner_folds", "inner_accuracy"))
        return TrainedBovw(bag, svm, *chosen), classes
    except Exception as error:
        raise unreadable_model(folder, error) from error


def _check_training_set(images: Tensor, labels: Tensor, patient_ids: Sequence[str], num_classes: int) -> None:
    """Refuse what cannot be trained on; see `train_bovw`."""
    if isinstance(patient_ids, str) or len(patient_ids) != len(images):
        raise ValueError(f"patient_ids must be {len(images)} strings, one per image, got {len(patient_ids)}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    check_training_set(images, labels, num_classes, images.shape[-1], "lesions")
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise DataError("labels", f"no training lesion has class {missing[0]}", "Leave that class out")
