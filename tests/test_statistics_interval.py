"""Wilson with effective size: against scipy, by hand, at the ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from softeval.statistics import mean_interval, problem_interval
from softeval.statistics.interval import guarded_error, t_quantile, two_sided_p, wilson_interval


def by_the_letter(x: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """The formula of the notes, typed in again."""
    mean, size = x.mean(), x.size
    se2 = x.var(ddof=1) / size
    n_eff = size if se2 == 0 else mean * (1 - mean) / se2
    q = stats.t.ppf(0.5 + level / 2, size - 1)
    centre = (mean + q**2 / (2 * n_eff)) / (1 + q**2 / n_eff)
    half = q * np.sqrt(mean * (1 - mean) / n_eff + q**2 / (4 * n_eff**2)) / (1 + q**2 / n_eff)
    return centre - half, centre + half, n_eff


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_follows_the_definition(level):
    x = np.random.default_rng(0).beta(0.6, 0.9, 200)
    low, high, n_eff = by_the_letter(x, level)
    interval = problem_interval(x, level)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-10)
    assert interval.n_eff == pytest.approx(n_eff)
    assert (interval.m, interval.df, interval.level) == (200, 199, level)


def test_is_the_classical_wilson_interval_for_infinite_df():
    expected = stats.binomtest(37, 120).proportion_ci(0.95, method="wilson")
    p = 37 / 120
    interval = wilson_interval(p, p * (1 - p) / 120, 120, np.inf)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_variation_falls_back_on_the_number_of_problems(value):
    interval = problem_interval(np.full(50, value))
    assert interval.n_eff == 50
    q2 = stats.t.ppf(0.975, 49) ** 2
    far = 1 / (1 + q2 / 50)
    assert (interval.low, interval.high) == pytest.approx(
        (far, 1.0) if value else (0.0, 1 - far), abs=1e-12
    )


@given(arrays(float, st.integers(2, 40), elements=st.floats(0, 1)))
def test_contains_the_mean_and_stays_in_range(x):
    interval = problem_interval(x)
    assert 0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1


@given(arrays(float, st.integers(2, 40), elements=st.sampled_from([0.0, 1.0])))
def test_mirrors_when_right_and_wrong_are_swapped(x):
    a, b = problem_interval(x), problem_interval(1 - x)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low), abs=1e-9)


def test_guard_widens_only_graded_scores_near_an_end():
    graded = np.array([1.0] * 197 + [0.88, 0.75, 0.94])
    low, _, n_eff = by_the_letter(graded)
    guarded = problem_interval(graded)
    assert n_eff > 1000
    assert guarded.n_eff < 300
    assert guarded.low < low - 0.005
    binary = np.array([1.0] * 198 + [0.0, 0.0])
    assert problem_interval(binary).low == pytest.approx(by_the_letter(binary)[0], abs=1e-12)
    middle = np.array([0.9] * 100 + [1.0] * 100)
    assert problem_interval(middle).low == pytest.approx(by_the_letter(middle)[0], abs=1e-12)


@given(st.floats(0.001, 0.999), st.floats(1e-7, 0.1), st.integers(2, 2000))
def test_guard_never_narrows_and_never_goes_below_m(mean, se2, m):
    guarded = guarded_error(mean, se2, m)
    assert guarded >= se2
    assert guarded <= max(se2, mean * (1 - mean) / m) * (1 + 1e-12)
    if m * min(mean, 1 - mean) >= 5:
        assert guarded == se2


def test_missing_scores_are_left_out_and_counted():
    x = np.array([0.2, np.nan, 0.8, 0.4])
    interval = problem_interval(x)
    assert (interval.m, interval.excluded) == (3, 1)
    assert interval.mean == pytest.approx(np.mean([0.2, 0.8, 0.4]))


def test_one_problem_has_no_interval():
    interval = problem_interval([0.5])
    assert interval.mean == 0.5
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize("x", [[], [np.nan], [1.2, 0.1]])
def test_unusable_scores_are_refused(x):
    with pytest.raises(ValueError, match="score"):
        problem_interval(x)


def test_unbounded_means_use_student():
    x = np.array([1.0, 4.0, 2.5, 9.0])
    low, high = stats.t.interval(0.9, 3, x.mean(), x.std(ddof=1) / 2)
    interval = mean_interval([*x, np.nan], 0.9)
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert interval.excluded == 1


@given(st.floats(0.001, 0.999), st.floats(1, 1e5))
def test_quantiles_agree_with_scipy_stats(p, df):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-6, abs=1e-9)
    assert two_sided_p(2.1, df) == pytest.approx(2 * stats.t.sf(2.1, df), rel=1e-6)


def test_few_failures_do_not_exclude_a_truth_that_often_shows_one():
    """Success 0.995, 30 questions: one failure is seen in 13 % of samples."""
    x = np.ones(30)
    x[0] = 0.0
    assert problem_interval(x).high > 0.998
    assert problem_interval(1.0 - x).low == pytest.approx(1.0 - problem_interval(x).high)
    assert problem_interval(np.ones(30)).high == 1.0


@pytest.mark.parametrize("problems", [30, 200])
@pytest.mark.parametrize("truth", [0.97, 0.99, 0.995])
def test_interval_of_right_or_wrong_covers_near_the_ceiling(problems, truth):
    """Every possible count, weighted by its binomial probability: no simulation."""
    right = np.arange(problems + 1)
    bounds = [problem_interval(np.arange(problems) < count) for count in right]
    holds = np.array([one.low <= truth <= one.high for one in bounds])
    assert holds @ stats.binom.pmf(right, problems, truth) >= 0.93
