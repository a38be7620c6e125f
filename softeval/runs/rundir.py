"""A run directory: its run.json and the shape of it, what must agree to continue it, and where its parts lie.

Every file but the shards appears whole or not at all (`softeval.files`). Knows nothing of models,
tasks or how samples are made.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from softeval.errors import UserError
from softeval.files import PARTIAL as BEING_WRITTEN
from softeval.files import beside, write_json
from softeval.records import RANDOM_NUMBERS, SCHEMA_VERSION
from softeval.scoring.judge import is_judged

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
CONFIG_FILE = "config.yaml"
SHARDS = "shards"
SHARD = "shard"
"""In the identity of a run that is a shard: which."""
KEPT = "kept"
"""In run.json while tasks or modes are added: titles of the cells that only the tables hold."""
TRAINING_FILE = "softeval_training.json"
"""Beside the weights of a trained checkpoint; a run copies it into its record."""
COSMETIC_FIELDS = {
    "self_check", "graphs", "shard", "output_path", "data_dir", "include_path", "device",
    "device_memory", "decode_batch_size", "save_steps", "save_total_limit", "log_completions_steps",
    "num_completions", "report_to", "push_to_hub", "validation_modes",
}  # fmt: skip
"""Of the configuration in it: what changes no number of a training."""

RUNNING = "running"
PARTIAL = "partial"
COMPLETE = "complete"

_CRC = "crc32"

UNSET = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Filters as they were before hard sampling had any."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class TrainingShape(_Part):
    """How a checkpoint was trained; also the content of its softeval_training.json."""

    method: str | None = None
    dataset: str | None = None
    base: str | None = None
    train_seed: int | None = None


class _Dataset(_Part):
    name: str
    task: str | None = None
    rows: int | None = None
    split: str | None = None
    sha256: str | None = None


class _Mode(_Part):
    name: str


class _Model(_Part):
    path: str | None = None
    weights_hash: str | None = None


class _Config(_Part):
    model: str | None = None
    tasks: list[str] | None = None
    modes: list[str] | None = None
    num_samples: int | None = None
    pass_at: list[int] | None = None
    limit: float | None = None
    max_cot_tokens: int | None = None
    primary: list[str] | None = None


class _Counts(_Part):
    missing: int | None = None
    verdicts: dict[str, int] | None = None


class RunShape(_Part):
    """Content of a run.json."""

    status: str | None = None
    command: str | None = None
    started: str | None = None
    seconds: float | None = None
    config: _Config | None = None
    identity: dict[str, Any] | None = None
    model: _Model | None = None
    protocol: dict[str, Any] | None = None
    modes: list[_Mode] | None = None
    datasets: list[_Dataset] | None = None
    training: TrainingShape | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    scorer: dict[str, Any] | None = None
    counts: _Counts | None = None
    failures: dict[str, str] | None = None
    diagnose: dict[str, Any] | None = None
    attribution: dict[str, Any] | None = None
    scorings: list[dict[str, Any]] | None = None
    sessions: list[dict[str, Any]] | None = None


def read_record(folder: Path) -> dict[str, Any]:
    """Content of a run.json.

    Raises:
        UserError: no run there, an unreadable or damaged one, or one of a newer softeval.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run directory (no {RUN_FILE}); `softeval ls runs` lists runs"
        )
    record = read_json(path)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} has no schema_version; it was not written by softeval")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{folder} has schema version {version}, this softeval reads up to {SCHEMA_VERSION};"
            " upgrade softeval"
        )
    if record.pop(_CRC, None) not in (None, _crc(record)):
        raise UserError(
            f"{path} is not as softeval wrote it ({_CRC} does not agree);"
            f' restore it, or remove its line "{_CRC}" to take it as it is'
        )
    check_shape(path, record, RunShape)
    return record


def samples_seed(folder: Path, record: Mapping[str, Any]) -> int:
    """The seed by which a run's samples can be drawn again.

    Raises:
        UserError: they were drawn by another generator.
    """
    identity = record.get("identity") or {}
    if identity.get("random_numbers") != RANDOM_NUMBERS:
        raise UserError(
            f"{folder} was made by a softeval that drew other random numbers, so its samples cannot"
            " be decoded again; evaluate the checkpoint once more"
        )
    return int(record["seeds"]["samples"])


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, with this softeval's schema version first and a checksum of the rest last."""
    version = {"schema_version": SCHEMA_VERSION}
    whole = json.loads(json.dumps({**version, **record, **version}))
    write_json(folder / RUN_FILE, whole | {_CRC: _crc(whole)})


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _crc(record: Mapping[str, Any]) -> str:
    """CRC-32 of a record's other content, however it is laid out as text."""
    rest = {name: value for name, value in record.items() if name != _CRC}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def check_shape(path: Path, record: Mapping[str, Any], shape: type[BaseModel]) -> None:
    """Refuse a record whose fields are not what they should be.

    Everything that some reader relies on has its type in `shape`; fields may be absent ("not
    recorded") and others may be there.

    Raises:
        UserError: naming the file and the field.
    """
    try:
        shape.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        said, given = problem["msg"], repr(problem["input"])
        given = given if len(given) <= 40 else f"{given[:37]}…"
        raise UserError(
            f"{path} is damaged: {where} is {given} ({said[0].lower()}{said[1:]}); restore the file,"
            " or mend that field"
        ) from None


