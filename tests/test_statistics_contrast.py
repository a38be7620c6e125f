"""Comparing two methods: the five-term variance, the exact tests, what each scope claims."""

from itertools import product

import numpy as np
import pytest
from conftest import mostly_slow
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from softeval.statistics import pass_at_k
from softeval.statistics.contrast import (
    SCOPE_A_IS_FIXED,
    SCOPE_B_IS_FIXED,
    SCOPE_CHECKPOINTS,
    SCOPE_SEEDS_AND_PROBLEMS,
    cochran_cox,
    compare_methods,
    contrast_variance,
    guarded_variance,
    unseen_variance,
)
from softeval.statistics.crossed import crossed_mean
from softeval.statistics.equivalence import judge
from softeval.statistics.paired import discordance, mcnemar, sign_flip


def arms(seeds_a: int, seeds_b: int, problems: int, seed: int = 0, gap: float = 0.0):
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.2, 0.7, problems)

    def arm(seeds: int, shift: float) -> np.ndarray:
        noise = rng.normal(0, 0.03, (seeds, 1)) + rng.normal(0, 0.05, (seeds, problems))
        return np.clip(base + shift + noise, 0, 1)

    return arm(seeds_a, gap), arm(seeds_b, 0.0)


def residual(x: np.ndarray) -> float:
    left = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    return (left**2).sum() / ((x.shape[0] - 1) * (x.shape[1] - 1)) / x.size


@given(st.integers(2, 5), st.integers(2, 5), st.integers(2, 40), st.integers(0, 1000))
def test_variance_follows_the_definition(seeds_a, seeds_b, problems, seed):
    a, b = arms(seeds_a, seeds_b, problems, seed)
    first = np.var(a.mean(0) - b.mean(0), ddof=1) / problems
    second, third = np.var(a.mean(1), ddof=1) / seeds_a, np.var(b.mean(1), ddof=1) / seeds_b
    r_a, r_b = residual(a), residual(b)
    expected = max(first + second + third - r_a - r_b, first, second + third)
    spread = first**2 / (problems - 1) + second**2 / (seeds_a - 1) + third**2 / (seeds_b - 1)
    spread += r_a**2 / ((seeds_a - 1) * (problems - 1))
    spread += r_b**2 / ((seeds_b - 1) * (problems - 1))
    variance, df = contrast_variance(a, b)
    assert variance == pytest.approx(expected, rel=1e-9)
    assert df == pytest.approx(max(expected**2 / spread, 1.0), rel=1e-9)


def test_contrast_is_a_t_test_on_that_variance():
    a, b = arms(3, 4, 60, gap=0.05)
    contrast = compare_methods(a, b, bounded=False)
    variance, df = contrast_variance(a, b)
    se = np.sqrt(variance)
    assert contrast.diff == pytest.approx(a.mean() - b.mean())
    assert contrast.p == pytest.approx(2 * stats.t.sf(contrast.diff / se, df))
    half = stats.t.ppf(0.975, df) * se
    assert (contrast.low, contrast.high) == pytest.approx(
        (contrast.diff - half, contrast.diff + half)
    )
    assert contrast.mde == pytest.approx((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * se)
    assert (contrast.seeds_a, contrast.seeds_b, contrast.problems) == (3, 4, 60)


def test_swapping_the_arms_mirrors_everything():
    a, b = arms(3, 3, 40, gap=0.03)
    forth, back = compare_methods(a, b), compare_methods(b, a)
    assert (forth.diff, forth.low, forth.high) == pytest.approx((-back.diff, -back.high, -back.low))
    assert forth.p == pytest.approx(back.p)
    assert forth.discordance.a_only == back.discordance.b_only


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "scope"),
    [
        (3, 3, SCOPE_SEEDS_AND_PROBLEMS),
        (3, 1, SCOPE_B_IS_FIXED),
        (1, 3, SCOPE_A_IS_FIXED),
        (1, 1, SCOPE_CHECKPOINTS),
    ],
)
def test_scope_names_what_is_fixed(seeds_a, seeds_b, scope):
    assert compare_methods(*arms(seeds_a, seeds_b, 20)).scope == scope


def test_single_checkpoint_arm_drops_its_terms():
    a, b = arms(3, 1, 50)
    variance, _ = contrast_variance(a, b)
    first = np.var(a.mean(0) - b[0], ddof=1) / 50
    second = np.var(a.mean(1), ddof=1) / 3
    assert variance == pytest.approx(max(first + second - residual(a), first, second))


