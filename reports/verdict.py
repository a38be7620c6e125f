"""The verdict of a report: a few sentences made from the primary contrasts and nothing else.

Words are those of the tests: better, worse, equivalent, inconclusive. "No difference" is never
concluded from a large p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan

from softeval.reports.arms import BASE, Arms
from softeval.reports.contrasts import Comparison, Side
from softeval.reports.differences import CurveDifference
from softeval.reports.scores import arm_score, headline_k
from softeval.reports.tables import margin_text, points

MOST = 6
ALPHA = 0.05


@dataclass(frozen=True)
class Sentence:
    """One finding and over what it generalises ("" where that does not arise)."""

    text: str
    scope: str = ""


def verdict_sentences(
    arms: Arms,
    comparisons: Sequence[Comparison],
    differences: Sequence[CurveDifference],
    margin: float,
) -> list[Sentence]:
    """At most six sentences; what is left out stands in the table of comparisons."""
    primary = [c for c in comparisons if c.primary]
    findings = [_of_pair(pair, margin) for pair in _pairs(primary).values()] or _of_scores(arms)
    crossings = list(_of_crossings([d for d in differences if _is_headline(d, arms)]))
    room = max(MOST - min(len(crossings), 2), 1)
    return (findings[:room] + [Sentence(text) for text in crossings])[:MOST]


def _pairs(comparisons: Sequence[Comparison]) -> dict[tuple[str, str, str], list[Comparison]]:
    """Comparisons of one pair on one task belong in one sentence, large k first."""
    pairs: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in sorted(comparisons, key=lambda c: -c.metric.k):
        pairs.setdefault((c.metric.task, *_names(c)), []).append(c)
    return pairs


def _names(pair: Comparison | CurveDifference) -> tuple[str, str]:
    """Names of both sides: kinds of inference where the sides are modes, else arms as they are."""
    a, b = pair.a, pair.b
    return (a.name, b.name) if a.mode == b.mode else (_kind(a.mode), _kind(b.mode))


def _kind(mode: str) -> str:
    """``hard`` of ``hard_greedy`` and of ``hard_sample``."""
    return mode.removesuffix("_greedy").removesuffix("_sample")


def _trained(side: Side, alone: bool) -> str:
    """A side as what was trained, or as the model before training."""
    first = side.checkpoints[0]
    if first.method != BASE:
        return f"{side.name} training"
    return "the base model" if alone else f"the base model {first.family}"


def _of_pair(comparisons: Sequence[Comparison], margin: float) -> Sentence:
    first = comparisons[0]
    task = first.metric.task
    modes = {_kind(c.metric.mode) for c in comparisons}
    if first.a.mode != first.b.mode:
        a, b = _names(first)
        subject = f"On {task}, {a} inference against {b} inference"
    else:
        a, b = (_trained(s, s.name == BASE) for s in (first.a, first.b))
        where = f", under {modes.copy().pop()} inference" if len(modes) == 1 else ""
        subject = f"On {task}{where}, {a} against {b}"
    parts = [_of_metric(c, len(modes) > 1, margin) for c in comparisons]
    return Sentence(f"{subject} is {'; '.join(parts)}.", first.contrast.scope)


def _of_metric(c: Comparison, name_mode: bool, margin: float) -> str:
    contrast = c.contrast
    metric = "greedy pass@1" if c.metric.mode.endswith("_greedy") else f"pass@{c.metric.k}"
    where = f"{metric} under {_kind(c.metric.mode)} inference" if name_mode else metric
    interval = f"[{points(contrast.low)}, {points(contrast.high)}]"
    effect = f"{points(contrast.diff, sign=True)} points {interval}"
    match c.verdict.word:
        case "better" | "worse" as word:
            return f"{word} at {where} ({effect})"
        case "equivalent":
            return f"equivalent at {where} within ±{margin_text(margin)} points ({effect})"
        case _:
            found = contrast.low > 0 or contrast.high < 0
            test = "after Holm's adjustment" if contrast.p <= ALPHA else "by the exact test"
            why = f", not significant {test}" if found else ""
            detectable = f"; detectable: {points(contrast.mde)}" if contrast.se > 0 else ""
            return f"inconclusive at {where} ({effect}{why}{detectable})"


def _is_headline(difference: CurveDifference, arms: Arms) -> bool:
    """Crossings with the base model under hard sampling; of the modes for a single checkpoint."""
    return len(arms.arms) == 1 or difference.a.mode == "hard_sample"


def _of_crossings(differences: Sequence[CurveDifference]) -> Iterator[str]:
    """One sentence for all curves of a task that do not cross, one for each that does."""
    by_task: dict[tuple[str, str, int], list[CurveDifference]] = {}
    for d in differences:
        by_task.setdefault((d.task, d.b.name, d.n), []).append(d)
    for (task, _, n), group in by_task.items():
        yield from (_of_crossing(d) for d in group if d.crossing.k is not None)
        apart = [d for d in group if d.crossing.k is None]
        if apart:
            names = _listed([_names(d)[0] for d in apart])
            least = min(d.crossing.p_no_crossing for d in apart)
            yield (
                f"On {task} the pass@k curve of {names} does not cross that of"
                f" {_names(apart[0])[1]} up to k = {n} ({_share_apart(least)});"
                f" beyond k = {n} these runs cannot see."
            )


def _share_apart(least: float) -> str:
    if least == 1:
        return "a crossing in no resample"
    return f"no crossing in {int(100 * least + 1e-9)} % of resamples or more"


def _of_crossing(d: CurveDifference) -> str:
    a, b = _names(d)
    c = d.crossing
    leader, other = (a, b) if c.start_sign > 0 else (b, a)
    again = f" and again at k = {_listed(list(map(str, c.again)), 'and')}" if c.again else ""
    between = f"95 % of such crossings between {c.low:.0f} and {c.high:.0f}; "
    return (
        f"On {d.task} {leader} leads {other} at small k; the difference D(k) first changes sign at"
        f" k = {c.k}{again} ({'' if isnan(c.low) else between}no crossing in this sense in"
        f" {100 * c.p_no_crossing:.0f} % of resamples)."
    )


def _listed(names: Sequence[str], last: str = "or") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _of_scores(arms: Arms) -> list[Sentence]:
    """Where nothing can be compared: what was measured."""
    sentences = []
    for arm in arms.arms:
        for task, mode in arms.keys:
            k = 1 if mode.endswith("_greedy") else headline_k(arms, task)
            score = arm_score(arm, (task, mode), k)
            if score is not None:
                interval = score.mean.interval
                metric = "greedy pass@1" if mode.endswith("_greedy") else f"pass@{k}"
                sentences.append(
                    Sentence(
                        f"{arms.name(arm)} solves {points(interval.mean)} %"
                        f" [{points(interval.low)}, {points(interval.high)}] of {task} at {metric}"
                        f" under {mode.replace('_', ' ')}."
                    )
                )
    return sentences
