"""pass@k curves: a panel a kind of CoT, a line an arm, and below them the differences.

A kind of CoT is a family of modes: the sampled mode gives a curve, the greedy mode a single marker
beside it, because greedy pass@1 is another quantity than sampled pass@1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from softeval.reports.contrasts import Side, mode_arms
from softeval.reports.differences import Curve, CurveDifference, lane_curve, order_parts
from softeval.reports.drawing import (
    INK,
    MUTED,
    SMALLEST,
    WIDTH,
    Looks,
    Span,
    a_row,
    dots,
    k_axis,
    label_lowest,
    legend,
    lines,
    looks,
    new_figure,
    percent_axis,
    spans,
    styled,
)
from softeval.reports.layout import (
    AMBER,
    Details,
    FigureBlock,
    Heading,
    Paragraph,
    Part,
    Section,
    figure_block,
)
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.sections.beyond import beyond_parts, lanes
from softeval.reports.tables import Table, on_questions, points, simple_table
from softeval.statistics.curves import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_A_ROW = 4
GREEDY_X = 0.5  # left of k = 1 on the log axis: beside the curve, not on it
NOTHING_SAMPLED = Markup(
    "No mode was sampled more than once: run with"
    " <code>--modes hard_sample,soft_sample --num-samples 32</code>."
)


@dataclass(frozen=True, eq=False)
class Panel:
    """One panel: its curves above, their differences from the first below.

    Attributes:
        title: kind of CoT at inference, or "one checkpoint".
        curves: lines.
        differences: D(k) of the other lines against one of them.
    """

    title: str
    curves: tuple[Curve, ...]
    differences: tuple[CurveDifference, ...]

    @property
    def baseline(self) -> str:
        """What the differences are against; "" where there are none."""
        return self.line_of(self.differences[0].b) if self.differences else ""

    def line_of(self, side: Side) -> str:
        """The line of a side of a difference: an arm's, or a mode's."""
        if side.name in [curve.name for curve in self.curves]:
            return side.name
        return next(curve.name for curve in self.curves if curve.mode == side.mode)


@dataclass(frozen=True, eq=False)
class CurveFigure:
    """All panels of one task and group of arms.

    Attributes:
        name: of the group, for the heading.
        task: the task.
        panels: by kind of CoT; a single panel for a single arm.
        questions: of the task in this report; a curve stands on those with n samples.
    """

    name: str
    task: str
    panels: tuple[Panel, ...]
    questions: int

    def fewer(self, panel: Panel) -> list[str]:
        """Curves of a panel that do not stand on every question, with how many they stand on."""
        found = [(c.name, c.band.problems) for c in panel.curves if c.band is not None]
        found += [(f"{c.name}, greedy", c.greedy.mean.interval.m) for c in panel.curves if c.greedy]
        return [
            f"{name}: {entered} of {self.questions} questions"
            for name, entered in found
            if entered < self.questions
        ]

    @property
    def n(self) -> int:
        """Largest k of a curve."""
        return max(curve.n for panel in self.panels for curve in panel.curves)

    @property
    def baselines(self) -> dict[str, list[str]]:
        """Each name that differences are against, with the titles of its panels."""
        found: dict[str, list[str]] = {}
        for panel in self.panels:
            if panel.baseline:
                found.setdefault(panel.baseline, []).append(panel.title)
        return found


def find_curves(arms: Arms, differences: Sequence[CurveDifference]) -> list[CurveFigure]:
    """The pass@k figures of a report, one for each group of arms and task."""
    figures = []
    for name, group in arms.named_groups:
        for task in arms.tasks:
            by_mode = [arm for arm in group if arm in mode_arms(arms)]
            if len(group) > 1 or not by_mode:
                panels = _panels_of_arms(arms, group, task, differences)
                figures.append(CurveFigure(name, task, tuple(panels), arms.questions(task)))
            for arm in by_mode:
                panels = _panels_of_modes(arms, arm, task, differences)
                shown = name if len(arms.arms) == 1 else arms.name(arm)
                figures.append(CurveFigure(shown, task, tuple(panels), arms.questions(task)))
    return [figure for figure in figures if figure.panels]


def _panels_of_arms(
    arms: Arms, group: Sequence[Arm], task: str, differences: Sequence[CurveDifference]
) -> list[Panel]:
    panels = []
    for lane in lanes(arms):
        curves = [
            curve
            for arm in group
            if (curve := lane_curve(arm, task, lane.sampled, lane.greedy, arms.name(arm)))
            is not None
        ]
        names = {curve.name for curve in curves}
        mine = [
            d
            for d in differences
            if d.task == task and d.a.mode == lane.sampled and {d.a.name, d.b.name} <= names
        ]
        if curves:
            panels.append(Panel(f"{lane.title} inference", tuple(curves), tuple(mine)))
    return panels


def _panels_of_modes(
    arms: Arms, arm: Arm, task: str, differences: Sequence[CurveDifference]
) -> list[Panel]:
    curves = [
        curve
        for lane in lanes(arms)
        if (curve := lane_curve(arm, task, lane.sampled, lane.greedy, lane.title)) is not None
    ]
    mine = tuple(
        d
        for d in differences
        if d.task == task and d.a.mode != d.b.mode and set(d.a.checkpoints) <= set(arm.checkpoints)
    )
    return [Panel("", tuple(curves), mine)] if curves else []


def _parts(material: Material) -> Iterator[Part]:
    """A figure a group and task, where some mode was sampled more than once."""
    differences, why = material.differences
    if why:
        yield Paragraph(why, AMBER)
    figures = [
        figure
        for figure in find_curves(material.arms, differences)
        if any(curve.band is not None for panel in figure.panels for curve in panel.curves)
    ]
    for index, figure in enumerate(figures):
        heading = f"{figure.task} · {figure.name}"
        folded = index > 0 and figures[index - 1].task == figure.task
        shown = [d for panel in figure.panels for d in panel.differences]
        parts = curve_block(figure, index, folded), *order_parts(shown, f"{heading}: crossings")
        if folded:
            yield Details(heading, parts, "view")
        else:
            yield from [Heading(heading), *parts] if len(figures) > 1 else parts
    if not figures:
        yield Paragraph(NOTHING_SAMPLED)


def curve_block(curves: CurveFigure, number_on_page: int = 0, folded: bool = False) -> FigureBlock:
    """The figure of one group and task, with its numbers."""
    largest = [
        f"{panel.title or curve.name} {curve.name} {points(curve.band.mean[-1])} %".strip()
        for panel in curves.panels
        for curve in panel.curves
        if curve.band is not None
    ]
    title = f"pass@k on {curves.task}: {curves.name}"
    caption = (
        f"Share of problems solved by at least one of k samples (n = {curves.n},"
        f" {on_questions(curves.questions, curves.questions)}), with simultaneous 95 % bands."
        f"{_on_fewer(curves)} Triangles at the left: greedy pass@1, another quantity.{_below(curves)}"
    )
    return figure_block(
        f"passk{number_on_page}",
        title,
        [f"At k = {curves.n}: {'; '.join(largest)}"],
        partial(draw_curves, curves),
        caption,
        _curve_numbers(curves, f"{title}: numbers"),
        folded,
    )


def _on_fewer(curves: CurveFigure) -> str:
    """Which curves stand on fewer questions, so that they must not be read beside the others."""
    fewer = [
        f"{text}{f' ({panel.title})' if panel.title else ''}"
        for panel in curves.panels
        for text in curves.fewer(panel)
    ]
    told = f" Not on the same questions, only on those with n samples: {'; '.join(fewer)}."
    return told if fewer else ""


def _below(curves: CurveFigure) -> str:
    """What the lower panels of a pass@k figure show, with the baseline of each where they differ."""
    against = [
        f"{name} ({', '.join(titles)})" if len(curves.baselines) > 1 else name
        for name, titles in curves.baselines.items()
    ]
    shown = (
        f" Below: difference from {' and '.join(against)} in points; a ring marks where curves"
        " cross and the band is sure of both sides."
    )
    return shown if against else ""


def _curve_numbers(curves: CurveFigure, label: str) -> Table:
    ks = sorted(
        {int(k) for panel in curves.panels for c in panel.curves if c.band for k in c.band.ks}
    )
    rows = []
    for panel in curves.panels:
        for curve in panel.curves:
            name = f"{curve.name}, {panel.title}" if panel.title else curve.name
            if curve.band is not None and curve.band.problems < curves.questions:
                name += f", {on_questions(curve.band.problems, curves.questions)}"
            greedy = points(curve.greedy.mean.mean) if curve.greedy else "–"
            found = {} if curve.band is None else dict(
                zip(curve.band.ks.tolist(), curve.band.mean.tolist(), strict=True)
            )  # fmt: skip
            rows.append([name, greedy, *(points(found.get(k, float("nan"))) for k in ks)])
    columns = ["", "greedy", *map(str, ks)]
    return simple_table("Problems solved, percent.", columns, rows, label)


# Drawing -------------------------------------------------------------------------------------


def draw_curves(curves: CurveFigure) -> Figure:
    """Four panels a row: pass@k above, difference from the baseline below."""
    with styled():
        panels = curves.panels
        differing = any(panel.differences for panel in panels)
        heights = [1.7, 1.0] if differing else [1.0]
        columns = min(a_row(PANELS_A_ROW), len(panels))
        rows = -(-len(panels) // columns)
        of_one = (5.2 if differing else 3.4) * (1 if rows == 1 else 0.8)
        height = rows * of_one * (1 if a_row(2) == 2 else 0.75)
        figure = new_figure(height, WIDTH if len(panels) > 1 else 6.2)
        axes = figure.subplots(
            rows * len(heights), columns, squeeze=False, sharex=True, sharey="row",
            height_ratios=heights * rows,
        )  # fmt: skip
        upper, lower = axes[:: len(heights)], axes[len(heights) - 1 :: len(heights)]
        named = looks([curve.name for panel in panels for curve in panel.curves])
        for axis, panel in zip(upper.flat, panels, strict=False):
            _draw_panel(axis, panel, named)
            axis.annotate(
                "\n".join(curves.fewer(panel)), (0.98, 0.02), xycoords="axes fraction",
                ha="right", va="bottom", fontsize=SMALLEST, color=MUTED,
            )  # fmt: skip
        for row in upper:
            percent_axis(row[0], "problems solved, %" if a_row(2) == 2 else "solved, %")
        if differing:
            for axis, panel in zip(lower.flat, panels, strict=False):
                _draw_differences(axis, panel, named)
            for at, row in enumerate(lower):
                _label_differences(row, curves, panels[at * columns : (at + 1) * columns])
        for kind in (upper, lower):  # one scale over the rows, as within them
            bottoms, tops = zip(*(row[0].get_ylim() for row in kind), strict=True)
            for row in kind:
                row[0].set_ylim(min(bottoms), max(tops))
        used = np.arange(rows * columns).reshape(rows, columns) < len(panels)
        for axis in [*upper[~used], *lower[~used]]:
            axis.set_axis_off()
        for axis in lower[used]:
            k_axis(axis, curves.n)
            axis.set_xlabel("")
            axis.set_xlim(left=GREEDY_X * 0.68)
        label_lowest(lower, used, "k")
        legend(figure, named)
        return figure


def _label_differences(row: Sequence[Axes], curves: CurveFigure, panels: Sequence[Panel]) -> None:
    """The baseline once at the left where all panels have the same, else beside each panel."""
    several = len(curves.baselines) > 1
    common = next(iter(curves.baselines))
    points_too = ", points" if a_row(2) == 2 else ""
    percent_axis(row[0], f"difference{points_too}" if several else f"minus {common}{points_too}")
    for axes, panel in zip(row, panels, strict=False):
        if several and panel.baseline:
            axes.set_title(f"minus {panel.baseline}", fontsize=8, fontweight="normal")


def _draw_panel(axes: Axes, panel: Panel, named: Looks) -> None:
    axes.set_title(panel.title.replace("_", " "))
    lines(axes, [_span(c.name, c.band) for c in panel.curves if c.band is not None], named)
    greedy = [
        spans(c.name, _greedy_x(index, panel), interval.mean, interval.low, interval.high)
        for index, c in enumerate(panel.curves)
        if c.greedy is not None and (interval := c.greedy.mean.interval)
    ]
    if greedy:
        dots(axes, greedy, named, marker="<")
        axes.annotate(
            "greedy", (GREEDY_X, 0), (0, -3), ("data", "axes fraction"), "offset points",
            ha="center", va="top", fontsize=SMALLEST, color=MUTED,
        )  # fmt: skip


def _greedy_x(index: int, panel: Panel) -> float:
    """Greedy markers stand side by side."""
    return GREEDY_X * 1.07 ** (index - (len(panel.curves) - 1) / 2)


def _span(name: str, band: Band) -> Span:
    return spans(name, band.ks, band.mean, band.low, band.high)


def _draw_differences(axes: Axes, panel: Panel, named: Looks) -> None:
    axes.axhline(0, color=INK, lw=0.8)
    found = [(panel.line_of(d.a), d) for d in panel.differences]
    lines(axes, [_span(name, d.band) for name, d in found], named)
    for name, d in found:
        if d.order.word == "cross" and (meeting := d.meeting()) is not None:
            axes.plot(meeting, 0, "o", mfc="none", mec=named[name].colour, ms=9, mew=1.2)


SECTION = Section("curves", "pass@k", "pass@k", {"pass@k": _parts, "Extrapolation": beyond_parts})
