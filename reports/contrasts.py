"""Comparisons of a report: which were declared, and what they found.

The primary contrasts are declared before looking (by default: soft - hard and fuzzy - hard under
hard inference, as in the paper's headline) and Holm-adjusted as one family. Everything else is
exploratory. Knows nothing of how they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from softeval.errors import UserError
from softeval.reports.arms import Arm, Arms, Checkpoint
from softeval.reports.cells import Key
from softeval.reports.scores import headline_k, shared, table_scores
from softeval.reports.statistics.contrast import Contrast, compare_methods
from softeval.reports.statistics.equivalence import MARGIN, Verdict, judge, judge_family

GREEDY, SAMPLED = "hard_greedy", "hard_sample"


@dataclass(frozen=True)
class Metric:
    """pass@k of a task under a mode."""

    task: str
    mode: str
    k: int

    @property
    def name(self) -> str:
        """For example ``hard_sample pass@32``."""
        return f"{self.mode} pass@{self.k}"


@dataclass(frozen=True)
class Side:
    """One side of a comparison: some checkpoints under one mode.

    Attributes:
        name: as shown.
        checkpoints: one a training seed.
        mode: CoT mode.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    mode: str

    def key(self, task: str) -> Key:
        """The cell on a task."""
        return task, self.mode


@dataclass(frozen=True, eq=False)
class Comparison:
    """A - B on one metric.

    Attributes:
        a: the side whose gain is positive.
        b: the side it is measured against.
        metric: what is compared; its mode is that of both sides, or of A.
        primary: declared in advance; its verdict is Holm-adjusted over the primary ones.
        contrast: difference, interval, p, minimum detectable effect.
        verdict: in one word.
    """

    a: Side
    b: Side
    metric: Metric
    primary: bool
    contrast: Contrast
    verdict: Verdict

    @property
    def name(self) -> str:
        """For example ``soft − hard``."""
        return f"{self.a.name} − {self.b.name}"

    @property
    def metric_name(self) -> str:
        """For example ``hard sample pass@32``; without the mode where the sides differ in it."""
        if self.a.mode == self.b.mode:
            return self.metric.name.replace("_", " ")
        return "pass@1" if self.a.mode.endswith("_greedy") else f"pass@{self.metric.k}"


def side(arms: Arms, arm: Arm, key: Key) -> Side:
    """An arm as a side of a comparison."""
    return Side(arms.name(arm), arm.having(key), key[1])


def compare_sides(a: Side, b: Side, metric: Metric) -> Contrast | None:
    """The contrast; None where fewer than two problems are scored on both sides."""
    first = table_scores(a.checkpoints, a.key(metric.task), metric.k)
    second = table_scores(b.checkpoints, b.key(metric.task), metric.k)
    _, a_SM, b_SM = shared(first, second)
    scored = ~(np.isnan(a_SM).any(axis=0) | np.isnan(b_SM).any(axis=0))
    if scored.sum() < 2:
        return None
    return compare_methods(a_SM, b_SM, paired=same_checkpoints(a, b))


def same_checkpoints(a: Side, b: Side) -> bool:
    """Whether both sides are the same checkpoints in one order: compared seed by seed."""
    return a.checkpoints == b.checkpoints


def find_comparisons(
    arms: Arms, declared: Sequence[str] = (), margin: float = MARGIN
) -> list[Comparison]:
    """Every comparison of the report, the primary ones first and judged as one family.

    Args:
        arms: what to compare.
        declared: primary contrasts as "soft-hard:hard_sample@32"; empty for the default.
        margin: equivalence margin, a fraction.

    Raises:
        UserError: a declared contrast that these runs do not have.
    """
    pairs = _single_pairs(arms) if len(arms.arms) == 1 else _arm_pairs(arms)
    drafts = [
        (a, b, metric, primary and not declared, contrast)
        for a, b, metric, primary in pairs
        if (contrast := compare_sides(a, b, metric)) is not None
    ]
    if declared:
        wanted = [_declared(arms, text) for text in declared]
        drafts = wanted + [draft for draft in drafts if not _among(draft, wanted)]
    return _judged(drafts, margin)


Draft = tuple[Side, Side, Metric, bool, Contrast]


def _judged(drafts: list[Draft], margin: float) -> list[Comparison]:
    primary = [draft for draft in drafts if draft[3]]
    others = [draft for draft in drafts if not draft[3]]
    verdicts = judge_family([draft[4] for draft in primary], margin)
    verdicts += [judge(draft[4], margin) for draft in others]
    return [
        Comparison(a, b, metric, is_primary, contrast, verdict)
        for (a, b, metric, is_primary, contrast), verdict in zip(
            primary + others, verdicts, strict=True
        )
    ]


