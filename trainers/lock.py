"""One training run a directory: a second process on it is refused while the first one lives.

Knows nothing of what the directory holds.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from softeval.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Hold the directory, which is made if need be, for the time of a run.

    Args:
        folder: the run's directory.
        wanted: False does nothing; one process of a run holds the lock for all of them.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    if not wanted:
        yield
        return
    descriptor = _take(folder)
    try:
        yield
    finally:
        # Removed while it is held, so whoever waits finds out that it is gone (`_is_current`).
        (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):
            folder.rmdir()  # nothing was written: the request was refused


def _take(folder: Path) -> int:
    """Descriptor of the locked file. A POSIX lock: child processes do not inherit it."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # removed, empty, by the run that just ended in it
            continue
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            raise UserError(
                f"another process is training in {folder}; wait for it, or give another "
                "--output-path"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise _unusable(folder, error) from None
        if _is_current(descriptor, folder / LOCK):
            return descriptor
        os.close(descriptor)


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the file held is still the one that others would open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder} ({error.strerror}); give another --output-path")
