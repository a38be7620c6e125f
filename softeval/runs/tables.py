"""The Parquet tables of a run directory: how rows are written, and how they are read.

Writing is streamed and in the order given, so that memory stays bounded and the same rows give the
same bytes. Knows the schemas of `softeval.records`; nothing of journals, models or scoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from softeval import records
from softeval.errors import UserError
from softeval.files import beside, move_into_place
from softeval.records import Generation
from softeval.runs.parquet_files import CheckedWriter, damage_named, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMAS: dict[str, Callable[[], pa.Schema]] = {
    "samples": records.samples_schema,
    "positions": records.positions_schema,
    "mixtures": records.mixtures_schema,
    "prompts": records.prompts_schema,
    "tokens": records.tokens_schema,
    "likelihoods": records.likelihoods_schema,
}

# Generations a row group; fixed, because the bytes of a table depend on it.
GROUP_SIZE = 2048


@dataclass(frozen=True)
class ScoredSample:
    """A generation with its label and verdict: one row of samples.parquet.

    Attributes:
        generation: the sample.
        prompt_hash: `prompt_hash` of its prompt text.
        target: label of the question.
        correct: whether the answer was accepted against the label.
        verdict: "ok", "no_answer", "timeout" or "error".
        other_correct: whether the other set of rules accepts the answer; None where not asked.
        target_error: how far a number may be from the label's; None where it must be the same.
    """

    generation: Generation
    prompt_hash: str
    target: str
    correct: bool
    verdict: str
    other_correct: bool | None = None
    target_error: float | None = None


@dataclass(frozen=True)
class PromptRow:
    """A question as it was given to the model, and its label."""

    task: str
    doc_id: int
    prompt: str
    target: str


@dataclass(frozen=True)
class LikelihoodRow:
    """A question of a log-likelihood task. `nll` in nats, of the correct answer's n_tokens."""

    task: str
    doc_id: int
    target: int
    prediction: int
    nll: float
    n_tokens: int

    @property
    def correct(self) -> bool:
        return self.prediction == self.target


def prompt_hash(prompt: str) -> str:
    """First 16 hex digits of the SHA-256 of a prompt's UTF-8 bytes."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def table_path(folder: Path, name: str) -> Path:
    """Where the named table of a run lies."""
    return folder / f"{name}.parquet"


SAMPLE_KEY = ("task", "mode", "doc_id", "sample")
"""No two rows of samples.parquet share it."""


def refuse_doubled(path: Path) -> None:
    """Check that every sample of a samples.parquet stands in one row.

    Raises:
        UserError: two rows of one sample, which would count as two answers; or a damaged file.
    """
    rows = read_parquet(path, SAMPLE_KEY)
    counted = rows.group_by(list(SAMPLE_KEY)).aggregate([("sample", "count")])
    if counted.num_rows < rows.num_rows:
        twice = next(row for row in counted.to_pylist() if row["sample_count"] > 1)
        raise doubled_row(path, *(twice[name] for name in SAMPLE_KEY))


def doubled_row(path: Path, task: str, mode: str, doc_id: int, sample: int) -> UserError:
    """The error about two rows of one sample."""
    return UserError(
        f"{path} holds sample {sample} of question {doc_id} twice (task {task}, mode {mode});"
        " restore the file, or run again with --overwrite"
    )


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One table of a run, in its schema.

    Raises:
        UserError: the table is not there, or damaged.
    """
    import pyarrow as pa

    path = table_path(folder, name)
    if not path.is_file():
        raise UserError(f"{path} is missing; finish the run by starting it again")
    # Parquet gives dictionary indices back as int32 whatever was written.
    wanted = SCHEMAS[name]()
    table = read_parquet(path, columns if columns is not None else wanted.names)
    with damage_named(path):
        return table.cast(pa.schema([wanted.field(column) for column in table.column_names]))


