"""Tests and intervals: the paper's counts, published examples, enumeration, simulated studies, other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from lesionaug.evaluation.statistics import (
    bootstrap_difference,
    corrected_interval,
    holm,
    mcnemar,
    needed_lesions,
    power_of_mcnemar,
    seed_spread,
)
from lesionaug.experiment import paper
from lesionaug.experiment.results import Predictions

GAIN = (paper.CNN_AUG_GAN.correct - paper.CNN_AUG.correct) / paper.NUM_LESIONS  # 13 of 182
# Of the study of the paper, section 3.1: discordance and the lesions that show this gain with 80 % power.
NEEDED = {0.08: 121, 0.12: 182, 0.16: 244, 0.20: 305, 0.25: 382}


def arms(lost: int, gained: int, both: int = 0, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two arms over lesions that only the first, only the second, both and neither have right."""
    first, second = [1, 0, 1, 0], [0, 1, 1, 0]
    sizes = [lost, gained, both, neither]
    return np.repeat(first, sizes), np.repeat(second, sizes)


def p_of(lost: int, gained: int) -> float:
    return mcnemar(*arms(lost, gained, both=1)).p_value


cached_p = cache(p_of)


# McNemar


def papers_arms(first: int, second: int, lost: int, total: int = paper.NUM_LESIONS) -> tuple[np.ndarray, np.ndarray]:
    gained = second - first + lost
    return arms(lost, gained, both=first - lost, neither=total - first - gained)


def test_the_two_experts_differ() -> None:
    """235 and 209 of 302, both right on 185: the one comparison of the paper whose pairs are known."""
    found = mcnemar(*papers_arms(235, 209, lost=50, total=302))
    assert (found.only_first, found.only_second, found.num_lesions) == (50, 24, 302)
    assert round(found.p_value, 4) == 0.0034


def test_whether_the_papers_gain_is_significant_hangs_on_the_lesions_that_were_lost() -> None:
    p = {lost: mcnemar(*papers_arms(143, 156, lost)).p_value for lost in range(27)}
    assert [lost for lost in p if p[lost] < 0.05] == list(range(13))
    assert (round(p[0], 4), round(p[26], 3)) == (0.0002, 0.136)
    with_acgan = {lost: mcnemar(*papers_arms(148, 156, lost)).p_value for lost in range(20)}
    assert [lost for lost in with_acgan if with_acgan[lost] < 0.05] == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_mcnemar_is_the_binomial_test_of_the_discordant(lost: int, gained: int, both: int, neither: int, rng) -> None:  # type: ignore[no-untyped-def]
    assume(lost + gained + both + neither > 0)
    first, second = arms(lost, gained, both, neither)
    order = np.array(rng.sample(range(len(first)), len(first)))
    found = mcnemar(first[order], second[order].astype(bool))
    assert (found.only_first, found.only_second, found.num_lesions) == (lost, gained, len(first))
    assert 0 < found.p_value <= 1
    if lost + gained:
        assert found.p_value == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
        tail = sum(comb(lost + gained, k) for k in range(min(lost, gained) + 1))
        assert found.p_value == pytest.approx(min(1, 2 * tail / 2 ** (lost + gained)), rel=1e-9)
    else:
        assert found.p_value == 1
    swapped = mcnemar(second, first)
    assert (swapped.only_first, swapped.only_second, swapped.p_value) == (gained, lost, found.p_value)


# Bootstrap of patients


