"""kl.parquet of a run directory: a row for each position of each replayed prefix.

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
from softeval.files import replacing
from softeval.records import SampleKey, kl_schema
from softeval.runs.parquet_files import CheckedWriter, read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "kl.parquet"
ORDER = ("task", "mode", "prefix_set", "doc_id", "sample", "position")


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
    rows = read_parquet(folder / NAME, ["prefix_set", "task", "doc_id", "sample"]).to_pandas()
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

    table = _table(found)
    final = folder / NAME
    if keep and final.is_file():
        before = read_parquet(final, filters=[("prefix_set", "in", list(keep))])
        table = pa.concat_tables([table, before.cast(table.schema)])
    table = table.sort_by([(name, "ascending") for name in ORDER])
    with replacing(final) as partial, CheckedWriter(partial, table.schema) as writer:
        writer.write(table)


def _table(found: Sequence[Measured]) -> pa.Table:
    import pyarrow as pa

    lengths = [len(m.kl.forward) for m in found]

    def spread(values: list[Any]) -> list[Any]:
        return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]

    columns = {
        "task": spread([m.key.task for m in found]),
        "doc_id": spread([m.key.doc_id for m in found]),
        "mode": spread([m.mode for m in found]),
        "sample": spread([m.key.sample for m in found]),
        "prefix_set": spread([m.prefix_set for m in found]),
        "position": [position for length in lengths for position in range(length)],
        "forward": np.concatenate([m.kl.forward for m in found]),
        "reverse": np.concatenate([m.kl.reverse for m in found]),
    }
    return pa.table(columns, kl_schema())
