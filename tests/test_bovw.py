"""The rival BoVW-MI: each step against a slow or independent one, nothing learnt from test lesions, same bits again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.feature_selection import mutual_info_classif
from sklearn.svm import SVC
from threadpoolctl import threadpool_info, threadpool_limits
from torch.nn import functional

from lesionaug.augment.plan import AugmentationPlan
from lesionaug.errors import ConfigError, DataError
from lesionaug.experiment import paper
from lesionaug.models.bovw import (
    BovwConfig,
    Dictionary,
    RbfSvm,
    count_words,
    dense_patches,
    mutual_information,
    quantise,
    regions,
    select_words,
)
from lesionaug.training import bovw
from lesionaug.training.bovw import (
    TrainedBovw,
    export_svm,
    inner_splits,
    load_bovw,
    predict_bovw,
    save_bovw,
    train_bovw,
)

SMALL = BovwConfig(
    patch=5, components=4, words=24, inner_folds=3, costs=(1.0, 16.0), gammas=(0.25, 1.0), max_patches=1500
)
CLASSES = ("cyst", "metastasis", "hemangioma")


@pytest.fixture(autouse=True)
def _one_thread():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def textures(count: int, seed: int = 0, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of noise that differ by grain alone: same mean, same spread, another width of the blur."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.rand(count, 1, size, size, generator=generator)
    images = torch.stack([functional.avg_pool2d(noise, k, 1, k // 2)[:, 0] for k in (1, 3, 5)])  # [3, N, S, S]
    images = images[labels, torch.arange(count)][:, None]
    spread, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    return (0.5 + 0.1 * (images - mean) / spread).clamp(0, 1), labels


def patients(count: int, each: int = 2) -> list[str]:
    """Names of patients with `each` lesions."""
    return [f"patient {i // each}" for i in range(count)]


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: BovwConfig = SMALL,
    seed: int = 1,
    names: list[str] | None = None,
) -> TrainedBovw:
    return train_bovw(images, labels, names or patients(len(images)), config, num_classes=3, seed=seed)


def saved(trained: TrainedBovw, folder: Path) -> bytes:
    """Every byte of the model."""
    folder.mkdir(exist_ok=True)
    save_bovw(trained, folder, CLASSES)
    return (folder / "model.safetensors").read_bytes() + (folder / "model.json").read_bytes()


# --- The configuration ------------------------------------------------------------------------------------------------
def test_the_defaults_are_the_papers() -> None:
    config = BovwConfig()
    assert config.patch == paper.BOVW_PATCH
    assert config.components == paper.BOVW_PCA_COMPONENTS
    assert config.words == paper.BOVW_WORDS
    assert config.mi_threshold == paper.BOVW_MI_THRESHOLD
    assert config.roi_side == paper.ROI_SIDE_PER_DIAMETER == AugmentationPlan.base_side
    assert config.mi_rule == "share"
    assert not config.dual
    assert [len(mask) for mask in regions(config, paper.ROI_SIZE)] == [729]
    assert BovwConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch": 3, "components": 10},
        {"words": 1},
        {"max_patches": 700},
        {"mi_threshold": 0.0},
        {"mi_threshold": 1.5},
        {"mi_rule": "best"},
        {"costs": ()},
        {"gammas": (1.0, -1.0)},
        {"inner_folds": 1},
        {"colour": 3},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BovwConfig.model_validate(wrong)


# --- Patches, words, histograms ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, patch, stride", [(12, 5, 2), (11, 11, 2), (16, 4, 3), (9, 1, 1), (13, 5, 1)])
def test_patches_are_those_of_a_slow_loop(size: int, patch: int, stride: int) -> None:
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    slow = [
        [
            image[0, y : y + patch, x : x + patch].flatten()
            for y in range(0, size - patch + 1, stride)
            for x in range(0, size - patch + 1, stride)
        ]
        for image in images
    ]
    assert torch.equal(dense_patches(images, patch, stride), torch.stack([torch.stack(rows) for rows in slow]))
    assert dense_patches(images[:0], patch, stride).shape == (0, len(slow[0]), patch**2)


def test_a_patch_is_the_word_that_is_nearest_by_euclid() -> None:
    """By Euclid: the largest dot product, a fault of another implementation, names another word."""
    rng = np.random.default_rng(0)
    patches, words = rng.normal(size=(200, 9)), rng.normal(size=(7, 3)) * np.arange(1, 8)[:, None]
    axes = np.linalg.qr(rng.normal(size=(9, 3)))[0].T
    dictionary = Dictionary(patches.mean(0), axes, words)
    slow = np.zeros(7, dtype=np.int64)
    for patch in patches:
        slow[np.argmin([np.linalg.norm(axes @ (patch - patches.mean(0)) - word) for word in words])] += 1
    assert (dictionary.count(patches) == slow).all()
    by_dot = np.bincount(((patches - patches.mean(0)) @ axes.T @ words.T).argmax(1), minlength=7)
    assert (by_dot != slow).any()


@pytest.mark.parametrize("size, patch, stride", [(64, 11, 2), (64, 11, 1), (24, 9, 1)])
def test_interior_and_boundary_are_a_disc_and_a_ring(size: int, patch: int, stride: int) -> None:
    diameter = size / 1.4  # the ROI is 1.4 lesions wide
    band = max(0.15 * diameter, patch / 2)
    interior, boundary = regions(BovwConfig(dual=True, patch=patch, stride=stride), size)
    starts = range(0, size - patch + 1, stride)
    for place, (y, x) in enumerate((y, x) for y in starts for x in starts):
        distance = math.hypot(y + patch / 2 - size / 2, x + patch / 2 - size / 2)
        assert bool(interior[place]) == (distance < diameter / 2 - band)
        assert bool(boundary[place]) == (abs(distance - diameter / 2) <= band)
    assert len(interior) == len(starts) ** 2
    assert 0 < int(interior.sum()) < int(boundary.sum())


def test_a_dictionary_is_of_the_patches_of_its_region() -> None:
    images, _ = textures(6)
    mask = torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.4
    config = SMALL.model_copy(update={"words": 100, "max_patches": 150})
    patches = dense_patches(images, 5, 2)[:, mask].reshape(-1, 25).double().numpy()
    whole = bovw._fit_dictionary(images, mask, SMALL, (0, 0))
    np.testing.assert_allclose(whole.mean, patches.mean(0), atol=1e-12)
    axes = np.linalg.svd(patches - patches.mean(0), full_matrices=False)[2][:4]
    np.testing.assert_allclose(np.abs(whole.components @ axes.T), np.eye(4), atol=1e-6)
    # With 100 words for 150 patches many words are a patch, so the subsample shows.
    part = bovw._fit_dictionary(images, mask, config, (0, 0))
    projected = (patches - part.mean) @ part.components.T
    nearest = np.linalg.norm(part.words[:, None] - projected, axis=2).min(1)
    assert (nearest < 1e-9).sum() > 30


def test_a_histogram_sums_to_one_and_knows_only_its_image() -> None:
    images, labels = textures(18)
    for dual in (False, True):
        trained = train(images, labels, SMALL.model_copy(update={"dual": dual, "mi_threshold": 1.0}))
        whole = trained.bag.histograms(images)
        assert whole.shape == (18, 24 * (1 + dual))
        np.testing.assert_allclose(whole.reshape(18, -1, 24).sum(2), 1, rtol=1e-12)
        for i in (0, 7, 17):
            assert (trained.bag.histograms(images[i : i + 1]) == whole[i]).all()
        counts = count_words(images, trained.bag.dictionaries, trained.bag.config)
        assert (trained.bag.bins == [counts.min(0), counts.max(0)]).all()


# --- Mutual information -----------------------------------------------------------------------------------------------
def test_levels_are_of_equal_width_between_lowest_and_highest() -> None:
    counts = np.array([[3, 0, 7], [4, 1, 7], [5, 2, 7], [6, 99, 7], [7, 100, 7], [8, 60, 7]])
    assert quantise(counts, 5).T.tolist() == [[0, 1, 2, 3, 4, 4], [0, 0, 0, 4, 4, 3], [0] * 6]


def test_mutual_information_of_what_is_known_exactly() -> None:
    labels = np.repeat([0, 1, 2], 4)
    independent = np.tile([0, 10, 20, 30], 3)
    same = 5 * labels
    half = np.where(labels == 0, 9, 0)  # tells class 0 from the others
    constant = np.full(12, 4)
    information = mutual_information(np.stack([independent, same, half, constant], 1), labels, 5)
    third = math.log(3) / 3 + 2 / 3 * math.log(3 / 2)
    np.testing.assert_allclose(information, [0, math.log(3), third, 0], atol=1e-14)


def test_mutual_information_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    counts = rng.poisson(3 + 4 * labels[:, None] * rng.random(40))
    theirs = mutual_info_classif(quantise(counts, 5), labels, discrete_features=True)
    np.testing.assert_allclose(mutual_information(counts, labels, 5), theirs, atol=1e-12)
    assert theirs.max() > 0.3


def test_a_threshold_keeps_a_share_of_the_words_or_those_near_the_best() -> None:
    information = np.random.default_rng(0).permutation(np.linspace(0, 1, 750))
    kept = select_words(information, BovwConfig())
    assert len(kept) == 262  # 35 % of 750 is 262.5
    assert set(information[kept]) == set(np.sort(information)[-262:])
    assert (np.diff(kept) > 0).all()
    best = select_words(information / 2, BovwConfig(mi_rule="of-largest"))
    assert (best == np.flatnonzero(information >= 0.35)).all()
    assert select_words(np.ones(20), BovwConfig()).tolist() == list(range(7))
    assert len(select_words(np.zeros(100), BovwConfig(mi_threshold=0.29))) == 29  # 28.999999999999996 in floats
    assert len(select_words(np.zeros(2), BovwConfig(mi_threshold=0.01))) == 1


# --- The support vector machine ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_decision_function_is_scikit_learns(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = np.arange(60) % classes
    features = rng.normal(size=(60, 5)) + 0.7 * labels[:, None]
    svc = SVC(C=2.0, gamma=0.3, break_ties=True).fit(features, labels)
    ours = export_svm(svc)
    points = 3 * rng.normal(size=(3000, 5)) + 1
    svc.decision_function_shape = "ovo"
    theirs = svc.decision_function(points).reshape(3000, -1)
    np.testing.assert_allclose(ours.decision(points), -theirs if classes == 2 else theirs, atol=1e-6)
    svc.decision_function_shape = "ovr"
    scores = ours.scores(points)
    if classes > 2:
        np.testing.assert_allclose(scores, svc.decision_function(points), atol=1e-6)
    assert (scores.argmax(1) == svc.predict(points)).all()
    votes = np.sort(np.round(scores), axis=1)
    assert classes == 2 or (votes[:, -1] == votes[:, -2]).any(), "no tie between votes: the test looked at nothing"


def test_probabilities_name_the_class_that_the_svm_names(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = textures(18)
    trained = train(images, labels)
    svc = []
    fit = bovw._fit_svm
    monkeypatch.setattr(bovw, "_fit_svm", lambda *args: svc.append(fit(*args)) or svc[-1])
    assert predict_bovw(train(images, labels), images).equal(predict_bovw(trained, images))
    unseen, _ = textures(60, seed=9)
    unseen[::2] = 0.5 + 0.5 * (unseen[::2] - 0.5) + 0.1  # unlike anything in training
    probabilities = predict_bovw(trained, unseen)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(60))
    assert svc[-1].break_ties
    assert (probabilities.argmax(1).numpy() == svc[-1].predict(trained.bag.histograms(unseen))).all()
    assert predict_bovw(trained, unseen[:0]).shape == (0, 3)
    assert predict_bovw(trained, unseen[5:6]).equal(probabilities[5:6])


def test_scores_that_float32_cannot_tell_apart_keep_their_winner() -> None:
    bag = SimpleNamespace(histograms=lambda images: None)
    scores = np.array([[1.0, 1.0 + 1e-12, 0.5], [1.0, 1.0, 0.5], [0.0, 2.0, 2.0 + 1e-13]])
    fake = SimpleNamespace(bag=bag, svm=SimpleNamespace(scores=lambda features: scores))
    probabilities = predict_bovw(fake, torch.rand(3, 1, 8, 8))  # type: ignore[arg-type]
    assert probabilities.argmax(1).tolist() == [1, 0, 2]
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


# --- Training ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("rule", ["share", "of-largest"])
def test_it_learns_textures(dual: bool, rule: str) -> None:
    config = SMALL.model_copy(update={"dual": dual, "mi_rule": rule})
    trained = train(*textures(48), config)
    images, labels = textures(60, seed=5)
    assert (predict_bovw(trained, images).argmax(1) == labels).float().mean() > 0.9
    assert trained.inner_accuracy is not None
    assert trained.inner_accuracy > 0.9
    assert len(trained.bag.information) == 24 * (1 + dual)
    if rule == "share":
        assert len(trained.bag.kept) == int(0.35 * 24 * (1 + dual))


def test_it_is_at_chance_on_shuffled_labels() -> None:
    """Where the classes do not differ, mean of four; in the inner folds too.

    With words chosen by the labels of all lesions the inner folds would seem to have learnt: about 0.5, not 0.36.
    """
    config = SMALL.model_copy(update={"words": 100, "mi_threshold": 0.1})
    inner, unseen, seen = [], [], []
    for seed in range(4):
        labels = torch.randperm(60, generator=torch.Generator().manual_seed(seed)) % 3
        images, others = textures(180, seed)[0][::3], textures(540, 50 + seed)[0][::3]  # of the first class all
        trained = train(images, labels, config, names=patients(60, each=1))
        inner.append(trained.inner_accuracy)
        unseen.append((predict_bovw(trained, others).argmax(1) == torch.arange(180) % 3).double().mean())
        seen.append((predict_bovw(trained, images).argmax(1) == labels).double().mean())
    assert 0.25 < np.mean(unseen) < 0.42
    assert 0.25 < np.mean(inner) < 0.45
    assert np.mean(seen) > 0.6, "it could not have learnt anything"


def test_the_papers_sizes() -> None:
    images, labels = textures(24, size=64)
    config = BovwConfig(costs=(8.0,), gammas=(1.0,))
    trained = train(images, labels, config)
    bag = trained.bag
    assert bag.dictionaries[0].words.shape == (750, 10)
    assert bag.dictionaries[0].components.shape == (10, 121)
    assert len(bag.information) == 750
    assert bag.histograms(images[:2]).shape == (2, 262)
    np.testing.assert_allclose(bag.dictionaries[0].components @ bag.dictionaries[0].components.T, np.eye(10), atol=1e-9)
    unseen, truth = textures(12, seed=5, size=64)
    assert (predict_bovw(trained, unseen).argmax(1) == truth).float().mean() > 0.9


def test_nothing_of_the_test_lesions_reaches_the_model(tmp_path: Path) -> None:
    images, labels = textures(36)
    changed = images.clone()
    changed[24:] = textures(12, seed=8)[0] * 0.5
    first, second = train(images[:24], labels[:24]), train(changed[:24], labels[:24])
    predict_bovw(first, images[24:])
    predict_bovw(second, changed[24:])
    assert saved(first, tmp_path) == saved(second, tmp_path)


def test_neither_the_order_of_the_lesions_nor_the_names_of_the_patients_matter(tmp_path: Path) -> None:
    images, labels = textures(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    names = [f"{(97 * (int(i) // 2)) % 101}" for i in order]
    assert saved(train(images, labels), tmp_path) == saved(train(images[order], labels[order], names=names), tmp_path)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = textures(24)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    first = train(images, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
    assert torch.get_num_threads() == threads
    np.random.seed(2)  # noqa: NPY002
    threads_seen = set()
    count = bovw.count_words

    def spy(*args):  # type: ignore[no-untyped-def]
        threads_seen.update(pool["num_threads"] for pool in threadpool_info())
        return count(*args)

    monkeypatch.setattr(bovw, "count_words", spy)
    with threadpool_limits(2):
        second = train(images, labels)
    assert threads_seen == {1}
    assert saved(first, tmp_path) == saved(second, tmp_path)
    every = SMALL.model_copy(update={"max_patches": 2400})
    for config in (SMALL, every):  # another subsample, and another start of k-means
        one, other = (train(images, labels, config, seed).bag.dictionaries[0].words for seed in (1, 2))
        assert not np.array_equal(one, other)
    train(images, labels, seed=2**63 - 1)


# --- Inner cross validation -------------------------------------------------------------------------------------------
def test_the_inner_folds_share_no_patient_and_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = textures(36)
    names = patients(36, each=3)  # every patient has a lesion of each class
    calls, looked_at = [], []
    split, inform = bovw.inner_splits, bovw.mutual_information

    def spy(labels, groups, folds, seed):  # type: ignore[no-untyped-def]
        calls.append((labels, groups, split(labels, groups, folds, seed)))
        return calls[-1][2]

    monkeypatch.setattr(bovw, "inner_splits", spy)
    monkeypatch.setattr(
        bovw, "mutual_information", lambda c, ys, levels: looked_at.append(ys.tolist()) or inform(c, ys, levels)
    )
    trained = train(images, labels, names=names)
    ((ordered, groups, splits),) = calls
    assert np.bincount(groups).tolist() == [3] * 12
    assert all(sorted(ordered[groups == g]) == [0, 1, 2] for g in range(12))
    assert trained.inner_folds == len(splits) == 3
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(36))
    for train_rows, test_rows in splits:
        assert not set(groups[train_rows]) & set(groups[test_rows])
        assert set(ordered[test_rows]) == {0, 1, 2}
    assert looked_at == [ordered[rows].tolist() for rows, _ in splits] + [ordered.tolist()]


def test_too_few_patients_mean_fewer_folds_and_then_fixed_values() -> None:
    labels = np.arange(12) % 3
    assert len(inner_splits(labels, np.arange(12) // 3, 5, 0)) == 4
    assert len(inner_splits(labels, np.arange(12) // 6, 5, 0)) == 2
    assert inner_splits(labels, np.arange(12) % 3, 5, 0) == []  # each class is one patient
    images, targets = textures(12)
    trained = train(images, targets, names=patients(12, each=12))
    assert (trained.inner_folds, trained.inner_accuracy) == (0, None)
    assert (trained.cost, trained.gamma_scale) == (1.0, 1.0)


def test_the_grid_point_with_most_correct_lesions_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """And among equals that of the smallest C, then gamma, in whatever order the grid is written."""
    images, labels = textures(36)
    grid = SMALL.model_copy(update={"costs": (64.0, 1e-6, 16.0), "gammas": (1.0, 1e-6)})
    trained = train(images, labels, grid)
    assert (trained.cost, trained.gamma_scale) == (16.0, 1.0)
    counts, target = np.random.default_rng(0).poisson(5, (36, 24)), labels.numpy()
    splits = inner_splits(target, np.arange(36), 3, 0)
    answers = SimpleNamespace(predict=lambda features: np.zeros(len(features)))
    monkeypatch.setattr(bovw, "_fit_svm", lambda features, labels, cost, gamma: answers)
    assert bovw._choose(counts, target, splits, grid) == (1e-6, 1e-6, 12 / 36)


# --- Files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dual", [False, True])
def test_a_baseline_comes_back_from_its_files(tmp_path: Path, dual: bool) -> None:
    images, labels = textures(24)
    trained = train(images, labels, SMALL.model_copy(update={"dual": dual}))
    before = saved(trained, tmp_path)
    loaded, classes = load_bovw(tmp_path)
    assert classes == CLASSES
    assert predict_bovw(loaded, images).equal(predict_bovw(trained, images))
    assert saved(loaded, tmp_path) == before
    with pytest.raises(ValueError, match="classes must be 3 names"):
        save_bovw(trained, tmp_path, ("a", "b"))


def test_two_classes_come_back_too(tmp_path: Path) -> None:
    images, labels = textures(36)
    two = labels < 2
    trained = train_bovw(images[two], labels[two], patients(24), SMALL, num_classes=2, seed=0)
    save_bovw(trained, tmp_path, ("a", "b"))
    unseen, truth = textures(36, seed=5)
    probabilities = predict_bovw(load_bovw(tmp_path)[0], unseen[truth < 2])
    assert (probabilities.argmax(1) == truth[truth < 2]).float().mean() > 0.9


def test_a_damaged_model_is_one_clear_error(tmp_path: Path) -> None:
    saved(train(*textures(24)), tmp_path)
    arrays, described = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, text = arrays.read_bytes(), described.read_text()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[:-100], bytes(flipped), b""):
        arrays.write_bytes(content)
        with pytest.raises(DataError, match="not a readable model"):
            load_bovw(tmp_path)
    arrays.write_bytes(whole)
    for wrong in ('{"schema": 9}', text.replace('"bovw"', '"cnn"'), text.replace('"stride": 2', '"stride": 3'), ""):
        assert wrong != text
        described.write_text(wrong)
        with pytest.raises(DataError, match="not a readable model"):
            load_bovw(tmp_path)
    described.write_text(text)
    load_bovw(tmp_path)
    arrays.unlink()
    with pytest.raises(DataError, match="not a readable model"):
        load_bovw(tmp_path)


# --- What is refused --------------------------------------------------------------------------------------------------
def test_more_words_than_patches_are_refused_with_the_way_out() -> None:
    images, labels = textures(6)  # 100 patches each
    with pytest.raises(ConfigError, match=r"600 patches \(region 1 of 1\), too few for 601 words.*bovw\.stride"):
        train(images, labels, SMALL.model_copy(update={"words": 601}))
    with pytest.raises(ConfigError, match=r"region 1 of 2"):
        train(images, labels, SMALL.model_copy(update={"words": 300, "dual": True}))
    with pytest.raises(ConfigError, match="25 pixels do not fit into images of 24"):
        train(images, labels, SMALL.model_copy(update={"patch": 25}))
    with pytest.raises(DataError, match="only 1 of 600 training patches differ, too few for 24 words"):
        train(torch.full_like(images, 0.5), labels)


def test_images_that_are_not_finite_or_not_in_the_unit_range_are_refused() -> None:
    images, labels = textures(12)
    trained = train(images, labels)
    for value in (float("nan"), float("inf"), -0.01, 1.01):
        wrong = images.clone()
        wrong[7, 0, 3, 3] = value
        with pytest.raises(DataError, match=r"pixels must be finite and in \(0, 1\)"):
            train(wrong, labels)
        with pytest.raises(DataError, match=r"pixels must be finite and in \(0, 1\)"):
            predict_bovw(trained, wrong)
    for other in (torch.rand(2, 1, 20, 20), torch.rand(2, 24, 24), torch.rand(2, 1, 24, 24, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"images must be float32 \[N, 1, 24, 24\]"):
            predict_bovw(trained, other)


def test_labels_that_cannot_be_are_refused() -> None:
    images, labels = textures(12)
    with pytest.raises(DataError, match="2 of 12 lesions have no class"):
        train(images, torch.where(torch.arange(12) < 2, -1, labels))
    with pytest.raises(DataError, match="label 3 is not below num_classes = 3"):
        train(images, labels + 1)
    with pytest.raises(DataError, match="no training lesion has class 1"):
        train(images, torch.where(labels == 1, 0, labels))


@pytest.mark.parametrize(
    "change",
    [
        {"images": torch.zeros(6, 24, 24)},
        {"images": torch.zeros(6, 1, 24, 20)},
        {"images": torch.zeros(6, 1, 24, 24, dtype=torch.float64)},
        {"images": torch.zeros(0, 1, 24, 24)},
        {"labels": torch.arange(6) % 3 * 1.0},
        {"labels": torch.arange(5) % 3},
        {"patient_ids": ["a"] * 5},
        {"patient_ids": "abcdef"},
        {"num_classes": 1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_wrong_shapes_and_types_are_refused(change: dict[str, object]) -> None:
    images, labels = textures(6)
    given = {"images": images, "labels": labels, "patient_ids": patients(6), "num_classes": 3, "seed": 0} | change
    with pytest.raises(ValueError, match="must be"):
        train_bovw(config=SMALL, **given)  # type: ignore[arg-type]


def test_the_svm_can_be_replaced_without_touching_the_words() -> None:
    """The result is plain data."""
    images, labels = textures(12)
    trained = train(images, labels)
    svm: RbfSvm = replace(trained.svm, intercepts=np.array([1e3, 1e3, 1e3]))
    assert predict_bovw(replace(trained, svm=svm), images).argmax(1).tolist() == [0] * 12
