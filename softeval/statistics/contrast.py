"""Difference of two training methods, measured on the same problems, with its scope.

Several seeds in both arms: crossed t, the claim holds for new seeds and new problems. One seed in
one arm: the claim is about *that* checkpoint (usually the base model). One seed in both: an exact
paired test, about these two checkpoints only.

A paired test over problems that pools seeds rejects true nulls far too often (up to 81 % at a
nominal 5 %): it is not offered.

Shape letters: S training seeds (S_A, S_B may differ), M problems; leading axes allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.special import ndtri

from softeval.statistics.crossed import (
    Components,
    crossed_variance,
    satterthwaite,
    variance_components,
)
from softeval.statistics.interval import t_quantile, two_sided_p
from softeval.statistics.paired import (
    ROUNDING,
    Discordance,
    discordance,
    is_binary,
    mcnemar,
    sign_flip,
    skew_shift,
    skewed_tails,
)
from softeval.statistics.passk import Floats

GUARD_QUESTIONS = 3.0
"""Imaginary wholly differing questions behind `unseen_variance`: the rule of three."""

GUARD_SQUARES = 2.0
"""Squared differences that add up to so much already allow for a question not met."""

GUARD_DIFFERING = 20.0
"""From so many differing questions on the variance that they show is trusted."""

SCOPE_SEEDS_AND_PROBLEMS = "generalises over seeds and problems"
SCOPE_A_IS_FIXED = "generalises over seeds and problems; A is this one checkpoint"
SCOPE_B_IS_FIXED = "generalises over seeds and problems; B is this one checkpoint"
SCOPE_CHECKPOINTS = "these checkpoints only"

LEAST_P = 1e-12
"""Below this a p value is not made to agree with an interval that follows skewness."""


@dataclass(frozen=True)
class Contrast:
    """A − B with everything needed to judge it. Differences are fractions: 0.02 is 2 points.

    Attributes:
        diff: mean over problems of the difference of seed means.
        low: lower end of the confidence interval.
        high: upper end.
        level: nominal coverage.
        se: standard error.
        df: Satterthwaite degrees of freedom.
        p: two-sided p value of ``test``.
        mde: smallest true difference found with 80 % power at the 5 % level with data like these; NaN
            where no problem varies.
        scope: over what the claim generalises; one of the ``SCOPE_`` sentences.
        test: name of the test behind ``p``.
        problems: problems scored in both arms.
        excluded: problems left out because a score is NaN.
        seeds_a: training seeds of A.
        seeds_b: training seeds of B.
        discordance: problems on which the arms differ (seed means where S > 1).
        skew: `skew_shift` of the differences; 0 for scores without bounds.
        bounded: scores lie in [0, 1].
        mean_a: mean of A on the problems compared.
        mean_b: mean of B.
    """

    diff: float
    low: float
    high: float
    level: float
    se: float
    df: float
    p: float
    mde: float
    scope: str
    test: str
    problems: int
    excluded: int
    seeds_a: int
    seeds_b: int
    discordance: Discordance
    skew: float = 0.0
    bounded: bool = True
    mean_a: float = float("nan")
    mean_b: float = float("nan")

    def at_level(self, level: float) -> tuple[float, float]:
        """Confidence interval of the difference at another level, for example 0.90 for TOST.

        Where no problem shows any variation of the difference (identical answers), the standard
        error is 0 but M problems cannot exclude a rare difference: of the exact binomial bound
        1 − ((1−level)/2)^{1/M} on the share of differing problems, all may be −1, or all 1.
        """
        most = max(1.0, abs(self.diff))  # gaps between modes may differ by up to 2
        if self.se == 0.0 and self.bounded:
            share = rare_difference(self.problems, level)
            return self.diff - share * (most + self.diff), self.diff + share * (most - self.diff)
        half = float(t_quantile(0.5 + level / 2.0, self.df)) * self.se
        below, above = skewed_tails(self.skew, ndtri(0.5 + level / 2.0))
        low, high = self.diff - half - float(below), self.diff + half + float(above)
        return (max(low, -most), min(high, most)) if self.bounded else (low, high)


def contrast_variance(
    xA_SM: ArrayLike, xB_SM: ArrayLike, paired: bool = False
) -> tuple[Floats, Floats]:
    """Variance of the difference of two means and its degrees of freedom.

    V_D = Var_i(d_i)/M + V_S^A + V_S^B − V_R^A − V_R^B, at least max(first, second + third);
    Satterthwaite over the five terms. The seed and residual terms of a single-checkpoint arm are
    dropped, and ν is then `cochran_cox`: no residual of the fixed arm is taken off, and Satterthwaite
    rejects true nulls in 7 to 8 % of cases with three seeds. With ``paired`` row s of both arms is the same checkpoint (two modes of it): what the
    checkpoints share cancels, and the variance is the crossed one of the differences A − B.

    Returns:
        (V_D, ν), each with the leading axes of the inputs.
    """
    a, b = np.asarray(xA_SM, dtype=float), np.asarray(xB_SM, dtype=float)
    if paired:
        return crossed_variance(a - b)
    problems = a.shape[-1]
    d = a.mean(axis=-2) - b.mean(axis=-2)
    by_problem = (
        d.var(axis=-1, ddof=1) / problems if problems > 1 else np.full(d.shape[:-1], np.nan)
    )
    part_a, part_b = variance_components(a), variance_components(b)
    parts = Components(by_problem, part_a.seed + part_b.seed, part_a.residual + part_b.residual)
    terms = (part_a.seed, part_b.seed, part_a.residual, part_b.residual)
    return total_variance(parts, terms, (a.shape[-2], b.shape[-2]), problems)


def total_variance(
    parts: Components, terms: Sequence[Floats], seeds: tuple[int, int], problems: int
) -> tuple[Floats, Floats]:
    """V_D and its degrees of freedom from its parts, measured or expected.

    Args:
        parts: Var_i(d_i)/M, and the sums over both arms of V_S and of V_R.
        terms: V_S of A and of B, V_R of A and of B.
        seeds: training seeds of A and of B.
        problems: problems.
    """
    by_problem, by_seed = parts.problem, parts.seed
    total = np.maximum(by_problem + by_seed - parts.residual, np.maximum(by_problem, by_seed))
    free_a, free_b, wide = seeds[0] - 1, seeds[1] - 1, problems - 1
    if (free_a == 0) != (free_b == 0) and wide > 0:
        share = by_seed / np.where(total > 0.0, total, 1.0)
        return total, cochran_cox(share, free_a + free_b, wide)
    freedoms = (wide, free_a, free_b, free_a * wide, free_b * wide)
    return total, satterthwaite(total, (by_problem, *terms), freedoms, wide)


def cochran_cox(share: ArrayLike, few: int, many: int) -> Floats:
    """Degrees of freedom of a variance of which ``share`` rests on ``few`` and the rest on ``many``.

    Those at which Student's 97.5 % quantile is the mean of both quantiles weighted by the shares of
    the variance: stricter than Satterthwaite, and never above the nominal level.

    Source: Cochran and Cox 1957, section 4.14.
    """
    ends = t_quantile(0.975, few), t_quantile(0.975, many)
    wanted = np.asarray(share) * ends[0] + (1.0 - np.asarray(share)) * ends[1]
    grid = np.geomspace(max(few, many), min(few, many), 400)  # descending: quantiles ascend
    return np.interp(wanted, t_quantile(0.975, grid), grid)


def guarded_variance(
    xA_SM: ArrayLike, xB_SM: ArrayLike, paired: bool = False
) -> tuple[Floats, Floats]:
    """`contrast_variance` of scores in [0, 1] plus `unseen_variance`, and its degrees of freedom."""
    a, b = np.asarray(xA_SM, dtype=float), np.asarray(xB_SM, dtype=float)
    variance, df = contrast_variance(a, b, paired)
    added = unseen_variance(a.mean(axis=-2) - b.mean(axis=-2))
    return with_unseen(variance, df, added, a.shape[-1])


def with_unseen(
    variance: ArrayLike, df: ArrayLike, added: ArrayLike, problems: int
) -> tuple[Floats, Floats]:
    """A variance with that of questions not met added, and its degrees of freedom.

    The addition is no estimate and so raises ν, to M − 1 at most, by the factor √(1 + added/V): less
    than Satterthwaite's, so that an interval of few seeds does not get narrower by it. A difference
    that is the same on every problem keeps its variance of 0: `rare_difference` is exact there.
    """
    variance, df = np.asarray(variance), np.asarray(df)
    flat = variance < ROUNDING
    kept = np.where(flat, 0.0, added)
    growth = np.sqrt(1.0 + kept / np.where(flat, 1.0, variance))
    free = np.maximum(df, np.minimum(df * growth, problems - 1))
    return np.where(flat, 0.0, variance + kept), free


def unseen_variance(d_M: ArrayLike) -> Floats:
    """Variance for questions that one side loses whole and that the sample may not hold.

    Of M questions with graded scores most differ by next to nothing, and if one in 50 is lost
    whole, 30 questions often hold none: Var(d)/M then covers 0.3–0.7 instead of 0.95. So three
    imaginary questions with |d| = 1 enter the variance, w/M² with

        w = 3 · max(0, 1 − min(K/2, E/20)),  K = Σ(d_i − d̄)²,  E = K² / Σ(d_i − d̄)⁴.

    K counts the differences in whole questions; E is the effective number of questions that they
    come from (equal differences on e questions and none elsewhere: about e). The addition fades
    only as the sample shows both: the variation of two whole questions, from twenty questions. It
    is 0 wherever many questions differ clearly.

    Args:
        d_M: difference of the means of both arms on each problem, in [−1, 1].

    Returns:
        The addition to the variance of the mean difference.

    Source: pseudo-observations as Bonett and Price 2012 add for paired proportions (there one in
    each direction, always); three after Hanley and Lippman-Hand 1983 (an event not seen in M
    trials may have rate 3/M); effective number after Kish 1965.
    """
    d = np.asarray(d_M, dtype=float)
    squares = (d - d.mean(axis=-1, keepdims=True)) ** 2
    whole, fourth = squares.sum(axis=-1), (squares**2).sum(axis=-1)
    differing = whole**2 / np.where(fourth > 0.0, fourth, 1.0)
    shown = np.minimum(whole / GUARD_SQUARES, differing / GUARD_DIFFERING)
    return GUARD_QUESTIONS * np.maximum(0.0, 1.0 - shown) / d.shape[-1] ** 2


def compare_methods(
    xA_SM: ArrayLike,
    xB_SM: ArrayLike,
    level: float = 0.95,
    bounded: bool = True,
    seed: int = 0,
    paired: bool = False,
) -> Contrast:
    """Compare method A with method B on the same problems in the same order.

    Args:
        xA_SM: scores of A, one row per training seed; one-dimensional for a single checkpoint.
        xB_SM: scores of B; its number of seeds may differ. A problem with a NaN in either arm is
            left out and counted.
        level: nominal coverage of the interval.
        bounded: scores lie in [0, 1]; False for NLL, KL or entropy. Bounded ones get the guard of
            `unseen_variance` and the longer tail of `skew_shift`.
        seed: of the Monte Carlo sign flips, used only with two single checkpoints.
        paired: row s of both arms is the same checkpoint, under two modes: what moves a checkpoint
            in both modes alike cancels.

    Returns:
        The contrast. With S = 1 in both arms ``p`` is exact McNemar (0/1 scores) or sign-flip
        permutation (graded scores); otherwise that of the crossed t test.

    Raises:
        ValueError: the arms were measured on different numbers of problems, or none is left; or
            paired arms have different numbers of checkpoints.
    """
    a, b, excluded = _shared_problems(xA_SM, xB_SM)
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} checkpoints cannot be paired")
    measure = guarded_variance if bounded else contrast_variance
    variance, df = (float(value) for value in measure(a, b, paired))
    variance = 0.0 if variance < ROUNDING else variance
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    diff, se = float((mean_a - mean_b).mean()), variance**0.5
    diff = diff if abs(diff) > ROUNDING**0.5 else 0.0  # means of equal scores differ in last bits
    draft = Contrast(
        diff=diff,
        low=diff,
        high=diff,
        level=level,
        se=se,
        df=df,
        p=_crossed_p(diff, se, df, a.shape[1]),
        mde=float(detectable(variance, df)) if variance > 0.0 else float("nan"),
        scope=_scope(len(a), len(b)),
        test="crossed t, paired by seed" if paired else "crossed t",
        problems=a.shape[1],
        excluded=excluded,
        seeds_a=len(a),
        seeds_b=len(b),
        discordance=discordance(mean_a, mean_b),
        skew=float(skew_shift(mean_a - mean_b)) if bounded else 0.0,
        bounded=bounded,
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
    )
    low, high = draft.at_level(level)
    contrast = replace(draft, low=low, high=high, p=_skewed_p(draft))
    return _exactly_tested(contrast, a[0], b[0], seed) if len(a) == len(b) == 1 else contrast


def detectable(
    variance: ArrayLike, df: ArrayLike, level: float = 0.95, power: float = 0.8
) -> Floats:
    """Minimum detectable effect (t_{.975,ν} + t_{.8,ν}) · √V_D, in the unit of the scores.

    Of one test at 1 − ``level``, not adjusted for the number of primary contrasts (Holm), and of
    the t test even where ``p`` is exact.
    """
    quantiles = t_quantile(0.5 + level / 2.0, df) + t_quantile(power, df)
    return np.asarray(quantiles * np.sqrt(variance))


def rare_difference(problems: int, level: float) -> float:
    """Largest share of differing problems that M identical pairs cannot exclude.

    1 − ((1−level)/2)^{1/M}: Clopper and Pearson's bound for zero events.
    """
    return 1.0 - ((1.0 - level) / 2.0) ** (1.0 / problems)


def _exactly_tested(contrast: Contrast, a_M: Floats, b_M: Floats, seed: int) -> Contrast:
    """Replace the t test by the exact one that two single checkpoints allow."""
    if is_binary(a_M) and is_binary(b_M):
        counts = contrast.discordance
        return replace(contrast, p=mcnemar(counts.a_only, counts.b_only), test="exact McNemar")
    flips = sign_flip(a_M - b_M, seed=seed)
    how = "exact" if flips.exact else f"{flips.patterns} draws"
    return replace(contrast, p=flips.p, test=f"sign-flip permutation ({how})")


def _crossed_p(diff: float, se: float, df: float, problems: int) -> float:
    if se > 0.0:
        return float(two_sided_p(diff / se, df))
    if se == 0.0:  # the same difference on every problem: only the signs speak
        return 1.0 if diff == 0.0 else min(1.0, 2.0 ** (1 - problems))
    return float("nan")


def _skewed_p(contrast: Contrast) -> float:
    """The p whose interval just ends at 0, where skewness moves the end that looks there."""
    side = 1.0 if contrast.diff > 0.0 else -1.0
    if not (contrast.se > 0.0 and contrast.skew * side < 0.0):
        return contrast.p

    def beyond(p: float) -> float:
        return side * contrast.at_level(1.0 - p)[0 if side > 0.0 else 1]

    least = max(contrast.p, LEAST_P)
    if beyond(1.0) <= 0.0:
        return 1.0
    if beyond(least) >= 0.0:
        return contrast.p
    return float(root_scalar(beyond, bracket=(least, 1.0)).root)


def _scope(seeds_a: int, seeds_b: int) -> str:
    match seeds_a > 1, seeds_b > 1:
        case True, True:
            return SCOPE_SEEDS_AND_PROBLEMS
        case True, False:
            return SCOPE_B_IS_FIXED
        case False, True:
            return SCOPE_A_IS_FIXED
        case _:
            return SCOPE_CHECKPOINTS


def _shared_problems(xA_SM: ArrayLike, xB_SM: ArrayLike) -> tuple[Floats, Floats, int]:
    a, b = (np.atleast_2d(np.asarray(x, dtype=float)) for x in (xA_SM, xB_SM))
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"the arms have {a.shape[1]} and {b.shape[1]} problems: compare on the same ones"
        )
    kept = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    if not kept.any():
        raise ValueError("no problem is scored in both arms")
    return a[:, kept], b[:, kept], int((~kept).sum())
