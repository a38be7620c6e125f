"""The soft thought as a strip: the tokens that a CoT mixes, position by position.

A cell a position: blocks as high as the weights of its largest entries, with the entropy hanging below.
Of a long CoT only the windows of highest entropy are shown. `static/browser.js` lays the same
cells out for the browser of samples; a change here is a change there.

Shape letters: T CoT tokens, M problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from softeval.reports.drawing import INK, MUTED, new_figure, printed, styled
from softeval.reports.escaping import clip, visible
from softeval.reports.layout import Own, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import MeasuredCheckpoint
from softeval.reports.measured.cells import Key, MeasuredCell
from softeval.reports.measured.texts import (
    SampleText,
    question_of,
    read_prompts,
    read_texts,
    shared_frame,
)
from softeval.reports.sections.selection import ChosenSample, soft_and_hard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WINDOW = 8
"""Positions that are shown or folded together."""
POSITIONS = 64
"""Most positions of a strip."""
STACK, BAR, HIGHEST = 44, 16, 2.0
"""Pixels of weight 1, and of an entropy of HIGHEST nats or more."""
LETTER, LEAST_WIDTH, LONGEST_TOKEN = 7.3, 18.0, 20
LEAST_TEXT = 11.0
"""Pixels; lower blocks have no room for their token."""
LONGEST_QUESTION, LONGEST_TOLD = 1_000, 100
WRITTEN = {"\n": "⏎", "\t": "⇥"}
PIXELS = 96.0  # an inch, as in CSS
ROW_WIDTH, ROW, HEAD, TEXT_SIZE = 860.0, 72.0, 42.0, 9.0
COLOURS = ("#cfe3f3", "#f8dcae", "#d3ead9")
"""Of the largest entries in a figure; report.css has them for the page, light and dark."""


@dataclass(frozen=True)
class Block:
    """One entry of a cell: its token ("" where it does not fit), pixels from the top, and rank."""

    text: str
    top: float
    height: float
    rank: int


@dataclass(frozen=True)
class StripCell:
    """One position of a strip, or a fold: `blocks` is empty there.

    Attributes:
        told: all of it in words.
        text: what stands in a fold.
        width: pixels.
        blocks: the entries, the largest first.
        bar: pixels of the entropy.
    """

    told: str
    text: str = ""
    width: float = 0.0
    blocks: tuple[Block, ...] = ()
    bar: float = 0.0


def windows(entropy_T: ArrayLike, most: int) -> list[slice]:
    """What is shown of a CoT: the windows of highest entropy, `most` positions at most, in order.

    Args:
        entropy_T: nats.
        most: positions that there is room for.
    """
    entropy_T = np.nan_to_num(np.asarray(entropy_T, float))
    if len(entropy_T) <= most:
        return [slice(0, len(entropy_T))]
    starts = np.arange(0, len(entropy_T), WINDOW)
    peaks = np.maximum.reduceat(entropy_T, starts)
    kept = np.sort(np.argsort(-peaks, kind="stable")[: most // WINDOW])
    groups = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
    return [slice(WINDOW * g[0], min(WINDOW * (g[-1] + 1), len(entropy_T))) for g in groups]


def written(token: str) -> str:
    """A token as a cell holds it: line ends drawn, and nothing cut but its length."""
    shown = "".join(WRITTEN.get(letter, letter) for letter in visible(token))
    shown = shown.strip() or "␣"
    return shown if len(shown) <= LONGEST_TOKEN else f"{shown[: LONGEST_TOKEN - 1]}…"


def cells(text: SampleText, most: int = POSITIONS) -> list[StripCell]:
    """The strip of a sample; its answer is the last cell.

    Args:
        text: the sample.
        most: positions shown; what is left out is one cell in its place.
    """
    entropy_T = np.zeros(len(text.tokens)) if text.entropy_T is None else text.entropy_T
    found, end = [], 0
    for shown in [*windows(entropy_T, most), slice(len(text.tokens), None)]:
        found += _fold(entropy_T[end : shown.start]) if shown.start > end else []
        positions = range(len(text.tokens))[shown]
        found += [_cell(text, t, float(entropy_T[t])) for t in positions]
        end = shown.stop
    return found


def _fold(entropy_T: np.ndarray) -> list[StripCell]:
    told = f"{len(entropy_T)} positions of entropy up to {np.nanmax(entropy_T):.2f} are folded"
    return [StripCell(told, f"⋯ {len(entropy_T)}", 30.0)]


def _cell(text: SampleText, position: int, entropy: float) -> StripCell:
    entries = text.mixtures[position] if text.feeds_mixtures else []
    entries = entries or [(text.tokens[position], 1.0)]
    blocks, top = [], 0.0
    for rank, (token, weight) in enumerate(entries):
        height = STACK * min(weight, 1.0)
        shown = written(token) if height >= LEAST_TEXT else ""
        blocks.append(Block(shown, round(top, 1), round(height, 1), rank + 1))
        top += height
    letters = max(len(block.text) for block in blocks)
    width = max(LEAST_WIDTH, letters * LETTER + 6)
    told = f"Position {position + 1}: {_told(text, position)}"
    bar = BAR * min(np.nan_to_num(entropy) / HIGHEST, 1.0)
    return StripCell(told, "", round(width, 1), tuple(blocks), round(bar, 1))


def _told(text: SampleText, position: int) -> str:
    """Weights and entropy of a position in words, each with its temperature."""
    parts = [quoted(text.tokens[position])]
    if text.feeds_mixtures and text.mixtures[position]:
        weights = [f"{quoted(token)} {100 * w:.1f} %" for token, w in text.mixtures[position]]
        parts = [", ".join(weights) + at_temperature(text)]
    if text.entropy_T is not None and text.top1_T is not None:
        entropy, top1 = text.entropy_T[position], text.top1_T[position]
        parts.append(f"entropy {entropy:.2f} nats, top-1 probability {top1:.3f} at temperature 1")
    return "; ".join(parts)


def quoted(token: str) -> str:
    """A token in a sentence."""
    return f"“{clip(visible(token), LONGEST_TOLD)}”"


def at_temperature(text: SampleText) -> str:
    """`` at temperature 0.5``: that of the mode's weights; empty for a mode without."""
    value = text.mode.options.get("temperature")
    return "" if value is None else f" at temperature {value:g}"


