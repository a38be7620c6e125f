"""The claims of *Soft Tokens, Hard Truths*, and what runs say of each: supported, refuted, undecided.

`CLAIMS` is the one place that says what a claim is: differences of two sides, each with the region in
which it lies if the claim is true. A difference is supported where its 95 % interval is inside that
region, refuted where it is wholly outside. A claim of several is supported if all are, and refuted if
one is at 95 % for all of them together (Bonferroni): many looks refute nothing by chance. What is
missing is named. docs/claims.md has the claims in words.

Trainings are told apart by the family of the mode that they sample: hard, and *continuous*, which is
every other. Knows nothing of how claims are shown.

Shapes: S training seeds, M problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.modes import MODES
from softeval.reports.contrasts import (
    Metric,
    compare_sides,
    mode_sides,
    modes_beside_reference,
    scored,
)
from softeval.reports.measured.arms import BASE, Arm, Arms, measure
from softeval.reports.measured.cells import Key
from softeval.reports.measured.scores import Floats, Ints, headline_k, shared, table_scores, usual_n
from softeval.runs.run import REFERENCE
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.equivalence import MARGIN

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
KEPT = 0.8
"""Share of the base's entropy from which on it counts as kept."""
OWN_TASK = {"demo": "arithmetic", "math": "math500"}
"""Evaluation tasks of training sets that are named otherwise."""
CONTINUOUS, HARD, TRAINED = "continuous training", "hard training", "any training"
UNTRAINED = "the untrained model"
OWN, OTHER, LIKELIHOOD = "a task trained on", "a task not trained on", "a log-likelihood task"
Table = tuple[Ints, Floats]  # doc_M, x_SM


@dataclass(frozen=True)
class Difference:
    """A − B, and the region in which a claim says that it lies.

    Attributes:
        name: for example "soft − hard, hard_sample pass@32".
        contrast: with its interval.
        low: lower end of the region.
        high: upper end.
        unit: points (fractions), nats, or shares of the untrained model's.
        origin: what is added to the contrast where it is judged and shown.
        decides: whether the claim depends on it.
    """

    name: str
    contrast: Contrast
    low: float
    high: float
    unit: str = "points"
    origin: float = 0.0
    decides: bool = True

    @property
    def value(self) -> float:
        """The figure."""
        return self.contrast.diff + self.origin

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Its interval."""
        low, high = self.contrast.at_level(level)
        return low + self.origin, high + self.origin

    def word(self, level: float = LEVEL) -> str:
        """Inside the region, outside, or neither."""
        low, high = self.interval(level)
        if self.low < low and high < self.high:
            return "supported"
        return "refuted" if high < self.low or low > self.high else "undecided"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a claim is judged from: arms of one base model and training set, on one task."""

    arms: Arms
    group: tuple[Arm, ...]
    task: str

    def playing(self, role: str) -> list[Arm]:
        """The arms of a role: HARD, CONTINUOUS, TRAINED or UNTRAINED."""
        kinds = {BASE: (UNTRAINED,), REFERENCE: (HARD, TRAINED)}
        return [a for a in self.group if role in kinds.get(trained_by(a), (CONTINUOUS, TRAINED))]

    def key(self, *, greedy: bool) -> Key:
        """The task under hard inference."""
        return self.task, self.arms.mode("hard_greedy" if greedy else "hard_sample")

    @property
    def large_k(self) -> int:
        """32, or what every run reaches."""
        return headline_k(self.arms, self.task)

    @property
    def largest_k(self) -> int:
        """Samples a question under hard inference, of the run with the fewest."""
        key = self.key(greedy=False)
        cells = [c.cells[key] for arm in self.group for c in arm.having(key)]
        return usual_n(cells) if cells else 1


def trained_by(arm: Arm) -> str:
    """The family of the mode that a training samples; "base" of an untrained model."""
    method = str(arm.training.get("method") or (BASE if arm.is_base else arm.method))
    return MODES[method].family if method in MODES else method


