"""Which part of a CoT the answer rests on: what `softeval attribute` decoded after changed CoTs.

Beside each change stand the share of answers that became others and the success after it, with the
paired difference from the same CoTs unchanged. Hard modes are the yardstick, modes like any other.
How near a step was to an ordinary token follows from the positions that the run has.

Shapes: S seeds, M problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from softeval.records import INTERVENTIONS
from softeval.reports.drawing import (
    Looks,
    dots,
    legend,
    looks,
    new_figure,
    spans,
    styled,
    vertical_grid,
)
from softeval.reports.layout import Heading, Paragraph, Part, Section, figure_block
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint
from softeval.reports.measured.cells import Key
from softeval.reports.tables import Table, TableCell, interval_text, number, points
from softeval.runs.parquet_files import read_parquet
from softeval.runs.run import RecordedMode
from softeval.statistics.contrast import Contrast, compare_methods
from softeval.statistics.crossed import crossed_mean
from softeval.statistics.interval import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = INTERVENTIONS[0]
NOT_MEASURED = Markup(
    "Not measured. <code>softeval attribute RUN</code> changes the recorded CoTs in one thing, decodes"
    " the answers again and writes them beside the run; then report again."
)
CAPTION = (
    "Answers after a CoT changed in one thing: every vector snapped to its top-1 token; the noise"
    " without its mixture; the vectors shuffled in time; those of another question; the CoT cut at"
    " 25, 50 and 75 %. {unit} with 95 % intervals over problems and seeds. Unchanged is the check of the"
    " replay: its answers must be the recorded ones."
)


@dataclass(frozen=True, eq=False)
class Effect:
    """What one change did to the answers of an arm in a mode.

    Attributes:
        name: of the arm.
        arm: the arm.
        key: task and mode.
        change: name of the change.
        changed: share of answers that became others.
        success: success after the change less that of the same CoTs unchanged, paired.
    """

    name: str
    arm: Arm
    key: tuple[str, RecordedMode]
    change: str
    changed: Interval
    success: Contrast


def find_attribution(arms: Arms) -> list[Effect]:
    """One entry a task, mode, arm and change; empty without `softeval attribute`."""
    found = [(arm, [_means(checkpoint) for checkpoint in arm.checkpoints]) for arm in arms.arms]
    return [
        effect
        for task, mode in arms.keys
        for arm, frames in found
        for effect in _effects(arms, arm, (task, mode), frames)
    ]


def _means(checkpoint: MeasuredCheckpoint) -> pd.DataFrame | None:
    """Share of changed and of right answers by task, mode, intervention and question."""
    import pandas as pd

    paths = [run.table_path("attribution") for run in checkpoint.runs if run.has("attribution")]
    if not paths:
        return None
    rows = pd.concat([read_parquet(path).to_pandas() for path in paths])
    by = ["task", "mode", "intervention", "doc_id"]
    means = rows.groupby(by).agg({"changed": "mean", "correct": "mean"})
    return means  # pyright: ignore[reportReturnType]


def _effects(
    arms: Arms, arm: Arm, key: tuple[str, RecordedMode], frames: Sequence[pd.DataFrame | None]
) -> Iterator[Effect]:
    """The changes of an arm in a mode, over the questions that every measured seed has."""
    import pandas as pd

    task, mode = key
    cells = [f.loc[(task, str(mode))] for f in frames if f is not None and (task, mode) in f.index]
    names = [set(cell.index.get_level_values("intervention")) for cell in cells]
    measured = set.intersection(*names) if names else set()
    for change in (name for name in INTERVENTIONS if name in measured):
        sides = [cell.loc[name] for name in (change, REFERENCE) for cell in cells]
        shared = pd.concat(sides, axis=1, join="inner")
        if shared.empty:
            continue
        changed_SM, correct_SM = (
            shared[column].to_numpy(float).T for column in ("changed", "correct")
        )
        after_SM, before_SM = np.split(correct_SM, 2)
        yield Effect(
            name=arms.name(arm),
            arm=arm,
            key=key,
            change=change,
            changed=crossed_mean(changed_SM[: len(cells)]).interval,
            success=compare_methods(after_SM, before_SM, paired=True),
        )


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """Table and figure of each task."""
    found = find_attribution(material.arms)
    for index, task in enumerate(dict.fromkeys(effect.key[0] for effect in found)):
        mine = [effect for effect in found if effect.key[0] == task]
        told = [
            f"{points(e.changed.mean)} % of answers of {e.name} change, {_what(e)}"
            for e in mine
            if e.change != REFERENCE
        ]
        yield Heading(task)
        yield figure_block(
            f"attribution{index}",
            f"What answers on {task} rest on",
            told,
            partial(draw_attribution, mine),
            CAPTION.format(unit="Left: share of answers that change; right: change of success;"),
        )
        yield _table(mine, f"{task}: attribution")
    if not found:
        yield Paragraph(NOT_MEASURED)


def _what(effect: Effect) -> str:
    mode = effect.key[1].replace("_", " ")
    return f"{effect.change.replace('_', ' ')}, {mode}"


def _table(effects: Sequence[Effect], label: str) -> Table:
    """Rows modes and arms, columns changes."""
    changes = [c for c in INTERVENTIONS if any(e.change == c for e in effects)]
    mine = {(e.name, e.key[1], e.change): e for e in effects}
    rows = [
        (
            TableCell(f"{e.key[1].replace('_', ' ')}, {e.name}"),
            _certainty(e.arm, e.key),
            *(_cell(mine.get((e.name, e.key[1], change))) for change in changes),
        )
        for e in effects
        if e.change == REFERENCE
    ]
    unit = (
        "Share of answers that change, percent; below, success after the change and its difference"
    )
    columns = ("", *(change.replace("_", " ") for change in changes))
    return Table(CAPTION.format(unit=unit), columns, tuple(rows), label, csv_rows=_csv(effects))


def _cell(e: Effect | None) -> TableCell:
    if e is None:
        return TableCell("–", detail="not defined in this mode, or not measured")
    gain = e.success
    note = f"{interval_text(e.changed.low, e.changed.high)}\nsuccess {points(gain.mean_a)}"
    if e.change != REFERENCE:
        note += f"\n{points(gain.diff, sign=True)} {interval_text(gain.low, gain.high)}"
    return TableCell(points(e.changed.mean), note, detail=f"{gain.problems} questions")


def _csv(effects: Sequence[Effect]) -> tuple[tuple[str, ...], ...]:
    header = ("arm", "mode", "change", "questions", "changed", "changed_low", "changed_high",
              "success", "difference", "low", "high", "p")  # fmt: skip
    rows = []
    for e in effects:
        share, gain = e.changed, e.success
        values = (share.mean, share.low, share.high, gain.mean_a, gain.diff, gain.low, gain.high)
        texts = (repr(value) for value in (*values, gain.p))
        rows.append((e.name, str(e.key[1]), e.change, str(gain.problems), *texts))
    return header, *rows


def _certainty(arm: Arm, key: Key) -> TableCell:
    """How near an arm's steps are to ordinary tokens."""
    sums = [c.positions[key] for c in arm.checkpoints if key in c.positions]
    tokens = sum(one.tokens for one in sums)
    if not tokens:
        return TableCell("–", detail="not recorded")
    effective = sum(one.effective_sum for one in sums) / tokens
    return TableCell(number(effective), f"{points(sum(one.sure for one in sums) / tokens)} % sure")


