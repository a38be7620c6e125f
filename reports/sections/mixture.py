"""The soft thought: the tokens that a CoT mixes, position by position, as a strip.

A block is as high as its token's weight, and the entropy hangs below. `static/browser.js` draws the page's
strips from the samples that the page holds; the figure here is for notebooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from softeval.reports.drawing import INK, MUTED, new_figure, printed, styled
from softeval.reports.escaping import visible
from softeval.reports.layout import Own, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.texts import SampleText, temperature_of
from softeval.reports.sections.selection import find_pair, sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW, POSITIONS = 8, 64
"""Positions that are shown or folded together, and the most of a strip."""
LONGEST_TOKEN = 20
LEAST_TEXT = 0.15  # weight of a block that has room for its token
COLOURS = ("#cfe3f3", "#f8dcae", "#d3ead9")


def shown_positions(entropy_T: ArrayLike, most: int = POSITIONS) -> list[int]:
    """Positions of the windows of highest entropy, `most` at most; all where there are no more."""
    entropy_T = np.nan_to_num(np.asarray(entropy_T, float))
    if len(entropy_T) <= most:
        return list(range(len(entropy_T)))
    peaks = np.maximum.reduceat(entropy_T, np.arange(0, len(entropy_T), WINDOW))
    kept = np.argsort(-peaks, kind="stable")[: most // WINDOW]
    return [t for t in range(len(entropy_T)) if t // WINDOW in kept]


def written(token: str) -> str:
    """A token as a block holds it: on one line, and never empty."""
    shown = visible(token).replace("\n", "⏎").replace("\t", "⇥").strip() or "␣"
    return shown if len(shown) <= LONGEST_TOKEN else f"{shown[: LONGEST_TOKEN - 1]}…"


def draw_mixture(text: SampleText, title: str) -> Figure:
    """The strip of a sample over its entropy, with a text alternative."""
    assert text.entropy_T is not None, "positions are recorded with their entropy"
    shown = shown_positions(text.entropy_T)
    answer = f"{text.fields['answer']} {'✓' if text.fields['correct'] else '✗'}"
    with styled():
        figure = new_figure(2.8)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for place, t in enumerate(shown):
            _draw_position(above, place, text.fed(t))
        entropy = np.nan_to_num(text.entropy_T[shown])
        below.bar(range(len(shown)), entropy, 0.9, color=MUTED)
        below.invert_yaxis()
        above.set_title(printed(f"{title} → {answer}"))
        above.set_ylabel("weight")
        above.margins(x=0.01)
        above.grid(visible=False)
        below.set_ylabel("nats")
        every = max(1, len(shown) // 24)
        below.set_xticks(range(0, len(shown), every), [str(t + 1) for t in shown[::every]])
        folded = " of the windows of highest entropy" if len(shown) < len(text.tokens) else ""
        temperatures = f"weights{temperature_of(text.mode)}, entropy at temperature 1"
        below.set_xlabel(f"position{folded}; {temperatures}")
    peaks = np.sort(np.argsort(-np.nan_to_num(text.entropy_T), kind="stable")[:3])
    fed = [[f"“{written(token)}” {100 * w:.1f} %" for token, w in text.fed(int(t))] for t in peaks]
    told = " ".join(f"Position {t + 1}: {', '.join(f)}." for t, f in zip(peaks, fed, strict=True))
    figure.set_label(f"{title}: {temperatures}. {told} Answer: {answer}")
    return figure


def _draw_position(axes: Axes, place: int, entries: list[tuple[str, float]]) -> None:
    bottom = 0.0
    for (token, weight), colour in zip(entries, COLOURS, strict=False):
        axes.bar(place, weight, 0.98, bottom, color=colour, edgecolor="white")
        if weight >= LEAST_TEXT:
            middle = (place, bottom + weight / 2)
            turned = 90 if len(written(token)) > 2 else 0
            axes.text(*middle, written(token), color=INK, ha="center", va="center", rotation=turned)
        bottom += weight


def _parts(material: Material) -> list[Part]:
    if (pair := find_pair(material.arms)) is None:
        return []
    source, *keys, doc = pair
    cells = [sources(material.arms)[source].checkpoints[0].cells[key] for key in keys]
    shares = []
    for cell in cells:
        right, n = (int(of_M[cell.doc_M == doc][0]) for of_M in (cell.c_M, cell.n_M))
        shares.append(f"{right} of {n} under {cell.mode.replace('_', ' ')}")
    return [Own("mixture.html.j2", {"right": " and ".join(shares)})]


SECTION = Section("thought", "Soft thought", "A soft thought", {"The soft thought": _parts})
