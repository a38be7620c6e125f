"""What a page opens with: the sentence that answers, and what each side solves, with differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softeval.reports.contrasts import Comparison, mode_arms, modes_are_headline
from softeval.reports.differences import CurveDifference
from softeval.reports.layout import AMBER, Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import BASE, Arms
from softeval.reports.measured.scores import arm_score, metrics
from softeval.reports.notes import unfinished_notes
from softeval.reports.sections.verdict import (
    importance,
    listed,
    scores_told,
    side_name,
    told_ks,
    whole,
)
from softeval.reports.tables import interval_text, margin_text, metric_name, points
from softeval.runs.run import REFERENCE

WORDS = {
    "better": "better: {}",
    "worse": "worse: {}",
    "equivalent": "equivalent within ±{margin} points: {}",
    "inconclusive": "not told apart from it: {}",
}


def _answer(material: Material) -> Iterator[Part]:
    """The sentence, how far the runs are that have not ended, and the levels."""
    arms, primary = material.arms, [c for c in material.comparisons if c.primary]
    mine = clearest(primary)
    gained = gains(material.comparisons, mine[0].metric.task if mine else None)
    told = [lead_of_training(gained, material.differences[0])] if gained else []
    if mine and not all(c in gained for c in mine):
        told.append(lead(arms, mine, material.options.margin, gained))
    told = told or [s.text for s in scores_told(arms)[:1]]
    if others := len(primary) - len(mine):
        told.append(f"{others} more primary comparison{'s'[: others > 1]}: see the verdict.")
    if told:
        yield Paragraph(" ".join(told), "lead")
    for note in unfinished_notes(arms):
        yield Paragraph(note, AMBER)
    if mine or len(arms.keys) > 1:
        task = mine[0].metric.task if mine else arms.tasks[0]
        yield Own("levels.html.j2", levels(arms, material.comparisons, task))


def clearest(primary: Sequence[Comparison]) -> list[Comparison]:
    """Those of one reference and metric that hold the largest significant finding."""
    groups: dict[tuple[object, ...], list[Comparison]] = {}
    for c in primary:
        key = (c.metric.task, c.metric.k, c.b.mode, c.b.checkpoints, c.a.mode == c.b.mode)
        groups.setdefault(key, []).append(c)
    return min(groups.values(), key=importance, default=[])


def gains(comparisons: Sequence[Comparison], task: str | None) -> list[Comparison]:
    """What was trained less its untrained model, at the large k under hard sampling."""
    found = [
        c
        for c in comparisons
        if task in (None, c.metric.task)
        and c.a.mode == c.b.mode
        and c.a.mode.family == REFERENCE
        and c.metric.k > 1
        and [side.checkpoints[0].method == BASE for side in (c.a, c.b)] == [False, True]
    ]
    return clearest(found)


def lead_of_training(gained: Sequence[Comparison], differences: Sequence[CurveDifference]) -> str:
    """One sentence: what the untrained model solves and what each trained one, and where curves meet."""
    first, k = gained[0], gained[0].metric.k
    curves = {(d.task, d.a.mode, d.a.checkpoints, d.b.checkpoints): d for d in differences}
    told = f"{side_name(first.b)} solves {points(first.contrast.mean_b)} % at pass@{k}"
    for c in gained:
        difference, interval = points(c.contrast.diff, sign=True), (c.contrast.low, c.contrast.high)
        d = curves.get((c.metric.task, c.a.mode, c.a.checkpoints, c.b.checkpoints))
        order = "" if d is None else f"; {_order_told(d)}"
        told += f", {side_name(c.a)} {points(c.contrast.mean_a)} %"
        told += f" ({difference} points {interval_text(*interval)}{order})"
    return f"On {first.metric.task} under {first.a.mode.family} inference, {told}."


def _order_told(d: CurveDifference) -> str:
    """What the band of D(k) leaves of the curve of what was trained, against the untrained one's."""
    sides = ((d.order.a_ks, "ahead"), (d.order.b_ks, "behind"))
    where = " and ".join(f"{word} at {told_ks(ks, d)}" for ks, word in sorted(sides) if ks)
    met = d.meeting()
    at = "" if met is None else f" at about k = {met:.0f}"
    match d.order.word:
        case "cross":
            return f"the curves cross{at}, {where}"
        case "a leads" | "b leads":
            return f"its curve is {where}" + (at and f", and as drawn meets the other{at}")
        case word:
            return "the same curve" if word == "coincide" else "curves not told apart"


