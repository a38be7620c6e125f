"""Entropy (or KL) by position: E[H_t | T ≥ t], with the risk set that makes it readable.

The set of sequences still running changes with t, so a rising curve may only say that long chains
of thought are uncertain ones. Every profile therefore carries its at-risk counts, and the fixed
cohort (`reduce_sequences` with ``min_length``) and the two scalars below stand beside it.

Shape letters: S training seeds, P problems, T positions or bins, B bootstrap replicates,
Q sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softeval.reports.statistics.bootstrap import draw_weights
from softeval.reports.statistics.interval import Interval, mean_interval, t_quantile
from softeval.reports.statistics.passk import Floats, Integers
from softeval.reports.statistics.positions import PositionSums, group_sums

MIN_SHARE = 0.10
"""Positions reached by fewer sequences than this share are greyed out."""

MIN_PROBLEMS = 30
"""Positions at which fewer problems are at risk are greyed out."""


@dataclass(frozen=True)
class Profile:
    """A mean by position with its interval and its risk set.

    Attributes:
        start: first position of each bin (bin number for relative progress), shape (T,).
        mean: mean over problems at risk of their mean over samples (and seeds); NaN where none.
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


@dataclass(frozen=True)
class ProfileDifference:
    """A − B by position over the problems at risk in both.

    Attributes:
        start: first position of each bin, shape (T,).
        diff: mean of A − B; NaN where no problem is at risk in both.
        low: lower end of the interval over problems.
        high: upper end.
        problems: problems at risk in both.
        grey: fewer than `MIN_PROBLEMS`, or either arm below `MIN_SHARE`.
        level: nominal pointwise coverage.
    """

    start: Integers
    diff: Floats
    low: Floats
    high: Floats
    problems: Integers
    grey: NDArray[np.bool_]
    level: float


@dataclass(frozen=True)
class Scalars:
    """One number for a whole set of chains of thought, weighted two ways.

    Attributes:
        token_weighted: Σ values / Σ positions: what a random token looks like.
        sequence_weighted: mean over problems of the mean over sequences of each sequence's mean:
            what a random chain of thought looks like.
        sequences: sequences with at least one position.
        empty: sequences without any, left out.
    """

    token_weighted: Interval
    sequence_weighted: Interval
    sequences: int
    empty: int


