"""kl.parquet of a run directory: a row for each replayed prefix, with lists for its positions.

A later diagnosis replaces the prefix sets that it measures and keeps the others, as long as they
are of the same base model in the same precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from softeval.decoding.kl import PositionKL
from softeval.errors import UserError
from softeval.records import SampleKey, kl_schema
from softeval.runs.parquet_files import CheckedWriter, read_parquet, sequences

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "kl.parquet"
KEYS = ("task", "mode", "prefix_set", "doc_id", "sample")
DIRECTIONS = ("forward", "reverse")


class Measured(NamedTuple):
    """One replayed prefix."""

    prefix_set: str
    mode: str
    key: SampleKey
    kl: PositionKL


def kept_sets(record: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    """Prefix sets of an earlier diagnosis that may stand beside a new one's.

    Args:
        record: the run's record.
        block: the new "diagnose" block.
    """
    before = record.get("diagnose") or {}
    if any(before.get(name) != block[name] for name in ("base_weights_hash", "dtype")):
        return []
    return [name for name in before.get("sets", ()) if name not in block["sets"]]


def check_not_fewer(folder: Path, sets: Sequence[str], samples: int, limit: int | None) -> None:
    """Refuse a diagnosis of fewer questions or samples than the file holds, before any long work.

    Raises:
        UserError: naming both numbers.
    """
    if not (folder / NAME).is_file():
        return
    rows = _read(folder / NAME).select(KEYS).to_pandas()
    tasks = read_parquet(folder / "prompts.parquet", ["task"])["task"].to_pandas().value_counts()
    planned = int(tasks.clip(upper=limit).sum())
    for name in sets:
        there = rows[rows["prefix_set"] == name]
        questions = len(there[["task", "doc_id"]].drop_duplicates())
        taken = 1 + int(there["sample"].max()) if questions else 0
        if questions > planned or taken > samples:
            raise UserError(
                f"{folder / NAME} holds {name} prefixes of {questions} questions with {taken}"
                f" samples, this call would replace them by {planned} with {samples};"
                " raise --limit and --samples, or give --overwrite"
            )


def check_kept(folder: Path, record: Mapping[str, Any], block: Mapping[str, Any]) -> None:
    """Refuse to drop prefix sets that were measured against another base model or precision.

    Raises:
        UserError: naming them.
    """
    there = (record.get("diagnose") or {}).get("sets", ()) if (folder / NAME).is_file() else ()
    lost = [name for name in there if name not in (*kept_sets(record, block), *block["sets"])]
    if lost:
        raise UserError(
            f"{folder / NAME} holds {', '.join(lost)} prefixes against another base model or in"
            " another precision, which this call would drop; measure them too, or give --overwrite"
        )


def write_kl(folder: Path, found: Sequence[Measured], keep: Collection[str]) -> None:
    """Write the rows in order, with those of the kept prefix sets that are there already."""
    import pyarrow as pa
    import pyarrow.compute as pc

    final = folder / NAME
    table = pa.table(_columns(found), kl_schema())
    if keep and final.is_file():
        before = _read(final)
        kept = pc.is_in(before["prefix_set"], pa.array(list(keep)))  # pyright: ignore[reportAttributeAccessIssue]
        table = pa.concat_tables([table, before.filter(kept)])
    table = table.sort_by([(name, "ascending") for name in KEYS])
    with CheckedWriter(final, table.schema) as writer:
        writer.write(table)


def _read(path: Path) -> pa.Table:
    """Every prefix of a kl.parquet, of any schema version."""
    import pyarrow as pa

    schema = kl_schema()
    found = (t.select(schema.names).cast(schema) for t in sequences(path, KEYS, DIRECTIONS))
    return pa.concat_tables([schema.empty_table(), *found])


def _columns(found: Sequence[Measured]) -> dict[str, Any]:
    return {
        "task": [m.key.task for m in found],
        "doc_id": [m.key.doc_id for m in found],
        "mode": [m.mode for m in found],
        "sample": [m.key.sample for m in found],
        "prefix_set": [m.prefix_set for m in found],
        "forward": [np.asarray(m.kl.forward, np.float32) for m in found],
        "reverse": [np.asarray(m.kl.reverse, np.float32) for m in found],
    }
