"""What a page opens with: the sentence that answers, and what each side solves, with differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from softeval.reports.contrasts import Comparison, mode_arms, modes_are_headline
from softeval.reports.layout import AMBER, Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arms
from softeval.reports.measured.scores import arm_score, metrics
from softeval.reports.notes import unfinished_notes
from softeval.reports.sections.verdict import importance, listed, scores_told, side_name, whole
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
    told = lead(arms, mine, material.options.margin) if mine else ""
    others = len(primary) - len(mine)
    rest = (
        f" {others} more primary comparison{'s'[: others > 1]}: see the verdict." if others else ""
    )
    told = told + rest if mine else next((s.text for s in scores_told(arms)), "")
    if told:
        yield Paragraph(told, "lead")
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


def lead(arms: Arms, mine: Sequence[Comparison], margin: float) -> str:
    """One sentence: what the reference solves, and what solves more or less."""
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
    parts = [f"{names[0]} solves {points(first.contrast.mean_b)} % at {metric}"]
    for word, told in WORDS.items():
        those = [
            f"{name} ({points(c.contrast.mean_a)} %)"
            for name, c in zip(names[1:], mine, strict=True)
            if c.verdict.word == word
        ]
        parts += [told.format(listed(those, "and"), margin=margin_text(margin))] if those else []
    return f"{where}, {'; '.join(parts)}."


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
