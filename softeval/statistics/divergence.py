"""KL to the base model over problems, and the floor below which it is rounding noise.

Takes per-position KL already computed exactly over the whole vocabulary (Amini, Vieira and
Cotterell 2025, arXiv 2504.10637) and summed over each sequence. Direction and prefix set are names
the caller keeps; on greedy, fuzzy or soft trajectories the per-sequence number is not a sequence
KL but a sum of step KLs along that trajectory.

Shape letters: S training seeds, M problems, Q sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from softeval.statistics.crossed import CrossedMean, crossed_mean
from softeval.statistics.passk import Floats, Integers
from softeval.statistics.positions import group_sums

FLOOR_FACTOR = 3.0
"""A value under this multiple of the noise floor is not told apart from it."""


@dataclass(frozen=True)
class SequenceScores:
    """Per-problem scores of one checkpoint.

    Attributes:
        per_token: mean over the problem's sequences of their mean per position, shape (M,); NaN
            where no sequence has a position.
        per_sequence: mean over the problem's sequences of their sum, shape (M,); a sequence
            without positions counts as 0; NaN where there is no sequence.
    """

    per_token: Floats
    per_sequence: Floats


@dataclass(frozen=True)
class KLSummary:
    """KL of one cell in nats, per token and per sequence, with its noise floor.

    Attributes:
        per_token: mean over problems of per-sequence means (nats/token).
        per_sequence: mean over problems of per-sequence sums (nats/sequence).
        floor_per_token: KL(base‖base) at another batch size, nats/token; 0 if not measured.
        floor_per_sequence: the same per sequence.
    """

    per_token: CrossedMean
    per_sequence: CrossedMean
    floor_per_token: float = 0.0
    floor_per_sequence: float = 0.0

    @property
    def token_text(self) -> str:
        """nats/token as printed: the number, or "< 3 × floor"."""
        return print_kl(self.per_token.mean, self.floor_per_token)

    @property
    def sequence_text(self) -> str:
        """nats/sequence as printed: the number, or "< 3 × floor"."""
        return print_kl(self.per_sequence.mean, self.floor_per_sequence)


def sequence_scores(
    sum_Q: ArrayLike, length_Q: ArrayLike, problem_Q: ArrayLike, problems: int
) -> SequenceScores:
    """Average sequences within problem.

    Args:
        sum_Q: sum over positions of each sequence.
        length_Q: its number of positions.
        problem_Q: index of its problem, 0 … problems − 1.
        problems: number of problems M.
    """
    total, length = np.asarray(sum_Q, dtype=float), np.asarray(length_Q)
    owner = np.asarray(problem_Q, dtype=np.int64)
    filled = length > 0
    per_token = total[filled] / length[filled]
    return SequenceScores(
        per_token=_mean_within(per_token, owner[filled], problems),
        per_sequence=_mean_within(total, owner, problems),
    )


def summarise_kl(
    scores: SequenceScores | Sequence[SequenceScores],
    floor: SequenceScores | None = None,
    level: float = 0.95,
) -> KLSummary:
    """KL of one cell over seeds and problems; x̄ ± t·SE with the crossed variance.

    Args:
        scores: one for each training seed, the same problems in all.
        floor: the same measurement of the base model against itself at another batch size.
        level: nominal coverage.
    """
    seeds = [scores] if isinstance(scores, SequenceScores) else list(scores)
    token_SM = np.stack([score.per_token for score in seeds])
    sequence_SM = np.stack([score.per_sequence for score in seeds])
    return KLSummary(
        per_token=crossed_mean(token_SM, level, bounded=False),
        per_sequence=crossed_mean(sequence_SM, level, bounded=False),
        floor_per_token=0.0 if floor is None else float(np.nanmean(floor.per_token)),
        floor_per_sequence=0.0 if floor is None else float(np.nanmean(floor.per_sequence)),
    )


def print_kl(value: float, floor: float = 0.0) -> str:
    """Three significant digits, or "< 3 × floor" under `FLOOR_FACTOR` times the noise floor."""
    near = value < FLOOR_FACTOR * floor
    return f"< {FLOOR_FACTOR:.0f} × floor" if near else f"{value:.3g}"


def _mean_within(value_Q: Floats, owner_Q: Integers, problems: int) -> Floats:
    count = np.bincount(owner_Q, minlength=problems)
    total = group_sums(owner_Q, value_Q, problems)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
