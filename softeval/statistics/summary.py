"""One row per k of a results table: pass@k with its interval, from counts.

Knows one checkpoint, task and mode at a time. Several training seeds: crossed.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.interval import problem_interval
from softeval.statistics.passk import (
    Integers,
    pass_at_k,
    se_within,
    too_few_samples,
)


@dataclass(frozen=True)
class PassAtK:
    """Dataset pass@k of one cell.

    Attributes:
        k: the k of pass@k.
        n: fewest samples among the problems that entered (published as ``pass@32 (n=64)``).
        mean: mean over problems; NaN when no problem has k samples.
        low: lower end of the interval over new problems.
        high: upper end.
        level: nominal coverage.
        problems: problems that entered.
        excluded: problems with fewer than k samples.
        n_eff: effective number of problems behind the interval.
        df: degrees of freedom.
        se_within: standard error over re-sampling the same problems; NaN where n < 2k.
        message: why problems are missing and the remedy; empty when none is.
    """

    k: int
    n: int
    mean: float
    low: float
    high: float
    level: float = 0.95
    problems: int = 0
    excluded: int = 0
    n_eff: float = float("nan")
    df: float = float("nan")
    se_within: float = float("nan")
    message: str = ""

    @property
    def name(self) -> str:
        """``pass@32 (n=64)``."""
        return f"pass@{self.k} (n={self.n})"


def count_correct(
    correct_MN: ArrayLike, valid_MN: ArrayLike | None = None
) -> tuple[Integers, Integers]:
    """Counts of each problem from a matrix of verdicts.

    Args:
        correct_MN: True where the sample is correct.
        valid_MN: False for padding and for samples lost to infrastructure errors (missing, not
            wrong). None: all count.

    Returns:
        (n_M, c_M).
    """
    correct = np.asarray(correct_MN, dtype=bool)
    valid = np.ones_like(correct) if valid_MN is None else np.asarray(valid_MN, dtype=bool)
    return valid.sum(axis=1), (correct & valid).sum(axis=1)


def summarise_samples(
    n_M: ArrayLike,
    c_M: ArrayLike,
    ks: Iterable[int],
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> list[PassAtK]:
    """pass@k of a dataset, one entry for each k, with Wilson intervals over problems.

    Args:
        n_M: samples of each problem; a single number serves all problems.
        c_M: correct samples of each problem.
        ks: the values of k.
        level: nominal coverage.
        clusters: source label of each problem, see `problem_interval`.

    Returns:
        One `PassAtK` for each k, in the order of ``ks``. Problems with n < k are left out and
        counted; with none left the numbers are NaN and ``message`` says so.

    Raises:
        ValueError: no problem at all, or inconsistent counts.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n_M), np.atleast_1d(c_M))
    if not n.size:
        raise ValueError("no problem to summarise")
    labels = None if clusters is None else np.asarray(clusters)
    return [_one_k(n, c, int(k), level, labels) for k in ks]


def _one_k(n_M: Integers, c_M: Integers, k: int, level: float, labels: ArrayLike | None) -> PassAtK:
    enough = n_M >= k
    excluded = int((~enough).sum())
    message = too_few_samples(n_M, k) if excluded else ""
    if not enough.any():
        nan = float("nan")
        return PassAtK(k, int(n_M.max()), nan, nan, nan, level, 0, excluded, message=message)
    n, c = n_M[enough], c_M[enough]
    groups = None if labels is None else np.asarray(labels)[enough]
    interval = problem_interval(pass_at_k(n, c, k)[:, 0], level, groups)
    return PassAtK(
        k=k,
        n=int(n.min()),
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        level=level,
        problems=n.size,
        excluded=excluded,
        n_eff=interval.n_eff,
        df=interval.df,
        se_within=float(se_within(n, c, k)[0]),
        message=message,
    )
