"""The shape of a run.json, checked once where it is read.

Everything that some reader relies on has its type here; fields may be absent ("not recorded") and
others may be there. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from softeval.errors import UserError

TRAINING_FILE = "softeval_training.json"
"""Beside the weights of a trained checkpoint; a run copies it into its record."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Training(_Part):
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


class _Run(_Part):
    status: str | None = None
    command: str | None = None
    started: str | None = None
    seconds: float | None = None
    config: _Config | None = None
    identity: dict[str, Any] | None = None
    model: _Model | None = None
    modes: list[_Mode] | None = None
    datasets: list[_Dataset] | None = None
    training: Training | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    scorer: dict[str, Any] | None = None
    counts: _Counts | None = None
    failures: dict[str, str] | None = None
    diagnose: dict[str, Any] | None = None
    scorings: list[dict[str, Any]] | None = None
    sessions: list[dict[str, Any]] | None = None


def check_run(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a run.json whose fields are not what they should be.

    Raises:
        UserError: naming the file and the field.
    """
    _check(_Run, path, record)


def check_training(path: Path, record: Mapping[str, Any]) -> None:
    """The same for a softeval_training.json."""
    _check(Training, path, record)


def _check(shape: type[BaseModel], path: Path, record: Mapping[str, Any]) -> None:
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
