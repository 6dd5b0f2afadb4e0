"""Measures of a reader study: Table III of the paper, published examples, other libraries, simulated readers."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score
from statsmodels.stats.inter_rater import cohens_kappa

from lesionaug.evaluation.statistics import mcnemar
from lesionaug.experiment import paper
from lesionaug.study import measures
from lesionaug.study.measures import Cases, ReaderRatings, rate

NORMAL = NormalDist()


def alone(real: np.ndarray) -> Cases:
    """Every image by itself."""
    return Cases.of(real, [None] * len(real))


# Table III of the paper


def test_what_follows_from_table_iii() -> None:
    """The interval and tests that the paper does not print, worked out elsewhere from its counts."""
    total, always_real = paper.EXPERT_NUM_IMAGES, paper.EXPERT_NUM_REAL / paper.EXPERT_NUM_IMAGES
    assert round(100 * always_real, 1) == 60.3
    wanted = {189: (57.0, 67.9, 0.445, 1e-5), 177: (53.0, 64.0, 0.557, 0.003)}
    assert [expert.real_or_synthetic_correct for expert in paper.EXPERTS] == list(wanted)
    for correct, (low, high, p_baseline, p_half) in wanted.items():
        found = rate(correct, total)
        assert found.low is not None
        assert found.high is not None
        assert (round(100 * found.low, 1), round(100 * found.high, 1)) == (low, high)
        assert measures.binomial_p(correct, total, always_real) == pytest.approx(p_baseline, abs=0.0006)
        assert measures.binomial_p(correct, total, 0.5) == pytest.approx(p_half, rel=0.5)
        assert found.low < always_real < found.high, "neither expert differs from always saying real"


def test_the_experts_agreement_and_who_is_right_more_often() -> None:
    """222 of 302 alike, both right on 185: 50 and 24 that one alone has right, 37 of 43 both wrong alike."""
    truth = np.arange(302) % 3
    first, second = truth.copy(), truth.copy()
    first[235:] = (first[235:] + 1) % 3  # right on the first 235
    second[185:235] = (second[185:235] + 1) % 3  # of which the other has 185
    second[259:] = (second[259:] + 1) % 3  # and 24 more; 43 are wrong for both
    second[296:] = (second[296:] + 1) % 3  # six of these in another way
    right = [first == truth, second == truth]
    found = measures.agreement(first, second, alone(np.arange(302) < 182))
    assert (right[0].sum(), right[1].sum(), (right[0] & right[1]).sum()) == (235, 209, paper.EXPERTS_BOTH_CORRECT)
    assert (found.agreed.count, found.agreed.total) == (paper.EXPERTS_AGREED, 302)
    assert round(mcnemar(*right).p_value, 4) == 0.0034
    assert found.kappa is not None
    assert found.kappa.value == pytest.approx(cohens_kappa(np.histogram2d(first, second, 3)[0]).kappa)


def test_two_alike_accuracies_are_no_proof_of_being_equal() -> None:
    """78 and 77.5 % on 182 and 120 images: they may differ by nine points either way."""
    difference = measures.rate_difference(rate(142, 182), rate(93, 120))
    assert difference is not None
    assert difference.low < -0.08
    assert difference.high > 0.08


# other sources


def test_newcombes_own_example() -> None:
    """Newcombe 1998, Table II, (a) 56/70 - 48/80 and (g) 10/10 - 0/20 by his method 10."""
    for counts, wanted in (((56, 70, 48, 80), (0.0524, 0.3339)), ((10, 10, 0, 20), (0.6791, 1.0))):
        found = measures.rate_difference(rate(*counts[:2]), rate(*counts[2:]))
        assert found is not None
        assert (round(found.low, 4), round(found.high, 4)) == wanted


def test_signal_detection_by_hand() -> None:
    """20 hits of 25 and 10 false alarms of 25, with half an image added."""
    found = measures.detection(rate(20, 25), rate(15, 25))
    assert found is not None
    hits, alarms = NORMAL.inv_cdf(20.5 / 26), NORMAL.inv_cdf(10.5 / 26)
    assert found.d_prime.value == pytest.approx(hits - alarms)
    assert found.criterion.value == pytest.approx(-(hits + alarms) / 2)
    assert found.criterion.value < 0, "this reader leans to real"
    swapped = measures.detection(rate(15, 25), rate(20, 25))
    assert swapped is not None
    assert swapped.criterion.value == pytest.approx(-found.criterion.value)
    assert swapped.d_prime.value == pytest.approx(found.d_prime.value)


@pytest.mark.parametrize("says_real", [True, False])
def test_a_reader_who_always_says_the_same(says_real: bool) -> None:
    sensitivity, specificity = (rate(182, 182), rate(0, 120)) if says_real else (rate(0, 182), rate(120, 120))
    found = measures.detection(sensitivity, specificity)
    assert found is not None
    assert found.d_prime.low < 0 < found.d_prime.high
    assert (found.criterion.high < 0) if says_real else (found.criterion.low > 0)
    balanced = measures.balanced_accuracy(sensitivity, specificity)
    assert balanced is not None
    assert balanced.value == 0.5
    assert balanced.low < 0.5 < balanced.high
    assert measures.auc(alone(np.arange(302) < 182), np.full(302, 6)) is None


def test_a_reader_who_never_errs_has_finite_numbers() -> None:
    found = measures.detection(rate(50, 50), rate(50, 50))
    assert found is not None
    assert 4 < found.d_prime.value < 6
    assert np.isfinite([found.d_prime.low, found.d_prime.high]).all()
    area = measures.auc(alone(np.arange(100) < 50), np.where(np.arange(100) < 50, 6, 1))
    assert area is not None
    assert area.value == 1
    assert np.isnan([area.low, area.high]).all(), "no draw differs, which is no certainty"


def test_one_origin_alone_or_nothing_at_all() -> None:
    nothing = rate(0, 0)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)
    assert measures.rate_difference(rate(1, 2), nothing) is None
    assert measures.balanced_accuracy(rate(3, 5), nothing) is None
    assert measures.detection(nothing, rate(3, 5)) is None
    assert measures.auc(alone(np.ones(4, bool)), [1, 2, 3, 4]) is None
    assert measures.binomial_p(0, 0, 0.5) is None
    assert measures.binomial_p(3, 3, 1.0) is None
    assert measures.pooled_detection(alone(np.ones(4, bool)), []) == {}
    assert measures.times([]) == measures.Times(0, None, None, None)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(4, 40))
def test_other_libraries_agree(seed: int, levels: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    real = rng.permutation(np.arange(num) < max(1, num // 3))
    ratings, other = rng.integers(0, levels, num), rng.integers(0, levels, num)
    counts = [[(ratings[mine] == level).sum() for level in range(levels)] for mine in (real, ~real)]
    area = measures.area_of_counts(*counts)
    assert area == pytest.approx(roc_auc_score(real, ratings))
    u = stats.mannwhitneyu(ratings[real], ratings[~real]).statistic
    assert area == pytest.approx(u / real.sum() / (~real).sum())
    called = ratings >= levels // 2
    balanced = measures.balanced_accuracy(
        rate(int((called & real).sum()), int(real.sum())), rate(int((~called & ~real).sum()), int((~real).sum()))
    )
    assert balanced is not None
    assert balanced.value == pytest.approx(balanced_accuracy_score(real, called))
    table = np.zeros((levels, levels))
    np.add.at(table, (ratings, other), 1)
    if np.unique([ratings, other]).size > 1:
        assert measures.kappa_of_tables(table) == pytest.approx(cohen_kappa_score(ratings, other), nan_ok=True)


def test_the_case_bootstrap_draws_what_it_says() -> None:
    """Every draw has as many patients, and as many synthetic images, as there are; a patient's lesions go together."""
    real = np.array([True] * 6 + [False] * 4)
    cases = Cases.of(real, ["a", "a", "b", "b", "b", "c", None, None, None, None])
    weights = cases.draws(0, 500)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all()
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()
    assert (weights[:, 6:].sum(1) == 4).all()
    ratings = np.array([1, 2, 2, 3, 3, 1, 1, 2, 1, 3])
    found = measures.auc(cases, ratings, resamples=200)
    one_by_one = [
        roc_auc_score(np.repeat(real, w), np.repeat(ratings, w)) for w in cases.draws(0, 200).astype(int)
    ]  # fmt: skip
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(one_by_one, (2.5, 97.5))))


