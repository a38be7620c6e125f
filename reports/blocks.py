"""Figures and tables of the report put together: drawing, text alternative, caption, numbers.

Each function turns what was measured into what a template prints. Knows nothing of HTML beyond the
SVG that matplotlib draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from softeval.reports.beyond import MODELS, BeyondFigure, Continuation, meeting
from softeval.reports.contrasts import Comparison
from softeval.reports.curves import CurveFigure
from softeval.reports.differences import CurveDifference
from softeval.reports.drift import DriftScore
from softeval.reports.entropy import VIEWS, EntropyFigure, EntropySummary
from softeval.reports.figures.beyond import draw_beyond
from softeval.reports.figures.drift import draw_drift
from softeval.reports.figures.entropy import draw_entropy
from softeval.reports.figures.forest import draw_forest
from softeval.reports.figures.out_of_domain import draw_out_of_domain
from softeval.reports.figures.passk import draw_curves
from softeval.reports.figures.svg import to_svg
from softeval.reports.figures.training import draw_training
from softeval.reports.left_out import attempt
from softeval.reports.out_of_domain import OutOfDomainScore
from softeval.reports.paper import paper_out_of_domain
from softeval.reports.tables import (
    Table,
    TableCell,
    by_position,
    comparison_table,
    margin_text,
    number,
    on_questions,
    points,
    simple_table,
)
from softeval.reports.training import TrainingCurve
from softeval.statistics.extrapolation import OUTSIDE
from softeval.statistics.interval import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureBlock:
    """A figure as the page shows it.

    Attributes:
        title: short; names the region.
        svg: the drawing, with its text alternative inside.
        caption: how to read it.
        table: its numbers; None where a table of the section has them.
        left_out: why there is no drawing; "" where there is one.
    """

    title: str
    svg: Markup
    caption: str
    table: Table | None = None
    left_out: str = ""


@dataclass(frozen=True)
class Block:
    """A heading with a figure and perhaps a table."""

    heading: str
    figure: FigureBlock
    table: Table | None = None
    crossings: Table | None = None


@dataclass(frozen=True)
class View:
    """One more way to look at the same records."""

    name: str
    figure: FigureBlock


@dataclass(frozen=True)
class EntropyBlock:
    """Entropy of a task: the main figure and the other views of it."""

    heading: str
    main: FigureBlock
    views: tuple[View, ...]


def _figure(
    name: str,
    title: str,
    told: str,
    draw: Callable[[], Figure],
    caption: str,
    table: Table | None = None,
) -> FigureBlock:
    """A figure, or the line that says why it is left out.

    Args:
        name: a word that no other figure of the page has.
        title: short.
        told: what one sees, for those who cannot.
        draw: draws it.
        caption: how to read it.
        table: its numbers.
    """
    svg, why = attempt(title, lambda: Markup(to_svg(draw(), name, title, told)), Markup())
    return FigureBlock(title, svg, caption, table, why)


def curve_block(curves: CurveFigure, number_on_page: int) -> Block:
    """pass@k curves of one group and task."""
    title = f"pass@k on {curves.task}: {curves.name}"
    largest = [
        f"{panel.title or curve.name} {curve.name} {points(curve.band.mean[-1])} %".strip()
        for panel in curves.panels
        for curve in panel.curves
        if curve.band is not None
    ]
    n = max(curve.n for panel in curves.panels for curve in panel.curves)
    told = f"At k = {n}: {'; '.join(largest)}."
    caption = (
        f"Share of problems solved by at least one of k samples (n = {n},"
        f" {on_questions(curves.questions, curves.questions)}), with simultaneous 95 % bands."
        f"{_on_fewer(curves)} Triangles at the left: greedy pass@1, another quantity.{_below(curves)}"
    )
    draw = partial(draw_curves, curves)
    figure = _figure(f"passk{number_on_page}", title, told, draw, caption, _curve_numbers(curves))
    differences = [d for panel in curves.panels for d in panel.differences]
    return Block(f"{curves.task} · {curves.name}", figure, crossings=_crossing_table(differences))


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
        f" Below: difference from {' and '.join(against)} in points; a ring marks a crossing of"
        " which the band is sure on both sides."
    )
    return shown if against else ""


def _curve_numbers(curves: CurveFigure) -> Table:
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
    return simple_table("Problems solved, percent.", ["", "greedy", *map(str, ks)], rows)


ORDER_WORDS = {
    "a leads": "A leads",
    "b leads": "B leads",
    "cross": "they cross",
    "coincide": "they coincide",
    "undecided": "not told apart",
}


def _crossing_table(differences: Sequence[CurveDifference]) -> Table | None:
    if not differences:
        return None
    largest = max(d.n for d in differences)
    columns = ("curves", "D at k = 1", f"D at k = {largest}", "order", "sign changes at k")
    columns += ("resamples without such a change", "only A / only B solves")
    return Table(
        "The difference D(k) in points. Order: what its simultaneous band leaves of it; A leads"
        " where the band excludes 0 on that side, the curves cross where it does so on both. Then"
        " where D(k) first changes sign, with the middle 95 % of such changes in resamples, which"
        f" alone is no crossing; beyond k = {largest} nothing can be seen. Last: problems that one"
        " side solves at least once and the other never.",
        columns,
        tuple(_crossing_row(d, largest) for d in differences),
    )


def _crossing_row(d: CurveDifference, largest: int) -> tuple[TableCell, ...]:
    c = d.crossing
    span = "" if np.isnan(c.low) else f"[{c.low:.0f}, {c.high:.0f}]"
    span += f" again at {', '.join(map(str, c.again))}" if c.again else ""
    notes = [] if d.a.mode != d.b.mode else [d.a.mode.replace("_", " ")]
    notes += [on_questions(d.band.problems, d.questions)] if d.band.problems < d.questions else []
    return (
        TableCell(f"{d.a.name} − {d.b.name}", ", ".join(notes)),
        TableCell(points(d.band.mean[0], sign=True)),
        TableCell(points(d.band.mean[-1], sign=True), "" if d.n == largest else f"k = {d.n}"),
        TableCell(ORDER_WORDS[d.order.word]),
        TableCell("none" if c.k is None else str(c.k), span),
        TableCell(f"{100 * c.p_no_crossing:.0f} %"),
        TableCell(f"{d.evidence.only_a} / {d.evidence.only_b}"),
    )


def beyond_blocks(figures: Sequence[BeyondFigure]) -> list[Block]:
    """Extrapolated curves: a figure and sentences, never a table."""
    blocks = []
    for index, beyond in enumerate(figures):
        title = f"pass@k beyond the samples on {beyond.task}: {beyond.name}"
        told = [
            f"{kind} {curve.name}: the models span {points(curve.beyond.disagreement[-1])} points"
            for kind, curves in beyond.panels.items()
            for curve in curves
        ]
        caption = (
            "Extrapolation, not measurement. Solid: measured. Right of the dotted line three models"
            " fitted to the same samples: beta-binomial (long dashes), beta-binomial with a share"
            " of problems that are never solved (short dashes), power law (dash-dotted). Hatched:"
            f" model disagreement, which is no interval: {OUTSIDE}. {_meetings(beyond)}"
        )
        heading = f"{beyond.task} · {beyond.name}, extrapolated to k = {beyond.largest}"
        seen = f"At k = {beyond.largest}: {'; '.join(told)}."
        draw = partial(draw_beyond, beyond)
        figure = _figure(f"beyond{index}", title, seen, draw, caption.strip())
        blocks.append(Block(heading, figure))
    return blocks


def _meetings(beyond: BeyondFigure) -> str:
    """What the models say of each curve's meeting with the first, those of one fate together."""
    fates: dict[tuple[str, str], list[str]] = {}
    for kind, curves in beyond.panels.items():
        for other in curves[1:]:
            fate = _meeting(curves[0], other, beyond.largest)
            fates.setdefault((fate, curves[0].name), []).append(f"{other.name} ({kind} inference)")
    return " ".join(
        f"Against {first}, {fate}: {', '.join(n)}." for (fate, first), n in fates.items()
    )


