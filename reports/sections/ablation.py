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
    Looks,
    dots,
    legend,
    lines,
    looks,
    panel_row,
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
from softeval.reports.sections.results import score_cell
from softeval.reports.tables import Table, TableCell, metric_name, points
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


def trained_cells(arms: Arms, task: str) -> list[Trained]:
    """The arms that were evaluated on a task, as cells."""
    found = [
        (arm, {(m, k): s for m, k in metrics(arms, task) if (s := arm_score(arm, (task, m), k))})
        for arm in arms.arms
    ]
    return [Trained(arm, _options(arm), scores) for arm, scores in found if scores]


def varying(cells: Sequence[Trained]) -> list[str]:
    """Options in which trained cells differ."""
    known = [cell.options for cell in cells if cell.options]
    names = dict.fromkeys(name for options in known for name in options)
    return [name for name in names if len({str(options.get(name)) for options in known}) > 1]


def dose_responses(cells: Sequence[Trained]) -> Iterator[tuple[str, list[Trained]]]:
    """(option, cells by its value) wherever one number takes `DOSES` values, all else being equal."""
    names = varying(cells)
    for option in names:
        alike: dict[tuple[str, ...], list[Trained]] = {}
        for cell in cells:
            if isinstance(cell.options.get(option), int | float):
                rest = tuple(str(cell.options.get(name)) for name in names if name != option)
                alike.setdefault(rest, []).append(cell)
        for group in alike.values():
            if len({cell.options[option] for cell in group}) >= DOSES:
                yield option, sorted(group, key=lambda cell: cell.options[option])


def _options(arm: Arm) -> dict[str, Any]:
    """Of the training; the mode's stand for the flags that set them."""
    recorded = arm.training.get("mode")
    if not recorded:
        return {}
    mode = RecordedMode.of(str(recorded["name"]), recorded)
    config = arm.training.get("config") or {}
    own = {"method", "mode_args", "seed", "output_path", *mode.options}
    return {"mode": str(mode), **mode.options} | {k: v for k, v in config.items() if k not in own}


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """Of each task: every dose with its response, or all cells as points; a table of all."""
    arms = material.arms
    if not any(run.label for run in arms.runs):
        return
    for number, task in enumerate(arms.tasks):
        cells = trained_cells(arms, task)
        if not varying(cells):
            continue
        untrained = [cell for cell in cells if not cell.options]
        doses = list(dose_responses(cells))
        figures = [(f"{o.replace('_', ' ')} of the training", o, group) for o, group in doses]
        for part, (title, option, drawn) in enumerate(figures or [("all trainings", None, cells)]):
            yield figure_block(
                f"ablation-{number}-{part}",
                f"{task}: {title}",
                [text for cell in drawn for text in _told(cell)],
                partial(draw, drawn, option, untrained),
                "Success of the evaluated modes after each training, with 95 % intervals over training"
                f" seeds and questions{'; dotted: the untrained model' if option else ''}; hollow: the"
                f" paper's values ({ABLATED}).",
                ablation_table(arms, task, cells) if part == 0 else None,
            )


def _told(cell: Trained) -> Iterator[str]:
    for (mode, k), score in cell.scores.items():
        yield f"{cell.arm.method}, {mode} {metric_name(mode, k)}: {points(score.mean.mean)} %"


def ablation_table(arms: Arms, task: str, cells: Sequence[Trained]) -> Table:
    """Rows are cells, columns modes and metrics, with the paper's value where it has one."""
    columns, questions = metrics(arms, task), arms.questions(task)
    rows = []
    for cell in cells:
        found = [(cell.scores.get(metric), cell.paper(metric)) for metric in columns]
        header = TableCell(cell.arm.method, f"{cell.arm.seeds} seeds" if cell.options else "")
        rows.append(
            (header, *(score_cell(s, p, questions) if s else TableCell("–") for s, p in found))
        )
    modes = list(dict.fromkeys(mode for mode, _ in columns))
    return Table(
        caption=f"{task}: problems solved, percent, mean ± SD over training seeds; below, the 95 %"
        f" interval over seeds and questions, and the paper's mean ± SD ({ABLATED}).",
        columns=("training", *(metric_name(mode, k) for mode, k in columns)),
        rows=tuple(rows),
        label=f"{task}: trainings side by side",
        groups=tuple((m.replace("_", " "), sum(c[0] == m for c in columns)) for m in modes),
    )


# Drawing -------------------------------------------------------------------------------------


def draw(cells: Sequence[Trained], option: str | None, untrained: Sequence[Trained]) -> Figure:
    """A panel a metric, a look a family of evaluated modes: success against a dose, or by cell.

    Args:
        cells: by ascending dose, or in the order of the rows.
        option: what the dose is; None makes each cell a row.
        untrained: drawn as a line where there is a dose.
    """
    found = dict.fromkeys(metric for cell in cells for metric in cell.scores)
    named = looks([mode.family for mode, _ in found])
    panels: dict[str, list[Metric]] = {}
    for metric in found:
        panels.setdefault(metric_name(*metric), []).append(metric)
    doses = [float(cell.options[option]) for cell in cells] if option else range(len(cells))
    with styled():
        height = 3.2 if option else 1.2 + 0.33 * len(cells)
        figure, grid = panel_row(len(panels), height, sharey=True)
        for axes, (title, shown) in zip(grid, panels.items(), strict=True):
            for place, metric in enumerate(shown):
                apart = 0.0 if option else 0.22 * (place - (len(shown) - 1) / 2)
                _draw_metric(axes, metric, cells, np.array(doses) + apart, option is None, named)
                for cell in (c for c in untrained if option and metric in c.scores):
                    level, colour = cell.scores[metric].mean.mean, named[metric[0].family].colour
                    axes.axhline(level, color=colour, ls=":", lw=0.8)
            axes.set_title(title)
            if option:
                _dose_axis(axes, np.array(doses), option)
            else:
                _cell_axis(axes, [cell.arm.method for cell in cells])
        if option:
            percent_axis(grid[0], "success, %")
        legend(figure, named)
        return figure


def _draw_metric(
    axes: Axes,
    metric: Metric,
    cells: Sequence[Trained],
    at: np.ndarray,
    as_rows: bool,
    named: Looks,
) -> None:
    """One metric of the cells that have it, and the paper's values."""
    family = metric[0].family
    there = [i for i, cell in enumerate(cells) if metric in cell.scores]
    means = [cells[i].scores[metric].mean for i in there]
    ends = [m.interval.low for m in means], [m.interval.high for m in means]
    series = spans(family, at[there], [m.mean for m in means], *ends)
    if as_rows:
        dots(axes, [series], named, orient="y")
    else:
        lines(axes, [series], named)
    papers = [
        (x, p.mean / 100) for x, cell in zip(at, cells, strict=True) if (p := cell.paper(metric))
    ]
    for x, y in papers:
        look, place = named[family], (y, x) if as_rows else (x, y)
        axes.plot(*place, look.marker, mfc="none", mec=look.colour, ms=6, mew=0.8)


def _dose_axis(axes: Axes, doses: np.ndarray, option: str) -> None:
    if doses.min() > 0 and doses.max() >= LOG_RANGE * doses.min():
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.set_xlabel(option.replace("_", " "))


def _cell_axis(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_xlabel("success, %")
    vertical_grid(axes)


SECTION = Section("ablation", "Ablation", "Trainings side by side", {"Trainings": _parts})
