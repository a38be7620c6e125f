"""Finished or partial run directories, opened for reading.

Gives the run record and the Parquet tables in batches, so that no table has to fit in memory. Knows
the files and their schemas; nothing of scores, figures or pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.modes import recorded_modes
from softeval.runs.parquet_files import damage_named, open_parquet
from softeval.runs.rundir import COMPLETE, read_record

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 65_536


class RecordedMode(str):
    """A mode's name in a run, with what the run recorded of the mode.

    It compares as its name does. Nothing in a report tells a mode by how its name is spelt.

    Attributes:
        family: modes that are shown together.
        is_greedy: whether every sample of a question is the same, so that pass@k is only pass@1.
        feeds_tokens: whether ordinary tokens are fed, no mixture.
        options: every option with its value.
    """

    family: str
    is_greedy: bool
    feeds_tokens: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str, entry: Mapping[str, Any]) -> RecordedMode:
        """From the entry of `softeval.modes.recorded_modes`; empty for a mode not recorded."""
        mode = cls(name)
        mode.family = str(entry.get("family", name))
        mode.is_greedy = bool(entry.get("is_greedy", False))
        mode.feeds_tokens = bool(entry.get("feeds_tokens", False))
        mode.options = {k: v for k, v in entry.items() if k not in _NO_OPTION}
        return mode


_NO_OPTION = ("name", "family", "is_greedy", "feeds_tokens", "facts", "sigma")
REFERENCE = "hard"
"""The family that others are compared with: ordinary tokens."""
# The paper's families as its tables list them; others follow.
FAMILY_ORDER = ("hard", "fuzzy", "soft")


def mode_order(mode: RecordedMode) -> tuple[int, str, bool, str]:
    """Sort key: by family, greedy modes first."""
    known = mode.family in FAMILY_ORDER
    rank = FAMILY_ORDER.index(mode.family) if known else len(FAMILY_ORDER)
    return rank, mode.family, not mode.is_greedy, str(mode)


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One run directory.

    Attributes:
        path: where it lies.
        info: content of run.json.
    """

    path: Path
    info: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every asked-for sample is there."""
        return self.info.get("status") == COMPLETE

    @property
    def training(self) -> Mapping[str, Any]:
        """How the checkpoint was trained; empty for a checkpoint that softeval did not train."""
        return self.info.get("training") or {}

    @property
    def model(self) -> Mapping[str, Any]:
        """Path, weights hash, dtype, device and size of the checkpoint."""
        return self.info.get("model") or {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.info.get("config") or {}

    def datasets(self) -> dict[str, Mapping[str, Any]]:
        """Where the questions of each task came from."""
        return {d.get("task") or d["name"]: d for d in self.info.get("datasets") or ()}

    @cached_property
    def modes(self) -> dict[str, RecordedMode]:
        """The CoT modes by name."""
        return {
            name: RecordedMode.of(name, entry) for name, entry in recorded_modes(self.info).items()
        }

    def mode(self, name: str) -> RecordedMode:
        """A mode by name, also where the record does not list it."""
        return self.modes.get(name) or RecordedMode.of(name, {})

    def table_path(self, table: str) -> Path:
        """Where a table lies, or would lie."""
        return self.path / f"{table}.parquet"

    def has(self, table: str) -> bool:
        """Whether the table is there and holds at least one row.

        Raises:
            UserError: the file is damaged.
        """
        path = self.table_path(table)
        return path.is_file() and open_parquet(path).metadata.num_rows > 0

    def has_column(self, table: str, column: str) -> bool:
        """Whether the table holds a column; UserError where the file is damaged."""
        return column in open_parquet(self.table_path(table)).schema_arrow.names

    def batches(
        self, table: str, columns: Sequence[str], rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The table's columns, a batch of rows at a time, in the order of the file.

        Raises:
            UserError: the file is missing, damaged, or lacks a column.
        """
        path = self.table_path(table)
        parquet = open_parquet(path, columns)
        with damage_named(path):
            yield from parquet.iter_batches(batch_size=rows, columns=list(columns))


def open_run(folder: str | Path) -> RecordedRun:
    """Open a run directory.

    A run that was stopped before its tables were written has none: it is partial, not an error.

    Raises:
        UserError: not a run directory.
    """
    return RecordedRun(Path(folder), read_record(Path(folder)))
