"""Texts and per-token values of chosen samples, read from the run directories.

Reads only the row groups that hold a chosen sample. Knows nothing of how they are packed or shown.

Shape letters: T CoT tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softeval.reports.arms import MeasuredRun
from softeval.reports.recorded import RecordedRun, RowSlices
from softeval.reports.sections.selection import ChosenProblem, ChosenSample
from softeval.runs.parquet_files import open_parquet

TEXTS = ("cot_text", "prefill", "answer_text", "answer", "verdict", "stop_reason", "target")
SampleKey = tuple[str, str, int, int]  # (task, mode, doc_id, sample)
MIXTURE_TOP = 3


@dataclass(eq=False)
class SampleText:
    """Everything that is shown of one sample.

    Attributes:
        chosen: which sample.
        fields: texts of samples.parquet by column.
        tokens: text of each CoT token; empty where no positions were recorded.
        entropy_T: nats at temperature 1.
        top1_T: largest probability at temperature 1.
        kl_T: KL(base‖checkpoint) on the sample's own prefixes, or None.
        mixtures: (position, [(token text, probability), …]) of recorded mixtures.
    """

    chosen: ChosenSample
    fields: dict[str, Any]
    tokens: list[str] = field(default_factory=list)
    entropy_T: NDArray[np.float32] | None = None
    top1_T: NDArray[np.float32] | None = None
    kl_T: NDArray[np.float32] | None = None
    mixtures: list[tuple[int, list[tuple[str, float]]]] = field(default_factory=list)


def read_samples(chosen: Sequence[ChosenSample]) -> list[SampleText]:
    """Texts and values of the chosen samples, in the order given.

    Raises:
        UserError: a table is damaged.
    """
    by_run: dict[int, tuple[MeasuredRun, list[ChosenSample]]] = {}
    for sample in chosen:
        run = next(r for r in sample.checkpoint.runs if sample.key in r.cells)
        by_run.setdefault(id(run), (run, []))[1].append(sample)
    found: dict[int, SampleText] = {}
    for run, samples in by_run.values():
        for text in _read_run(run, samples):
            found[id(text.chosen)] = text
    return [found[id(sample)] for sample in chosen]


def read_prompts(
    runs: Sequence[MeasuredRun], problems: Sequence[ChosenProblem]
) -> dict[tuple[str, int], tuple[str, str]]:
    """(prompt, label) of each problem, from the first run that has it."""
    wanted = {(problem.task, problem.doc_id) for problem in problems}
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for run in runs:
        if not run.run.path("prompts").is_file():
            continue
        for batch in run.run.batches("prompts", ("task", "doc_id", "prompt", "target")):
            rows = zip(*(batch.column(i).to_pylist() for i in range(4)), strict=True)
            for task, doc_id, prompt, target in rows:
                if (task, doc_id) in wanted:
                    found.setdefault((task, doc_id), (prompt, target))
    return found


def _read_run(run: MeasuredRun, chosen: Sequence[ChosenSample]) -> list[SampleText]:
    keys = {_key(sample): sample for sample in chosen}
    fields = _read_fields(run.run, keys)
    texts = {key: SampleText(sample, fields[key]) for key, sample in keys.items()}
    names = _token_texts(run.run)
    _read_positions(run, texts, names)
    _read_mixtures(run.run, texts, names)
    _read_kl(run.run, texts)
    return list(texts.values())


def _key(sample: ChosenSample) -> SampleKey:
    cell = sample.cell
    return *sample.key, int(cell.doc_R[sample.row]), int(cell.sample_R[sample.row])


def _read_fields(
    run: RecordedRun, keys: Mapping[SampleKey, Any]
) -> dict[SampleKey, dict[str, Any]]:
    found = {}
    for row in _matching(run, "samples", TEXTS, keys):
        found[row["task"], row["mode"], row["doc_id"], row["sample"]] = row
    return found


def _matching(
    run: RecordedRun, table: str, columns: Sequence[str], keys: Mapping[SampleKey, Any]
) -> list[dict[str, Any]]:
    """Rows of the named samples as dicts; row groups without a wanted problem are skipped."""
    import pyarrow.compute as pc

    docs = sorted({key[2] for key in keys})
    read = ("task", "mode", "doc_id", "sample", *columns)
    parquet = open_parquet(run.path(table), read)
    rows: list[dict[str, Any]] = []
    for group in range(parquet.num_row_groups):
        if not _may_hold(parquet.metadata.row_group(group), "doc_id", docs):
            continue
        part = parquet.read_row_group(group, columns=list(read))
        part = part.filter(pc.field("doc_id").isin(docs))
        rows += [
            r for r in part.to_pylist() if (r["task"], r["mode"], r["doc_id"], r["sample"]) in keys
        ]
    return rows


def _may_hold(group: Any, column: str, values: Sequence[int]) -> bool:
    """Whether the row group's statistics allow any of the values."""
    for index in range(group.num_columns):
        part = group.column(index)
        if part.path_in_schema == column and part.statistics is not None:
            low, high = part.statistics.min, part.statistics.max
            return any(low <= value <= high for value in values)
    return True