def _arm_pairs(arms: Arms) -> Iterator[tuple[Side, Side, Metric, bool]]:
    """Arms of one group under hard inference, primary against hard training where it is there."""
    for group in arms.groups.values():
        reference = _reference(group)
        for task in arms.tasks:
            for mode, k in _headline_metrics(arms, task):
                for a, b in _ordered_pairs(group):
                    if a.having((task, mode)) and b.having((task, mode)):
                        sides = side(arms, a, (task, mode)), side(arms, b, (task, mode))
                        headline = mode == GREEDY or k == headline_k(arms, task)
                        yield *sides, Metric(task, mode, k), headline and b is reference


def _reference(group: Sequence[Arm]) -> Arm:
    """What the primary contrasts of a group are against: hard training, else the first arm."""
    hard = [arm for arm in group if arm.method == "hard"]
    return hard[0] if hard else group[0]


def _ordered_pairs(group: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """(A, B): every trained arm against the reference, then against the base model."""
    reference, trained = _reference(group), [arm for arm in group if not arm.is_base]
    for b in dict.fromkeys((reference, group[0])):
        if b is reference or b.is_base:
            yield from ((a, b) for a in trained if a is not b)


def _headline_metrics(arms: Arms, task: str) -> list[tuple[str, int]]:
    large = headline_k(arms, task)
    wanted = [(GREEDY, 1), *((SAMPLED, k) for k in sorted({1, large}))]
    return [(mode, k) for mode, k in wanted if (task, mode) in arms.keys]


def _single_pairs(arms: Arms) -> Iterator[tuple[Side, Side, Metric, bool]]:
    """Modes of the one arm against hard inference."""
    arm = arms.arms[0]
    for task in arms.tasks:
        large = headline_k(arms, task)
        for kind in ("fuzzy", "soft"):
            for how, ks in (("greedy", {1}), ("sample", {1, large})):
                a, b = (task, f"{kind}_{how}"), (task, f"hard_{how}")
                if (sides := mode_sides(arm, a, b)) is not None:
                    for k in sorted(ks):
                        yield *sides, Metric(task, a[1], k), how == "greedy" or k == large


def mode_sides(arm: Arm, a: Key, b: Key) -> tuple[Side, Side] | None:
    """Two modes of an arm as the sides of a comparison.

    They are those checkpoints that have both modes, so that seeds are paired; where there is none,
    each side has its own. None where a mode is missing.
    """
    having_a, having_b = arm.having(a), arm.having(b)
    if not (having_a and having_b):
        return None
    both = tuple(checkpoint for checkpoint in having_a if checkpoint in having_b)
    names = (key[1].replace("_", " ") for key in (a, b))
    first, second = (both, both) if both else (having_a, having_b)
    return Side(next(names), first, a[1]), Side(next(names), second, b[1])


def _declared(arms: Arms, text: str) -> Draft:
    """A primary contrast from its text, e.g. "soft-hard:hard_sample@32" or with "task/" before."""
    match = re.fullmatch(r"(?:(?P<task>[^/:]+)/)?(?P<pair>.+):(?P<mode>[\w-]+)@(?P<k>\d+)", text)
    if match is None:
        raise UserError(f"--contrast {text!r}: write it as soft-hard:hard_sample@32")
    task = match["task"] or (arms.tasks[0] if len(arms.tasks) == 1 else None)
    if task is None:
        raise UserError(f"--contrast {text!r}: several tasks; write TASK/{text}")
    mode, k = match["mode"].replace("-", "_"), int(match["k"])
    for group in arms.groups.values():
        named = {arm.method: arm for arm in group}
        for a, b in ((x, y) for x in named for y in named if f"{x}-{y}" == match["pair"]):
            if named[a].having((task, mode)) and named[b].having((task, mode)):
                metric = Metric(task, mode, k)
                sides = [side(arms, named[name], (task, mode)) for name in (a, b)]
                contrast = compare_sides(sides[0], sides[1], metric)
                if contrast is not None:
                    return sides[0], sides[1], metric, True, contrast
    methods = ", ".join(dict.fromkeys(arm.method for arm in arms.arms))
    raise UserError(f"--contrast {text!r} is not in these runs (methods: {methods}), or n < {k}")


def _among(draft: Draft, wanted: Sequence[Draft]) -> bool:
    a, b, metric = draft[:3]
    return any((a, b, metric) == (other[0], other[1], other[2]) for other in wanted)
