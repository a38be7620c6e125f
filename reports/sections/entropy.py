"""Entropy by position of every arm, task and mode: profiles ready to draw and to tabulate.

The mean at position t is over the CoTs that are still running at t, a set that changes with t; so
each profile comes with its risk set, and beside it stand the fixed cohort, the length terciles,
relative progress and the last positions. Entropies are of the distribution at temperature 1, nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.drawing import (
    MUTED,
    Look,
    Looks,
    legend,
    looks,
    new_figure,
    profiles,
    styled,
)
from softeval.reports.layout import (
    Details,
    FigureBlock,
    Heading,
    Paragraph,
    Part,
    Section,
    figure_block,
)
from softeval.reports.left_out import NothingToShow
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.cells import Key
from softeval.reports.measured.positions import END_POSITIONS, PROGRESS_BINS, EntropySums
from softeval.reports.measured.recorded import RecordedMode
from softeval.reports.tables import (
    Table,
    TableCell,
    nats,
    not_negative,
    number,
    points,
    simple_table,
)
from softeval.statistics.crossed import CrossedMean, crossed_mean
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, position_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 64
"""Points of a line, at most: positions are put together in bins of 1, 2, 4, 8, … of them."""

VIEWS = {
    "all": "All chains of thought",
    "cohort": "Fixed cohort",
    "terciles": "Length terciles",
    "progress": "Relative progress",
    "end": "Last positions",
}
CAPTIONS = {
    "all": "Mean entropy at each position over the CoTs still running there. 95 % intervals are for"
    " new problems under these same checkpoints; they do not cover new training seeds, whose spread"
    " the thin lines show (one a seed); pale where fewer than 10 % of CoTs or 30"
    " problems are left. Strips: share of CoTs still running. Who is still running changes along"
    " the axis, so a trend may be one of composition: see the fixed cohort.",
    "cohort": "Only CoTs of at least {cohort} tokens, so that up to the dotted line every position"
    " averages the same CoTs.",
    "terciles": "CoTs of {arm} split in three by length.",
    "progress": "Each CoT cut in twenty equal parts.",
    "end": "The last 64 positions, aligned at the end of the CoT; strips: share of CoTs that long.",
}
TERCILE_LOOKS = {
    "short": Look("vermillion", (1, 1.5), "s"),
    "middle": Look("green", (5, 2), "D"),
    "long": Look("blue", "", "o"),
}
X_LABELS = {
    "progress": "share of the CoT, %",
    "end": "positions before the end",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """One line of an entropy panel."""

    name: str
    profile: Profile


@dataclass(frozen=True, eq=False)
class EntropyFigure:
    """One view of a task: a panel a mode, a line an arm.

    Attributes:
        name: of the group of arms.
        task: the task.
        view: one of `VIEWS`.
        panels: by mode, its lines.
        cohort: shortest CoT of the fixed cohort, tokens.
        width: positions in a bin.
        split: arms whose CoTs the view of terciles splits, one or more over the panels.
        absent: lines, or parts of them, that cannot be drawn, and why.
    """

    name: str
    task: str
    view: str
    panels: dict[str, tuple[Trace, ...]]
    cohort: int
    width: int
    split: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EntropySummary:
    """Entropy of an arm on a task under a mode, as numbers.

    Attributes:
        name: of the arm.
        task: the task.
        mode: the mode.
        token_weighted: mean over all CoT tokens, nats.
        sequence: mean over problems of the mean over CoTs of each one's token mean, with interval.
        mode_entropy: mean over tokens at the mode's own temperature.
        exp: exp of the sequence mean: the number of equally likely tokens it amounts to.
        truncated: share of CoTs that ended at the cap: censored, not finished.
        mean_length: CoT tokens.
    """

    name: str
    task: str
    mode: str
    token_weighted: float
    sequence: CrossedMean
    mode_entropy: float
    truncated: float
    mean_length: float

    @property
    def exp(self) -> float:
        """How many equally likely tokens the mean entropy amounts to."""
        return float(np.exp(self.sequence.mean))


def find_entropy(arms: Arms, views: Sequence[str] = tuple(VIEWS)) -> list[EntropyFigure]:
    """Every entropy figure of a report."""
    figures = []
    for (family, dataset), group in arms.groups.items():
        name = f"{family}, trained on {dataset}" if dataset else family
        for task in arms.tasks:
            sums = [
                s for arm in group for key in arms.keys if key[0] == task for s in _sums(arm, key)
            ]
            if not sums:
                continue
            width, cohort = bin_width(max(one.longest for one in sums)), sums[0].groups.cohort
            for view in views:
                every = {
                    mode: _traces(arms, group, (task, mode), view, width) for mode in arms.modes
                }
                absent = [
                    f"{why} under {mode.replace('_', ' ')}"
                    for mode, traces in every.items()
                    for why in _not_drawn(arms, group, (task, mode), traces)
                ]
                drawn = {mode: tuple(filter(_drawn, traces)) for mode, traces in every.items()}
                panels = {mode: traces for mode, traces in drawn.items() if traces}
                split = dict.fromkeys(arms.name(_split_arm(group, (task, mode))) for mode in panels)
                figures.append(
                    EntropyFigure(
                        name, task, view, panels, cohort, width, tuple(split), tuple(absent)
                    )
                )
    return figures


def _drawn(trace: Trace) -> bool:
    """Whether a line has any point."""
    return bool(np.isfinite(trace.profile.mean).any())


def _not_drawn(
    arms: Arms, group: Sequence[Arm], key: Key, traces: Sequence[Trace]
) -> Iterator[str]:
    """Why lines, or parts of them, cannot be drawn."""
    for trace in traces:
        if not (trace.profile.at_risk > 0).any():
            yield f"no chain of thought of {trace.name} is long enough"
    for arm in group:
        unfit = sum(one.unfit for one in _sums(arm, key))
        if unfit:
            yield f"{unfit:,} entropies of {arms.name(arm)} are not finite"


def _split_arm(group: Sequence[Arm], key: Key) -> Arm:
    """The group's last arm with positions: the one whose CoTs are split in terciles."""
    return [arm for arm in group if _sums(arm, key)][-1]


