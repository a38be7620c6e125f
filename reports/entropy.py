"""Entropy by position of every arm, task and mode: profiles ready to draw and to tabulate.

The mean at position t is over the CoTs that are still running at t, a set that changes with t; so
each profile comes with its risk set, and beside it stand the fixed cohort, the length terciles,
relative progress and the last positions. Entropies are of the distribution at temperature 1, nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from softeval.reports.arms import Arm, Arms
from softeval.reports.cells import Key
from softeval.reports.positions import EntropySums
from softeval.statistics.crossed import CrossedMean, crossed_mean
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, position_profile

POINTS = 64
"""Points of a line, at most: positions are put together in bins of 1, 2, 4, 8, … of them."""

VIEWS = {
    "all": "All chains of thought",
    "cohort": "Fixed cohort",
    "terciles": "Length terciles",
    "progress": "Relative progress",
    "end": "Last positions",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """One line of an entropy panel."""

    name: str
    profile: Profile


@dataclass(frozen=True, eq=False)
class EntropyFigure:
    """One view of a task: a panel a mode, a line an arm.

    Attributes:
        name: of the group of arms.
        task: the task.
        view: one of `VIEWS`.
        panels: by mode, its lines.
        cohort: shortest CoT of the fixed cohort, tokens.
        width: positions in a bin.
        split: arms whose CoTs the view of terciles splits, one or more over the panels.
        absent: lines, or parts of them, that cannot be drawn, and why.
    """

    name: str
    task: str
    view: str
    panels: dict[str, tuple[Trace, ...]]
    cohort: int
    width: int
    split: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EntropySummary:
    """Entropy of an arm on a task under a mode, as numbers.

    Attributes:
        name: of the arm.
        task: the task.
        mode: the mode.
        token_weighted: mean over all CoT tokens, nats.
        sequence: mean over problems of the mean over CoTs of each one's token mean, with interval.
        mode_entropy: mean over tokens at the mode's own temperature.
        exp: exp of the sequence mean: the number of equally likely tokens it amounts to.
        truncated: share of CoTs that ended at the cap: censored, not finished.
        mean_length: CoT tokens.
    """

    name: str
    task: str
    mode: str
    token_weighted: float
    sequence: CrossedMean
    mode_entropy: float
    truncated: float
    mean_length: float

    @property
    def exp(self) -> float:
        """How many equally likely tokens the mean entropy amounts to."""
        return float(np.exp(self.sequence.mean))


def find_entropy(arms: Arms, views: Sequence[str] = tuple(VIEWS)) -> list[EntropyFigure]:
    """Every entropy figure of a report."""
    figures = []
    for (family, dataset), group in arms.groups.items():
        name = f"{family}, trained on {dataset}" if dataset else family
        for task in arms.tasks:
            sums = [
                s for arm in group for key in arms.keys if key[0] == task for s in _sums(arm, key)
            ]
            if not sums:
                continue
            width, cohort = bin_width(max(one.longest for one in sums)), sums[0].groups.cohort
            for view in views:
                every = {
                    mode: _traces(arms, group, (task, mode), view, width) for mode in arms.modes
                }
                absent = [
                    f"{why} under {mode.replace('_', ' ')}"
                    for mode, traces in every.items()
                    for why in _not_drawn(arms, group, (task, mode), traces)
                ]
                drawn = {mode: tuple(filter(_drawn, traces)) for mode, traces in every.items()}
                panels = {mode: traces for mode, traces in drawn.items() if traces}
                split = dict.fromkeys(arms.name(_split_arm(group, (task, mode))) for mode in panels)
                figures.append(
                    EntropyFigure(
                        name, task, view, panels, cohort, width, tuple(split), tuple(absent)
                    )
                )
    return figures


def _drawn(trace: Trace) -> bool:
    """Whether a line has any point."""
    return bool(np.isfinite(trace.profile.mean).any())


def _not_drawn(
    arms: Arms, group: Sequence[Arm], key: Key, traces: Sequence[Trace]
) -> Iterator[str]:
    """Why lines, or parts of them, cannot be drawn."""
    for trace in traces:
        if not (trace.profile.at_risk > 0).any():
            yield f"no chain of thought of {trace.name} is long enough"
    for arm in group:
        unfit = sum(one.unfit for one in _sums(arm, key))
        if unfit:
            yield f"{unfit:,} entropies of {arms.name(arm)} are not finite"


def _split_arm(group: Sequence[Arm], key: Key) -> Arm:
    """The group's last arm with positions: the one whose CoTs are split in terciles."""
    return [arm for arm in group if _sums(arm, key)][-1]


def bin_width(longest: int) -> int:
    """Smallest power of two that cuts so many positions into `POINTS` bins or fewer."""
    width = 1
    while width * POINTS < longest:
        width *= 2
    return width


def summaries(arms: Arms) -> list[EntropySummary]:
    """One row an arm, task and mode that has positions of some problem for every seed."""
    return [
        summary
        for arm in arms.arms
        for key in arms.keys
        if _sums(arm, key) and (summary := _summary(arms.name(arm), key, arm)) is not None
    ]


def _sums(arm: Arm, key: Key) -> list[EntropySums]:
    return [c.positions[key] for c in arm.checkpoints if key in c.positions]


def _traces(arms: Arms, group: Sequence[Arm], key: Key, view: str, width: int) -> tuple[Trace, ...]:
    """One line an arm; in the view of terciles three, of the group's last arm only."""
    present = [arm for arm in group if _sums(arm, key)]
    if view == "terciles":
        present = [_split_arm(group, key)] if present else []
        parts = [("short", "short"), ("middle", "middle"), ("long", "long")]
        return tuple(
            Trace(label, _profile(_sums(arm, key), part, width))
            for arm in present
            for label, part in parts
        )
    return tuple(Trace(arms.name(arm), _profile(_sums(arm, key), view, width)) for arm in present)


def _profile(sums: Sequence[EntropySums], view: str, width: int) -> Profile:
    doc_M = np.unique(np.concatenate([one.doc_M for one in sums]))
    longest = max(one.longest for one in sums)
    laid_out: list[PositionSums] = [one.view(view, doc_M, longest) for one in sums]
    if view not in ("progress", "end"):
        laid_out = [one.binned(width) for one in laid_out]
    return position_profile(laid_out)


def _summary(name: str, key: Key, arm: Arm) -> EntropySummary | None:
    sums = _sums(arm, key)
    cells = [c.cells[key] for c in arm.checkpoints if key in c.positions]
    doc_M = np.unique(np.concatenate([one.doc_M for one in sums]))
    x_SM = np.full((len(sums), len(doc_M)), np.nan)
    for row, one in enumerate(sums):
        x_SM[row, np.searchsorted(doc_M, one.doc_M)] = one.sequence_mean_M
    if np.isnan(x_SM).any(axis=0).all():
        return None
    tokens = sum(one.tokens for one in sums)
    return EntropySummary(
        name=name,
        task=key[0],
        mode=key[1],
        token_weighted=sum(one.token_weighted * one.tokens for one in sums) / max(tokens, 1),
        sequence=crossed_mean(x_SM, bounded=False),
        mode_entropy=sum(one.mode_sum for one in sums) / max(tokens, 1),
        truncated=float(np.mean([cell.truncated_R.mean() for cell in cells])),
        mean_length=float(np.mean([cell.length_R.mean() for cell in cells])),
    )
