"""Per-position sums and profiles against loops, and the composition effect of the notes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import position_profile


def reduced(values, lengths, owners, problems: int, bins: int, min_length: int = 0):
    """Sums of whole sequences, one after the other."""
    lengths, owners = np.asarray(lengths, dtype=int), np.asarray(owners, dtype=int)
    column = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = np.repeat(lengths >= min_length, lengths) & (column < bins)
    cell = (bins * np.repeat(owners, lengths) + column)[kept]
    total, count = (
        np.bincount(cell, each, problems * bins).reshape(problems, bins)
        for each in (np.asarray(values, dtype=float)[kept], None)
    )
    samples = np.bincount(owners, minlength=problems)
    return PositionSums(total, count, samples, int((lengths >= min_length).sum()), length=bins)


def sequences(seed: int, count: int, longest: int, problems: int):
    """Random sequences: flat values, lengths (some 0), unsorted problems."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, count)
    values = rng.random(int(lengths.sum())).astype(np.float32)
    return values, lengths, rng.integers(0, problems, count)


def test_no_sequences_is_an_empty_profile():
    profile = position_profile(reduced([], [], [], 3, 5))
    assert np.isnan(profile.mean).all() and np.isnan(profile.low).all()
    assert profile.problems.tolist() == [0] * 5


def test_binning_keeps_sums_and_averages_the_risk():
    sums = reduced(np.arange(21.0), [10, 7, 4], [0, 0, 1], 2, 10)
    binned = sums.binned(4)
    assert binned.count_PT.tolist() == [[8, 7, 2], [4, 0, 0]]
    np.testing.assert_allclose(binned.sum_PT.sum(), sums.sum_PT.sum())
    np.testing.assert_allclose(binned.at_risk_T, [1.0, 7 / 12, 2 / 6])
    np.testing.assert_allclose(sums.at_risk_T[[0, 4, 9]], [1.0, 2 / 3, 1 / 3])
    assert position_profile(binned).start.tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="single positions"):
        binned.binned(2)


def test_a_chain_that_stops_at_once_counts_as_not_at_risk():
    sums = reduced([1.0], [1, 0], [0, 0], 1, 2)
    assert sums.at_risk_T.tolist() == [0.5, 0.0]


def test_a_problem_counts_by_its_share_of_chains_at_risk():
    """Nine of nine chains of problem 0 reach the position, one of four of problem 1."""
    sums = reduced([1.0] * 9 + [4.0], [1] * 10 + [0] * 3, [0] * 9 + [1] * 4, 2, 1)
    assert position_profile(sums).mean[0] == pytest.approx((1.0 * 1 + 4.0 / 4) / (1 + 1 / 4))


def test_a_problem_asked_more_often_weighs_no_more():
    sums = reduced([1.0] * 9 + [4.0], [1] * 10, [0] * 9 + [1], 2, 1)
    assert position_profile(sums).mean[0] == pytest.approx(2.5)


def test_interval_of_equal_weights_is_that_of_a_mean_on_the_log_scale():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 35)  # flatter than normal: m - 1 degrees of freedom
    profile = position_profile(reduced(x, np.ones(35, int), np.arange(35), 40, 1))
    ratio = np.exp(stats.t.ppf(0.975, 34) * x.std(ddof=1) / 35**0.5 / x.mean())
    found = profile.mean[0], profile.low[0], profile.high[0]
    assert found == pytest.approx((x.mean(), x.mean() / ratio, x.mean() * ratio))
    assert profile.problems.tolist() == [35]


def test_problems_with_few_chains_left_do_not_keep_a_position_from_being_grey():
    """40 problems at risk, but 35 of them with 1 of 64 chains: five carry the mean."""
    count = np.where(np.arange(40) < 35, 1, 64)[:, None]
    sums = PositionSums(count * 0.5, count, np.full(40, 64), 40 * 64, length=1)
    profile = position_profile(sums)
    assert profile.problems.tolist() == [40] and profile.at_risk[0] > 0.1
    assert profile.grey.tolist() == [True]


def test_one_problem_at_risk_has_no_interval():
    profile = position_profile(reduced([1.0, 2.0, 3.0], [2, 1], [0, 1], 2, 2))
    assert np.isfinite(profile.low[0])
    assert np.isnan([profile.low[1], profile.high[1]]).all()
    assert profile.mean[1] == 2.0


def flat_sums(problems: int, share: float) -> PositionSums:
    """10 samples a problem; ``share`` of all samples reach position 1."""
    count = np.full((problems, 2), 10)
    count[:, 1] = int(10 * share)
    return PositionSums(count * 1.0, count, count[:, 0], problems * 10, length=2)


@pytest.mark.parametrize(
    ("problems", "share", "grey"),
    [(30, 0.1, False), (29, 0.1, True), (200, 0.0, True), (30, 0.2, False)],
)
def test_grey_rule(problems, share, grey):
    assert position_profile(flat_sums(problems, share)).grey[1] == grey


def test_fewer_than_a_tenth_at_risk_is_grey():
    sums = flat_sums(100, 0.1)
    count = sums.count_PT.copy()
    count[0, 1] = 0
    profile = position_profile(replace(sums, count_PT=count))
    assert profile.problems[1] == 99
    assert profile.grey.tolist() == [False, True]


