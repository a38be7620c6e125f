"""Scores of arms: pass@k tables of seeds × problems, their means and intervals.

Turns counts into the arrays that `softeval.statistics` takes. Knows nothing of how they are
shown.

Shape letters: S training seeds, M problems, K values of k.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint
from softeval.reports.measured.cells import Key, MeasuredCell
from softeval.runs.run import RecordedMode
from softeval.statistics import TooFewSamples, pass_at_k, se_within
from softeval.statistics.crossed import CrossedMean, crossed_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Table = tuple[Ints, Floats]  # doc_M, x_SM

HEADLINE_K = 32


@dataclass(frozen=True, eq=False)
class ArmScore:
    """One table cell: pass@k of an arm on a task under a mode.

    Attributes:
        arm: the arm.
        key: (task, mode).
        k: the k of pass@k; 1 in a greedy mode.
        n: fewest samples of a problem that entered.
        mean: with its interval over seeds and problems.
        x_SM: scores, NaN where n < k.
        doc_M: problems.
        se_resampled: standard error of drawing the answers again on the same problems; NaN where
            n < 2k, and in a greedy mode.
    """

    arm: Arm
    key: Key
    k: int
    n: int
    mean: CrossedMean
    x_SM: Floats
    doc_M: Ints
    se_resampled: float


def table_scores(
    checkpoints: Sequence[MeasuredCheckpoint], key: Key, k: int
) -> tuple[Ints, Floats]:
    """Problems and pass@k of each checkpoint on each of them.

    Returns:
        (doc_M, x_SM) over every problem that some checkpoint has; NaN where n < k.
    """
    doc_M, x_SMK = curve_scores(checkpoints, key, [k])
    return doc_M, x_SMK[:, :, 0]


def curve_scores(
    checkpoints: Sequence[MeasuredCheckpoint], key: Key, ks: Iterable[int]
) -> tuple[Ints, Floats]:
    """The same for many k: (doc_M, x_SMK)."""
    cells = [checkpoint.cells[key] for checkpoint in checkpoints]
    doc_M = np.unique(np.concatenate([cell.doc_M for cell in cells]))
    return doc_M, np.stack([_aligned(cell, doc_M, list(ks)) for cell in cells])


def _aligned(cell: MeasuredCell, doc_M: Ints, ks: list[int]) -> Floats:
    x_MK = np.full((len(doc_M), len(ks)), np.nan)
    with warnings.catch_warnings():
        # Problems with too few samples are counted and shown in the validity section.
        warnings.simplefilter("ignore", TooFewSamples)
        x_MK[np.searchsorted(doc_M, cell.doc_M)] = pass_at_k(cell.n_M, cell.c_M, ks)
    return x_MK


def usual_n(cells: Iterable[MeasuredCell]) -> int:
    """The n that most problems reach: the median over problems, the smallest over cells."""
    return min(int(np.median(cell.n_M)) for cell in cells)


def headline_k(arms: Arms, task: str) -> int:
    """The large k of a task's table: 32, or what the sampled modes of all arms reach."""
    cells = [
        checkpoint.cells[key]
        for arm in arms.arms
        for checkpoint in arm.checkpoints
        for key in checkpoint.cells
        if key[0] == task and not key[1].is_greedy
    ]
    return min(HEADLINE_K, usual_n(cells)) if cells else 1


def metrics(arms: Arms, task: str) -> list[tuple[RecordedMode, int]]:
    """Columns of a task's table, as in the paper: greedy pass@1, sample pass@1, sample pass@k."""
    large = headline_k(arms, task)
    columns: list[tuple[RecordedMode, int]] = []
    for mode in arms.modes:
        if (task, mode) in arms.keys:
            ks = [1] if mode.is_greedy else sorted({1, large})
            columns += [(mode, k) for k in ks]
    return columns


def arm_score(arm: Arm, key: Key, k: int) -> ArmScore | None:
    """Score of an arm; None where it was not evaluated or no problem has k samples."""
    checkpoints = arm.having(key)
    if not checkpoints:
        return None
    doc_M, x_SM = table_scores(checkpoints, key, k)
    if np.isnan(x_SM).any(axis=0).all():
        return None
    reached = [cell.n_M[cell.n_M >= k] for cell in (c.cells[key] for c in checkpoints)]
    return ArmScore(
        arm=arm,
        key=key,
        k=k,
        n=int(min(n_M.min() for n_M in reached)),
        mean=crossed_mean(x_SM),
        x_SM=x_SM,
        doc_M=doc_M,
        se_resampled=_se_resampled([c.cells[key] for c in checkpoints], k),
    )


def _se_resampled(cells: Sequence[MeasuredCell], k: int) -> float:
    """√(Σ SE²)/S over the seeds."""
    if cells[0].mode.is_greedy:
        return float("nan")
    errors = [float(se_within(cell.n_M, cell.c_M, k)[0]) for cell in cells]
    return float(np.sqrt(np.square(errors).sum()) / len(errors))


