"""The verdict of a report: a few sentences made from the primary contrasts and nothing else.

Words are those of the tests: better, worse, equivalent, inconclusive. "No difference" is never
concluded from a large p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from softeval.reports.arms import Arms
from softeval.reports.contrasts import Comparison
from softeval.reports.differences import CurveDifference
from softeval.reports.scores import arm_score, headline_k
from softeval.reports.tables import points

MOST = 6


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
        kind_a, kind_b = _without_greed(c.a.name), _without_greed(c.b.name)
        pairs.setdefault((c.metric.task, kind_a, kind_b), []).append(c)
    return pairs


def _without_greed(name: str) -> str:
    for ending in ("greedy", "sample"):
        name = name.removesuffix(f"_{ending}").removesuffix(f" {ending}")
    return name


def _of_pair(comparisons: Sequence[Comparison], margin: float) -> Sentence:
    first = comparisons[0]
    a, b, task = _without_greed(first.a.name), _without_greed(first.b.name), first.metric.task
    modes = {_without_greed(c.metric.mode) for c in comparisons}
    if first.a.mode != first.b.mode:
        subject = f"On {task}, {a} inference against {b} inference"
    else:
        other = "the base model" if b == "base" else f"{b} training"
        where = f", under {modes.copy().pop()} inference" if len(modes) == 1 else ""
        subject = f"On {task}{where}, {a} training against {other}"
    parts = [_of_metric(c, len(modes) > 1, margin) for c in comparisons]
    return Sentence(f"{subject} is {'; '.join(parts)}.", first.contrast.scope)


def _of_metric(c: Comparison, name_mode: bool, margin: float) -> str:
    contrast = c.contrast
    metric = "greedy pass@1" if c.metric.mode.endswith("_greedy") else f"pass@{c.metric.k}"
    where = f"{metric} under {_without_greed(c.metric.mode)} inference" if name_mode else metric
    interval = f"[{points(contrast.low)}, {points(contrast.high)}]"
    effect = f"{points(contrast.diff, sign=True)} points {interval}"
    match c.verdict.word:
        case "better" | "worse" as word:
            return f"{word} at {where} ({effect})"
        case "equivalent":
            return f"equivalent at {where} within ±{points(margin, 0)} points ({effect})"
        case _:
            found = contrast.low > 0 or contrast.high < 0
            why = ", not significant after Holm's adjustment" if found else ""
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
            names = _listed([_without_greed(d.a.name) for d in apart])
            least = min(d.crossing.p_no_crossing for d in apart)
            yield (
                f"On {task} the pass@k curve of {names} does not cross that of"
                f" {_without_greed(apart[0].b.name)} up to k = {n} ({_share_apart(least)});"
                f" beyond k = {n} these runs cannot see."
            )


def _share_apart(least: float) -> str:
    if least == 1:
        return "a crossing in no resample"
    return f"no crossing in {int(100 * least + 1e-9)} % of resamples or more"


def _of_crossing(d: CurveDifference) -> str:
    a, b = _without_greed(d.a.name), _without_greed(d.b.name)
    leader, other = (a, b) if d.crossing.start_sign > 0 else (b, a)
    return (
        f"On {d.task} {leader} leads at small k and {other} from k = {d.crossing.k} on"
        f" (95 % of crossings between {d.crossing.low:.0f} and {d.crossing.high:.0f};"
        f" no crossing in {100 * d.crossing.p_no_crossing:.0f} % of resamples)."
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


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