def refuse_shard(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse what holds a shard's questions only.

    Raises:
        UserError: naming what puts the shards together.
    """
    shard = (record.get("identity") or {}).get(SHARD)
    if shard is not None:
        raise UserError(
            f"{folder} is shard {shard} of a run; put the shards together with"
            f" `softeval merge {folder.parent} --output-path RUN`"
        )


def refuse_unjudged(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a run whose answers were left for later.

    Raises:
        UserError: naming what judges them.
    """
    if not is_judged(record):
        raise UserError(
            f"{folder} is not judged (--predict-only); `softeval score {folder}` does it"
        )


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run.json."""
    return (folder / RUN_FILE).is_file()


def find_runs(parent: Path, nested: bool = False) -> list[Path]:
    """Run directories inside `parent`, the one written last first.

    Args:
        parent: the folder.
        nested: also those one level further down.
    """
    places = (f"*/{RUN_FILE}", f"*/*/{RUN_FILE}") if nested else (f"*/{RUN_FILE}",)
    found = [path.parent for place in places for path in parent.glob(place)]
    return sorted(found, key=lambda run: (run / RUN_FILE).stat().st_mtime, reverse=True)


def differing_fields(ours: Any, theirs: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, our value, their value) of every leaf in which two identities differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in sorted(ours.keys() | theirs.keys()):
            path = f"{prefix}.{name}" if prefix else str(name)
            yield from differing_fields(ours.get(name), theirs.get(name), path)
    elif ours != theirs:
        yield prefix, ours, theirs


_LATER = ("config", "mode_source")
"""Parts of an identity that older runs lack; not compared where one side has none."""


def identity_differences(
    identity: Mapping[str, Any], record: Mapping[str, Any], *, growing: bool = False
) -> list[tuple[str, Any, Any]]:
    """(name, our value, its value) of everything in which a request and a run's record differ.

    With `growing`, tasks and modes that the record does not have yet are no difference.
    """
    # Through JSON, as the record was: a tuple is a list there.
    ours, theirs = json.loads(json.dumps([identity, record.get("identity") or {}]))
    _add_new_options(ours, theirs)
    for name in _LATER:
        ours.setdefault(name, theirs.get(name))
        theirs.setdefault(name, ours[name])
    return [*_other_names(ours, theirs, growing), *differing_fields(ours, theirs)]


def check_identity(folder: Path, identity: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuse to continue a run that was started with other arguments, further tasks and modes aside.

    Raises:
        UserError: naming each field that differs, there and now.
    """
    differing = identity_differences(identity, record, growing=True)
    if differing:
        named = "; ".join(
            f"{name}: {_short(old)} there, {_short(new)} now" for name, new, old in differing
        )
        raise UserError(
            f"{folder} holds a run with other arguments ({named});"
            " give another --output-path, or --overwrite to start anew"
        )


def _add_new_options(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Give recorded modes the options they have got since, at the value that changes nothing."""
    recorded = theirs.get("modes")
    for name, entry in recorded.items() if isinstance(recorded, dict) else ():
        now = (ours.get("modes") or {}).get(name)
        if isinstance(entry, dict) and isinstance(now, dict):
            theirs["modes"][name] = {k: UNSET[k] for k in now if k in UNSET} | entry


def check_place(folder: Path) -> None:
    """Refuse a place where no run may go; nothing is written.

    Raises:
        UserError: not a folder, a folder with other content, or one that is read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give another --output-path")
    if folder.is_dir() and not is_run(folder) and _has_foreign_content(folder):
        raise UserError(f"{folder} is not empty and not a run; give another --output-path")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _other_names(
    ours: dict[str, Any], theirs: dict[str, Any], growing: bool
) -> Iterator[tuple[str, Any, Any]]:
    """("modes", our names, their names) where they differ; only common ones stay in both."""
    for field in ("tasks", "modes", "docs", "examples"):
        new, old = ours.get(field), theirs.get(field)
        if isinstance(new, dict) and isinstance(old, dict) and new.keys() != old.keys():
            if not (growing and old.keys() <= new.keys()):
                yield field, ", ".join(sorted(new)), ", ".join(sorted(old))
            common = new.keys() & old.keys()
            ours[field] = {name: new[name] for name in common}
            theirs[field] = {name: old[name] for name in common}


def prepare(folder: Path) -> None:
    """Make the folder, and show before any long work that it can be written to.

    Raises:
        UserError: what `check_place` refuses, or a full disk.
    """
    check_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(folder: Path, error: OSError) -> UserError:
    """The one-line error for a folder that is full, read-only or gone."""
    return UserError(
        f"cannot write to {folder} ({error.strerror or error}); finished samples are kept there,"
        " free space or give another --output-path"
    )


def clear(folder: Path) -> None:
    """Remove what a run wrote, run.json first so that no half-removed run looks whole."""
    (folder / RUN_FILE).unlink(missing_ok=True)
    remove_shards(folder)
    for path in folder.iterdir():
        if path.suffix in (".parquet", BEING_WRITTEN) or path.name in (RESULTS_FILE, CONFIG_FILE):
            path.unlink()


def remove_shards(folder: Path) -> None:
    """Remove the shards, once the tables hold every sample."""
    if (folder / SHARDS).is_dir():
        shutil.rmtree(folder / SHARDS)


def _has_foreign_content(folder: Path) -> bool:
    """Whether there is anything that a run killed before its run.json does not leave."""
    return any(path.name != SHARDS and path.suffix != BEING_WRITTEN for path in folder.iterdir())


def _probe(folder: Path) -> None:
    """Write, flush and remove 64 KiB: a full disk accepts an empty file."""
    probe = beside(folder / "probe")
    try:
        with probe.open("wb") as file:
            file.write(bytes(65536))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else text[:87] + "..."
