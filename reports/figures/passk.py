"""pass@k against k: curves with simultaneous bands, and below them the differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softeval.reports.curves import CurveFigure, Panel
from softeval.reports.figures.style import (
    INK,
    MUTED,
    Look,
    k_axis,
    legend,
    looks,
    new_figure,
    percent_axis,
    styled,
)
from softeval.statistics.curves import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEDY_X = 0.5  # left of k = 1 on the log axis: beside the curve, not on it


def draw_curves(curves: CurveFigure) -> Figure:
    """One column a panel: pass@k above, difference from the baseline below."""
    with styled():
        panels = curves.panels
        differing = any(panel.differences for panel in panels)
        figure = new_figure(5.2 if differing else 3.4, 9.0 if len(panels) > 1 else 6.2)
        heights = [1.7, 1.0] if differing else [1.0]
        axes = figure.subplots(
            len(heights), len(panels), squeeze=False, sharex=True, sharey="row",
            height_ratios=heights,
        )  # fmt: skip
        named = looks([curve.name for panel in panels for curve in panel.curves])
        for column, panel in enumerate(panels):
            _draw_panel(axes[0][column], panel, named)
            axes[0][column].annotate(
                "\n".join(curves.fewer(panel)), (0.98, 0.02), xycoords="axes fraction",
                ha="right", va="bottom", fontsize=7, color=MUTED,
            )  # fmt: skip
            if differing:
                _draw_differences(axes[1][column], panel, named)
        percent_axis(axes[0][0], "problems solved, %")
        if differing:
            _label_differences(axes[1], curves)
        for axis in axes[-1]:
            k_axis(axis, [max(curve.n for panel in panels for curve in panel.curves)])
            axis.set_xlim(left=GREEDY_X * 0.68)
        legend(figure, named)
        return figure


def _label_differences(row: Sequence[Axes], curves: CurveFigure) -> None:
    """The baseline once at the left where all panels have the same, else beside each panel."""
    several = len(curves.baselines) > 1
    common = next(iter(curves.baselines))
    percent_axis(row[0], "difference, points" if several else f"minus {common}, points")
    for axes, panel in zip(row, curves.panels, strict=True):
        if several and panel.baseline:
            axes.set_title(f"minus {panel.baseline}", fontsize=8, fontweight="normal")


def _draw_panel(axes: Axes, panel: Panel, named: dict[str, Look]) -> None:
    axes.set_title(panel.title)
    for index, curve in enumerate(panel.curves):
        look = named[curve.name]
        if curve.band is not None:
            _draw_band(axes, curve.band, look)
        if curve.greedy is not None:
            interval = curve.greedy.mean.interval
            x = GREEDY_X * 1.07 ** (index - (len(panel.curves) - 1) / 2)
            axes.plot([x, x], [interval.low, interval.high], color=look.colour, lw=1)
            axes.plot(x, interval.mean, "<", color=look.colour, ms=5)
    if any(curve.greedy is not None for curve in panel.curves):
        axes.annotate(
            "greedy", (GREEDY_X, 0), (0, 3), ("data", "axes fraction"), "offset points",
            ha="center", va="bottom", fontsize=7, color=MUTED,
        )  # fmt: skip


def _draw_band(axes: Axes, band: Band, look: Look) -> None:
    axes.fill_between(band.ks, band.low, band.high, color=look.colour, alpha=0.11, lw=0)
    axes.plot(band.ks, band.mean, color=look.colour, ls=look.line, marker=look.marker, ms=4)


def _draw_differences(axes: Axes, panel: Panel, named: dict[str, Look]) -> None:
    axes.axhline(0, color=INK, lw=0.8)
    for difference in panel.differences:
        look = named.get(difference.a.name) or named[difference.a.mode.split("_")[0]]
        _draw_band(axes, difference.band, look)
        if difference.order.word == "cross" and difference.crossing.k is not None:
            axes.plot(difference.crossing.k, 0, "o", mfc="none", mec=look.colour, ms=9, mew=1.2)
