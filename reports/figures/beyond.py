"""pass@k beyond the samples: measured curves solid, models dashed, their disagreement hatched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.beyond import MODELS, BeyondFigure, Continuation
from softeval.reports.figures.style import (
    MUTED,
    Look,
    k_axis,
    legend,
    looks,
    new_figure,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = {
    "beta_binomial": (0, (6, 2)),
    "zero_inflated": (0, (2, 2)),
    "power_law": (0, (6, 2, 1, 2)),
}


def draw_beyond(figure: BeyondFigure) -> Figure:
    """One panel a kind of CoT; a dotted line stands where the samples end."""
    with styled():
        panels = figure.panels
        drawing = new_figure(3.4, 9.0 if len(panels) > 1 else 6.2)
        axes = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        named = looks([curve.name for curves in panels.values() for curve in curves])
        for axis, (kind, curves) in zip(axes, panels.items(), strict=True):
            axis.set_title(f"{kind} inference")
            for curve in curves:
                _draw(axis, curve, named[curve.name])
            axis.axvline(curves[0].beyond.n, color=MUTED, lw=0.8, ls=":")
            k_axis(axis, [figure.largest])
        percent_axis(axes[0], "problems solved, %")
        legend(drawing, named)
        return drawing


def _draw(axes: Axes, curve: Continuation, look: Look) -> None:
    axes.plot(curve.ks, curve.measured, color=look.colour, ls="-", marker=look.marker, ms=4)
    beyond = [getattr(curve.beyond, model) for model in MODELS]
    axes.fill_between(
        curve.beyond.ks, np.min(beyond, axis=0), np.max(beyond, axis=0),
        facecolor="none", edgecolor=look.colour, hatch="////", lw=0, alpha=0.4,
    )  # fmt: skip
    for model, line in zip(MODELS, beyond, strict=True):
        axes.plot(curve.beyond.ks, line, color=look.colour, ls=DASHES[model], lw=1)
