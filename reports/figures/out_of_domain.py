"""Accuracy against NLL of the correct answer, one panel a log-likelihood task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softeval.reports.figures.style import legend, looks, new_figure, percent_axis, styled
from softeval.reports.out_of_domain import OutOfDomainScore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_out_of_domain(scores: Sequence[OutOfDomainScore]) -> Figure:
    """Up and left is better; bars are 95 % intervals, small marks single seeds."""
    with styled():
        tasks = list(dict.fromkeys(score.task for score in scores))
        named = looks([score.name for score in scores])
        columns = min(len(tasks), 3)
        rows = -(-len(tasks) // columns)
        figure = new_figure(0.6 + 2.4 * rows, 3.0 * columns if columns > 1 else 4.6)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, task in zip(axes, tasks, strict=False):
            panel.set_title(task)
            for score in (score for score in scores if score.task == task):
                look = named[score.name]
                x, y = score.nll.interval, score.accuracy.interval
                panel.plot([max(x.low, 0.0), x.high], [y.mean, y.mean], color=look.colour, lw=1)
                panel.plot([x.mean, x.mean], [y.low, y.high], color=look.colour, lw=1)
                panel.plot(x.mean, y.mean, look.marker, color=look.colour, ms=6)
                if len(score.nll.seed_means) > 1:
                    panel.plot(
                        score.nll.seed_means, score.accuracy.seed_means, look.marker,
                        color=look.colour, ms=2.5, ls="",
                    )  # fmt: skip
            percent_axis(panel)
            panel.set_xlabel("NLL per token, nats")
        for panel in axes[len(tasks) :]:
            panel.set_axis_off()
        axes[0].set_ylabel("accuracy, %")
        legend(figure, named)
        return figure