def _meeting(first: Continuation, second: Continuation, largest: int) -> str:
    found = meeting(first, second)
    crossing = [f"{MODELS[model]} near k = {k}" for model, k in found.items() if k is not None]
    if not crossing:
        return f"no model has a meeting up to k = {largest}"
    kept = [MODELS[model] for model, k in found.items() if k is None]
    return (
        "a meeting by " + ", ".join(crossing) + (f" but not by {', '.join(kept)}" if kept else "")
    )


def comparison_blocks(comparisons: Sequence[Comparison], margin: float) -> list[Block]:
    """A forest plot and its table for each task."""
    blocks = []
    tasks = list(dict.fromkeys(c.metric.task for c in comparisons))
    for index, task in enumerate(tasks):
        mine = [c for c in comparisons if c.metric.task == task]
        title = f"Comparisons on {task}"
        told = [f"{c.name}, {c.metric_name}: {c.verdict.word}" for c in mine if c.primary]
        caption = (
            f"Difference A − B in points with its 95 % interval. {_origins(mine)} Open:"
            " exploratory. Ticks: minimum detectable effect. Grey zone:"
            f" ±{margin_text(margin)} points, within which sides count as equivalent. Bars: share of"
            " problems on which one side does better."
        )
        seen = f"Primary comparisons: {'; '.join(told) or 'none'}."
        draw = partial(draw_forest, mine, margin)
        figure = _figure(f"forest{index}", title, seen, draw, caption)
        blocks.append(Block(task, figure, comparison_table(mine, margin)))
    return blocks


