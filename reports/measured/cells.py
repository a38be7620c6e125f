"""Samples of a run reduced to cells: counts and validity of one task under one CoT mode.

Reads samples.parquet once, in batches; texts are hashed and dropped. The questions of log-likelihood
tasks, which no mode has, are read here, too. Knows nothing of entropies, several runs or intervals.

Shape letters: R samples (rows), M problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softeval.modes import mode_order
from softeval.runs.run import RecordedMode, Run
from softeval.runs.tables import doubled_row

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, RecordedMode]  # (task, mode)

COLUMNS = (
    "task",
    "mode",
    "doc_id",
    "sample",
    "prompt_hash",
    "cot_text",
    "answer_text",
    "target",
    "correct",
    "verdict",
    "stop_reason",
    "n_cot_tokens",
)


@dataclass(frozen=True, eq=False)
class MeasuredCell:
    """Samples of one run, task and mode, sorted by problem and sample index.

    Attributes:
        task: name of the task.
        mode: name of the CoT mode.
        doc_R: (R,) problem of each sample.
        sample_R: (R,) sample index.
        correct_R: (R,) whether the answer was accepted.
        no_answer_R: (R,) whether no box was closed.
        timeout_R: (R,) whether scoring ran out of time or failed.
        truncated_R: (R,) whether the CoT ended at the cap.
        eos_R: (R,) whether the CoT ended with an end-of-sequence token.
        length_R: (R,) CoT tokens.
        text_R: (R,) hash of CoT and answer, to count duplicates.
        target_M: label hash of each problem in `doc_M`.
        prompt_M: prompt hash of each problem in `doc_M`.
        other_R: (R,) whether the rules that did not give `correct_R` accept the answer; None in
            runs older than the column.
    """

    task: str
    mode: RecordedMode
    doc_R: NDArray[np.int64]
    sample_R: NDArray[np.int64]
    correct_R: NDArray[np.bool_]
    no_answer_R: NDArray[np.bool_]
    timeout_R: NDArray[np.bool_]
    truncated_R: NDArray[np.bool_]
    eos_R: NDArray[np.bool_]
    length_R: NDArray[np.int64]
    text_R: NDArray[np.int64]
    doc_M: NDArray[np.int64]
    n_M: NDArray[np.int64]
    c_M: NDArray[np.int64]
    target_M: NDArray[np.object_]
    prompt_M: NDArray[np.object_]
    other_R: NDArray[np.bool_] | None = None

    @property
    def n(self) -> int:
        """Fewest samples of a problem; the n that is published with a pass@k."""
        return int(self.n_M.min())

    @property
    def problem_R(self) -> NDArray[np.intp]:
        """(R,) index into `doc_M`."""
        return np.searchsorted(self.doc_M, self.doc_R)

    def by_other_rules(self) -> MeasuredCell:
        """The cell with the verdicts of the other rules; itself where none are recorded."""
        if self.other_R is None:
            return self
        c_M = np.bincount(self.problem_R, self.other_R, len(self.doc_M)).astype(np.int64)
        return replace(self, correct_R=self.other_R, other_R=self.correct_R, c_M=c_M)

    def duplicates(self) -> float:
        """Share of samples whose text an earlier sample of the same problem has; 0 when greedy."""
        pairs = np.stack([self.doc_R, self.text_R], -1)
        return 1.0 - len(np.unique(pairs, axis=0)) / len(pairs)


def read_cells(run: Run) -> dict[Key, MeasuredCell]:
    """Every cell of a run, in the order of tasks, then of the modes.

    Raises:
        UserError: samples.parquet is damaged, or holds a sample twice.
    """
    if not run.has("samples"):
        return {}
    parts: dict[Key, list[dict[str, np.ndarray]]] = {}
    other = ("other_correct",) if run.has_column("samples", "other_correct") else ()
    for batch in run.batches("samples", (*COLUMNS, *other)):
        for (task, mode), columns in _split(batch):
            parts.setdefault((task, run.mode(mode)), []).append(columns)
    path = run.table_path("samples")
    return {key: _cell(path, key, parts[key]) for key in sorted(parts, key=cell_order)}


def cell_order(key: Key) -> tuple[Any, ...]:
    """Sort key: tasks by name, then modes in their order."""
    return key[0], *mode_order(key[1])


def _split(batch: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], dict[str, np.ndarray]]]:
    """The batch's rows by (task, mode), as numpy columns."""
    task, mode = (batch.column(name).dictionary_encode() for name in ("task", "mode"))
    modes = mode.dictionary.to_pylist()
    code_R = task.indices.to_numpy() * len(modes) + mode.indices.to_numpy()
    columns = _columns(batch)
    for code in np.unique(code_R):
        rows = np.flatnonzero(code_R == code)
        key = (task.dictionary[code // len(modes)].as_py(), modes[code % len(modes)])
        yield key, {name: values[rows] for name, values in columns.items()}


def _columns(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    verdict_R, stop_R = (_strings(batch, name) for name in ("verdict", "stop_reason"))
    correct_R = _booleans(batch, "correct")
    columns = {
        "doc_R": _integers(batch, "doc_id"),
        "sample_R": _integers(batch, "sample"),
        "correct_R": correct_R,
        "no_answer_R": verdict_R == "no_answer",
        "timeout_R": np.isin(verdict_R, ["timeout", "error"]),
        "truncated_R": stop_R == "length",
        "eos_R": stop_R == "eos",
        "length_R": _integers(batch, "n_cot_tokens"),
        "text_R": _hashes(batch, "cot_text") * 31 + _hashes(batch, "answer_text"),
        "target": _strings(batch, "target"),
        "prompt": _strings(batch, "prompt_hash"),
    }
    if "other_correct" in batch.schema.names and batch.column("other_correct").null_count < len(
        batch
    ):
        asked_R = batch.column("other_correct").is_valid().to_numpy(zero_copy_only=False)
        columns["other_R"] = np.where(asked_R, _booleans(batch, "other_correct"), correct_R)
    return columns


def _integers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)


def _booleans(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(bool)


def _strings(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _hashes(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """Python's own hash of each text: only ever compared within one process."""
    return np.fromiter((hash(text) for text in batch.column(name).to_pylist()), np.int64)


def _cell(path: Path, key: Key, parts: list[dict[str, np.ndarray]]) -> MeasuredCell:
    recorded = [name for name in parts[0] if all(name in part for part in parts)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in recorded}
    order = np.lexsort((joined["sample_R"], joined["doc_R"]))
    joined = {name: values[order] for name, values in joined.items()}
    doc_R, sample_R = joined["doc_R"], joined["sample_R"]
    again = np.flatnonzero((doc_R[1:] == doc_R[:-1]) & (sample_R[1:] == sample_R[:-1]))
    if again.size:
        raise doubled_row(path, *key, int(doc_R[again[0]]), int(sample_R[again[0]]))
    target_R, prompt_R = joined.pop("target"), joined.pop("prompt")
    doc_M, first_M, n_M = np.unique(joined["doc_R"], return_index=True, return_counts=True)
    return MeasuredCell(
        task=key[0],
        mode=key[1],
        doc_M=doc_M,
        n_M=n_M,
        c_M=np.add.reduceat(joined["correct_R"].astype(np.int64), first_M),
        target_M=target_R[first_M],
        prompt_M=prompt_R[first_M],
        **joined,
    )


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