def entropy_scores(arm: Arm, key: Key) -> Table | None:
    """(doc_M, x_SM): by problem, the mean over its CoTs of each one's mean entropy, nats.

    NaN where a seed has no positions of a problem; None where no problem has them for every seed.
    """
    sums = [c.positions[key] for c in arm.checkpoints if key in c.positions]
    if not sums:
        return None
    doc_M, x_SM = stacked([(one.doc_M, one.sequence_mean_M) for one in sums])
    return None if np.isnan(x_SM).any(axis=0).all() else (doc_M, x_SM)


def stacked(rows: Sequence[tuple[Ints, Floats]]) -> Table:
    """(doc_M, x_SM) of the problems and scores of each checkpoint; NaN where one lacks a problem."""
    doc_M = np.unique(np.concatenate([docs for docs, _ in rows]))
    x_SM = np.full((len(rows), len(doc_M)), np.nan)
    for row, (docs, x_M) in zip(x_SM, rows, strict=True):
        row[np.searchsorted(doc_M, docs)] = x_M
    return doc_M, x_SM


def shared(first: Table, second: Table) -> tuple[Ints, Floats, Floats]:
    """Both tables on the problems that both have."""
    doc_M, in_first, in_second = np.intersect1d(first[0], second[0], return_indices=True)
    return doc_M, first[1][:, in_first], second[1][:, in_second]


def complete_curve(
    checkpoints: Sequence[MeasuredCheckpoint], key: Key, ks: Sequence[int]
) -> tuple[Ints, Floats]:
    """Curve scores of the problems that have every k for every seed."""
    doc_M, x_SMK = curve_scores(checkpoints, key, ks)
    kept = ~np.isnan(x_SMK).any(axis=(0, 2))
    return doc_M[kept], x_SMK[:, kept]


def curve_ks(n: int) -> list[int]:
    """Powers of two up to n, and n itself."""
    return sorted({2**i for i in range(n.bit_length())} | {n})


@dataclass(frozen=True)
class Measure:
    """A figure of an arm on each question of a task.

    Attributes:
        name: with {} for the k of pass@k.
        table: of an arm, a task and a k; None where the runs do not have it.
        modes: of the samples that it is made from.
        unit: points (fractions), nats, or times another arm's.
        bounded: scores lie in [0, 1].
        k: the k of pass@k that is wanted; infinite for as many as there are samples.
    """

    name: str
    table: Callable[[Arm, str, float], Table | None]
    modes: tuple[str, ...] = ("hard_sample",)
    unit: str = "points"
    bounded: bool = True
    k: float = 1

    def samples(self, arm: Arm, task: str) -> int | None:
        """Samples a question that allow a k above 1; None where the runs have none."""
        found = [
            c.cells.get((task, RecordedMode(mode))) for mode in self.modes for c in arm.checkpoints
        ]
        cells = [cell for cell in found if cell is not None]
        return usual_n(cells) if cells and self.k > 1 else None


def success(mode: str, k: float = 1, beside: str = "") -> Measure:
    """pass@k under a mode; beside another, of the checkpoints that have both."""
    modes = tuple(filter(None, (mode, beside)))

    def table(arm: Arm, task: str, k: float) -> Table | None:
        found = _having(arm, task, modes)
        return table_scores(found, (task, RecordedMode(mode)), int(k)) if found else None

    return Measure(f"{' − '.join(modes)} pass@{{}}", table, modes, k=k)


def _having(arm: Arm, task: str, modes: Sequence[str]) -> tuple[MeasuredCheckpoint, ...]:
    """The checkpoints that were evaluated under every one of these modes."""
    keys = {(task, RecordedMode(mode)) for mode in modes}
    return tuple(c for c in arm.checkpoints if keys <= c.cells.keys())


def _gap(arm: Arm, task: str, k: float) -> Table | None:
    found = _having(arm, task, GAP.modes)
    if not found:
        return None
    keys = ((task, RecordedMode(mode)) for mode in GAP.modes)
    doc_M, greedy_SM, sampled_SM = shared(*(table_scores(found, key, 1) for key in keys))
    return doc_M, greedy_SM - sampled_SM


def _entropy(arm: Arm, task: str, k: float) -> Table | None:
    return entropy_scores(arm, (task, RecordedMode("hard_sample")))


def _kl(arm: Arm, task: str, k: float) -> Table | None:
    found = [c.kl.get((task, "hard_sample", "own")) for c in arm.checkpoints]
    rows = [(one.doc_M, one.per_token["reverse"]) for one in found if one is not None]
    return stacked(rows) if rows else None


def _nll(arm: Arm, task: str, k: float) -> Table | None:
    found = [c.likelihoods[task] for c in arm.checkpoints if task in c.likelihoods]
    return stacked([(one.doc_M, one.nll_M) for one in found]) if found else None


GREEDY = success("hard_greedy")
LARGE, LARGEST = success("hard_sample", HEADLINE_K), success("hard_sample", inf)
GAP = Measure("greedy − sampled pass@1", _gap, ("hard_greedy", "hard_sample"))
ENTROPY = Measure("CoT entropy over the untrained model's", _entropy, unit="times", bounded=False)
KL = Measure("KL to the untrained model (softeval diagnose)", _kl, unit="nats", bounded=False)
NLL = Measure("NLL", _nll, (), "nats", bounded=False)
