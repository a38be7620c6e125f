"""What an evaluation of a given size could detect, from the variances of a finished one.

More problems barely help once seeds dominate: the plan shows it with the run's own numbers.

Shape letters: S training seeds, M problems.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.contrast import detectable
from softeval.statistics.crossed import satterthwaite
from softeval.statistics.passk import Floats


@dataclass(frozen=True)
class Spread:
    """Variances of single draws, free of the size of the run they were estimated from.

    Attributes:
        problem: variance over problems of the true difference A − B (problem × method).
        seed_a: variance over training seeds of A's true mean.
        seed_b: the same for B.
        residual_a: variance of one score of A given problem and seed means (problem × seed and
            answer sampling).
        residual_b: the same for B.
    """

    problem: float
    seed_a: float
    seed_b: float
    residual_a: float
    residual_b: float


@dataclass(frozen=True)
class Plan:
    """Minimum detectable effect of a comparison with ``seeds`` in each arm.

    Attributes:
        seeds: training seeds of each arm.
        problems: problems.
        se: expected standard error of the difference.
        df: Satterthwaite degrees of freedom.
        mde: difference found with the wanted power, in the unit of the scores.
    """

    seeds: int
    problems: int
    se: float
    df: float
    mde: float


def spread_of(xA_SM: ArrayLike, xB_SM: ArrayLike) -> Spread:
    """Estimate the variances from a finished run (method of moments, floored at 0).

    Raises:
        ValueError: an arm has fewer than two seeds, or there are fewer than two problems.
    """
    a, b = np.asarray(xA_SM, dtype=float), np.asarray(xB_SM, dtype=float)
    if min(a.shape[0], b.shape[0], a.shape[-1]) < 2 or a.ndim != 2 or b.ndim != 2:
        raise ValueError("planning needs at least two seeds in each arm and two problems")
    residual_a, residual_b = _residual(a), _residual(b)
    d = a.mean(axis=0) - b.mean(axis=0)
    shared = residual_a / a.shape[0] + residual_b / b.shape[0]
    return Spread(
        problem=max(float(d.var(ddof=1)) - shared, 0.0),
        seed_a=_seed(a, residual_a),
        seed_b=_seed(b, residual_b),
        residual_a=residual_a,
        residual_b=residual_b,
    )


def plan_comparison(
    spread: Spread, seeds: int, problems: int, level: float = 0.95, power: float = 0.8
) -> Plan:
    """Minimum detectable effect with ``seeds`` training seeds per arm and ``problems`` problems.

    The expected value of each of the five terms of `contrast_variance` stands in for its
    estimate.

    Raises:
        ValueError: fewer than two seeds or problems.
    """
    if seeds < 2 or problems < 2:
        raise ValueError("a plan needs at least two seeds per arm and two problems")
    v_residual = np.array([spread.residual_a, spread.residual_b]) / (seeds * problems)
    v_seed = np.array([spread.seed_a, spread.seed_b]) / seeds + v_residual
    paired = spread.problem / problems + v_residual.sum()
    total = paired + v_seed.sum() - v_residual.sum()
    terms = (np.asarray(paired), v_seed[0], v_seed[1], v_residual[0], v_residual[1])
    free, wide = seeds - 1, problems - 1
    freedoms = (wide, free, free, free * wide, free * wide)
    df = float(satterthwaite(total, terms, freedoms, wide))
    effect = float(detectable(total, df, level, power))
    return Plan(seeds, problems, float(total) ** 0.5, df, effect)


def _residual(x_SM: Floats) -> float:
    """MS_R: mean square of what problem and seed means leave over."""
    left = x_SM - x_SM.mean(axis=0) - x_SM.mean(axis=1, keepdims=True) + x_SM.mean()
    return float((left**2).sum() / ((x_SM.shape[0] - 1) * (x_SM.shape[1] - 1)))


def _seed(x_SM: Floats, residual: float) -> float:
    return max(float(x_SM.mean(axis=1).var(ddof=1)) - residual / x_SM.shape[1], 0.0)