def position_profile(
    sums: PositionSums | Sequence[PositionSums],
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Profile:
    """Profile of one cell: within problem first, then over the problems at risk.

    Args:
        sums: one `PositionSums` for each training seed, same problems and layout.
        level: nominal pointwise coverage of the percentile interval.
        replicates: cluster bootstrap replicates over problems.
        seed: of the bootstrap.
    """
    arms = [sums] if isinstance(sums, PositionSums) else list(sums)
    x_PT = _over_seeds(arms)
    low, high = _problem_bootstrap(x_PT, level, replicates, seed)
    pooled = arms[0]
    for more in arms[1:]:
        pooled = pooled + more
    problems = np.isfinite(x_PT).sum(axis=0)
    return Profile(
        start=_starts(pooled),
        mean=_mean_at_risk(x_PT),
        low=low,
        high=high,
        lines=np.stack([_mean_at_risk(arm.mean_PT) for arm in arms]),
        at_risk=pooled.at_risk_T,
        problems=problems,
        grey=(pooled.at_risk_T < MIN_SHARE) | (problems < MIN_PROBLEMS),
        level=level,
    )


def profile_difference(
    a: PositionSums | Sequence[PositionSums],
    b: PositionSums | Sequence[PositionSums],
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> ProfileDifference:
    """A − B at each position, only over problems at risk in both arms.

    Raises:
        ValueError: the arms have different problems or bins.
    """
    arms_a = [a] if isinstance(a, PositionSums) else list(a)
    arms_b = [b] if isinstance(b, PositionSums) else list(b)
    if arms_a[0].layout != arms_b[0].layout:
        raise ValueError("profiles of different problems or bins cannot be compared")
    d_PT = _over_seeds(arms_a) - _over_seeds(arms_b)
    low, high = _problem_bootstrap(d_PT, level, replicates, seed)
    problems = np.isfinite(d_PT).sum(axis=0)
    rare = np.minimum(_pooled_share(arms_a), _pooled_share(arms_b)) < MIN_SHARE
    return ProfileDifference(
        start=_starts(arms_a[0]),
        diff=_mean_at_risk(d_PT),
        low=low,
        high=high,
        problems=problems,
        grey=rare | (problems < MIN_PROBLEMS),
        level=level,
    )


def position_scalars(
    sum_Q: ArrayLike, length_Q: ArrayLike, problem_Q: ArrayLike, level: float = 0.95
) -> Scalars:
    """Token-weighted and sequence-weighted mean, with intervals over problems.

    Args:
        sum_Q: sum of the values of each sequence.
        length_Q: its number of positions.
        problem_Q: label of its problem.
        level: nominal coverage.

    Raises:
        ValueError: no sequence has a position.
    """
    lengths = np.asarray(length_Q)
    filled = lengths > 0
    if not filled.any():
        raise ValueError("no sequence has a position to average")
    total, length = np.asarray(sum_Q, dtype=float)[filled], lengths[filled]
    labels, owner = np.unique(np.asarray(problem_Q)[filled], return_inverse=True)
    total_P = group_sums(owner, total, labels.size)
    length_P = group_sums(owner, length, labels.size)
    per_sequence = group_sums(owner, total / length, labels.size) / np.bincount(owner)
    return Scalars(
        token_weighted=_ratio_interval(total_P, length_P, level),
        sequence_weighted=mean_interval(per_sequence, level),
        sequences=int(filled.sum()),
        empty=int((~filled).sum()),
    )


def _ratio_interval(total_P: Floats, count_P: Floats, level: float) -> Interval:
    """Σ total / Σ count with the linearised standard error over problems."""
    ratio = float(total_P.sum() / count_P.sum())
    residual = (total_P - ratio * count_P) / count_P.mean()
    problems = residual.size
    se = residual.std(ddof=1) / problems**0.5 if problems > 1 else np.nan
    half = float(t_quantile(0.5 + level / 2.0, problems - 1) * se)
    return Interval(ratio, ratio - half, ratio + half, level, np.nan, problems - 1, problems)


def _over_seeds(arms: Sequence[PositionSums]) -> Floats:
    """Mean over the seeds at risk of each problem's mean, NaN where none is."""
    x_SPT = np.stack([arm.mean_PT for arm in arms])
    present = np.isfinite(x_SPT)
    total = np.where(present, x_SPT, 0.0).sum(axis=0)
    seeds = present.sum(axis=0)
    return np.where(seeds > 0, total / np.maximum(seeds, 1), np.nan)


def _mean_at_risk(x_PT: Floats) -> Floats:
    present = np.isfinite(x_PT)
    count = present.sum(axis=0)
    total = np.where(present, x_PT, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _problem_bootstrap(
    x_PT: Floats, level: float, replicates: int, seed: int
) -> tuple[Floats, Floats]:
    """Percentile interval of the mean over problems at risk, problems drawn with replacement."""
    present = np.isfinite(x_PT)
    weights = draw_weights(np.random.default_rng(seed), replicates, len(x_PT))
    total, share = weights @ np.where(present, x_PT, 0.0), weights @ present.astype(float)
    drawn = share > 1e-12
    means = np.where(drawn, total / np.where(drawn, share, 1.0), np.nan)
    low, high = np.full((2, x_PT.shape[1]), np.nan)
    enough = present.sum(axis=0) > 1
    tails = [0.5 - level / 2.0, 0.5 + level / 2.0]
    if enough.any():
        low[enough], high[enough] = np.nanquantile(means[:, enough], tails, axis=0)
    return low, high


def _pooled_share(arms: Sequence[PositionSums]) -> Floats:
    sizes = [max(arm.sequences, 1) for arm in arms]
    return np.average([arm.at_risk_T for arm in arms], axis=0, weights=sizes)


def _starts(sums: PositionSums) -> Integers:
    return np.arange(sums.count_PT.shape[1]) * sums.width
