"""Forest plot: every comparison with its interval, what could be detected, and who solves what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softeval.reports.contrasts import Comparison
from softeval.reports.figures.style import (
    INK,
    MUTED,
    RULE,
    new_figure,
    printed,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.3  # inches
LONGEST_SIDE = 24


def draw_forest(comparisons: Sequence[Comparison], margin: float) -> Figure:
    """One row a comparison, the primary ones first and filled; effects in points.

    Args:
        comparisons: of one task.
        margin: equivalence margin, drawn as a zone around zero; a fraction.
    """
    with styled():
        figure = new_figure(1.0 + ROW * len(comparisons))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3.2, 1.0])
        left.axvspan(-100 * margin, 100 * margin, color=RULE, alpha=0.6, lw=0)
        left.axvline(0, color=INK, lw=0.8)
        for y, comparison in enumerate(comparisons):
            _draw_effect(left, y, comparison)
            _draw_discordance(right, y, comparison)
        _finish(left, right, comparisons)
        return figure


def _draw_effect(axes: Axes, y: int, comparison: Comparison) -> None:
    contrast = comparison.contrast
    low, high, diff, mde = (
        100 * value for value in (contrast.low, contrast.high, contrast.diff, contrast.mde)
    )
    colour = INK if comparison.primary else MUTED
    if contrast.se > 0:
        axes.plot([-mde, mde], [y, y], "|", color=MUTED, ms=7, mew=0.9)
    axes.plot([low, high], [y, y], color=colour, lw=2.0 if comparison.primary else 1.1)
    fill = colour if comparison.primary else "none"
    axes.plot(diff, y, "o", color=colour, mfc=fill, ms=6 if comparison.primary else 5)


def _draw_discordance(axes: Axes, y: int, comparison: Comparison) -> None:
    """Problems on which one side does better: B to the left, A to the right."""
    counts = comparison.contrast.discordance
    share = 100 / max(counts.problems, 1)
    axes.barh(y, counts.a_only * share, height=0.5, color=INK)
    axes.barh(y, -counts.b_only * share, height=0.5, color=MUTED, alpha=0.55)


def _row_name(c: Comparison) -> str:
    """Matplotlib writes tick labels itself, so they are made fit here."""
    a, b = (printed(side.name, LONGEST_SIDE) for side in (c.a, c.b))
    entered = c.contrast.problems
    fewer = f" ({entered} of {c.questions} questions)" if entered < c.questions else ""
    return f"{a} − {b} · {printed(c.metric_name)}{fewer}"


def _finish(left: Axes, right: Axes, comparisons: Sequence[Comparison]) -> None:
    names = [_row_name(c) for c in comparisons]
    left.set_yticks(range(len(names)), names)
    left.tick_params(axis="y", labelcolor=INK)
    left.set_ylim(len(names) - 0.4, -0.6)
    primary = sum(c.primary for c in comparisons)
    for axes in (left, right):
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x")
        axes.spines["left"].set_visible(False)
        if 0 < primary < len(comparisons):
            axes.axhline(primary - 0.5, color=MUTED, lw=0.7, ls=":")
    left.set_xlabel("difference in points, 95 % interval  ( | : minimum detectable)")
    right.axvline(0, color=INK, lw=0.8)
    widest = max(abs(limit) for limit in right.get_xlim())
    right.set_xlim(-widest, widest)
    right.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    right.set_xlabel("B | A does better, %")
