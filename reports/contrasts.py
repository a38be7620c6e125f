"""Comparisons of a report: which are primary and since when, and what they found.

The primary contrasts are those that the runs' own configurations declared (`softeval run
--primary`) and those that are asked for when the report is made; without either, soft - hard and
fuzzy - hard under hard inference, as in the paper's headline. They are Holm-adjusted as one family.
Everything else is exploratory. Knows nothing of how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from softeval.errors import UserError
from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint, MeasuredRun
from softeval.reports.measured.cells import Key
from softeval.reports.measured.scores import Floats, Ints, headline_k, metrics, shared, table_scores
from softeval.runs.config import parse_contrast
from softeval.runs.run import NLL_PER_TOKEN, REFERENCE, SAMPLED_PASS, RecordedMode
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.equivalence import MARGIN, EquivalenceVerdict, judge, judge_family

CHOSEN = "chosen when this report was made"


@dataclass(frozen=True)
class Metric:
    """pass@k of a task under a mode; or what a log-likelihood task measures, with the mode ""."""

    task: str
    mode: RecordedMode
    k: int = 1
    measure: str = SAMPLED_PASS

    @property
    def name(self) -> str:
        """For example ``hard_sample pass@32``."""
        return f"{self.mode} pass@{self.k}" if self.mode else self.measure

    @property
    def is_nll(self) -> bool:
        """Whether the unit is nats, lower is better."""
        return self.measure == NLL_PER_TOKEN


@dataclass(frozen=True)
class Side:
    """One side of a comparison: some checkpoints under one mode.

    Attributes:
        name: as shown.
        checkpoints: one a training seed.
        mode: CoT mode.
    """

    name: str
    checkpoints: tuple[MeasuredCheckpoint, ...]
    mode: RecordedMode

    def key(self, task: str) -> Key:
        """The cell on a task."""
        return task, self.mode

    def documents(self, task: str) -> list[Ints]:
        """(M,) questions of a task that each checkpoint has answered."""
        if not self.mode:
            return [checkpoint.likelihoods[task].doc_M for checkpoint in self.checkpoints]
        return [checkpoint.cells[self.key(task)].doc_M for checkpoint in self.checkpoints]

    def runs(self, task: str) -> list[MeasuredRun]:
        """The runs that hold its samples of a task."""
        return [r for c in self.checkpoints for r in c.runs if self.key(task) in r.cells]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A - B on one metric.

    Attributes:
        a: the side whose gain is positive.
        b: the side it is measured against.
        metric: what is compared; its mode is that of both sides, or of A.
        origin: since when it is a primary one; "" for an exploratory one.
        contrast: difference, interval, p, minimum detectable effect.
        verdict: in one word; that of a primary one is Holm-adjusted over the primary ones.
        warning: settings of the decoder in which A and B differ, where nothing else says so.
    """

    a: Side
    b: Side
    metric: Metric
    origin: str
    contrast: Contrast
    verdict: EquivalenceVerdict
    warning: str = ""

    @property
    def primary(self) -> bool:
        """Whether it is one of those that the verdict is made from."""
        return bool(self.origin)

    @property
    def questions(self) -> int:
        """Questions of the task that either side has samples of; not all of them may be compared."""
        found = [*self.a.documents(self.metric.task), *self.b.documents(self.metric.task)]
        return len(np.unique(np.concatenate(found)))

    @property
    def name(self) -> str:
        """For example ``soft − hard``."""
        return f"{self.a.name} − {self.b.name}"

    @property
    def metric_name(self) -> str:
        """For example ``hard sample pass@32``; without the mode where the sides differ in it."""
        if self.a.mode == self.b.mode:
            return self.metric.name.replace("_", " ")
        return "pass@1" if self.a.mode.is_greedy else f"pass@{self.metric.k}"


def side(arms: Arms, arm: Arm, key: Key) -> Side:
    """An arm as a side of a comparison."""
    return Side(arms.name(arm), arm.having(key), key[1])


def compare_sides(a: Side, b: Side, metric: Metric) -> Contrast | None:
    """The contrast; None where fewer than two problems are scored on both sides."""
    _, a_SM, b_SM = shared_scores(a, b, metric)
    if scored(a_SM, b_SM).sum() < 2:
        return None
    return compare_methods(a_SM, b_SM, paired=same_checkpoints(a, b))


def shared_scores(a: Side, b: Side, metric: Metric) -> tuple[Ints, Floats, Floats]:
    """(doc_M, a_SM, b_SM) on the problems of both sides; NaN where n < k."""
    first = table_scores(a.checkpoints, a.key(metric.task), metric.k)
    second = table_scores(b.checkpoints, b.key(metric.task), metric.k)
    return shared(first, second)


