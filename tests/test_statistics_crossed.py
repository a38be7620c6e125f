"""Problems × seeds: the formulas typed in again, limits, and the notes' constants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from softeval.statistics import problem_interval
from softeval.statistics.crossed import crossed_mean, crossed_variance, variance_components


def table(seeds: int, problems: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, 0.1, (seeds, 1))
    return np.clip(rng.beta(1, 1, problems) + shift + rng.normal(0, 0.1, (seeds, problems)), 0, 1)


def longhand(x: np.ndarray) -> tuple[float, float]:
    """V and ν of the notes, with loops."""
    seeds, problems = x.shape
    mean = x.mean()
    mean_square = 0.0
    for s in range(seeds):
        for i in range(problems):
            mean_square += (x[s, i] - x[:, i].mean() - x[s].mean() + mean) ** 2
    mean_square /= (seeds - 1) * (problems - 1)
    v_p = np.var(x.mean(0), ddof=1) / problems
    v_s = np.var(x.mean(1), ddof=1) / seeds
    v_r = mean_square / (seeds * problems)
    v = max(v_p + v_s - v_r, v_p, v_s)
    parts = v_p**2 / (problems - 1) + v_s**2 / (seeds - 1)
    return v, max(v**2 / (parts + v_r**2 / ((seeds - 1) * (problems - 1))), 1.0)


@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 1000))
def test_variance_and_df_follow_the_definition(seeds, problems, seed):
    x = table(seeds, problems, seed)
    variance, df = crossed_variance(x)
    expected = longhand(x)
    assert (variance, df) == pytest.approx(expected, rel=1e-9)


def test_leading_axes_are_independent_tables():
    x = np.stack([table(3, 20, seed) for seed in range(4)])
    variance, df = crossed_variance(x)
    each = [crossed_variance(one) for one in x]
    np.testing.assert_allclose(variance, [v for v, _ in each])
    np.testing.assert_allclose(df, [f for _, f in each])


def test_one_seed_is_the_interval_over_problems():
    x = table(1, 40)
    cell, plain = crossed_mean(x), problem_interval(x[0])
    assert (cell.interval.low, cell.interval.high) == pytest.approx((plain.low, plain.high))
    assert cell.interval.df == pytest.approx(39)
    assert np.isnan(cell.sd)
    parts = variance_components(x)
    assert (parts.seed, parts.residual) == (0.0, 0.0)


def test_identical_seeds_add_nothing():
    x = np.repeat(table(1, 40), 3, axis=0)
    cell, plain = crossed_mean(x), problem_interval(x[0])
    assert cell.sd == pytest.approx(0.0, abs=1e-15)
    assert cell.se**2 == pytest.approx(x[0].var(ddof=1) / 40)
    assert cell.interval.low == pytest.approx(plain.low)


def test_cell_reports_each_seed():
    x = table(3, 25)
    cell = crossed_mean(x)
    assert cell.seed_means == pytest.approx(tuple(x.mean(axis=1)))
    assert cell.sd == pytest.approx(np.std(x.mean(axis=1), ddof=1))
    assert cell.mean == pytest.approx(x.mean())


def test_seed_noise_widens_the_interval():
    rng = np.random.default_rng(0)
    base = rng.beta(2, 2, 500) * 0.5 + 0.25
    calm = base + np.array([[0.0], [0.001], [-0.001]])
    noisy = base + np.array([[0.0], [0.05], [-0.05]])
    width = [np.ptp([c.interval.low, c.interval.high]) for c in map(crossed_mean, (calm, noisy))]
    assert width[1] > 3 * width[0]


def test_ceiling_keeps_a_width_and_stays_in_range():
    cell = crossed_mean(np.ones((3, 200)))
    assert cell.interval.high == 1.0
    assert 0.97 < cell.interval.low < 0.99
    assert cell.interval.n_eff == 200


def test_unbounded_scores_use_a_symmetric_interval():
    x = table(3, 30) * 5
    cell = crossed_mean(x, 0.9, bounded=False)
    variance, df = crossed_variance(x)
    half = stats.t.ppf(0.95, df) * np.sqrt(variance)
    assert cell.interval.low == pytest.approx(x.mean() - half)
    assert cell.interval.high == pytest.approx(x.mean() + half)
    with pytest.raises(ValueError, match="bounded=False"):
        crossed_mean(x)


def test_problem_missing_for_one_seed_leaves_for_all():
    x = table(3, 10)
    x[1, 4] = np.nan
    cell = crossed_mean(x)
    assert (cell.interval.m, cell.interval.excluded) == (9, 1)
    assert cell.mean == pytest.approx(np.delete(x, 4, axis=1).mean())


@pytest.mark.parametrize("x", [np.full((2, 3), np.nan), np.zeros((2, 2, 2))])
def test_unusable_tables_are_refused(x):
    with pytest.raises(ValueError, match="problem"):
        crossed_mean(x)
