"""Exact tests of two single checkpoints on the same problems.

They speak of these checkpoints only: with one training seed nothing can be said of the method.

Shape letter: M problems.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softeval.statistics.passk import Floats

EXACT_UP_TO = 16
"""Non-zero differences up to which all 2^m sign patterns are enumerated."""

_CHUNK = 1 << 21  # signs held at once

ROUNDING = 1e-24
"""A variance below it is what float64 leaves of a constant difference."""


@dataclass(frozen=True)
class Discordance:
    """On how many problems one arm does better than the other.

    Attributes:
        a_only: problems that A solves more often than B (0/1 scores: only A solves).
        b_only: the reverse.
        both: equal and above 0.
        neither: equal and 0.
    """

    a_only: int
    b_only: int
    both: int
    neither: int

    @property
    def problems(self) -> int:
        """All problems counted."""
        return self.a_only + self.b_only + self.both + self.neither


@dataclass(frozen=True)
class SignFlip:
    """Result of a sign-flip permutation test.

    Attributes:
        p: two-sided p value.
        exact: True when all sign patterns were enumerated.
        patterns: how many sign patterns were looked at.
    """

    p: float
    exact: bool
    patterns: int


def discordance(xA_M: ArrayLike, xB_M: ArrayLike) -> Discordance:
    """Count the problems on which A and B differ; scores ≥ 0 of any grading."""
    a, b = np.asarray(xA_M, dtype=float), np.asarray(xB_M, dtype=float)
    tie = np.abs(a - b) <= ROUNDING**0.5  # seed means of equal scores differ in their last bits
    return Discordance(
        a_only=int(((a > b) & ~tie).sum()),
        b_only=int(((b > a) & ~tie).sum()),
        both=int((tie & (a > 0)).sum()),
        neither=int((tie & (a == 0)).sum()),
    )


def mcnemar(a_only: int, b_only: int) -> float:
    """Exact two-sided McNemar p value from the two discordant counts.

    Source: McNemar 1947, exact conditional form: under the null a fair coin decides each problem.
    """
    from scipy.stats import binomtest

    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def sign_flip(d_M: ArrayLike, draws: int = 20_000, seed: int = 0) -> SignFlip:
    """Sign-flip permutation test of a mean difference for graded scores.

    Under the null the sign of each problem's difference is a fair coin. Zeros carry no information
    and are dropped. All patterns are enumerated up to `EXACT_UP_TO` non-zero differences;
    otherwise ``draws`` random ones, with p = (1 + hits) / (1 + draws).

    `scipy.stats.permutation_test` gives the same p where it enumerates. Where it draws, its
    two-sided p is twice a one-sided one: coarser, and at least 2 / (1 + draws).

    Args:
        d_M: difference A − B of each problem.
        draws: Monte Carlo patterns.
        seed: of the Monte Carlo patterns; the same seed gives the same p.
    """
    d = np.asarray(d_M, dtype=float)
    d = d[d != 0.0]
    if not d.size:
        return SignFlip(1.0, True, 1)
    if d.size <= EXACT_UP_TO:
        hits = _extreme(d, _all_patterns(d.size))
        return SignFlip(hits / 2**d.size, True, 2**d.size)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // d.size)
    chunks = [min(rows, draws - start) for start in range(0, draws, rows)]
    hits = sum(_extreme(d, _random_patterns(rng, size, d.size)) for size in chunks)
    return SignFlip((1 + hits) / (1 + draws), False, draws)


def is_binary(x_M: ArrayLike) -> bool:
    """True when every score is 0 or 1, as greedy scores are."""
    x = np.asarray(x_M, dtype=float)
    return bool(np.isin(x, (0.0, 1.0)).all())


def _extreme(d: Floats, flips: NDArray[np.bool_]) -> int:
    """Patterns whose |sum| reaches the observed one; ties are decided up to rounding."""
    total, slack = d.sum(), 1e-9 * np.abs(d).sum()
    sums = total - 2.0 * (flips @ d)
    return int((np.abs(sums) >= abs(total) - slack).sum())


def _all_patterns(size: int) -> NDArray[np.bool_]:
    codes = np.arange(2**size)[:, None]
    return ((codes >> np.arange(size)) & 1).astype(bool)


def _random_patterns(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.bool_]:
    packed = rng.integers(0, 256, size=(rows, (size + 7) // 8), dtype=np.uint8)
    return np.unpackbits(packed, axis=1, count=size).astype(bool)


def skew_shift(d_M: ArrayLike) -> Floats:
    """μ̂₃/(6 M σ̂²) of the differences: how far skewness moves an end of an interval, over 1 + 2z².

    Where a few questions are lost whole, the mean and its standard error rise and fall together: a
    sample that met few of them shows a small loss and is sure of it. The t interval then ends too
    early on the side of the loss, and "equivalent" is said too often of a loss just past the margin.

    Source: Hall 1983, Annals of Statistics 11 (inverting an Edgeworth expansion), after Johnson 1978.
    """
    d = np.asarray(d_M, dtype=float)
    about = d - d.mean(axis=-1, keepdims=True)
    second, third = (about**2).mean(axis=-1), (about**3).mean(axis=-1)
    flat = second < ROUNDING
    return np.where(flat, 0.0, third / np.where(flat, 1.0, 6.0 * d.shape[-1] * second))


def skewed_tails(shift: ArrayLike, z: float) -> tuple[Floats, Floats]:
    """What is added outwards at the low and the high end of an interval, from `skew_shift`.

    The end on the side of the tail moves by (1 + 2z²)·shift, with z the normal critical value. The
    other end would move inwards by as much and stays where it is.
    """
    moved = (1.0 + 2.0 * z**2) * np.asarray(shift)
    return np.maximum(-moved, 0.0), np.maximum(moved, 0.0)