def lead(
    arms: Arms, mine: Sequence[Comparison], margin: float, gained: Sequence[Comparison] = ()
) -> str:
    """What the reference solves, and what solves more or less; nothing again of what was `gained`."""
    first, b = mine[0], mine[0].b
    of_modes = first.a.mode != b.mode
    names = [
        f"{s.mode.family} inference" if of_modes else side_name(s)
        for s in [b, *(c.a for c in mine)]
    ]
    where = f"On {first.metric.task}"
    where += "" if of_modes else f" under {b.mode.family} inference"
    where += f" with {side_name(whole(arms, b))}" if of_modes and len(arms.arms) > 1 else ""
    metric = "greedy pass@1" if first.metric.mode.is_greedy else f"pass@{first.metric.k}"
    known = {(s.name, s.mode, c.metric.k) for c in gained for s in (c.a, c.b)}
    repeated = all((s.name, s.mode, c.metric.k) in known for c in mine for s in (c.a, c.b))
    parts: list[str] = []
    for word, told in WORDS.items():
        those = [
            name if repeated else f"{name} ({points(c.contrast.mean_a)} %)"
            for name, c in zip(names[1:], mine, strict=True)
            if c.verdict.word == word
        ]
        parts += [told.format(listed(those, "and"), margin=margin_text(margin))] if those else []
    start = f"{names[0]} solves {points(first.contrast.mean_b)} % at {metric}; "
    if repeated:
        start = f"Against {names[0]} at {metric}, "
    elif of_modes or not any(c.a.mode.family == b.mode.family for c in gained):
        start = f"{where}, {start}"
    return f"{start[0].upper()}{start[1:]}{'; '.join(parts)}."


def levels(arms: Arms, comparisons: Sequence[Comparison], task: str) -> dict[str, Any]:
    """What the template draws: a row an arm or a kind of inference of it, a column a metric."""
    by_modes = modes_are_headline(arms)
    mine = [c for c in comparisons if c.metric.task == task and by_modes == (c.a.mode != c.b.mode)]
    reference = next((c.b.checkpoints for c in mine if c.primary), None)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in mode_arms(arms) if by_modes else arms.arms:
        for mode, k in metrics(arms, task):
            score = arm_score(arm, (task, mode), k)
            if score is None or not (by_modes or mode.family == REFERENCE):
                continue
            name = arms.name(arm) if len(arms.arms) > 1 else ""
            name = " · ".join(filter(None, (name, mode.family if by_modes else "")))
            difference, sure = "", False
            for c in (c for c in mine if c.metric.k == k and mode in (c.a.mode, c.b.mode)):
                for one, other, sign in ((c.a, c.b, 1), (c.b, c.a, -1)):
                    against = sign > 0 if by_modes else other.checkpoints == reference
                    if one.mode == mode and one.checkpoints == arm.having((task, mode)) and against:
                        difference = points(sign * c.contrast.diff, sign=True)
                        sure = c.verdict.word in ("better", "worse")
            interval = score.mean.interval
            rows.setdefault(name, {})[metric_name(mode, k)] = {
                "ends": [round(100 * x, 1) for x in (interval.low, interval.mean, interval.high)],
                "level": points(interval.mean),
                "interval": interval_text(interval.low, interval.high),
                "difference": difference,
                "sure": sure,
            }
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    against = f"{REFERENCE} inference" if by_modes else mine[0].b.name if mine else ""
    return {"task": task, "columns": list(columns), "rows": rows, "against": against}


SECTION = Section("opening", "", "", {"The answer": _answer})
