"""Every comparison with its interval, what could be detected, and who solves what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from softeval.reports.contrasts import Comparison
from softeval.reports.drawing import (
    INK,
    MUTED,
    RULE,
    SMALLEST,
    Look,
    a_row,
    dots,
    new_figure,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.escaping import printed
from softeval.reports.layout import Details, Heading, Paragraph, Part, Section, figure_block
from softeval.reports.material import Material
from softeval.reports.tables import (
    Table,
    TableCell,
    detectable_text,
    interval_text,
    margin_text,
    on_questions,
    p_text,
    points,
)
from softeval.runs.run import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.3  # inches
LONGEST_SIDE, LONGEST_ON_PHONE = 24, 14


def _parts(material: Material) -> Iterator[Part]:
    """A forest plot of each task, its table on demand; what else there is by kind of inference."""
    margin = material.options.margin
    by_task: dict[str, dict[str, list[Comparison]]] = {}
    for c in material.comparisons:
        by_task.setdefault(c.metric.task, {}).setdefault(_inference(c), []).append(c)
    for index, (task, by_inference) in enumerate(by_task.items()):
        if len(by_task) > 1:
            yield Heading(task)
        ordered = sorted(by_inference.items(), key=lambda item: bool(item[0]))
        for at, (kind, mine) in enumerate(ordered):
            parts = _shown(mine, f"{task} {kind.lower()}".strip(), f"forest{index}-{at}", margin)
            yield from parts if at == 0 else [Details(kind, parts, "view")]
    if not material.comparisons:
        yield Paragraph("Nothing to compare: give several runs, or one run of several modes.")


def _inference(c: Comparison) -> str:
    """What an exploratory comparison under another than hard inference stands under; else ""."""
    other = c.a.mode == c.b.mode and c.a.mode.family != REFERENCE
    return f"Under {c.a.mode.family} inference" if other and c.metric.mode and not c.primary else ""


def _shown(
    comparisons: Sequence[Comparison], where: str, name: str, margin: float
) -> tuple[Part, ...]:
    told = [f"{c.name}, {c.metric_name}: {c.verdict.word}" for c in comparisons if c.primary]
    caption = (
        f"Difference A − B in points with its 95 % interval. {_origins(comparisons)} Open:"
        " exploratory. Ticks: minimum detectable effect. Grey zone:"
        f" ±{margin_text(margin)} points, within which sides count as equivalent. Bars: share of"
        " problems on which one side does better."
    )
    figure = figure_block(
        name,
        f"Comparisons on {where}",
        [f"Primary comparisons: {'; '.join(told) or 'none'}"],
        partial(draw_forest, comparisons, margin),
        caption,
    )
    table = comparison_table(comparisons, margin, f"{where}: comparisons")
    return figure, Details(f"All {len(comparisons)} as a table", (table,))


def _origins(comparisons: Sequence[Comparison]) -> str:
    """What the filled marks of a forest plot are."""
    origins = dict.fromkeys(c.origin for c in comparisons if c.primary)
    return f"Filled: primary, {' or '.join(origins)}." if origins else ""


def comparison_table(comparisons: Sequence[Comparison], margin: float, label: str = "") -> Table:
    """Every comparison with its effect first and p last; scopes and tests are its footnotes."""
    columns = ("comparison", "A, B, %", "difference, points", "detectable", "verdict")
    columns += ("A / B does better on", "p")
    marks = {text: chr(ord("a") + at) for at, text in enumerate(_footnotes(comparisons))}
    rows = tuple(_comparison_row(c, margin, marks) for c in comparisons)
    caption = (
        "A − B, positive when A solves more. Without a word exploratory; p of primary ones after"
        f" Holm's adjustment. {' '.join(f'{mark}: {text}.' for text, mark in marks.items())}"
    )
    return Table(caption, columns, rows, label, text_columns=(4,))


def _footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """Since when comparisons are primary, over what they generalise, and their tests, each once."""
    origins = [f"primary, {c.origin}" for c in comparisons if c.primary]
    scopes, tests = [c.contrast.scope for c in comparisons], [c.contrast.test for c in comparisons]
    return list(dict.fromkeys([*origins, *scopes, *tests]))


def _comparison_row(
    c: Comparison, margin: float, marks: Mapping[str, str]
) -> tuple[TableCell, ...]:
    contrast, counts = c.contrast, c.contrast.discordance
    word: str = c.verdict.word
    if word == "equivalent":
        found = c.verdict.equivalence
        word += f" (±{margin_text(margin)}; 90 % interval {interval_text(found.low, found.high)})"
    elif word != "inconclusive" and c.verdict.within_margin:
        word += f", by less than {margin_text(margin)}"
    primary = f"primary {marks[f'primary, {c.origin}']}, " if c.primary else ""
    return (
        TableCell(c.name, c.metric_name),
        TableCell(f"{points(contrast.mean_a)}, {points(contrast.mean_b)}"),
        TableCell(
            points(contrast.diff, sign=True),
            interval_text(contrast.low, contrast.high),
        ),
        TableCell(detectable_text(contrast.mde)),
        TableCell(word, f"{primary}{marks[contrast.scope]}"),
        TableCell(
            f"{counts.a_only} / {counts.b_only}",
            f"of {on_questions(contrast.problems, c.questions)}",
        ),
        TableCell(p_text(c.verdict.p), marks[contrast.test]),
    )


# Drawing -------------------------------------------------------------------------------------


def draw_forest(comparisons: Sequence[Comparison], margin: float) -> Figure:
    """One row a comparison, the primary ones first and filled; effects in points.

    Args:
        comparisons: of one task.
        margin: equivalence margin, drawn as a zone around zero; a fraction.
    """
    with styled():
        figure = new_figure(1.0 + ROW * len(comparisons) * (1 if a_row(2) == 2 else 1.7))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3.2, 1.0])
        left.axvspan(-100 * margin, 100 * margin, color=RULE, alpha=0.6, lw=0)
        left.axvline(0, color=INK, lw=0.8)
        _draw_effects(left, comparisons)
        _draw_discordances(right, comparisons)
        _finish(left, right, comparisons)
        return figure


def _draw_effects(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    """Primary effects filled and heavy, exploratory ones open."""
    for primary, colour, fill in ((True, "ink", INK), (False, "muted", "none")):
        effects = [
            spans("", y, 100 * c.contrast.diff, 100 * c.contrast.low, 100 * c.contrast.high)
            for y, c in enumerate(comparisons)
            if c.primary == primary
        ]
        width = 2.0 if primary else 1.1
        dots(
            axes, effects, {"": Look(colour, "", "o")}, orient="y", bars=width,
            mfc=fill, mec=INK if primary else MUTED, mew=1,
        )  # fmt: skip
    for y, contrast in ((y, c.contrast) for y, c in enumerate(comparisons)):
        if contrast.se > 0:
            ends = [-100 * contrast.mde, 100 * contrast.mde]
            axes.plot(ends, [y, y], "|", color=MUTED, ms=7, mew=0.9)


def _draw_discordances(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    """Problems on which one side does better: B to the left, A to the right."""
    import seaborn

    counts = [c.contrast.discordance for c in comparisons]
    rows = list(range(len(counts)))
    for sides, colour, alpha in (
        ([c.a_only for c in counts], INK, 1.0),
        ([-c.b_only for c in counts], MUTED, 0.55),
    ):
        shares = [
            100 * side / max(count.problems, 1) for side, count in zip(sides, counts, strict=True)
        ]
        seaborn.barplot(
            x=shares, y=rows, orient="y", native_scale=True, width=0.5, color=colour, alpha=alpha,
            saturation=1, linewidth=0, ax=axes,
        )  # fmt: skip


def _row_name(c: Comparison) -> str:
    """Matplotlib writes tick labels itself, so they are made fit here; an arm is named once."""
    longest = LONGEST_SIDE if a_row(2) == 2 else LONGEST_ON_PHONE
    a, b = (printed(side.name, longest) for side in (c.a, c.b))
    modes = [side.mode.replace("_", " ") for side in (c.a, c.b)]
    arm, other = (s.name.removesuffix(m) for s, m in zip((c.a, c.b), modes, strict=True))
    if c.a.mode != c.b.mode and arm == other and arm:
        a, b = f"{printed(arm.strip(), longest)}: {modes[0]}", modes[1]
    entered = c.contrast.problems
    fewer = f" ({entered} of {c.questions} questions)" if entered < c.questions else ""
    return f"{a} − {b} · {printed(c.metric_name)}{fewer}"


def _finish(left: Axes, right: Axes, comparisons: Sequence[Comparison]) -> None:
    names = [_row_name(c) for c in comparisons]
    if a_row(2) == 2:
        left.set_yticks(range(len(names)), names)
        left.tick_params(axis="y", labelcolor=INK)
    else:
        left.set_yticks([])
        for y, name in enumerate(names):
            _above(left, y, name)
    left.set_ylim(len(names) - 0.4, -0.6)
    primary = sum(c.primary for c in comparisons)
    for axes in (left, right):
        vertical_grid(axes)
        axes.spines["left"].set_visible(False)
        if 0 < primary < len(comparisons):
            axes.axhline(primary - 0.5, color=MUTED, lw=0.7, ls=":")
    left.set_xlabel("difference in points")
    right.axvline(0, color=INK, lw=0.8)
    widest = max(abs(limit) for limit in right.get_xlim())
    right.set_xlim(-widest, widest)
    right.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    right.set_xlabel("B | A\nbetter, %")


def _above(axes: Axes, y: int, name: str) -> None:
    """The name of a row above its marks, over the whole width: a phone has no room beside them."""
    place, size = axes.get_yaxis_transform(), SMALLEST
    text = axes.text(0, y - 0.28, name, transform=place, fontsize=size, va="bottom")
    text.set_in_layout(False)


SECTION = Section("comparisons", "Comparisons", "Comparisons", {"Comparisons": _parts})
