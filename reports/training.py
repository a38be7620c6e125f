"""Training runs given to a report: success and reward against steps, from metrics.jsonl.

Reads what `softeval train` writes, one JSON object a line; knows nothing of trainers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softeval.errors import UserError

METRICS_FILE = "metrics.jsonl"
RECORD_FILE = "train.json"
TRAIN_SUCCESS = "reward/success"
VALIDATION_SUCCESS = "validation/success"


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """One training run.

    Attributes:
        name: of its folder, or method and seed where they are on record.
        method: training method; "" where unknown.
        steps: step of each training success.
        success: share of rollouts that were right.
        validation_steps: steps of the validations.
        validation: greedy success on the held-out questions.
    """

    name: str
    method: str
    steps: NDArray[np.float64]
    success: NDArray[np.float64]
    validation_steps: NDArray[np.float64]
    validation: NDArray[np.float64]

    @property
    def best(self) -> tuple[float, float] | None:
        """(step, success) of the best validation; None where there was none."""
        if not len(self.validation):
            return None
        index = int(np.argmax(self.validation))
        return float(self.validation_steps[index]), float(self.validation[index])


def is_training(folder: str | Path) -> bool:
    """Whether the folder is a training run and not an evaluation run."""
    return (Path(folder) / METRICS_FILE).is_file()


def read_training(folder: str | Path) -> TrainingCurve:
    """Curves of one training run.

    Raises:
        UserError: a line that is not JSON, other than a torn last one.
    """
    path = Path(folder) / METRICS_FILE
    rows = _rows(path)
    identity = _identity(Path(folder))
    method, seed = str(identity.get("method") or ""), identity.get("seed")
    name = method if method and seed is None else f"{method} seed {seed}" if method else ""
    steps, success = _series(rows, TRAIN_SUCCESS)
    validation_steps, validation = _series(rows, VALIDATION_SUCCESS)
    return TrainingCurve(
        name=name or Path(folder).name,
        method=method,
        steps=steps,
        success=success,
        validation_steps=validation_steps,
        validation=validation,
    )


def read_all(folders: Sequence[str | Path]) -> list[TrainingCurve]:
    """Curves of several training runs, in the order given."""
    return [read_training(folder) for folder in folders]


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break  # a run that is being written, or was killed, may end in half a line
            raise UserError(
                f"{path} is damaged (line {number}); remove it or train again"
            ) from None
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _identity(folder: Path) -> dict[str, Any]:
    """The training's configuration as the trainer recorded it; empty where it did not."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it or train again") from None
    identity = record.get("identity") if isinstance(record, dict) else None
    return identity if isinstance(identity, dict) else {}


def _series(
    rows: Sequence[dict[str, Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(steps, values) of the lines that carry the name."""
    found = [
        (row["step"], row[name])
        for row in rows
        if isinstance(row.get(name), int | float) and isinstance(row.get("step"), int | float)
    ]
    table = np.array(found, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
