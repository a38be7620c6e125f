"""Per-position sums and profiles against loops, and the composition effect of the notes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softeval.reports.statistics import (
    PositionSums,
    length_terciles,
    position_profile,
    position_scalars,
    profile_difference,
    reduce_sequences,
)
from softeval.reports.statistics.positions import Align


def sequences(seed: int, count: int, longest: int, problems: int):
    """Random sequences: flat values, lengths (some 0), unsorted problems."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, count)
    values = rng.random(int(lengths.sum())).astype(np.float32)
    return values, lengths, rng.integers(0, problems, count)


def by_loop(values, lengths, owners, problems, bins, align: Align, min_length=0):
    total, square, count = np.zeros((3, problems, bins))
    ends = np.cumsum(lengths)
    for length, end, owner in zip(lengths, ends, owners, strict=True):
        if length < min_length:
            continue
        for t in range(length):
            column = {"start": t, "end": length - 1 - t, "progress": t * bins // length}[align]
            if column < bins:
                value = float(values[end - length + t])
                total[owner, column] += value
                square[owner, column] += value**2
                count[owner, column] += 1
    return total, square, count


@pytest.mark.parametrize("align", ["start", "end", "progress"])
@given(seed=st.integers(0, 500), bins=st.integers(1, 12), min_length=st.integers(0, 6))
def test_reduction_equals_a_loop(align, seed, bins, min_length):
    data = sequences(seed, 15, 10, 4)
    sums = reduce_sequences(*data, 4, bins, align, min_length)
    total, square, count = by_loop(*data, 4, bins, align, min_length)
    np.testing.assert_allclose(sums.sum_PT, total, atol=1e-9)
    np.testing.assert_allclose(sums.sumsq_PT, square, atol=1e-9)
    np.testing.assert_array_equal(sums.count_PT, count)
    assert sums.sequences == (data[1] >= min_length).sum()


def test_chunks_add_up():
    values, lengths, owners = sequences(0, 40, 20, 5)
    cut = int(lengths[:17].sum())
    whole = reduce_sequences(values, lengths, owners, 5, 20)
    parts = reduce_sequences(values[:cut], lengths[:17], owners[:17], 5, 20) + reduce_sequences(
        values[cut:], lengths[17:], owners[17:], 5, 20
    )
    np.testing.assert_allclose(parts.sum_PT, whole.sum_PT)
    np.testing.assert_array_equal(parts.count_PT, whole.count_PT)
    assert parts.sequences == whole.sequences
    with pytest.raises(ValueError, match="layouts"):
        _ = whole + reduce_sequences(values, lengths, owners, 5, 19)


def test_inconsistent_input_is_refused():
    values, lengths, owners = sequences(0, 10, 5, 3)
    with pytest.raises(ValueError, match="add up"):
        reduce_sequences(values[:-1], lengths, owners, 3, 5)
    with pytest.raises(ValueError, match="problem indices"):
        reduce_sequences(values, lengths, owners + 1, 3, 5)


def test_no_sequences_is_an_empty_reduction():
    sums = reduce_sequences([], [], [], 3, 5)
    assert sums.count_PT.sum() == 0
    assert np.isnan(position_profile(sums).mean).all()


def test_binning_keeps_sums_and_averages_the_risk():
    sums = reduce_sequences(np.arange(21.0), [10, 7, 4], [0, 0, 1], 2, 10)
    binned = sums.binned(4)
    assert binned.count_PT.tolist() == [[8, 7, 2], [4, 0, 0]]
    np.testing.assert_allclose(binned.sum_PT.sum(), sums.sum_PT.sum())
    np.testing.assert_allclose(binned.at_risk_T, [1.0, 7 / 12, 2 / 6])
    np.testing.assert_allclose(sums.at_risk_T[[0, 4, 9]], [1.0, 2 / 3, 1 / 3])
    assert position_profile(binned).start.tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="single positions"):
        binned.binned(2)


def test_a_chain_that_stops_at_once_counts_as_not_at_risk():
    sums = reduce_sequences([1.0], [1, 0], [0, 0], 1, 2)
    assert sums.at_risk_T.tolist() == [0.5, 0.0]


def test_terciles_split_by_length():
    assert length_terciles([5, 1, 3, 2, 6, 4]).tolist() == [2, 0, 1, 0, 2, 1]
    assert len(set(length_terciles([7, 7, 7]).tolist())) == 1


def test_within_problem_comes_first():
    """A problem with many long samples weighs as much as one with a single long sample."""
    values = [1.0] * 9 + [4.0]
    sums = reduce_sequences(values, [1] * 10, [0] * 9 + [1], 2, 1)
    assert position_profile(sums).mean[0] == pytest.approx(2.5)


def test_profile_averages_problems_at_risk_only():
    values, lengths, owners = sequences(1, 60, 12, 8)
    sums = reduce_sequences(values, lengths, owners, 8, 12)
    profile = position_profile(sums, replicates=200)
    for t in range(12):
        present = sums.count_PT[:, t] > 0
        assert profile.problems[t] == present.sum()
        means = sums.sum_PT[present, t] / sums.count_PT[present, t]
        assert profile.mean[t] == pytest.approx(means.mean())
        assert profile.low[t] <= profile.mean[t] <= profile.high[t]


