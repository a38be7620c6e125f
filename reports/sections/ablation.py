"""Trainings that differ in their options, side by side: dose and response, and the paper's appendix F.

Shown where runs are labelled and their trainings differ. Which options differ is read from what the runs
recorded of their training; nothing here knows a mode or an option by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.reports.drawing import (
    Look,
    dots,
    legend,
    lines,
    looks,
    new_figure,
    percent_axis,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.layout import Part, Section, figure_block
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.scores import ArmScore, arm_score, metrics
from softeval.reports.paper import ABLATED, PublishedScore, paper_ablation
from softeval.reports.tables import Table, TableCell, interval_text, metric_name, points
from softeval.runs.run import RecordedMode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOSES = 3
"""Values of an option that make a curve; fewer are only set side by side."""
LOG_RANGE = 10

Metric = tuple[RecordedMode, int]


@dataclass(frozen=True, eq=False)
class Trained:
    """One cell: an arm, and how it was trained.

    Attributes:
        arm: its checkpoints, a training seed each.
        options: of its training, those of the mode under their own names; empty for no training.
        scores: by (mode of the evaluation, k), where it was evaluated.
    """

    arm: Arm
    options: Mapping[str, Any]
    scores: Mapping[Metric, ArmScore]

    def paper(self, metric: Metric) -> PublishedScore | None:
        """The paper's value after such a training."""
        return paper_ablation(self.arm.training.get("mode") or {}, *metric)


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """Cells that differ in one number only.

    Attributes:
        option: its name.
        doses: its values, ascending.
        cells: in the order of the doses.
    """

    option: str
    doses: tuple[float, ...]
    cells: tuple[Trained, ...]


def trained_cells(arms: Arms, task: str) -> list[Trained]:
    """The arms that were evaluated on a task, as cells."""
    return [
        Trained(arm, _options(arm), {(mode, k): score for mode, k, score in found})
        for arm in arms.arms
        if (found := list(_scores(arms, arm, task)))
    ]


def varying(cells: Sequence[Trained]) -> list[str]:
    """Options in which trained cells differ."""
    known = [cell.options for cell in cells if cell.options]
    names = dict.fromkeys(name for options in known for name in options)
    return [name for name in names if len({str(options.get(name)) for options in known}) > 1]


def find_curves(cells: Sequence[Trained]) -> list[DoseResponse]:
    """Every set of cells in which one number takes at least `DOSES` values, all else being equal."""
    names = varying(cells)
    curves = []
    for option in names:
        alike: dict[tuple[str, ...], list[Trained]] = {}
        for cell in cells:
            if isinstance(cell.options.get(option), int | float):
                rest = tuple(str(cell.options.get(name)) for name in names if name != option)
                alike.setdefault(rest, []).append(cell)
        for group in alike.values():
            group.sort(key=lambda cell: cell.options[option])
            doses = tuple(float(cell.options[option]) for cell in group)
            if len(set(doses)) >= DOSES:
                curves.append(DoseResponse(option, doses, tuple(group)))
    return curves


def _options(arm: Arm) -> dict[str, Any]:
    """Of the training; the mode's stand for the flags that set them."""
    recorded = arm.training.get("mode")
    if not recorded:
        return {}
    mode = RecordedMode.of(str(recorded["name"]), recorded)
    config = arm.training.get("config") or {}
    own = {"method", "mode_args", "seed", "output_path", *mode.options}
    return {"mode": str(mode), **mode.options} | {k: v for k, v in config.items() if k not in own}


def _scores(arms: Arms, arm: Arm, task: str) -> Iterator[tuple[RecordedMode, int, ArmScore]]:
    for mode, k in metrics(arms, task):
        score = arm_score(arm, (task, mode), k)
        if score is not None:
            yield mode, k, score


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """A table of each task with the paper's values, and its curves, or all cells as points."""
    arms = material.arms
    if not any(run.label for run in arms.runs):
        return
    for number, task in enumerate(arms.tasks):
        cells = trained_cells(arms, task)
        if not varying(cells):
            continue
        table = ablation_table(arms, task, cells)
        curves = find_curves(cells)
        untrained = [cell for cell in cells if not cell.options]
        for part, curve in enumerate(curves):
            yield figure_block(
                f"ablation-{number}-{part}",
                f"{task}: {curve.option.replace('_', ' ')} of the training",
                _told(curve.cells),
                partial(draw_curve, curve, untrained),
                "Success of the evaluated modes against what was varied in training. Bands: 95 %"
                " over training seeds and questions; dotted: the untrained model; hollow: the"
                f" paper's values ({ABLATED}).",
                table if part == 0 else None,
            )
        if not curves:
            yield figure_block(
                f"ablation-{number}",
                f"{task}: trainings side by side",
                _told(cells),
                partial(draw_cells, cells),
                "Success of the evaluated modes after each training, with 95 % intervals over training"
                f" seeds and questions; hollow: the paper's values ({ABLATED}).",
                table,
            )


def _told(cells: Sequence[Trained]) -> list[str]:
    return [
        f"{cell.arm.method}, {_name(metric)}: {points(score.mean.mean)} %"
        for cell in cells
        for metric, score in cell.scores.items()
    ]


def _name(metric: Metric) -> str:
    mode, k = metric
    return f"{mode.replace('_', ' ')} {'' if mode.is_greedy else f'pass@{k}'}".strip()