def clustered(
    num_patients: int, rng: np.random.Generator, per_patient: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A study whose true difference is 0.2: lesions of a patient are gained together; sizes differ."""
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 2 * per_patient, num_patients))
    kind = rng.choice(3, num_patients, p=[0.3, 0.1, 0.6])[patient]  # gained, lost, alike
    first, second = (kind == 1) | (kind == 2), (kind == 0) | (kind == 2)
    return first, second, patient


def test_the_interval_is_that_of_every_possible_resample() -> None:
    gained, lesions = [2, 0, -1, 1, 0], [3, 1, 2, 1, 4]
    first, second, patient = [], [], []
    for name, (up, size) in enumerate(zip(gained, lesions, strict=True)):
        first += [1] * max(-up, 0) + [0] * (size - max(-up, 0))
        second += [1] * max(up, 0) + [0] * (size - max(up, 0))
        patient += [f"P{name}"] * size
    every = [sum(gained[i] for i in draw) / sum(lesions[i] for i in draw) for draw in product(range(5), repeat=5)]
    found = bootstrap_difference(first, second, patient, seed=0, resamples=40_000, confidence=0.8)
    assert found.value == pytest.approx(2 / 11)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every, [0.1, 0.9])), abs=1e-9)
    for quantile, bound in ((0.1, found.low), (0.9, found.high)):  # no tie is near: the comparison is a fair one
        assert (np.quantile(every, [quantile - 0.01, quantile + 0.01]) == pytest.approx(bound, abs=0.03)) is True


def test_lesions_of_one_patient_each_give_the_textbook_interval() -> None:
    first, second = arms(lost=30, gained=60, both=200, neither=110)
    found = bootstrap_difference(first, second, np.arange(400), seed=1)
    error = sqrt((90 / 400 - (30 / 400) ** 2) / 400)  # of a paired difference
    assert found.value == pytest.approx(30 / 400)
    assert (found.low, found.high) == pytest.approx((0.075 - 1.96 * error, 0.075 + 1.96 * error), abs=0.1 * error)


def test_lesions_that_agree_within_a_patient_count_once() -> None:
    rng = np.random.default_rng(5)
    once = rng.random((2, 50)) < 0.6
    first, second = np.repeat(once, 6, axis=1)
    patients, lesions = np.repeat(np.arange(50), 6), np.arange(300)
    by_patient = bootstrap_difference(first, second, patients, seed=0)
    by_lesion = bootstrap_difference(first, second, lesions, seed=0)
    assert by_patient.value == by_lesion.value
    wider = (by_patient.high - by_patient.low) / (by_lesion.high - by_lesion.low)
    assert wider == pytest.approx(sqrt(6), rel=0.08)
    one_each = bootstrap_difference(*once, np.arange(50), seed=0)
    assert (by_patient.low, by_patient.high) == pytest.approx((one_each.low, one_each.high), abs=1e-12)


def test_the_interval_covers_the_true_difference_where_that_of_lesions_does_not() -> None:
    rng = np.random.default_rng(11)
    hits = {"patients": 0, "lesions": 0}
    for study in range(200):
        first, second, patient = clustered(60, rng)
        for unit, names in (("patients", patient), ("lesions", np.arange(len(patient)))):
            found = bootstrap_difference(first, second, names, seed=study, resamples=600)
            hits[unit] += found.low <= 0.2 <= found.high
    assert 180 <= hits["patients"] <= 198  # 190 wanted, standard error 3
    assert hits["lesions"] < 150


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 3))
def test_what_must_not_change_the_interval(seed: int, num_patients: int, num_seeds: int) -> None:
    rng = np.random.default_rng(seed)
    _, _, patient = clustered(num_patients, rng)
    first, second = (rng.random((num_seeds, len(patient))) < chance for chance in (0.5, 0.7))
    found = bootstrap_difference(first, second, patient, seed=3, resamples=200)
    assert found.value == pytest.approx(second.mean() - first.mean(), abs=1e-12)
    assert found.low <= found.high

    def same(first: np.ndarray, second: np.ndarray, patient: np.ndarray, sign: int = 1) -> None:
        other = bootstrap_difference(first, second, patient, seed=3, resamples=200)
        bounds = sorted((sign * other.low, sign * other.high))
        assert (sign * other.value, *bounds) == pytest.approx((found.value, found.low, found.high), abs=1e-12)

    same(second, first, patient, sign=-1)
    order = rng.permutation(len(patient))
    same(first[:, order], second[:, order], patient[order])
    same(np.repeat(first, 3, axis=1), np.repeat(second, 3, axis=1), np.repeat(patient, 3))  # no more patients
    same(np.concatenate([first, first]), second, patient)  # the same seeds again
    same(first, second, np.array([f"patient {name:02d}" for name in patient]))


def test_arms_that_never_differ_and_arms_that_always_do() -> None:
    patient = [0, 0, 1, 2]
    alike = bootstrap_difference([1, 0, 1, 1], [1, 0, 1, 1], patient, seed=0)
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)
    apart = bootstrap_difference([0, 0, 0, 0], [1, 1, 1, 1], patient, seed=0)
    assert (apart.value, apart.low, apart.high) == (1, 1, 1)


def test_a_seed_repeats_and_another_draws_anew() -> None:
    study = clustered(40, np.random.default_rng(0))
    once, again, other = (bootstrap_difference(*study, seed=seed, resamples=500) for seed in (1, 1, 2))
    assert once == again
    assert (other.low, other.high) != (once.low, once.high)
    narrow = bootstrap_difference(*study, seed=1, resamples=500, confidence=0.5)
    assert once.low < narrow.low < narrow.high < once.high


def test_saved_predictions_go_straight_in() -> None:
    def of(predicted: list[int]) -> Predictions:
        names = tuple("abcdef")
        labels = np.array([0, 1, 0, 1, 0, 1])
        patients = ("p", "p", "q", "q", "r", "r")
        chances = np.eye(2, dtype=np.float32)[predicted]
        return Predictions(("x", "y"), names, patients, (0, 0, 1, 1, 2, 2), labels, np.array(predicted), chances)

    before, after = of([0, 1, 1, 1, 1, 0]), of([0, 1, 0, 1, 0, 0])
    right = [arm.predicted == arm.labels for arm in (before, after)]
    assert mcnemar(*right).only_second == 2
    assert bootstrap_difference(*right, before.patient_ids, seed=0).value == pytest.approx(2 / 6)


# Holm


def test_holms_published_example() -> None:
    """Wikipedia, "Holm-Bonferroni method": at 5 % the fourth and the first are rejected, the third is not."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=6, deadline=None)  # statsmodels takes a quarter of a second: it collects garbage
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """Adjusted: the largest Bonferroni p of any set of hypotheses that holds this one."""
    indices = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(indices, size)]
    wanted = [max(min(1, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in indices]
    assert holm(p_values) == pytest.approx(wanted, abs=1e-12)


# Power


def test_lesions_that_the_papers_gain_needs() -> None:
    """The study rounds to the nearest lesion, here the power is reached: one more where it rounded down."""
    found = {share: needed_lesions(GAIN, share) for share in NEEDED}
    assert found == {0.08: 121, 0.12: 183, 0.16: 244, 0.20: 306, 0.25: 383}
    assert all(found[share] - NEEDED[share] in (0, 1) for share in NEEDED)
    exact = {share: needed_lesions(GAIN, share, exact=True) for share in NEEDED}
    assert exact == {0.08: 123, 0.12: 196, 0.16: 261, 0.20: 324, 0.25: 405}


def test_published_calculators_of_connors_formula() -> None:
    """powerandsamplesize.com (p10 0.05, p01 0.45: 23 pairs); clinicaltrials-tools (0.15, 0.30: 155 pairs, 80.1 %)."""
    assert needed_lesions(0.40, 0.50) == 23
    assert needed_lesions(-0.15, 0.45) == 155
    assert power_of_mcnemar(155, 0.15, 0.45) == pytest.approx(0.801, abs=5e-4)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("difference, discordance, power, alpha", [(GAIN, 0.12, 0.8, 0.05), (-0.2, 0.2, 0.9, 0.01)])
def test_one_lesion_fewer_is_too_few(
    difference: float, discordance: float, power: float, alpha: float, exact: bool
) -> None:
    enough = needed_lesions(difference, discordance, power=power, alpha=alpha, exact=exact)
    fewer, reached = (power_of_mcnemar(n, difference, discordance, alpha, exact=exact) for n in (enough - 1, enough))
    assert fewer < power <= reached


def test_needed_lesions_are_the_first_that_do() -> None:
    every = set()
    for difference in np.linspace(0.3, 0.8, 50).tolist():
        enough = needed_lesions(difference, 0.81)
        assert enough == next(n for n in range(1, 1000) if power_of_mcnemar(n, difference, 0.81) >= 0.8)
        every.add(enough)
    assert {8, 9, 16, 17} <= every  # around powers of two, where the search begins and ends
    assert needed_lesions(0.9, 0.95, power=0.6, alpha=0.5) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.floats(0.05, 0.95), st.floats(-1, 1), st.sampled_from([0.01, 0.05, 0.2]))
def test_exact_power_is_the_sum_over_every_outcome(n: int, discordance: float, part: float, alpha: float) -> None:
    difference = part * discordance
    chance = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    outcomes = [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]
    counts = [[lost, gained, n - lost - gained] for lost, gained in outcomes]
    chances = stats.multinomial.pmf(counts, n, chance)
    wanted = sum(p for p, pair in zip(chances, outcomes, strict=True) if cached_p(*pair) <= alpha)
    found = power_of_mcnemar(n, difference, discordance, alpha, exact=True)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert power_of_mcnemar(n, 0, discordance, alpha, exact=True) <= alpha + 1e-12


@pytest.mark.parametrize("discordance, off", [(0.08, 0.05), (0.16, 0.03), (0.25, 0.01)])
def test_both_powers_by_simulated_studies(discordance: float, off: float) -> None:
    """The exact one within the noise; Connor's within `off`: the more lesions differ, the nearer."""
    lost, gained = (discordance - GAIN) / 2, (discordance + GAIN) / 2
    num_lesions, studies = paper.NUM_LESIONS, 20_000
    drawn = np.random.default_rng(2).multinomial(num_lesions, [lost, gained, 1 - discordance], studies)
    pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    by_exact = by_normal = 0
    for (down, up), count in zip(pairs.tolist(), times.tolist(), strict=True):
        by_exact += count * (cached_p(down, up) < 0.05)
        by_normal += count * ((up - down) ** 2 > stats.chi2.isf(0.05, 1) * (up + down))
    power = power_of_mcnemar(num_lesions, GAIN, discordance, exact=True)
    assert by_exact / studies == pytest.approx(power, abs=4 * sqrt(power * (1 - power) / studies))
    assert by_normal / studies == pytest.approx(power_of_mcnemar(num_lesions, GAIN, discordance), abs=off)
    example = [[0, 9], [25, 0]]  # the square above is the statistic of McNemar's test
    assert statsmodels_mcnemar(example, exact=False, correction=False).statistic == pytest.approx(16**2 / 34)


def test_without_a_difference_the_power_is_the_level() -> None:
    assert power_of_mcnemar(182, 0, 0.2, alpha=0.03) == pytest.approx(0.03)
    assert power_of_mcnemar(182, -GAIN, 0.2) == power_of_mcnemar(182, GAIN, 0.2)
    assert power_of_mcnemar(10**7, 0, 0.2, exact=True) == pytest.approx(0.05, abs=1e-3)


# Seeds and repeated cross validation


def test_spread_of_seeds() -> None:
    found = seed_spread([143, 141, 145])
    assert (found.mean, found.deviation, found.lowest, found.highest, found.num_seeds) == (143, 2, 141, 145, 3)
    assert seed_spread([0.75]).deviation is None
    assert seed_spread([0.75]).mean == 0.75


def test_corrected_interval_widens_the_plain_one_as_nadeau_and_bengio_say() -> None:
    """10 times 10-fold cross validation (1 to 9): the error grows by sqrt(1 + 100 / 9)."""
    differences = np.random.default_rng(0).normal(0.02, 0.05, 100)
    plain = stats.ttest_1samp(differences, 0).confidence_interval()
    found = corrected_interval(differences, 1 / 9)
    assert found.value == pytest.approx(differences.mean())
    assert (found.high - found.low) / (plain.high - plain.low) == pytest.approx(sqrt(1 + 100 / 9))
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_corrected_interval_covers_what_overlapping_training_sets_make_alike() -> None:
    """Nadeau and Bengio's model: differences correlate by test / (test + train). There the coverage is exact."""
    rng, studies, n, ratio = np.random.default_rng(1), 1500, 15, 0.5
    shared = ratio / (1 + ratio)
    both = rng.normal(size=(studies, 1)) * sqrt(shared) + rng.normal(size=(studies, n)) * sqrt(1 - shared)
    corrected = plain = 0
    for differences in 0.1 + both:
        found = corrected_interval(differences, ratio)
        corrected += found.low <= 0.1 <= found.high
        too_narrow = corrected_interval(differences, 1e-9)
        plain += too_narrow.low <= 0.1 <= too_narrow.high
    assert corrected / studies == pytest.approx(0.95, abs=0.02)
    assert plain / studies < 0.65


# Refused


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mcnemar([1, 0], [1]), r"same lesions, got shapes \(2,\) and \(1,\)"),
        (lambda: mcnemar([[1, 0]], [[1, 0]]), "two vectors"),
        (lambda: mcnemar([], []), "first_correct must be .* not empty"),
        (lambda: mcnemar([1, 0], [1, 2]), "second_correct must hold 0 and 1 only"),
        (lambda: mcnemar([1, np.nan], [1, 0]), "first_correct must hold 0 and 1 only"),
        (lambda: bootstrap_difference([1, 0], [1, 0], [1], seed=0), "same lesions"),
        (lambda: bootstrap_difference([1, 0], [1], [1, 2], seed=0), "same lesions"),
        (lambda: bootstrap_difference([[[1, 0]]], [1, 0], [1, 2], seed=0), r"\[lesions\] or \[seeds, lesions\]"),
        (lambda: bootstrap_difference([1, 0.5], [1, 0], [1, 2], seed=0), "0 and 1 only"),
        (lambda: bootstrap_difference([1, 0], [1, 1], ["p", "p"], seed=0), "two patients to draw from, got 1"),
        (lambda: bootstrap_difference([1, 0], [1, 1], [1, 2], seed=0, confidence=95), "confidence must be in"),
        (lambda: bootstrap_difference([1, 0], [1, 1], [1, 2], seed=0, resamples=0), "resamples must be at least 1"),
        (lambda: holm([0.1, np.nan]), "leave out tests that were not made"),
        (lambda: holm([0.1, 1.1]), "in 0 .. 1"),
        (lambda: holm([]), "at least one"),
        (lambda: holm([[0.1]]), "vector"),
        (lambda: power_of_mcnemar(0, 0.1, 0.2), "num_lesions must be at least 1"),
        (lambda: power_of_mcnemar(10, 0.3, 0.2), "larger than the discordance, got 0.3 and 0.2"),
        (lambda: power_of_mcnemar(10, -0.3, 0.2), "larger than the discordance"),
        (lambda: power_of_mcnemar(10, np.nan, 0.2), "larger than the discordance"),
        (lambda: power_of_mcnemar(10, 0, 0), "discordance must be in"),
        (lambda: power_of_mcnemar(10, 0.1, 0.2, alpha=1), "alpha must be in"),
        (lambda: needed_lesions(0, 0.2), "must not be 0"),
        (lambda: needed_lesions(7.1, 12), "discordance must be in"),
        (lambda: needed_lesions(0.1, 0.2, power=0.04), "power must be above alpha"),
        (lambda: needed_lesions(0.1, 0.2, power=1), "below 1"),
        (lambda: seed_spread([]), "correct must be a vector of at least 1"),
        (lambda: seed_spread([143, np.inf]), "all finite"),
        (lambda: corrected_interval([0.1], 0.5), "differences must be a vector of at least 2"),
        (lambda: corrected_interval([0.1, 0.2], 0), "test_to_train must be above 0"),
        (lambda: corrected_interval([0.1, 0.2], 0.5, confidence=1), "confidence must be in"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