def test_interval_is_close_to_student_for_many_problems():
    rng = np.random.default_rng(0)
    x = rng.gamma(2, 1, 400)
    sums = reduce_sequences(x, np.ones(400, int), np.arange(400), 400, 1)
    profile = position_profile(sums, replicates=4000)
    half = 1.96 * x.std(ddof=1) / 20
    assert profile.low[0] == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert profile.high[0] == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_one_problem_at_risk_has_no_interval():
    sums = reduce_sequences([1.0, 2.0, 3.0], [2, 1], [0, 1], 2, 2)
    profile = position_profile(sums)
    assert np.isfinite(profile.low[0])
    assert np.isnan([profile.low[1], profile.high[1]]).all()
    assert profile.mean[1] == 2.0


def flat_sums(problems: int, share: float) -> PositionSums:
    """10 samples a problem; ``share`` of all samples reach position 1."""
    count = np.full((problems, 2), 10)
    count[:, 1] = int(10 * share)
    return PositionSums(count * 1.0, count * 1.0, count, problems * 10, length=2)


@pytest.mark.parametrize(
    ("problems", "share", "grey"),
    [(30, 0.1, False), (29, 0.1, True), (200, 0.0, True), (30, 0.2, False)],
)
def test_grey_rule(problems, share, grey):
    profile = position_profile(flat_sums(problems, share), replicates=20)
    assert profile.grey[1] == grey


def test_fewer_than_a_tenth_at_risk_is_grey():
    sums = flat_sums(100, 0.1)
    count = sums.count_PT.copy()
    count[0, 1] = 0
    profile = position_profile(replace(sums, count_PT=count), replicates=20)
    assert profile.problems[1] == 99
    assert profile.grey.tolist() == [False, True]


def test_seeds_give_thin_lines_and_one_mean():
    arms = [reduce_sequences([a, b], [1, 1], [0, 1], 2, 1) for a, b in ((1.0, 3.0), (2.0, 6.0))]
    profile = position_profile(arms, replicates=50)
    np.testing.assert_allclose(profile.lines, [[2.0], [4.0]])
    np.testing.assert_allclose(profile.mean, [3.0])
    assert profile.at_risk.tolist() == [1.0]


def test_difference_uses_problems_at_risk_in_both():
    a = reduce_sequences([1.0, 5.0, 9.0], [2, 1], [0, 1], 3, 2)
    b = reduce_sequences([0.5, 2.0, 3.0], [1, 2], [1, 0], 3, 2)
    difference = profile_difference(a, b, replicates=50)
    np.testing.assert_array_equal(difference.problems, [2, 1])
    np.testing.assert_allclose(difference.diff, [((1 - 2) + (9 - 0.5)) / 2, 5 - 3])
    back = profile_difference(b, a, replicates=50)
    np.testing.assert_allclose(back.diff, -difference.diff)
    with pytest.raises(ValueError, match="compared"):
        profile_difference(a, reduce_sequences([1.0], [1], [0], 3, 1))


def test_profile_is_seeded():
    sums = reduce_sequences(*sequences(1, 60, 12, 8), 8, 12)
    np.testing.assert_array_equal(position_profile(sums).low, position_profile(sums).low)
    assert (position_profile(sums).low != position_profile(sums, seed=1).low).any()


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
    sums = reduce_sequences(np.repeat(entropy, lengths), lengths, owners, problems, 512)
    profile = position_profile(sums, replicates=20)
    assert profile.mean[[0, 200, 500]] == pytest.approx([0.48, 0.79, 1.07], abs=0.03)
    assert profile.at_risk[[0, 200, 500]] == pytest.approx([1.0, 0.22, 0.04], abs=0.01)
    assert profile.grey[[0, 200, 500]].tolist() == [False, False, True]


def test_fixed_cohort_is_flat_where_nothing_changes(composed):
    entropy, lengths, owners, problems = composed
    sums = reduce_sequences(
        np.repeat(entropy, lengths), lengths, owners, problems, 320, min_length=320
    )
    mean = position_profile(sums, replicates=20).mean
    assert mean == pytest.approx(np.full(320, mean[0]))
    assert mean[0] == pytest.approx(0.92, abs=0.04)


def test_two_weightings_of_the_same_data(composed):
    entropy, lengths, owners, _ = composed
    scalars = position_scalars(entropy * lengths, lengths, owners)
    assert scalars.token_weighted.mean == pytest.approx(0.64, abs=0.03)
    assert scalars.sequence_weighted.mean == pytest.approx(0.48, abs=0.02)
    assert scalars.token_weighted.low > scalars.sequence_weighted.high


def test_scalars_leave_out_empty_chains_and_equal_hand_values():
    scalars = position_scalars([2.0, 9.0, 0.0, 4.0], [2, 3, 0, 4], ["a", "a", "b", "c"])
    assert (scalars.sequences, scalars.empty) == (3, 1)
    assert scalars.token_weighted.mean == pytest.approx(15 / 9)
    assert scalars.sequence_weighted.mean == pytest.approx(((1 + 3) / 2 + 1) / 2)
    with pytest.raises(ValueError, match="no sequence"):
        position_scalars([0.0], [0], [0])


def test_token_weighted_interval_matches_the_bootstrap():
    rng = np.random.default_rng(0)
    length = rng.integers(5, 100, 300)
    total = length * rng.gamma(4, 0.1, 300) * (1 + length / 100)
    interval = position_scalars(total, length, np.arange(300)).token_weighted
    draws = rng.integers(0, 300, (4000, 300))
    ratios = total[draws].sum(axis=1) / length[draws].sum(axis=1)
    assert interval.high - interval.mean == pytest.approx(1.97 * ratios.std(), rel=0.06)
