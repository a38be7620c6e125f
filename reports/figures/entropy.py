"""Six-panel entropy profile: one panel a mode, under each a strip of how many CoTs still run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.entropy import EntropyFigure, Trace
from softeval.reports.figures.style import (
    BLUE,
    GREEN,
    MUTED,
    RULE,
    VERMILLION,
    Look,
    legend,
    looks,
    new_figure,
    styled,
)
from softeval.reports.left_out import NothingToShow
from softeval.reports.positions import END_POSITIONS, PROGRESS_BINS
from softeval.reports.recorded import RecordedMode
from softeval.statistics.profiles import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TERCILE_LOOKS = {
    "short": Look(VERMILLION, (0, (1, 1.5)), "s"),
    "middle": Look(GREEN, (0, (5, 2)), "D"),
    "long": Look(BLUE, "-", "o"),
}
SEED_POINTS = 300  # thin lines of single seeds are left out where they would hide the mean
X_LABELS = {
    "progress": "share of the CoT, %",
    "end": "positions before the end",
}


def draw_entropy(entropy: EntropyFigure) -> Figure:
    """Greedy modes above, sampled modes below; columns hard, fuzzy, soft; one y axis for all.

    Raises:
        NothingToShow: no line has a point.
    """
    if not entropy.panels:
        raise NothingToShow("; ".join(entropy.absent) or "no chain of thought is in this view")
    with styled():
        grid = _grid(list(entropy.panels))
        strips = entropy.view != "progress"
        rows, columns = len(grid), max(len(row) for row in grid)
        figure = new_figure(0.5 + (2.4 if strips else 2.0) * rows, 9.0 if columns > 1 else 5.0)
        heights = ([3.0, 0.75] if strips else [3.0]) * rows
        axes = figure.subplots(
            len(heights), columns, squeeze=False, sharex=True, height_ratios=heights
        )
        named = _looks(entropy)
        step = 2 if strips else 1
        for row, modes in enumerate(grid):
            for column in range(columns):
                panel = axes[row * step][column]
                strip = axes[row * step + 1][column] if strips else None
                mode = modes[column] if column < len(modes) else None
                if mode is None:
                    panel.set_axis_off()
                    if strip is not None:
                        strip.set_axis_off()
                    continue
                _draw_panel(panel, strip, mode, entropy, named)
        _share_y(axes[::step])
        for axis in axes[-1]:
            axis.set_xlabel(X_LABELS.get(entropy.view, "CoT position"))
        axes[0][0].set_ylabel("entropy, nats")
        if strips:
            meaning = "that\nlong" if entropy.view == "end" else "still\nrunning"
            axes[1][0].set_ylabel(meaning, fontsize=7, color=MUTED)
        legend(figure, named, markers=False)
        return figure


def _grid(modes: list[RecordedMode]) -> list[list[RecordedMode]]:
    rows = [[m for m in modes if m.is_greedy == greedy] for greedy in (True, False)]
    return [row for row in rows if row]


def _looks(entropy: EntropyFigure) -> dict[str, Look]:
    if entropy.view == "terciles":
        return TERCILE_LOOKS
    return looks([trace.name for traces in entropy.panels.values() for trace in traces])


def _draw_panel(
    panel: Axes, strip: Axes | None, mode: str, entropy: EntropyFigure, named: dict[str, Look]
) -> None:
    panel.set_title(mode.replace("_", " "))
    for trace in entropy.panels[mode]:
        x = _x(entropy, trace.profile)
        _draw_trace(panel, x, trace, named[trace.name])
        if strip is not None:
            look = named[trace.name]
            strip.plot(x, trace.profile.at_risk, color=look.colour, ls=look.line, lw=1)
    if entropy.view == "cohort":
        panel.axvline(entropy.cohort, color=MUTED, lw=0.8, ls=":")
    if entropy.view == "end":
        panel.set_xlim(END_POSITIONS + 1, 0)
    if strip is not None:
        strip.set_ylim(0, 1.05)
        strip.set_yticks([0, 1], ["0", "100 %"], fontsize=7)
        strip.grid(False)


def _x(entropy: EntropyFigure, profile: Profile) -> np.ndarray:
    """Middle of each bin."""
    if entropy.view == "progress":
        return (profile.start + 0.5) * 100 / PROGRESS_BINS
    return profile.start + (1 if entropy.view == "end" else (entropy.width + 1) / 2)


def _draw_trace(axes: Axes, x: np.ndarray, trace: Trace, look: Look) -> None:
    """Line and band; thin lines for single seeds; pale where few CoTs or problems are left."""
    profile, pale = trace.profile, RULE
    solid = np.where(profile.grey, np.nan, profile.mean)
    axes.plot(x, profile.mean, color=pale, lw=1.2)
    axes.fill_between(
        x, np.where(profile.grey, np.nan, profile.low), np.where(profile.grey, np.nan, profile.high),
        color=look.colour, alpha=0.13, lw=0,
    )  # fmt: skip
    if len(profile.lines) > 1 and len(x) * len(profile.lines) <= SEED_POINTS:
        for line in profile.lines:
            axes.plot(x, np.where(profile.grey, np.nan, line), color=look.colour, lw=0.4)
    axes.plot(x, solid, color=look.colour, ls=look.line, lw=1.5)


def _share_y(rows: np.ndarray) -> None:
    """One y range over all panels, from 0; the rare positions do not stretch it."""
    highest = max(axis.dataLim.y1 for axis in rows.ravel() if axis.axison)
    for axis in rows.ravel():
        axis.set_ylim(0, highest * 1.04)
    for axis in rows[:, 1:].ravel():
        axis.tick_params(labelleft=False)
