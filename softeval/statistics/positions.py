"""Per-position values as sums by (problem, position), from which profiles and intervals are exact.

A run of 1319 problems × 64 samples × 512 positions becomes two 1319 × 512 arrays. Knows nothing
about what the values are (entropy, KL, top-1 probability).

Shape letters: P problems, T positions or bins.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from softeval.statistics.passk import Floats, Integers

Align = Literal["start", "progress", "end"]


@dataclass(frozen=True)
class PositionSums:
    """Sums over the samples of each problem at each position.

    Attributes:
        sum_PT: sum of the values.
        count_PT: how many values; 0 where no sample of the problem is at risk.
        samples_P: samples drawn of each problem, whether or not they are at risk anywhere, so that
            count / samples is the problem's share at risk; 0 for a problem that was not asked.
        sequences: sequences that entered, including those without any position.
        align: what T counts: positions from the start, equal parts of relative progress, or
            positions back from the end (0 = last).
        width: positions in each bin; the last bin may be narrower.
        length: number of positions covered, before binning.
    """

    sum_PT: Floats
    count_PT: Integers
    samples_P: Integers
    sequences: int
    align: Align = "start"
    width: int = 1
    length: int = 0

    @property
    def shares(self) -> tuple[Floats, Floats]:
        """Sums and counts for one sample drawn of each problem: both divided by its samples."""
        drawn_P1 = np.maximum(self.samples_P, 1)[:, None]
        return self.sum_PT / drawn_P1, self.count_PT / drawn_P1

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
            count_PT=np.add.reduceat(self.count_PT, edges, axis=1),
            width=width,
        )