class _Table:
    """One Parquet file that appears under its name only when it is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self._final = table_path(folder, name)
        self._partial = beside(self._final)
        self.schema = SCHEMAS[name]()
        self.rows = 0
        self._writer = CheckedWriter(self._partial, self.schema)

    def write(self, columns: dict[str, Any]) -> None:
        """Append one row group. Columns are arrays, or (names, index array) for dictionaries."""
        import pyarrow as pa

        arrays = [_arrow_column(field, columns[field.name]) for field in self.schema]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        if table.num_rows:
            self._writer.write(table)
            self.rows += table.num_rows

    def close(self, keep: bool) -> None:
        if not keep:
            self._writer.discard()
            return
        self._writer.close()
        move_into_place(self._partial, self._final)


def _arrow_column(field: pa.Field, values: Any) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, tuple):
        names, index_R = values
        indices = pa.array(index_R, field.type.index_type)
        return pa.DictionaryArray.from_arrays(indices, pa.array(names, field.type.value_type))
    return pa.array(values, field.type)


class TableWriter:
    """Writes the six tables of a run; a context manager.

    Samples come in the order of `sample_order`. Nothing replaces an earlier table before all six
    are whole.

    Args:
        folder: the run directory.
        tasks: names of every task of the run.
        modes: names of every mode of the run.
        token_text: text of a token id.
        mixture_samples: mixtures are kept of sample indices below this.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Iterable[str],
        modes: Iterable[str],
        token_text: Callable[[int], str],
        mixture_samples: int = 1,
    ) -> None:
        self._tasks = sorted(set(tasks))
        self._modes = sorted(set(modes))
        self._token_text = token_text
        self._mixture_samples = mixture_samples
        self._waiting: list[ScoredSample] = []
        self._token_ids: set[int] = set()
        self._tables = {name: _Table(folder, name) for name in SCHEMAS}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            return self._close(keep=False)
        try:
            self._flush()
            self._write_tokens()
        except BaseException:
            self._close(keep=False)
            raise
        self._close(keep=True)

    def add(self, sample: ScoredSample) -> None:
        """Append one sample with its positions and mixtures."""
        self._waiting.append(sample)
        if len(self._waiting) == GROUP_SIZE:
            self._flush()

    def add_prompts(self, rows: Sequence[PromptRow]) -> None:
        """Append questions; in order of task and doc_id."""
        self._tables["prompts"].write(
            {
                "task": [r.task for r in rows],
                "doc_id": [r.doc_id for r in rows],
                "prompt_hash": [prompt_hash(r.prompt) for r in rows],
                "prompt": [_storable(r.prompt) for r in rows],
                "target": [_storable(r.target) for r in rows],
            }
        )

    def add_likelihoods(self, rows: Sequence[LikelihoodRow]) -> None:
        """Append questions of log-likelihood tasks; in order of task and doc_id."""
        self._tables["likelihoods"].write(
            {
                "task": [r.task for r in rows],
                "doc_id": [r.doc_id for r in rows],
                "target": [r.target for r in rows],
                "prediction": [r.prediction for r in rows],
                "correct": [r.correct for r in rows],
                "nll": [r.nll for r in rows],
                "n_tokens": [r.n_tokens for r in rows],
                "nll_per_token": [r.nll / max(r.n_tokens, 1) for r in rows],
            }
        )

    @property
    def counts(self) -> dict[str, int]:
        """Rows written so far to each table."""
        return {name: table.rows for name, table in self._tables.items()}

    def _close(self, keep: bool) -> None:
        for table in self._tables.values():
            table.close(keep)

    def _flush(self) -> None:
        if self._waiting:
            self._tables["samples"].write(_sample_columns(self._waiting))
            self._write_positions(self._waiting)
            self._write_mixtures(self._waiting)
            self._waiting.clear()

    def _repeated_keys(
        self, generations: Sequence[Generation], rows_of: np.ndarray
    ) -> dict[str, Any]:
        """Key columns, those of generation i repeated rows_of[i] times."""
        task_G = [self._tasks.index(g.key.task) for g in generations]
        mode_G = [self._modes.index(g.mode) for g in generations]
        doc_G = [g.key.doc_id for g in generations]
        sample_G = [g.key.sample for g in generations]
        return {
            "task": (self._tasks, np.repeat(np.array(task_G, np.int16), rows_of)),
            "doc_id": np.repeat(np.array(doc_G, np.int32), rows_of),
            "mode": (self._modes, np.repeat(np.array(mode_G, np.int16), rows_of)),
            "sample": np.repeat(np.array(sample_G, np.int32), rows_of),
        }

    def _write_positions(self, samples: Sequence[ScoredSample]) -> None:
        generations = [s.generation for s in samples]
        length_G = np.array([len(g.shadow_ids) for g in generations])
        shadow_P = np.concatenate([g.shadow_ids for g in generations])
        self._token_ids.update(np.unique(shadow_P).tolist())
        self._tables["positions"].write(
            self._repeated_keys(generations, length_G)
            | {
                "position": np.concatenate([np.arange(n, dtype=np.int32) for n in length_G]),
                "entropy": np.concatenate([g.entropy for g in generations]),
                "mode_entropy": np.concatenate([g.mode_entropy for g in generations]),
                "top1_prob": np.concatenate([g.top1_prob for g in generations]),
                "shadow_id": shadow_P,
            }
        )

    def _write_mixtures(self, samples: Sequence[ScoredSample]) -> None:
        kept = [s.generation for s in samples if s.generation.key.sample < self._mixture_samples]
        kept = [g for g in kept if g.top_ids.size]
        if not kept:
            return
        ids_R = np.concatenate([g.top_ids.ravel() for g in kept])
        self._token_ids.update(np.unique(ids_R).tolist())
        shapes = [g.top_ids.shape for g in kept]
        self._tables["mixtures"].write(
            self._repeated_keys(kept, np.array([t * k for t, k in shapes]))
            | {
                "position": np.concatenate([np.arange(t).repeat(k) for t, k in shapes]),
                "rank": np.concatenate([np.tile(np.arange(k), t) for t, k in shapes]),
                "token_id": ids_R,
                "prob": np.concatenate([g.top_probs.ravel() for g in kept]),
            }
        )

    def _write_tokens(self) -> None:
        ids = sorted(self._token_ids)
        self._tables["tokens"].write(
            {"token_id": ids, "text": [_storable(self._token_text(i)) for i in ids]}
        )


