"""Out-of-domain likelihood: NLL per token of the gold answer against the base model.

Knows per-problem NLL only; the prompt, the normalisation (token or byte) and the answer prefix
are recorded by whoever measured it.

Shape letters: S training seeds, M problems.
"""

from numpy.typing import ArrayLike

from softeval.statistics.contrast import Contrast, compare_methods


def nll_difference(
    nll_SM: ArrayLike, base_SM: ArrayLike, level: float = 0.95, seed: int = 0
) -> Contrast:
    """Paired difference in NLL, trained − base, in nats per token; negative is better.

    Args:
        nll_SM: NLL of each training seed on each problem, averaged over the answer's tokens.
        base_SM: the same for the base model, one row or one-dimensional.
        level: nominal coverage.
        seed: of the sign flips, used when the trained arm is a single checkpoint.

    Returns:
        The contrast; give `judge` ``lower_is_better=True`` and a margin in nats.
    """
    return compare_methods(nll_SM, base_SM, level, bounded=False, seed=seed)
