"""The Parquet tables of a run directory: how rows are written, and how they are read.

Writing is streamed and in the order given, so that memory stays bounded and the same rows give the
same bytes. Knows the schemas of `softeval.records`; nothing of journals, models or how answers are judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from softeval import records
from softeval.errors import UserError
from softeval.records import GROUP, MIXTURE_SAMPLES, Generation
from softeval.runs.parquet_files import (
    CheckedWriter,
    damage_named,
    has_row_a_position,
    open_parquet,
    read_parquet,
    sequences,
)
from softeval.scoring.judge import Verdict

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

Row = dict[str, Any]

# Generations a row group; fixed, because the bytes of a table depend on it.
GROUP_SIZE = 2048


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
    path = mixtures_place(folder)[0] if name == "mixtures" else table_path(folder, name)
    if not path.is_file():
        raise UserError(f"{path} is missing; finish the run by starting it again")
    if name == "prompts":
        schema = records.prompts_schema(GROUP in open_parquet(path).schema_arrow.names)
    wanted = list(columns if columns is not None else schema.names)
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


def kept_rows(folder: Path, task: str, mode: str) -> Iterator[tuple[Row, Row]]:
    """The rows of a task's samples in a mode, and of their positions, as `TableWriter` takes them."""
    wanted = [("task", "=", task), ("mode", "=", mode)]
    samples = read_parquet(table_path(folder, "samples"), filters=wanted)
    positions = read_parquet(table_path(folder, "positions"), filters=wanted)
    columns = {name: _values(positions[name]) for name in positions.column_names}
    for index, sample in enumerate(samples.to_pylist()):
        yield sample, {name: values[index] for name, values in columns.items()}


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """One value a row; lists as arrays, without a copy."""
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_pylist()
    array: Any = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no row
        return []
    flat, ends = array.values.to_numpy(), array.offsets.to_numpy()
    spans = zip(ends, ends[1:], np.asarray(array.is_valid()), strict=False)
    return [flat[start:end] if there else None for start, end, there in spans]


class TableWriter:
    """Writes the tables of a run; a context manager.

    Samples come sorted by task, mode, doc_id and sample. Nothing replaces an earlier table before
    all are whole.

    Args:
        folder: the run directory.
        token_text: text of a token id.
        grouped: whether a task has parts.
    """

    def __init__(
        self, folder: Path, token_text: Callable[[int], str], *, grouped: bool = False
    ) -> None:
        self._folder = folder
        self._token_text = token_text
        self._samples: list[Row] = []
        self._positions: list[Row] = []
        self._token_ids: set[int] = set()
        self._closing = ExitStack()
        self._schemas = {name: schema() for name, schema in SCHEMAS.items()}
        self._schemas["prompts"] = records.prompts_schema(grouped)
        self._tables = {
            name: self._closing.enter_context(CheckedWriter(table_path(folder, name), schema))
            for name, schema in self._schemas.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            for table in self._tables.values():
                table.discard()
            return
        with self._closing:
            self._flush()
            ids = sorted(self._token_ids)
            texts = [_storable(self._token_text(token_id)) for token_id in ids]
            pairs = zip(ids, texts, strict=True)
            self.write("tokens", [{"token_id": token_id, "text": text} for token_id, text in pairs])
        table_path(self._folder, "mixtures").unlink(missing_ok=True)  # of a run begun in schema 1

    def add(
        self,
        generation: Generation,
        prompt_hash: str,
        target: str,
        verdict: Verdict,
        target_error: float | None = None,
    ) -> None:
        """Append one sample with its positions.

        Args:
            generation: the sample.
            prompt_hash: `prompt_hash` of its prompt text.
            target: label of the question.
            verdict: on its answer.
            target_error: how far a number may be from the label's; None where it must be the same.
        """
        row = _sample_row(generation, target, verdict)
        row |= {"prompt_hash": prompt_hash, "target_error": target_error}
        self.append(row, _position_row(generation))

    def append(self, sample: Row, positions: Row) -> None:
        """Append one sample by its rows in samples.parquet and positions.parquet."""
        self._samples.append(sample)
        self._positions.append(positions)
        if len(self._samples) == GROUP_SIZE:
            self._flush()

    def write(self, name: str, rows: Sequence[Row]) -> None:
        """Append a row group to a table, in its order."""
        import pyarrow as pa

        self._tables[name].write(pa.Table.from_pylist(list(rows), self._schemas[name]))

    @property
    def counts(self) -> dict[str, int]:
        """Rows written so far to each table."""
        return {name: table.rows for name, table in self._tables.items()}

    def _flush(self) -> None:
        for row in self._positions:
            for name in ("shadow_id", "mixture_id"):
                self._token_ids.update([] if row[name] is None else row[name].tolist())
        self.write("samples", self._samples)
        self.write("positions", self._positions)
        self._samples.clear()
        self._positions.clear()


def prompt_row(task: str, doc_id: int, prompt: str, target: str, group: str | None = None) -> Row:
    """A question as it was given to the model, its label and part: a row of prompts.parquet."""
    return {
        "task": task,
        "doc_id": doc_id,
        "prompt_hash": prompt_hash(prompt),
        "prompt": _storable(prompt),
        "target": _storable(target),
        GROUP: group,
    }


def likelihood_row(
    task: str, doc_id: int, target: int, prediction: int, nll: float, n_tokens: int
) -> Row:
    """A question of a log-likelihood task; `nll` in nats, of the correct answer's n_tokens."""
    return {
        "task": task,
        "doc_id": doc_id,
        "target": target,
        "prediction": prediction,
        "correct": prediction == target,
        "nll": nll,
        "n_tokens": n_tokens,
        "nll_per_token": nll / max(n_tokens, 1),
    }


def _key_columns(generation: Generation) -> Row:
    return {**asdict(generation.key), "mode": generation.mode}


def _position_row(g: Generation) -> Row:
    mixed = g.key.sample < MIXTURE_SAMPLES and g.top_ids.size > 0
    return _key_columns(g) | {
        "entropy": g.entropy,
        "mode_entropy": g.mode_entropy,
        "top1_prob": g.top1_prob,
        "shadow_id": g.shadow_ids.astype(np.int32),
        "mixture_id": g.top_ids.ravel().astype(np.int32) if mixed else None,
        "mixture_prob": g.top_probs.ravel() if mixed else None,
    }


def _sample_row(g: Generation, target: str, verdict: Verdict) -> Row:
    return _key_columns(g) | {
        "cot_text": _storable(g.cot_text),
        "prefill": _storable(g.prefill_text),
        "answer_text": _storable(g.answer_text),
        "answer": None if g.answer is None else _storable(g.answer),
        "target": _storable(target),
        "correct": verdict.correct,
        "verdict": verdict.status,
        "stop_reason": str(g.stop_reason),
        "answer_stop": str(g.answer_stop),
        "n_cot_tokens": len(g.shadow_ids),
        "n_answer_tokens": len(g.answer_ids),
        "seconds": g.seconds,
        "other_correct": verdict.other,
    }


def _storable(text: str) -> str:
    """Text as valid UTF-8: a lone surrogate, which Parquet cannot hold, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
