"""Which part of a CoT the answer rests on: what `softeval attribute` decoded after changed CoTs.

Beside each change stand the share of answers that became others and the success after it, with the
paired difference from the same CoTs unchanged. Controls are hard CoTs in the place of a mode's own:
matched hard sampling, and the same under the mode's stop rule. Hard modes are the yardstick, modes
like any other.

Shapes: S seeds, M problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from softeval.records import CONTROLS, INTERVENTIONS
from softeval.reports.drawing import (
    MUTED,
    Looks,
    a_row,
    dots,
    legend,
    looks,
    new_figure,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.layout import AMBER, Details, Heading, Paragraph, Part, Section, figure_block
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.attribution import REFERENCE, of_cell, read_attribution
from softeval.reports.tables import Table, TableCell, interval_text, points
from softeval.runs.run import RecordedMode, Run
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.crossed import crossed_mean
from softeval.statistics.interval import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEXT_TOKEN = "next_token"
SHOWN = (NEXT_TOKEN, *INTERVENTIONS[1:], *CONTROLS)
"""Changes as they are shown; the first is of single steps."""
STOP_RULE = CONTROLS[1]
MODES_A_ROW = 2
STALE = (
    "Judged by other rules than the samples: {runs}. The verdicts below are those of softeval attribute"
    " before softeval score; softeval attribute RUN makes them anew."
)
NOT_REPLAYED = (
    "Not replayed bit for bit: {runs}. That many unchanged CoTs gave another answer text than recorded"
    " (rounding on another device, or a model whose batches change its results), so the shares of"
    " changed answers hold as much by themselves: see unchanged."
)
OTHERWISE = "CoTs that came out otherwise than recorded, measured as they are now: {runs}."
NOT_MEASURED = Markup(
    "Not measured. <code>softeval attribute RUN</code> changes the recorded CoTs in one thing, decodes"
    " the answers again and writes them beside the run; then report again."
)
CAPTION = (
    "Answers after a CoT changed in one thing: every vector snapped to its top-1 token; the noise"
    " without its mixture; the vectors shuffled in time; those of another question; the CoT cut at"
    " 25, 50 and 75 %. Controls, hard CoTs in its place: matched hard, tokens drawn from the mode's own"
    " distribution, temperature and filters included; stop rule, the same ended where the mode's own"
    " rule ends it. Next token: of some steps alone, whether the likeliest next token is another when"
    " the top-1 token is fed instead. {unit} with 95 % intervals over problems and seeds."
)
UNIT = (
    "Share of answers that change, percent; below, success after the change and its paired"
    " difference. Unchanged is the check of the replay: its answers must be the recorded ones."
)


@dataclass(frozen=True, eq=False)
class Effect:
    """What one change did to the answers of an arm in a mode.

    Attributes:
        name: of the arm.
        key: task and mode.
        change: name of the change.
        changed: share of answers, or of next tokens, that became others.
        success: success after the change less that of the same CoTs unchanged, paired; None of
            single steps.
        stopped: share of CoTs that the mode's own rule ended.
    """

    name: str
    key: tuple[str, RecordedMode]
    change: str
    changed: Interval
    success: Contrast | None
    stopped: float = 0.0


def find_attribution(arms: Arms) -> list[Effect]:
    """One entry a task, mode, arm and change; empty without `softeval attribute`."""
    found = [(arm, [read_attribution(c) for c in arm.checkpoints]) for arm in arms.arms]
    return [
        effect
        for key in arms.keys
        for arm, frames in found
        for change in (*INTERVENTIONS, *CONTROLS)
        for effect in _effects(arms, arm, key, change, frames)
    ]


def _effects(
    arms: Arms,
    arm: Arm,
    key: tuple[str, RecordedMode],
    change: str,
    frames: Sequence[pd.DataFrame | None],
) -> Iterator[Effect]:
    """A change of an arm in a mode, over the questions that every measured seed has."""
    import pandas as pd

    cells, before = (of_cell(frames, *key, name) for name in (change, REFERENCE))
    if not cells or len(cells) < len(before):
        return
    shared = pd.concat([*cells, *before], axis=1, join="inner")
    if shared.empty:
        return
    changed_SM, correct_SM, stopped_SM = (
        shared[[column]].to_numpy(float).T for column in ("changed", "correct", "stopped")
    )
    after_SM, before_SM = np.split(correct_SM, 2)
    yield Effect(
        name=arms.name(arm),
        key=key,
        change=change,
        changed=crossed_mean(changed_SM[: len(cells)]).interval,
        success=compare_methods(after_SM, before_SM, paired=True),
        stopped=float(stopped_SM[: len(cells)].mean()),
    )
    if change == REFERENCE:
        yield from _next_token(arms.name(arm), key, cells)


def _next_token(
    name: str, key: tuple[str, RecordedMode], cells: Sequence[pd.DataFrame]
) -> Iterator[Effect]:
    """Single steps, over the questions of which every seed tried one."""
    import pandas as pd

    tried = pd.concat([cell["agreement"] for cell in cells], axis=1, join="inner").dropna()
    if len(tried):
        yield Effect(name, key, NEXT_TOKEN, crossed_mean(1 - tried.to_numpy().T).interval, None)


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """A figure of each task, and on demand a table a mode."""
    found = find_attribution(material.arms)
    stale = [run.path.name for run in material.arms.runs if _is_stale(run)]
    if stale:
        yield Paragraph(STALE.format(runs=", ".join(stale)), AMBER)
    for text, name in ((OTHERWISE, "otherwise"), (NOT_REPLAYED, "differing")):
        told = [f"{r.path.name}, {n}" for r in material.arms.runs if (n := _count(r, name))]
        if told:
            yield Paragraph(text.format(runs="; ".join(told)), AMBER)
    for index, task in enumerate(dict.fromkeys(effect.key[0] for effect in found)):
        mine = [effect for effect in found if effect.key[0] == task]
        told = [
            f"{points(e.changed.mean)} % of {_counted(e)} of {e.name} change, {_what(e)}"
            for e in mine
            if e.change != REFERENCE
        ]
        yield Heading(task)
        yield figure_block(
            f"attribution{index}",
            f"What answers on {task} rest on",
            told,
            partial(draw_attribution, mine),
            CAPTION.format(unit="Left: share that changes; right: change of success;"),
        )
        for mode in dict.fromkeys(e.key[1] for e in mine):
            name = mode.replace("_", " ")
            of_mode = [e for e in mine if e.key[1] == mode]
            yield Details(name, (_table(of_mode, f"{task}, {name}: attribution"),), "view")
    if not found:
        yield Paragraph(NOT_MEASURED)


def _entries(run: Run) -> list[Mapping[str, Any]]:
    """What the run's record says of each mode that was replayed."""
    return list((run.info.get("attribution") or {}).values())


