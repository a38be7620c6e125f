"""What an evaluation of another size could detect, from the variances of a finished one.

More problems barely help once seeds dominate, and more samples only lessen the noise of sampling:
the plan shows both with the run's own numbers.

Shape letters: S training seeds, M problems.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.contrast import (
    detectable,
    total_variance,
    unseen_variance,
    with_unseen,
)
from softeval.statistics.crossed import Components
from softeval.statistics.passk import Floats

MOST = 1_000_000
"""A plan that needs more of anything than this is no plan."""


@dataclass(frozen=True)
class Spread:
    """Variances of single draws on one side of a comparison, whatever the size of the run.

    Attributes:
        seed: variance over training seeds of the true mean; 0 for a single checkpoint.
        residual: variance of one score given problem and seed means: problem × seed, and sampling.
        sampling: the part of it that comes from sampling answers, at the run's n.
    """

    seed: float
    residual: float
    sampling: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A comparison of some size, and what it detects.

    Attributes:
        problem: variance over problems of the true difference A − B.
        a: spread of A.
        b: spread of B.
        seeds: training seeds of A and of B.
        problems: problems.
        samples: samples a problem, in multiples of the run's n.
        unseen: M² times `unseen_variance`, taken to stay as it is with more problems.
    """

    problem: float
    a: Spread
    b: Spread
    seeds: tuple[int, int]
    problems: int
    samples: float = 1.0
    unseen: float = 0.0

    @property
    def variance(self) -> tuple[Floats, Floats]:
        """Expected variance of the difference of means, and its degrees of freedom.

        The expected value of each part of `guarded_variance` stands in for its estimate. Sampling
        noise falls as 1/n, to first order for k > 1 (Hoeffding 1948 on U statistics).
        """
        v_S, v_R, noise = np.zeros((3, 2))
        for side, (spread, seeds) in enumerate(zip((self.a, self.b), self.seeds, strict=True)):
            left = spread.residual - spread.sampling * (1.0 - 1.0 / self.samples)
            noise[side] = left / (seeds * self.problems)
            if seeds > 1:
                v_S[side], v_R[side] = spread.seed / seeds + noise[side], noise[side]
        by_problem = np.asarray(self.problem / self.problems + noise.sum())
        parts = Components(by_problem, v_S.sum(), v_R.sum())
        found = total_variance(parts, (*v_S, *v_R), self.seeds, self.problems)
        return with_unseen(*found, self.unseen / self.problems**2, self.problems)

    def mde(self, power: float = 0.8, level: float = 0.95) -> float:
        """Difference found with the wanted power, in the unit of the scores; not adjusted (Holm)."""
        return float(detectable(*self.variance, level, power))


@dataclass(frozen=True)
class Needs:
    """What finds a wanted difference, each with all else as it is; None where nothing would.

    Attributes:
        problems: problems.
        samples: samples a problem, in multiples of the run's n.
        seeds: training seeds of each side that has several.
    """

    problems: int | None
    samples: int | None
    seeds: int | None


def plan_from(
    xA_SM: ArrayLike, xB_SM: ArrayLike, samplingA_SM: ArrayLike, samplingB_SM: ArrayLike
) -> Plan:
    """The plan of a finished comparison: its size, and the variances that it shows.

    By the method of moments, floored at 0.

    Args:
        xA_SM: scores of A, one row a training seed.
        xB_SM: scores of B on the same problems.
        samplingA_SM: variance of each score over sampling again, `within_problem_variance`; 0 for
            greedy scores; NaN where it is not known, which counts as none.
        samplingB_SM: the same for B.

    Raises:
        ValueError: fewer than two problems.
    """
    a, b = np.asarray(xA_SM, dtype=float), np.asarray(xB_SM, dtype=float)
    if a.shape[1] < 2:
        raise ValueError("a plan needs at least two problems")
    spreads = [
        _spread(x, float(np.nan_to_num(np.asarray(v, dtype=float)).mean()))
        for x, v in ((a, samplingA_SM), (b, samplingB_SM))
    ]
    d = a.mean(axis=0) - b.mean(axis=0)
    noise = sum(s.residual / len(x) for s, x in zip(spreads, (a, b), strict=True))
    problem = max(float(d.var(ddof=1)) - noise, 0.0)
    unseen = float(unseen_variance(d)) * d.size**2
    return Plan(problem, *spreads, seeds=(len(a), len(b)), problems=d.size, unseen=unseen)


def needs(plan: Plan, difference: float, power: float = 0.8) -> Needs:
    """How much of each a wanted difference needs.

    Args:
        plan: as it is.
        difference: to be found, in the unit of the scores.
        power: how often it is to be found.
    """

    def fewest(least: int, resized: Callable[[int], Plan]) -> int | None:
        return _fewest(least, lambda size: resized(size).mde(power) <= difference)

    several = [seeds > 1 for seeds in plan.seeds]
    return Needs(
        problems=fewest(2, lambda size: replace(plan, problems=size)),
        samples=fewest(1, lambda size: replace(plan, samples=float(size))),
        seeds=fewest(
            2, lambda size: replace(plan, seeds=tuple(size if many else 1 for many in several))
        )
        if any(several)
        else None,
    )


def _fewest(least: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest size that is enough; None where not even `MOST` is."""
    if not enough(MOST):
        return None
    low, high = least - 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _spread(x_SM: Floats, sampling: float) -> Spread:
    seeds, problems = x_SM.shape
    if seeds == 1:  # of a single checkpoint nothing but the sampling can be told apart
        return Spread(0.0, sampling, sampling)
    left = x_SM - x_SM.mean(axis=0) - x_SM.mean(axis=1, keepdims=True) + x_SM.mean()
    residual = float((left**2).sum() / ((seeds - 1) * (problems - 1)))
    seed = max(float(x_SM.mean(axis=1).var(ddof=1)) - residual / problems, 0.0)
    return Spread(seed, residual, min(sampling, residual))
