"""What `softeval attribute` found of a checkpoint, reduced to means of each question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softeval.records import INTERVENTIONS, StopReason, attribution_schema
from softeval.reports.measured.arms import MeasuredCheckpoint
from softeval.runs.parquet_files import read_parquet

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = INTERVENTIONS[0]


def read_attribution(checkpoint: MeasuredCheckpoint) -> pd.DataFrame | None:
    """By task, mode, intervention and question; None where it was not measured.

    Columns, means over the samples of a question: `changed` and `correct` answers, `stopped` (CoTs
    that the mode's own rule ended), `agreement` (steps with the same next token) and `step_kl`, nats.

    Raises:
        UserError: a damaged table, or one that lacks a column.
    """
    import pandas as pd

    paths = [run.table_path("attribution") for run in checkpoint.runs if run.has("attribution")]
    if not paths:
        return None
    columns = attribution_schema().names
    rows = pd.concat([read_parquet(path, columns).to_pandas() for path in paths])
    rows["stopped"] = rows["stop_reason"] == StopReason.MODE
    rows["agreement"] = rows["agreeing"] / rows["steps"].where(rows["steps"] > 0)
    by = ["task", "mode", "intervention", "doc_id"]
    kept = [*by, "changed", "correct", "stopped", "agreement", "step_kl"]
    return rows[kept].groupby(by).mean()  # pyright: ignore[reportReturnType]


def of_cell(
    frames: Sequence[pd.DataFrame | None], task: str, mode: str, intervention: str
) -> list[pd.DataFrame]:
    """The questions of one intervention, of each checkpoint that has it."""
    key = (task, mode, intervention)
    return [f.loc[key] for f in frames if f is not None and key in f.index]
