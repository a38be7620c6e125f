"""Mean over training seeds of one method: problems and seeds are crossed, both are samples.

Seed means *training* seed (one checkpoint each). Decoding seeds only add samples to n and enter
through pass@k; averaging over a mixture of the two is the caller's error to prevent.

Shape letters: S training seeds, M problems; every array function accepts leading axes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.interval import (
    Interval,
    guarded_error,
    student_interval,
    wilson_interval,
)
from softeval.statistics.passk import Floats


@dataclass(frozen=True)
class Components:
    """Where the variance of a mean over S seeds and M problems comes from.

    Attributes:
        problem: V_P = Var_i(x̄_{·i}) / M.
        seed: V_S = Var_s(x̄_{s·}) / S; 0 for one seed.
        residual: V_R = MS_R / (S·M), contained in both of the above; 0 for one seed.
    """

    problem: Floats
    seed: Floats
    residual: Floats


@dataclass(frozen=True)
class CrossedMean:
    """A table cell: mean ± SD over seeds on line one, the interval on line two.

    Attributes:
        interval: 95 % interval over new seeds and new problems; over problems only when S = 1.
        seed_means: mean score of each seed, to print as dots.
        sd: standard deviation of ``seed_means`` (ddof 1); NaN for one seed, printed as "–".
        se: square root of the crossed variance.
    """

    interval: Interval
    seed_means: tuple[float, ...]
    sd: float
    se: float

    @property
    def mean(self) -> float:
        """Mean over seeds and problems."""
        return self.interval.mean


def variance_components(x_SM: ArrayLike) -> Components:
    """V_P, V_S and V_R of a seeds × problems table (ddof 1 throughout).

    With one seed V_S and V_R are 0: the claim is then about that checkpoint.
    """
    x = np.asarray(x_SM, dtype=float)
    seeds, problems = x.shape[-2:]
    by_problem, by_seed = x.mean(axis=-2), x.mean(axis=-1)
    v_problem = _variance(by_problem) / problems
    if seeds == 1:
        return Components(v_problem, np.zeros_like(v_problem), np.zeros_like(v_problem))
    mean = by_seed.mean(axis=-1)[..., None, None]
    residual = x - by_problem[..., None, :] - by_seed[..., :, None] + mean
    freedom = max((seeds - 1) * (problems - 1), 1)
    mean_square = (residual**2).sum(axis=(-2, -1)) / freedom
    return Components(v_problem, _variance(by_seed) / seeds, mean_square / (seeds * problems))


def crossed_variance(x_SM: ArrayLike) -> tuple[Floats, Floats]:
    """Variance of the grand mean and its Satterthwaite degrees of freedom.

    V = V_P + V_S − V_R, at least max(V_P, V_S);
    ν = V² / (V_P²/(M−1) + V_S²/(S−1) + V_R²/((S−1)(M−1))), at least 1.

    Returns:
        (V, ν), each with the leading axes of ``x_SM``.

    Source: Cameron, Gelbach and Miller 2011 (two-way clustering); Satterthwaite 1946.
    """
    x = np.asarray(x_SM, dtype=float)
    seeds, problems = x.shape[-2:]
    parts = variance_components(x)
    floor = np.maximum(parts.problem, parts.seed)
    total = np.maximum(parts.problem + parts.seed - parts.residual, floor)
    freedoms = (problems - 1, seeds - 1, (seeds - 1) * (problems - 1))
    terms = (parts.problem, parts.seed, parts.residual)
    return total, satterthwaite(total, terms, freedoms, problems - 1)


def satterthwaite(
    total: ArrayLike,
    terms: tuple[Floats, ...],
    freedoms: tuple[float, ...],
    df_if_flat: float,
) -> Floats:
    """Effective degrees of freedom of a variance that is a sum of estimated terms.

    Args:
        total: the variance.
        terms: its estimated terms, signs aside.
        freedoms: degrees of freedom of each term; a term with 0 is skipped.
        df_if_flat: result where every term is 0 (scores that do not vary).

    Returns:
        total² / Σ term²/df, at least 1; NaN when ``df_if_flat`` is 0 and nothing varies.
    """
    spread = np.zeros_like(np.asarray(total, dtype=float))
    for term, freedom in zip(terms, freedoms, strict=True):
        if freedom > 0:
            spread = spread + np.asarray(term) ** 2 / freedom
    flat = spread == 0.0
    ratio = np.asarray(total) ** 2 / np.where(flat, 1.0, spread)
    return np.where(flat, float(df_if_flat), np.maximum(ratio, 1.0))


def crossed_mean(x_SM: ArrayLike, level: float = 0.95, bounded: bool = True) -> CrossedMean:
    """Mean over training seeds with an interval that covers new seeds and new problems.

    Args:
        x_SM: score of each seed on each problem. A problem that is NaN for some seed is left out
            for all and counted.
        level: nominal coverage.
        bounded: True for scores in [0, 1] (Wilson form); False for KL or NLL (x̄ ± t·SE).

    Returns:
        The cell. With S = 1 the interval is that of `problem_interval` and ``sd`` is NaN.

    Raises:
        ValueError: no problem is left or the table is not two-dimensional.
    """
    x, excluded = complete_problems(x_SM)
    seeds, problems = x.shape
    variance, df = (float(value) for value in crossed_variance(x))
    mean = float(x.mean())
    if bounded:
        _require_proportions(x)
        guarded = float(guarded_error(mean, variance, problems))
        interval = wilson_interval(mean, guarded, problems, df, level, excluded)
    else:
        interval = student_interval(mean, variance**0.5, problems, df, level, excluded)
    seed_means = tuple(float(value) for value in x.mean(axis=1))
    return CrossedMean(
        interval=interval,
        seed_means=seed_means,
        sd=float(np.std(seed_means, ddof=1)) if seeds > 1 else np.nan,
        se=variance**0.5,
    )


def complete_problems(x_SM: ArrayLike) -> tuple[Floats, int]:
    """The problems scored for every seed, and how many were left out.

    A one-dimensional table is one seed.
    """
    x = np.asarray(x_SM, dtype=float)
    x = x[None, :] if x.ndim == 1 else x
    if x.ndim != 2:
        raise ValueError("scores need two axes, seeds and problems")
    kept = ~np.isnan(x).any(axis=0)
    if not kept.any():
        raise ValueError("no problem is scored for every seed")
    return x[:, kept], int((~kept).sum())


def _require_proportions(x: Floats) -> None:
    if x.min() < 0.0 or x.max() > 1.0:
        raise ValueError("scores must lie in [0, 1]; for other scores pass bounded=False")


def _variance(values: Floats) -> Floats:
    """Sample variance (ddof 1) over the last axis; NaN for a single value."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.var(axis=-1, ddof=1)
