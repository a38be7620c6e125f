"""Parquet files of a run directory, opened so that a damaged one is named in one line.

Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softeval.errors import UserError


def open_parquet(path: Path, columns: Sequence[str] = ()) -> Any:
    """A `pyarrow.parquet.ParquetFile` that is known to have the columns.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path} is missing; start the run again to make it")
    with damage_named(path):
        parquet = pq.ParquetFile(path, memory_map=True)
    lacking = [name for name in columns if name not in parquet.schema_arrow.names]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}; was it written by softeval?")
    return parquet


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about damaged content into one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0].rstrip(". ")
        raise UserError(
            f"{path} is damaged ({first_line}); restore it, or run again with --overwrite"
        ) from error
