"""`softeval score`: judge the stored samples of a run again, without the model.

After a change of the scorer (a new math-verify, a higher time limit) every verdict of
samples.parquet is made anew, row group by row group. The verdicts that are replaced are kept beside
in verdicts-1.parquet, verdicts-2.parquet, …, and run.json names for each the scorer that gave them.
Nothing else of a sample changes. Knows files and the scorer; nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softeval.errors import UserError
from softeval.files import write_json
from softeval.runs import rundir
from softeval.runs.parquet_files import CheckedWriter, damage_named, open_parquet, read_parquet
from softeval.runs.tables import refuse_doubled, table_path
from softeval.scoring.judge import Item, ScoreKind, Scorer, Verdict, is_judged, scorer_identity
from softeval.tasks.catalogue import Scoring, task_catalogue

if TYPE_CHECKING:
    import pyarrow as pa

KEY = ("task", "doc_id", "mode", "sample")
JUDGED = ("correct", "verdict")
OTHER, ERROR = "other_correct", "target_error"


@dataclass(frozen=True)
class Rescored:
    """What judging again changed.

    Attributes:
        samples: samples judged.
        gained: wrong before, right now.
        lost: right before, wrong now.
        statuses: samples whose status changed (say, from timeout to ok).
        kept: file that holds the verdicts before; None where nothing changed.
    """

    samples: int
    gained: int
    lost: int
    statuses: int
    kept: str | None


def rescore(folder: str | Path, scorer: Scorer) -> Rescored:
    """Judge every stored sample of a run again.

    A run whose verdicts all stay as they were is left untouched, but for the scorer's name in its
    record. Stopped at any moment, the next call completes the change.

    Args:
        folder: the run directory.
        scorer: judges.

    Raises:
        UserError: not a run, no samples, or a folder that cannot be written to.
    """
    folder = Path(folder)
    record = rundir.read_record(folder)
    rundir.refuse_shard(folder, record)
    source = table_path(folder, "samples")
    if not source.is_file():
        raise UserError(f"{folder} holds no samples.parquet; finish the run by starting it again")
    if (folder / rundir.SHARDS).is_dir():
        raise UserError(
            f"{folder} is not finished, and finishing it writes its tables anew; start it again first"
        )
    refuse_doubled(source)
    kinds = score_kinds(record)
    if (folder / rundir.RESULTS_FILE).is_file():
        rundir.read_json(folder / rundir.RESULTS_FILE)  # refused before anything is judged
    name = f"verdicts-{len(record.get('scorings') or []) + 1}.parquet"
    try:
        judged = is_judged(record)
        counts = _write_judged(source, kinds, scorer, folder / name if judged else None)
        # Also where an earlier call was stopped after it had replaced the table.
        kept = name if (folder / name).is_file() else None
        _refresh_results(folder, source)
        rundir.write_record(folder, _new_record(record, kept, source, scorer))
    except OSError as error:
        raise rundir.unwritable(folder, error) from None
    samples, gained, lost, statuses = counts
    return Rescored(samples, gained, lost, statuses, kept)


def score_kinds(record: Mapping[str, Any]) -> dict[str, ScoreKind]:
    """How the answers of each task are compared; old runs do not say it, but are of our tasks."""
    ours = {task: entry.content.get("scoring") for task, entry in task_catalogue().items()}
    kinds = {}
    for source in record.get("datasets") or ():
        task = source.get("task") or source["name"]
        scoring = source.get("scoring") or ours.get(task) or Scoring.MATH
        kinds[task] = ScoreKind.MATH if scoring == Scoring.MATH else ScoreKind.LETTER
    return kinds


def _write_judged(
    source: Path, kinds: Mapping[str, ScoreKind], scorer: Scorer, kept: Path | None
) -> list[int]:
    """Give the table new verdicts, its own kept beside if it has any; samples, gained, lost, statuses changed."""
    import pyarrow as pa

    total = np.zeros(5, np.int64)
    with open_parquet(source, [*KEY, *JUDGED, "answer", "target"]) as parquet:
        schema = parquet.schema_arrow
        if OTHER not in schema.names:  # a run older than the column
            schema = schema.append(pa.field(OTHER, pa.bool_()))
        with CheckedWriter(source, schema) as writer:
            for group in range(parquet.num_row_groups):
                with damage_named(source):
                    table = parquet.read_row_group(group)
                verdicts = _judge(table, kinds, scorer)
                total += _changes(table, verdicts)
                writer.write(_with_verdicts(table, verdicts).cast(schema))
            if total[1:4].any():
                if kept is not None:
                    _keep(kept, source)
            elif not total[4]:  # what the other rules say may be all that is new
                writer.discard()
    return total[:4].tolist()


def _judge(table: pa.Table, kinds: Mapping[str, ScoreKind], scorer: Scorer) -> list[Verdict]:
    tasks, answers, targets = (table[name].to_pylist() for name in ("task", "answer", "target"))
    unknown = sorted(set(tasks) - kinds.keys())
    if unknown:
        raise UserError(f"run.json names no data set for {', '.join(unknown)}; it cannot be scored")
    recorded = ERROR in table.column_names
    errors = table[ERROR].to_pylist() if recorded else [None] * table.num_rows
    columns = (answers, targets, [kinds[task] for task in tasks], errors)
    return scorer.score_many([Item(*row) for row in zip(*columns, strict=True)], both=True)


def _changes(table: pa.Table, verdicts: list[Verdict]) -> np.ndarray:
    before_R = table["correct"].to_numpy()
    after_R = np.array([verdict.correct for verdict in verdicts])
    statuses = zip(table["verdict"].to_pylist(), verdicts, strict=True)
    status = [old != new.status for old, new in statuses]
    gained, lost = (after_R & ~before_R).sum(), (before_R & ~after_R).sum()
    known = OTHER in table.column_names
    before = table[OTHER].to_pylist() if known else [None] * len(verdicts)
    others = sum(old != new.other for old, new in zip(before, verdicts, strict=True))
    return np.array([len(verdicts), gained, lost, sum(status), others])


def _with_verdicts(table: pa.Table, verdicts: list[Verdict]) -> pa.Table:
    import pyarrow as pa

    new = {
        "correct": pa.array([v.correct for v in verdicts], pa.bool_()),
        "verdict": pa.array([v.status for v in verdicts], pa.string()),
        OTHER: pa.array([v.other for v in verdicts], pa.bool_()),
    }
    for name, values in new.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            table = table.append_column(name, values)
        else:
            table = table.set_column(index, table.schema.field(index), values)
    return table


def _keep(kept: Path, source: Path) -> None:
    """Copy the old verdicts, before the new table takes its place."""
    if kept.is_file():  # of a call that was stopped after it
        return
    table = read_parquet(source, [*KEY, *JUDGED])
    with CheckedWriter(kept, table.schema) as writer:
        writer.write(table)


def _new_record(
    record: Mapping[str, Any], kept: str | None, source: Path, scorer: Scorer
) -> dict[str, Any]:
    """The record with the scorer of now, and in "scorings" the one before it."""
    import pyarrow.compute as pc

    counted = pc.value_counts(read_parquet(source, ["verdict"])["verdict"])  # pyright: ignore[reportAttributeAccessIssue]
    verdicts = {row["values"]: row["counts"] for row in counted.to_pylist()}
    scorings = list(record.get("scorings") or [])
    if kept is not None:
        scorings.append({"scorer": record.get("scorer"), "verdicts": kept})
    counts = {**(record.get("counts") or {}), "verdicts": verdicts}
    new = {**record, "scorer": scorer_identity(scorer), "counts": counts}
    return {**new, "scorings": scorings} if scorings else new


def _refresh_results(folder: Path, source: Path) -> None:
    """Bring the scores of results.json up to the verdicts of samples.parquet."""
    path = folder / rundir.RESULTS_FILE
    if not path.is_file():
        return
    results = rundir.read_json(path)
    try:
        modes = results.get("modes") or {}
        for title, entry in (results.get("results") or {}).items():
            mode = (modes.get(title) or {}).get("mode")
            if mode is not None:
                entry.update(_cell_scores(source, entry["name"], mode, entry))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{path} is not as softeval wrote it; restore it, or remove it to go without"
        ) from None
    write_json(path, results)


def _cell_scores(source: Path, task: str, mode: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """New values of the metrics that stand in an entry, with lm-eval's standard errors."""
    from softeval.statistics import pass_at_k

    wanted = [("task", "=", task), ("mode", "=", mode)]
    cell = read_parquet(source, ["doc_id", *JUDGED], wanted)
    _, problem_R = np.unique(cell["doc_id"].to_numpy(), return_inverse=True)
    if not len(problem_R):
        return {}
    n_M = np.bincount(problem_R)
    shares: dict[str, np.ndarray] = {}
    correct_R = cell["correct"].to_numpy().astype(float)
    status_R = np.array(cell["verdict"].to_pylist())
    for name in entry:
        metric, _, rest = name.partition(",")
        if metric.startswith("pass@") and metric[5:].isdigit():
            c_M = np.bincount(problem_R, correct_R).astype(int)
            shares[name] = pass_at_k(n_M, c_M, [int(metric[5:])])[:, 0]
        elif metric in ("no_answer", "timeout", "error") and rest:
            shares[name] = np.bincount(problem_R, status_R == metric) / n_M
    values: dict[str, Any] = {}
    for name, x_M in shares.items():
        metric, _, rest = name.partition(",")
        values[name] = float(x_M.mean())
        error = f"{metric}_stderr,{rest}"
        if error in entry and not isinstance(entry[error], str) and len(x_M) > 1:
            values[error] = float(x_M.std(ddof=1) / math.sqrt(len(x_M)))
    return values
