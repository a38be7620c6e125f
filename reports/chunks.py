"""Tables with one row a CoT position, read as whole samples a row group at a time.

Knows that such tables are sorted by sample and position, and refuses one that is not. Knows nothing
of what the values mean.

Shape letters: N rows of a chunk, R samples of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from softeval.errors import UserError
from softeval.reports.recorded import RecordedRun

if TYPE_CHECKING:
    import pyarrow as pa

CELL = ("task", "mode")
INDICES = ("doc_id", "sample", "position")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Whole samples of one cell, one after the other.

    Attributes:
        key: the values of the columns that name the cell, e.g. (task, mode).
        doc_R: problem of each sample.
        sample_R: sample index.
        row_R: row of the table at which each sample begins.
        start_R: the same in the values of this chunk.
        length_R: rows of each sample.
        values: value columns, (N,) each.
    """

    key: tuple[str, ...]
    doc_R: NDArray[np.int64]
    sample_R: NDArray[np.int64]
    row_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    length_R: NDArray[np.int64]
    values: Mapping[str, np.ndarray]


def read_chunks(
    run: RecordedRun, table: str, values: Sequence[str], cell: Sequence[str] = CELL
) -> Iterator[Chunk]:
    """Whole samples of a table, about a row group at a time.

    Args:
        run: the run.
        table: name of the table.
        values: columns of numbers to read.
        cell: columns of strings that name a cell.

    Raises:
        UserError: the table is damaged or not sorted by sample and position.
    """
    names: list[str] = []
    rest: dict[str, np.ndarray] = {}
    done = 0
    for group in run.row_groups(table, (*cell, *INDICES, *values)):
        columns = _columns(group, cell, names)
        if rest:
            columns = {name: np.concatenate([rest[name], columns[name]]) for name in columns}
        # The last sample of a row group may go on in the next.
        start_R = np.flatnonzero(columns["position"] == 0)
        end = int(start_R[-1]) if len(start_R) else 0
        rest = {name: column[end:] for name, column in columns.items()}
        whole = {name: column[:end] for name, column in columns.items()}
        yield from _chunks(run, table, whole, values, cell, names, done)
        done += end
    if rest:
        yield from _chunks(run, table, rest, values, cell, names, done)


def _columns(group: pa.Table, cell: Sequence[str], names: list[str]) -> dict[str, np.ndarray]:
    return {
        name: _codes(group.column(name), names) if name in cell else group.column(name).to_numpy()
        for name in group.column_names
    }


def _codes(column: pa.ChunkedArray, names: list[str]) -> NDArray[np.int16]:
    """Index into `names` of each string; strings not seen before are appended to it."""
    import pyarrow as pa

    parts = []
    for part in column.chunks:
        encoded = part if pa.types.is_dictionary(part.type) else part.dictionary_encode()
        values = encoded.dictionary.to_pylist()
        names.extend(value for value in values if value not in names)
        code_V = np.array([names.index(value) for value in values], np.int16)
        parts.append(code_V[encoded.indices.to_numpy()])
    return np.concatenate(parts)


def _chunks(
    run: RecordedRun,
    table: str,
    columns: dict[str, np.ndarray],
    values: Sequence[str],
    cell: Sequence[str],
    names: list[str],
    done: int,
) -> Iterator[Chunk]:
    """Split rows that begin and end with a sample into cells; `done` rows came before them."""
    position_N = columns["position"]
    if not len(position_N):
        return
    start_R = np.flatnonzero(position_N == 0)
    length_R = np.diff(start_R, append=len(position_N))
    expected_N = np.arange(len(position_N)) - np.repeat(start_R, length_R)
    if not len(start_R) or not np.array_equal(position_N, expected_N):
        raise UserError(f"{run.path(table)} is not sorted by position; was it written by softeval?")
    code_RC = np.stack([columns[name][start_R] for name in cell], -1)
    changes = np.flatnonzero((code_RC[1:] != code_RC[:-1]).any(1)) + 1
    for first, last in zip([0, *changes], [*changes, len(start_R)], strict=True):
        rows = slice(start_R[first], start_R[last - 1] + length_R[last - 1])
        yield Chunk(
            key=tuple(names[code] for code in code_RC[first]),
            doc_R=columns["doc_id"][start_R[first:last]].astype(np.int64),
            sample_R=columns["sample"][start_R[first:last]].astype(np.int64),
            row_R=start_R[first:last] + done,
            start_R=start_R[first:last] - start_R[first],
            length_R=length_R[first:last],
            values={name: columns[name][rows] for name in values},
        )
