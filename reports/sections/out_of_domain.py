"""Log-likelihood tasks of every arm: accuracy beside NLL, each paired with the base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.drawing import (
    Span,
    a_row,
    dots,
    legend,
    looks,
    new_figure,
    percent_axis,
    spans,
    styled,
)
from softeval.reports.layout import Part, Section, figure_block
from softeval.reports.left_out import NothingToShow
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint
from softeval.reports.paper import paper_out_of_domain
from softeval.reports.tables import Table, TableCell, nats, not_negative, number, points
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.crossed import CrossedMean, crossed_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class OutOfDomainScore:
    """One arm on one log-likelihood task.

    Attributes:
        arm: the arm.
        name: as shown.
        task: the task.
        accuracy: share of questions answered correctly.
        nll: nats per token of the correct answer.
        to_base: NLL minus that of the base model; None for the base model or without one.
        questions: questions that entered.
    """

    arm: Arm
    name: str
    task: str
    accuracy: CrossedMean
    nll: CrossedMean
    to_base: Contrast | None
    questions: int


def find_out_of_domain(arms: Arms) -> list[OutOfDomainScore]:
    """One entry a task and arm; empty where no log-likelihood task was run."""
    tasks = sorted({task for arm in arms.arms for c in arm.checkpoints for task in c.likelihoods})
    return [
        score
        for task in tasks
        for arm in arms.arms
        if (score := _score(arms, arm, task)) is not None
    ]


def _score(arms: Arms, arm: Arm, task: str) -> OutOfDomainScore | None:
    """None where the arm has no question that all its checkpoints answered."""
    mine = [c for c in arm.checkpoints if task in c.likelihoods]
    if not mine:
        return None
    base = [
        c
        for other in arms.arms
        if other.is_base and other.family == arm.family and other is not arm
        for c in other.checkpoints
        if task in c.likelihoods
    ]
    doc_M = _documents([*mine, *base], task)
    if base and not len(doc_M):
        doc_M, base = _documents(mine, task), []
    if not len(doc_M):
        return None
    nll_SM = _table(mine, task, doc_M, "nll_M")
    if not np.isfinite(nll_SM).all(axis=0).any():
        raise NothingToShow(f"the NLL of {arms.name(arm)} on {task} is not finite")
    return OutOfDomainScore(
        arm=arm,
        name=arms.name(arm),
        task=task,
        accuracy=crossed_mean(_table(mine, task, doc_M, "correct_M")),
        nll=crossed_mean(nll_SM, bounded=False),
        to_base=compare_methods(nll_SM, _table(base, task, doc_M, "nll_M"), bounded=False)
        if base
        else None,
        questions=len(doc_M),
    )


def _documents(checkpoints: Sequence[MeasuredCheckpoint], task: str) -> np.ndarray:
    """Questions that all the checkpoints answered."""
    shared = checkpoints[0].likelihoods[task].doc_M
    for checkpoint in checkpoints[1:]:
        shared = np.intersect1d(shared, checkpoint.likelihoods[task].doc_M)
    return shared


def _table(
    checkpoints: Sequence[MeasuredCheckpoint], task: str, doc_M: np.ndarray, column: str
) -> np.ndarray:
    tables = [checkpoint.likelihoods[task] for checkpoint in checkpoints]
    return np.stack([getattr(t, column)[np.searchsorted(t.doc_M, doc_M)] for t in tables])


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """Accuracy and NLL of the log-likelihood tasks; nothing where there was none."""
    scores = find_out_of_domain(material.arms)
    if not scores:
        return
    told = [
        f"{s.task} {s.name}: {points(s.accuracy.mean)} %, {number(s.nll.mean)} nats" for s in scores
    ]
    yield figure_block(
        "ood",
        "Accuracy against NLL of the correct answer",
        told,
        partial(draw_out_of_domain, scores),
        "Accuracy against NLL per token of the correct answer, with 95 % intervals; small marks are"
        " single seeds. Up and left is better.",
    )
    rows = tuple(table_row(score, material.options.paper_reference) for score in scores)
    columns = ("training", "accuracy, %", "NLL per token, nats", "NLL minus base", "questions")
    yield Table("Log-likelihood tasks.", columns, rows, "Accuracy and NLL")


def table_row(s: OutOfDomainScore, paper: bool) -> tuple[TableCell, ...]:
    """One row of the table."""
    references = [
        paper_out_of_domain(s.arm, s.task, metric) if paper else None
        for metric in ("accuracy_percent", "nll_correct_per_token")
    ]
    printed = [f"paper {r.text}" if r else "" for r in references]
    accuracy, nll = s.accuracy.interval, s.nll.interval
    sd = "" if np.isnan(s.accuracy.sd) else f" ± {points(s.accuracy.sd)}"
    nll_sd = "" if np.isnan(s.nll.sd) else f" ± {s.nll.sd:.3f}"
    to_base = TableCell("–")
    if s.to_base is not None:
        interval = f"[{s.to_base.low:+.3f}, {s.to_base.high:+.3f}]".replace("-", "−")
        to_base = TableCell(f"{s.to_base.diff:+.3f}".replace("-", "−"), interval)
    return (
        TableCell(s.name, s.task),
        TableCell(
            points(accuracy.mean) + sd,
            f"[{points(accuracy.low)}, {points(accuracy.high)}]",
            printed[0],
        ),
        TableCell(
            f"{nats(nll.mean)}{nll_sd}",
            not_negative(nll.low, nll.high),
            printed[1],
        ),
        to_base,
        TableCell(str(s.questions)),
    )


# Drawing -------------------------------------------------------------------------------------


def draw_out_of_domain(scores: Sequence[OutOfDomainScore]) -> Figure:
    """Up and left is better; bars are 95 % intervals, small marks single seeds."""
    with styled():
        tasks = list(dict.fromkeys(score.task for score in scores))
        named = looks([score.name for score in scores])
        columns = min(len(tasks), a_row(3))
        rows = -(-len(tasks) // columns)
        figure = new_figure(0.6 + 2.4 * rows, 3.0 * columns if columns > 1 else 4.6)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, task in zip(axes, tasks, strict=False):
            panel.set_title(task)
            mine = [score for score in scores if score.task == task]
            accuracies, nlls = zip(*map(_ends, mine), strict=True)
            dots(panel, accuracies, named)
            dots(panel, nlls, named, orient="y")
            for score in (score for score in mine if len(score.nll.seed_means) > 1):
                look = named[score.name]
                panel.plot(
                    score.nll.seed_means, score.accuracy.seed_means, look.marker,
                    color=look.colour, ms=2.5, ls="",
                )  # fmt: skip
            percent_axis(panel)
            panel.set_xlabel("NLL per token, nats")
        for panel in axes[len(tasks) :]:
            panel.set_axis_off()
        axes[0].set_ylabel("accuracy, %")
        legend(figure, named)
        return figure


def _ends(score: OutOfDomainScore) -> tuple[Span, Span]:
    """The point with its interval of accuracy, and again with that of NLL."""
    nll, accuracy = score.nll.interval, score.accuracy.interval
    return (
        spans(score.name, nll.mean, accuracy.mean, accuracy.low, accuracy.high),
        spans(score.name, accuracy.mean, nll.mean, max(nll.low, 0.0), nll.high),
    )


SECTION = Section("out-of-domain", "Out of domain", "Out of domain", {"Out of domain": _parts})
