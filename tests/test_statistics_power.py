"""Plans: the same variance as a comparison of that size; what more of anything would detect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from softeval.statistics import pass_at_k
from softeval.statistics.contrast import compare_methods
from softeval.statistics.passk import within_problem_variance
from softeval.statistics.power import Plan, Spread, needs, plan_from

POINTS = {30: (9.8, 8.3, 7.3), 500: (5.5, 3.7, 2.7), 1319: (5.1, 3.6, 2.4)}
"""Minimum detectable effects in points, simulated: seed SD 1.8 points, S = 3, 5, 10."""

DOMINATED = Plan(0.01, Spread(0.03**2, 0.01), Spread(0.03**2, 0.01), (3, 3), 500)


def tables(seeds_a: int, seeds_b: int, problems: int = 300):
    rng = np.random.default_rng(5)
    level = rng.beta(2, 2, problems)
    return [
        np.clip(
            level + rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, 0.1, (seeds, problems)), 0, 1
        )
        for seeds in (seeds_a, seeds_b)
    ]


@pytest.mark.parametrize("problems", POINTS)
def test_planning_table(problems):
    spread = Spread(0.018**2, 0.0157)
    found = [100 * Plan(0.016, spread, spread, (s, s), problems).mde() for s in (3, 5, 10)]
    np.testing.assert_allclose(found, POINTS[problems], rtol=0.1)


@pytest.mark.parametrize("seeds", [(4, 4), (1, 1), (3, 1)])
def test_a_plan_of_the_size_of_the_run_detects_what_the_run_detects(seeds):
    a, b = tables(*seeds)
    plan = plan_from(a, b, np.full_like(a, 0.001), np.full_like(b, 0.001))
    contrast = compare_methods(a, b)
    assert plan.mde() == pytest.approx(contrast.mde, rel=1e-6)


def test_questions_not_met_weigh_on_a_plan_as_on_a_comparison():
    a = np.ones((1, 100))
    b = a.copy()
    b[0, :3] = 0.0
    none = np.zeros_like(a)
    plan = plan_from(a, b, none, none)
    assert plan.unseen > 0
    assert plan.mde() == pytest.approx(compare_methods(a, b).mde, rel=1e-6)


def test_more_problems_barely_help_once_seeds_dominate():
    assert replace(DOMINATED, problems=50_000).mde() > 0.9 * DOMINATED.mde()
    assert replace(DOMINATED, seeds=(10, 10)).mde() < 0.5 * DOMINATED.mde()
    found = needs(DOMINATED, 0.05)
    assert found.problems is None and found.samples is None and found.seeds is not None


def test_what_is_needed_is_the_least_that_is_enough():
    found = needs(DOMINATED, 0.05, power=0.9)
    assert found.seeds is not None
    for seeds, enough in ((found.seeds, True), (found.seeds - 1, False)):
        assert (replace(DOMINATED, seeds=(seeds, seeds)).mde(power=0.9) <= 0.05) == enough


def test_samples_lessen_the_noise_of_sampling_as_1_over_n():
    """Two checkpoints that are equally good on each question: sampling is all there is."""
    rng = np.random.default_rng(0)
    p = rng.beta(1, 1, 4000)
    c = rng.binomial(8, p, (2, 4000))
    a, b = (pass_at_k(8, row, 1).T for row in c)
    noise = [within_problem_variance(8, row, 1).T for row in c]
    plan = plan_from(a, b, *noise)
    expected = np.mean(2 * p * (1 - p) / 8) / 4000
    assert plan.variance[0] == pytest.approx(expected, rel=0.05)
    more = replace(plan, samples=4.0)
    assert more.variance[0] == pytest.approx(expected / 4, rel=0.3)
    assert needs(plan, plan.mde() / 1.5).samples in (2, 3, 4)


def test_greedy_scores_gain_nothing_from_samples():
    a, b = np.random.default_rng(1).integers(0, 2, (2, 1, 200))
    plan = plan_from(a, b, np.zeros_like(a), np.zeros_like(b))
    assert replace(plan, samples=100.0).mde() == plan.mde()


def test_one_problem_is_no_plan():
    with pytest.raises(ValueError, match="two problems"):
        plan_from([[0.5]], [[0.5]], [[0.0]], [[0.0]])
