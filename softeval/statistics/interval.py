"""Intervals for a mean over problems: the question is "what if the problems were others?".

The variance over problems already contains the noise of sampling answers (law of total variance,
Miller 2024, arXiv 2411.00640), so the draws of one problem are never counted as independent data.
Knows one checkpoint only; several training seeds are in crossed.py.

Shape letter: M problems.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, ndtr, ndtri, stdtr, stdtrit

from softeval.statistics.passk import Floats

GUARD_EVENTS = 5.0
"""Below this many expected failures (or successes) graded scores get the guard of `guarded_error`."""

FEW_EVENTS = 3.0
"""Up to so many failures (or successes) the near end is the Poisson one where that lies farther."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, in the unit of the scores.

    Attributes:
        mean: mean over problems.
        low: lower end; NaN when fewer than two independent units leave it undefined.
        high: upper end; NaN likewise.
        level: nominal coverage, for example 0.95.
        n_eff: number of independent 0/1 problems that would give the same standard error;
            NaN for scores that are not proportions.
        df: degrees of freedom of the t quantile.
        m: problems that entered.
        excluded: problems left out because their score is NaN (n < k).
    """

    mean: float
    low: float
    high: float
    level: float
    n_eff: float
    df: float
    m: int = 0
    excluded: int = 0


def wilson_interval(
    mean: float, se2: float, m: int, df: float, level: float = 0.95, excluded: int = 0
) -> Interval:
    """Wilson interval with effective sample size for a mean of scores in [0, 1].

    n_eff = x̄(1−x̄)/SE² (``m`` where SE = 0) replaces the number of trials and t_{df} the normal
    quantile. Holds its level near 0 and 1, where x̄ ± t·SE and the bootstrap fail.

    Args:
        mean: mean score, in [0, 1].
        se2: squared standard error of the mean.
        m: number of independent units behind the mean.
        df: degrees of freedom of ``se2``.
        level: nominal coverage.
        excluded: carried into the result.

    Returns:
        The interval, inside [0, 1].

    Source: Wilson 1927; Korn and Graubard 1998 for the effective size; Bowyer, Aitchison and
    Ivanova 2025, arXiv 2503.01747, on why central-limit bars fail here.
    """
    low, high, n_eff = wilson_bounds(mean, se2, m, df, level)
    return Interval(
        float(mean), float(low), float(high), level, float(n_eff), float(df), int(m), excluded
    )


def wilson_bounds(
    mean: ArrayLike, se2: ArrayLike, m: ArrayLike, df: ArrayLike, level: ArrayLike = 0.95
) -> tuple[Floats, Floats, Floats]:
    """`wilson_interval` for arrays: returns (low, high, n_eff), broadcast."""
    q = t_quantile(0.5 + np.asarray(level) / 2, df)
    return score_bounds(mean, effective_size(mean, se2, m), q)


def effective_size(mean: ArrayLike, se2: ArrayLike, m: ArrayLike) -> Floats:
    """x̄(1−x̄)/SE², or ``m`` where the scores do not vary."""
    centre = np.clip(np.asarray(mean, dtype=float), 0.0, 1.0)
    variance, units = np.asarray(se2, dtype=float), np.asarray(m, dtype=float)
    bernoulli = centre * (1.0 - centre)
    flat = (variance == 0.0) | (bernoulli == 0.0)
    return np.where(flat, units, bernoulli / np.where(flat, 1.0, variance))


def guarded_error(mean: ArrayLike, se2: ArrayLike, m: ArrayLike) -> Floats:
    """Squared error that does not trust a sample near 0 or 1 which met no hard problem.

    A graded score (n > k) near the ceiling is nearly all 1 with a few partial losses; the rare
    problem that loses everything is usually absent, and n_eff then exceeds M many times: Wilson
    covers 0.66–0.90 instead of 0.95 at n = 64, k = 32. So with L = M·min(x̄, 1−x̄) < 5 the variance
    is taken as if one more problem, weighted 1 − L/5, stood at the far end; n_eff is not pushed
    below M, the value of 0/1 scores. Nothing changes for 0/1 scores, for L ≥ 5 or where SE = 0.

    Args:
        mean: mean score in [0, 1].
        se2: its squared standard error.
        m: number of problems.

    Returns:
        se2, enlarged where the guard applies.
    """
    x, variance, units = (np.asarray(value, dtype=float) for value in (mean, se2, m))
    near = np.minimum(x, 1.0 - x)
    weight = np.maximum(0.0, 1.0 - units * near / GUARD_EVENTS)
    enlarged = variance + weight * ((1.0 - near) / units) ** 2
    ceiling = np.maximum(variance, x * (1.0 - x) / units)
    return np.where(variance > 0.0, np.minimum(enlarged, ceiling), variance)


def score_bounds(mean: ArrayLike, n_eff: ArrayLike, q: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Wilson's two roots for a given critical value ``q``: (low, high, n_eff).

    With at most `FEW_EVENTS` failures Wilson's upper end lies too near: one failure of 30 excludes
    a success of 0.995, of which 14 % of samples hold a failure. There the end is at least that of the
    Poisson law, 1 − λ/n_eff with P(failures ≤ observed; λ) = 1 − α; the same below for successes.

    Source: Brown, Cai and DasGupta 2001, section 4.1.1 (modified Wilson interval).
    """
    x = np.clip(np.asarray(mean, dtype=float), 0.0, 1.0)
    size, q = np.asarray(n_eff, dtype=float), np.asarray(q, dtype=float)
    shrink = 1.0 + q**2 / size
    centre = (x + q**2 / (2.0 * size)) / shrink
    half = q * np.sqrt(x * (1.0 - x) / size + q**2 / (4.0 * size**2)) / shrink
    low = np.minimum(np.maximum(centre - half, 0.0), _rare_limit(x * size, size, q))
    high = np.maximum(np.minimum(centre + half, 1.0), 1.0 - _rare_limit((1.0 - x) * size, size, q))
    return low, high, size