def test_two_checkpoints_are_a_paired_comparison():
    a, b = arms(1, 1, 50)
    contrast = compare_methods(a[0], b[0], bounded=False)
    low, high = stats.ttest_1samp(a[0] - b[0], 0).confidence_interval(0.95)
    assert (contrast.low, contrast.high) == pytest.approx((low, high))
    assert contrast.df == pytest.approx(49)
    assert contrast.test.startswith("sign-flip")
    assert contrast.p == sign_flip(a[0] - b[0]).p


def test_greedy_checkpoints_get_the_exact_mcnemar_test():
    a = np.array([1] * 12 + [0] * 3 + [1] * 20 + [0] * 5)
    b = np.array([0] * 12 + [1] * 3 + [1] * 20 + [0] * 5)
    contrast = compare_methods(a, b)
    assert contrast.test == "exact McNemar"
    assert contrast.p == pytest.approx(stats.binomtest(3, 15).pvalue)
    counts = contrast.discordance
    assert (counts.a_only, counts.b_only, counts.both, counts.neither) == (12, 3, 20, 5)
    assert counts.problems == 40


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(b, c):
    expected = stats.binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected)
    assert mcnemar(b, c) == mcnemar(c, b)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_small_sign_flip_equals_enumeration(values):
    d = np.array(values) / 7
    sums = [abs(np.dot(signs, d)) for signs in product([1, -1], repeat=d.size)]
    expected = np.mean([total >= abs(d.sum()) - 1e-12 for total in sums])
    result = sign_flip(d)
    assert result.exact
    assert result.p == pytest.approx(expected)


def test_large_sign_flip_is_seeded_and_close_to_the_t_test():
    d = np.random.default_rng(0).normal(0.05, 0.3, 200)
    first, again, other = sign_flip(d, seed=1), sign_flip(d, seed=1), sign_flip(d, seed=2)
    assert first == again
    assert first.p != other.p
    assert not first.exact
    assert first.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)


def test_monte_carlo_agrees_with_enumeration():
    d = np.random.default_rng(3).normal(0.1, 0.3, 16)
    exact = sign_flip(d)
    padded = np.concatenate([d, np.full(4, 1e-13)])  # more than can be enumerated
    drawn = sign_flip(padded, draws=40_000)
    assert exact.exact
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=0.01)


def test_monte_carlo_p_is_never_zero():
    assert sign_flip(np.full(100, 0.3), draws=999).p == pytest.approx(1 / 1000)


def test_sign_flip_of_ties_says_nothing():
    assert sign_flip(np.zeros(10)).p == 1.0


def test_discordance_counts_graded_scores():
    counts = discordance([0.5, 0.2, 0.7, 0.0], [0.2, 0.5, 0.7, 0.0])
    assert (counts.a_only, counts.b_only, counts.both, counts.neither) == (1, 1, 1, 1)


@pytest.mark.parametrize("problems", range(2, 9))
def test_the_same_difference_everywhere_is_sure_where_all_its_signs_are(problems: int):
    """Two questions that only one side solves say nothing yet: the sign test wants six."""
    found = compare_methods(np.ones(problems), np.zeros(problems))
    assert (found.low > 0) == (2.0 ** (1 - problems) <= 0.05)


def test_identical_answers_leave_room_for_a_rare_difference():
    x = np.random.default_rng(0).integers(0, 2, (1, 100))
    contrast = compare_methods(x, x)
    assert contrast.p == 1.0
    assert contrast.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert contrast.low == -contrast.high
    assert contrast.at_level(0.9)[1] == pytest.approx(1 - 0.05 ** (1 / 100))


@pytest.mark.parametrize("last", [1.0, 0.5])
def test_an_interval_holds_its_estimate_where_gaps_are_reversed(last: float):
    """Gaps between two modes lie in [−1, 1], so that two of them differ by up to 2."""
    contrast = compare_methods([[-1.0] * 30], [[1.0] * 29 + [last]])
    assert contrast.low <= contrast.diff <= contrast.high


def test_means_that_differ_by_rounding_are_the_same():
    """Three seeds at 0.1 have the mean 0.1 + 1.4e-17; summed in another order, other last bits."""
    contrast = compare_methods(np.full((3, 40), 0.1), np.full((1, 40), 0.1))
    assert contrast.diff == 0.0 and contrast.p == 1.0 and np.isnan(contrast.mde)
    scores = np.random.default_rng(0).integers(0, 11, size=(3, 400)) / 10
    counts = compare_methods(scores, scores[::-1]).discordance
    assert counts.a_only == counts.b_only == 0