@dataclass(frozen=True)
class Measure:
    """A figure of an arm on each question.

    Attributes:
        name: with the k of pass@k in braces.
        table: doc_M and x_SM; None where the runs do not have it.
        unit: as of `Difference`.
        bounded: scores lie in [0, 1].
    """

    name: str
    table: Callable[[Evidence, Arm], Table | None]
    unit: str = "points"
    bounded: bool = True


def _success(
    evidence: Evidence, arm: Arm, *, greedy: bool = False, k: str | None = None
) -> Table | None:
    key = evidence.key(greedy=greedy)
    found = arm.having(key)
    return table_scores(found, key, getattr(evidence, k) if k else 1) if found else None


def _gap(evidence: Evidence, arm: Arm) -> Table | None:
    greedy, sampled = evidence.key(greedy=True), evidence.key(greedy=False)
    both = tuple(c for c in arm.having(greedy) if sampled in c.cells)
    if not both:
        return None
    doc_M, first, second = shared(table_scores(both, greedy, 1), table_scores(both, sampled, 1))
    return doc_M, first - second


def _entropy(evidence: Evidence, arm: Arm) -> Table | None:
    sums = [c.positions.get(evidence.key(greedy=False)) for c in arm.checkpoints]
    return _stacked([(s.doc_M, s.sequence_mean_M) for s in sums if s is not None])


def _kl(evidence: Evidence, arm: Arm) -> Table | None:
    sums = [c.kl.get((*evidence.key(greedy=False), "own")) for c in arm.checkpoints]
    return _stacked([(s.doc_M, s.per_token["reverse"]) for s in sums if s is not None])


def _nll(evidence: Evidence, arm: Arm) -> Table | None:
    found = [c.likelihoods.get(evidence.task) for c in arm.checkpoints]
    return _stacked([(table.doc_M, table.nll_M) for table in found if table is not None])


def _stacked(tables: Sequence[Table]) -> Table | None:
    """A row a checkpoint, on the problems that all have."""
    if not tables:
        return None
    doc_M = tables[0][0]
    for docs, _ in tables:
        doc_M = np.intersect1d(doc_M, docs)
    return doc_M, np.stack([x_M[np.isin(docs, doc_M)] for docs, x_M in tables])


GREEDY = Measure("hard_greedy pass@1", partial(_success, greedy=True))
LARGE = Measure("hard_sample pass@{e.large_k}", partial(_success, k="large_k"))
LARGEST = Measure("hard_sample pass@{e.largest_k}", partial(_success, k="largest_k"))
GAP = Measure("greedy − sampled pass@1", _gap, bounded=False)
ENTROPY = Measure("CoT entropy over the untrained model's", _entropy, "times", bounded=False)
KL_TO_BASE = Measure("KL to the untrained model (softeval diagnose)", _kl, "nats", bounded=False)
NLL = Measure("NLL", _nll, "nats", bounded=False)

Part = Callable[[Evidence], Iterator[Difference | str]]
"""Differences of a claim, or what is missing for them."""


def between(a: str, b: str, measure: Measure, low: float = -inf, high: float = inf) -> Part:
    """Every arm of role A less every one of role B, in a region; an entropy over B's."""

    def part(evidence: Evidence) -> Iterator[Difference | str]:
        yield from (role for role in (a, b) if not evidence.playing(role))
        for first in evidence.playing(a):
            for second in evidence.playing(b):
                yield from _differences(evidence, (first, second), measure, (low, high))

    return part


