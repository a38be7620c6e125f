"""All modes side by side in what makes them comparable: temperature, entropy, size of the noise.

A mode that solves more at another entropy than its control has not been told apart from it; so
success stands beside what a step was like: how many tokens it weighed, how often it was an ordinary
token in effect, and what its draw or noise did to the next token.

Shapes: S seeds, M problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from softeval.reports.layout import QUIET, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm
from softeval.reports.measured.attribution import REFERENCE, of_cell, read_attribution
from softeval.reports.measured.cells import Key
from softeval.reports.measured.scores import arm_score, entropy_scores
from softeval.reports.tables import (
    Table,
    TableCell,
    interval_text,
    nats,
    not_negative,
    number,
    points,
)
from softeval.runs.run import RecordedMode
from softeval.statistics.crossed import crossed_mean

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "", "temperature", "pass@1", "length", "entropy", "effective", "sure", "draw KL", "kept",
)  # fmt: skip
EXPLANATION = (
    "pass@1 in percent; length in CoT tokens; entropy of the next token at temperature 1, nats, mean"
    " of a CoT, below it weighted by tokens;"
    " effective tokens, exp of the entropy of the mode's own distribution; sure steps, percent, whose"
    " largest probability at temperature 1 is at least 0.99; draw KL, nats, from the next token after"
    " the mode's mixture to that after what was fed, 0 without draw or noise; next tokens kept, percent,"
    " when the top-1 token is fed in the place of the vector. Means over tokens, the last two over the"
    " steps that were tried, with 95 % intervals over questions and seeds."
)
NOT_TRIED = Markup(
    "The last two columns come with <code>softeval attribute RUN</code>, which takes some steps once"
    " more with another vector."
)
UNKNOWN = TableCell("–", detail="not measured")


def _parts(material: Material) -> Iterator[Part]:
    """A table of each task and arm."""
    arms, tried = material.arms, False
    for task in arms.tasks:
        for arm in arms.arms:
            frames = [read_attribution(c) for c in arm.checkpoints]
            tried = tried or any(frame is not None for frame in frames)
            keys = [(task, mode) for mode in arms.modes if arm.having((task, mode))]
            rows = tuple(_row(arm, key, frames) for key in keys)
            name = arms.name(arm)
            if rows:
                title = f"{task}, {name}"
                yield Table(title, COLUMNS, rows, f"{title}: modes side by side")
    if arms.tasks:
        yield Paragraph(EXPLANATION, QUIET)
    if arms.tasks and not tried:
        yield Paragraph(NOT_TRIED)


def _row(arm: Arm, key: Key, frames: Sequence[pd.DataFrame | None]) -> tuple[TableCell, ...]:
    task, mode = key
    steps = of_cell(frames, task, mode, REFERENCE)
    return (
        _named(mode),
        TableCell(f"{mode.options['temperature']:g}" if "temperature" in mode.options else "–"),
        _success(arm, key),
        *_certainty(arm, key),
        _over_questions(steps, "step_kl"),
        _over_questions(steps, "agreement"),
    )


def _named(mode: RecordedMode) -> TableCell:
    """With its options, less those of no effect and the temperature, which has a column."""
    options = {k: v for k, v in mode.options.items() if k != "temperature"}
    return TableCell(
        mode.replace("_", " "), " ".join(f"{k} {_short(v)}" for k, v in options.items())
    )


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _success(arm: Arm, key: Key) -> TableCell:
    score = arm_score(arm, key, 1)
    if score is None:
        return UNKNOWN
    found = score.mean.interval
    return TableCell(points(found.mean), interval_text(found.low, found.high))


def _certainty(arm: Arm, key: Key) -> Iterator[TableCell]:
    """Length, entropy, effective tokens and share of sure steps; all but the first over tokens."""
    yield TableCell(f"{np.mean([c.cells[key].length_R.mean() for c in arm.having(key)]):.1f}")
    sums = [c.positions[key] for c in arm.checkpoints if key in c.positions]
    tokens = sum(one.tokens for one in sums)
    if not tokens:
        yield from (UNKNOWN, UNKNOWN, UNKNOWN)
        return
    by_token = nats(sum(one.token_weighted * one.tokens for one in sums) / tokens)
    means = entropy_scores(arm, key)
    if means is None:
        yield TableCell("–", f"{by_token} by token")
    else:
        found = crossed_mean(means[1], bounded=False).interval
        shown = f"{not_negative(found.low, found.high)}\n{by_token} by token"
        yield TableCell(nats(found.mean), shown)
    yield TableCell(f"{sum(one.effective_sum for one in sums) / tokens:.2f}")
    yield TableCell(points(sum(one.sure for one in sums) / tokens))


def _over_questions(cells: Sequence[pd.DataFrame], column: str) -> TableCell:
    """Mean over the questions of which every seed tried a step."""
    import pandas as pd

    if not cells:
        return UNKNOWN
    tried = pd.concat([cell[column] for cell in cells], axis=1, join="inner").dropna()
    if tried.empty:
        return UNKNOWN
    share = column == "agreement"
    found = crossed_mean(tried.to_numpy().T, bounded=share).interval
    if share:
        return TableCell(points(found.mean), interval_text(found.low, found.high))
    low, high = number(max(found.low, 0.0), 2), number(found.high, 2)
    return TableCell(number(found.mean, 2), f"[{low}, {high}]")


SECTION = Section("families", "Side by side", "Modes side by side", {"Modes side by side": _parts})
