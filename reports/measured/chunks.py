"""Tables of sequences, such as positions.parquet, read as cells a row group at a time.

Knows nothing of what the values mean.

Shape letters: N positions of a chunk, R sequences of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from softeval.runs.parquet_files import sequences
from softeval.runs.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

CELL = ("task", "mode")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Sequences of one cell, one after the other; none is empty.

    Attributes:
        key: the values of the columns that name the cell, e.g. (task, mode).
        doc_R: problem of each sequence.
        sample_R: sample index.
        start_R: where each sequence begins in the values.
        length_R: positions of each sequence.
        values: value columns, (N,) each.
    """

    key: tuple[str, ...]
    doc_R: NDArray[np.int64]
    sample_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    length_R: NDArray[np.int64]
    values: Mapping[str, np.ndarray]


def read_chunks(
    run: Run, table: str, values: Sequence[str], cell: Sequence[str] = CELL
) -> Iterator[Chunk]:
    """Sequences of a table, cell by cell, about a row group at a time.

    Args:
        run: the run.
        table: name of the table.
        values: columns of numbers to read.
        cell: columns of strings that name a cell.

    Raises:
        UserError: the table is damaged.
    """
    for group in sequences(run.table_path(table), (*cell, "doc_id", "sample"), values):
        code_RC = np.stack([_codes(group[name]) for name in cell], -1)
        changes = np.flatnonzero((code_RC[1:] != code_RC[:-1]).any(1)) + 1
        for first, last in zip([0, *changes], [*changes, len(code_RC)], strict=True):
            if last > first:
                yield _chunk(group.slice(first, last - first).combine_chunks(), values, cell)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy()


def _chunk(rows: pa.Table, values: Sequence[str], cell: Sequence[str]) -> Chunk:
    """Rows of one cell."""
    lists = {name: rows[name].chunk(0) for name in values}
    length_R = lists[values[0]].value_lengths().to_numpy().astype(np.int64)
    return Chunk(
        key=tuple(rows[name][0].as_py() for name in cell),
        doc_R=rows["doc_id"].to_numpy().astype(np.int64),
        sample_R=rows["sample"].to_numpy().astype(np.int64),
        start_R=np.cumsum(length_R) - length_R,
        length_R=length_R,
        values={name: column.flatten().to_numpy() for name, column in lists.items()},
    )
