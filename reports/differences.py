"""pass@k curves of an arm; the difference of two on the same problems, and where it changes sign.

"Training wins at small k, the base model at large k" is a claim about D(k) and never about two
curves looked at.

Shape letters: S training seeds, M problems, K values of k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softeval.reports.contrasts import (
    Side,
    mode_arms,
    mode_sides,
    modes_are_headline,
    modes_beside_reference,
    same_checkpoints,
    side,
)
from softeval.reports.layout import Paragraph, Part
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.scores import (
    ArmScore,
    Ints,
    arm_score,
    complete_curve,
    curve_ks,
    shared,
    usual_n,
)
from softeval.reports.tables import Table, TableCell, on_questions, points
from softeval.runs.run import REFERENCE, RecordedMode
from softeval.statistics.curves import (
    Band,
    Crossing,
    CrossingEvidence,
    CurveOrder,
    crossing,
    crossing_evidence,
    curve_band,
    curve_order,
    difference_band,
)

REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a panel.

    Attributes:
        name: in the legend.
        mode: sampled mode of the curve; None for a greedy mode alone.
        band: pass@k at powers of two with its simultaneous band; None where n < 2.
        greedy: greedy pass@1 of the same arm and kind; None where it was not run.
        n: largest k.
    """

    name: str
    mode: RecordedMode | None
    band: Band | None
    greedy: ArmScore | None
    n: int


def lane_curve(
    arm: Arm, task: str, sampled: RecordedMode | None, greedy: RecordedMode | None, name: str
) -> Curve | None:
    """The curve of a sampled mode with the greedy score beside it; None where there is neither."""
    score = None if greedy is None else arm_score(arm, (task, greedy), 1)
    checkpoints = () if sampled is None else arm.having((task, sampled))
    if sampled is None or not checkpoints:
        return None if score is None else Curve(name, None, None, score, 1)
    key = task, sampled
    n = usual_n(checkpoint.cells[key] for checkpoint in checkpoints)
    doc_M, x_SMK = complete_curve(checkpoints, key, curve_ks(n))
    enough = len(doc_M) > 1 and n > 1
    band = curve_band(x_SMK, curve_ks(n), replicates=REPLICATES) if enough else None
    return Curve(name, sampled, band, score, n)


@dataclass(frozen=True, eq=False)
class CurveDifference:
    """D(k) = pass@k of A - pass@k of B on the problems that both have.

    Attributes:
        a: the side whose lead is positive.
        b: the other side.
        task: the task.
        band: D at powers of two, with its simultaneous band.
        order: what may be said of the two curves.
        crossing: where D changes sign, over every whole k.
        evidence: how many problems carry a claim about a crossing.
        n: largest k.
        questions: questions of the task that either side has samples of; the curves stand on those
            with n samples on both sides.
        headline: it belongs into the verdict.
    """

    a: Side
    b: Side
    task: str
    band: Band
    order: CurveOrder
    crossing: Crossing
    evidence: CrossingEvidence
    n: int
    questions: int
    headline: bool

    def meeting(self) -> float | None:
        """The first k at which D is 0 as it is drawn, straight on an axis of log k; or None."""
        mean_K, log_K = self.band.mean, np.log2(self.band.ks)
        for at in np.flatnonzero(mean_K[:-1] * mean_K[1:] < 0):
            share = mean_K[at] / (mean_K[at] - mean_K[at + 1])
            return float(2 ** (log_K[at] + share * (log_K[at + 1] - log_K[at])))
        return None


def find_differences(arms: Arms, replicates: int = REPLICATES) -> list[CurveDifference]:
    """D(k) of every trained arm against its base model, of models, or of the modes of a model."""
    pairs = [(*pair, _is_headline(arms, pair[0], pair[1])) for pair in _curve_pairs(arms)]
    judged = sum(headline for *_, headline in pairs)
    found = (
        curve_difference(a, b, task, replicates, headline, judged if headline else 1)
        for a, b, task, headline in pairs
    )
    return [difference for difference in found if difference is not None]


def _is_headline(arms: Arms, a: Side, b: Side) -> bool:
    """Curves under hard sampling, and those of the modes where modes are what is compared."""
    return a.mode.family == REFERENCE if a.mode == b.mode else modes_are_headline(arms)


