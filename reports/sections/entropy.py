"""Entropy by position of every arm, task and mode: profiles ready to draw and to tabulate.

The mean at position t is over the CoTs that are still running at t, a set that changes with t; so
each profile comes with its risk set, and beside it stand the fixed cohort, the length terciles,
relative progress and the last positions. Entropies are of the distribution at temperature 1, nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from softeval.reports.drawing import (
    MUTED,
    SMALLEST,
    WIDTH,
    Look,
    Looks,
    a_row,
    label_lowest,
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
from softeval.reports.measured.scores import entropy_scores, shared
from softeval.reports.tables import Table, nats, number, simple_table
from softeval.runs.run import RecordedMode
from softeval.statistics.contrast import compare_methods
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, bin_width, position_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 3
MOST_STRETCH = 4
"""Panels share their x axis up to this ratio of the longest chain of thought to the shortest."""

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
    "short": Look("faint", (1, 1.5), "s"),
    "middle": Look("muted", (5, 2), "D"),
    "long": Look("ink", "", "o"),
}
Means = tuple[np.ndarray, np.ndarray]  # (doc_M, x_SM)
X_LABELS = {"progress": "share of the CoT, %", "end": "positions before the end"}


@dataclass(frozen=True, eq=False)
class EntropyFigure:
    """One view of a task: a panel a mode, a line an arm.

    Attributes:
        name: of the group of arms.
        task: the task.
        view: one of `VIEWS`.
        panels: by mode, its lines by name.
        cohort: shortest CoT of the fixed cohort, tokens.
        width: positions in a bin.
        split: arms whose CoTs the view of terciles splits, one or more over the panels.
        absent: lines, or parts of them, that cannot be drawn, and why.
    """

    name: str
    task: str
    view: str
    panels: dict[RecordedMode, dict[str, Profile]]
    cohort: int
    width: int
    split: tuple[str, ...]
    absent: tuple[str, ...]

    def of(self, greedy: bool) -> EntropyFigure:
        """Its greedy modes only, or its sampled ones."""
        panels = {mode: lines for mode, lines in self.panels.items() if mode.is_greedy == greedy}
        return replace(self, panels=panels)

    @property
    def lines(self) -> list[tuple[str, RecordedMode, Profile]]:
        """(name, mode, profile) of every line."""
        return [(n, mode, line) for mode, panel in self.panels.items() for n, line in panel.items()]


def find_entropy(arms: Arms, views: Sequence[str] = tuple(VIEWS)) -> list[EntropyFigure]:
    """Every entropy figure of a report."""
    return [
        _figure(arms, name, group, task, view)
        for name, group in arms.named_groups
        for task in arms.tasks
        if any(_sums(arm, key) for arm in group for key in arms.keys if key[0] == task)
        for view in views
    ]


def _figure(arms: Arms, name: str, group: Sequence[Arm], task: str, view: str) -> EntropyFigure:
    """One view of a group and task that has positions."""
    every = [s for arm in group for mode in arms.modes for s in _sums(arm, (task, mode))]
    width = bin_width(max(one.longest for one in every))
    panels, absent, split = {}, [], []
    for mode in arms.modes:
        having = [arm for arm in group if _sums(arm, (task, mode))]
        found = _lines(arms, having, (task, mode), view, width)
        reasons = _not_drawn(arms, having, (task, mode), found)
        absent += [f"{why} under {mode.replace('_', ' ')}" for why in reasons]
        drawn = {n: line for n, line in found.items() if np.isfinite(line.mean).any()}
        if drawn:
            panels[mode] = drawn
            split.append(arms.name(having[-1]))
    return EntropyFigure(
        name=name,
        task=task,
        view=view,
        panels=panels,
        cohort=every[0].groups.cohort,
        width=width,
        split=tuple(dict.fromkeys(split)),
        absent=tuple(absent),
    )


def _not_drawn(
    arms: Arms, group: Sequence[Arm], key: Key, found: Mapping[str, Profile]
) -> Iterator[str]:
    """Why lines, or parts of them, cannot be drawn."""
    for name, profile in found.items():
        if not (profile.at_risk > 0).any():
            yield f"no chain of thought of {name} is long enough"
    for arm in group:
        unfit = sum(one.unfit for one in _sums(arm, key))
        if unfit:
            yield f"{unfit:,} entropies of {arms.name(arm)} are not finite"


def _sums(arm: Arm, key: Key) -> list[EntropySums]:
    return [c.positions[key] for c in arm.checkpoints if key in c.positions]


def _lines(arms: Arms, group: Sequence[Arm], key: Key, view: str, width: int) -> dict[str, Profile]:
    """One line an arm; in the view of terciles three, of the group's last arm only."""
    if view == "terciles":
        sums = [_sums(arm, key) for arm in group[-1:]]
        return {part: _profile(one, part, width) for one in sums for part in TERCILE_LOOKS}
    return {arms.name(arm): _profile(_sums(arm, key), view, width) for arm in group}