def _is_stale(run: Run) -> bool:
    """Whether the run's samples have been judged by another scorer since."""
    scorer = run.info.get("scorer")
    return any(entry.get("scorer", scorer) != scorer for entry in _entries(run))


def _count(run: Run, name: str) -> int:
    return sum(int(entry.get(name, 0)) for entry in _entries(run))


def _counted(effect: Effect) -> str:
    return "next tokens" if effect.change == NEXT_TOKEN else "answers"


def _what(effect: Effect) -> str:
    return f"{effect.change}, {effect.key[1]}".replace("_", " ")


def _table(effects: Sequence[Effect], label: str) -> Table:
    """Rows changes and controls, columns arms."""
    names = list(dict.fromkeys(e.name for e in effects))
    mine = {(e.change, e.name): e for e in effects}
    rows = [
        (
            TableCell(change.replace("_", " ")),
            *(_cell(mine.get((change, name))) for name in names),
        )
        for change in (REFERENCE, *SHOWN)
        if any(e.change == change for e in effects)
    ]
    return Table(CAPTION.format(unit=UNIT), ("", *names), tuple(rows), label)


def _cell(e: Effect | None) -> TableCell:
    if e is None:
        return TableCell("–", detail="not defined in this mode, or not measured")
    note = interval_text(e.changed.low, e.changed.high)
    if e.success is None:
        return TableCell(points(e.changed.mean), note)
    gain = e.success
    note += f"\nsuccess {points(gain.mean_a)}"
    if e.change != REFERENCE:
        note += f"\n{points(gain.diff, sign=True)} {interval_text(gain.low, gain.high)}"
    if e.change == STOP_RULE:
        note += f"\nrule ended {points(e.stopped)} %"
    return TableCell(points(e.changed.mean), note, detail=f"{gain.problems} questions")


# Drawing -------------------------------------------------------------------------------------


def draw_attribution(effects: Sequence[Effect]) -> Figure:
    """For each mode, shares that change and changes of success: a row a change, a mark an arm."""
    with styled():
        modes = list(dict.fromkeys(e.key[1] for e in effects))
        named = looks([e.name for e in effects])
        changes = [c for c in SHOWN if any(e.change == c for e in effects)]
        columns = min(a_row(MODES_A_ROW), len(modes))
        rows = -(-len(modes) // columns)
        figure = new_figure(0.8 + (0.6 + 0.24 * len(changes)) * rows)
        axes = figure.subplots(rows, 2 * columns, squeeze=False, sharex="col", sharey=True)
        places = axes.reshape(-1, 2)
        for (left, right), mode in zip(places, modes, strict=False):
            left.set_title(mode.replace("_", " "))
            mine = [e for e in effects if e.key[1] == mode and e.change in changes]
            shares = [(e, e.changed.mean, e.changed.low, e.changed.high) for e in mine]
            gains = [(e, s.diff, s.low, s.high) for e in mine if (s := e.success) is not None]
            _draw(left, shares, changes, named)
            _draw(right, gains, changes, named)
            right.axvline(0, color=MUTED, lw=0.8)
        for left, right in places[len(modes) :]:
            left.set_axis_off()
            right.set_axis_off()
        for left, right in places[max(0, len(modes) - columns) : len(modes)]:
            for axis, label in ((left, "share that changes, %"), (right, "success, points")):
                axis.set_xlabel(label, visible=True)  # shared axes hide it above an empty place
        legend(figure, named)
        return figure


def _draw(
    axes: Axes,
    marks: Sequence[tuple[Effect, float, float, float]],
    changes: list[str],
    named: Looks,
) -> None:
    """The arms stand side by side within the row of a change."""
    names = list(named)
    series = []
    for effect, *ends in marks:
        place = 0.6 * ((names.index(effect.name) + 0.5) / len(names) - 0.5)
        at = changes.index(effect.change) + place
        series.append(spans(effect.name, at, *(100 * value for value in ends)))
    dots(axes, series, named, orient="y")
    axes.set_yticks(range(len(changes)), [change.replace("_", " ") for change in changes])
    axes.set_ylim(len(changes) - 0.5, -0.5)
    axes.tick_params(labelbottom=True)
    vertical_grid(axes)


SECTION = Section(
    "attribution",
    "Attribution",
    "What the answer rests on",
    {"Attribution": _parts},
)