def bin_width(longest: int) -> int:
    """Smallest power of two that cuts so many positions into `POINTS` bins or fewer."""
    width = 1
    while width * POINTS < longest:
        width *= 2
    return width


def summaries(arms: Arms) -> list[EntropySummary]:
    """One row an arm, task and mode that has positions of some problem for every seed."""
    return [
        summary
        for arm in arms.arms
        for key in arms.keys
        if _sums(arm, key) and (summary := _summary(arms.name(arm), key, arm)) is not None
    ]


def _sums(arm: Arm, key: Key) -> list[EntropySums]:
    return [c.positions[key] for c in arm.checkpoints if key in c.positions]


def _traces(arms: Arms, group: Sequence[Arm], key: Key, view: str, width: int) -> tuple[Trace, ...]:
    """One line an arm; in the view of terciles three, of the group's last arm only."""
    present = [arm for arm in group if _sums(arm, key)]
    if view == "terciles":
        present = [_split_arm(group, key)] if present else []
        parts = [("short", "short"), ("middle", "middle"), ("long", "long")]
        return tuple(
            Trace(label, _profile(_sums(arm, key), part, width))
            for arm in present
            for label, part in parts
        )
    return tuple(Trace(arms.name(arm), _profile(_sums(arm, key), view, width)) for arm in present)


def _profile(sums: Sequence[EntropySums], view: str, width: int) -> Profile:
    doc_M = np.unique(np.concatenate([one.doc_M for one in sums]))
    longest = max(one.longest for one in sums)
    laid_out: list[PositionSums] = [one.view(view, doc_M, longest) for one in sums]
    if view not in ("progress", "end"):
        laid_out = [one.binned(width) for one in laid_out]
    return position_profile(laid_out)


def _summary(name: str, key: Key, arm: Arm) -> EntropySummary | None:
    sums = _sums(arm, key)
    cells = [c.cells[key] for c in arm.checkpoints if key in c.positions]
    doc_M = np.unique(np.concatenate([one.doc_M for one in sums]))
    x_SM = np.full((len(sums), len(doc_M)), np.nan)
    for row, one in enumerate(sums):
        x_SM[row, np.searchsorted(doc_M, one.doc_M)] = one.sequence_mean_M
    if np.isnan(x_SM).any(axis=0).all():
        return None
    tokens = sum(one.tokens for one in sums)
    return EntropySummary(
        name=name,
        task=key[0],
        mode=key[1],
        token_weighted=sum(one.token_weighted * one.tokens for one in sums) / max(tokens, 1),
        sequence=crossed_mean(x_SM, bounded=False),
        mode_entropy=sum(one.mode_sum for one in sums) / max(tokens, 1),
        truncated=float(np.mean([cell.truncated_R.mean() for cell in cells])),
        mean_length=float(np.mean([cell.length_R.mean() for cell in cells])),
    )


# Layout --------------------------------------------------------------------------------------


def _figures(material: Material) -> Iterator[Part]:
    """A figure a group and task; the other views of it on demand."""
    found = find_entropy(material.arms)
    groups = groupby(found, key=lambda figure: f"{figure.task} · {figure.name}")
    for index, (heading, group) in enumerate(groups):
        main, *others = group
        yield Heading(heading)
        yield entropy_block(main, index)
        for other in others:
            yield Details(VIEWS[other.view], (entropy_block(other, index),), "view")
    if not found:
        yield Paragraph(
            "These runs hold no per-position records (positions.parquet is missing or empty), so"
            " there is no entropy to show. A run that is not finished writes them when the same"
            " command has finished it."
        )


