"""Training curves: success of the rollouts and of greedy validation against steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.arms import METHODS
from softeval.reports.figures.style import Look, legend, looks, new_figure, percent_axis, styled
from softeval.reports.training import TrainingCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[np.ndarray, np.ndarray]  # (x, y)

SMOOTHED = 25  # windows over the whole run: single steps of a few dozen rollouts are noise


def draw_training(curves: Sequence[TrainingCurve]) -> Figure:
    """Left: training success, smoothed. Right: validation, the best step ringed.

    A method's line is the mean of its runs; thin lines are single runs.
    """
    with styled():
        by_method: dict[str, list[TrainingCurve]] = {}
        for curve in sorted(curves, key=_order):
            by_method.setdefault(curve.method or curve.name, []).append(curve)
        named = looks(list(by_method))
        figure = new_figure(3.2)
        left, right = figure.subplots(1, 2, sharey=True)
        for name, runs in by_method.items():
            _draw_runs(left, [_smoothed(c.steps, c.success) for c in runs], named[name], False)
            _draw_runs(right, [(c.validation_steps, c.validation) for c in runs], named[name], True)
            for best in (curve.best for curve in runs):
                if best is not None:
                    right.plot(*best, "o", mfc="none", mec=named[name].colour, ms=8)
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
    same = all(np.array_equal(runs[0][0], x) for x, _ in runs)
    if not same or len(runs) > 1:
        for x, y in runs:
            axes.plot(x, y, color=look.colour, lw=0.5)
    if same:
        mean = np.mean([y for _, y in runs], axis=0)
        marker = look.marker if marked else ""
        axes.plot(runs[0][0], mean, color=look.colour, ls=look.line, marker=marker, ms=3, lw=1.5)


def _smoothed(steps: np.ndarray, values: np.ndarray) -> Line:
    """Means of consecutive windows."""
    if len(steps) <= 2 * SMOOTHED:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), SMOOTHED * 2)
    means = [(steps[part].mean(), values[part].mean()) for part in parts]
    return np.array(means)[:, 0], np.array(means)[:, 1]
