"""KL to the base model of every arm: numbers over problems and seeds, and curves by position.

Forward is KL(base‖checkpoint), reverse is KL(checkpoint‖base), both exact over the vocabulary at
temperature 1, nats. Values under three times the noise floor are not told apart from rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from softeval.reports.arms import Arm, Arms
from softeval.reports.entropy import bin_width
from softeval.reports.kl import DIRECTIONS, PREFIX_SETS, Drift, DriftKey, noise_floor
from softeval.reports.left_out import NothingToShow
from softeval.reports.recorded import mode_order
from softeval.statistics.divergence import SequenceScores, print_kl, summarise_kl
from softeval.statistics.positions import PositionSums
from softeval.statistics.profiles import Profile, position_profile


@dataclass(frozen=True, eq=False)
class DriftScore:
    """KL of an arm on one prefix set, in one direction.

    Attributes:
        name: of the arm.
        task: the task.
        mode: the mode that made the prefixes; "" for reference solutions.
        prefix_set: "base", "own" or "gold".
        direction: "forward" or "reverse".
        per_token: (mean, low, high), nats per token.
        per_sequence: (mean, low, high), nats per sequence.
        floor: noise floor, nats per token; None where it was not measured.
        sequences: sequences replayed, over all seeds.
        profile: by position.
        several_modes: this prefix set has CoTs of several modes, so that the mode must be named.
    """

    name: str
    task: str
    mode: str
    prefix_set: str
    direction: str
    per_token: tuple[float, float, float]
    per_sequence: tuple[float, float, float]
    floor: float | None
    sequences: int
    profile: Profile
    several_modes: bool = False

    @property
    def text(self) -> str:
        """Nats per token as printed."""
        return print_kl(self.per_token[0], self.floor or 0.0)

    @property
    def kind(self) -> str:
        """Direction and prefixes, e.g. ``forward on base prefixes``."""
        mode = f", {self.mode.replace('_', ' ')}" if self.several_modes else ""
        return f"{self.direction} on {self.prefix_set} prefixes{mode}"


def find_drift(arms: Arms) -> list[DriftScore]:
    """One entry an arm, task, mode, prefix set and direction; empty without `diagnose`."""
    keys = {key for arm in arms.arms for c in arm.checkpoints for key in c.drift}
    ordered = sorted(keys, key=lambda key: _order(arms, key))
    modes = {name: {mode for _, mode, held in keys if held == name} for _, _, name in keys}
    return [
        replace(score, several_modes=len(modes[score.prefix_set]) > 1)
        for key in ordered
        for direction in DIRECTIONS
        for arm in arms.arms
        if (score := _score(arms, arm, key, direction)) is not None
    ]


def _order(arms: Arms, key: DriftKey) -> tuple[Any, ...]:
    task, mode, prefix_set = key
    rank = PREFIX_SETS.index(prefix_set) if prefix_set in PREFIX_SETS else len(PREFIX_SETS)
    return task, rank, *mode_order(arms.mode(mode))


def _score(arms: Arms, arm: Arm, key: DriftKey, direction: str) -> DriftScore | None:
    """None where it was not measured, or where no problem was measured for every seed."""
    drifts = [c.drift[key] for c in arm.checkpoints if key in c.drift]
    if not drifts or not reduce(np.intersect1d, [drift.doc_M for drift in drifts]).size:
        return None
    doc_M = np.unique(np.concatenate([drift.doc_M for drift in drifts]))
    scores = [_scores(drift, doc_M, direction) for drift in drifts]
    if not np.isfinite([s.per_token for s in scores]).all(axis=0).any():
        raise NothingToShow(f"the KL of {arms.name(arm)} on {key[0]} is not finite")
    summary = summarise_kl(scores)
    floors = [
        floor
        for c in arm.checkpoints
        for run in c.runs
        if (floor := noise_floor(run.run)) is not None
    ]
    task, mode, prefix_set = key
    token, sequence = summary.per_token.interval, summary.per_sequence.interval
    return DriftScore(
        name=arms.name(arm),
        task=task,
        mode=mode,
        prefix_set=prefix_set,
        direction=direction,
        per_token=(token.mean, token.low, token.high),
        per_sequence=(sequence.mean, sequence.low, sequence.high),
        floor=max(floors) if floors else None,
        sequences=sum(drift.sequences for drift in drifts),
        profile=_profile(drifts, doc_M, direction),
    )


def _scores(drift: Drift, doc_M: np.ndarray, direction: str) -> SequenceScores:
    rows = np.searchsorted(doc_M, drift.doc_M)
    per_token, per_sequence = np.full((2, len(doc_M)), np.nan)
    per_token[rows] = drift.per_token[direction]
    per_sequence[rows] = drift.per_sequence[direction]
    return SequenceScores(per_token, per_sequence)


def _profile(drifts: Sequence[Drift], doc_M: np.ndarray, direction: str) -> Profile:
    longest = max(drift.count_MT.shape[1] for drift in drifts)
    laid_out = []
    for drift in drifts:
        rows, length = np.searchsorted(doc_M, drift.doc_M), drift.count_MT.shape[1]
        total, count = np.zeros((len(doc_M), longest)), np.zeros((len(doc_M), longest), np.int64)
        total[rows, :length] = drift.sum_MT[direction]
        count[rows, :length] = drift.count_MT
        sums = PositionSums(total, count, count[:, 0], drift.sequences, length=longest)
        laid_out.append(sums.binned(bin_width(longest)))
    return position_profile(laid_out)
