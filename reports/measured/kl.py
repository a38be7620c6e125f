"""KL between a checkpoint and its base model as `softeval diagnose` measured it, reduced.

kl.parquet has one row a position of a replayed prefix. Kept are the mean and the sum of each
sequence, and the sums for each (problem, position). Knows nothing of several checkpoints.

Shape letters: M problems, T positions. Unit: nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softeval.reports.measured.positions import Chunk, read_chunks
from softeval.runs.run import Run

Floats = NDArray[np.float64]
KLKey = tuple[str, str, str]  # (task, mode, prefix set)

DIRECTIONS = ("forward", "reverse")  # KL(base‖checkpoint), KL(checkpoint‖base)


@dataclass(frozen=True, eq=False)
class KLSums:
    """KL of one checkpoint on one prefix set of one task and mode.

    Attributes:
        doc_M: problems.
        per_token: by direction, (M,) mean over a problem's sequences of each one's token mean.
        per_sequence: by direction, (M,) mean over a problem's sequences of each one's sum.
        sum_MT: by direction, KL summed over a problem's sequences.
        count_MT: sequences of a problem that have the position.
        sequences: sequences replayed.
        tokens: positions replayed.
    """

    doc_M: NDArray[np.int64]
    per_token: Mapping[str, Floats]
    per_sequence: Mapping[str, Floats]
    sum_MT: Mapping[str, Floats]
    count_MT: NDArray[np.int64]
    sequences: int
    tokens: int


def read_kl(run: Run) -> dict[KLKey, KLSums]:
    """KL of each task, mode and prefix set; empty where `softeval diagnose` was not run.

    Raises:
        UserError: kl.parquet is damaged or not sorted.
    """
    if not run.has("kl"):
        return {}
    parts: dict[KLKey, list[Chunk]] = {}
    for chunk in read_chunks(run, "kl", DIRECTIONS, cell=("task", "mode", "prefix_set")):
        task, mode, prefix_set = chunk.key
        parts.setdefault((task, mode, prefix_set), []).append(chunk)
    return {key: _sums(chunks) for key, chunks in sorted(parts.items())}


def noise_floor(run: Run) -> float | None:
    """KL(base‖base) at another batch size, nats per token; None where it was not measured."""
    block: Any = run.info.get("diagnose") or {}
    floor = block.get("noise_floor")
    floor = floor.get("mean") if isinstance(floor, Mapping) else floor
    return None if floor is None else float(floor)


def _sums(chunks: list[Chunk]) -> KLSums:
    doc_R = np.concatenate([c.doc_R for c in chunks])
    length_R = np.concatenate([c.length_R for c in chunks])
    doc_M, problem_R = np.unique(doc_R, return_inverse=True)
    shape = (len(doc_M), int(length_R.max()))
    start_R = np.cumsum(length_R) - length_R
    offset_R = problem_R * shape[1] - start_R
    cell_N = np.arange(length_R.sum()) + np.repeat(offset_R, length_R)
    values = {
        name: np.concatenate([c.values[name] for c in chunks]).astype(np.float64)
        for name in DIRECTIONS
    }
    total = {name: np.add.reduceat(value_N, start_R) for name, value_N in values.items()}
    sequences_M = np.bincount(problem_R)
    return KLSums(
        doc_M=doc_M,
        per_token={
            name: np.bincount(problem_R, sum_R / length_R) / sequences_M
            for name, sum_R in total.items()
        },
        per_sequence={
            name: np.bincount(problem_R, sum_R) / sequences_M for name, sum_R in total.items()
        },
        sum_MT={
            name: np.bincount(cell_N, value_N, shape[0] * shape[1]).reshape(shape)
            for name, value_N in values.items()
        },
        count_MT=np.bincount(cell_N, minlength=shape[0] * shape[1]).reshape(shape),
        sequences=len(doc_R),
        tokens=int(length_R.sum()),
    )
