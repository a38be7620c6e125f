"""pass@k against enumeration, the published estimator, exact expectations and its own laws."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softeval.statistics import TooFewSamples, pass_at_k, se_within, summarise_samples
from softeval.statistics.passk import within_problem_variance


def human_eval(n: int, c: int, k: int) -> float:
    """The formula that openai/human-eval publishes."""
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def binomial(n: int, p: float) -> np.ndarray:
    return np.array([comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])


@pytest.mark.parametrize("n", range(1, 8))
def test_equals_the_share_of_subsets_with_a_correct_answer(n):
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        expected = [
            np.mean([any(chosen) for chosen in combinations(answers, k)]) for k in range(1, n + 1)
        ]
        np.testing.assert_allclose(pass_at_k(n, c, range(1, n + 1)), expected, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 10, 32, 64, 200])
def test_equals_the_published_human_eval_estimator(n):
    ks = [k for k in (1, 2, 3, 8, 10, 32, 64, 100, 200) if k <= n]
    expected = [[human_eval(n, c, k) for k in ks] for c in range(n + 1)]
    np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), ks), expected, atol=1e-11)


counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(counts)
def test_stays_in_range_and_grows_with_k(nc):
    n, c = nc
    curve = pass_at_k(n, c, range(1, n + 1))
    assert ((curve >= 0) & (curve <= 1)).all()
    assert (np.diff(curve) >= -1e-11).all()
    assert curve[0] == pytest.approx(c / n, abs=1e-11)


@given(st.integers(1, 200), st.data())
def test_grows_with_c_and_is_exact_at_both_ends(n, data):
    k = data.draw(st.integers(1, n))
    scores = pass_at_k(n, np.arange(n + 1), k)[:, 0]
    assert (np.diff(scores) >= -1e-11).all()
    assert scores[0] == 0.0
    assert (scores[n - k + 1 :] == 1.0).all()


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.data())
def test_is_unbiased(n, p, data):
    k = data.draw(st.integers(1, n))
    mean = binomial(n, p) @ pass_at_k(n, np.arange(n + 1), k)[:, 0]
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


def test_too_few_samples_is_nan_and_said():
    with pytest.warns(TooFewSamples, match=r"n=2 < k=4.*--num-samples 4"):
        scores = pass_at_k([2, 8], [2, 8], [1, 4])
    np.testing.assert_array_equal(scores, [[1.0, np.nan], [1.0, 1.0]])


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1.5, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"needs|at least|whole"):
        pass_at_k(n, c, [k])


def test_within_variance_has_the_measured_value():
    weights, c = binomial(64, 0.03), np.arange(65)
    scores = pass_at_k(64, c, 32)[:, 0]
    true = weights @ scores**2 - (weights @ scores) ** 2
    assert true == pytest.approx(0.089839, abs=5e-7)
    estimated = weights @ within_problem_variance(64, c, 32)[:, 0]
    assert estimated == pytest.approx(true, rel=1e-9)
    assert np.sqrt(true) == pytest.approx(0.300, abs=5e-4)
    solved = 1 - 0.97**32
    assert np.sqrt(solved * (1 - solved)) == pytest.approx(0.485, abs=5e-4)


@given(st.integers(2, 50), st.floats(0.01, 0.99), st.data())
def test_within_variance_is_unbiased(n, p, data):
    k = data.draw(st.integers(1, n // 2))
    weights, c = binomial(n, p), np.arange(n + 1)
    scores = pass_at_k(n, c, k)[:, 0]
    true = weights @ scores**2 - (weights @ scores) ** 2
    assert weights @ within_problem_variance(n, c, k)[:, 0] == pytest.approx(true, abs=1e-9)


def test_within_variance_needs_twice_k_samples():
    variance = within_problem_variance([63, 64], [1, 1], [32])
    assert np.isnan(variance[0, 0])
    assert variance[1, 0] > 0
    assert np.isnan(se_within([63, 64], [1, 1], 32)[0])


def test_se_within_adds_the_problems():
    variance = within_problem_variance([8, 8, 8], [1, 4, 8], [1, 2, 4])
    expected = np.sqrt(variance.sum(axis=0)) / 3
    np.testing.assert_allclose(se_within([8, 8, 8], [1, 4, 8], [1, 2, 4]), expected)
    p = np.array([1, 4, 8]) / 8  # at k = 1 it is the usual p(1−p)/(n−1)
    assert expected[0] == pytest.approx(np.sqrt((p * (1 - p) / 7).sum()) / 3)


def test_summary_has_one_entry_for_each_k():
    rows = summarise_samples([64, 64, 32], [1, 64, 0], [1, 32, 64, 128])
    assert [row.k for row in rows] == [1, 32, 64, 128]
    assert [row.n for row in rows] == [32, 32, 64, 64]
    assert [row.problems for row in rows] == [3, 3, 2, 0]
    assert rows[1].mean == pytest.approx(np.mean([0.5, 1.0, 0.0]))
    assert np.isnan([rows[3].mean, rows[3].low, rows[3].high]).all()
    assert all(row.low <= row.mean <= row.high for row in rows[:3])


def test_summary_uses_the_level():
    c_M = [0, 1, 8, 8, 2, 0]
    wide, plain = summarise_samples(8, c_M, [1], 0.99)[0], summarise_samples(8, c_M, [1])[0]
    assert wide.high - wide.low > plain.high - plain.low
    assert wide.mean == plain.mean


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no problem"):
        summarise_samples([], [], [1])
