"""pass@k beyond the samples drawn: what three models say, and whether they agree.

Readers ask whether the base model's curve meets the trained ones at a large k. Samples cannot say
beyond their own number; the models can, but disagree. Measured curve and models are kept apart, and
nothing here is ever put into a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softeval.errors import UserError
from softeval.reports.arms import Arm, Arms
from softeval.reports.cells import Key
from softeval.reports.curves import lanes
from softeval.reports.scores import Floats, Ints, complete_curve, curve_ks, usual_n
from softeval.statistics.extrapolation import FARTHEST, Extrapolation, extrapolate

MODELS = {
    "beta_binomial": "beta-binomial",
    "zero_inflated": "zero-inflated",
    "power_law": "power law",
}


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
    for (family, dataset), group in arms.groups.items():
        name = f"{family}, trained on {dataset}" if dataset else family
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
