"""Entropy (or KL) by position: E[H_t | T ≥ t], with the risk set that makes it readable.

The expectation is over a problem, then a chain of thought of it, given that the chain is still
running at t. So a problem counts by its share of chains at risk, and the same model gives the same
profile from 1, 8 or 64 samples a problem; a mean of the problems' own means would give a problem
with 1 of 64 chains left the weight of one with 64.

The set of sequences still running changes with t, so a rising curve may only say that long chains
of thought are uncertain ones. Every profile therefore carries its at-risk counts, and the fixed
cohort stands beside it.

Shape letters: S training seeds, P problems, T positions or bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softeval.statistics.interval import t_quantile
from softeval.statistics.passk import Floats, Integers
from softeval.statistics.positions import PositionSums

MIN_SHARE = 0.10
"""Positions reached by fewer sequences than this share are greyed out."""

MIN_PROBLEMS = 30
"""Positions at which fewer problems are at risk are greyed out, counted by their shares: a problem
with 1 of 64 chains left is not one more (effective number, Kish 1965)."""


POINTS = 64
"""Points of a profile, at most: positions are put together in bins of 1, 2, 4, 8, … of them."""


@dataclass(frozen=True)
class Profile:
    """A mean by position with its interval and its risk set.

    Attributes:
        start: first position of each bin (bin number for relative progress), shape (T,).
        mean: mean over the chains at risk of a random problem (and seed), see `position_profile`;
            NaN where none is at risk.
        low: lower end of the interval over problems; NaN where fewer than two are at risk.
        high: upper end.
        lines: the same mean for each training seed, shape (S, T).
        at_risk: share of sequences that reach the position.
        problems: number of problems at risk.
        grey: positions to grey out: `MIN_SHARE` or `MIN_PROBLEMS` not reached.
        level: nominal pointwise coverage; the interval speaks of new problems, not new seeds.
    """

    start: Integers
    mean: Floats
    low: Floats
    high: Floats
    lines: Floats
    at_risk: Floats
    problems: Integers
    grey: NDArray[np.bool_]
    level: float


def position_profile(sums: PositionSums | Sequence[PositionSums], level: float = 0.95) -> Profile:
    """Profile of one cell: Σ_p y_p / Σ_p x_p over problems.

    x_p is the share of the problem's chains at risk and y_p their summed values over the number of
    its chains, both averaged over the seeds that asked the problem: a ratio estimator of
    E[H_t | T ≥ t].

    Args:
        sums: one `PositionSums` for each training seed, same problems and layout.
        level: nominal pointwise coverage of the interval over problems, for these checkpoints.

    The interval is one of t on the log scale (the values are not negative).

    Source: ratio estimator and delete-one jackknife, Cochran 1977, chapter 6.
    """
    arms = [sums] if isinstance(sums, PositionSums) else list(sums)
    parts = [arm.shares for arm in arms]
    asked_P1 = np.maximum(sum((arm.samples_P > 0).astype(int) for arm in arms), 1)[:, None]
    y_PT, x_PT = (sum(part[i] for part in parts) / asked_P1 for i in range(2))
    mean, se, df = _jackknife(y_PT, x_PT)
    factor = np.exp(t_quantile(0.5 + level / 2.0, df) * se / np.where(mean > 0.0, mean, 1.0))
    effective = _ratio(x_PT.sum(axis=0) ** 2, (x_PT**2).sum(axis=0))
    sizes = [max(arm.sequences, 1) for arm in arms]
    at_risk = np.average([arm.at_risk_T for arm in arms], axis=0, weights=sizes)
    return Profile(
        start=np.arange(x_PT.shape[1]) * arms[0].width,
        mean=mean,
        low=mean / factor,
        high=mean * factor,
        lines=np.stack([_ratio(y.sum(axis=0), x.sum(axis=0)) for y, x in parts]),
        at_risk=at_risk,
        problems=(x_PT > 0).sum(axis=0),
        grey=(at_risk < MIN_SHARE) | ~(effective > MIN_PROBLEMS - 0.5),
        level=level,
    )


def _jackknife(y_PT: Floats, x_PT: Floats) -> tuple[Floats, Floats, Floats]:
    """Σ y / Σ x, its standard error from leaving out one problem at a time, and that one's df.

    Degrees of freedom are the smallest of m − 1 (problems at risk), (Σ x)² / Σ x² − 1 (problems
    with few chains left weigh little) and Satterthwaite's 2 A² / (B − A²/m), A and B the sums of the
    squares and fourth powers of the m influences (a few problems may carry the error), at least 1.
    Error and df are NaN where fewer than two problems are at risk.
    """
    y_T, x_T = y_PT.sum(axis=0), x_PT.sum(axis=0)
    mean_T, m_T = _ratio(y_T, x_T), (x_PT > 0).sum(axis=0)
    without_PT = _ratio(y_T - y_PT, x_T - x_PT)
    squares_PT = np.where(x_PT > 0, without_PT - mean_T, 0.0) ** 2
    a_T, b_T = squares_PT.sum(axis=0), (squares_PT**2).sum(axis=0)
    m_1 = np.maximum(m_T, 1)
    spread_T = np.maximum(b_T - a_T**2 / m_1, 1e-300)
    few_T = np.minimum(m_T, _ratio(x_T**2, (x_PT**2).sum(axis=0))) - 1.0
    df_T = np.maximum(np.minimum(few_T, 2.0 * a_T**2 / spread_T), 1.0)
    some = m_T > 1
    se_T = np.sqrt(a_T * (m_T - 1) / m_1)
    return mean_T, np.where(some, se_T, np.nan), np.where(some, df_T, np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotient; NaN where the divisor is 0, or what rounding leaves of 0."""
    some = below > 1e-12
    return np.where(some, above / np.where(some, below, 1.0), np.nan)


def bin_width(longest: int) -> int:
    """Smallest power of two that cuts so many positions into `POINTS` bins or fewer."""
    width = 1
    while width * POINTS < longest:
        width *= 2
    return width
