"""The Parquet tables of a run directory: how rows are written, and how they are read.

Writing is streamed and in the order given, so that memory stays bounded and the same rows give the
same bytes. Knows the schemas of `softeval.records`; nothing of journals, models or scoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from softeval import records
from softeval.errors import UserError
from softeval.files import beside, move_into_place
from softeval.records import MIXTURE_SAMPLES, Generation
from softeval.runs.parquet_files import (
    CheckedWriter,
    damage_named,
    has_row_a_position,
    read_parquet,
    sequences,
)

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMAS: dict[str, Callable[[], pa.Schema]] = {
    "samples": records.samples_schema,
    "positions": records.positions_schema,
    "prompts": records.prompts_schema,
    "tokens": records.tokens_schema,
    "likelihoods": records.likelihoods_schema,
}

# Tables that are read as rows, whose files hold lists; and the list behind each column of values.
_ROWS: dict[str, tuple[Callable[[], pa.Schema], dict[str, str]]] = {
    "positions": (
        records.position_rows_schema,
        {name: name for name in ("entropy", "mode_entropy", "top1_prob", "shadow_id")},
    ),
    "mixtures": (
        records.mixture_rows_schema,
        {"token_id": "mixture_id", "prob": "mixture_prob"},
    ),
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
    """One table of a run; "positions" and "mixtures" as rows, whatever the run's schema version.

    Raises:
        UserError: the table is not there, or damaged.
    """
    import pyarrow as pa

    schema = _ROWS[name][0]() if name in _ROWS else SCHEMAS[name]()
    wanted = list(columns if columns is not None else schema.names)
    path = mixtures_place(folder)[0] if name == "mixtures" else table_path(folder, name)
    if not path.is_file():
        raise UserError(f"{path} is missing; finish the run by starting it again")
    if name in _ROWS and not has_row_a_position(path):
        return _read_rows(path, name, wanted)
    table = read_parquet(path, wanted)
    with damage_named(path):
        # Parquet gives dictionary indices back as int32 whatever was written.
        return table.cast(pa.schema([schema.field(column) for column in table.column_names]))


def mixtures_place(folder: Path) -> tuple[Path, str, str]:
    """Where mixtures lie: file, column of ids, column of probabilities. Schema 1 had a table."""
    positions = table_path(folder, "positions")
    if positions.is_file() and not has_row_a_position(positions):
        return positions, "mixture_id", "mixture_prob"
    return table_path(folder, "mixtures"), "token_id", "prob"


def _read_rows(path: Path, name: str, wanted: Sequence[str]) -> pa.Table:
    """A table of lists as rows of their elements."""
    import pyarrow as pa

    schema, lists = _ROWS[name][0](), _ROWS[name][1]
    missing = [column for column in wanted if column not in schema.names]
    if missing:
        raise UserError(f"the {name} of {path.parent} have no column {', '.join(missing)}")
    chosen = pa.schema([schema.field(column) for column in wanted])
    wanted_lists = {column: lists[column] for column in wanted if column in lists} or lists
    values = dict.fromkeys([*wanted_lists.values(), "entropy"])  # every position has an entropy
    groups = sequences(path, SAMPLE_KEY, list(values))
    parts = [_rows_of(group, wanted_lists, chosen) for group in groups]
    return pa.concat_tables(parts) if parts else chosen.empty_table()


def _rows_of(group: pa.Table, lists: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    """One row a list element, with the keys of its sequence, its position, and rank in there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def lengths(column: str) -> np.ndarray:
        return pc.list_value_length(group[column]).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]

    length_R = lengths(next(iter(lists.values())))
    row_N = np.repeat(np.arange(len(length_R)), length_R)
    top_N = (length_R // lengths("entropy"))[row_N]  # entries a position
    place_N = np.arange(len(row_N)) - (np.cumsum(length_R) - length_R)[row_N]
    made = {"position": place_N // top_N, "rank": place_N % top_N}
    columns = []
    for field in schema:
        if field.name in lists:
            columns.append(pc.list_flatten(group[lists[field.name]]))  # pyright: ignore[reportAttributeAccessIssue]
        elif field.name in made:
            columns.append(pa.array(made[field.name], field.type))
        elif pa.types.is_dictionary(field.type):
            columns.append(group[field.name].dictionary_encode().take(row_N).cast(field.type))
        else:
            columns.append(group[field.name].take(row_N))
    return pa.table(columns, schema)


class _Table:
    """One Parquet file that appears under its name only when it is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self._final = table_path(folder, name)
        self._partial = beside(self._final)
        self.schema = SCHEMAS[name]()
        self.rows = 0
        self._writer = CheckedWriter(self._partial, self.schema)

    def write(self, columns: dict[str, Any]) -> None:
        """Append one row group."""
        import pyarrow as pa

        table = pa.table(columns, self.schema)
        if table.num_rows:
            self._writer.write(table)
            self.rows += table.num_rows

    def close(self, keep: bool) -> None:
        if not keep:
            self._writer.discard()
            return
        self._writer.close()
        move_into_place(self._partial, self._final)


class TableWriter:
    """Writes the tables of a run; a context manager.

    Samples come sorted by task, mode, doc_id and sample. Nothing replaces an earlier table before
    all are whole.

    Args:
        folder: the run directory.
        token_text: text of a token id.
    """

    def __init__(self, folder: Path, token_text: Callable[[int], str]) -> None:
        self._folder = folder
        self._token_text = token_text
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
        """Append one sample with its positions."""
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
        if keep:  # a run that an earlier softeval began
            table_path(self._folder, "mixtures").unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            self._tables["samples"].write(_sample_columns(self._waiting))
            columns = _position_columns([s.generation for s in self._waiting])
            self._tables["positions"].write(columns)
            for name in ("shadow_id", "mixture_id"):
                for ids in columns[name]:
                    self._token_ids.update([] if ids is None else ids.tolist())
            self._waiting.clear()

    def _write_tokens(self) -> None:
        ids = sorted(self._token_ids)
        self._tables["tokens"].write(
            {"token_id": ids, "text": [_storable(self._token_text(i)) for i in ids]}
        )


def _key_columns(generations: Sequence[Generation]) -> dict[str, Any]:
    return {
        "task": [g.key.task for g in generations],
        "doc_id": [g.key.doc_id for g in generations],
        "mode": [g.mode for g in generations],
        "sample": [g.key.sample for g in generations],
    }


def _position_columns(generations: Sequence[Generation]) -> dict[str, Any]:
    mixed = [g.key.sample < MIXTURE_SAMPLES and g.top_ids.size > 0 for g in generations]
    pairs = list(zip(generations, mixed, strict=True))
    return _key_columns(generations) | {
        "entropy": [g.entropy for g in generations],
        "mode_entropy": [g.mode_entropy for g in generations],
        "top1_prob": [g.top1_prob for g in generations],
        "shadow_id": [g.shadow_ids.astype(np.int32) for g in generations],
        "mixture_id": [g.top_ids.ravel().astype(np.int32) if kept else None for g, kept in pairs],
        "mixture_prob": [g.top_probs.ravel() if kept else None for g, kept in pairs],
    }


def _sample_columns(samples: Sequence[ScoredSample]) -> dict[str, Any]:
    generations = [s.generation for s in samples]
    return _key_columns(generations) | {
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