def curve_difference(
    a: Side,
    b: Side,
    task: str,
    replicates: int = REPLICATES,
    headline: bool = True,
    judged: int = 1,
) -> CurveDifference | None:
    """D(k) of two sides; None where fewer than two problems have every k.

    Args:
        a: the side whose lead is positive.
        b: the other side.
        task: the task.
        replicates: bootstrap replicates.
        headline: whether it belongs into the verdict.
        judged: pairs of curves that are judged together.
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
    at_shown = a_SMK[:, :, shown], b_SMK[:, :, shown], curve_ks(n)
    how: dict[str, Any] = {"replicates": replicates, "paired": same_checkpoints(a, b)}
    return CurveDifference(
        a=a,
        b=b,
        task=task,
        band=difference_band(*at_shown, **how),
        order=curve_order(*at_shown, judged, **how),
        crossing=crossing(a_SMK, b_SMK, every, **how),
        evidence=crossing_evidence(*(_pooled(s, task, doc_M) for s in (a, b))),
        n=n,
        questions=len(np.unique(np.concatenate([cell.doc_M for cell in cells]))),
        headline=headline,
    )


def _pooled(one: Side, task: str, doc_M: Ints) -> Ints:
    """Correct samples of each problem, over all seeds."""
    cells = [checkpoint.cells[one.key(task)] for checkpoint in one.checkpoints]
    return np.sum([cell.c_M[np.searchsorted(cell.doc_M, doc_M)] for cell in cells], axis=0)


def _curve_pairs(arms: Arms) -> Iterator[tuple[Side, Side, str]]:
    for group in arms.groups.values():
        for task in arms.tasks:
            for mode in (mode for mode in arms.modes if not mode.is_greedy):
                key = (task, mode)
                present = [arm for arm in group if arm.having(key)]
                for arm in present[1:]:
                    yield side(arms, arm, key), side(arms, present[0], key), task
    for arm in mode_arms(arms):
        for task in arms.tasks:
            for mode, other in modes_beside_reference(arms):
                sides = mode_sides(arms, arm, (task, mode), (task, other))
                if sides is not None and not mode.is_greedy:
                    yield *sides, task


ORDER_WORDS = {
    "a leads": "A leads",
    "b leads": "B leads",
    "cross": "they cross",
    "coincide": "they coincide",
    "undecided": "not told apart",
}


def order_parts(differences: Sequence[CurveDifference], label: str) -> tuple[Part, ...]:
    """A table where curves cross; where they do not one sentence; nothing for no curves."""
    words = [d.order.word for d in differences]
    if "cross" in words or not differences:
        return (crossing_table(differences, label),) if differences else ()
    told = [
        f"{ORDER_WORDS[word]} in {', '.join(_curves(d) for d in differences if d.order.word == word)}"
        for word in ORDER_WORDS
        if word in words
    ]
    return (Paragraph(f"No curve A − B crosses 0 with its band on both sides: {'; '.join(told)}."),)


def _curves(d: CurveDifference) -> str:
    mode = "" if d.a.mode != d.b.mode else f" ({d.a.mode.replace('_', ' ')})"
    return f"{d.a.name} − {d.b.name}{mode}"


def crossing_table(differences: Sequence[CurveDifference], label: str) -> Table:
    """Who leads, where D(k) changes sign, and how many problems carry it."""
    largest = max(d.n for d in differences)
    columns = ("curves", "D at k = 1", f"D at k = {largest}", "order", "sign changes at k")
    columns += ("resamples without such a change", "only A / only B solves")
    return Table(
        "The difference D(k) in points. Order: what its simultaneous band leaves of it; A leads"
        " where the band excludes 0 on that side, the curves cross where it does so on both. Then"
        " where D(k) first changes sign, with the middle 95 % of such changes in resamples, which"
        f" alone is no crossing; beyond k = {largest} nothing can be seen. Last: problems that one"
        " side solves at least once and the other never.",
        columns,
        tuple(_crossing_row(d, largest) for d in differences),
        label,
    )


def _crossing_row(d: CurveDifference, largest: int) -> tuple[TableCell, ...]:
    c = d.crossing
    span = "" if np.isnan(c.low) else f"[{c.low:.0f}, {c.high:.0f}]"
    span += f" again at {', '.join(map(str, c.again))}" if c.again else ""
    notes = [] if d.a.mode != d.b.mode else [d.a.mode.replace("_", " ")]
    notes += [on_questions(d.band.problems, d.questions)] if d.band.problems < d.questions else []
    return (
        TableCell(f"{d.a.name} − {d.b.name}", ", ".join(notes)),
        TableCell(points(d.band.mean[0], sign=True)),
        TableCell(points(d.band.mean[-1], sign=True), "" if d.n == largest else f"k = {d.n}"),
        TableCell(ORDER_WORDS[d.order.word]),
        TableCell("none" if c.k is None else str(c.k), span),
        TableCell(f"{100 * c.p_no_crossing:.0f} %"),
        TableCell(f"{d.evidence.only_a} / {d.evidence.only_b}"),
    )
