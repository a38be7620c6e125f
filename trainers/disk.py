"""Room on the disk: asked for before a run begins, and one line where it has run out.

Knows nothing of what is written.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from softeval.errors import UserError

GB = 10**9


def check_space(folder: Path, wanted: int) -> None:
    """Refuse a directory that cannot hold so many bytes, those that it holds already counted.

    Raises:
        UserError: naming both numbers.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if held + free < wanted:
        raise UserError(
            f"states and checkpoints take about {wanted / GB:.1f} GB in {folder}, where "
            f"{(held + free) / GB:.1f} GB can be had; free some, or give another --output-path"
        )


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turn a write for which there is no room into one line.

    Raises:
        UserError: the disk is full, or a quota is.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors names the system's error in its text only.
        number = getattr(error, "errno", None)
        if number not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        raise UserError(
            f"no space is left for {folder}; free some, and the same command continues from the last "
            "state"
        ) from error
