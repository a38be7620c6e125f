"""Log-likelihood tasks of a run: accuracy and NLL of the correct answer, one row a question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softeval.runs.run import Run


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """Results of one task, sorted by question.

    Attributes:
        doc_M: questions.
        correct_M: whether the correct choice was the most likely one; 0 or 1.
        nll_M: negative log-likelihood per token of the correct answer, nats.
    """

    doc_M: NDArray[np.int64]
    correct_M: NDArray[np.float64]
    nll_M: NDArray[np.float64]


def read_likelihoods(run: Run) -> dict[str, Likelihoods]:
    """Results of each log-likelihood task; empty where the run had none.

    Raises:
        UserError: likelihoods.parquet is damaged.
    """
    if not run.has("likelihoods"):
        return {}
    columns = ("task", "doc_id", "correct", "nll_per_token")
    parts: list[dict[str, np.ndarray]] = [
        {name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns}
        for batch in run.batches("likelihoods", columns)
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in columns}
    return {str(task): _of_task(whole, task) for task in sorted(set(whole["task"]))}


def _of_task(whole: dict[str, np.ndarray], task: str) -> Likelihoods:
    rows = np.flatnonzero(whole["task"] == task)
    rows = rows[np.argsort(whole["doc_id"][rows], kind="stable")]
    return Likelihoods(
        doc_M=whole["doc_id"][rows].astype(np.int64),
        correct_M=whole["correct"][rows].astype(np.float64),
        nll_M=whole["nll_per_token"][rows].astype(np.float64),
    )
