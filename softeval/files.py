"""Files that appear whole or not at all: written beside their place, flushed, then renamed.

A reader never sees half of one, a full disk or a kill leaves the earlier file, and what is renamed
has reached the disk. Knows nothing of what the files hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Suffix of what is still being written; it may be removed once its writer is gone."""


def beside(path: Path) -> Path:
    """Where `path`, a file or a directory, is written before it is whole."""
    return path.with_name(f".{path.name}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` at the end of the block.

    After an error, or where the block has removed it, `path` stays as it was.
    """
    partial = beside(path)
    try:
        yield partial
        if partial.exists():
            move_into_place(partial, path)
    except (Exception, KeyboardInterrupt):
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """The same for text, as UTF-8; a lone surrogate becomes its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """The same for JSON; ValueError for a number that JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def move_into_place(partial: Path, path: Path) -> None:
    """Give a file that is whole its name, once it has reached the disk."""
    sync(partial)
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