def _differences(
    evidence: Evidence, pair: tuple[Arm, Arm], measure: Measure, region: tuple[float, float]
) -> Iterator[Difference | str]:
    names, name = [*map(evidence.arms.name, pair)], measure.name.format(e=evidence)
    first, second = (measure.table(evidence, arm) for arm in pair)
    if first is None or second is None:
        lacking = [n for n, found in zip(names, (first, second), strict=True) if found is None]
        yield f"{name} of {' and '.join(lacking)}"
        return
    doc_M, a_SM, b_SM = shared(first, second)
    origin = 0.0
    if measure is ENTROPY:  # A − s B, whose sign decides exactly, however uncertain B is
        [origin] = filter(isfinite, region)
        scale = np.nanmean(b_SM)
        a_SM, b_SM, names = a_SM / scale, origin * b_SM / scale, names[:1]
    parts = _parts(evidence.arms, evidence.task) if measure is LARGE else {}
    for part, docs in {"": doc_M, **parts}.items():
        kept = np.isin(doc_M, docs) & scored(a_SM, b_SM)
        if kept.sum() > 1:
            contrast = compare_methods(a_SM[:, kept], b_SM[:, kept], bounded=measure.bounded)
            what = f"{' − '.join(names)}, {name}{part and f', {part} part'}"
            yield Difference(what, contrast, *region, measure.unit, origin, decides=not part)
        elif not part:
            yield f"two questions in common for {name} of {' and '.join(names)}"


def _parts(arms: Arms, task: str) -> dict[str, Ints]:
    """Questions of each part of a task; empty where it has none."""
    for run in arms.runs:
        if task in run.datasets() and run.has_column("prompts", "group"):
            rows = run.prompts(["task", "doc_id", "group"])
            grouped = rows[rows["task"] == task].groupby("group")["doc_id"]
            return {str(name): docs.to_numpy() for name, docs in grouped}
    return {}


def _hard_inference(evidence: Evidence) -> Iterator[Difference | str]:
    """Hard inference less every other, with the same checkpoints: greedy, and at the large k."""
    arms = evidence.arms
    if not evidence.playing(TRAINED):
        yield TRAINED
    for arm in evidence.playing(TRAINED):
        pairs = [
            mode_sides(arms, arm, (evidence.task, hard), (evidence.task, mode))
            for mode, hard in modes_beside_reference(arms)
        ]
        if not any(pairs):
            yield f"soft, fuzzy or other inference of {arms.name(arm)}"
        for a, b in filter(None, pairs):
            k = 1 if a.mode.is_greedy else evidence.large_k
            contrast = compare_sides(a, b, Metric(evidence.task, a.mode, k))
            if contrast is not None:
                name = f"{arms.name(arm)}: {a.mode} − {b.mode}, pass@{k}"
                yield Difference(name, contrast, -MARGIN, inf)


@dataclass(frozen=True)
class Claim:
    """A claim: its number and words, on which tasks it is judged, and its differences."""

    number: str
    text: str
    tasks: str
    parts: tuple[Part, ...]


