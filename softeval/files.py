"""Files and directories that appear whole or not at all; locks; room on the disk; a user's code.

What is written lies beside its place, is flushed, then renamed. A reader never sees half of it, a
full disk or a kill leaves the earlier one, and what is renamed has reached the disk. Knows nothing of
what they hold.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from softeval.errors import UserError

PARTIAL = ".partial"
"""Suffix of what is still being written; it may be removed once its writer is gone."""


GB = 10**9
LOCK = ".lock"
LOCK_PATIENCE = 0.2
"""Seconds after which a lock is somebody else's: its holder may be just removing the file."""


def run_python(file: Path, name: str) -> ModuleType:
    """Run a file as the module `name`, as it is now.

    Python's own import would run bytecode of before where a file is edited within a second.
    """
    module = sys.modules[name] = ModuleType(name)  # a dataclass inside looks for its module there
    module.__file__ = str(file)
    code = compile(file.read_bytes(), file, "exec", dont_inherit=True)
    exec(code, vars(module))  # noqa: S102 - the user asks for it
    return module


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


def serialisable(value: Any) -> Any:
    """Values as JSON has them: not-a-number becomes null, an unknown object its text."""
    return json.loads(json.dumps(_finite(value), default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def move_into_place(partial: Path, path: Path) -> None:
    """Give a file that is whole its name, once it has reached the disk."""
    sync(partial)
    os.replace(partial, path)


@contextmanager
def replacing_directory(place: Path) -> Iterator[Path]:
    """Give an empty directory to fill, which takes the place of `place` at the end of the block.

    After an error `place` stays as it was. That takes two renames, as a directory cannot be
    overwritten; `recover` makes up for a kill between them.
    """
    partial = beside(place)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk wants the room back
        raise
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    retired = _retired(place)
    if place.exists():
        shutil.rmtree(retired, ignore_errors=True)
        os.rename(place, retired)
    os.rename(partial, place)
    shutil.rmtree(retired, ignore_errors=True)
    sync(place.parent)


def recover(place: Path) -> None:
    """Finish a replacement that was cut off between its two renames."""
    retired = _retired(place)
    if retired.exists() and not place.exists():
        os.rename(retired, place)
    shutil.rmtree(retired, ignore_errors=True)


def _retired(place: Path) -> Path:
    return place.with_name(f".{place.name}.retired")


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold a run's directory, which is made if need be; nothing is left of it if nothing is written.

    The system lets go of the lock when its holder dies, however; children do not inherit it.

    Args:
        folder: the directory.
        doing: what its holder does there, for who comes second.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=LOCK_PATIENCE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is {doing} in {folder}; wait for it, or give another --output-path"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); give another --output-path"
        ) from None
    try:
        yield
    finally:
        # Removed while it is held: filelock finds out that what it waited for is gone.
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # nothing was written: the request was refused


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
    from safetensors import SafetensorError

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


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
