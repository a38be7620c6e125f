"""Two sides compared metric by metric: what `softeval compare` prints and `Run.compare` returns.

A side is one checkpoint, or the training seeds of one method. All metrics of a comparison are one
family and Holm-adjusted together. `plan_runs` says for each what more data would find.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.errors import UserError, suggest
from softeval.reports.contrasts import (
    Comparison,
    Draft,
    Metric,
    Side,
    compare_sides,
    scored,
    shared_scores,
)
from softeval.reports.measured.arms import Arm, Arms, measure
from softeval.reports.measured.cells import Key, cell_order
from softeval.reports.measured.refusals import refuse_other_data
from softeval.reports.measured.scores import HEADLINE_K, Floats, Ints, usual_n
from softeval.reports.notes import rules_notes, setting_notes
from softeval.runs.run import ACCURACY, NLL_PER_TOKEN, RecordedMode, Run
from softeval.statistics.contrast import compare_methods
from softeval.statistics.equivalence import MARGIN, EquivalenceVerdict, holm, judge
from softeval.statistics.passk import within_problem_variance
from softeval.statistics.power import Needs, Plan, needs, plan_from

if TYPE_CHECKING:
    import pandas as pd

NLL_MARGIN = 0.02
"""Equivalence margin of an NLL, nats per token."""
NO_MODE = RecordedMode.of("", {})


@dataclass(frozen=True)
class Spent:
    """Seconds of a device, and bytes on disk."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class PlannedMetric:
    """What a comparison on one metric detects, and what a wanted difference needs.

    Attributes:
        metric: pass@k of a task under a mode.
        samples: samples a question, the fewer of both sides.
        plan: the comparison as it is.
        needs: of questions, samples or seeds, each alone.
        spent: what a sample took; None of runs that do not say.
    """

    metric: Metric
    samples: int
    plan: Plan
    needs: Needs
    spent: Spent | None = None

    @property
    def samples_needed(self) -> int | None:
        """Samples a question in whole multiples of the runs'; more of greedy ones are the same."""
        return None if self.needs.samples is None else self.needs.samples * self.samples

    def cost(
        self,
        questions: int | None = None,
        samples: int | None = None,
        seeds: int | None = None,
    ) -> Spent | None:
        """What evaluating both sides takes; each number that is not given is that of the runs."""
        if self.spent is None:
            return None
        draws = 1 if self.metric.mode.is_greedy else samples or self.samples
        sides = sum(seeds if seeds and had > 1 else had for had in self.plan.seeds)
        count = (questions or self.plan.problems) * draws * sides
        return Spent(self.spent.seconds * count, self.spent.bytes * count)


def compare_runs(
    a: Sequence[str | Path],
    b: Sequence[str | Path],
    task: str | None = None,
    mode: str | None = None,
    ks: Sequence[int] = (),
    margin: float = MARGIN,
) -> list[Comparison]:
    """Compare two sides on every metric that both have.

    Args:
        a: run directories of A: one checkpoint, or one a training seed; ``RUN:MODE`` names the mode
            of a side, so that two modes are compared.
        b: those of B.
        task: only this task.
        mode: only this CoT mode, of both sides.
        ks: the k of pass@k in sampled modes; empty for 1 and 32 or what both reach.
        margin: equivalence margin of a share, a fraction.

    Raises:
        UserError: runs of different data, or without a metric in common.
    """
    left, right, wanted = _asked(a, b, task, mode, ks)
    arms = Arms(
        (left, right), tuple(r for x in (left, right) for c in x.checkpoints for r in c.runs)
    )
    same = ["A and B are the same: every difference is 0."] if left is right and wanted.same else []
    warning = " ".join([*same, *setting_notes(arms), *rules_notes(arms)])
    found = [*_success(left, right, wanted), *_likelihood(left, right, wanted)]
    if not found:
        raise _nothing_in_common(left, right)
    adjusted = holm([contrast.p for *_, contrast in found])
    return [
        Comparison(*draft, _judged(draft, margin, float(p)), warning)
        for draft, p in zip(found, adjusted, strict=True)
    ]


def plan_runs(
    a: Sequence[str | Path],
    b: Sequence[str | Path],
    difference: float,
    power: float = 0.8,
    task: str | None = None,
    mode: str | None = None,
    ks: Sequence[int] = (),
) -> list[PlannedMetric]:
    """What finding a difference of two sides needs, by their own variances.

    Args:
        a: run directories of A, as of `compare_runs`.
        b: those of B.
        difference: to be found, a fraction.
        power: how often it is to be found.
        task: only this task.
        mode: only this CoT mode.
        ks: as of `compare_runs`.

    Raises:
        UserError: runs of different data, or without a metric in common.
    """
    left, right, wanted = _asked(a, b, task, mode, ks)
    found = []
    spent = _spent([r for side in (left, right) for c in side.checkpoints for r in c.runs])
    for first, second, metric, n in _metrics(left, right, wanted):
        doc_M, a_SM, b_SM = shared_scores(first, second, metric)
        kept = scored(a_SM, b_SM)
        if kept.sum() > 1:
            noise = [_sampling(side, metric, doc_M[kept]) for side in (first, second)]
            plan = plan_from(a_SM[:, kept], b_SM[:, kept], *noise)
            wants = needs(plan, difference, power)
            found.append(PlannedMetric(metric, n, plan, wants, spent))
    if not found:
        raise _nothing_in_common(left, right)
    return found