def _profile(sums: Sequence[EntropySums], view: str, width: int) -> Profile:
    doc_M = np.unique(np.concatenate([one.doc_M for one in sums]))
    longest = max(one.longest for one in sums)
    laid_out: list[PositionSums] = [one.view(view, doc_M, longest) for one in sums]
    if view not in ("progress", "end"):
        laid_out = [one.binned(width) for one in laid_out]
    return position_profile(laid_out)


# Layout --------------------------------------------------------------------------------------


def _figures(material: Material) -> Iterator[Part]:
    """The finding, then a figure a group and task; its other views and greedy modes on demand."""
    found = find_entropy(material.arms)
    groups = [list(group) for _, group in groupby(found, key=lambda f: (f.task, f.name))]
    for index, (main, *others) in enumerate(groups):
        if len(groups) > 1:
            yield Heading(f"{main.task} · {main.name}")
        if main.panels and (told := entropy_told(material.arms, main)):
            yield Paragraph(told)
        sampled, greedy = main.of(greedy=False), main.of(greedy=True)
        yield entropy_block(sampled if sampled.panels else greedy, index)
        if sampled.panels and greedy.panels:
            block = entropy_block(greedy, index, "greedy")
            yield Details("Greedy modes", (block,), "view")
        for other in others:
            shown = other.of(greedy=False) if sampled.panels else other
            yield Details(VIEWS[other.view], (entropy_block(shown, index, "folded"),), "view")
    if not found:
        yield Paragraph(
            "These runs hold no per-position records (positions.parquet is missing or empty), so"
            " there is no entropy to show. A run that is not finished writes them when the same"
            " command has finished it."
        )


def entropy_told(arms: Arms, entropy: EntropyFigure) -> str:
    """The finding: whose CoTs have more or less mean entropy than those of the first arm, or mode.

    Arms under the first sampled mode; the modes of a single arm. By the 95 % intervals of paired
    differences over problems, which are not adjusted.
    """
    panels = entropy.of(greedy=False).panels or entropy.panels
    several = len({name for name, *_ in entropy.lines}) > 1
    found = [
        (arms.name(arm) if several else mode.replace("_", " "), means)
        for mode in list(panels)[: 1 if several else None]
        for arm in arms.arms
        if arms.name(arm) in panels[mode] and (means := entropy_scores(arm, (entropy.task, mode)))
    ]
    told: dict[str, list[str]] = {}
    for at, (name, means) in enumerate(found):
        word = _against(means, found[0][1]) if at else ""
        told.setdefault(word, []).append(f"{name} {nats(float(np.nanmean(means[1])))}")
    said = "; ".join(f"{word} {', '.join(names)}".strip() for word, names in told.items())
    under = f" under {next(iter(panels)).replace('_', ' ')}" if several else ""
    return f"Mean entropy of a CoT on {entropy.task}{under}, nats: {said}." if said else ""


def _against(b: Means, a: Means) -> str:
    """Whether B is lower or higher than A by the interval of their difference."""
    _, b_SM, a_SM = shared(b, a)
    kept = ~(np.isnan(a_SM).any(axis=0) | np.isnan(b_SM).any(axis=0))
    if kept.sum() < 2:
        return "not on the same questions:"
    found = compare_methods(b_SM[:, kept], a_SM[:, kept], bounded=False)
    return "higher:" if found.low > 0 else "lower:" if found.high < 0 else "not told apart:"


def entropy_block(entropy: EntropyFigure, index: int = 0, which: str = "") -> FigureBlock:
    """The figure of one view, with its numbers; `which` tells it from others of that view."""
    greedy = ", greedy modes" if which == "greedy" else ""
    title = f"Entropy on {entropy.task}: {VIEWS[entropy.view].lower()}{greedy}"
    told = []
    for name, mode, profile in entropy.lines:
        first, last = _ends(profile.mean, profile.grey)
        told.append(f"{mode.replace('_', ' ')} {name} from {first} to {last} nats")
    caption = CAPTIONS[entropy.view].format(cohort=entropy.cohort, arm=" or ".join(entropy.split))
    if entropy.absent and entropy.panels:
        caption += f" Not drawn: {'; '.join(entropy.absent)}."
    table = _numbers(entropy, f"{title}: numbers") if entropy.panels else None
    name = f"entropy{index}{entropy.view}{which}"
    draw = partial(draw_entropy, entropy)
    return figure_block(name, title, told, draw, caption, table, folded=bool(which))


