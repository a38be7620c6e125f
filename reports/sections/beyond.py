"""pass@k beyond the samples drawn: what three models say, and whether they agree.

Readers ask whether the base model's curve meets the trained ones at a large k. Samples cannot say
beyond their own number; the models can, but disagree. Measured curve and models are kept apart, and
nothing here is ever put into a table. It stands in the section of the pass@k curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from softeval.errors import UserError
from softeval.reports.drawing import (
    MUTED,
    WIDTH,
    Look,
    k_axis,
    legend,
    looks,
    panel_row,
    percent_axis,
    styled,
)
from softeval.reports.layout import Heading, Part, figure_block
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms
from softeval.reports.measured.cells import Key
from softeval.reports.measured.scores import Floats, Ints, complete_curve, curve_ks, usual_n
from softeval.reports.tables import points
from softeval.runs.run import RecordedMode
from softeval.statistics.extrapolation import FARTHEST, OUTSIDE, Extrapolation, extrapolate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = {
    "beta_binomial": "beta-binomial",
    "zero_inflated": "zero-inflated",
    "power_law": "power law",
}
DASHES = {"beta_binomial": (6, 2), "zero_inflated": (2, 2), "power_law": (6, 2, 1, 2)}


@dataclass(frozen=True)
class Lane:
    """Modes that one panel shows together: a family's sampled mode and its greedy one."""

    title: str
    sampled: RecordedMode | None
    greedy: RecordedMode | None


def lanes(arms: Arms) -> list[Lane]:
    """The lanes of a report; a family of several sampled or greedy modes has one for each."""
    found = []
    for family in dict.fromkeys(mode.family for mode in arms.modes):
        sampled, greedy = arms.modes_of(family, False), arms.modes_of(family, True)
        if len(sampled) <= 1 and len(greedy) <= 1:
            pair = (modes[0] if modes else None for modes in (sampled, greedy))
            found.append(Lane(family, *pair))
        else:
            found += [Lane(mode.replace("_", " "), mode, None) for mode in sampled]
            found += [Lane(mode.replace("_", " "), None, mode) for mode in greedy]
    return found


@dataclass(frozen=True, eq=False)
class Continuation:
    """One arm's curve, measured and continued.

    Attributes:
        name: in the legend.
        ks: measured k, powers of two up to n.
        measured: pass@k there, mean over seeds and problems.
        beyond: the models from n on, means over the seeds' own fits.
    """

    name: str
    ks: list[int]
    measured: Floats
    beyond: Extrapolation


@dataclass(frozen=True, eq=False)
class BeyondFigure:
    """All arms of one group and task; panels by kind of CoT.

    Attributes:
        name: of the group, for the heading.
        task: the task.
        panels: kind of CoT -> its curves, the base model first.
        largest: K.
    """

    name: str
    task: str
    panels: dict[str, tuple[Continuation, ...]]
    largest: int


def find_beyond(arms: Arms, largest: int | None) -> list[BeyondFigure]:
    """The continued curves of a report; none where no K was asked for.

    Raises:
        UserError: K is not beyond the samples, or is too far beyond them.
    """
    if largest is None:
        return []
    figures = []
    for name, group in arms.named_groups:
        for task in arms.tasks:
            panels = {
                lane.title: _panel(arms, group, (task, lane.sampled), largest)
                for lane in lanes(arms)
                if lane.sampled is not None
            }
            shown = {kind: curves for kind, curves in panels.items() if curves}
            if shown:
                figures.append(BeyondFigure(name, task, shown, largest))
    return figures


def meeting(first: Continuation, second: Continuation) -> dict[str, int | None]:
    """By model: the smallest K beyond n at which it ends the measured lead, None where it keeps it."""
    led = first.measured[-1] - second.measured[-1]
    found: dict[str, int | None] = {}
    for model in MODELS:
        lead_K = getattr(first.beyond, model) - getattr(second.beyond, model)
        lost = np.flatnonzero((lead_K * led < 0) & (first.beyond.ks > first.beyond.n))
        found[model] = int(first.beyond.ks[lost[0]]) if len(lost) else None
    return found


