"""pass@k from n samples of which c are correct, and how much re-sampling would move it.

Knows counts only: not which task, mode or checkpoint they came from, and nothing about
intervals over problems (interval.py, crossed.py).

Shape letters: M problems, N samples of a problem, K values of k.
"""

import warnings
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class TooFewSamples(UserWarning):
    """Some problems have fewer samples than k: their pass@k is NaN, never 1.0."""


def pass_at_k(n: ArrayLike, c: ArrayLike, ks: Iterable[int] | int) -> Floats:
    """Unbiased pass@k of each problem, 1 − C(n−c, k) / C(n, k), for all k at once.

    Args:
        n: samples drawn, any shape.
        c: correct samples, broadcast against ``n``, 0 ≤ c ≤ n.
        ks: the values of k, each ≥ 1.

    Returns:
        Scores in [0, 1], shape of ``n`` and ``c`` broadcast, followed by K. Exactly 0 where
        c = 0, exactly 1 where n − c < k. NaN where n < k, announced by a `TooFewSamples` warning.

    Raises:
        ValueError: a count is negative, not whole, c > n, or some k < 1.

    Source: Chen et al. 2021, arXiv 2107.03374, eq. 1; same values as openai/human-eval
    ``estimate_pass_at_k``.
    """
    n_M, c_M, ks_K = _checked_counts(n, c, ks)
    if n_M.size and ks_K.size and n_M.min() < ks_K.max():
        warnings.warn(too_few_samples(n_M, int(ks_K.max())), TooFewSamples, stacklevel=2)
    return 1.0 - all_wrong(n_M, c_M, ks_K)


def within_problem_variance(n: ArrayLike, c: ArrayLike, ks: Iterable[int] | int) -> Floats:
    """Unbiased variance of one problem's pass@k over re-sampling its n answers.

    (1 − û)² − C(n−c, 2k) / C(n, 2k): the second term is unbiased for (1−p)^{2k}, the square of
    what 1 − û estimates. It needs 2k different samples.

    Returns:
        Variances ≥ 0, same shape as `pass_at_k`; NaN where n < 2k ("not identified").
    """
    n_M, c_M, ks_K = _checked_counts(n, c, ks)
    variance = all_wrong(n_M, c_M, ks_K) ** 2 - all_wrong(n_M, c_M, 2 * ks_K)
    return np.maximum(variance, 0.0)


def se_within(n_M: ArrayLike, c_M: ArrayLike, ks: Iterable[int] | int) -> Floats:
    """Standard error of the dataset's pass@k if the same problems were sampled again.

    √(Σ_i v̂_i) / M: answers "would running this again change it?", not "would new problems?".

    Returns:
        One number for each k, shape (K,); NaN where some problem has n < 2k.
    """
    variance_MK = within_problem_variance(n_M, c_M, ks)
    return np.sqrt(variance_MK.sum(axis=0)) / variance_MK.shape[0]


def all_wrong(n_M: Integers, c_M: Integers, ks_K: Integers) -> Floats:
    """C(n−c, k) / C(n, k): the chance that k of the n samples are all wrong; NaN where n < k.

    Computed from log-gamma, so that no binomial overflows.
    """
    n, wrong, k = n_M[..., None], (n_M - c_M)[..., None], ks_K
    possible = (n >= k) & (wrong >= k)
    wrong_safe, n_safe = np.maximum(wrong, k), np.maximum(n, k)
    log_ratio = (
        gammaln(wrong_safe + 1)
        - gammaln(wrong_safe - k + 1)
        - gammaln(n_safe + 1)
        + gammaln(n_safe - k + 1)
    )
    ratio = np.where(possible, np.exp(np.minimum(log_ratio, 0.0)), 0.0)
    ratio = np.where(wrong == n, 1.0, ratio)
    return np.where(n < k, np.nan, ratio)


def too_few_samples(n_M: Integers, k: int) -> str:
    """The one line that says which pass@k is missing and how to get it."""
    short = int((np.asarray(n_M) < k).sum())
    fewest = int(np.min(n_M))
    return (
        f"pass@{k} is undefined for {short} of {np.size(n_M)} problems (n={fewest} < k={k}): "
        f"rerun with --num-samples {k}"
    )


def _checked_counts(
    n: ArrayLike, c: ArrayLike, ks: Iterable[int] | int
) -> tuple[Integers, Integers, Integers]:
    """Broadcast whole-numbered counts and a one-dimensional list of k."""
    n_M, c_M = np.broadcast_arrays(_whole(n, "n"), _whole(c, "c"))
    listed = [ks] if isinstance(ks, int | np.integer) else list(ks)
    ks_K = _whole(listed, "k")
    if (c_M < 0).any() or (c_M > n_M).any():
        raise ValueError("every problem needs 0 <= c <= n")
    if (ks_K < 1).any():
        raise ValueError("every k must be at least 1")
    return n_M, c_M, ks_K


def _whole(values: ArrayLike, name: str) -> Integers:
    array = np.asarray(values)
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise ValueError(f"{name} must hold whole numbers")
    return whole
