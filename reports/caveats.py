"""What weakens a comparison: chains of thought cut at the cap, other caps, questions left out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from softeval.reports.contrasts import Comparison, Side
from softeval.reports.validity import AMBER


def find_caveats(comparisons: list[Comparison]) -> list[str]:
    """What stands beside a sentence made of these comparisons, each thing once."""
    return list(dict.fromkeys(chain.from_iterable(_caveats(c) for c in comparisons)))


def _caveats(c: Comparison) -> Iterator[str]:
    task, mode = c.metric.task, c.a.mode.replace("_", " ")
    where = f" under {mode}" if c.a.mode == c.b.mode else ""
    shares = {side.name: _truncated(side, task) for side in (c.a, c.b)}
    if max(shares.values()) > AMBER:
        told = " and ".join(f"{100 * share:.0f} % of {name}" for name, share in shares.items())
        yield f"CoTs cut at the cap{where}: {told}"
    caps = {side.name: _caps(side, task) for side in (c.a, c.b)}
    if len(set(caps.values())) > 1:
        yield "caps differ: " + ", ".join(f"{cap} in {name}" for name, cap in caps.items())


def _truncated(side: Side, task: str) -> float:
    """Share of a side's CoTs that ended at the cap, checkpoints weighing alike."""
    cells = [c.cells[side.key(task)] for c in side.checkpoints]
    return float(np.mean([cell.truncated_R.mean() for cell in cells]))


def _caps(side: Side, task: str) -> str:
    caps = (str(run.run.config.get("max_cot_tokens", "?")) for run in side.runs(task))
    return " or ".join(dict.fromkeys(caps))
