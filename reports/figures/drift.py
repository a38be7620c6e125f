"""KL to the base model: one number an arm, and by position, above the noise floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.drift import DriftScore
from softeval.reports.figures.style import MUTED, Look, legend, looks, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_drift(scores: Sequence[DriftScore]) -> Figure:
    """Left: KL per token of each arm and kind. Right: the first kind by position."""
    with styled():
        kinds = list(dict.fromkeys(score.kind for score in scores))
        named = looks([score.name for score in scores])
        figure = new_figure(max(2.8, 0.9 + 0.3 * len(kinds)))
        left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
        for score in scores:
            _draw_dot(left, kinds.index(score.kind), score, list(named), named[score.name])
        left.set_yticks(range(len(kinds)), kinds)
        left.set_ylim(len(kinds) - 0.5, -0.5)
        left.set_xlabel("KL, nats per token")
        left.locator_params(axis="x", nbins=5)
        left.grid(visible=False)
        left.grid(visible=True, axis="x")
        _draw_positions(right, [score for score in scores if score.kind == kinds[0]], named)
        floors = [score.floor for score in scores if score.floor is not None]
        if floors:
            left.axvline(max(floors), color=MUTED, lw=1, ls=":")
            right.axhline(max(floors), color=MUTED, lw=1, ls=":")
            right.annotate(
                "noise floor", (1, max(floors)), (0, 2), ("axes fraction", "data"),
                "offset points", ha="right", va="bottom", fontsize=7, color=MUTED,
            )  # fmt: skip
        legend(figure, named)
        return figure


def _draw_dot(axes: Axes, row: int, score: DriftScore, names: list[str], look: Look) -> None:
    y = row + 0.5 * ((names.index(score.name) + 0.5) / len(names) - 0.5)
    mean, low, high = score.per_token
    axes.plot([low, high], [y, y], color=look.colour, lw=1.2)
    axes.plot(mean, y, look.marker, color=look.colour, ms=5)


def _draw_positions(axes: Axes, scores: Sequence[DriftScore], named: dict[str, Look]) -> None:
    axes.set_title(scores[0].kind, fontsize=9, fontweight="normal")
    for score in scores:
        profile, look = score.profile, named[score.name]
        x = profile.start + (np.diff(profile.start[:2]).sum() or 1) / 2 + 0.5
        shown = np.where(profile.grey, np.nan, 1.0)
        axes.fill_between(
            x, profile.low * shown, profile.high * shown, color=look.colour, alpha=0.13, lw=0
        )
        axes.plot(x, profile.mean, color=look.colour, lw=0.7)
        axes.plot(x, profile.mean * shown, color=look.colour, ls=look.line)
    axes.set_xlabel("position")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)
