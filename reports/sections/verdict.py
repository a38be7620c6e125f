"""The verdict of a report: a few sentences made from the primary contrasts and nothing else.

Words are those of the tests: better, worse, equivalent, inconclusive for a contrast; leads, cross,
coincide, cannot be told apart for two curves. "No difference" is never concluded from a large p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from math import isnan

import numpy as np

from softeval.reports.contrasts import Comparison, Side, declaration_notes
from softeval.reports.differences import CurveDifference
from softeval.reports.layout import Own, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import BASE, METHODS, Arms
from softeval.reports.measured.scores import arm_score, headline_k
from softeval.reports.notes import AMBER, notes, rules_notes
from softeval.reports.tables import (
    detectable_text,
    interval_text,
    margin_text,
    on_questions,
    p_text,
    points,
)
from softeval.statistics.contrast import SCOPE_A_IS_FIXED, SCOPE_B_IS_FIXED, SCOPE_CHECKPOINTS

MOST = 6
CURVES = 2
ALPHA = 0.05
RANK = {"better": 0, "worse": 0, "equivalent": 1, "inconclusive": 2}
CURVE_RANK = {"cross": 0, "a leads": 1, "b leads": 1, "coincide": 2, "undecided": 2}


@dataclass(frozen=True)
class Sentence:
    """One finding, over what it generalises, what weakens it, and its word; "" where none arises."""

    text: str
    scope: str = ""
    caveat: str = ""
    word: str = ""


def verdict_sentences(
    arms: Arms,
    comparisons: Sequence[Comparison],
    differences: Sequence[CurveDifference],
    margin: float,
) -> list[Sentence]:
    """Every significant primary finding, then others up to about six sentences.

    What is left out is counted by its words in the last sentence and stands in the tables.
    """
    primary = [c for c in comparisons if c.primary]
    pairs = sorted(_pairs(primary), key=importance)
    curves = list(_of_curves([d for d in differences if d.headline]))
    significant = sum(importance(pair)[0] == 0 for pair in pairs)
    room = max(MOST - min(len(curves), CURVES), significant)
    found = [_of_pair(arms, pair, margin) for pair in pairs[:room]] or scores_told(arms)[:MOST]
    found += [Sentence(text) for text in curves[:CURVES]]
    rest = list(_left_out([c for pair in pairs[room:] for c in pair], len(curves[CURVES:])))
    return found + ([Sentence(f"Besides: {', '.join(rest)}; see the tables.")] if rest else [])


def _pairs(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Comparisons of one pair on one task belong in one sentence, large k first."""
    pairs: dict[tuple[str | bool, ...], list[Comparison]] = {}
    for c in sorted(comparisons, key=lambda c: -c.metric.k):
        of_modes = c.a.mode != c.b.mode
        names = tuple(s.name if not of_modes else _kind(s) for s in (c.a, c.b))
        pairs.setdefault((c.metric.task, *names, of_modes), []).append(c)
    return list(pairs.values())


def importance(pair: Sequence[Comparison]) -> tuple[int, float]:
    """Significant findings first, the largest of them leading; the others as they come."""
    ranks = [RANK[c.verdict.word] for c in pair]
    sizes = [abs(c.contrast.diff) for c, rank in zip(pair, ranks, strict=True) if rank == 0]
    return min(ranks), -max(sizes, default=0.0)


def _left_out(comparisons: Sequence[Comparison], curves: int) -> Iterator[str]:
    words = Counter(c.verdict.word for c in comparisons)
    if comparisons:
        told = " and ".join(f"{words[word]} {word}" for word in RANK if words[word])
        yield f"{len(comparisons)} more primary comparison{'s'[: len(comparisons) > 1]} ({told})"
    if curves:
        yield f"{curves} more finding{'s'[: curves > 1]} about pass@k curves"


def _kind(side: Side) -> str:
    """A side that is a mode, by its family: ``soft`` of ``soft sample``, ``base soft`` likewise."""
    return side.name.removesuffix(side.mode.replace("_", " ")) + side.mode.family


def side_name(side: Side) -> str:
    """A side in a sentence: a kind of training only where several seeds speak for it."""
    first = side.checkpoints[0]
    if not first.trained:
        if side.name == BASE:
            return "the base model"
        beside_trained = first.method == BASE and side.name != first.family
        return f"the base model {first.family}" if beside_trained else side.name
    plain = side.name in METHODS
    if len(side.checkpoints) > 1:
        return f"{side.name} training" if plain else f"{side.name} ({len(side.checkpoints)} seeds)"
    return f"the {side.name}-trained checkpoint" if plain else f"the checkpoint {side.name}"


