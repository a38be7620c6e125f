"""KL over problems: weighting, floor, seeds."""

import numpy as np
import pytest

from softeval.statistics import (
    crossed_mean,
    mean_interval,
    print_kl,
    sequence_scores,
    summarise_kl,
)


def test_per_token_and_per_sequence_by_hand():
    scores = sequence_scores([4.0, 3.0, 10.0, 0.0], [4, 1, 5, 0], [0, 0, 2, 2], 3)
    np.testing.assert_allclose(scores.per_token, [(1 + 3) / 2, np.nan, 2.0])
    np.testing.assert_allclose(scores.per_sequence, [3.5, np.nan, 5.0])


def test_problem_without_sequences_is_left_out():
    scores = sequence_scores([4.0, 3.0, 10.0], [4, 1, 5], [0, 0, 2], 3)
    summary = summarise_kl(scores)
    assert summary.per_token.mean == pytest.approx(2.0)
    assert summary.per_sequence.mean == pytest.approx(6.75)
    assert summary.per_token.interval.excluded == 1


def random_scores(scale: float, seed: int):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 50, 400)
    return sequence_scores(
        lengths * rng.gamma(4, scale / 4, 400), lengths, np.arange(400) // 4, 100
    )


def test_one_seed_is_student_over_problems():
    scores = random_scores(0.1, 0)
    summary, expected = summarise_kl(scores), mean_interval(scores.per_token)
    assert summary.per_token.interval.low == pytest.approx(expected.low)
    assert summary.per_token.mean == pytest.approx(0.1, abs=0.01)
    assert np.isnan(summary.per_token.sd)


def test_seeds_are_crossed_with_problems():
    seeds = [random_scores(scale, i) for i, scale in enumerate((0.1, 0.2, 0.3))]
    summary = summarise_kl(seeds, level=0.9)
    table = np.stack([seed.per_token for seed in seeds])
    assert summary.per_token == crossed_mean(table, 0.9, bounded=False)
    assert summary.per_token.seed_means == pytest.approx(tuple(table.mean(axis=1)))


def test_values_under_three_floors_are_not_printed():
    assert print_kl(0.0029, 0.001) == "< 3 × floor"
    assert print_kl(0.0030, 0.001) == "0.003"
    assert print_kl(0.14753) == "0.148"
    assert print_kl(0.0) == "0"


def test_each_unit_has_its_own_floor():
    summary = summarise_kl(random_scores(0.1, 0), floor=random_scores(0.05, 1))
    assert summary.token_text == "< 3 × floor"
    assert summary.sequence_text == "< 3 × floor"
    assert summarise_kl(random_scores(0.1, 0), floor=random_scores(0.01, 1)).token_text == (
        f"{summary.per_token.mean:.3g}"
    )
