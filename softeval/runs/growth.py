"""Tasks and modes added to a run that is there: the same samples as if all had been asked at once.

Of a run that goes on, everything is in its journal. A finished one has tables only: the cells that it
holds are kept as they are, and their rows are copied into the tables of all. Which these are stands
in run.json (`KEPT`) until the run is finished again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.errors import UserError
from softeval.runs import rundir
from softeval.runs.cells import Cell
from softeval.runs.config import RunConfig
from softeval.runs.parquet_files import read_parquet
from softeval.runs.tables import Row, table_path
from softeval.scoring.judge import Rules, judge_of, rules_of, scorer_identity
from softeval.tasks.local_data import is_jsonl, task_name

if TYPE_CHECKING:
    import pyarrow as pa

KEPT = "kept"
"""In run.json: titles of the cells whose samples are in the tables only."""
Record = Mapping[str, Any]


def joined(config: RunConfig, cells: Sequence[Cell], found: Record) -> RunConfig:
    """The configuration with the tasks and modes that the run has beside it; itself if none."""
    there = found.get("config") or {}
    modes = [mode.name for mode in config.selected_modes()]
    old_tasks, old_modes = there.get("tasks") or [], there.get("modes") or []
    if {*map(task_name, old_tasks)} <= {cell.name for cell in cells} and set(old_modes) <= set(
        modes
    ):
        return config
    tasks = [str(Path(t).expanduser().resolve()) if is_jsonl(t) else t for t in config.tasks]
    unset = ("include_path", "question", "answer", "data_dir", "mode_file")
    filled = {n: there.get(n) for n in unset if getattr(config, n) is None}
    both = {"tasks": [*old_tasks, *tasks], "modes": [*old_modes, *modes]}
    changed = {name: tuple(dict.fromkeys(names)) for name, names in both.items()}
    return config.model_copy(update=filled | changed)


def kept_titles(found: Record | None, cells: Iterable[Cell]) -> frozenset[str]:
    """Titles of the cells that the tables hold, and the journal perhaps not."""
    if found is None:
        return frozenset()
    if found.get("status") != rundir.COMPLETE:
        return frozenset(found.get(KEPT) or ())
    tasks, modes = (found["identity"][name] for name in ("tasks", "modes"))
    held = (c for c in cells if c.name in tasks and (c.mode is None or c.mode.name in modes))
    return frozenset(cell.title for cell in held)


def check_verdicts(folder: Path, found: Record, rules: Rules | None, finished: bool) -> None:
    """Refuse to go on from verdicts of other rules, or to add to those of another version of them.

    Raises:
        UserError: naming what judges them again.
    """
    known = rules_of(found)
    if rules is None and known is not None:
        raise UserError(f"{folder} is judged by {known}; leave --predict-only out")
    if known != rules or not (finished or found.get("scorer") == scorer_identity(judge_of(rules))):
        by = f"another version of {rules}" if known == rules else known or "nobody yet"
        raise UserError(
            f"{folder} is judged by {by}; `softeval score {folder} --scorer {rules}` judges it"
        )


def kept_rows(folder: Path, cell: Cell) -> Iterator[tuple[Row, Row]]:
    """The rows of a cell's samples, and of their positions, as `TableWriter` takes them."""
    assert cell.mode is not None
    wanted = [("task", "=", cell.name), ("mode", "=", cell.mode.name)]
    samples = read_parquet(table_path(folder, "samples"), filters=wanted)
    positions = read_parquet(table_path(folder, "positions"), filters=wanted)
    columns = {name: _values(positions[name]) for name in positions.column_names}
    for index, sample in enumerate(samples.to_pylist()):
        yield sample, {name: values[index] for name, values in columns.items()}


def _values(column: pa.ChunkedArray) -> Sequence[Any]:
    """One value a row; lists as arrays, without a copy."""
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_pylist()
    array: Any = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no row
        return []
    flat, ends = array.values.to_numpy(), array.offsets.to_numpy()
    spans = zip(ends, ends[1:], np.asarray(array.is_valid()), strict=False)
    return [flat[start:end] if there else None for start, end, there in spans]
