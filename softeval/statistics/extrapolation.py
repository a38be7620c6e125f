"""pass@K beyond the samples drawn: three models side by side, so that their disagreement shows.

The choice of model dominates the result and the unsolvable share cannot be identified from
problems with c = 0, so nothing here belongs in a table, and K > 8n is refused.

Shape letters: M problems, K values of k.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, expit, gammaln

from softeval.errors import UserError
from softeval.statistics.passk import Floats, Integers, pass_at_k

FARTHEST = 8
"""Largest K in multiples of n."""

OUTSIDE = (
    "in simulations (500 questions, n = 8 and 32, four laws of difficulty) the true pass@k at"
    " k = 8n lay outside the hatched area in 20 to 100 % of cases, half of the settings above 65 %"
)
"""How often the disagreement of the models misses the truth: benchmarks/coverage.py, `beyond`."""

_LIMIT = 12.0  # log-parameters stay within e^±12, far outside any fit that data support


@dataclass(frozen=True)
class BetaBinomial:
    """Success rates p_i ~ Beta(a, b), a share ``unsolvable`` of problems having p = 0.

    Source: Schaeffer et al. 2025, arXiv 2502.17578; Kazdan et al. 2025, arXiv 2510.05197.
    """

    a: float
    b: float
    unsolvable: float = 0.0

    def pass_at(self, ks: ArrayLike) -> Floats:
        """(1 − unsolvable) · (1 − B(a, b+K) / B(a, b))."""
        k = np.asarray(ks, dtype=float)
        failing = np.exp(betaln(self.a, self.b + k) - betaln(self.a, self.b))
        return (1.0 - self.unsolvable) * (1.0 - failing)


@dataclass(frozen=True)
class PowerLaw:
    """−log pass@K = scale · K^(−exponent), Brown et al. 2024."""

    scale: float
    exponent: float

    def pass_at(self, ks: ArrayLike) -> Floats:
        """exp(−scale · K^(−exponent))."""
        return np.exp(-self.scale * np.asarray(ks, dtype=float) ** -self.exponent)


@dataclass(frozen=True)
class Extrapolation:
    """Three continuations of one pass@k curve; draw all, dashed and hatched.

    Attributes:
        ks: values of K, shape (K,).
        beta_binomial: continuation under `BetaBinomial`.
        zero_inflated: the same with an unsolvable share.
        power_law: continuation under `PowerLaw`.
        n: samples behind the fits.
    """

    ks: Integers
    beta_binomial: Floats
    zero_inflated: Floats
    power_law: Floats
    n: int

    @property
    def disagreement(self) -> Floats:
        """Largest minus smallest of the three: "model disagreement", not an interval."""
        return np.ptp([self.beta_binomial, self.zero_inflated, self.power_law], axis=0)


def extrapolate(n_M: ArrayLike, c_M: ArrayLike, ks: ArrayLike) -> Extrapolation:
    """Continue a pass@k curve to K ≤ 8n.

    Raises:
        UserError: some K exceeds 8 times the smallest n.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n_M), np.atleast_1d(c_M))
    ks_K = np.asarray(ks, dtype=np.int64)
    fewest = int(n.min())
    if ks_K.max() > FARTHEST * fewest:
        raise UserError(
            f"pass@{ks_K.max()} cannot be extrapolated from n={fewest}: "
            f"stay at K <= {FARTHEST * fewest} or rerun with more --num-samples"
        )
    models = (fit_beta_binomial(n, c), fit_zero_inflated(n, c), fit_power_law(n, c))
    return Extrapolation(ks_K, *(model.pass_at(ks_K) for model in models), n=fewest)


def fit_beta_binomial(n_M: ArrayLike, c_M: ArrayLike) -> BetaBinomial:
    """Maximum likelihood of c_i ~ BetaBinomial(n_i, a, b)."""
    n, c, weight = _distinct(n_M, c_M)

    def loss(theta: Floats) -> float:
        return -float(weight @ _log_likelihood(n, c, *np.exp(theta)))

    a, b = np.exp(_minimise(loss, [[0.0, 0.0], [-1.0, 0.0], [-1.0, 1.0]]))
    return BetaBinomial(float(a), float(b))


def fit_zero_inflated(n_M: ArrayLike, c_M: ArrayLike) -> BetaBinomial:
    """Maximum likelihood with an extra share of problems that are never solved."""
    n, c, weight = _distinct(n_M, c_M)

    def loss(theta: Floats) -> float:
        share = expit(theta[2])
        solvable = np.log1p(-share) + _log_likelihood(n, c, *np.exp(theta[:2]))
        never = np.where(c == 0, np.log(share), -np.inf)
        return -float(weight @ np.logaddexp(solvable, never))

    starts = [[a, b, share] for a, b in ((0.0, 0.0), (-1.0, 1.0)) for share in (-5.0, -2.0)]
    theta = _minimise(loss, starts)
    a, b = np.exp(theta[:2])
    return BetaBinomial(float(a), float(b), float(expit(theta[2])))


def fit_power_law(n_M: ArrayLike, c_M: ArrayLike) -> PowerLaw:
    """Least squares of log(−log pass@k) on log k over k = 1…n.

    A curve without two usable points (all solved, or none) gets exponent 0.
    """
    n, c = np.broadcast_arrays(np.atleast_1d(n_M), np.atleast_1d(c_M))
    ks = np.arange(1, int(n.min()) + 1)
    curve = pass_at_k(n, c, ks).mean(axis=0)
    usable = (curve > 0.0) & (curve < 1.0)
    if usable.sum() < 2:
        return PowerLaw(np.inf if curve[-1] == 0.0 else 0.0, 0.0)
    slope, start = np.polyfit(np.log(ks[usable]), np.log(-np.log(curve[usable])), 1)
    return PowerLaw(float(np.exp(start)), float(-slope))


def _distinct(n_M: ArrayLike, c_M: ArrayLike) -> tuple[Integers, Integers, Floats]:
    """Distinct (n, c) pairs with how often each occurs: the likelihood needs no more."""
    n, c = np.broadcast_arrays(np.atleast_1d(n_M), np.atleast_1d(c_M))
    pairs, times = np.unique(np.stack([n, c]), axis=1, return_counts=True)
    return pairs[0], pairs[1], times.astype(float)


def _log_likelihood(n: Integers, c: Integers, a: float, b: float) -> Floats:
    choose = gammaln(n + 1) - gammaln(c + 1) - gammaln(n - c + 1)
    return choose + betaln(c + a, n - c + b) - betaln(a, b)


def _minimise(loss: Callable[[Floats], float], starts: list[list[float]]) -> Floats:
    """Best of several bounded quasi-Newton runs; the likelihoods can have two optima."""
    from scipy.optimize import minimize

    bounds = [(-_LIMIT, _LIMIT)] * len(starts[0])
    runs = [minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    return min(runs, key=lambda run: run.fun).x
