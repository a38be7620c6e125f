"""Log-likelihood tasks of every arm: accuracy beside NLL, each paired with the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softeval.reports.arms import Arm, Arms, Checkpoint
from softeval.reports.left_out import NothingToShow
from softeval.statistics.contrast import Contrast
from softeval.statistics.crossed import CrossedMean, crossed_mean
from softeval.statistics.likelihood import nll_difference


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
        to_base=nll_difference(nll_SM, _table(base, task, doc_M, "nll_M")) if base else None,
        questions=len(doc_M),
    )


def _documents(checkpoints: Sequence[Checkpoint], task: str) -> np.ndarray:
    """Questions that all the checkpoints answered."""
    shared = checkpoints[0].likelihoods[task].doc_M
    for checkpoint in checkpoints[1:]:
        shared = np.intersect1d(shared, checkpoint.likelihoods[task].doc_M)
    return shared


def _table(
    checkpoints: Sequence[Checkpoint], task: str, doc_M: np.ndarray, column: str
) -> np.ndarray:
    tables = [checkpoint.likelihoods[task] for checkpoint in checkpoints]
    return np.stack([getattr(t, column)[np.searchsorted(t.doc_M, doc_M)] for t in tables])
