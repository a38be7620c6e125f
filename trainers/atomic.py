"""Directories that appear whole or not at all.

A directory is written under a hidden name beside its place and then renamed, so a reader never sees
half of one. What a power cut can still do to a renamed directory is found out by its manifest: size
and CRC-32 of every file.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from softeval.files import beside, sync

MANIFEST = "manifest.json"
_BLOCK = 2**22


def write_directory(place: Path, fill: Callable[[Path], None], manifest: bool = False) -> None:
    """Write a directory and move it into place; one that stands there is replaced.

    Args:
        place: where it goes.
        fill: writes the files into the directory it is given.
        manifest: also record size and checksum of every file.
    """
    partial = beside(place)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk wants the room back
        raise
    if manifest:
        entries = {name: _fingerprint(partial / name) for name in _files(partial)}
        (partial / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    for name in _files(partial):
        sync(partial / name)
    sync(partial)
    _move(partial, place)
    sync(place.parent)


def recover(place: Path) -> None:
    """Finish a replacement that was cut off between its two renames."""
    retired = _retired(place)
    if retired.exists() and not place.exists():
        os.rename(retired, place)
    shutil.rmtree(retired, ignore_errors=True)


def is_whole(place: Path) -> bool:
    """Whether every file that the manifest lists is there as it was written."""
    try:
        entries = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return bool(entries) and all(
            _fingerprint(place / name) == entry for name, entry in entries.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def _move(partial: Path, place: Path) -> None:
    """Rename over `place`; a directory there steps aside first, as it cannot be overwritten."""
    retired = _retired(place)
    if place.exists():
        shutil.rmtree(retired, ignore_errors=True)
        os.rename(place, retired)
    os.rename(partial, place)
    shutil.rmtree(retired, ignore_errors=True)


def _retired(place: Path) -> Path:
    return place.with_name(f".{place.name}.retired")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> dict[str, int]:
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return {"bytes": size, "crc32": checksum}