def _tables(material: Material) -> list[Table]:
    return entropy_tables(summaries(material.arms))


def entropy_block(entropy: EntropyFigure, index: int = 0) -> FigureBlock:
    title = f"Entropy on {entropy.task}: {VIEWS[entropy.view].lower()}"
    told = []
    for mode, traces in entropy.panels.items():
        for trace in traces:
            first, last = _ends(trace.profile.mean, trace.profile.grey)
            told.append(f"{mode.replace('_', ' ')} {trace.name} from {first} to {last} nats")
    caption = CAPTIONS[entropy.view].format(cohort=entropy.cohort, arm=" or ".join(entropy.split))
    if entropy.absent and entropy.panels:
        caption += f" Not drawn: {'; '.join(entropy.absent)}."
    table = _numbers(entropy, f"{title}: numbers") if entropy.panels else None
    name = f"entropy{index}{entropy.view}"
    return figure_block(name, title, told, partial(draw_entropy, entropy), caption, table)


def _ends(mean_T: np.ndarray, grey_T: np.ndarray) -> tuple[str, str]:
    kept = mean_T[~grey_T & ~np.isnan(mean_T)]
    return (number(kept[0], 2), number(kept[-1], 2)) if len(kept) else ("–", "–")


def _numbers(entropy: EntropyFigure, label: str) -> Table:
    """At most sixteen positions of every line."""
    lines = [(m, t) for m, traces in entropy.panels.items() for t in traces]
    longest = max((t.profile for _, t in lines), key=lambda profile: len(profile.start))
    shown = np.unique(np.linspace(0, len(longest.start) - 1, 16).round().astype(int))
    starts = [str(longest.start[at]) for at in shown]
    rows = [
        [f"{trace.name}, {mode.replace('_', ' ')}", *_at(trace.profile.mean, shown)]
        for mode, trace in lines
    ]
    return simple_table("Entropy in nats by position.", ["", *starts], rows, label)


def _at(mean_T: np.ndarray, shown: np.ndarray) -> list[str]:
    return [number(float(mean_T[at]) if at < len(mean_T) else float("nan"), 2) for at in shown]


def entropy_tables(summaries: Sequence[EntropySummary]) -> list[Table]:
    """Rows arms, columns modes; one table a task."""
    tables = []
    for task in dict.fromkeys(s.task for s in summaries):
        mine = {(s.name, s.mode): s for s in summaries if s.task == task}
        modes = list(dict.fromkeys(mode for _, mode in mine))
        rows = [
            (TableCell(name), *(_entropy_cell(mine.get((name, mode))) for mode in modes))
            for name in dict.fromkeys(name for name, _ in mine)
        ]
        caption = (
            f"{task}: mean entropy of a CoT at temperature 1, nats, with its 95 % interval over"
            " problems; below, weighted by tokens."
        )
        columns = ("", *(mode.replace("_", " ") for mode in modes))
        tables.append(Table(caption, columns, tuple(rows), "Mean entropies"))
    return tables


def _entropy_cell(s: EntropySummary | None) -> TableCell:
    if s is None:
        return TableCell("–", detail="not evaluated")
    interval = s.sequence.interval
    return TableCell(
        nats(interval.mean),
        f"{not_negative(interval.low, interval.high)}\n{nats(s.token_weighted)} by token",
        detail=f"at the mode's temperature {number(s.mode_entropy, 2)}; exp {number(s.exp)};"
        f" {s.mean_length:.0f} CoT tokens, {points(s.truncated)} % truncated",
    )


# Drawing -------------------------------------------------------------------------------------


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


def _looks(entropy: EntropyFigure) -> Looks:
    if entropy.view == "terciles":
        return TERCILE_LOOKS
    return looks([trace.name for traces in entropy.panels.values() for trace in traces])


def _draw_panel(
    panel: Axes, strip: Axes | None, mode: str, entropy: EntropyFigure, named: Looks
) -> None:
    panel.set_title(mode.replace("_", " "))
    drawn = [(t.name, _x(entropy, t.profile), t.profile) for t in entropy.panels[mode]]
    profiles(panel, drawn, named)
    if strip is not None:
        for name, x, profile in drawn:
            look = named[name]
            strip.plot(x, profile.at_risk, color=look.colour, ls=look.line, lw=1)
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


def _share_y(rows: np.ndarray) -> None:
    """One y range over all panels, from 0; the rare positions do not stretch it."""
    highest = max(axis.dataLim.y1 for axis in rows.ravel() if axis.axison)
    for axis in rows.ravel():
        axis.set_ylim(0, highest * 1.04)
    for axis in rows[:, 1:].ravel():
        axis.tick_params(labelleft=False)


SECTION = Section(
    "entropy",
    "Entropy",
    "Entropy along the chain of thought",
    {"Entropy": _figures, "Mean entropy": _tables},
)