CLAIMS = (
    Claim("1", "Greedy parity of training methods",
          OWN, (between(CONTINUOUS, HARD, GREEDY, -MARGIN, MARGIN),)),
    Claim("2", "Continuous training keeps coverage that hard training gives up",
          OWN, (between(CONTINUOUS, HARD, LARGE, 0.0),)),
    Claim("3", "The gap of greedy over sampled pass@1 closes under hard training only",
          OWN, (between(HARD, UNTRAINED, GAP, high=0.0), between(CONTINUOUS, HARD, GAP, 0.0))),
    Claim("4", "Continuous training keeps the entropy of CoTs, hard training does not",
          OWN, (between(CONTINUOUS, UNTRAINED, ENTROPY, KEPT),
                between(HARD, UNTRAINED, ENTROPY, high=KEPT))),
    Claim("5", "Hard inference is best for every training", OWN, (_hard_inference,)),
    Claim("6a", "A softer touch: smaller KL to the untrained model on own CoTs",
          OWN, (between(CONTINUOUS, HARD, KL_TO_BASE, high=0.0),)),
    Claim("6b", "A softer touch: smaller NLL of right answers on other tasks",
          LIKELIHOOD, (between(CONTINUOUS, HARD, NLL, high=0.0),)),
    Claim("7", "Trained narrow, tested wide: no worse greedily, better at large k",
          OTHER, (between(CONTINUOUS, HARD, GREEDY, -MARGIN), between(CONTINUOUS, HARD, LARGE, 0.0))),
    Claim("8", "The untrained model's curve stays below to the largest k",
          OWN, (between(TRAINED, UNTRAINED, LARGEST, 0.0),)),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What runs say of a claim on a task, "" where there is none of its kind.

    Attributes:
        claim: the claim.
        group: base model and training set.
        task: the task.
        differences: with their intervals.
        missing: what is needed in addition.
    """

    claim: Claim
    group: str
    task: str
    differences: tuple[Difference, ...]
    missing: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Supported, refuted or undecided; missing where no run says anything."""
        deciding = [one for one in self.differences if one.decides]
        if not deciding:
            return "missing"
        if any(one.word(1.0 - (1.0 - LEVEL) / len(deciding)) == "refuted" for one in deciding):
            return "refuted"
        whole = not self.missing and all(one.word() == "supported" for one in deciding)
        return "supported" if whole else "undecided"


def find_claims(arms: Arms) -> list[Finding]:
    """Every claim on every task that it is about, by base model and training set."""
    return [
        _finding(claim, name, Evidence(arms, group, task))
        for name, group in _groups(arms).items()
        for claim in CLAIMS
        for task in _tasks(arms, group)[claim.tasks] or [""]
    ]


def _finding(claim: Claim, group: str, evidence: Evidence) -> Finding:
    if not evidence.task:
        return Finding(claim, group, "", (), (claim.tasks,))
    found = [one for part in claim.parts for one in part(evidence)]
    missing = dict.fromkeys(one for one in found if isinstance(one, str))
    differences = tuple(one for one in found if isinstance(one, Difference))
    return Finding(claim, group, evidence.task, differences, (*missing,))


def _groups(arms: Arms) -> dict[str, tuple[Arm, ...]]:
    """Arms that may be compared; labelled ones by what they were trained on, and for how long."""
    found: dict[str, tuple[Arm, ...]] = {}
    for name, group in arms.named_groups:
        kinds = dict.fromkeys(_trained_on(arm) for arm in group if arm.training)
        for kind in kinds if len(kinds) > 1 else [None]:
            chosen = (arm for arm in group if kind in (None, _trained_on(arm)) or not arm.training)
            found[kind or name] = tuple(chosen)
    return found


def _trained_on(arm: Arm) -> str:
    updates = (arm.training.get("config") or {}).get("max_steps")
    return f"{arm.training.get('dataset')}" + (f", {updates} updates" if updates else "")


def _tasks(arms: Arms, group: tuple[Arm, ...]) -> dict[str, list[str]]:
    """Tasks of the group by their kind; where none is known to be trained on, all are."""
    trained = [c for arm in group if arm.training or len(group) == 1 for c in arm.checkpoints]
    there = [task for task in arms.tasks if any(task == key[0] for c in trained for key in c.cells)]
    names = [str(arm.training.get("dataset")).rsplit("/", 1)[-1] for arm in group]
    names = [OWN_TASK.get(name, name.removesuffix(".jsonl")) for name in names]
    own = [task for task in there if task in names] or there
    likelihood = sorted({task for c in trained for task in c.likelihoods})
    return {OWN: own, OTHER: [t for t in there if t not in own], LIKELIHOOD: likelihood}


def claims_frame(folders: Sequence[Path]) -> pd.DataFrame:
    """The records of the claims of some run directories."""
    import pandas as pd

    arms = measure([(None, folder) for folder in folders])
    return pd.DataFrame(list(claim_records(find_claims(arms))))


def claim_records(found: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """A row a difference, and one a claim without any; shares as fractions."""
    for finding in found:
        claim, missing = finding.claim, "; ".join(finding.missing)
        said = {"claim": claim.number, "text": claim.text, "group": finding.group}
        said |= {"task": finding.task, "verdict": finding.verdict, "missing": missing}
        if not finding.differences:
            yield said
        for one in finding.differences:
            low, high = one.interval()
            figure = {"difference": one.name, "value": one.value, "low": low, "high": high}
            region = {"above": one.low, "below": one.high, "unit": one.unit}
            judged = {"word": one.word(), "decides": one.decides, "scope": one.contrast.scope}
            yield said | figure | region | judged