def scored(a_SM: Floats, b_SM: Floats) -> NDArray[np.bool_]:
    """(M,) problems that every checkpoint of both sides has k samples of."""
    return ~(np.isnan(a_SM).any(axis=0) | np.isnan(b_SM).any(axis=0))


def same_checkpoints(a: Side, b: Side) -> bool:
    """Whether both sides are the same checkpoints in one order: compared seed by seed."""
    return a.checkpoints == b.checkpoints


Draft = tuple[Side, Side, Metric, str, Contrast]


def find_comparisons(
    arms: Arms, contrasts: Sequence[str] = (), margin: float = MARGIN
) -> list[Comparison]:
    """Every comparison of the report, the primary ones first and judged as one family.

    Args:
        arms: what to compare.
        contrasts: primary contrasts asked for now, as "soft-hard:hard_sample@32" (two methods) or
            "soft_sample:hard_sample@32" (two modes), beside those that the runs declared; without
            either, the default ones.
        margin: equivalence margin, a fraction.

    Raises:
        UserError: a contrast was asked for that these runs do not have.
    """
    primary = _declared(arms)
    for text in contrasts:
        asked = _drafts_of(arms, text)
        if not asked:
            named = ", ".join(dict.fromkeys(arms.name(arm) for arm in arms.arms))
            modes = ", ".join(arms.modes)
            raise UserError(
                f"--contrast {text!r} is not in these runs (methods: {named}; modes: {modes};"
                f" tasks: {', '.join(arms.tasks)}), or n < {parse_contrast(text)[-1]}"
            )
        primary += [draft for draft in asked if not _among(draft, primary)]
    found = [
        (a, b, metric, CHOSEN if headline and not primary else "", contrast)
        for a, b, metric, headline in (*_arm_pairs(arms), *_mode_pairs(arms))
        if (contrast := compare_sides(a, b, metric)) is not None
    ]
    return _judged(primary + [draft for draft in found if not _among(draft, primary)], margin)


def _judged(drafts: list[Draft], margin: float) -> list[Comparison]:
    primary = [draft for draft in drafts if draft[3]]
    others = [draft for draft in drafts if not draft[3]]
    verdicts = judge_family([draft[4] for draft in primary], margin)
    verdicts += [judge(draft[4], margin) for draft in others]
    return [
        Comparison(a, b, metric, origin, contrast, verdict)
        for (a, b, metric, origin, contrast), verdict in zip(
            primary + others, verdicts, strict=True
        )
    ]


def _arm_pairs(arms: Arms) -> Iterator[tuple[Side, Side, Metric, bool]]:
    """Arms of one group under every mode, and whether it is a headline by default."""
    only_models = all(arm.is_base for arm in arms.arms)
    for group in arms.groups.values():
        reference = _reference(group)
        models = all(arm.is_base for arm in group)
        for task in arms.tasks:
            for mode, k in metrics(arms, task):
                for a, b in _ordered_pairs(group):
                    if a.having((task, mode)) and b.having((task, mode)):
                        sides = side(arms, a, (task, mode)), side(arms, b, (task, mode))
                        headline = mode.family == REFERENCE
                        headline &= mode.is_greedy or k == headline_k(arms, task)
                        headline &= only_models if models else b is reference
                        yield *sides, Metric(task, mode, k), headline


def _reference(group: Sequence[Arm]) -> Arm:
    """What the primary contrasts of a group are against.

    Hard training where there is another one to compare with it, else the first arm.
    """
    trained = [arm for arm in group if not arm.is_base]
    hard = [arm for arm in trained if arm.method == "hard"]
    return hard[0] if hard and len(trained) > 1 else group[0]


