"""Who judged the answers of a report, and whether the other rules would change what it says.

Every sample keeps what both sets of rules say of it: its score is by one, `other_correct` by the
other. Runs judged by different rules are told apart here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from softeval.reports.arms import Arm, Arms, Checkpoint, MeasuredRun
from softeval.reports.contrasts import Comparison, find_comparisons
from softeval.scoring.judge import Rules, rules_name

BEFORE_NAMES = str(Rules.MATH_VERIFY)
"""What judged the runs whose record names no rules."""


def rules_of_run(run: MeasuredRun) -> str:
    """Name and version of the rules that judged a run."""
    scorer = run.run.record.get("scorer") or {}
    return str(scorer.get("rules") or BEFORE_NAMES)


def rules_notes(arms: Arms) -> list[str]:
    """A sentence where runs were judged by different rules; empty where all by the same."""
    by_rules: dict[str, list[str]] = {}
    for run in arms.runs:
        if run.cells:
            by_rules.setdefault(rules_of_run(run), []).append(run.run.folder.name)
    if len(by_rules) < 2:
        return []
    who = ", ".join(f"{' and '.join(names)} by {rules}" for rules, names in by_rules.items())
    told = f"Not judged by the same rules: {who}. Differences between these may come from it;"
    return [f"{told} `softeval score RUN` judges a run again."]


def other_rules_text(
    arms: Arms, comparisons: Sequence[Comparison], declared: Sequence[str], margin: float
) -> str:
    """What the rules that did not give the scores would say; "" where no run records it."""
    pairs = [
        (cell.correct_R, cell.other_R)
        for run in arms.runs
        for cell in run.cells.values()
        if cell.other_R is not None
    ]
    if not pairs:
        return ""
    samples = sum(len(ours_R) for ours_R, _ in pairs)
    only_here = sum(int((ours_R & ~other_R).sum()) for ours_R, other_R in pairs)
    only_there = sum(int((other_R & ~ours_R).sum()) for ours_R, other_R in pairs)
    others = " or ".join(sorted({_other_name(run) for run in arms.runs if run.cells}))
    if not only_here and not only_there:
        return f"By {others}, the other rules, all {samples:,} verdicts are the same."
    again = find_comparisons(judged_by_other(arms), declared, margin)
    words = {(c.name, c.metric_name, c.metric.task): c.verdict.word for c in again}
    changed = [
        f"{c.name} on {c.metric.task}, {c.metric_name}: {c.verdict.word}, by {others} {word}"
        for c in comparisons
        if (word := words.get((c.name, c.metric_name, c.metric.task))) not in (None, c.verdict.word)
    ]
    effect = "; ".join(changed) if changed else "no comparison changes its word"
    return (
        f"By {others}, the other rules, {only_here + only_there:,} of {samples:,} verdicts differ"
        f" ({only_here:,} right only as scored here, {only_there:,} only by the others): {effect}."
    )


def judged_by_other(arms: Arms) -> Arms:
    """The same runs with the verdicts of the other rules, where these are recorded."""
    runs = {id(run): _run_by_other(run) for run in arms.runs}

    def checkpoint(one: Checkpoint) -> Checkpoint:
        return replace(one, runs=tuple(runs[id(run)] for run in one.runs))

    def arm(one: Arm) -> Arm:
        return replace(one, checkpoints=tuple(map(checkpoint, one.checkpoints)))

    return replace(arms, arms=tuple(map(arm, arms.arms)), runs=tuple(runs.values()))


def _run_by_other(run: MeasuredRun) -> MeasuredRun:
    return replace(run, cells={key: cell.by_other_rules() for key, cell in run.cells.items()})


def _other_name(run: MeasuredRun) -> str:
    ours = rules_of_run(run)
    other = Rules.SOFTEVAL if ours.startswith(Rules.MATH_VERIFY) else Rules.MATH_VERIFY
    return rules_name(other)
