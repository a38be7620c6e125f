"""Millions of per-position values reduced to sums by (problem, position).

A run of 1319 problems × 64 samples × 512 positions becomes three 1319 × 512 arrays, from which
means and the bootstrap over problems are exact. Knows nothing about what the values are (entropy,
KL, top-1 probability).

Shape letters: Q sequences, R rows (all positions of all sequences, one after the other),
P problems, T positions or bins.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softeval.reports.statistics.passk import Floats, Integers

Align = Literal["start", "progress", "end"]


@dataclass(frozen=True)
class PositionSums:
    """Sums over the samples of each problem at each position.

    Attributes:
        sum_PT: sum of the values.
        sumsq_PT: sum of their squares.
        count_PT: how many values; 0 where no sample of the problem is at risk.
        sequences: sequences that entered, including those without any position.
        align: what T counts: positions from the start, equal parts of relative progress, or
            positions back from the end (0 = last).
        width: positions in each bin; the last bin may be narrower.
        length: number of positions covered, before binning.
    """

    sum_PT: Floats
    sumsq_PT: Floats
    count_PT: Integers
    sequences: int
    align: Align = "start"
    width: int = 1
    length: int = 0

    def __add__(self, other: "PositionSums") -> "PositionSums":
        """Sums of two sets of sequences over the same problems and positions."""
        if self.layout != other.layout:
            raise ValueError("sums of different layouts cannot be added")
        return replace(
            self,
            sum_PT=self.sum_PT + other.sum_PT,
            sumsq_PT=self.sumsq_PT + other.sumsq_PT,
            count_PT=self.count_PT + other.count_PT,
            sequences=self.sequences + other.sequences,
        )

    @property
    def mean_PT(self) -> Floats:
        """Mean over samples within problem; NaN where the problem is not at risk."""
        at_risk = self.count_PT > 0
        return np.where(at_risk, self.sum_PT / np.maximum(self.count_PT, 1), np.nan)

    @property
    def at_risk_T(self) -> Floats:
        """Share of sequences that reach each position, averaged over the positions of a bin.

        All ones for relative progress, where every sequence has a start and an end.
        """
        if self.align == "progress":
            return np.ones(self.count_PT.shape[1])
        starts = np.arange(self.count_PT.shape[1]) * self.width
        capacity = np.minimum(self.width, self.length - starts) * max(self.sequences, 1)
        return self.count_PT.sum(axis=0) / capacity

    def binned(self, width: int = 8) -> "PositionSums":
        """The same sums with ``width`` neighbouring positions put together.

        Raises:
            ValueError: already binned, or relative progress.
        """
        if self.align == "progress" or self.width != 1:
            raise ValueError("only single positions can be binned")
        edges = np.arange(0, self.count_PT.shape[1], width)
        return replace(
            self,
            sum_PT=np.add.reduceat(self.sum_PT, edges, axis=1),
            sumsq_PT=np.add.reduceat(self.sumsq_PT, edges, axis=1),
            count_PT=np.add.reduceat(self.count_PT, edges, axis=1),
            width=width,
        )

    @property
    def layout(self) -> tuple[object, ...]:
        """What two sums must share to be added or compared."""
        return self.sum_PT.shape, self.align, self.width, self.length


def reduce_sequences(
    value_R: ArrayLike,
    length_Q: ArrayLike,
    problem_Q: ArrayLike,
    problems: int,
    bins: int,
    align: Align = "start",
    min_length: int = 0,
) -> PositionSums:
    """Reduce whole sequences; call it on chunks of sequences and add the results.

    Args:
        value_R: values of all positions, sequence after sequence.
        length_Q: positions of each sequence, summing to R.
        problem_Q: index of each sequence's problem, 0 … problems − 1.
        problems: number of problems P.
        bins: T. Positions beyond it are dropped (``start``, ``end``); for ``progress`` the number
            of equal parts of t/length.
        align: see `PositionSums`.
        min_length: fixed cohort: only sequences with at least this many positions enter.

    Raises:
        ValueError: lengths and values disagree, or a problem index is out of range.
    """
    values, lengths = np.asarray(value_R), np.asarray(length_Q, dtype=np.int64)
    owners = np.asarray(problem_Q, dtype=np.int64)
    if lengths.sum() != values.size or lengths.size != owners.size:
        raise ValueError("sequence lengths do not add up to the number of values")
    if owners.size and not 0 <= owners.min() <= owners.max() < problems:
        raise ValueError(f"problem indices must lie in 0 … {problems - 1}")
    sequences = lengths.size
    if min_length:
        keep_Q = lengths >= min_length
        sequences = int(keep_Q.sum())
        values = values[np.repeat(keep_Q, lengths)]
        lengths, owners = lengths[keep_Q], owners[keep_Q]
    if align != "progress" and lengths.size and lengths.max() > bins:
        values, lengths = _clipped(values, lengths, bins, align)
    index_R = flat_index(lengths, owners, bins, align)
    return _summed(index_R, values, (problems, bins), sequences, align)


def flat_index(
    length_Q: Integers, problem_Q: Integers, bins: int, align: Align
) -> NDArray[np.int64]:
    """Index problem · bins + bin of every position, shape (R,); no sequence longer than ``bins``.

    (For relative progress any length.) One arithmetic step a row: there may be 10⁸ of them.
    """
    first_Q = np.cumsum(length_Q) - length_Q
    row_R = np.arange(int(length_Q.sum()))
    offset_Q = problem_Q * bins
    match align:
        case "start":
            return row_R + np.repeat(offset_Q - first_Q, length_Q)
        case "end":
            return np.repeat(offset_Q + length_Q - 1 + first_Q, length_Q) - row_R
        case "progress":
            position_R = row_R - np.repeat(first_Q, length_Q)
            part_R = position_R * bins // np.repeat(length_Q, length_Q)
            return np.repeat(offset_Q, length_Q) + part_R


def group_sums(group_R: Integers, value_R: ArrayLike, groups: int) -> Floats:
    """Sum of the values of each group, in float64."""
    sums = np.bincount(group_R, weights=np.asarray(value_R), minlength=groups)
    return sums.astype(np.float64, copy=False)


def length_terciles(length_Q: ArrayLike) -> NDArray[np.int64]:
    """Tercile of each sequence by length: 0 short, 1 middle, 2 long; ties stay together."""
    lengths = np.asarray(length_Q)
    cuts = np.quantile(lengths, [1 / 3, 2 / 3])
    return np.searchsorted(cuts, lengths, side="left")


def _clipped(
    value_R: NDArray[np.floating], length_Q: Integers, bins: int, align: Align
) -> tuple[NDArray[np.floating], Integers]:
    """Keep the first (or, aligned at the end, the last) ``bins`` positions of each sequence."""
    kept_Q = np.minimum(length_Q, bins)
    first_Q = np.cumsum(length_Q) - length_Q
    if align == "end":
        first_Q = first_Q + length_Q - kept_Q
    shift_Q = first_Q - (np.cumsum(kept_Q) - kept_Q)
    return value_R[np.arange(int(kept_Q.sum())) + np.repeat(shift_Q, kept_Q)], kept_Q


def _summed(
    index_R: NDArray[np.int64],
    value_R: NDArray[np.floating],
    shape: tuple[int, int],
    sequences: int,
    align: Align,
) -> PositionSums:
    size = shape[0] * shape[1]
    values = value_R.astype(np.float64, copy=False)
    return PositionSums(
        sum_PT=group_sums(index_R, values, size).reshape(shape),
        sumsq_PT=group_sums(index_R, values * values, size).reshape(shape),
        count_PT=np.bincount(index_R, minlength=size).reshape(shape),
        sequences=sequences,
        align=align,
        length=shape[1],
    )
