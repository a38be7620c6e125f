"""pass@k curves with simultaneous bands, their difference D(k), and where they cross.

The points of one curve share samples, problems and seeds, so pointwise bars mislead about the
curve: bands here hold for all k at once. "Wins at small k, loses at large k" (Yue et al. 2025,
arXiv 2504.13837) is a claim about D(k), read off the difference curve and not off two lines.

Shape letters: S training seeds, M problems, K values of k, B bootstrap replicates.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from softeval.statistics.bootstrap import (
    REPLICATES,
    draw_weights,
    resampled_means,
    sup_t,
)
from softeval.statistics.contrast import (
    guarded_variance,
    rare_difference,
)
from softeval.statistics.crossed import crossed_variance
from softeval.statistics.interval import (
    effective_size,
    guarded_error,
    score_bounds,
    t_quantile,
)
from softeval.statistics.paired import skew_shift, skewed_tails
from softeval.statistics.passk import Floats, Integers


@dataclass(frozen=True)
class Band:
    """A curve over k with a band that contains the whole true curve with probability ``level``.

    Attributes:
        ks: the values of k, shape (K,).
        mean: the curve (scores, or differences of scores), shape (K,).
        low: lower edge of the simultaneous band.
        high: upper edge.
        critical: simultaneous critical value c of the bootstrap (pointwise normal: 1.96).
        level: nominal coverage.
        seeds: training seeds behind the curve; the smaller number for a difference.
        problems: problems behind it.
    """

    ks: Integers
    mean: Floats
    low: Floats
    high: Floats
    critical: float
    level: float
    seeds: int
    problems: int


@dataclass(frozen=True)
class Crossing:
    """Where D(k) first changes sign, and how sure that is.

    Where the measured D changes sign, a replicate counts as crossing only if it crosses in the
    same sense: it starts with `start_sign` and then has the other sign. One that starts the other
    way round does not bear the claim "A leads first, B later" out, whatever it does afterwards, and
    counts among `p_no_crossing`. Where the measured D keeps its sign, the claim is that the curves
    do not cross, so a replicate that crosses in either sense counts against it.

    Attributes:
        k: first k at which D has the sign opposite to the one it started with; None if it never
            does up to ``k_max``.
        k_max: largest k looked at: a crossing beyond it cannot be seen.
        start_sign: +1 if A leads at small k, −1 if B does, 0 if the curves coincide.
        p_no_crossing: share of bootstrap replicates without a crossing of that sense up to
            ``k_max``.
        low: 2.5 % quantile of the crossing k over the replicates that cross; NaN if none does.
        high: 97.5 % quantile.
        again: every later k at which D changes sign once more, ascending.
    """

    k: int | None
    k_max: int
    start_sign: int
    p_no_crossing: float
    low: float
    high: float
    again: tuple[int, ...] = ()


OrderWord = Literal["a leads", "b leads", "cross", "coincide", "undecided"]


@dataclass(frozen=True)
class CurveOrder:
    """What may be said of two curves: which leads, or that they cross.

    Attributes:
        word: "a leads" or "b leads" where the band of D(k) excludes 0 on that side only; "cross"
            where it excludes 0 on both, each at its own k; "coincide" where D is 0 at every k;
            else "undecided": the curves cannot be told apart.
        a_ks: values of k at which the band lies above 0, ascending: A is ahead there.
        b_ks: values of k at which it lies below 0.
        band: of D(k), simultaneous over k and over the curves judged together.
    """

    word: OrderWord
    a_ks: tuple[int, ...]
    b_ks: tuple[int, ...]
    band: Band


@dataclass(frozen=True)
class CrossingEvidence:
    """How many problems carry a crossing claim.

    Attributes:
        only_a: problems that A solves at least once and B never.
        only_b: the reverse.
    """

    only_a: int
    only_b: int


def curve_band(
    x_SMK: ArrayLike,
    ks: ArrayLike,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Band:
    """Simultaneous sup-t band of one pass@k curve, over problems and seeds.

    c is the level-quantile of max_k |û*_k − û_k| / SE_k in a joint bootstrap. Its pointwise level
    is then applied to the crossed t distribution in Wilson form, so that the band has the right
    width with three seeds and stays in [0, 1] near the ceiling.

    The true curve never falls with k, so whatever lies below an earlier lower edge or above a later
    upper edge is cut off: a true curve inside the band before is inside it after.

    Args:
        x_SMK: pass@k of each seed, problem and k (two axes: one checkpoint).
        ks: the values of k.
        level: nominal simultaneous coverage.
        replicates: bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes disagree, or a score is NaN (n < k).
    """
    x, ks_K = _curve(x_SMK, ks)
    seeds, problems, _ = x.shape
    rng = np.random.default_rng(seed)
    weights = draw_weights(rng, replicates, problems)
    mean = x.mean(axis=(0, 1))
    critical = sup_t(resampled_means(x, weights, rng), mean, level)
    variance, df = crossed_variance(np.moveaxis(x, 2, 0))
    size = effective_size(mean, guarded_error(mean, variance, problems), problems)
    low, high, _ = score_bounds(mean, size, _as_t(critical, df))
    low, high = _never_falling(low, high, ks_K)
    return Band(ks_K, mean, low, high, critical, level, seeds, problems)


def difference_band(
    xA_SMK: ArrayLike,
    xB_SMK: ArrayLike,
    ks: ArrayLike,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    paired: bool = False,
) -> Band:
    """Simultaneous band of D(k) = pass@k of A − pass@k of B on the same problems.

    Standard errors, degrees of freedom and longer tails are those of `compare_methods` at each k. With ``paired``
    row s of both arms is the same checkpoint, and seeds are drawn in pairs.
    """
    a, b, ks_K = _curves(xA_SMK, xB_SMK, ks)
    problems = a.shape[1]
    diff = a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))
    critical = sup_t(_resampled_difference(a, b, replicates, seed, paired), diff, level)
    variance, df = guarded_variance(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), paired)
    flat = variance == 0.0  # identical answers at this k: see Contrast.at_level
    unsure = rare_difference(problems, level)
    half = np.where(flat, unsure, _as_t(critical, df) * np.sqrt(variance))
    below, above = skewed_tails(skew_shift((a.mean(axis=0) - b.mean(axis=0)).T), critical)
    return Band(
        ks=ks_K,
        mean=diff,
        low=np.maximum(diff - half - below, -1.0),
        high=np.minimum(diff + half + above, 1.0),
        critical=critical,
        level=level,
        seeds=min(len(a), len(b)),
        problems=problems,
    )


def curve_order(
    xA_SMK: ArrayLike,
    xB_SMK: ArrayLike,
    ks: ArrayLike,
    comparisons: int = 1,
    alpha: float = 0.05,
    replicates: int = REPLICATES,
    seed: int = 0,
    paired: bool = False,
) -> CurveOrder:
    """Whether A leads, B leads, the curves cross, coincide, or cannot be told apart.

    Nothing is read off the sign of D(k) alone: of equal models D is above 0 at some k and below it
    at others in most runs. A claim of either kind is wrong in at most ``alpha`` of all verdicts
    when the models are equal, because it needs the simultaneous band to leave 0 out.

    Args:
        xA_SMK: pass@k of A; the ks of the curve shown will do.
        xB_SMK: pass@k of B on the same problems.
        ks: the values of k, ascending.
        comparisons: how many pairs of curves one verdict judges; each band then holds at
            1 − alpha/comparisons (Bonferroni).
        alpha: share of verdicts on equal models that may claim something.
        replicates: bootstrap replicates.
        seed: of the bootstrap.
        paired: row s of both arms is the same checkpoint under two modes.

    Raises:
        ValueError: as `difference_band`.
    """
    level = 1.0 - alpha / comparisons
    band = difference_band(xA_SMK, xB_SMK, ks, level, replicates, seed, paired)
    a_ks = tuple(band.ks[band.low > 0.0].tolist())
    b_ks = tuple(band.ks[band.high < 0.0].tolist())
    word: OrderWord = "coincide" if not _signs(band.mean).any() else "undecided"
    if a_ks or b_ks:
        word = "cross" if a_ks and b_ks else "a leads" if a_ks else "b leads"
    return CurveOrder(word, a_ks, b_ks, band)


def crossing(
    xA_SMK: ArrayLike,
    xB_SMK: ArrayLike,
    ks: ArrayLike,
    replicates: int = REPLICATES,
    seed: int = 0,
    paired: bool = False,
) -> Crossing:
    """First sign change of D(k), with its bootstrap distribution over problems and seeds.

    Args:
        xA_SMK: pass@k of A; give every whole k up to n to date a crossing exactly.
        xB_SMK: pass@k of B on the same problems.
        ks: the values of k, ascending.
        replicates: bootstrap replicates.
        seed: of the bootstrap.
        paired: row s of both arms is the same checkpoint: seeds are drawn in pairs.
    """
    a, b, ks_K = _curves(xA_SMK, xB_SMK, ks)
    diff = a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))
    start_sign, changes = int(_start_signs(diff)), sign_changes(diff)
    drawn = _resampled_difference(a, b, replicates, seed, paired)
    positions = first_sign_change(drawn)
    counted = positions >= 0
    if changes.size:
        counted &= _start_signs(drawn) == start_sign
    crossed = ks_K[positions[counted]]
    low, high = np.quantile(crossed, [0.025, 0.975]) if crossed.size else (np.nan, np.nan)
    return Crossing(
        k=int(ks_K[changes[0]]) if changes.size else None,
        k_max=int(ks_K[-1]),
        start_sign=start_sign,
        p_no_crossing=float((~counted).mean()),
        low=float(low),
        high=float(high),
        again=tuple(ks_K[changes[1:]].tolist()),
    )


def first_sign_change(diff_K: ArrayLike) -> Integers:
    """Index of the first k whose D is opposite in sign to the first non-zero D; −1 if none.

    Works on the last axis; zeros (up to rounding) are neither sign.
    """
    diff = np.asarray(diff_K, dtype=float)
    signs = _signs(diff)
    opposite = (signs == -_start_signs(diff)[..., None]) & (signs != 0)
    return np.where(opposite.any(axis=-1), opposite.argmax(axis=-1), -1)


def sign_changes(diff_K: ArrayLike) -> Integers:
    """Indices of every k whose D is opposite in sign to the last non-zero D before it."""
    signs = _signs(np.asarray(diff_K, dtype=float))
    kept = np.flatnonzero(signs)
    return kept[1:][signs[kept[1:]] != signs[kept[:-1]]]


def crossing_evidence(cA_M: ArrayLike, cB_M: ArrayLike) -> CrossingEvidence:
    """Counts to print beside any crossing claim, from the correct samples pooled over seeds."""
    c_a, c_b = np.asarray(cA_M), np.asarray(cB_M)
    return CrossingEvidence(
        only_a=int(((c_a > 0) & (c_b == 0)).sum()), only_b=int(((c_b > 0) & (c_a == 0)).sum())
    )


def _resampled_difference(a: Floats, b: Floats, replicates: int, seed: int, paired: bool) -> Floats:
    rng = np.random.default_rng(seed)
    weights = draw_weights(rng, replicates, a.shape[1])
    if paired:
        return resampled_means(a - b, weights, rng)
    return resampled_means(a, weights, rng) - resampled_means(b, weights, rng)


def _as_t(critical: float, df: ArrayLike) -> Floats:
    """Student quantile at the pointwise level that ``critical`` has under the normal."""
    return t_quantile(float(ndtr(critical)), df)


def _never_falling(low_K: Floats, high_K: Floats, ks_K: Integers) -> tuple[Floats, Floats]:
    """The part of a band that a curve which never falls with k can reach."""
    order = np.argsort(ks_K, kind="stable")
    low, high = np.empty_like(low_K), np.empty_like(high_K)
    low[order] = np.maximum.accumulate(low_K[order])
    high[order] = np.minimum.accumulate(high_K[order][::-1])[::-1]
    return low, high


def _start_signs(diff: Floats) -> Integers:
    """Sign of the first D that has one, along the last axis; 0 if none has."""
    signs = _signs(diff)
    first = (signs != 0).argmax(axis=-1)
    return np.take_along_axis(signs, first[..., None], axis=-1)[..., 0]


def _signs(diff: Floats) -> Integers:
    return np.where(np.abs(diff) < 1e-12, 0, np.sign(diff)).astype(np.int64)


def _curve(x_SMK: ArrayLike, ks: ArrayLike) -> tuple[Floats, Integers]:
    x, ks_K = np.asarray(x_SMK, dtype=float), np.asarray(ks, dtype=np.int64)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] != ks_K.size:
        raise ValueError("a curve needs scores of shape (S, M, K) and K values of k")
    if np.isnan(x).any():
        raise ValueError("a curve cannot contain NaN: leave out the k above the smallest n")
    return x, ks_K


def _curves(xA_SMK: ArrayLike, xB_SMK: ArrayLike, ks: ArrayLike) -> tuple[Floats, Floats, Integers]:
    a, ks_K = _curve(xA_SMK, ks)
    b, _ = _curve(xB_SMK, ks)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"the curves have {a.shape[1]} and {b.shape[1]} problems: compare on the same ones"
        )
    return a, b, ks_K
