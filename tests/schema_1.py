"""Turns a run directory into what softeval wrote before schema 2: a row a position.

Not a test. Works on the files alone, with none of the package's readers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from softeval import records

LISTS = {"entropy", "mode_entropy", "top1_prob", "shadow_id"}
KL_COLUMNS = ["task", "doc_id", "mode", "sample", "prefix_set", "position", "forward", "reverse"]


def as_schema_1(folder: Path, group: int = 97) -> Path:
    """Rewrite the tables and the version of a run; `group` rows a row group cut samples in two."""
    table = pq.read_table(folder / "positions.parquet").to_pandas()
    rows = _rows(table.drop(columns=["mixture_id", "mixture_prob"]), sorted(LISTS), 1)
    _write(folder / "positions.parquet", rows, records.position_rows_schema(), group)
    kept = table[table["mixture_id"].notna()]
    if len(kept):
        top = len(kept["mixture_id"].iloc[0]) // len(kept["entropy"].iloc[0])
        kept = kept.rename(columns={"mixture_id": "token_id", "mixture_prob": "prob"})
        rows = _rows(kept.drop(columns=sorted(LISTS)), ["token_id", "prob"], top)
        _write(folder / "mixtures.parquet", rows, records.mixture_rows_schema(), group)
    if (folder / "kl.parquet").is_file():
        kl = _rows(pq.read_table(folder / "kl.parquet").to_pandas(), ["forward", "reverse"], 1)
        pq.write_table(pa.Table.from_pandas(kl[KL_COLUMNS]), folder / "kl.parquet", group)
    record = json.loads((folder / "run.json").read_text())
    record = {k: v for k, v in record.items() if k != "crc32"} | {"schema_version": 1}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def _rows(table: pd.DataFrame, lists: list[str], top: int) -> pd.DataFrame:
    lengths = [len(values) for values in table[lists[0]]]
    place = np.concatenate([np.arange(n) for n in lengths])
    rows = table[np.array(lengths) > 0].explode(lists)
    return rows.assign(position=place // top, rank=place % top)


def _write(path: Path, rows: pd.DataFrame, schema: pa.Schema, group: int) -> None:
    table = pa.table({name: pa.array(list(rows[name])) for name in schema.names})
    pq.write_table(table.cast(schema), path, row_group_size=group)
