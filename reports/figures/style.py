"""How every figure looks: Okabe-Ito colours, each with its own line style and marker.

Ink, muted and rule colours are also sentinels: `svg.py` turns them into the colours of the page, so
that one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from softeval.reports.escaping import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#5b626b"
RULE = "#d9dde2"

ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)

WIDTH = 9.0  # inches; the page scales the drawing to its column


@dataclass(frozen=True)
class Look:
    """Colour, line and marker of one series; never told apart by colour alone."""

    colour: str
    line: Any
    marker: str


LOOKS = {
    "base": Look(INK, "-", "o"),
    "hard": Look(VERMILLION, (0, (5, 2)), "s"),
    "fuzzy": Look(GREEN, (0, (1, 1.5)), "D"),
    "soft": Look(BLUE, (0, (6, 2, 1, 2)), "^"),
}
OTHER_LOOKS = (
    Look(PURPLE, (0, (3, 1, 1, 1, 1, 1)), "v"),
    Look(ORANGE, (0, (8, 2)), "P"),
    Look(SKY, (0, (2, 2)), "X"),
    Look(MUTED, "-", "*"),
)

LONGEST_NAME = 40
LONGEST_TEXT = 70
LEGEND_LETTERS = 110  # over the width of a figure

RC: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same metrics everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "path.simplify": False,
    "text.parse_math": False,  # a task name with a dollar sign is a name
}


def looks(names: list[str]) -> dict[str, Look]:
    """A look for each name: fixed for the paper's methods, in order of appearance for others."""
    spare = iter(OTHER_LOOKS * (len(names) // len(OTHER_LOOKS) + 1))
    return {name: LOOKS.get(name) or next(spare) for name in dict.fromkeys(names)}


@contextmanager
def styled() -> Iterator[None]:
    """Within: matplotlib draws in the report's style, and its own settings come back after."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that no global state knows of; sizes in inches."""
    from softeval.reports.figures.drawing import Drawing

    return Drawing(figsize=(width, height), layout="constrained")


def percent_axis(axes: Axes, label: str | None = None) -> None:
    """The y axis shows fractions as percentages."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    if label:
        axes.set_ylabel(label)


def k_axis(axes: Axes, ks: ArrayLike) -> None:
    """The x axis is k on a log scale of base 2, ticks at powers of two."""
    largest = int(np.max(ks))
    ticks = [2**i for i in range(largest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("k")


def legend(figure: Figure, named: dict[str, Look], markers: bool = True) -> None:
    """One frameless legend above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker if markers else "")
        for look in named.values()
    ]
    names = [printed(name, LONGEST_NAME) for name in named]
    columns = max(1, min(len(names), 6, LEGEND_LETTERS // (max(map(len, names), default=1) + 6)))
    figure.legend(handles, names, loc="outside upper left", ncols=columns)


def printed(text: str, limit: int = LONGEST_TEXT) -> str:
    """Text as a figure may hold it: nothing hidden, and never so long that no room is left."""
    lines = visible(text).split("\n")
    return "\n".join(s if len(s) <= limit else f"{s[: limit - 1]}…" for s in lines)