def _panel(arms: Arms, group: Sequence[Arm], key: Key, largest: int) -> tuple[Continuation, ...]:
    found = (_continuation(arm, arms.name(arm), key, largest) for arm in group if arm.having(key))
    return tuple(continuation for continuation in found if continuation is not None)


def _continuation(arm: Arm, name: str, key: Key, largest: int) -> Continuation | None:
    """None where no problem has every k for every seed."""
    checkpoints = arm.having(key)
    n = usual_n(c.cells[key] for c in checkpoints)
    if not n < largest <= FARTHEST * n:
        raise UserError(
            f"--extrapolate {largest}: {name} has {n} samples a problem on {key[0]} under {key[1]};"
            f" choose {n + 1} to {FARTHEST * n}, or rerun with another --num-samples"
        )
    ks = curve_ks(n)
    doc_M, x_SMK = complete_curve(checkpoints, key, ks)
    if not len(doc_M):
        return None
    # Where some problem has fewer samples, the models are fitted to all there are.
    fits = [_fit(c.cells[key].n_M, c.cells[key].c_M, n, largest) for c in checkpoints]
    means = {model: np.mean([getattr(fit, model) for fit in fits], axis=0) for model in MODELS}
    beyond = Extrapolation(fits[0].ks, n=n, **means)
    return Continuation(name, ks, x_SMK.mean(axis=(0, 1)), beyond)


def _fit(n_M: Ints, c_M: Ints, n: int, largest: int) -> Extrapolation:
    kept = n_M >= n
    return extrapolate(n_M[kept], c_M[kept], _continued(n, largest))


def _continued(n: int, largest: int) -> list[int]:
    """n, every power of two beyond it, quarter steps between them, and K."""
    steps = np.arange(4 * np.log2(n), 4 * np.log2(largest)) / 4
    return sorted({n, largest} | {round(2**step) for step in steps if 2**step > n})


def beyond_parts(material: Material) -> Iterator[Part]:
    """Extrapolated curves: figures and sentences, never a table."""
    for index, beyond in enumerate(find_beyond(material.arms, material.options.extrapolate)):
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
        yield Heading(f"{beyond.task} · {beyond.name}, extrapolated to k = {beyond.largest}")
        yield figure_block(
            f"beyond{index}",
            f"pass@k beyond the samples on {beyond.task}: {beyond.name}",
            [f"At k = {beyond.largest}: {'; '.join(told)}"],
            partial(draw_beyond, beyond),
            caption.strip(),
        )


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


# Drawing -------------------------------------------------------------------------------------


def draw_beyond(figure: BeyondFigure) -> Figure:
    """One panel a kind of CoT; a dotted line stands where the samples end."""
    with styled():
        panels = figure.panels
        width = WIDTH if len(panels) > 1 else 6.2
        drawing, axes = panel_row(len(panels), 3.4, width, sharey=True)
        named = looks([curve.name for curves in panels.values() for curve in curves])
        for axis, (kind, curves) in zip(axes, panels.items(), strict=True):
            axis.set_title(f"{kind} inference")
            for curve in curves:
                _draw(axis, curve, named[curve.name])
            axis.axvline(curves[0].beyond.n, color=MUTED, lw=0.8, ls=":")
            k_axis(axis, figure.largest)
        percent_axis(axes[0], "problems solved, %")
        legend(drawing, named)
        return drawing


def _draw(axes: Axes, curve: Continuation, look: Look) -> None:
    axes.plot(curve.ks, curve.measured, color=look.colour, marker=look.marker, ms=4)
    beyond = [getattr(curve.beyond, model) for model in MODELS]
    axes.fill_between(
        curve.beyond.ks, np.min(beyond, axis=0), np.max(beyond, axis=0),
        facecolor="none", edgecolor=look.colour, hatch="////", lw=0, alpha=0.4,
    )  # fmt: skip
    for model, line in zip(MODELS, beyond, strict=True):
        axes.plot(curve.beyond.ks, line, color=look.colour, ls=(0, DASHES[model]), lw=1)