def _of_pair(arms: Arms, comparisons: Sequence[Comparison], margin: float) -> Sentence:
    first = comparisons[0]
    task, questions = first.metric.task, max(c.questions for c in comparisons)
    modes = {c.metric.mode.family for c in comparisons}
    subject = f"On {task} ({on_questions(questions, questions)})"
    if first.a.mode != first.b.mode:
        a, b = (f"{s.mode.family} inference" for s in (first.a, first.b))
        several = len(arms.arms) > 1
        subject += f" with {side_name(whole(arms, first.a))}" if several else ""
    else:
        a, b = side_name(first.a), side_name(first.b)
        subject += f" under {modes.copy().pop()} inference" if len(modes) == 1 else ""
    parts = [_of_metric(c, len(modes) > 1, questions, margin) for c in comparisons]
    return Sentence(
        f"{subject}, {a} against {b} is {'; '.join(parts)}.",
        _scope(first, a, b),
        "; ".join(dict.fromkeys(chain.from_iterable(map(_caveats, comparisons)))),
        min((c.verdict.word for c in comparisons), key=RANK.__getitem__),
    )


def whole(arms: Arms, side: Side) -> Side:
    """The arm behind a side that is one of its modes."""
    arm = next(arm for arm in arms.arms if side.checkpoints[0] in arm.checkpoints)
    return Side(arms.name(arm), side.checkpoints, side.mode)


def _scope(c: Comparison, a: str, b: str) -> str:
    """Over what a contrast generalises, its sides by name."""
    match c.contrast.scope:
        case text if text == SCOPE_CHECKPOINTS:
            return text if c.a.checkpoints != c.b.checkpoints else "this checkpoint only"
        case text if text in (SCOPE_A_IS_FIXED, SCOPE_B_IS_FIXED):
            fixed = a if text == SCOPE_A_IS_FIXED else b
            return f"{text.split(';')[0]}, but {fixed} stands for itself only"
        case text:
            return text


def _of_metric(c: Comparison, name_mode: bool, questions: int, margin: float) -> str:
    contrast = c.contrast
    metric = "greedy pass@1" if c.metric.mode.is_greedy else f"pass@{c.metric.k}"
    where = f"{metric} under {c.metric.mode.family} inference" if name_mode else metric
    if contrast.problems < questions:
        where += f" on {contrast.problems} of these questions"
    where += f", {points(contrast.mean_a)} against {points(contrast.mean_b)} %"
    difference = f"{points(contrast.diff, sign=True)} points"
    effect = f"{difference} {interval_text(contrast.low, contrast.high)}"
    match c.verdict.word:
        case "better" | "worse" as word:
            return f"{word} at {where} ({effect})"
        case "equivalent":
            found = c.verdict.equivalence
            level = f"{100 * (1 - 2 * found.alpha):.0f} % interval"
            shown = f"{difference}, {level} {interval_text(found.low, found.high)}"
            return f"equivalent at {where}, within ±{margin_text(margin)} points ({shown})"
        case _:
            found = contrast.low > 0 or contrast.high < 0
            test = "after Holm's adjustment" if contrast.p <= ALPHA else "by the exact test"
            p = p_text(c.verdict.p)
            why = (
                f", p {p if p.startswith('<') else f'= {p}'}, not significant {test}"
                if found
                else ""
            )
            detectable = f"; detectable: {detectable_text(contrast.mde)}" if contrast.se > 0 else ""
            return f"inconclusive at {where} ({effect}{why}{detectable})"


def _of_curves(differences: Sequence[CurveDifference]) -> Iterator[str]:
    """One sentence for each order that is shown, one for all curves of a task that are not."""
    order = sorted(differences, key=lambda d: CURVE_RANK[d.order.word])
    for d in (d for d in order if d.order.word == "cross"):
        yield _of_crossing(d)
    for d in (d for d in order if d.order.word in ("a leads", "b leads")):
        yield _of_lead(d)
    rest = [d for d in order if CURVE_RANK[d.order.word] == CURVE_RANK["undecided"]]
    groups = groupby(sorted(rest, key=_fate), key=_fate)
    for (word, task, other, n, on), group in groups:
        names = listed([_curve_names(d)[0] for d in group])
        fate = "coincides with" if word == "coincide" else "cannot be told apart from"
        yield (
            f"On {task} the pass@k curve of {names} {fate} that of {other} up to k = {n}{on};"
            f" beyond k = {n} these runs cannot see."
        )


def _fate(d: CurveDifference) -> tuple[str, str, str, int, str]:
    return d.order.word, d.task, _curve_names(d)[1], d.n, _on(d)


def _curve_names(d: CurveDifference) -> tuple[str, str]:
    """Both sides: by their kinds of inference where they are modes of one arm."""
    if d.a.mode == d.b.mode:
        return d.a.name, d.b.name
    return f"{_kind(d.a)} inference", f"{_kind(d.b)} inference"


def _on(d: CurveDifference) -> str:
    """The questions that curves stand on, where these are not all."""
    partial = d.band.problems < d.questions
    return f", on {on_questions(d.band.problems, d.questions)}" if partial else ""


