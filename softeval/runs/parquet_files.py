"""Parquet files of a run directory, written and read so that a damaged one is named in one line.

Every page has its checksum. Two bytes of a page's header or of the footer can still change a number
unseen, so the file has one too: "softeval" and the CRC-32 of all that follows stand between
Parquet's own first four bytes and the first page, where no reader looks. A file without them, which
another program wrote, is read as it is.

Tables with values for each position of a sequence have one row a sequence, the values as lists;
`sequences` reads them, and those of schema 1, which had a row for each position, into the same.
Knows nothing of what the values mean.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from softeval.errors import UserError
from softeval.files import beside, move_into_place

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"PAR1"
_MARK = _MAGIC + b"softeval"
_START = len(_MARK) + 4
_READ_BYTES = 1 << 22
_SETTLED_NS = 2_000_000_000


class CheckedWriter:
    """Writes one Parquet file with its checksums; a context manager.

    The file takes its place once it is whole. After an error, or where it was discarded, what is
    there stays.

    Args:
        path: of the file.
        schema: of its rows.

    Attributes:
        rows: how many were written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.rows = 0
        self._path, self._partial = path, beside(path)
        # Arrow's own file: of one of Python's it would count only the bytes that it writes itself.
        self._file = pa.OSFile(str(self._partial), "wb")
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", write_page_checksum=True
        )
        self._file.write(_MARK.removeprefix(_MAGIC) + bytes(4))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.discard()
        elif self._writer.is_open:
            self._close()

    def write(self, table: pa.Table) -> None:
        """Append the rows, as row groups of their own."""
        if table.num_rows:
            self._writer.write_table(table)
            self.rows += table.num_rows

    def discard(self) -> None:
        """Leave what is there as it is."""
        # Closing the writer writes a footer, which fails once more where the disk is full.
        self._writer.is_open = False
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        try:
            self._writer.close()
            self._file.close()
            with self._partial.open("r+b") as file:
                checksum = _crc(file)
                file.seek(len(_MARK))
                file.write(checksum)
        except BaseException:
            self.discard()
            raise
        move_into_place(self._partial, self._path)


def open_parquet(path: Path, columns: Sequence[str] = ()) -> Any:
    """A `pyarrow.parquet.ParquetFile` that is known to be whole and to have the columns.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    _check(path)
    with damage_named(path):
        parquet = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    lacking = [name for name in columns if name not in parquet.schema_arrow.names]
    if lacking:
        raise UserError(
            f"{path} has no column {', '.join(lacking)}: an older softeval or another program wrote"
            " it; run again with --overwrite"
        )
    return parquet


def read_parquet(path: Path, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """The rows of a file, or those that pass pyarrow's `filters`.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    open_parquet(path, columns or ()).close()
    with damage_named(path):
        names = None if columns is None else list(columns)
        return pq.read_table(path, columns=names, filters=filters, page_checksum_verification=True)