def test_lesions_of_a_patient_are_not_counted_as_several() -> None:
    """Each lesion twice, with the same rating: drawn by patient the interval is that of half as many lesions."""
    rng = np.random.default_rng(3)
    real = np.repeat(np.arange(80) < 60, 2)
    ratings = np.repeat(rng.integers(1, 7, 80) + (np.arange(80) < 60), 2)
    by_patient = measures.auc(Cases(real, np.repeat(np.arange(80), 2)), ratings)
    by_lesion = measures.auc(alone(real), ratings)
    assert by_patient is not None
    assert by_lesion is not None
    assert by_patient.high - by_patient.low == pytest.approx(2**0.5 * (by_lesion.high - by_lesion.low), rel=0.12)


def test_kappa_is_not_defined_where_both_always_say_the_same() -> None:
    cases = alone(np.arange(10) < 5)
    found = measures.agreement([1] * 10, [1] * 10, cases)
    assert (found.agreed.value, found.kappa) == (1, None)
    differing = measures.agreement([1] * 10, [1] * 5 + [0] * 5, cases)
    assert differing.kappa is not None
    assert differing.kappa.value == 0


def test_times() -> None:
    assert measures.times([4, 1, 3, 2, 5]) == measures.Times(5, 2, 3, 4)


# simulated readers

