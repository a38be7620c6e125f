"""Parquet files of a run directory, written and read so that a damaged one is named in one line.

Every page has its checksum. Two bytes of a page's header or of the footer can still change a number
unseen, so the file has one too: "softeval" and the CRC-32 of all that follows stand between
Parquet's own first four bytes and the first page, where no reader looks. A file without them, which
another program wrote, is read as it is. Knows nothing of what is in them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from softeval.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"PAR1"
_MARK = _MAGIC + b"softeval"
_START = len(_MARK) + 4
_READ_BYTES = 1 << 22
_SETTLED_NS = 2_000_000_000


class CheckedWriter:
    """Writes one Parquet file with its checksums; a context manager.

    Args:
        path: of the file; what is there is replaced as it is written.
        schema: of its rows.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        # Arrow's own file: of one of Python's it would count only the bytes that it writes itself.
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", write_page_checksum=True
        )
        self._file.write(_MARK.removeprefix(_MAGIC) + bytes(4))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close() if kind is None else self.discard()

    def write(self, table: pa.Table) -> None:
        """Append the rows, as row groups of their own."""
        self._writer.write_table(table)

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()
        self._file.close()
        with self._path.open("r+b") as file:
            checksum = _crc(file)
            file.seek(len(_MARK))
            file.write(checksum)

    def discard(self) -> None:
        """Remove the file."""
        # Closing the writer writes a footer, which fails once more where the disk is full.
        self._writer.is_open = False
        self._file.close()
        self._path.unlink(missing_ok=True)


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
        raise UserError(f"{path} has no column {', '.join(lacking)}; was it written by softeval?")
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
