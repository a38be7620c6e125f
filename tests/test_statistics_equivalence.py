"""Equivalence, multiplicity and the four words."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.equivalence import (
    holm,
    judge,
    judge_family,
    not_distinguishable_from_best,
    tost,
)


def contrast(diff: float, se: float, df: float = 50.0) -> Contrast:
    template = compare_methods([[0.1, 0.3], [0.2, 0.3]], [[0.2, 0.2], [0.1, 0.4]])
    p = float(2 * stats.t.sf(abs(diff) / se, df))
    return replace(template, diff=diff, se=se, df=df, p=p, skew=0.0)


def test_tost_is_the_ninety_percent_interval_inside_the_margin():
    result = tost(contrast(0.005, 0.008))
    half = stats.t.ppf(0.95, 50) * 0.008
    assert (result.low, result.high) == pytest.approx((0.005 - half, 0.005 + half))
    assert result.equivalent == (result.high < 0.02)


@given(st.floats(-0.06, 0.06), st.floats(0.001, 0.03), st.floats(2, 300))
def test_tost_is_two_one_sided_tests(diff, se, df):
    p = max(stats.t.sf((0.02 + side * diff) / se, df) for side in (-1, 1))
    if abs(p - 0.05) > 1e-6:
        assert tost(contrast(diff, se, df)).equivalent == (p < 0.05)


def test_margin_decides():
    one = contrast(0.01, 0.008)
    assert not tost(one, 0.02).equivalent
    assert tost(one, 0.03).equivalent
    with pytest.raises(ValueError, match="positive"):
        tost(one, 0.0)


def test_identical_answers_on_few_problems_are_not_equivalence():
    def same(problems: int) -> Contrast:
        return compare_methods(np.ones(problems), np.ones(problems))

    assert judge(same(100)).word == "inconclusive"
    assert judge(same(149)).word == "equivalent"


def holm_by_hand(p: list[float]) -> list[float]:
    ordered, adjusted, running = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, index in enumerate(ordered):
        running = max(running, (len(p) - rank) * p[index])
        adjusted[index] = min(running, 1.0)
    return adjusted


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_steps_down(p):
    adjusted = holm(p)
    np.testing.assert_allclose(adjusted, holm_by_hand(p))
    assert (adjusted >= np.asarray(p)).all()


def test_holm_known_example_and_missing_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])


@pytest.mark.parametrize(
    ("diff", "se", "word"),
    [
        (0.05, 0.01, "better"),
        (-0.05, 0.01, "worse"),
        (0.0, 0.005, "equivalent"),
        (0.01, 0.02, "inconclusive"),
    ],
)
def test_four_words(diff, se, word):
    assert judge(contrast(diff, se)).word == word


def test_small_sure_difference_is_better_and_within_the_margin():
    verdict = judge(contrast(0.005, 0.001))
    assert verdict.word == "better"
    assert verdict.within_margin


def test_lower_is_better_turns_the_words():
    assert judge(contrast(-0.05, 0.01), lower_is_better=True).word == "better"
    assert judge(contrast(0.05, 0.01), lower_is_better=True).word == "worse"


def test_family_is_judged_on_adjusted_p():
    borderline = contrast(0.05, 0.0225)
    assert judge(borderline).word == "better"
    verdicts = judge_family([borderline, contrast(0.001, 0.03), contrast(0.002, 0.03)])
    assert verdicts[0].word == "inconclusive"
    assert verdicts[0].p == pytest.approx(3 * borderline.p)


def test_marks_every_cell_that_could_be_the_best():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.7, 300)
    cells = [base + shift + rng.normal(0, 0.05, 300) for shift in (0.0, 0.2, 0.199)]
    mask = not_distinguishable_from_best(cells)
    assert mask.tolist() == [False, True, True]
    assert not_distinguishable_from_best(cells[:1]).tolist() == [True]
