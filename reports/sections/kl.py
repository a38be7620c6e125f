"""KL to the base model of every arm: numbers over problems and seeds, and curves by position.

Forward is KL(base‖checkpoint), reverse is KL(checkpoint‖base), both exact over the vocabulary at
temperature 1, nats. Values under three times the noise floor are not told apart from rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from softeval.modes import mode_order
from softeval.records import PREFIX_SETS
from softeval.reports.drawing import (
    MUTED,
    SMALLEST,
    Looks,
    Span,
    dots,
    legend,
    looks,
    panel_row,
    profiles,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.layout import Details, Heading, Paragraph, Part, Section, figure_block
from softeval.reports.left_out import NothingToShow
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.kl import DIRECTIONS, KLKey, KLSums, noise_floor
from softeval.reports.measured.scores import stacked
from softeval.reports.tables import Table, TableCell, number
from softeval.runs.run import REFERENCE
from softeval.statistics.crossed import crossed_mean
from softeval.statistics.interval import Interval
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, bin_width, position_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_MEASURED = Markup(
    "Not measured. <code>softeval diagnose RUN --base BASE_CHECKPOINT</code> replays recorded prefixes"
    " through both models and writes the exact KL beside the run; then report again."
)


MAIN_ROWS = {"forward": "base", "reverse": "own"}
"""The direction that is shown first on each set of prefixes."""
CAPTION = (
    "Exact KL per token with 95 % intervals over problems and seeds; by position on base prefixes."
    " Forward is KL(base‖checkpoint) on CoTs of the base model, what was forgotten; reverse is"
    " KL(checkpoint‖base) on the checkpoint's own CoTs, under its mode of training where these were"
    " replayed. Dotted: noise floor, the base model against itself at another batch size, above which"
    " the axes are logarithmic."
)
LINEAR = 1e-4
"""Nats up to which the axes are linear, where no noise floor was measured."""
FLOOR_FACTOR = 3.0
"""A value under this multiple of the noise floor is not told apart from it."""


@dataclass(frozen=True, eq=False)
class KLScore:
    """KL of an arm on one prefix set, in one direction.

    On greedy, fuzzy or soft trajectories the per-sequence number is no sequence KL but a sum of step
    KLs along that trajectory.

    Attributes:
        name: of the arm.
        key: (task, mode, prefix set); the mode made the prefixes, "" for reference solutions.
        direction: "forward" or "reverse".
        per_token: nats per token.
        per_sequence: nats per sequence.
        floor: noise floor, nats per token; None where it was not measured.
        sequences: sequences replayed, over all seeds.
        profile: by position.
        several_modes: this prefix set has CoTs of several modes, so that the mode must be named.
        trained: the method of the arm, which is the family of the modes that it was trained with.
    """

    name: str
    key: KLKey
    direction: str
    per_token: Interval
    per_sequence: Interval
    floor: float | None
    sequences: int
    profile: Profile
    several_modes: bool
    trained: str = ""

    @property
    def text(self) -> str:
        """Nats per token as printed, or that they are too near the noise floor."""
        near = self.per_token.mean < FLOOR_FACTOR * (self.floor or 0.0)
        return f"< {FLOOR_FACTOR:.0f} × floor" if near else number(self.per_token.mean)

    @property
    def kind(self) -> str:
        """Direction and prefixes, e.g. ``forward on base prefixes``."""
        _, mode, prefix_set = self.key
        made_by = f", {mode.replace('_', ' ')}" if self.several_modes else ""
        return f"{self.direction} on {prefix_set} prefixes{made_by}"


def find_kl(arms: Arms) -> list[KLScore]:
    """One entry an arm, task, mode, prefix set and direction; empty without `diagnose`."""
    keys = {key for arm in arms.arms for c in arm.checkpoints for key in c.kl}
    modes = {name: {mode for _, mode, held in keys if held == name} for _, _, name in keys}
    return [
        score
        for key in sorted(keys, key=lambda key: _order(arms, key))
        for direction in DIRECTIONS
        for arm in arms.arms
        for score in _scores(arms, arm, key, direction, len(modes[key[2]]) > 1)
    ]


def _order(arms: Arms, key: KLKey) -> tuple[Any, ...]:
    task, mode, prefix_set = key
    rank = PREFIX_SETS.index(prefix_set) if prefix_set in PREFIX_SETS else len(PREFIX_SETS)
    return task, rank, *mode_order(arms.mode(mode))


def _scores(
    arms: Arms, arm: Arm, key: KLKey, direction: str, several_modes: bool
) -> Iterator[KLScore]:
    """One score; none where it was not measured, or where no problem was measured for every seed."""
    found = [c.kl[key] for c in arm.checkpoints if key in c.kl]
    if not found or not reduce(np.intersect1d, [sums.doc_M for sums in found]).size:
        return
    doc_M, token_SM = stacked([(sums.doc_M, sums.per_token[direction]) for sums in found])
    _, sequence_SM = stacked([(sums.doc_M, sums.per_sequence[direction]) for sums in found])
    if not np.isfinite(token_SM).all(axis=0).any():
        raise NothingToShow(f"the KL of {arms.name(arm)} on {key[0]} is not finite")
    floors = (noise_floor(run) for c in arm.checkpoints for run in c.runs)
    yield KLScore(
        name=arms.name(arm),
        key=key,
        direction=direction,
        per_token=crossed_mean(token_SM, bounded=False).interval,
        per_sequence=crossed_mean(sequence_SM, bounded=False).interval,
        floor=_highest(floors),
        sequences=sum(sums.sequences for sums in found),
        profile=_profile(found, doc_M, direction),
        several_modes=several_modes,
        trained=arm.method,
    )


def _highest(floors: Iterable[float | None]) -> float | None:
    return max((floor for floor in floors if floor is not None), default=None)


def _profile(found: Sequence[KLSums], doc_M: np.ndarray, direction: str) -> Profile:
    longest = max(sums.count_MT.shape[1] for sums in found)
    laid_out = []
    for sums in found:
        rows, length = np.searchsorted(doc_M, sums.doc_M), sums.count_MT.shape[1]
        total, count = np.zeros((len(doc_M), longest)), np.zeros((len(doc_M), longest), np.int64)
        total[rows, :length] = sums.sum_MT[direction]
        count[rows, :length] = sums.count_MT
        whole = PositionSums(total, count, count[:, 0], sums.sequences, length=longest)
        laid_out.append(whole.binned(bin_width(longest)))
    return position_profile(laid_out)


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """KL of each task on base and on own prefixes; all else on demand."""
    scores = find_kl(material.arms)
    tasks = list(dict.fromkeys(score.key[0] for score in scores))
    for index, task in enumerate(tasks):
        every = [score for score in scores if score.key[0] == task]
        mine = main_rows(material.arms, every)
        if len(tasks) > 1:
            yield Heading(task)
        yield figure_block(
            f"kl{index}",
            f"KL to the base model on {task}",
            [f"{s.name} {s.text} nats per token, {s.kind}" for s in mine],
            partial(draw_kl, mine),
            CAPTION,
        )
        yield _table(mine, f"{task}: KL")
        if len({s.kind for s in every}) > len({s.kind for s in mine}):
            whole = _table(every, f"{task}: KL on every kind of prefix")
            yield Details("Every direction and kind of prefix", (whole,))
    if not scores:
        yield Paragraph(NOT_MEASURED)


def main_rows(arms: Arms, scores: Sequence[KLScore]) -> list[KLScore]:
    """Forward KL on base prefixes and reverse KL on own ones, a score an arm in each.

    Of several modes on own prefixes: one that the arm was trained with, else of hard inference.
    """

    def fitness(score: KLScore) -> tuple[bool, bool, bool]:
        mode = arms.mode(score.key[1])
        return mode.is_greedy, mode.family != score.trained, mode.family != REFERENCE

    kept = []
    for direction, prefixes in MAIN_ROWS.items():
        mine = [s for s in scores if (s.direction, s.key[2]) == (direction, prefixes)]
        for name in dict.fromkeys(s.name for s in mine):
            best = min((s for s in mine if s.name == name), key=fitness)
            kept.append(replace(best, several_modes=False))
    return kept or list(scores)


def _table(scores: Sequence[KLScore], label: str) -> Table:
    names = list(dict.fromkeys(s.name for s in scores))
    mine = {(s.name, s.kind): s for s in scores}
    rows = [
        (TableCell(kind), *(_cell(mine.get((name, kind))) for name in names))
        for kind in dict.fromkeys(s.kind for s in scores)
    ]
    highest = _highest(s.floor for s in scores)
    floor = f"noise floor {'not measured' if highest is None else number(highest, 2)}"
    caption = (
        f"Nats per token (95 % interval), {floor}; below, nats per sequence, which is a sequence KL"
        " only in reverse on own CoTs of hard sampling."
    )
    return Table(caption, ("KL", *names), tuple(rows), label)


def _cell(s: KLScore | None) -> TableCell:
    if s is None:
        return TableCell("–", detail="not measured")
    token, total, made_by = s.per_token, s.per_sequence, s.key[1].replace("_", " ")
    return TableCell(
        s.text,
        f"[{number(token.low)}, {number(token.high)}]\n{number(total.mean)}"
        f" [{number(total.low)}, {number(total.high)}] a sequence",
        detail=f"{s.sequences} sequences{f', {made_by}' if made_by else ''}",
    )


# Drawing -------------------------------------------------------------------------------------


def draw_kl(scores: Sequence[KLScore]) -> Figure:
    """Left: KL per token of each arm and kind. Right: the first kind by position. Both log."""
    with styled():
        kinds = list(dict.fromkeys(score.kind for score in scores))
        named = looks([score.name for score in scores])
        figure, (left, right) = panel_row(2, max(2.8, 0.9 + 0.3 * len(kinds)))
        floor = _highest(score.floor for score in scores)
        dots(left, [_dot(score, kinds, list(named)) for score in scores], named, orient="y")
        left.set_yticks(range(len(kinds)), [kind.replace(" on ", "\non ") for kind in kinds])
        left.set_ylim(len(kinds) - 0.5, -0.5)
        left.set_xlabel("KL, nats per token")
        left.set_xscale("symlog", linthresh=floor or LINEAR)
        left.set_xlim(left=0)
        left.xaxis.set_major_formatter("{x:g}")
        vertical_grid(left)
        _draw_positions(right, [score for score in scores if score.kind == kinds[0]], named, floor)
        if floor is not None:
            left.axvline(floor, color=MUTED, lw=1, ls=":")
            right.axhline(floor, color=MUTED, lw=1, ls=":")
            right.annotate(
                "noise floor", (1, floor), (0, 2), ("axes fraction", "data"),
                "offset points", ha="right", va="bottom", fontsize=SMALLEST, color=MUTED,
            )  # fmt: skip
        legend(figure, named)
        return figure


def _dot(score: KLScore, kinds: list[str], names: list[str]) -> Span:
    """The arms stand side by side within the row of a kind."""
    place = 0.5 * ((names.index(score.name) + 0.5) / len(names) - 0.5)
    mean, low, high = score.per_token.mean, score.per_token.low, score.per_token.high
    return spans(score.name, kinds.index(score.kind) + place, mean, low, high)


def _draw_positions(
    axes: Axes, scores: Sequence[KLScore], named: Looks, floor: float | None
) -> None:
    axes.set_title(scores[0].kind, fontsize=9, fontweight="normal")
    halves = [(np.diff(s.profile.start[:2]).sum() or 1) / 2 + 0.5 for s in scores]  # of a bin
    drawn = [(s.name, s.profile.start + h, s.profile) for s, h in zip(scores, halves, strict=True)]
    profiles(axes, drawn, named)
    axes.set_xlabel("position")
    axes.set_ylabel("nats")
    axes.set_yscale("symlog", linthresh=floor or LINEAR)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")


SECTION = Section("kl", "KL", "KL to the base model", {"KL": _parts})