def _ends(mean_T: np.ndarray, grey_T: np.ndarray) -> tuple[str, str]:
    kept = mean_T[~grey_T & ~np.isnan(mean_T)]
    return (number(kept[0], 2), number(kept[-1], 2)) if len(kept) else ("–", "–")


def _numbers(entropy: EntropyFigure, label: str) -> Table:
    """At most sixteen positions of every line."""
    longest = max((profile for *_, profile in entropy.lines), key=lambda one: len(one.start))
    shown = np.unique(np.linspace(0, len(longest.start) - 1, 16).round().astype(int))
    places = [f"{x:g}" for x in _x(entropy, longest)[shown]]
    rows = [
        [f"{name}, {mode.replace('_', ' ')}", *_at(profile.mean, shown)]
        for name, mode, profile in entropy.lines
    ]
    caption = f"Entropy in nats by {X_LABELS.get(entropy.view, 'CoT position')}."
    return simple_table(caption, ["", *places], rows, label)


def _at(mean_T: np.ndarray, shown: np.ndarray) -> list[str]:
    return [number(float(mean_T[at]) if at < len(mean_T) else float("nan"), 2) for at in shown]


# Drawing -------------------------------------------------------------------------------------


def draw_entropy(entropy: EntropyFigure) -> Figure:
    """Greedy modes above, sampled modes below, three a row; one y axis for all.

    Raises:
        NothingToShow: no line has a point.
    """
    if not entropy.panels:
        raise NothingToShow("; ".join(entropy.absent) or "no chain of thought is in this view")
    with styled():
        grid = _grid(list(entropy.panels))
        strips = entropy.view != "progress"
        rows, columns = len(grid), max(len(row) for row in grid)
        figure = new_figure(0.5 + (2.4 if strips else 2.0) * rows, WIDTH if columns > 1 else 5.0)
        heights = ([3.0, 0.75] if strips else [3.0]) * rows
        axes = figure.subplots(
            len(heights), columns, squeeze=False, sharex=_alike(entropy), height_ratios=heights
        )
        split = entropy.view == "terciles"
        named = TERCILE_LOOKS if split else looks([name for name, *_ in entropy.lines])
        step = 2 if strips else 1
        for row, modes in enumerate(grid):
            for column in range(columns):
                cells = list(axes[row * step : (row + 1) * step, column])
                if column < len(modes):
                    _draw_panel(cells, modes[column], entropy, named)
                else:
                    for cell in cells:
                        cell.set_axis_off()
        _share_y(axes[::step])
        used = np.array([[n < len(row) for n in range(columns)] for row in grid])
        label_lowest(axes[step - 1 :: step], used, X_LABELS.get(entropy.view, "CoT position"))
        axes[0][0].set_ylabel("entropy, nats")
        if strips:
            meaning = "that\nlong" if entropy.view == "end" else "still\nrunning"
            axes[1][0].set_ylabel(meaning, fontsize=SMALLEST, color=MUTED)
        legend(figure, named, markers=False)
        return figure


def _grid(modes: list[RecordedMode]) -> list[list[RecordedMode]]:
    rows = [[m for m in modes if m.is_greedy == greedy] for greedy in (True, False)]
    step = a_row(PANELS_A_ROW)
    return [row[at : at + step] for row in rows for at in range(0, len(row), step)]


def _alike(entropy: EntropyFigure) -> bool:
    """Whether the panels are of one length, more or less, so that one x axis shows them all."""
    longest = [max(len(p.start) for p in lines.values()) for lines in entropy.panels.values()]
    return max(longest) <= MOST_STRETCH * min(longest)


def _draw_panel(
    cells: list[Axes], mode: RecordedMode, entropy: EntropyFigure, named: Looks
) -> None:
    """A panel, and below it, where there is a place, the strip of what is still running."""
    panel, *strips = cells
    panel.set_title(mode.replace("_", " "))
    drawn = [(name, _x(entropy, line), line) for name, line in entropy.panels[mode].items()]
    profiles(panel, drawn, named)
    if entropy.view == "cohort":
        panel.axvline(entropy.cohort, color=MUTED, lw=0.8, ls=":")
    if entropy.view == "end":
        panel.set_xlim(END_POSITIONS + 1, 0)
    for strip in strips:
        for name, x, profile in drawn:
            look = named[name]
            strip.plot(x, profile.at_risk, color=look.colour, ls=look.line, lw=1)
        strip.set_ylim(0, 1.05)
        strip.set_yticks([0, 1], ["0", "100 %"], fontsize=SMALLEST)
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


SECTION = Section("entropy", "Entropy", "Entropy along the chain of thought", {"Entropy": _figures})