def legend(text: SampleText) -> str:
    """How a strip is to be read, in a sentence."""
    entropy = f"below, the entropy at temperature 1 (full height: {HIGHEST:g} nats and more)"
    if text.feeds_mixtures:
        return f"Block height: weight in the mode's distribution{at_temperature(text)}; {entropy}."
    if text.mode.feeds_tokens:
        return f"One block: the token that was fed; {entropy}."
    return f"Mixtures are recorded of first samples; here the most likely token stands; {entropy}."


def outcome(text: SampleText) -> str:
    """The answer with its verdict."""
    given = text.fields["answer"]
    shown = "no answer" if given is None else visible(given) or "(empty)"
    return f"{shown} {'✓' if text.fields['correct'] else '✗'}"


# As a figure ------------------------------------------------------------------------------------


def draw_mixture(text: SampleText, title: str) -> Figure:
    """The strip of a sample, in as many rows as it needs.

    Args:
        text: the sample.
        title: above it.

    Returns:
        A figure that has a text alternative.
    """
    rows = list(_rows([*cells(text), StripCell("", f"→ {outcome(text)}", 150.0)]))
    height = ROW * len(rows) + HEAD
    with styled():
        figure = new_figure(height / PIXELS, ROW_WIDTH / PIXELS)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, ROW_WIDTH), ylim=(height, 0))
        axes.axis("off")
        axes.text(0, 10, printed(title), weight="bold", va="center", size=TEXT_SIZE)
        axes.text(0, 27, legend(text), color=MUTED, va="center", size=0.85 * TEXT_SIZE)
        for number, row in enumerate(rows):
            for left, cell in row:
                _draw_cell(axes, cell, left, HEAD + ROW * number)
    figure.set_label(f"{title}. {legend(text)} {_most_mixed(text)} The answer: {outcome(text)}.")
    return figure


def _rows(strip: Sequence[StripCell]) -> Iterator[list[tuple[float, StripCell]]]:
    """The cells of each row with their left edges."""
    row, left = [], 0.0
    for cell in strip:
        if row and left + cell.width > ROW_WIDTH:
            yield row
            row, left = [], 0.0
        row.append((left, cell))
        left += cell.width + 1
    yield row


def _draw_cell(axes: Axes, cell: StripCell, left: float, top: float) -> None:
    from matplotlib.patches import Rectangle

    if not cell.blocks:
        axes.text(left + 4, top + STACK / 2, cell.text, va="center", size=TEXT_SIZE)
    for block in cell.blocks:
        place = (left, top + block.top)
        fill = COLOURS[block.rank - 1]
        axes.add_patch(
            Rectangle(place, cell.width, block.height, facecolor=fill, edgecolor="white")
        )
        centre = (left + cell.width / 2, top + block.top + block.height / 2)
        axes.text(
            *centre, block.text, color=INK, ha="center", va="center", size=TEXT_SIZE,
            family="DejaVu Sans Mono",
        )  # fmt: skip
    axes.add_patch(Rectangle((left, top + STACK + 2), cell.width, cell.bar, facecolor=MUTED))