def _token_texts(run: RecordedRun) -> dict[int, str]:
    if not run.path("tokens").is_file():
        return {}
    texts: dict[int, str] = {}
    for batch in run.batches("tokens", ("token_id", "text")):
        texts.update(zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True))
    return texts


def _read_positions(
    run: MeasuredRun, texts: Mapping[SampleKey, SampleText], names: Mapping[int, str]
) -> None:
    """Shadow tokens and per-token values, in the order of the file."""
    if not run.positions:
        return
    rows = RowSlices(run.run, "positions", ("entropy", "top1_prob", "shadow_id"))
    starts = {key: int(run.positions[key[:2]].row_R[texts[key].chosen.row]) for key in texts}
    for key in sorted(texts, key=lambda key: starts[key]):
        text, start = texts[key], starts[key]
        if start < 0:
            continue
        values = rows.read(start, start + int(text.chosen.cell.length_R[text.chosen.row]))
        text.entropy_T, text.top1_T = values["entropy"], values["top1_prob"]
        text.tokens = [names.get(int(i), "\ufffd") for i in values["shadow_id"]]


def _read_mixtures(
    run: RecordedRun, texts: Mapping[SampleKey, SampleText], names: Mapping[int, str]
) -> None:
    """Largest mixture entries of each position, where they were recorded."""
    if not run.path("mixtures").is_file():
        return
    columns = ("position", "rank", "token_id", "prob")
    entries: dict[SampleKey, dict[int, list[tuple[str, float]]]] = {}
    for row in _matching(run, "mixtures", columns, texts):
        if row["rank"] < MIXTURE_TOP:
            key = row["task"], row["mode"], row["doc_id"], row["sample"]
            entry = (names.get(row["token_id"], "\ufffd"), float(row["prob"]))
            entries.setdefault(key, {}).setdefault(row["position"], []).append(entry)
    for key, positions in entries.items():
        texts[key].mixtures = sorted(positions.items())


def _read_kl(run: RecordedRun, texts: Mapping[SampleKey, SampleText]) -> None:
    """KL(base‖checkpoint) along the sample itself, where `softeval diagnose` replayed it."""
    if not run.path("kl").is_file():
        return
    values: dict[SampleKey, list[float]] = {}
    for row in _matching(run, "kl", ("prefix_set", "position", "forward"), texts):
        if row["prefix_set"] == "own":
            key = row["task"], row["mode"], row["doc_id"], row["sample"]
            values.setdefault(key, []).append(row["forward"])
    for key, kl in values.items():
        entropy_T = texts[key].entropy_T
        if entropy_T is not None and len(kl) == len(entropy_T):
            texts[key].kl_T = np.array(kl, np.float32)