D_PRIME, CUTS = 1.0, np.array([-0.8, 0.0, 0.6, 1.1, 1.9])  # six steps; the answer turns to real at the third cut


def simulated(rng: np.random.Generator, real: np.ndarray, d_prime: float = D_PRIME) -> np.ndarray:
    """Ratings 1 .. 6 of a reader who sees a normal variable, d' higher for real images."""
    return 1 + np.searchsorted(CUTS, rng.normal(size=real.size) + d_prime * real)


def true_area(d_prime: float) -> float:
    """Area under the curve of six steps."""
    cuts = [float("-inf"), *CUTS, float("inf")]
    real, synthetic = (np.diff([NORMAL.cdf(c - shift) for c in cuts]) for shift in (d_prime, 0))
    return float(sum(real[i] * (synthetic[:i].sum() + synthetic[i] / 2) for i in range(6)))


@pytest.mark.full
def test_a_simulated_reader_is_recovered_within_its_interval() -> None:
    """Of 200 studies of 100 + 100 images some 190 intervals hold the truth."""
    rng, real = np.random.default_rng(8), np.arange(200) < 100
    wanted = {
        "d_prime": D_PRIME,
        "criterion": CUTS[2] - D_PRIME / 2,
        "balanced": (1 - NORMAL.cdf(CUTS[2] - D_PRIME) + NORMAL.cdf(CUTS[2])) / 2,
        "area": true_area(D_PRIME),
    }
    held, values, cases = dict.fromkeys(wanted, 0), {name: [] for name in wanted}, alone(real)  # type: ignore[var-annotated]
    for study in range(200):
        ratings = simulated(rng, real)
        called = ratings >= 4
        rates = rate(int(called[real].sum()), 100), rate(int((~called)[~real].sum()), 100)
        detected = measures.detection(*rates)
        assert detected is not None
        found = {
            "d_prime": detected.d_prime,
            "criterion": detected.criterion,
            "balanced": measures.balanced_accuracy(*rates),
            "area": measures.auc(cases, ratings, seed=study, resamples=300),
        }
        for name, estimate in found.items():
            assert estimate is not None
            held[name] += estimate.low <= wanted[name] <= estimate.high
            values[name].append(estimate.value)
    for name in wanted:
        assert 180 <= held[name] <= 199, (name, held[name])  # 95 % +- 3 standard deviations
        assert np.mean(values[name]) == pytest.approx(wanted[name], abs=0.03)