def test_missing_scores_leave_both_arms():
    a, b = arms(3, 3, 20)
    a[0, 3], b[2, 5] = np.nan, np.nan
    contrast = compare_methods(a, b)
    assert (contrast.problems, contrast.excluded) == (18, 2)


def test_different_problems_are_refused():
    with pytest.raises(ValueError, match="10 and 11 problems"):
        compare_methods(np.zeros((2, 10)), np.zeros((2, 11)))
    with pytest.raises(ValueError, match="no problem"):
        compare_methods([np.nan], [0.0])


def test_nll_difference_is_not_confined_to_proportions():
    rng = np.random.default_rng(0)
    base = rng.gamma(2, 2, 80)
    contrast = compare_methods(base + 3 + rng.normal(0, 0.1, (3, 80)), base, bounded=False)
    assert contrast.diff == pytest.approx(3, abs=0.1)
    assert contrast.low > 2
    assert contrast.scope == SCOPE_B_IS_FIXED


def lost_questions(rng, reps: int, problems: int, share: float, seeds: int = 1):
    """pass@32 of 64 samples; of B's questions A never solves a share: (a, b), (reps, S, M)."""
    table = pass_at_k(64, np.arange(65), 32)[:, 0]
    p = rng.beta(2, 1, (reps, 1, problems))
    q = np.where(rng.random(p.shape) < share, 0.0, p)
    shape = (reps, seeds, problems)
    a, b = (table[rng.binomial(64, np.broadcast_to(rate, shape))] for rate in (q, p))
    return a, b


def covers_and_equivalent(a, b, truth: float):
    contrasts = [compare_methods(x, y) for x, y in zip(a, b, strict=True)]
    covered = np.mean([c.low <= truth <= c.high for c in contrasts])
    return covered, np.mean([judge(c).word == "equivalent" for c in contrasts])


@pytest.mark.parametrize(
    ("problems", "share"), mostly_slow([(30, 0.03), (200, 0.03), (200, 0.01)], [(30, 0.03)])
)
def test_questions_that_one_side_loses_whole_are_covered_and_never_called_equivalent(
    problems, share
):
    a, b = lost_questions(np.random.default_rng(0), 250, problems, share, seeds=3)
    truth = -share * (1 - 2 / (33 * 34))  # 1 - E[(1-p)^32] of beta(2, 1)
    covered, equivalent = covers_and_equivalent(a, b, truth)
    assert covered >= 0.92
    assert truth > -0.02 or equivalent <= 0.05


@pytest.mark.parametrize("lost", [10, 25, 50])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_end_of_a_rare_loss_is_that_of_a_rare_event(lost, level):
    """Clopper and Pearson's limit for `lost` of 3,000 questions; plain t ends are 5 to 10 % short."""
    d = -(np.arange(3000) < lost).astype(float)
    contrast = compare_methods(1 + d, np.ones(3000))
    exact = stats.beta.ppf(0.5 + level / 2, lost + 1, 3000 - lost)
    low, high = contrast.at_level(level)
    assert -low == pytest.approx(exact, rel=0.03)
    half = stats.t.ppf(0.5 + level / 2, contrast.df) * contrast.se
    assert high == pytest.approx(contrast.diff + half)
    assert low < contrast.diff - half
    gained = compare_methods(np.ones(3000), 1 + d)
    assert gained.at_level(level) == pytest.approx((-high, -low))


@pytest.mark.parametrize("lost", [6, 8, 12, 40])
@pytest.mark.parametrize("seeds", [2, 3])
def test_p_is_below_5_percent_just_where_the_interval_excludes_0(lost, seeds):
    """Also where the end that looks at 0 follows skewness."""
    d = (np.arange(300) < lost).astype(float)
    noise = np.random.default_rng(lost).normal(0, 0.01, (seeds, 300))
    for gain in (d, -d, 0.1 - d, d - 0.05):
        a = 0.5 + gain / 3 + noise
        contrast = compare_methods(a, np.full((seeds, 300), 0.5))
        for level in (0.5, 0.9, 0.95, 0.99):
            low, high = contrast.at_level(level)
            assert (low > 0 or high < 0) == (contrast.p < 1 - level)