def ablation_table(arms: Arms, task: str, cells: Sequence[Trained]) -> Table:
    """Rows are cells, columns modes and metrics, with the paper's value where it has one."""
    columns = metrics(arms, task)
    rows = [
        (
            TableCell(cell.arm.method, f"{cell.arm.seeds} seeds" if cell.arm.seeds > 1 else ""),
            *(_score_cell(cell, metric) for metric in columns),
        )
        for cell in cells
    ]
    modes = list(dict.fromkeys(mode for mode, _ in columns))
    return Table(
        caption=f"{task}: problems solved, percent, mean ± SD over training seeds; below, the 95 %"
        f" interval over seeds and questions, and the paper's mean ± SD ({ABLATED}).",
        columns=("training", *(metric_name(mode, k) for mode, k in columns)),
        rows=tuple(rows),
        label=f"{task}: trainings side by side",
        groups=tuple(
            (mode.replace("_", " "), sum(m == mode for m, _ in columns)) for mode in modes
        ),
    )


def _score_cell(cell: Trained, metric: Metric) -> TableCell:
    score, paper = cell.scores.get(metric), cell.paper(metric)
    reference = f"paper {paper.text}" if paper else ""
    if score is None:
        return TableCell("–", reference=reference, detail="not evaluated")
    mean = score.mean
    spread = "" if np.isnan(mean.sd) else f" ± {points(mean.sd)}"
    seeds = ", ".join(points(value) for value in mean.seed_means)
    return TableCell(
        points(mean.mean) + spread,
        interval_text(mean.interval.low, mean.interval.high),
        reference,
        f"seeds {seeds}",
    )


# Drawing -------------------------------------------------------------------------------------


def draw_curve(curve: DoseResponse, untrained: Sequence[Trained]) -> Figure:
    """A panel a metric: success against the dose, a line a family of evaluated modes."""
    x = np.array(curve.doses)
    with styled():
        panels, named = _panels([*curve.cells, *untrained])
        figure = new_figure(3.2)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, found) in zip(grid, panels.items(), strict=True):
            _draw_base(axes, found, untrained, named)
            for metric in found:
                there = [i for i, cell in enumerate(curve.cells) if metric in cell.scores]
                scored = [curve.cells[i] for i in there]
                lines(axes, [_spans(metric, x[there], scored)], named)
                _draw_paper(axes, metric, curve, named[metric[0].family])
            if x.min() > 0 and x.max() >= LOG_RANGE * x.min():
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.set_xticks(x, [f"{dose:g}" for dose in x])
            axes.set_xlabel(curve.option.replace("_", " "))
            axes.set_title(title)
        percent_axis(grid[0], "success, %")
        legend(figure, named)
        return figure


def draw_cells(cells: Sequence[Trained]) -> Figure:
    """A panel a metric: cells as rows, a point a family of evaluated modes."""
    from matplotlib.ticker import FuncFormatter

    with styled():
        panels, named = _panels(cells)
        figure = new_figure(1.2 + 0.33 * len(cells))
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        rows = np.arange(len(cells), dtype=float)
        for axes, (title, found) in zip(grid, panels.items(), strict=True):
            for place, metric in enumerate(found):
                shift = 0.22 * (place - (len(found) - 1) / 2)
                there = [i for i, cell in enumerate(cells) if metric in cell.scores]
                scored = _spans(metric, rows[there] + shift, [cells[i] for i in there])
                dots(axes, [scored], named, orient="y")
                for row, cell in zip(rows, cells, strict=True):
                    if (paper := cell.paper(metric)) is not None:
                        look = named[metric[0].family]
                        _hollow(axes, paper.mean / 100, row + shift, look)
            axes.set_yticks(rows, [cell.arm.method for cell in cells])
            axes.set_ylim(len(cells) - 0.5, -0.5)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
            axes.set_xlabel("success, %")
            axes.set_title(title)
            vertical_grid(axes)
        legend(figure, named)
        return figure


def _panels(cells: Sequence[Trained]) -> tuple[dict[str, list[Metric]], dict[str, Look]]:
    """Metrics by the title of their panel, and the look of each family."""
    found = dict.fromkeys(metric for cell in cells for metric in cell.scores)
    panels: dict[str, list[Metric]] = {}
    for metric in found:
        panels.setdefault(metric_name(*metric), []).append(metric)
    return panels, looks([mode.family for mode, _ in found])


def _spans(metric: Metric, at: np.ndarray, cells: Sequence[Trained]) -> Any:
    found = [cell.scores[metric].mean for cell in cells]
    low, high = [m.interval.low for m in found], [m.interval.high for m in found]
    return spans(metric[0].family, at, [m.mean for m in found], low, high)


def _draw_base(
    axes: Axes, found: Sequence[Metric], untrained: Sequence[Trained], named: Mapping[str, Look]
) -> None:
    for cell in untrained:
        for metric in found:
            if metric in cell.scores:
                look = named[metric[0].family]
                axes.axhline(cell.scores[metric].mean.mean, color=look.colour, ls=":", lw=0.8)


def _draw_paper(axes: Axes, metric: Metric, curve: DoseResponse, look: Look) -> None:
    for dose, cell in zip(curve.doses, curve.cells, strict=True):
        if (paper := cell.paper(metric)) is not None:
            _hollow(axes, dose, paper.mean / 100, look)


def _hollow(axes: Axes, x: float, y: float, look: Look) -> None:
    axes.plot(x, y, look.marker, mfc="none", mec=look.colour, ms=6, mew=0.8)


SECTION = Section("ablation", "Ablation", "Trainings side by side", {"Trainings": _parts})