def test_means_over_readers_are_recovered_within_their_interval() -> None:
    """Ten readers who differ, drawn anew for every study, as are the images."""
    rng, real = np.random.default_rng(9), np.arange(120) < 60
    cases, held = alone(real), 0
    population = np.mean([true_area(d) for d in rng.normal(1.0, 0.4, 4000)])
    for study in range(60):
        readers = []
        for d_prime in rng.normal(1.0, 0.4, 10):
            ratings = simulated(rng, real, d_prime)
            readers.append(ReaderRatings(np.arange(120), ratings, ratings >= 4))
        found = measures.pooled_detection(cases, readers, seed=study, resamples=300)["auc"]
        assert found is not None
        held += found.low <= population <= found.high
    assert 51 <= held <= 60, held


def test_the_mean_over_one_reader_is_that_reader() -> None:
    rng, real = np.random.default_rng(4), np.arange(90) < 50
    cases, ratings = alone(real), simulated(np.random.default_rng(5), real)
    found = measures.pooled_detection(cases, [ReaderRatings(np.arange(90), ratings, ratings >= 4)])
    assert found["auc"] == measures.auc(cases, ratings)
    called = ratings >= 4
    detected = measures.detection(
        rate(int(called[real].sum()), 50), rate(int((~called)[~real].sum()), 40)
    )  # fmt: skip
    assert detected is not None
    assert found["d_prime"] is not None
    assert found["d_prime"].value == pytest.approx(detected.d_prime.value)
    width = detected.d_prime.high - detected.d_prime.low
    assert found["d_prime"].high - found["d_prime"].low == pytest.approx(width, rel=0.15)
    right = rng.random(90) < 0.7
    classes = measures.pooled_class_accuracy(cases, [(np.arange(90), right)])
    assert classes["real"] is not None
    assert classes["difference"] is not None
    assert classes["real"].value == pytest.approx(right[real].mean())
    assert classes["difference"].value == pytest.approx(right[real].mean() - right[~real].mean())
    newcombe = measures.rate_difference(rate(int(right[real].sum()), 50), rate(int(right[~real].sum()), 40))
    assert newcombe is not None
    assert (classes["difference"].low, classes["difference"].high) == pytest.approx(
        (newcombe.low, newcombe.high), abs=0.02
    )


def test_readers_of_different_images_are_averaged_one_by_one() -> None:
    real = np.arange(40) % 2 == 0
    halves = [np.arange(0, 20), np.arange(10, 40)]
    readers = []
    for k, items in enumerate(halves):
        ratings = simulated(np.random.default_rng(k), real[items])
        readers.append(ReaderRatings(items, ratings, ratings >= 4))
    found = measures.pooled_detection(alone(real), readers)["auc"]
    assert found is not None
    singles = [roc_auc_score(real[reader.items], reader.ratings) for reader in readers]
    assert found.value == pytest.approx(np.mean(singles))
    constant = ReaderRatings(halves[0], np.full(20, 5), np.full(20, True))
    assert measures.pooled_detection(alone(real), [*readers, constant])["auc"] is None


@pytest.mark.parametrize("answers", ["all real", "real ones right"])
def test_a_reader_of_one_answer_leaves_the_mean_without_bounds(answers: str) -> None:
    """Every draw repeats that answer: an interval of them would be that of the other reader alone, and too narrow."""
    real = np.arange(60) % 2 == 0
    items = np.arange(60)
    ratings = simulated(np.random.default_rng(1), real)
    sure = np.full(60, True) if answers == "all real" else real | (ratings >= 4)
    readers = [ReaderRatings(items, ratings, ratings >= 4), ReaderRatings(items, ratings, sure)]
    found = measures.pooled_detection(alone(real), readers)
    for name in ("d_prime", "criterion"):
        estimate = found[name]
        assert estimate is not None
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()
    assert found["specificity"] is not None
    assert np.isfinite(found["specificity"].low)
