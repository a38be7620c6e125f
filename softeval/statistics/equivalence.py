"""From contrasts to words: equivalence, multiplicity, verdicts.

"Parity" is a claim that needs its own test; a large p value is not one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.passk import Floats

MARGIN = 0.02
"""Default equivalence margin: 2 points."""

Word = Literal["better", "worse", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Equivalence:
    """Result of two one-sided tests.

    Attributes:
        equivalent: the 1 − 2α interval lies inside ±margin.
        low: lower end of the 1 − 2α interval.
        high: upper end.
        margin: δ, in the unit of the scores.
        alpha: level of each one-sided test.
    """

    equivalent: bool
    low: float
    high: float
    margin: float
    alpha: float


@dataclass(frozen=True)
class EquivalenceVerdict:
    """What may be said of A against B.

    Attributes:
        word: better, worse, equivalent or inconclusive.
        p: the p value the word rests on (Holm-adjusted where the caller adjusted it).
        equivalence: the equivalence test; may hold beside "better" for a small, sure difference.
    """

    word: Word
    p: float
    equivalence: Equivalence

    @property
    def within_margin(self) -> bool:
        """The difference is surely smaller than the margin, whatever its sign."""
        return self.equivalence.equivalent


def tost(contrast: Contrast, margin: float = MARGIN, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests: equivalent when the 90 % interval lies inside ±margin (α = 0.05).

    Source: Schuirmann 1987.

    Raises:
        ValueError: the margin is not positive.
    """
    if margin <= 0:
        raise ValueError("the equivalence margin must be positive")
    low, high = contrast.at_level(1.0 - 2.0 * alpha)
    return Equivalence(
        equivalent=bool(-margin < low and high < margin),
        low=low,
        high=high,
        margin=margin,
        alpha=alpha,
    )


def holm(p_K: ArrayLike) -> Floats:
    """Holm's step-down adjustment of a family of p values, in the order given.

    NaN entries (tests that could not be made) stay NaN and do not count in the family.

    Source: Holm 1979.
    """
    p = np.asarray(p_K, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    factors = made.size - np.arange(made.size)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def judge(
    contrast: Contrast,
    margin: float = MARGIN,
    alpha: float = 0.05,
    p: float | None = None,
    lower_is_better: bool = False,
) -> EquivalenceVerdict:
    """Turn a contrast into a word.

    A significant difference whose interval at 1 − alpha leaves out 0 is "better" or "worse" even
    when it is surely smaller than the margin (`EquivalenceVerdict.within_margin` tells). The interval is asked
    too because an exact test of two checkpoints may reject where the guard of `unseen_variance`
    keeps 0 inside: many small gains, too few questions to exclude a rare loss. Otherwise the word is "equivalent" when TOST says so
    and "inconclusive" when it does not.

    Args:
        contrast: A − B.
        margin: equivalence margin in the unit of the scores.
        alpha: significance level.
        p: adjusted p value that replaces ``contrast.p``.
        lower_is_better: True for NLL and KL.
    """
    used = contrast.p if p is None else p
    equivalence = tost(contrast, margin, alpha)
    low, high = contrast.at_level(1.0 - alpha)
    if used <= alpha and not low <= 0.0 <= high:
        gain = (contrast.diff > 0) != lower_is_better
        return EquivalenceVerdict("better" if gain else "worse", used, equivalence)
    return EquivalenceVerdict(
        "equivalent" if equivalence.equivalent else "inconclusive", used, equivalence
    )


def judge_family(
    contrasts: Sequence[Contrast],
    margin: float = MARGIN,
    alpha: float = 0.05,
) -> list[EquivalenceVerdict]:
    """Verdicts of the declared primary contrasts, Holm-adjusted within the family."""
    adjusted = holm([contrast.p for contrast in contrasts])
    return [
        judge(contrast, margin, alpha, float(p))
        for contrast, p in zip(contrasts, adjusted, strict=True)
    ]


def not_distinguishable_from_best(
    cells: Sequence[ArrayLike], alpha: float = 0.05
) -> NDArray[np.bool_]:
    """Which cells of a column to emphasise: all that are not shown to differ from the best.

    Each cell is compared with the one of the best mean on the problems they share, Holm-adjusted
    over the comparisons. The best is chosen from the same data, so the marks are a reading aid and
    not a test of who is best.

    Args:
        cells: for each cell its scores, shape (S, M) or (M,), the same problems in all.
        alpha: significance level.

    Returns:
        True for the best cell and for those it could not be told from.
    """
    means = np.array([np.nanmean(np.asarray(cell, dtype=float)) for cell in cells])
    best = int(np.argmax(means))
    others = [index for index in range(len(cells)) if index != best]
    p = [compare_methods(cells[best], cells[i], bounded=False).p for i in others]
    mask = np.ones(len(cells), dtype=bool)
    mask[others] = ~(holm(p) <= alpha)
    return mask