def test_seeds_give_thin_lines_and_one_mean():
    arms = [reduced([a, b], [1, 1], [0, 1], 2, 1) for a, b in ((1.0, 3.0), (2.0, 6.0))]
    profile = position_profile(arms)
    np.testing.assert_allclose(profile.lines, [[2.0], [4.0]])
    np.testing.assert_allclose(profile.mean, [3.0])
    assert profile.at_risk.tolist() == [1.0]


def test_a_seed_that_was_not_asked_a_problem_leaves_it_to_the_others():
    arms = [reduced([1.0, 3.0], [1, 1], [0, 1], 2, 1), reduced([2.0], [1], [0], 2, 1)]
    assert position_profile(arms).mean[0] == pytest.approx((1.5 + 3.0) / 2)


def world(problems: int, samples: int, seed: int):
    """Harder problems think longer and less surely: (values, lengths, owners), entropy constant."""
    rng = np.random.default_rng(seed)
    hard = np.repeat(rng.normal(size=problems), samples)
    lengths = np.minimum(np.exp(2.5 + 0.5 * hard + 0.5 * rng.normal(size=hard.size)), 60).astype(
        int
    )
    entropy = 0.5 * np.exp(0.4 * hard + 0.3 * rng.normal(size=hard.size))
    return np.repeat(entropy, lengths), lengths, np.repeat(np.arange(problems), samples)


@pytest.mark.parametrize("min_length", [0, 20])
def test_the_same_model_has_the_same_profile_from_1_8_or_64_samples(min_length):
    """E[H_t | T ≥ t] and, for the fixed cohort, E[H_t | T ≥ 20]: neither knows n."""
    sizes = {1: 12_000, 8: 5000, 64: 2000}
    means = []
    for samples, problems in sizes.items():
        data = world(problems, samples, seed=samples)
        profile = position_profile(reduced(*data, problems, 40, min_length))
        means.append(profile.mean[[0, 15, 19, 30]])
    values, lengths, _ = world(60_000, 1, seed=9)
    first = np.cumsum(lengths) - lengths
    truth = [
        values[first[at]].mean()
        for t in (0, 15, 19, 30)
        for at in [lengths > max(t, min_length - 1)]
    ]
    np.testing.assert_allclose(means, np.tile(truth, (3, 1)), rtol=0.035)
    own_means_first = reduced(*world(2000, 64, seed=64), 2000, 40, min_length)
    naive = own_means_first.sum_PT / np.where(
        own_means_first.count_PT, own_means_first.count_PT, np.nan
    )
    assert np.nanmean(naive, axis=0)[30] < 0.9 * truth[3]


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(30, 1), (30, 8), (40, 64), (200, 64)])
def test_interval_covers_from_30_problems_on(problems, samples):
    """At every position that is not grey; 2 standard errors of 1000 replicates are 0.017."""
    values, lengths, _ = world(400_000, 1, seed=9)
    first, shown = np.cumsum(lengths) - lengths, (0, 8, 13)
    truth = np.array([values[first[lengths > t]].mean() for t in shown])
    hits = []
    for seed in range(1000):
        profile = position_profile(reduced(*world(problems, samples, 1000 + seed), problems, 14))
        low, high = profile.low[list(shown)], profile.high[list(shown)]
        hits.append(np.where(profile.grey[list(shown)], np.nan, (low <= truth) & (truth <= high)))
    counted = np.isfinite(hits).sum(axis=0) > 200
    assert counted[0]
    assert (np.nanmean(np.array(hits)[:, counted], axis=0) >= 0.92).all()


@pytest.fixture(scope="module")
def composed():
    """Constant entropy within a chain; uncertain chains run longer (log-normal, cap 512)."""
    rng = np.random.default_rng(0)
    problems, samples = 2000, 8
    z = rng.normal(size=(2, problems * samples))
    lengths = np.minimum(np.exp(4.576 + 0.936 * z[0]).astype(int) + 1, 512)
    sigma, rho = 0.7, 0.59
    noise = rho * z[0] + np.sqrt(1 - rho**2) * z[1]
    entropy = 0.48 * np.exp(sigma * noise - sigma**2 / 2)
    owners = np.repeat(np.arange(problems), samples)
    return entropy, lengths, owners, problems


def test_composition_alone_makes_a_profile_rise(composed):
    entropy, lengths, owners, problems = composed
    profile = position_profile(reduced(np.repeat(entropy, lengths), lengths, owners, problems, 512))
    assert profile.mean[[0, 200, 500]] == pytest.approx([0.48, 0.79, 1.07], abs=0.03)
    assert profile.at_risk[[0, 200, 500]] == pytest.approx([1.0, 0.22, 0.04], abs=0.01)
    assert profile.grey[[0, 200, 500]].tolist() == [False, False, True]


def test_fixed_cohort_is_flat_where_nothing_changes(composed):
    entropy, lengths, owners, problems = composed
    sums = reduced(np.repeat(entropy, lengths), lengths, owners, problems, 320, min_length=320)
    mean = position_profile(sums).mean
    assert mean == pytest.approx(np.full(320, mean[0]))
    assert mean[0] == pytest.approx(0.92, abs=0.04)