def _spent(runs: Sequence[Run]) -> Spent | None:
    """What a sample took in the runs, over all modes and tasks."""
    samples = seconds = size = 0.0
    for run in runs:
        rows = ((run.info.get("counts") or {}).get("rows") or {}).get("samples")
        if not rows or not run.info.get("seconds"):
            return None
        samples += rows
        seconds += run.info["seconds"] * (run.info.get("sessions") or [{}])[-1].get("processes", 1)
        size += sum(path.stat().st_size for path in run.path.glob("*.parquet"))
    return Spent(seconds / samples, size / samples)


def comparison_frame(compared: Sequence[Comparison]) -> pd.DataFrame:
    """One row a metric; shares and differences as fractions, NLL in nats."""
    import pandas as pd

    return pd.DataFrame([comparison_record(one) for one in compared])


def comparison_record(one: Comparison) -> dict[str, Any]:
    """A comparison as plain values, for JSON and frames."""
    contrast = one.contrast
    return {
        "task": one.metric.task,
        "mode": one.metric.mode,
        "mode_b": one.b.mode,
        "metric": one.metric.measure,
        "k": one.metric.k,
        "a": contrast.mean_a,
        "b": contrast.mean_b,
        "difference": contrast.diff,
        "low": contrast.low,
        "high": contrast.high,
        "p": contrast.p,
        "p_holm": one.verdict.p,
        "mde": contrast.mde,
        "verdict": one.verdict.word,
        "a_only": contrast.discordance.a_only,
        "b_only": contrast.discordance.b_only,
        "equivalence_low": one.verdict.equivalence.low,
        "equivalence_high": one.verdict.equivalence.high,
        "problems": contrast.problems,
        "questions": one.questions,
        "excluded": contrast.excluded,
        "test": contrast.test,
        "scope": contrast.scope,
        "warning": one.warning,
    }


def _nothing_in_common(*sides: Arm) -> UserError:
    runs = [run for side in sides for checkpoint in side.checkpoints for run in checkpoint.runs]
    unfinished = sorted({str(run.path) for run in runs if not run.complete})
    if unfinished:
        return UserError(
            f"nothing to compare yet in {', '.join(unfinished)}: finish what was begun"
        )
    return UserError(
        "A and B have no task and mode in common with two questions or more;"
        " `softeval ls runs` shows theirs"
    )


@dataclass(frozen=True)
class Wanted:
    """What to compare: a task, the mode of each side, values of k; None or empty for all."""

    task: str | None
    modes: tuple[str | None, str | None]
    ks: tuple[int, ...]

    @property
    def same(self) -> bool:
        """Whether each mode is compared with itself."""
        return self.modes[0] == self.modes[1]

    def pairs(self, a: Arm, b: Arm) -> list[tuple[Key, Key]]:
        """The cells of both sides that are compared, by task, then by mode."""
        first, second = ({key for c in arm.checkpoints for key in c.cells} for arm in (a, b))
        found = [
            (one, other)
            for one in first
            for other in second
            if one[0] == other[0]
            and self.task in (None, one[0])
            and (one[1], other[1]) == (self.modes if self.modes[0] else (one[1], one[1]))
        ]
        return sorted(found, key=lambda pair: cell_order(pair[0]))


def _refuse_unknown(wanted: Wanted, left: Arm, right: Arm) -> None:
    """A task or mode that is asked for and that a side does not have is named, with those it has."""
    for label, arm, mode in zip("AB", (left, right), wanted.modes, strict=True):
        keys = [key for c in arm.checkpoints for key in c.cells]
        tasks = [task for c in arm.checkpoints for task in c.likelihoods]
        for kind, asked, there in (
            ("task", wanted.task, [task for task, _ in keys] + tasks),
            ("mode", mode, [name for _, name in keys]),
        ):
            if asked is not None and asked not in there:
                named = ", ".join(dict.fromkeys(there)) or "none"
                raise UserError(
                    f"{kind} {asked!r} is not in {label}, which has {named}{suggest(asked, there)}"
                )


