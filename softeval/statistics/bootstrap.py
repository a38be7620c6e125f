"""Joint bootstrap of problems and training seeds, for statistics without a closed form.

Problems are drawn once per replicate and shared by both arms (they are paired); seeds are drawn
separately in each arm. Seeds of one checkpoint stay fixed.

Shape letters: B replicates, S seeds, M problems, K values of k.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from softeval.statistics.passk import Floats

REPLICATES = 2000
"""Default number of bootstrap replicates."""


def draw_weights(rng: np.random.Generator, replicates: int, units: int) -> Floats:
    """Resampling with replacement as weights, shape (B, units), rows summing to 1."""
    counts = rng.multinomial(units, np.full(units, 1.0 / units), size=replicates)
    return counts / units


def resampled_means(x_SMK: ArrayLike, problems_BM: Floats, rng: np.random.Generator) -> Floats:
    """Mean score of every replicate, shape (B, K), for one arm.

    Args:
        x_SMK: scores of each seed, problem and k.
        problems_BM: problem weights, shared between arms by the caller.
        rng: draws the seeds.
    """
    x = np.asarray(x_SMK, dtype=float)
    seeds, problems, width = x.shape
    flat = np.moveaxis(x, 1, 0).reshape(problems, seeds * width)
    means_BSK = (problems_BM @ flat).reshape(-1, seeds, width)
    if seeds == 1:
        return means_BSK[:, 0]
    seeds_BS = draw_weights(rng, len(problems_BM), seeds)
    return np.einsum("bs,bsk->bk", seeds_BS, means_BSK)


def sup_t(replicates_BK: Floats, centre_K: Floats, level: float) -> float:
    """Simultaneous critical value: level-quantile over replicates of max_k |û*_k − û_k| / SE_k.

    SE_k is the standard deviation of the replicates; values of k without any spread are skipped.
    Never below the pointwise normal quantile.

    Source: Montiel Olea and Plagborg-Møller 2019 (sup-t bands).
    """
    pointwise = float(ndtri(0.5 + level / 2.0))
    se_K = replicates_BK.std(axis=0, ddof=1)
    varying = se_K > 1e-12
    if not varying.any():
        return pointwise
    deviation = np.abs(replicates_BK - centre_K)[:, varying] / se_K[varying]
    return max(float(np.quantile(deviation.max(axis=1), level)), pointwise)