def _most_mixed(text: SampleText) -> str:
    """The positions of highest entropy in words, for those who cannot see them."""
    entropy_T = np.nan_to_num(np.zeros(0) if text.entropy_T is None else text.entropy_T)
    most = np.sort(np.argsort(-entropy_T, kind="stable")[:3]).tolist()
    return " ".join(f"Position {t + 1}: {_told(text, t)}." for t in most)


# The question of the opening view ---------------------------------------------------------------


def find_pair(checkpoint: MeasuredCheckpoint) -> tuple[ChosenSample, ChosenSample] | None:
    """Mixtures and tokens on the question on which they differ most; None without both.

    First samples, because only theirs have mixtures on record. Of the questions whose first samples
    differ in their verdict (of all, where none do) that of the largest difference of the shares
    right; of several the first.
    """
    found = []
    for task in sorted({task for task, _ in checkpoint.cells}):
        keys = soft_and_hard(key for key in checkpoint.cells if key[0] == task)
        found += [] if keys is None else _most_different(checkpoint, *keys)
    return max(found, key=lambda entry: entry[0])[1] if found else None


def _most_different(
    checkpoint: MeasuredCheckpoint, soft_key: Key, hard_key: Key
) -> list[tuple[float, tuple[ChosenSample, ChosenSample]]]:
    """The first samples of that question, behind how different it is; empty without a question."""
    soft, hard = checkpoint.cells[soft_key], checkpoint.cells[hard_key]
    doc_M = np.intersect1d(soft.doc_M, hard.doc_M)
    if not len(doc_M):
        return []
    soft_M, hard_M = (np.searchsorted(cell.doc_R, doc_M) for cell in (soft, hard))
    verdicts_M = soft.correct_R[soft_M] != hard.correct_R[hard_M]
    score_M = np.abs(_shares(soft, doc_M) - _shares(hard, doc_M)) + 2 * verdicts_M
    at = int(score_M.argmax())  # shares differ by 1 at most, so that verdicts come first
    left = ChosenSample(0, 0, checkpoint, soft_key, int(soft_M[at]))
    right = ChosenSample(0, 0, checkpoint, hard_key, int(hard_M[at]))
    return [(float(score_M[at]), (left, right))]


def _shares(cell: MeasuredCell, doc_M: np.ndarray) -> np.ndarray:
    at_M = np.searchsorted(cell.doc_M, doc_M)
    return cell.c_M[at_M] / cell.n_M[at_M]


def _parts(material: Material) -> list[Part]:
    arms = material.arms
    pairs = (find_pair(c) for arm in arms.arms for c in arm.checkpoints)
    pair = next((pair for pair in pairs if pair), None)
    if pair is None:
        return []
    texts = [read_texts(side.run, [side.text_key])[side.text_key] for side in pair]
    if not texts[0].feeds_mixtures:
        return []
    task, _, doc, _ = pair[0].text_key
    every = {(task, int(d)) for d in pair[0].cell.doc_M}
    prompts = read_prompts(arms.runs, every)
    prompt, label = prompts.get((task, doc), ("", ""))
    frame = shared_frame([prompt for prompt, _ in prompts.values()])
    values = {
        "question": clip(question_of(prompt, frame), LONGEST_QUESTION),
        "label": clip(label, LONGEST_QUESTION),
        "strips": [_strip(side, text) for side, text in zip(pair, texts, strict=True)],
        "caption": f"Question {doc} of {task}: of those whose two first samples differ in their verdict"
        " (of all, where none do) the one on which the shares of right samples differ most.",
    }
    return [Own("mixture.html.j2", values)]


def _strip(side: ChosenSample, text: SampleText) -> dict[str, Any]:
    """What the template prints of a sample."""
    at = np.searchsorted(side.cell.doc_M, text.fields["doc_id"])
    return {
        "title": f"{side.checkpoint.method} · {text.mode.replace('_', ' ')}",
        "right": f"{side.cell.c_M[at]} of {side.cell.n_M[at]} samples right",
        "cells": cells(text),
        "legend": legend(text),
        "outcome": outcome(text),
        "correct": text.fields["correct"],
    }


SECTION = Section("thought", "Soft thought", "A soft thought", {"The soft thought": _parts})
