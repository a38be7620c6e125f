"""Reads the local JSONL files of a data directory.

A directory may hold a MANIFEST.json, which says which file is which split and how faithful it is;
without one the usual file names are tried. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.options import split_list

Row = dict[str, Any]

MANIFEST = "MANIFEST.json"


def is_jsonl(name: str) -> bool:
    """Whether a name is that of a JSONL file, not of a task."""
    return name.endswith((".jsonl", ".jsonl.gz"))


def task_name(name: str) -> str:
    """Name of the task that an entry of --tasks stands for: of a file, its own without ending."""
    return Path(name).name.split(".jsonl")[0] if is_jsonl(name) else name


def split_tasks(value: Any) -> Any:
    """As `split_list`, but a JSONL file that is there may have a comma in its name."""
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else [value]
    listed = [
        [p]
        if isinstance(p, str) and is_jsonl(p) and Path(p).expanduser().is_file()
        else split_list(p)
        for p in parts
    ]
    return tuple(dict.fromkeys(name for names in listed for name in names))


def find_file(directory: Path, aliases: Sequence[str], split: str) -> tuple[Path, str]:
    """The file of a split, and what the manifest says of its fidelity ("" without one).

    The manifest is followed where there is one and it lists the split: the entry whose name stands
    first among the aliases wins, then the one with most rows.

    Args:
        directory: the data directory.
        aliases: names under which the data set may be found, best first.
        split: the split.

    Raises:
        UserError: no such directory, no such file, or a file that is not the one listed.
    """
    if not directory.is_dir():
        raise UserError(f"no data directory {directory}; give --data-dir a folder of JSONL files")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise UserError(f"cannot read the data directory {directory}; check its permissions")
    entry = _listed(directory, aliases, split)
    if entry is not None:
        return _verified(directory / entry["file"], entry)
    names = _usual_names(aliases, split)
    for name in names:
        if (directory / name).is_file():
            return directory / name, ""
    raise UserError(
        f"no file for {aliases[0]} ({split}) in {directory}; "
        f"put one there as {names[0]} or list it in {MANIFEST}"
    )


def read_rows(path: Path, fields: Sequence[str]) -> list[Row]:
    """Rows of a JSONL file (gzip by its ending), each a JSON object with the given fields.

    Raises:
        UserError: unreadable file, or the first line that is not JSON or lacks a field.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_parse(line, f"{path}, line {number}", fields))
    if not rows:
        raise UserError(f"{path} holds no rows; write one JSON object a line")
    return rows


def first_row(path: Path) -> Row:
    """The first row of a JSONL file.

    Raises:
        UserError: no such file, or what `read_rows` raises.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give a .jsonl or .jsonl.gz file")
    return read_rows(path, ())[0]


def check_fields(row: Mapping[str, Any], place: str, fields: Sequence[str]) -> None:
    """Refuse a row that lacks a field or holds null there; `place` names it in the message."""
    missing = [field for field in fields if row.get(field) is None]
    if missing:
        raise UserError(
            f"{place}: no {', '.join(missing)}; every row needs {', '.join(fields)},"
            f" this one has {', '.join(map(str, row)) or 'nothing'}"
        )


def _parse(line: str, place: str, fields: Sequence[str]) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg}); write one object a line") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object; write one object a line")
    if "\\ud" in line.lower():
        _check_text(row, place)
    check_fields(row, place, fields)
    return row


def _check_text(row: Row, place: str) -> None:
    r"""Refuse half a character: JSON may write one as ``\ud83d``, no tokenizer takes it."""
    for field, value in row.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(
                f"{place}: {field} holds {half}, half a character; mend the row"
            ) from None


def _usual_names(aliases: Sequence[str], split: str) -> list[str]:
    stems = [stem for a in aliases for stem in (f"{a}_{split}", f"{a}/{split}", a)]
    return [stem + ending for stem in stems for ending in (".jsonl", ".jsonl.gz")]


def _listed(directory: Path, aliases: Sequence[str], split: str) -> Row | None:
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        entries = json.loads(_read_text(path))["datasets"]
        named = [e for e in entries if e["name"] in aliases and e["split"] == split and e["file"]]
        best = sorted(named, key=lambda e: (aliases.index(e["name"]), -int(e.get("rows", 0))))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} must hold {{"datasets": [{{"name", "split", "file", "rows"}}, ...]}}; mend it'
        ) from error
    return best[0] if best else None


def _verified(path: Path, entry: Row) -> tuple[Path, str]:
    """A manifest's word on fidelity only holds for the very file it was written about."""
    if not path.is_file():
        raise UserError(f"{MANIFEST} lists {path.name}, which is missing from {path.parent}")
    expected = entry.get("sha256")
    if expected is not None and hashlib.sha256(_read_bytes(path)).hexdigest() != expected:
        raise UserError(f"{path} is not the file that {MANIFEST} lists (sha256); restore it")
    return path, str(entry.get("fidelity", ""))


def _read_text(path: Path) -> str:
    try:
        raw = _read_bytes(path)
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert it") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path} is not a whole gzip file; fetch it again") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check it") from error
