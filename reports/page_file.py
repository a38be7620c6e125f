"""The page as a file: where it may go, and writing it."""

from __future__ import annotations

import os
from pathlib import Path

from softeval.errors import UserError


def check_output(output: Path) -> None:
    """Refuse a place for the page that cannot be written to, before the work.

    Raises:
        UserError: a directory, or below something that is no directory or cannot be written to.
    """
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if output.is_dir():
        raise UserError(f"--output {output} is a directory; give a file, like {output}/report.html")
    if there != output.absolute() and not there.is_dir():
        raise UserError(f"cannot write {output} ({there} is a file); give another --output")
    if not os.access(there, os.W_OK):
        raise UserError(f"cannot write {output} ({there} is read-only); give another --output")


def write_report(output: Path, page: str) -> int:
    """Write the page; returns its size in bytes.

    Raises:
        UserError: the file cannot be written.
    """
    content = page.encode("utf-8", "replace")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({error.strerror}); give another --output"
        ) from None
    return len(content)