def _ordered_pairs(group: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """(A, B): every trained arm against the reference, then the base model; models each by each."""
    reference, trained = _reference(group), [arm for arm in group if not arm.is_base]
    if not trained:
        yield from ((later, earlier) for earlier, later in combinations(group, 2))
    for b in dict.fromkeys((reference, group[0])):
        if b is reference or b.is_base:
            yield from ((a, b) for a in trained if a is not b)


def _mode_pairs(arms: Arms) -> Iterator[tuple[Side, Side, Metric, bool]]:
    """Every other kind of inference against hard inference with the same arm."""
    headline = modes_are_headline(arms)
    for arm in mode_arms(arms):
        for task in arms.tasks:
            large = headline_k(arms, task)
            for mode, other in modes_beside_reference(arms):
                if (sides := mode_sides(arms, arm, (task, mode), (task, other))) is not None:
                    for k in [1] if mode.is_greedy else sorted({1, large}):
                        shown = mode.is_greedy or k == large
                        yield *sides, Metric(task, mode, k), headline and shown


def modes_beside_reference(arms: Arms) -> list[tuple[RecordedMode, RecordedMode]]:
    """Each mode of another family beside the reference mode that is greedy or sampled as it is."""
    return [
        (mode, other)
        for mode in arms.modes
        if mode.family != REFERENCE
        for other in arms.modes_of(REFERENCE, mode.is_greedy)[:1]
    ]


def mode_arms(arms: Arms) -> list[Arm]:
    """Arms whose modes are compared with one another: a single one, or models not trained here."""
    if len(arms.arms) == 1:
        return list(arms.arms)
    groups = [group for group in arms.groups.values() if not any(arm.trained for arm in group)]
    return [arm for group in groups for arm in group]


def modes_are_headline(arms: Arms) -> bool:
    """Whether differences of modes are what a report is about: nothing trained is beside them."""
    return len(arms.arms) == 1 or not any(arm.trained for arm in arms.arms)


def mode_sides(arms: Arms, arm: Arm, a: Key, b: Key) -> tuple[Side, Side] | None:
    """Two modes of an arm as the sides of a comparison.

    They are those checkpoints that have both modes, so that seeds are paired; where there is none,
    each side has its own. None where a mode is missing.
    """
    having_a, having_b = arm.having(a), arm.having(b)
    if not (having_a and having_b):
        return None
    both = tuple(checkpoint for checkpoint in having_a if checkpoint in having_b)
    whose = "" if len(arms.arms) == 1 else f"{arms.name(arm)} "
    names = (whose + key[1].replace("_", " ") for key in (a, b))
    first, second = (both, both) if both else (having_a, having_b)
    return Side(next(names), first, a[1]), Side(next(names), second, b[1])


def _declared(arms: Arms) -> list[Draft]:
    """The contrasts that the runs declared when they were first started, as far as they are here."""
    found: list[Draft] = []
    for text in _declared_texts(arms):
        for draft in _drafts_of(arms, text):
            origin = _declaration(draft, text)
            if origin and not _among(draft, found):
                found.append((*draft[:3], origin, draft[4]))
    return found


def declaration_notes(arms: Arms) -> list[str]:
    """A line for each declared contrast that cannot be made from these runs."""
    return [
        f"The contrast {text} was declared by a run's configuration and cannot be made from these"
        " runs."
        for text in _declared_texts(arms)
        if not any(_declaration(draft, text) for draft in _drafts_of(arms, text))
    ]


def _declared_texts(arms: Arms) -> list[str]:
    texts = [text for run in arms.runs for text in run.config.get("primary") or ()]
    return list(dict.fromkeys(texts))


def _declaration(draft: Draft, text: str) -> str:
    """Whether and when the runs behind a contrast declared it; "" if none of them did."""
    a, b, metric = draft[:3]
    runs = list({id(run): run for s in (a, b) for run in s.runs(metric.task)}.values())
    dates = [
        str(run.info.get("started") or "date not recorded")[:10]
        for run in runs
        if text in (run.config.get("primary") or ())
    ]
    if len(dates) < len(runs):
        return f"declared by {len(dates)} of {len(runs)} runs before they started" if dates else ""
    return f"declared in advance, {max(dates)}"


def _drafts_of(arms: Arms, text: str) -> list[Draft]:
    """A contrast from its text on every task, or model, that has it; empty where none has."""
    task, pair, mode, k = parse_contrast(text)
    drafts: list[Draft] = []
    for where in arms.tasks if task is None else (task,):
        metric = Metric(where, arms.mode(mode), k)
        for a, b in _named_pairs(arms, pair, metric):
            of_modes = a.mode != b.mode
            named = Metric(where, a.mode, k) if of_modes else metric
            contrast = compare_sides(a, b, named)
            if contrast is not None:
                drafts.append((a, b, named, CHOSEN, contrast))
    return drafts


def _named_pairs(arms: Arms, pair: str, metric: Metric) -> Iterator[tuple[Side, Side]]:
    """(A, B) of "soft-hard" among the arms of a group, or of "soft_sample" against the mode."""
    key, of_mode = (metric.task, metric.mode), (metric.task, arms.mode(pair.replace("-", "_")))
    for group in arms.groups.values():
        named = {arms.name(arm): arm for arm in group} | {arm.method: arm for arm in group}
        for a, b in ((x, y) for x in named for y in named if f"{x}-{y}" == pair):
            if named[a].having(key) and named[b].having(key):
                yield side(arms, named[a], key), side(arms, named[b], key)
    for arm in arms.arms:
        if of_mode != key and (sides := mode_sides(arms, arm, of_mode, key)) is not None:
            yield sides


def _among(draft: Draft, wanted: Sequence[Draft]) -> bool:
    a, b, metric = draft[:3]
    return any((a, b, metric) == (other[0], other[1], other[2]) for other in wanted)