def _asked(
    a: Sequence[str | Path],
    b: Sequence[str | Path],
    task: str | None,
    mode: str | None,
    ks: Sequence[int],
) -> tuple[Arm, Arm, Wanted]:
    """Both sides, of the same data, and what of them to compare.

    A mode that is named of one side only is that of both.
    """
    (a, of_a), (b, of_b) = _split_modes("A", a), _split_modes("B", b)
    if mode and (of_a or of_b):
        raise UserError("--mode and RUN:MODE both name a mode; give one of them")
    mode = mode and mode.replace("-", "_")
    modes = of_a or of_b or mode, of_b or of_a or mode
    left = _side("A", a)
    # The same runs are read once, so that their seeds are paired.
    right = left if sorted(map(str, a)) == sorted(map(str, b)) else _side("B", b)
    refuse_other_data([r for arm in (left, right) for c in arm.checkpoints for r in c.runs])
    return left, right, Wanted(task, modes, tuple(ks))


def _split_modes(label: str, given: Sequence[str | Path]) -> tuple[list[str | Path], str | None]:
    """Run directories, and the mode that is named behind any of them: ``runs/x:soft_sample``."""
    folders: list[str | Path] = []
    modes: set[str] = set()
    for one in given:
        folder, _, mode = str(one).rpartition(":")
        named = folder and Path(folder).exists() and not Path(one).exists()
        folders.append(folder if named else one)
        modes |= {mode.replace("-", "_")} if named else set()
    if "" in modes:
        raise UserError(f"{label} ends in a colon, behind which a mode should stand; RUN:MODE")
    if len(modes) > 1:
        raise UserError(
            f"{label} names several modes ({', '.join(sorted(modes))}); give one a side"
        )
    return folders, next(iter(modes), None)


def _side(label: str, folders: Sequence[str | Path]) -> Arm:
    """The one method that the folders are checkpoints of."""
    arms = measure([(None, folder) for folder in folders], positions=False).arms
    first, *others = arms
    if others:
        names = ", ".join(arm.checkpoints[0].name for arm in arms)
        raise UserError(
            f"{label} holds several methods ({names}), which cannot be averaged;"
            " give the training seeds of one method"
        )
    return first


def _judged(draft: Draft, margin: float, p: float) -> EquivalenceVerdict:
    nll = draft[2].is_nll
    return judge(draft[-1], NLL_MARGIN if nll else margin, p=p, lower_is_better=nll)


def _metrics(a: Arm, b: Arm, wanted: Wanted) -> Iterator[tuple[Side, Side, Metric, int]]:
    """(A, B, metric, samples a question) of every pass@k in common."""
    _refuse_unknown(wanted, a, b)
    for key, other in wanted.pairs(a, b):
        first, second = Side("A", a.having(key), key[1]), Side("B", b.having(other), other[1])
        ns = [usual_n(c.cells[s.key(key[0])] for c in s.checkpoints) for s in (first, second)]
        n, mode = min(ns), key[1] if ns[0] <= ns[1] else other[1]
        ks = {1} if key[1].is_greedy and other[1].is_greedy else {*wanted.ks}
        for k in sorted(ks or {1, min(HEADLINE_K, n)}):
            if k > n:
                raise UserError(f"--k {k}: {key[0]} under {mode} has {n} samples a question")
            yield first, second, Metric(*key, k), n


def _success(a: Arm, b: Arm, wanted: Wanted) -> Iterator[Draft]:
    for first, second, metric, _ in _metrics(a, b, wanted):
        contrast = compare_sides(first, second, metric)
        if contrast is not None:
            yield first, second, metric, "", contrast


def _sampling(side: Side, metric: Metric, doc_M: Ints) -> Floats:
    """(S, M) variance of each score over sampling again; 0 in a greedy mode, NaN for n < 2k."""
    cells = [c.cells[side.key(metric.task)] for c in side.checkpoints]
    if metric.mode.is_greedy:
        return np.zeros((len(cells), len(doc_M)))
    rows = [(cell, np.searchsorted(cell.doc_M, doc_M)) for cell in cells]
    variances = [within_problem_variance(c.n_M[at], c.c_M[at], metric.k)[:, 0] for c, at in rows]
    return np.stack(variances)


def _likelihood(a: Arm, b: Arm, wanted: Wanted) -> Iterator[Draft]:
    tasks = {task for c in a.checkpoints for task in c.likelihoods if wanted.modes[0] is None}
    for task in sorted(task for task in tasks if wanted.task in (None, task)):
        first, second = (
            Side(name, tuple(c for c in arm.checkpoints if task in c.likelihoods), NO_MODE)
            for name, arm in (("A", a), ("B", b))
        )
        doc_M = reduce(np.intersect1d, [*first.documents(task), *second.documents(task)])
        if not second.checkpoints or len(doc_M) < 2:
            continue
        for measured, column in ((ACCURACY, "correct_M"), (NLL_PER_TOKEN, "nll_M")):
            a_SM, b_SM = (
                np.stack([getattr(t, column)[np.isin(t.doc_M, doc_M)] for t in tables])
                for tables in (
                    [c.likelihoods[task] for c in s.checkpoints] for s in (first, second)
                )
            )
            contrast = compare_methods(a_SM, b_SM, bounded=measured == ACCURACY)
            yield first, second, Metric(task, NO_MODE, measure=measured), "", contrast
