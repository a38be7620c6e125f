"""Training runs given to a report: success against steps, from metrics.jsonl.

Reads what `softeval train` writes, one JSON object a line; knows nothing of trainers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softeval.errors import UserError
from softeval.reports.drawing import Look, legend, looks, panel_row, percent_axis, styled
from softeval.reports.layout import Part, Section, figure_block
from softeval.reports.material import Material
from softeval.reports.measured.arms import METHODS
from softeval.reports.tables import points, simple_table
from softeval.runs.record import read_training as how_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
RECORD_FILE = "train.json"
TRAIN_SUCCESS = "reward/success"
VALIDATION_SUCCESS = "validation/success"  # of the method's own mode, whatever chose the checkpoint

SMOOTHED = 25  # windows over the whole run: single steps of a few dozen rollouts are noise

Line = tuple[np.ndarray, np.ndarray]  # (x, y)


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """One training run.

    Attributes:
        name: of its folder, or method and seed where they are on record.
        method: training method, or the label that the user gave; "" where unknown.
        steps: step of each training success.
        success: share of rollouts that were right.
        validation_steps: steps of the validations.
        validation: greedy success on the held-out questions.
        kept_step: of the checkpoint in `best`, by whatever rule it was chosen; None without one.
    """

    name: str
    method: str
    steps: NDArray[np.float64]
    success: NDArray[np.float64]
    validation_steps: NDArray[np.float64]
    validation: NDArray[np.float64]
    kept_step: int | None

    @property
    def kept(self) -> tuple[float, float] | None:
        """(step, success) of the checkpoint that is kept, where it was validated."""
        at = np.flatnonzero(self.validation_steps == self.kept_step)
        return (
            (float(self.validation_steps[at[-1]]), float(self.validation[at[-1]]))
            if len(at)
            else None
        )


def is_training(folder: str | Path) -> bool:
    """Whether the folder is a training run and not an evaluation run."""
    return (Path(folder) / METRICS_FILE).is_file()


def read_training(folder: str | Path, label: str | None = None) -> TrainingCurve:
    """Curves of one training run.

    Args:
        folder: its directory.
        label: stands for the training method.

    Raises:
        UserError: a line that is not JSON, other than a torn last one.
    """
    path = Path(folder) / METRICS_FILE
    rows = _rows(path)
    identity = _identity(Path(folder))
    method, seed = label or str(identity.get("method") or ""), identity.get("seed")
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
        kept_step=(how_trained(str(Path(folder) / "best")) or {}).get("step"),
    )


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


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """Success against steps of the training directories given; nothing where there are none."""
    curves = [read_training(folder, label) for label, folder in material.training]
    if not curves:
        return
    rows = [
        [
            c.name,
            points(float(c.success[-1])) if len(c.success) else "–",
            points(c.kept[1]) if c.kept else "–",
            f"{c.kept[0]:.0f}" if c.kept else "–",
        ]
        for c in curves
    ]
    title = "Training success against steps"
    columns = ["training run", "last rollouts, %", "kept checkpoint, %", "of step"]
    yield figure_block(
        "training",
        title,
        [f"{c.name}: kept at {points(c.kept[1])} %" for c in curves if c.kept]
        or ["no checkpoint that is kept"],
        partial(draw_training, curves),
        "Success of the rollouts (smoothed over long runs) and of greedy validation on held-out"
        " training questions; thin lines are single runs, a ring marks the checkpoint that is kept.",
        simple_table("Training runs.", columns, rows, f"{title}: numbers"),
    )


# Drawing -------------------------------------------------------------------------------------


def draw_training(curves: Sequence[TrainingCurve]) -> Figure:
    """Left: training success, smoothed. Right: validation, the kept checkpoint ringed.

    A method's line is the mean of its runs; thin lines are single runs.
    """
    with styled():
        by_method: dict[str, list[TrainingCurve]] = {}
        for curve in sorted(curves, key=_order):
            by_method.setdefault(curve.method or curve.name, []).append(curve)
        named = looks(list(by_method))
        figure, (left, right) = panel_row(2, 3.2, sharey=True)
        for name, runs in by_method.items():
            _draw_runs(left, [_smoothed(c.steps, c.success) for c in runs], named[name], False)
            _draw_runs(right, [(c.validation_steps, c.validation) for c in runs], named[name], True)
            for kept in (curve.kept for curve in runs):
                if kept is not None:
                    right.plot(*kept, "o", mfc="none", mec=named[name].colour, ms=8)
        left.set_title("rollouts")
        right.set_title("greedy validation")
        percent_axis(left, "success, %")
        for axes in (left, right):
            axes.set_xlabel("step")
        legend(figure, named)
        return figure


def _order(curve: TrainingCurve) -> tuple[int, str]:
    rank = METHODS.index(curve.method) if curve.method in METHODS else len(METHODS)
    return rank, curve.name


def _draw_runs(axes: Axes, runs: Sequence[Line], look: Look, marked: bool) -> None:
    """Thin lines of the runs, and their mean where they were measured at the same steps."""
    import seaborn

    x, y = (np.concatenate(values) for values in zip(*runs, strict=True))
    same = all(np.array_equal(runs[0][0], steps) for steps, _ in runs)
    if not same or len(runs) > 1:
        run = np.repeat(np.arange(len(runs)), [len(steps) for steps, _ in runs])
        seaborn.lineplot(
            x=x, y=y, units=run, estimator=None, color=look.colour, lw=0.5, ax=axes, legend=False
        )
    if same:
        seaborn.lineplot(
            x=x, y=y, errorbar=None, color=look.colour, ls=look.line, ax=axes,
            marker=look.marker if marked else "", markersize=5, markeredgewidth=0,
        )  # fmt: skip


def _smoothed(steps: np.ndarray, values: np.ndarray) -> Line:
    """Means of consecutive windows."""
    if len(steps) <= 2 * SMOOTHED:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), SMOOTHED * 2)
    means = [(steps[part].mean(), values[part].mean()) for part in parts]
    return np.array(means)[:, 0], np.array(means)[:, 1]


SECTION = Section("training", "Training", "Training", {"Training": _parts})
