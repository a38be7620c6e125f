"""KL to the base model of every arm: numbers over problems and seeds, and curves by position.

Forward is KL(base‖checkpoint), reverse is KL(checkpoint‖base), both exact over the vocabulary at
temperature 1, nats. Values under three times the noise floor are not told apart from rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from softeval.reports.arms import Arm, Arms
from softeval.reports.drawing import (
    MUTED,
    Looks,
    dots,
    legend,
    looks,
    new_figure,
    profiles,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.kl import DIRECTIONS, PREFIX_SETS, Drift, DriftKey, noise_floor
from softeval.reports.layout import Heading, Paragraph, Part, Section, figure_block
from softeval.reports.left_out import NothingToShow
from softeval.reports.material import Material
from softeval.reports.recorded import mode_order
from softeval.reports.sections.entropy import bin_width
from softeval.reports.tables import Table, TableCell, number
from softeval.statistics.divergence import SequenceScores, print_kl, summarise_kl
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, position_profile

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_MEASURED = Markup(
    "Not measured. <code>softeval diagnose RUN --base BASE_CHECKPOINT</code> replays recorded prefixes"
    " through both models and writes the exact KL beside the run; then report again."
)


@dataclass(frozen=True, eq=False)
class KLScore:
    """KL of an arm on one prefix set, in one direction.

    Attributes:
        name: of the arm.
        task: the task.
        mode: the mode that made the prefixes; "" for reference solutions.
        prefix_set: "base", "own" or "gold".
        direction: "forward" or "reverse".
        per_token: (mean, low, high), nats per token.
        per_sequence: (mean, low, high), nats per sequence.
        floor: noise floor, nats per token; None where it was not measured.
        sequences: sequences replayed, over all seeds.
        profile: by position.
        several_modes: this prefix set has CoTs of several modes, so that the mode must be named.
    """

    name: str
    task: str
    mode: str
    prefix_set: str
    direction: str
    per_token: tuple[float, float, float]
    per_sequence: tuple[float, float, float]
    floor: float | None
    sequences: int
    profile: Profile
    several_modes: bool = False

    @property
    def text(self) -> str:
        """Nats per token as printed."""
        return print_kl(self.per_token[0], self.floor or 0.0)

    @property
    def kind(self) -> str:
        """Direction and prefixes, e.g. ``forward on base prefixes``."""
        mode = f", {self.mode.replace('_', ' ')}" if self.several_modes else ""
        return f"{self.direction} on {self.prefix_set} prefixes{mode}"


def find_kl(arms: Arms) -> list[KLScore]:
    """One entry an arm, task, mode, prefix set and direction; empty without `diagnose`."""
    keys = {key for arm in arms.arms for c in arm.checkpoints for key in c.drift}
    ordered = sorted(keys, key=lambda key: _order(arms, key))
    modes = {name: {mode for _, mode, held in keys if held == name} for _, _, name in keys}
    return [
        replace(score, several_modes=len(modes[score.prefix_set]) > 1)
        for key in ordered
        for direction in DIRECTIONS
        for arm in arms.arms
        if (score := _score(arms, arm, key, direction)) is not None
    ]


def _order(arms: Arms, key: DriftKey) -> tuple[Any, ...]:
    task, mode, prefix_set = key
    rank = PREFIX_SETS.index(prefix_set) if prefix_set in PREFIX_SETS else len(PREFIX_SETS)
    return task, rank, *mode_order(arms.mode(mode))


def _score(arms: Arms, arm: Arm, key: DriftKey, direction: str) -> KLScore | None:
    """None where it was not measured, or where no problem was measured for every seed."""
    drifts = [c.drift[key] for c in arm.checkpoints if key in c.drift]
    if not drifts or not reduce(np.intersect1d, [drift.doc_M for drift in drifts]).size:
        return None
    doc_M = np.unique(np.concatenate([drift.doc_M for drift in drifts]))
    scores = [_scores(drift, doc_M, direction) for drift in drifts]
    if not np.isfinite([s.per_token for s in scores]).all(axis=0).any():
        raise NothingToShow(f"the KL of {arms.name(arm)} on {key[0]} is not finite")
    summary = summarise_kl(scores)
    floors = [
        floor
        for c in arm.checkpoints
        for run in c.runs
        if (floor := noise_floor(run.run)) is not None
    ]
    task, mode, prefix_set = key
    token, sequence = summary.per_token.interval, summary.per_sequence.interval
    return KLScore(
        name=arms.name(arm),
        task=task,
        mode=mode,
        prefix_set=prefix_set,
        direction=direction,
        per_token=(token.mean, token.low, token.high),
        per_sequence=(sequence.mean, sequence.low, sequence.high),
        floor=max(floors) if floors else None,
        sequences=sum(drift.sequences for drift in drifts),
        profile=_profile(drifts, doc_M, direction),
    )


def _scores(drift: Drift, doc_M: np.ndarray, direction: str) -> SequenceScores:
    rows = np.searchsorted(doc_M, drift.doc_M)
    per_token, per_sequence = np.full((2, len(doc_M)), np.nan)
    per_token[rows] = drift.per_token[direction]
    per_sequence[rows] = drift.per_sequence[direction]
    return SequenceScores(per_token, per_sequence)


def _profile(drifts: Sequence[Drift], doc_M: np.ndarray, direction: str) -> Profile:
    longest = max(drift.count_MT.shape[1] for drift in drifts)
    laid_out = []
    for drift in drifts:
        rows, length = np.searchsorted(doc_M, drift.doc_M), drift.count_MT.shape[1]
        total, count = np.zeros((len(doc_M), longest)), np.zeros((len(doc_M), longest), np.int64)
        total[rows, :length] = drift.sum_MT[direction]
        count[rows, :length] = drift.count_MT
        sums = PositionSums(total, count, count[:, 0], drift.sequences, length=longest)
        laid_out.append(sums.binned(bin_width(longest)))
    return position_profile(laid_out)


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """KL of each task."""
    scores = find_kl(material.arms)
    for index, task in enumerate(dict.fromkeys(score.task for score in scores)):
        mine = [score for score in scores if score.task == task]
        caption = (
            "Exact KL per token with 95 % intervals over problems and seeds; right: the first kind"
            " by position. Dotted: noise floor, the base model against itself at another batch"
            " size. Forward is KL(base‖checkpoint), reverse KL(checkpoint‖base)."
        )
        yield Heading(task)
        yield figure_block(
            f"kl{index}",
            f"KL to the base model on {task}",
            [f"{s.name} {s.text} nats per token, {s.kind}" for s in mine],
            partial(draw_kl, mine),
            caption,
        )
        yield _table(mine, f"{task}: KL")
    if not scores:
        yield Paragraph(NOT_MEASURED)


def _table(scores: Sequence[KLScore], label: str) -> Table:
    names = list(dict.fromkeys(s.name for s in scores))
    mine = {(s.name, s.kind): s for s in scores}
    rows = [
        (TableCell(kind), *(_cell(mine.get((name, kind))) for name in names))
        for kind in dict.fromkeys(s.kind for s in scores)
    ]
    floors = [s.floor for s in scores if s.floor is not None]
    floor = f"noise floor {number(max(floors), 2)}" if floors else "noise floor not measured"
    caption = (
        f"Nats per token (95 % interval), {floor}; below, nats per sequence, which is a sequence KL"
        " only in reverse on own CoTs of hard sampling."
    )
    return Table(caption, ("KL", *names), tuple(rows), label)


def _cell(s: KLScore | None) -> TableCell:
    if s is None:
        return TableCell("–", detail="not measured")
    _, low, high = s.per_token
    total, total_low, total_high = s.per_sequence
    return TableCell(
        s.text,
        f"[{number(low)}, {number(high)}]\n{number(total)} [{number(total_low)},"
        f" {number(total_high)}] a sequence",
        detail=f"{s.sequences} sequences",
    )


# Drawing -------------------------------------------------------------------------------------


def draw_kl(scores: Sequence[KLScore]) -> Figure:
    """Left: KL per token of each arm and kind. Right: the first kind by position."""
    with styled():
        kinds = list(dict.fromkeys(score.kind for score in scores))
        named = looks([score.name for score in scores])
        figure = new_figure(max(2.8, 0.9 + 0.3 * len(kinds)))
        left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
        dots(left, [_dot(score, kinds, list(named)) for score in scores], named, orient="y")
        left.set_yticks(range(len(kinds)), kinds)
        left.set_ylim(len(kinds) - 0.5, -0.5)
        left.set_xlabel("KL, nats per token")
        left.locator_params(axis="x", nbins=5)
        vertical_grid(left)
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


def _dot(score: KLScore, kinds: list[str], names: list[str]) -> pd.DataFrame:
    """The arms stand side by side within the row of a kind."""
    place = 0.5 * ((names.index(score.name) + 0.5) / len(names) - 0.5)
    return spans(score.name, kinds.index(score.kind) + place, *score.per_token)


def _draw_positions(axes: Axes, scores: Sequence[KLScore], named: Looks) -> None:
    axes.set_title(scores[0].kind, fontsize=9, fontweight="normal")
    drawn = [(s.name, _middles(s.profile), s.profile) for s in scores]
    profiles(axes, drawn, named)
    axes.set_xlabel("position")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)


def _middles(profile: Profile) -> np.ndarray:
    """Middle of each bin."""
    return profile.start + (np.diff(profile.start[:2]).sum() or 1) / 2 + 0.5


SECTION = Section("kl", "KL", "KL to the base model", {"KL": _parts})
