"""One row per k of a results table: pass@k with its interval, from counts.

Knows one checkpoint, task and mode at a time. Several training seeds: crossed.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.interval import problem_interval
from softeval.statistics.passk import Integers, pass_at_k


@dataclass(frozen=True)
class PassAtK:
    """Dataset pass@k of one cell.

    Attributes:
        k: the k of pass@k.
        n: fewest samples among the problems that entered (published as ``pass@32 (n=64)``).
        mean: mean over problems; NaN when no problem has k samples.
        low: lower end of the interval over new problems.
        high: upper end.
        problems: problems that entered; those with fewer than k samples do not.
    """

    k: int
    n: int
    mean: float
    low: float
    high: float
    problems: int


def summarise_samples(
    n_M: ArrayLike, c_M: ArrayLike, ks: Iterable[int], level: float = 0.95
) -> list[PassAtK]:
    """pass@k of a dataset, one entry for each k, with Wilson intervals over problems.

    Args:
        n_M: samples of each problem; a single number serves all problems.
        c_M: correct samples of each problem.
        ks: the values of k.
        level: nominal coverage.

    Raises:
        ValueError: no problem at all, or inconsistent counts.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n_M), np.atleast_1d(c_M))
    if not n.size:
        raise ValueError("no problem to summarise")
    return [_one_k(n, c, int(k), level) for k in ks]


def _one_k(n_M: Integers, c_M: Integers, k: int, level: float) -> PassAtK:
    enough = n_M >= k
    if not enough.any():
        return PassAtK(k, int(n_M.max()), np.nan, np.nan, np.nan, 0)
    n = n_M[enough]
    interval = problem_interval(pass_at_k(n, c_M[enough], k)[:, 0], level)
    return PassAtK(k, int(n.min()), interval.mean, interval.low, interval.high, n.size)