def _of_crossing(d: CurveDifference) -> str:
    a, b = _curve_names(d)
    a_ks, b_ks, c = d.order.a_ks, d.order.b_ks, d.crossing
    first, second = (a, a_ks), (b, b_ks)
    if b_ks[0] < a_ks[0]:
        first, second = second, first
    dated = ""
    if c.k is not None:
        spread = (
            "" if isnan(c.low) else f", 95 % of such crossings between {c.low:.0f} and {c.high:.0f}"
        )
        again = f" and again at k = {listed(list(map(str, c.again)), 'and')}" if c.again else ""
        dated = f"; D(k) first changes sign at k = {c.k}{again}{spread}"
    return (
        f"On {d.task} the pass@k curves of {a} and {b} cross{_on(d)}: {first[0]} is ahead at"
        f" {told_ks(first[1], d)}, {second[0]} at {told_ks(second[1], d)} (the band of D(k) excludes 0 on"
        f" both sides{dated})."
    )


def _of_lead(d: CurveDifference) -> str:
    a, b = _curve_names(d)
    leader, other, ks = (a, b, d.order.a_ks) if d.order.word == "a leads" else (b, a, d.order.b_ks)
    everywhere = len(ks) == len(d.order.band.ks)
    rest = "" if everywhere else f" and cannot be told apart from it elsewhere up to k = {d.n}"
    return (
        f"On {d.task} the pass@k curve of {leader} leads that of {other} at {told_ks(ks, d)}{rest}"
        f"{_on(d)}; beyond k = {d.n} these runs cannot see."
    )


def told_ks(ks: Sequence[int], d: CurveDifference) -> str:
    """``k = 1 to 8`` where they follow one another in the curve, else each."""
    every = d.order.band.ks.tolist()
    start = every.index(ks[0])
    if len(ks) > 2 and tuple(every[start : start + len(ks)]) == tuple(ks):
        return f"k = {ks[0]} to {ks[-1]}"
    return f"k = {listed(list(map(str, ks)), 'and')}"


def listed(names: Sequence[str], last: str = "or") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def scores_told(arms: Arms) -> list[Sentence]:
    """Where nothing can be compared: what was measured."""
    sentences = []
    for arm in arms.arms:
        for task, mode in arms.keys:
            k = 1 if mode.is_greedy else headline_k(arms, task)
            score = arm_score(arm, (task, mode), k)
            if score is not None:
                interval = score.mean.interval
                metric = "greedy pass@1" if mode.is_greedy else f"pass@{k}"
                sentences.append(
                    Sentence(
                        f"{arms.name(arm)} solves {points(interval.mean)} %"
                        f" {interval_text(interval.low, interval.high)} of {task} at {metric}"
                        f" under {mode.replace('_', ' ')} ({on_questions(interval.m, arms.questions(task))})."
                    )
                )
    return sentences


# What weakens a comparison ---------------------------------------------------------------------


def _caveats(c: Comparison) -> Iterator[str]:
    task, mode = c.metric.task, c.a.mode.replace("_", " ")
    where = f" under {mode}" if c.a.mode == c.b.mode else ""
    shares = {side.name: _truncated(side, task) for side in (c.a, c.b)}
    if max(shares.values()) > AMBER:
        told = " and ".join(f"{100 * share:.0f} % of {name}" for name, share in shares.items())
        yield f"CoTs cut at the cap{where}: {told}"
    caps = {side.name: _caps(side, task) for side in (c.a, c.b)}
    if len(set(caps.values())) > 1:
        yield "caps differ: " + ", ".join(f"{cap} in {name}" for name, cap in caps.items())


def _truncated(side: Side, task: str) -> float:
    """Share of a side's CoTs that ended at the cap, checkpoints weighing alike."""
    cells = [c.cells[side.key(task)] for c in side.checkpoints]
    return float(np.mean([cell.truncated_R.mean() for cell in cells]))


def _caps(side: Side, task: str) -> str:
    caps = (str(run.config.get("max_cot_tokens", "?")) for run in side.runs(task))
    return " or ".join(dict.fromkeys(caps))


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> list[Own]:
    arms = material.arms
    differences, _ = material.differences
    sentences = verdict_sentences(arms, material.comparisons, differences, material.options.margin)
    scopes = Counter(s.scope for s in sentences if s.scope)
    scope = scopes.most_common(1)[0][0] if scopes else ""
    other = " Scope, unless another is named" if len(scopes) > 1 else " Scope"
    values = {
        "sentences": [replace(s, scope="") if s.scope == scope else s for s in sentences],
        "note": _note([c for c in material.comparisons if c.primary])
        + (f"{other}: {scope}." if scope else ""),
        "warnings": [*notes(arms), *declaration_notes(arms), *rules_notes(arms)],
    }
    return [Own("verdict.html.j2", values)]


def _note(primary: Sequence[Comparison]) -> str:
    """How many comparisons the verdict is made from, and since when they are primary."""
    if not primary:
        return "There is no primary comparison."
    origins = Counter(c.origin for c in primary)
    told = "; ".join(
        f"{n} {origin}" if len(origins) > 1 else origin for origin, n in origins.items()
    )
    return (
        f"Made from {len(primary)} primary comparison{'s' if len(primary) > 1 else ''} ({told}),"
        " Holm-adjusted together. Effects are in points with 95 % intervals, unless another level"
        " is named."
    )


SECTION = Section("verdict", "Verdict", "Verdict", {"Verdict": _parts})