def sample_order(task: str, mode: str, doc_id: int, sample: int) -> tuple[str, str, int, int]:
    """Sort key of samples, positions and mixtures."""
    return (task, mode, doc_id, sample)


def _sample_columns(samples: Sequence[ScoredSample]) -> dict[str, Any]:
    generations = [s.generation for s in samples]
    return {
        "task": [g.key.task for g in generations],
        "doc_id": [g.key.doc_id for g in generations],
        "mode": [g.mode for g in generations],
        "sample": [g.key.sample for g in generations],
        "prompt_hash": [s.prompt_hash for s in samples],
        "cot_text": [_storable(g.cot_text) for g in generations],
        "prefill": [_storable(g.prefill_text) for g in generations],
        "answer_text": [_storable(g.answer_text) for g in generations],
        "answer": [None if g.answer is None else _storable(g.answer) for g in generations],
        "target": [_storable(s.target) for s in samples],
        "correct": [s.correct for s in samples],
        "verdict": [s.verdict for s in samples],
        "stop_reason": [str(g.stop_reason) for g in generations],
        "answer_stop": [str(g.answer_stop) for g in generations],
        "n_cot_tokens": [len(g.shadow_ids) for g in generations],
        "n_answer_tokens": [len(g.answer_ids) for g in generations],
        "seconds": [g.seconds for g in generations],
        "other_correct": [s.other_correct for s in samples],
        "target_error": [s.target_error for s in samples],
    }


def _storable(text: str) -> str:
    """Text as valid UTF-8: a lone surrogate, which Parquet cannot hold, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