# Drawing -------------------------------------------------------------------------------------


def draw_attribution(effects: Sequence[Effect]) -> Figure:
    """A row a mode: shares of answers that change, and changes of success; a mark an arm."""
    with styled():
        modes = list(dict.fromkeys(e.key[1] for e in effects))
        named = looks([e.name for e in effects])
        changes = [c for c in INTERVENTIONS[1:] if any(e.change == c for e in effects)]
        figure = new_figure(0.8 + (0.4 + 0.24 * len(changes)) * len(modes))
        axes = figure.subplots(len(modes), 2, squeeze=False, sharex="col", sharey=True)
        for (left, right), mode in zip(axes, modes, strict=True):
            mine = [e for e in effects if e.key[1] == mode and e.change in changes]
            left.set_title(mode.replace("_", " "))
            _draw(left, [(e, e.changed.mean, e.changed.low, e.changed.high) for e in mine],
                  changes, named)  # fmt: skip
            _draw(right, [(e, e.success.diff, e.success.low, e.success.high) for e in mine],
                  changes, named)  # fmt: skip
        axes[-1][0].set_xlabel("answers that change, %")
        axes[-1][1].set_xlabel("change of success, points")
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
    vertical_grid(axes)


SECTION = Section(
    "attribution",
    "Attribution",
    "What the answer rests on",
    {"Attribution": _parts},
)