def row_groups(
    path: Path, columns: Sequence[str], docs: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """A file's columns, one row group at a time; the next is read meanwhile.

    Args:
        path: of the file.
        columns: what to read.
        docs: leave out row groups that hold none of these doc_ids.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    parquet = open_parquet(path, columns)
    wanted = [g for g in range(parquet.num_row_groups) if _may_hold(parquet, g, docs)]

    def read(group: int) -> pa.Table:
        with damage_named(path):
            return parquet.read_row_group(group, columns=list(columns))

    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, group) for group in wanted[:1]]
        for group in [*wanted[1:], None]:
            if not ahead:
                return
            found = ahead.pop().result()
            if group is not None:
                ahead.append(reader.submit(read, group))
            yield found


def _may_hold(parquet: Any, group: int, docs: Sequence[int] | None) -> bool:
    """Whether the row group's statistics allow any of the doc_ids."""
    part = parquet.metadata.row_group(group).column(parquet.schema_arrow.names.index("doc_id"))
    if docs is None or part.statistics is None or not part.statistics.has_min_max:
        return True
    return any(part.statistics.min <= doc <= part.statistics.max for doc in docs)


def has_row_a_position(path: Path) -> bool:
    """Whether a table of sequences has schema 1's form."""
    return "position" in open_parquet(path).schema_arrow.names


def sequences(
    path: Path, keys: Sequence[str], values: Sequence[str], docs: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """A table's sequences, one a row, about a row group at a time; empty ones are left out.

    Args:
        path: of the file.
        keys: columns that name a sequence.
        values: columns of lists.
        docs: only sequences of these doc_ids.

    Raises:
        UserError: the file is missing, damaged, lacks a column, or is not sorted by position.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    gathered = has_row_a_position(path)
    groups = _gathered(path, keys, values) if gathered else row_groups(path, [*keys, *values], docs)
    for group in groups:
        kept = pc.greater(pc.list_value_length(group[values[0]]), 0)  # pyright: ignore[reportAttributeAccessIssue]
        if docs is not None:
            kept = pc.and_(kept, pc.is_in(group["doc_id"], pa.array(docs, pa.int32())))  # pyright: ignore[reportAttributeAccessIssue]
        whole = kept.null_count == 0 and pc.all(kept, min_count=0).as_py()  # pyright: ignore[reportAttributeAccessIssue]
        yield group if whole else group.filter(kept)


def _gathered(path: Path, keys: Sequence[str], values: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of positions put together to lists; a sequence may go on in the next row group."""
    import pyarrow as pa

    rest: pa.Table | None = None
    for group in row_groups(path, [*keys, "position", *values]):
        plain = pa.table({name: _plain(group[name]) for name in group.column_names})
        rows = plain if rest is None else pa.concat_tables([rest, plain])
        start_R = _starts(rows, keys)
        yield _listed(path, rows.slice(0, start_R[-1]), start_R[:-1], keys, values)
        rest = rows.slice(start_R[-1])
    if rest is not None:
        yield _listed(path, rest, np.zeros(1, np.int64), keys, values)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _starts(rows: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """Where another sequence begins: rows whose key is not that of the row before."""
    new_N = np.zeros(rows.num_rows, bool)
    new_N[0] = True
    for name in keys:
        code_N = rows[name].combine_chunks().dictionary_encode().indices.to_numpy()
        new_N[1:] |= code_N[1:] != code_N[:-1]
    return np.flatnonzero(new_N)


def _listed(
    path: Path, rows: pa.Table, start_R: np.ndarray, keys: Sequence[str], values: Sequence[str]
) -> pa.Table:
    import pyarrow as pa

    step_N = np.diff(rows["position"].to_numpy(), prepend=-1)
    step_N[start_R] = rows["position"].to_numpy()[start_R] + 1
    # Mixtures have several rows a position.
    if not ((step_N == 1) | ((step_N == 0) & ("prob" in values))).all():
        raise UserError(f"{path} is not sorted by position; was it written by softeval?")
    offsets = pa.array(np.append(start_R, rows.num_rows), pa.int32())
    columns = {name: rows[name].take(start_R) for name in keys}
    columns |= {
        name: pa.ListArray.from_arrays(offsets, rows[name].combine_chunks()) for name in values
    }
    return pa.table(columns)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about damaged content into one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0].rstrip(". ")
        raise _damaged(path, first_line) from error


def _check(path: Path) -> None:
    """Hold a file against its checksum, once as long as it stays as it is."""
    if not path.is_file():
        raise UserError(f"{path} is missing; start the run again to make it")
    state = path.stat()
    # A file written just now could change again within the resolution of its time.
    settled = time.time_ns() - state.st_mtime_ns > _SETTLED_NS
    check = _check_content if settled else _check_content.__wrapped__
    check(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _check_content(path: Path, *state: int) -> None:
    with path.open("rb") as file:
        start = file.read(_START)
        if not start.startswith(_MAGIC):
            raise _damaged(path, "it does not begin like a Parquet file")
        if start.startswith(_MARK) and start[len(_MARK) :] != _crc(file):
            raise _damaged(path, "its checksum does not agree")


def _crc(file: BinaryIO) -> bytes:
    """CRC-32 of what follows the place where it stands."""
    file.seek(_START)
    crc = 0
    while part := file.read(_READ_BYTES):
        crc = zlib.crc32(part, crc)
    return crc.to_bytes(4, "little")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}); restore it, or run again with --overwrite")
