"""Difference of two pass@k curves on the same problems, and where it changes sign.

"Training wins at small k, the base model at large k" is a claim about D(k) and never about two
curves looked at. Knows nothing of how it is shown.

Shape letters: S training seeds, M problems, K values of k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from softeval.reports.arms import Arms
from softeval.reports.contrasts import Side, mode_sides, same_checkpoints, side
from softeval.reports.scores import Ints, complete_curve, curve_ks, shared, usual_n
from softeval.reports.statistics.curves import (
    Band,
    Crossing,
    CrossingEvidence,
    CurveOrder,
    crossing,
    crossing_evidence,
    curve_order,
    difference_band,
)

REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class CurveDifference:
    """D(k) = pass@k of A - pass@k of B on the problems that both have.

    Attributes:
        a: the side whose lead is positive.
        b: the other side.
        task: the task.
        band: D at powers of two, with its simultaneous band.
        crossing: where D changes sign, over every whole k.
        order: what may be said of it: which curve leads, whether they cross. Judged together with
            every other difference under the same mode of the other side.
        evidence: how many problems carry a claim about a crossing.
        n: largest k.
    """

    a: Side
    b: Side
    task: str
    band: Band
    crossing: Crossing
    order: CurveOrder
    evidence: CrossingEvidence
    n: int


def find_differences(arms: Arms, replicates: int = REPLICATES) -> list[CurveDifference]:
    """D(k) of every trained arm against its base model, or of the modes of a single arm."""
    found, pairs = [], list(_curve_pairs(arms))
    for a, b, task in pairs:
        together = sum(other.mode == b.mode for _, other, _ in pairs)
        difference = curve_difference(a, b, task, replicates, together)
        if difference is not None:
            found.append(difference)
    return found


def curve_difference(
    a: Side, b: Side, task: str, replicates: int = REPLICATES, together: int = 1
) -> CurveDifference | None:
    """D(k) of two sides; None where fewer than two problems have every k.

    ``together`` is how many differences one verdict judges.
    """
    cells = [c.cells[s.key(task)] for s in (a, b) for c in s.checkpoints]
    n = usual_n(cells)
    every = list(range(1, n + 1))
    first = complete_curve(a.checkpoints, a.key(task), every)
    second = complete_curve(b.checkpoints, b.key(task), every)
    doc_M, a_SMK, b_SMK = shared(first, second)
    if len(doc_M) < 2 or n < 2:
        return None
    shown = [k - 1 for k in curve_ks(n)]
    paired = same_checkpoints(a, b)
    at_shown = a_SMK[:, :, shown], b_SMK[:, :, shown], curve_ks(n)
    band = difference_band(*at_shown, replicates=replicates, paired=paired)
    order = curve_order(*at_shown, together, replicates=replicates, paired=paired)
    crossed = crossing(a_SMK, b_SMK, every, replicates=replicates, paired=paired)
    counts = [_pooled(s, task, doc_M) for s in (a, b)]
    evidence = crossing_evidence(*counts[0], *counts[1])
    return CurveDifference(a, b, task, band, crossed, order, evidence, n)


def _pooled(one: Side, task: str, doc_M: Ints) -> tuple[Ints, Ints]:
    """Samples and correct samples of each problem, over all seeds."""
    n_M, c_M = np.zeros(len(doc_M), np.int64), np.zeros(len(doc_M), np.int64)
    for checkpoint in one.checkpoints:
        cell = checkpoint.cells[one.key(task)]
        rows = np.searchsorted(cell.doc_M, doc_M)
        n_M += cell.n_M[rows]
        c_M += cell.c_M[rows]
    return n_M, c_M


def _curve_pairs(arms: Arms) -> Iterator[tuple[Side, Side, str]]:
    if len(arms.arms) == 1:
        arm = arms.arms[0]
        for task in arms.tasks:
            hard = (task, "hard_sample")
            for mode in ("fuzzy_sample", "soft_sample"):
                if (sides := mode_sides(arm, (task, mode), hard)) is not None:
                    yield *sides, task
        return
    for group in arms.groups.values():
        for task in arms.tasks:
            for mode in (mode for mode in arms.modes if mode.endswith("_sample")):
                key = (task, mode)
                present = [arm for arm in group if arm.having(key)]
                for arm in present[1:]:
                    yield side(arms, arm, key), side(arms, present[0], key), task
