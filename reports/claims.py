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
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from softeval.errors import UserError
from softeval.modes import FAMILIES, MODES, mode_record
from softeval.reports.contrasts import scored
from softeval.reports.measured import scores
from softeval.reports.measured.arms import Arm, Arms, last_part, measure
from softeval.reports.measured.scores import Measure, shared, success
from softeval.reports.notes import unlike
from softeval.reports.tables import on_questions
from softeval.runs.run import REFERENCE, RecordedMode
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.equivalence import MARGIN
from softeval.tasks.catalogue import is_bundled

LEVEL = 0.95
KEPT = 0.8
"""Share of the base's entropy from which on it counts as kept."""
OWN_TASK = {"demo": "arithmetic", "gsm8k": "gsm8k", "math": "math500"}
OWN_TASK |= {"arithmetic_hidden": "arithmetic_hidden_30", "arithmetic_hidden_0": "arithmetic"}
"""Evaluation tasks of training sets; of other sets that are not bundled it is not known."""
CONTINUOUS, HARD, TRAINED = "continuous training", "hard training", "any training"
UNTRAINED = "the untrained model"
OWN, OTHER, LIKELIHOOD = "a task trained on", "a task not trained on", "a log-likelihood task"


@dataclass(frozen=True)
class Difference:
    """A − B, and the region in which a claim says that it lies.

    Attributes:
        name: for example "soft − hard, hard_sample pass@32".
        contrast: with its interval.
        low: lower end of the region.
        high: upper end.
        unit: points (fractions), nats, or shares of the untrained model's.
        decides: whether the claim depends on it.
        fixed: whether a training has one checkpoint here, so that nothing is said of others.
    """

    name: str
    contrast: Contrast
    low: float
    high: float
    unit: str = "points"
    decides: bool = True
    fixed: bool = False

    def word(self, level: float = LEVEL) -> str:
        """Inside the region, outside, or neither."""
        low, high = self.contrast.at_level(level)
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
        """The arms of a role: HARD, CONTINUOUS, TRAINED (both) or UNTRAINED."""
        roles = (HARD, CONTINUOUS) if role == TRAINED else (role,)
        return [arm for arm in self.group if role_of(arm) in roles]


def role_of(arm: Arm) -> str:
    """HARD where the mode that a training samples feeds tokens, else CONTINUOUS; or UNTRAINED.

    What was trained elsewhere is known by its label: the name of a mode or of a paper's family.
    """
    method = str(arm.training.get("method") or arm.method)
    name = f"{method}_sample" if method in FAMILIES else method
    if not arm.training and name not in MODES:
        return UNTRAINED
    mode = arm.training.get("mode") or (mode_record(MODES[name]) if name in MODES else {})
    return HARD if mode.get("feeds_tokens") else CONTINUOUS


Part = Callable[[Evidence], Iterator[Difference | str]]
"""Differences of a claim, or what is missing for them."""


def between(a: str, b: str, measure: Measure, low: float = -inf, high: float = inf) -> Part:
    """Every arm of role A less every one of role B, in a region; an entropy over B's."""

    def part(evidence: Evidence) -> Iterator[Difference | str]:
        yield from (role for role in (a, b) if not evidence.playing(role))
        for first in evidence.playing(a):
            for second in evidence.playing(b):
                names = [evidence.arms.name(arm) for arm in (first, second)]
                names = names[:1] if measure is scores.ENTROPY else names
                sides = (first, measure), (second, measure)
                yield from _differences(evidence, " − ".join(names), sides, (low, high))

    return part


def hard_inference(evidence: Evidence) -> Iterator[Difference | str]:
    """Hard inference less every other, with the same checkpoints: greedy, and at the large k."""
    arms, task = evidence.arms, evidence.task
    if not evidence.playing(TRAINED):
        yield TRAINED
    for arm in evidence.playing(TRAINED):
        for hard in (scores.GREEDY, scores.LARGE):
            mode = arms.mode(hard.modes[0])
            there = [m for m in arms.modes if arm.having((task, m)) and m.family != REFERENCE]
            others = [m for m in there if m.is_greedy == mode.is_greedy]
            if not others:
                yield f"other inference than hard, greedy and sampled, of {arms.name(arm)}"
            for other in others:
                sides = (arm, success(mode, hard.k, other)), (arm, success(other, hard.k, mode))
                yield from _differences(evidence, arms.name(arm), sides, (-MARGIN, inf))