def _origins(comparisons: Sequence[Comparison]) -> str:
    """What the filled marks of a forest plot are."""
    origins = dict.fromkeys(c.origin for c in comparisons if c.primary)
    return f"Filled: primary, {' or '.join(origins)}." if origins else ""


ENTROPY_CAPTIONS = {
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


def entropy_blocks(figures: Sequence[EntropyFigure]) -> list[EntropyBlock]:
    """One block a group and task."""
    blocks = []
    for index, (heading, group) in enumerate(
        groupby(figures, key=lambda f: f"{f.task} · {f.name}")
    ):
        views = [View(VIEWS[f.view], _entropy_figure(f, index)) for f in group]
        blocks.append(EntropyBlock(heading, views[0].figure, tuple(views[1:])))
    return blocks


def _entropy_figure(entropy: EntropyFigure, index: int) -> FigureBlock:
    title = f"Entropy on {entropy.task}: {VIEWS[entropy.view].lower()}"
    told = []
    for mode, traces in entropy.panels.items():
        for trace in traces:
            first, last = _ends(trace.profile.mean, trace.profile.grey)
            told.append(f"{mode.replace('_', ' ')} {trace.name} from {first} to {last} nats")
    caption = ENTROPY_CAPTIONS[entropy.view].format(
        cohort=entropy.cohort, arm=" or ".join(entropy.split)
    )
    if entropy.absent and entropy.panels:
        caption += f" Not drawn: {'; '.join(entropy.absent)}."
    name, draw = f"entropy{index}{entropy.view}", partial(draw_entropy, entropy)
    table = _entropy_numbers(entropy) if entropy.panels else None
    return _figure(name, title, f"{'; '.join(told)}.", draw, caption, table)


def _ends(mean_T: np.ndarray, grey_T: np.ndarray) -> tuple[str, str]:
    kept = mean_T[~grey_T & ~np.isnan(mean_T)]
    return (number(kept[0], 2), number(kept[-1], 2)) if len(kept) else ("–", "–")


def _entropy_numbers(entropy: EntropyFigure) -> Table:
    """At most sixteen positions of every line."""
    lines = [(m, t) for m, traces in entropy.panels.items() for t in traces]
    longest = max((t.profile for _, t in lines), key=lambda profile: len(profile.start))
    shown = np.unique(np.linspace(0, len(longest.start) - 1, 16).round().astype(int))
    names = [f"{t.name}, {m.replace('_', ' ')}" for m, t in lines]

    def value(row: int, column: int) -> float:
        mean, at = lines[row][1].profile.mean, shown[column]
        return float(mean[at]) if at < len(mean) else float("nan")

    starts = [int(longest.start[at]) for at in shown]
    return by_position("Entropy in nats by position.", names, starts, value)


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
        tables.append(Table(caption, columns, tuple(rows)))
    return tables


def _entropy_cell(s: EntropySummary | None) -> TableCell:
    if s is None:
        return TableCell("–", detail="not evaluated")
    interval = s.sequence.interval
    return TableCell(
        _nats(interval.mean),
        f"{_above_zero(interval)}\n{_nats(s.token_weighted)} by token",
        detail=f"at the mode's temperature {number(s.mode_entropy, 2)}; exp {number(s.exp)};"
        f" {s.mean_length:.0f} CoT tokens, {points(s.truncated)} % truncated",
    )


def _nats(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "not finite"


def _above_zero(interval: Interval) -> str:
    """Interval of what is never negative: a t interval may reach below 0, what is shown does not."""
    return f"[{max(interval.low, 0.0):.3f}, {interval.high:.3f}]".replace("nan", "–")


def drift_blocks(scores: Sequence[DriftScore]) -> list[Block]:
    """KL of each task."""
    blocks = []
    for index, task in enumerate(dict.fromkeys(score.task for score in scores)):
        mine = [score for score in scores if score.task == task]
        title = f"KL to the base model on {task}"
        told = [f"{s.name} {s.text} nats per token, {s.kind}" for s in mine]
        caption = (
            "Exact KL per token with 95 % intervals over problems and seeds; right: the first kind"
            " by position. Dotted: noise floor, the base model against itself at another batch"
            " size. Forward is KL(base‖checkpoint), reverse KL(checkpoint‖base)."
        )
        draw = partial(draw_drift, mine)
        figure = _figure(f"kl{index}", title, f"{'; '.join(told)}.", draw, caption)
        blocks.append(Block(task, figure, _drift_table(mine)))
    return blocks


def _drift_table(scores: Sequence[DriftScore]) -> Table:
    names = list(dict.fromkeys(s.name for s in scores))
    mine = {(s.name, s.kind): s for s in scores}
    rows = [
        (TableCell(kind), *(_drift_cell(mine.get((name, kind))) for name in names))
        for kind in dict.fromkeys(s.kind for s in scores)
    ]
    floors = [s.floor for s in scores if s.floor is not None]
    floor = f"noise floor {number(max(floors), 2)}" if floors else "noise floor not measured"
    caption = (
        f"Nats per token (95 % interval), {floor}; below, nats per sequence, which is a sequence KL"
        " only in reverse on own CoTs of hard sampling."
    )
    return Table(caption, ("KL", *names), tuple(rows))


def _drift_cell(s: DriftScore | None) -> TableCell:
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


def out_of_domain_block(scores: Sequence[OutOfDomainScore], paper: bool) -> Block | None:
    """Accuracy and NLL of the log-likelihood tasks."""
    if not scores:
        return None
    title = "Accuracy against NLL of the correct answer"
    told = [
        f"{s.task} {s.name}: {points(s.accuracy.mean)} %, {number(s.nll.mean)} nats" for s in scores
    ]
    caption = (
        "Accuracy against NLL per token of the correct answer, with 95 % intervals; small marks are"
        " single seeds. Up and left is better."
    )
    draw = partial(draw_out_of_domain, scores)
    figure = _figure("ood", title, f"{'; '.join(told)}.", draw, caption)
    rows = tuple(_out_of_domain_row(score, paper) for score in scores)
    columns = ("training", "accuracy, %", "NLL per token, nats", "NLL minus base", "questions")
    return Block(title, figure, Table("Log-likelihood tasks.", columns, rows))


def _out_of_domain_row(s: OutOfDomainScore, paper: bool) -> tuple[TableCell, ...]:
    references = [
        paper_out_of_domain(s.arm, s.task, metric) if paper else None
        for metric in ("accuracy_percent", "nll_correct_per_token")
    ]
    printed = [f"paper {r.text}" if r else "" for r in references]
    accuracy, nll = s.accuracy.interval, s.nll.interval
    sd = "" if np.isnan(s.accuracy.sd) else f" ± {points(s.accuracy.sd)}"
    nll_sd = "" if np.isnan(s.nll.sd) else f" ± {s.nll.sd:.3f}"
    to_base = TableCell("–")
    if s.to_base is not None:
        interval = f"[{s.to_base.low:+.3f}, {s.to_base.high:+.3f}]".replace("-", "−")
        to_base = TableCell(f"{s.to_base.diff:+.3f}".replace("-", "−"), interval)
    return (
        TableCell(s.name, s.task),
        TableCell(
            points(accuracy.mean) + sd,
            f"[{points(accuracy.low)}, {points(accuracy.high)}]",
            printed[0],
        ),
        TableCell(
            f"{_nats(nll.mean)}{nll_sd}",
            _above_zero(nll),
            printed[1],
        ),
        to_base,
        TableCell(str(s.questions)),
    )


def training_block(curves: Sequence[TrainingCurve]) -> FigureBlock | None:
    """Success against steps of the training runs given."""
    if not curves:
        return None
    title = "Training success against steps"
    told = [f"{c.name}: best validation {points(c.best[1])} %" for c in curves if c.best]
    rows = [
        [
            c.name,
            points(float(c.success[-1])) if len(c.success) else "–",
            points(c.best[1]) if c.best else "–",
            f"{c.best[0]:.0f}" if c.best else "–",
        ]
        for c in curves
    ]
    columns = ["training run", "last rollouts, %", "best validation, %", "at step"]
    return _figure(
        "training",
        title,
        f"{'; '.join(told) or 'no validation'}.",
        partial(draw_training, curves),
        "Success of the rollouts (smoothed over long runs) and of greedy validation on held-out"
        " training questions; thin lines are single runs, a ring marks the checkpoint that is kept.",
        simple_table("Training runs.", columns, rows),
    )
