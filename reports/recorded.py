"""Finished or partial run directories, opened for reading.

Gives the run record and the Parquet tables in batches, so that no table has to fit in memory. Knows
the files and their schemas; nothing of scores, figures or pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.parquet_files import damage_named, open_parquet
from softeval.rundir import COMPLETE, read_record

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run directory.

    Attributes:
        folder: where it lies.
        record: content of run.json.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every asked-for sample is there."""
        return self.record.get("status") == COMPLETE

    @property
    def training(self) -> Mapping[str, Any]:
        """How the checkpoint was trained; empty for a checkpoint that softeval did not train."""
        return self.record.get("training") or {}

    @property
    def model(self) -> Mapping[str, Any]:
        """Path, weights hash, dtype, device and size of the checkpoint."""
        return self.record.get("model") or {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.record.get("config") or {}

    def datasets(self) -> dict[str, Mapping[str, Any]]:
        """Where the questions of each task came from."""
        return {d.get("task") or d["name"]: d for d in self.record.get("datasets") or ()}

    def modes(self) -> dict[str, Mapping[str, Any]]:
        """Parameters of each CoT mode."""
        return {m["name"]: m for m in self.record.get("modes") or ()}

    def path(self, table: str) -> Path:
        """Where a table lies, or would lie."""
        return self.folder / f"{table}.parquet"

    def has(self, table: str) -> bool:
        """Whether the table is there and holds at least one row.

        Raises:
            UserError: the file is damaged.
        """
        return self.path(table).is_file() and open_parquet(self.path(table)).metadata.num_rows > 0

    def has_column(self, table: str, column: str) -> bool:
        """Whether the table holds a column; UserError where the file is damaged."""
        return column in open_parquet(self.path(table)).schema_arrow.names

    def batches(
        self, table: str, columns: Sequence[str], rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The table's columns, a batch of rows at a time, in the order of the file.

        Raises:
            UserError: the file is missing, damaged, or lacks a column.
        """
        path = self.path(table)
        parquet = open_parquet(path, columns)
        with damage_named(path):
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))

    def row_groups(self, table: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The table's columns, one row group at a time; the next is read meanwhile.

        Raises:
            UserError: the file is missing, damaged, or lacks a column.
        """
        path = self.path(table)
        parquet = open_parquet(path, columns)

        def read(group: int) -> pa.Table:
            with damage_named(path):
                return parquet.read_row_group(group, columns=list(columns))

        with ThreadPoolExecutor(1) as reader:
            if not parquet.num_row_groups:
                return
            ahead = reader.submit(read, 0)
            for group in range(1, parquet.num_row_groups + 1):
                found = ahead.result()
                if group < parquet.num_row_groups:
                    ahead = reader.submit(read, group)
                yield found


def open_run(folder: str | Path) -> RecordedRun:
    """Open a run directory.

    A run that was stopped before its tables were written has none: it is partial, not an error.

    Raises:
        UserError: not a run directory.
    """
    return RecordedRun(Path(folder), read_record(Path(folder)))


class RowSlices:
    """Stretches of a table by row number; the last row group read is kept for the next.

    Args:
        run: the run.
        table: name of the table.
        columns: columns to read.
    """

    def __init__(self, run: RecordedRun, table: str, columns: Sequence[str]) -> None:
        self._path = run.path(table)
        self._parquet = open_parquet(self._path, columns)
        self._columns = list(columns)
        groups = range(self._parquet.num_row_groups)
        self._end_G = np.cumsum([self._parquet.metadata.row_group(g).num_rows for g in groups])
        self._held: tuple[int, Any] = (-1, None)

    def read(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Columns of the rows start … stop - 1.

        Raises:
            UserError: the file is damaged.
        """
        first, last = np.searchsorted(self._end_G, [start, stop - 1], "right")
        parts = [self._part(group, start, stop) for group in range(first, last + 1)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._columns}

    def _part(self, group: int, start: int, stop: int) -> dict[str, np.ndarray]:
        if self._held[0] != group:
            with damage_named(self._path):
                self._held = group, self._parquet.read_row_group(group, columns=self._columns)
        table = self._held[1]
        begin = int(self._end_G[group]) - table.num_rows
        offset = max(start - begin, 0)
        part = table.slice(offset, stop - begin - offset)
        return {name: part.column(name).to_numpy() for name in self._columns}
