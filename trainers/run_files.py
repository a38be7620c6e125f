"""Files of a training run: its record, metrics.jsonl, samples.jsonl, and the trackers.

    DIR/train.json      configuration, data, versions
    DIR/metrics.jsonl   one line an update; those with a validation carry validation/success
    DIR/samples.jsonl   sample rollouts
    DIR/state/          states to continue from
    DIR/best/ last/     transformers checkpoints

Only the main process writes. Knows nothing of training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.rundir import differing_fields, write_json
from softeval.trainers.config import TrainConfig
from softeval.trainers.lock import LOCK
from softeval.trainers.metrics import Metrics

RECORD = "train.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
STATES = "state"
BEST = "best"
LAST = "last"


def open_directory(folder: Path, config: TrainConfig, record: Mapping[str, Any]) -> None:
    """Make the directory of a run, or check that it holds this one.

    Raises:
        UserError: another configuration, base or data, foreign files, or no permission.
    """
    path = folder / RECORD
    identity = config.identity()
    if path.is_file():
        found = _read(path)
        _check(folder, identity, _with_former_defaults(found["identity"]))
        _check_fingerprints(folder, record["fingerprints"], found.get("fingerprints", {}))
        return
    if folder.exists() and (not folder.is_dir() or _has_foreign_content(folder)):
        raise UserError(f"{folder} is not empty and no training run; give another --output-path")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"identity": identity, **record})
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); give another --output-path"
        ) from None


def truncate_lines(path: Path, last_step: int) -> None:
    """Drop the lines of steps after `last_step`, and a line that was cut off."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last_step:
            break
        kept.append(line)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; it reaches the disk's cache at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, in order."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class Trackers:
    """TensorBoard and the like, through accelerate.

    Args:
        accelerator: accelerate's.
        config: shown with the run.
        step: step the run continues from.
    """

    def __init__(self, accelerator: Any, config: TrainConfig, step: int) -> None:
        self._accelerator = accelerator
        if not config.report_to:
            return
        shown = {k: v for k, v in config.identity().items() if isinstance(v, str | int | float)}
        options = (
            {"tensorboard": {"purge_step": step + 1}} if "tensorboard" in config.report_to else {}
        )
        accelerator.init_trackers("softeval", config=shown, init_kwargs=options)

    def log(self, metrics: Metrics, step: int) -> None:
        """Send an update's numbers."""
        self._accelerator.log({k: v for k, v in metrics.items() if v is not None}, step=step)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "identity": found["identity"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --output-path") from None


def _has_foreign_content(folder: Path) -> bool:
    """Whether there is anything that a run killed before its first record does not leave."""
    return any(path.name not in (LOCK, f".{RECORD}.partial") for path in folder.iterdir())


_CHANGED = {
    "base": "the model is no longer the checkpoint that this run began with (its weights differ); "
    "restore it",
    "train": "the training questions, their labels or tokens are no longer those that this run "
    "began with; restore them",
    "validation": "the validation questions, their labels or tokens are no longer those that this "
    "run began with; restore them",
}


def _check_fingerprints(folder: Path, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Compare hashes; a run that recorded none is taken at its word."""
    for name, changed in _CHANGED.items():
        if theirs.get(name, ours[name]) != ours[name]:
            raise UserError(f"{folder}: {changed}, or give another --output-path")


def _with_former_defaults(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with what runs did before they recorded it."""
    noisy = identity.get("method") != "hard"
    return ({"score_error": "recomputed"} if noisy else {}) | dict(identity)


def _check(folder: Path, identity: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differing = [
        f"{name}: {there} there, {now} now"
        for name, now, there in differing_fields(identity, found)
    ]
    if differing:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(differing)}); "
            "give another --output-path"
        )