def _differences(
    evidence: Evidence, what: str, sides: Sequence[tuple[Arm, Measure]], region: tuple[float, float]
) -> Iterator[Difference | str]:
    """A − B, of all questions and of each part of the task; first what is missing for it to decide."""
    arms, task = evidence.arms, evidence.task
    (first, measure), (second, _) = sides
    k = min([measure.k, *(n for arm, of in sides if (n := of.samples(arm, task)))])
    name = measure.name.format("k" if k == inf else k)
    tables = [of.table(arm, task, k) for arm, of in sides]
    for (arm, _), table in zip(sides, tables, strict=True):
        rows = 0 if table is None else len(table[1])
        if rows < arm.seeds:
            few = f"{arm.seeds - rows} of {arm.seeds} checkpoints of " if rows else ""
            yield f"{name} of {few}{arms.name(arm)}"
    if tables[0] is None or tables[1] is None:
        return
    lacking = list(_unlike(arms, task, sides))
    if k < (wanted := min(measure.k, scores.HEADLINE_K)):
        lacking.append(f"{wanted} samples a question, not {k}, for {what}")
    yield from lacking
    doc_M, a_SM, b_SM = shared(tables[0], tables[1])
    kept = scored(a_SM, b_SM)
    doc_M, a_SM, b_SM = doc_M[kept], a_SM[:, kept], b_SM[:, kept]
    if len(doc_M) < 2:
        yield f"two questions in common for {what}, {name}"
        return
    if measure is scores.ENTROPY and not b_SM.any():
        yield f"CoT entropy above 0 of {arms.name(second)}"
        return
    if measure is scores.ENTROPY:  # A − s (B − 1), which decides exactly, however uncertain B is
        [share] = filter(isfinite, region)
        a_SM, b_SM = a_SM / b_SM.mean(), share * (b_SM / b_SM.mean() - 1)
    questions = on_questions(len(doc_M), len(np.union1d(tables[0][0], tables[1][0])))
    shown = f"{what}, {name}" + (f", {questions}" if " of " in questions else "")
    one = [arm for (arm, _), x_SM in zip(sides, (a_SM, b_SM), strict=True) if len(x_SM) == 1]
    fixed = any(role_of(arm) != UNTRAINED for arm in one)
    parts = {shown: np.full(len(doc_M), True)}
    for part, docs in _parts(arms, task).items() if measure is scores.LARGE else ():
        parts[f"{what}, {name}, {part} part"] = np.isin(doc_M, [*docs])
    for named, chosen_M in parts.items():
        if chosen_M.sum() > 1:
            x_SM, y_SM = a_SM[:, chosen_M], b_SM[:, chosen_M]
            contrast = compare_methods(x_SM, y_SM, bounded=measure.bounded, paired=first is second)
            decides = named == shown and not lacking
            yield Difference(named, contrast, *region, measure.unit, decides, fixed)


def _unlike(arms: Arms, task: str, sides: Sequence[tuple[Arm, Measure]]) -> Iterator[str]:
    """What keeps runs from deciding: one that has not ended, and what differs besides training."""
    keys = {(task, RecordedMode(mode)) for _, measure in sides for mode in measure.modes}
    runs = [run for arm, _ in sides for c in arm.checkpoints for run in c.runs]
    runs = [run for run in runs if keys & run.cells.keys() or task in run.answers]
    if left := dict.fromkeys(str(run.path) for run in runs if not run.complete):
        yield f"the rest of {', '.join(left)}"
    names = dict.fromkeys(arms.name(arm) for arm, _ in sides)
    if told := unlike(runs, keys):
        yield f"runs of {' and '.join(names)} alike in {', '.join(told)}"


def _parts(arms: Arms, task: str) -> dict[str, set[int]]:
    """Questions of each part of a task; empty where it has none."""
    found: dict[str, set[int]] = {}
    for run in arms.runs:
        if run.cells and task in run.datasets() and run.has_column("prompts", "group"):
            rows = run.prompts(["task", "doc_id", "group"])
            for name, docs in rows[rows["task"] == task].groupby("group")["doc_id"]:
                found.setdefault(str(name), set()).update(docs)
    return found


@dataclass(frozen=True)
class Claim:
    """A claim: its number and words, on which tasks it is judged, and its differences."""

    number: str
    text: str
    tasks: str
    parts: tuple[Part, ...]