def test_differences_that_lean_to_no_side_have_no_longer_end():
    d = np.repeat([-0.2, 0.0, 0.2], 40)
    contrast = compare_methods(0.5 + d, np.full(120, 0.5))
    half = stats.t.ppf(0.975, contrast.df) * contrast.se
    assert (contrast.low, contrast.high) == pytest.approx((-half, half))


@pytest.mark.slow
@pytest.mark.parametrize("problems", [200, 500])
def test_a_loss_just_past_the_margin_is_rarely_called_equivalent(problems):
    """The t interval alone says so in 6 to 8 % of samples of 500 questions."""
    a, b = lost_questions(np.random.default_rng(1), 400, problems, 0.0205, seeds=3)
    assert covers_and_equivalent(a, b, -0.0205)[1] <= 0.05


def test_guard_counts_whole_questions_that_differ():
    """e questions lost whole: K = E = e (nearly), and three imaginary ones fade to none at 20."""
    for events in (0, 1, 5, 10, 25):
        d = -(np.arange(100_000) < events).astype(float)
        weight = unseen_variance(d) * d.size**2
        assert weight == pytest.approx(3 * max(0, 1 - min(events / 2, events / 20)), abs=0.01)


def test_guard_leaves_alone_where_many_questions_differ_clearly():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 1, (1, 1319))
    a, b = rng.binomial(32, p) / 32, rng.binomial(32, p) / 32
    assert unseen_variance((a - b)[0]) == 0.0
    assert guarded_variance(a, b) == contrast_variance(a, b)
    few = unseen_variance((a - b)[0, :30])
    assert few > 0.0


def test_thirty_questions_that_hardly_differ_are_no_interval_of_width_zero():
    a = np.full((3, 30), 1.0)
    a[0, 0] = 1 - 1e-6
    contrast = compare_methods(a, np.ones((3, 30)))
    assert contrast.high - contrast.low > 0.15
    assert judge(contrast).word == "inconclusive"


def test_a_word_is_never_beside_an_interval_that_contradicts_it():
    """Small gains on all of 30 questions: the exact test is sure of them, the mean is not."""
    b = np.random.default_rng(0).uniform(0.3, 0.6, 30)
    contrast = compare_methods(b + np.random.default_rng(1).uniform(0.01, 0.03, 30), b)
    assert contrast.p < 0.001 and contrast.low < 0 < contrast.high
    assert judge(contrast).word == "inconclusive"


def test_modes_of_the_same_checkpoints_are_compared_seed_by_seed():
    """+3 points in each of three checkpoints whose own level moves by 7."""
    rng = np.random.default_rng(3)
    logit = rng.normal(0, 1.6, 500) + np.array([[-0.45], [0.0], [0.45]])
    a, b = (rng.binomial(32, expit(logit + shift)) / 32 for shift in (0.2, 0.0))
    apart, together = compare_methods(a, b), compare_methods(a, b, paired=True)
    assert apart.p > 0.3 and together.p < 0.001
    assert together.diff == apart.diff and together.se < apart.se / 5
    assert (together.test, together.scope) == (
        "crossed t, paired by seed",
        SCOPE_SEEDS_AND_PROBLEMS,
    )
    cell = crossed_mean(a - b, bounded=False).interval
    assert (together.low, together.high) == pytest.approx((cell.low, cell.high), rel=5e-3)  # guard
    swapped = compare_methods(b, a, paired=True)
    assert (swapped.low, swapped.high) == pytest.approx((-together.high, -together.low))
    with pytest.raises(ValueError, match="3 and 2 checkpoints cannot be paired"):
        compare_methods(a, b[:2], paired=True)


def test_one_checkpoint_under_two_modes_keeps_its_exact_test():
    a, b = arms(1, 1, 50)
    assert compare_methods(a, b, paired=True) == compare_methods(a, b)


def test_seeds_against_one_checkpoint_take_the_weighted_quantile():
    """Cochran and Cox: Student's quantile is the mean of both, weighted by their variances."""
    a, b = arms(3, 1, 200, seed=2)
    variance, df = contrast_variance(a, b)
    share = np.var(a.mean(1), ddof=1) / 3 / variance
    wanted = share * stats.t.ppf(0.975, 2) + (1 - share) * stats.t.ppf(0.975, 199)
    assert stats.t.ppf(0.975, df) == pytest.approx(wanted, rel=1e-3)
    assert contrast_variance(b, a)[1] == df
    assert cochran_cox([0.0, 1.0], 2, 199) == pytest.approx([199, 2])