def _rare_limit(events: Floats, size: Floats, q: Floats) -> Floats:
    """Lower Poisson limit of the rate of few events; 1, which limits nothing, of more than few."""
    tail = 2.0 * ndtr(-q)
    limit = gammaincinv(np.maximum(events, 1e-12), tail) / size
    return np.where(events <= FEW_EVENTS, limit, 1.0)


def problem_interval(x_M: ArrayLike, level: float = 0.95) -> Interval:
    """Interval for the mean score of one checkpoint over new problems.

    Args:
        x_M: score of each problem in [0, 1], for example its pass@k. NaN scores are left out and
            counted in ``excluded``.
        level: nominal coverage.

    Returns:
        A Wilson interval with M − 1 degrees of freedom, guarded near 0 and 1 (`guarded_error`).

    Raises:
        ValueError: no score is left, or a score lies outside [0, 1].
    """
    scores = np.asarray(x_M, dtype=float)
    kept = ~np.isnan(scores)
    x, excluded = _proportions(scores[kept]), int((~kept).sum())
    se2 = float(guarded_error(x.mean(), squared_error(x), x.size))
    return wilson_interval(x.mean(), se2, x.size, x.size - 1, level, excluded)


def mean_interval(x_M: ArrayLike, level: float = 0.95) -> Interval:
    """x̄ ± t·SE for scores without bounds (NLL, KL, entropy); n_eff is NaN.

    NaN scores are left out and counted in ``excluded``.
    """
    scores = np.asarray(x_M, dtype=float)
    x = scores[~np.isnan(scores)]
    if not x.size:
        raise ValueError("no score to average")
    se = float(np.sqrt(squared_error(x)))
    return student_interval(float(x.mean()), se, x.size, x.size - 1, level, scores.size - x.size)


def student_interval(
    mean: float, se: float, m: int, df: float, level: float, excluded: int
) -> Interval:
    """x̄ ± t·SE from the mean and its standard error; the arguments are those of `Interval`."""
    half = float(t_quantile(0.5 + level / 2, df)) * se
    return Interval(mean, mean - half, mean + half, level, np.nan, df, m, excluded)


def squared_error(x_M: Floats) -> float:
    """Var_i(x_i)/M with ddof 1; NaN for a single problem."""
    return float(x_M.var(ddof=1) / x_M.size) if x_M.size > 1 else np.nan


def t_quantile(probability: ArrayLike, df: ArrayLike) -> Floats:
    """Quantile of Student's t; the normal one for infinite ``df``, NaN for df ≤ 0."""
    freedom = np.asarray(df, dtype=float)
    usable = np.where(np.isfinite(freedom) & (freedom > 0), freedom, 1.0)
    quantile = np.where(np.isinf(freedom), ndtri(probability), stdtrit(usable, probability))
    return np.where(freedom > 0, quantile, np.nan)


def two_sided_p(t: ArrayLike, df: ArrayLike) -> Floats:
    """P(|T_df| ≥ |t|)."""
    return 2.0 * np.asarray(stdtr(df, -np.abs(t)))


def _proportions(x: Floats) -> Floats:
    if not x.size:
        raise ValueError("no problem has a score: every n < k; rerun with more --num-samples")
    if x.min() < 0.0 or x.max() > 1.0:
        raise ValueError("scores must lie in [0, 1]; for other scores use mean_interval")
    return x