CLAIMS = (
    Claim("1", "Greedy parity of training methods",
          OWN, (between(CONTINUOUS, HARD, scores.GREEDY, -MARGIN, MARGIN),)),
    Claim("2", "Continuous training keeps coverage that hard training gives up",
          OWN, (between(CONTINUOUS, HARD, scores.LARGE, 0.0),)),
    Claim("3", "The gap of greedy over sampled pass@1 closes under hard training only",
          OWN, (between(HARD, UNTRAINED, scores.GAP, high=0.0), between(CONTINUOUS, HARD, scores.GAP, 0.0))),
    Claim("4", "Continuous training keeps the entropy of CoTs, hard training does not",
          OWN, (between(CONTINUOUS, UNTRAINED, scores.ENTROPY, KEPT),
                between(HARD, UNTRAINED, scores.ENTROPY, high=KEPT))),
    Claim("5", "Hard inference is best for every training", OWN, (hard_inference,)),
    Claim("6a", "A softer touch: smaller KL to the untrained model on own CoTs",
          OWN, (between(CONTINUOUS, HARD, scores.KL, high=0.0),)),
    Claim("6b", "A softer touch: smaller NLL of right answers on other tasks",
          LIKELIHOOD, (between(CONTINUOUS, HARD, scores.NLL, high=0.0),)),
    Claim("7", "Trained narrow, tested wide: no worse greedily, better at large k",
          OTHER, (between(CONTINUOUS, HARD, scores.GREEDY, -MARGIN), between(CONTINUOUS, HARD, scores.LARGE, 0.0))),
    Claim("8", "The untrained model's curve stays below to the largest k",
          OWN, (between(TRAINED, UNTRAINED, scores.LARGEST, 0.0),)),
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
        for task in _tasks(group)[claim.tasks] or [""]
    ]


def _finding(claim: Claim, group: str, evidence: Evidence) -> Finding:
    if not evidence.task:
        return Finding(claim, group, "", (), (claim.tasks,))
    found = [one for part in claim.parts for one in part(evidence)]
    missing = dict.fromkeys(one for one in found if isinstance(one, str))
    differences = tuple(one for one in found if isinstance(one, Difference))
    return Finding(claim, group, evidence.task, differences, (*missing,))


def _groups(arms: Arms) -> dict[str, tuple[Arm, ...]]:
    """What may be compared: trainings of one base, set, length and choice of checkpoint, and the base."""
    untrained = [arm for arm in arms.arms if role_of(arm) == UNTRAINED]
    names = ", ".join(arms.name(arm) for arm in untrained)
    found: dict[str, list[Arm]] = {}
    for arm in (arm for arm in arms.arms if arm not in untrained):
        name, base = _kind(arm), arm.training.get("base")
        bases = [
            u for u in untrained if not base or u.checkpoints[0].runs[0].name == last_part(base)
        ]
        if not base and len(bases) > 1:
            raise UserError(f"{names}: which is the base? Name the others by their mode, soft=RUN")
        found.setdefault(name, bases).append(arm)
    return {name: (*group,) for name, group in found.items()} or {names: (*untrained,)}


def _kind(arm: Arm) -> str:
    """From what, on what and for how long an arm was trained, and which checkpoint of it this is."""
    record, chosen = arm.training, arm.training.get("selected")
    if not record:
        return "trained elsewhere"
    base, dataset = (last_part(record.get(name)) for name in ("base", "dataset"))
    updates = record["step"] if chosen == "last" else (record.get("config") or {}).get("max_steps")
    told = [f"{base}, trained on {dataset}", updates and f"{updates} updates"]
    told += [chosen and f"{chosen} checkpoint"]
    return ", ".join(filter(None, told))


def _tasks(group: tuple[Arm, ...]) -> dict[str, list[str]]:
    """Tasks of what was trained by their kind; where nobody knows what was trained on, all are."""
    trained = [arm for arm in group if role_of(arm) != UNTRAINED] or group
    checkpoints = [c for arm in trained for c in arm.checkpoints]
    there = sorted({task for c in checkpoints for task, _ in c.cells})
    sets = {last_part(arm.training.get("dataset")).removesuffix(".jsonl") for arm in trained}
    meant = {OWN_TASK.get(name, name) for name in sets}
    own = [task for task in there if OWN_TASK.get(task, task) in meant]
    if not own and not any(name in OWN_TASK or is_bundled(name) for name in sets):
        own = there
    likelihood = sorted({task for c in checkpoints for task in c.likelihoods})
    return {OWN: own, OTHER: [t for t in there if t not in own], LIKELIHOOD: likelihood}


def claims_of(folders: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The records of the claims of some run directories."""
    return claim_records(find_claims(measure([(None, folder) for folder in folders])))


def claim_records(found: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    """A row a difference, and one a claim without any; shares as fractions."""
    for finding in found:
        claim, missing = finding.claim, "; ".join(finding.missing)
        said = {"claim": claim.number, "text": claim.text, "group": finding.group}
        said |= {"task": finding.task, "verdict": finding.verdict, "missing": missing}
        if not finding.differences:
            yield said
        for one in finding.differences:
            value, low, high = one.contrast.diff, one.contrast.low, one.contrast.high
            figure = {"difference": one.name, "value": value, "low": low, "high": high}
            region = {"above": one.low, "below": one.high, "unit": one.unit}
            judged = {"word": one.word(), "decides": one.decides, "scope": one.contrast.scope}
            yield said | figure | region | judged
