"""Bands, difference curves, crossings and extrapolation."""

import numpy as np
import pytest
from scipy.special import expit, ndtr
from scipy.stats import betabinom

from softeval.errors import UserError
from softeval.statistics import pass_at_k
from softeval.statistics.bootstrap import draw_weights, resampled_means, sup_t
from softeval.statistics.contrast import compare_methods
from softeval.statistics.crossed import crossed_mean
from softeval.statistics.curves import (
    crossing,
    crossing_evidence,
    curve_band,
    curve_order,
    difference_band,
    first_sign_change,
)
from softeval.statistics.extrapolation import (
    BetaBinomial,
    extrapolate,
    fit_beta_binomial,
    fit_power_law,
    fit_zero_inflated,
)

KS = np.array([1, 2, 4, 8, 16, 32])


def scores(level: float, spread: float, seeds: int = 3, seed: int = 0, problems: int = 120):
    """pass@k scores; a wider ``spread`` of difficulties flattens the curve."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).normal(size=problems)
    logit = level + spread * difficulty + rng.normal(0, 0.1, (seeds, 1))
    return pass_at_k(32, rng.binomial(32, expit(logit)), KS)


def joint_level(band) -> float:
    """The level of one k at which the whole band has its own."""
    return 2 * float(ndtr(band.critical)) - 1


def test_band_contains_the_curve_and_is_that_of_one_k_at_a_higher_level():
    x = scores(-1.0, 1.5)
    band = curve_band(x, KS, replicates=500)
    np.testing.assert_allclose(band.mean, x.mean(axis=(0, 1)))
    assert (band.low >= 0).all()
    assert (band.high <= 1).all()
    assert band.critical > 1.96
    cell = crossed_mean(x[:, :, 2], joint_level(band))
    assert (band.low[2], band.high[2]) == pytest.approx((cell.interval.low, cell.interval.high))


def test_a_band_never_falls_with_k():
    """At the ceiling with few seeds a single k can have a huge error; its neighbours bound it."""
    ks = np.arange(1, 33)
    for level in (2.5, 4.0, 6.0):
        rng = np.random.default_rng(1)
        logit = level + rng.normal(size=120) + rng.normal(0, 0.1, (3, 1))
        band = curve_band(pass_at_k(32, rng.binomial(32, expit(logit)), ks), ks, replicates=300)
        assert (np.diff(band.low) >= 0).all() and (np.diff(band.high) >= 0).all()
        assert (band.low <= band.mean + 1e-9).all() and (band.mean <= band.high + 1e-9).all()
    turned = curve_band(scores(6.0, 1.0)[:, :, ::-1], KS[::-1], replicates=300)
    straight = curve_band(scores(6.0, 1.0), KS, replicates=300)
    np.testing.assert_allclose(turned.low[::-1], straight.low, atol=1e-12)


def test_band_of_one_k_is_nearly_pointwise():
    band = curve_band(scores(-1.0, 1.5)[:, :, :1], KS[:1], replicates=4000)
    assert band.critical == pytest.approx(1.96, abs=0.1)


def test_band_is_seeded():
    x = scores(-1.0, 1.5)
    first, again = (curve_band(x, KS, replicates=200, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.low, again.low)
    assert curve_band(x, KS, replicates=200, seed=4).critical != first.critical


def test_more_demanding_level_widens_the_band():
    x = scores(-1.0, 1.5)
    assert (curve_band(x, KS, 0.99).low < curve_band(x, KS, 0.9).low).all()


def test_single_checkpoint_may_leave_out_the_seed_axis():
    x = scores(-1.0, 1.5, seeds=1)
    np.testing.assert_array_equal(curve_band(x, KS).low, curve_band(x[0], KS).low)


def test_bootstrap_weights_resample_whole_units():
    weights = draw_weights(np.random.default_rng(0), 50, 7)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights * 7, np.round(weights * 7), atol=1e-12)


def test_resampled_means_equal_indexing_by_hand():
    x, rng = scores(-1.0, 1.5, problems=9), np.random.default_rng(1)
    problems = draw_weights(rng, 4, 9)
    means = resampled_means(x, problems, np.random.default_rng(2))
    seeds = draw_weights(np.random.default_rng(2), 4, 3)
    for b in range(4):
        picked_s = np.repeat(np.arange(3), np.round(seeds[b] * 3).astype(int))
        picked_m = np.repeat(np.arange(9), np.round(problems[b] * 9).astype(int))
        by_hand = x[np.ix_(picked_s, picked_m)].mean(axis=(0, 1))
        np.testing.assert_allclose(means[b], by_hand)


def test_sup_t_of_independent_columns_is_the_sidak_value():
    draws = np.random.default_rng(0).normal(size=(40_000, 6))
    assert sup_t(draws, np.zeros(6), 0.95) == pytest.approx(2.631, abs=0.03)
    copies = np.repeat(draws[:, :1], 6, axis=1)
    assert sup_t(copies, np.zeros(6), 0.95) == pytest.approx(1.96, abs=0.03)
    assert sup_t(np.ones((10, 2)), np.ones(2), 0.95) == pytest.approx(1.96, abs=0.001)


def test_difference_band_agrees_with_the_comparison_at_each_k():
    a, b = scores(-0.5, 1.0), scores(-1.0, 2.0, seed=1)
    band = difference_band(a, b, KS, replicates=300)
    for j in range(KS.size):
        contrast = compare_methods(a[:, :, j], b[:, :, j], joint_level(band))
        assert (band.mean[j], band.low[j], band.high[j]) == pytest.approx(
            (contrast.diff, contrast.low, contrast.high)
        )
    assert band.critical > 1.96


def test_identical_arms_keep_a_band():
    x = scores(-1.0, 1.5, seeds=1)
    band = difference_band(x, x, KS, replicates=50)
    assert (band.mean == 0).all()
    np.testing.assert_allclose(band.high, 1 - 0.025 ** (1 / 120))


@pytest.mark.parametrize(
    ("diff", "expected"),
    [
        ([0.1, 0.05, -0.02, 0.3], 2),
        ([-0.1, -0.2, 0.0, 0.1], 3),
        ([0.0, 0.0, -0.1, 0.1], 3),
        ([0.1, 0.2, 0.0, 0.3], -1),
        ([0.0, 0.0, 0.0, 0.0], -1),
        ([0.1, 1e-15, -1e-15, 0.1], -1),
    ],
)
def test_first_sign_change(diff, expected):
    assert first_sign_change(diff) == expected
    assert first_sign_change([diff, diff]).tolist() == [expected, expected]


def test_crossing_of_a_steep_and_a_flat_curve():
    flat, steep = scores(0.0, 3.0), scores(-1.5, 0.3, seed=1)
    result = crossing(flat, steep, KS, replicates=400)
    z = np.random.default_rng(99).normal(size=120)
    truth = [
        [(1 - (1 - expit(level + slope * z)) ** k).mean() for k in KS]
        for level, slope in ((0.0, 3.0), (-1.5, 0.3))
    ]
    first_negative = int(np.argmax(np.subtract(*truth) < 0))
    assert result.start_sign == 1
    assert result.k is not None
    assert result.k == KS[first_negative]
    assert result.p_no_crossing < 0.05
    assert result.low <= result.k <= result.high
    assert crossing(steep, flat, KS, replicates=400).k == result.k


def test_crossing_resamples_both_arms_on_the_same_problems():
    """D is +0.01 then −0.01 on every problem, whatever the spread of the problems."""
    b = np.random.default_rng(0).uniform(0.1, 0.9, (1, 100, 1)) * np.ones(2)
    result = crossing(b + np.array([0.01, -0.01]), b, [1, 2], replicates=200)
    assert (result.k, result.p_no_crossing) == (2, 0.0)


def test_a_resample_that_starts_the_other_way_round_is_no_crossing_of_that_sense():
    """Half the problems go from + to −, half from − to +: resamples fall on either side."""
    sense = np.where(np.arange(40) < 21, 1.0, -1.0)[None, :, None]
    b = np.full((1, 40, 2), 0.5)
    result = crossing(b + 0.1 * sense * np.array([1.0, -1.0]), b, [1, 2], replicates=400)
    assert (result.k, result.start_sign) == (2, 1)
    assert 0.2 < result.p_no_crossing < 0.6  # 0 or nearly so, if both senses counted


def test_curves_that_keep_their_order_are_crossed_by_resamples_of_either_sense():
    sense = np.where(np.arange(40) < 21, 1.0, -1.0)[None, :, None]
    b = np.full((1, 40, 2), 0.5)
    steps = np.array([0.1, -0.1]) * sense + np.array([0.0, 0.06])
    result = crossing(b + steps, b, [1, 2], replicates=400)
    assert (result.k, result.start_sign) == (None, 1)
    assert 0.3 < result.p_no_crossing < 0.9  # 1 if only those from + to − counted


def test_every_later_sign_change_is_named():
    diff = np.array([0.1, 0.05, -0.02, -0.02, 0.03, 0.1, 0.0, 0.1])
    b = np.full((1, 5, 8), 0.5)
    result = crossing(b + diff, b, np.arange(1, 9), replicates=20)
    assert (result.k, result.again) == (3, (5,))


def test_curves_far_apart_do_not_cross():
    result = crossing(scores(2.0, 0.5), scores(-4.0, 0.5, seed=1), KS, replicates=200)
    assert result.k is None
    assert result.k_max == 32
    assert result.p_no_crossing == 1.0
    assert np.isnan([result.low, result.high]).all()


def test_crossing_beyond_n_cannot_be_seen():
    flat, steep = scores(0.0, 3.0), scores(-1.5, 0.3, seed=1)
    short = crossing(flat[..., :1], steep[..., :1], KS[:1], replicates=50)
    assert short.k is None
    assert short.k_max == 1


def test_evidence_counts_problems():
    evidence = crossing_evidence([0, 3, 8, 1], [2, 0, 8, 0])
    assert (evidence.only_a, evidence.only_b) == (2, 1)


def test_unusable_curves_are_refused():
    x = scores(-1.0, 1.5)
    with pytest.raises(ValueError, match="K values of k"):
        curve_band(x, KS[:2])
    with pytest.raises(ValueError, match="NaN"):
        curve_band(np.where(x == x.max(), np.nan, x), KS)
    with pytest.raises(ValueError, match="120 and 119"):
        difference_band(x, x[:, :-1], KS)
    with pytest.raises(ValueError, match="120 and 119"):
        crossing(x, x[:, :-1], KS)


def test_fit_finds_the_beta_it_was_drawn_from():
    rng = np.random.default_rng(0)
    fit = fit_beta_binomial(32, rng.binomial(32, rng.beta(0.6, 1.8, 4000)))
    assert (fit.a, fit.b) == pytest.approx((0.6, 1.8), rel=0.1)
    assert BetaBinomial(0.6, 1.8).pass_at(1) == pytest.approx(0.25)
    assert BetaBinomial(0.6, 1.8).pass_at(32) == pytest.approx(1 - betabinom.pmf(0, 32, 0.6, 1.8))


def test_zero_inflated_fit_finds_the_unsolvable_share():
    rng = np.random.default_rng(1)
    p = np.where(rng.random(4000) < 0.2, 0.0, rng.beta(3, 3, 4000))
    fit = fit_zero_inflated(32, rng.binomial(32, p))
    assert fit.unsolvable == pytest.approx(0.2, abs=0.03)
    assert fit.pass_at(10_000) == pytest.approx(0.8, abs=0.03)


def test_power_law_of_an_exact_power_law_curve():
    n = c = np.array([4])
    assert fit_power_law(n, c).pass_at([1, 100]).tolist() == [1.0, 1.0]
    assert fit_power_law(n, n * 0).pass_at([1, 100]).tolist() == [0.0, 0.0]
    counts = np.random.default_rng(0).binomial(32, np.random.default_rng(1).beta(0.5, 2, 2000))
    fit, curve = fit_power_law(32, counts), pass_at_k(32, counts, [4, 16]).mean(axis=0)
    np.testing.assert_allclose(fit.pass_at([4, 16]), curve, atol=0.02)


def test_which_model_is_wrong_depends_on_the_truth():
    """n = 32 to K = 1024, as measured: the choice of model dominates."""
    rng = np.random.default_rng(0)
    beta = rng.beta(0.5, 1.5, 3000)
    clusters = np.where(rng.random(3000) < 0.5, 0.5, 0.004)

    def errors(p: np.ndarray) -> list[float]:
        c, truth = rng.binomial(32, p), (1 - (1 - p) ** 1024).mean()
        fits = fit_beta_binomial(32, c), fit_zero_inflated(32, c), fit_power_law(32, c)
        return [abs(float(fit.pass_at(1024)) - truth) for fit in fits]

    assert errors(beta)[0] < 0.02
    assert errors(clusters)[1] > 0.05


def test_extrapolation_puts_the_models_side_by_side():
    rng = np.random.default_rng(0)
    c = rng.binomial(32, rng.beta(0.4, 1.5, 400))
    result = extrapolate(32, c, [32, 64, 256])
    stack = [result.beta_binomial, result.zero_inflated, result.power_law]
    assert np.diff(stack, axis=1).min() > 0
    np.testing.assert_allclose(result.disagreement, np.max(stack, 0) - np.min(stack, 0))
    observed = pass_at_k(32, c, 32).mean()
    np.testing.assert_allclose([curve[0] for curve in stack], observed, atol=0.03)


def test_extrapolation_refuses_more_than_eight_times_n():
    with pytest.raises(UserError, match=r"K <= 256"):
        extrapolate(32, [1, 2, 3], [257])


@pytest.mark.parametrize("paired", [False, True])
def test_order_is_said_only_where_the_band_of_the_difference_leaves_out_zero(paired):
    flat, steep, near = scores(0.0, 3.0), scores(-1.5, 0.3, seed=1), scores(0.0, 3.0, seed=7)
    crossed = curve_order(flat, steep, KS, replicates=300, paired=paired)
    assert crossed.word == "cross"
    assert crossed.a_ks[0] == 1 and crossed.b_ks[-1] == 32
    assert max(crossed.a_ks) < min(crossed.b_ks)
    mirrored = curve_order(steep, flat, KS, replicates=300, paired=paired)
    assert (mirrored.word, mirrored.a_ks, mirrored.b_ks) == ("cross", crossed.b_ks, crossed.a_ks)
    ahead = curve_order(scores(2.0, 0.5), scores(-4.0, 0.5), KS, replicates=300, paired=paired)
    assert (ahead.word, ahead.b_ks) == ("a leads", ())
    behind = curve_order(scores(-4.0, 0.5), scores(2.0, 0.5), KS, replicates=300, paired=paired)
    assert (behind.word, behind.a_ks) == ("b leads", ())
    unsure = curve_order(flat, near, KS, replicates=300, paired=paired)
    assert (unsure.word, unsure.a_ks, unsure.b_ks) == ("undecided", (), ())
    assert curve_order(flat, flat, KS, replicates=50, paired=paired).word == "coincide"


def test_many_curves_judged_together_widen_the_band_of_each():
    a, b = scores(0.0, 1.5), scores(0.0, 1.5, seed=7)
    alone, among = (curve_order(a, b, KS, comparisons=count).band for count in (1, 12))
    assert (among.level, alone.level) == (pytest.approx(1 - 0.05 / 12), 0.95)
    assert (among.low < alone.low).all() and (among.high > alone.high).all()
