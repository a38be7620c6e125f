"""Texts and per-token values of chosen samples, read from the run directories.

Reads only the row groups that hold a chosen sample. Knows nothing of how they are packed or shown.

Shape letters: T CoT tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softeval.reports.measured.arms import MeasuredRun
from softeval.reports.sections.selection import ChosenProblem, ChosenSample
from softeval.runs.parquet_files import row_groups, sequences
from softeval.runs.run import Run
from softeval.runs.tables import mixtures_place

if TYPE_CHECKING:
    import pyarrow as pa

KEY = ("task", "mode", "doc_id", "sample")
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
        if not run.table_path("prompts").is_file():
            continue
        for batch in run.batches("prompts", ("task", "doc_id", "prompt", "target")):
            rows = zip(*(batch.column(i).to_pylist() for i in range(4)), strict=True)
            for task, doc_id, prompt, target in rows:
                if (task, doc_id) in wanted:
                    found.setdefault((task, doc_id), (prompt, target))
    return found


def _read_run(run: MeasuredRun, chosen: Sequence[ChosenSample]) -> list[SampleText]:
    keys = {_key(sample): sample for sample in chosen}
    fields = _read_fields(run, keys)
    texts = {key: SampleText(sample, fields[key]) for key, sample in keys.items()}
    names = _token_texts(run)
    _read_positions(run, texts, names)
    _read_mixtures(run, texts, names)
    _read_kl(run, texts)
    return list(texts.values())


def _key(sample: ChosenSample) -> SampleKey:
    cell = sample.cell
    return *sample.key, int(cell.doc_R[sample.row]), int(cell.sample_R[sample.row])


def _read_fields(run: Run, keys: Mapping[SampleKey, Any]) -> dict[SampleKey, dict[str, Any]]:
    groups = row_groups(run.table_path("samples"), (*KEY, *TEXTS), _docs(keys))
    return {
        key: {name: value.as_py() for name, value in row.items()}
        for key, row in _matching(groups, keys)
    }


def _docs(keys: Iterable[SampleKey]) -> list[int]:
    return sorted({key[2] for key in keys})


def _matching(
    groups: Iterable[pa.Table], keys: Mapping[SampleKey, Any]
) -> Iterator[tuple[SampleKey, dict[str, Any]]]:
    """Rows of the named samples, as Arrow's scalars by column."""
    for group in groups:
        names = zip(*(group[column].to_pylist() for column in KEY), strict=True)
        for row, key in enumerate(names):
            if key in keys:
                yield key, {column: group[column][row] for column in group.column_names}


def _lists(
    path: Path, columns: Sequence[str], keys: Mapping[SampleKey, Any], more: Sequence[str] = ()
) -> Iterator[tuple[SampleKey, dict[str, Any]]]:
    """Lists of the named samples as arrays, and further columns of their key as they are."""
    for key, row in _matching(sequences(path, (*KEY, *more), columns, _docs(keys)), keys):
        lists = {name: row[name].values.to_numpy() for name in columns}
        yield key, lists | {name: row[name].as_py() for name in more}


def _token_texts(run: Run) -> dict[int, str]:
    if not run.table_path("tokens").is_file():
        return {}
    texts: dict[int, str] = {}
    for batch in run.batches("tokens", ("token_id", "text")):
        texts.update(zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True))
    return texts


def _read_positions(
    run: Run, texts: Mapping[SampleKey, SampleText], names: Mapping[int, str]
) -> None:
    """Shadow tokens and per-token values."""
    if not run.has("positions"):
        return
    columns = ("entropy", "top1_prob", "shadow_id")
    for key, lists in _lists(run.table_path("positions"), columns, texts):
        texts[key].entropy_T, texts[key].top1_T = lists["entropy"], lists["top1_prob"]
        texts[key].tokens = [names.get(token, "\ufffd") for token in lists["shadow_id"].tolist()]


def _read_mixtures(
    run: Run, texts: Mapping[SampleKey, SampleText], names: Mapping[int, str]
) -> None:
    """Largest mixture entries of each position, where they were recorded."""
    path, ids, probs = mixtures_place(run.path)
    if not path.is_file():
        return
    for key, lists in _lists(path, (ids, probs), texts):
        positions = len(texts[key].tokens)
        entries = [
            (names.get(token, "\ufffd"), prob)
            for token, prob in zip(lists[ids].tolist(), lists[probs].tolist(), strict=True)
        ]
        top = len(entries) // max(positions, 1)
        texts[key].mixtures = [
            (t, entries[t * top : t * top + min(top, MIXTURE_TOP)]) for t in range(positions)
        ]


def _read_kl(run: Run, texts: Mapping[SampleKey, SampleText]) -> None:
    """KL(base‖checkpoint) along the sample itself, where `softeval diagnose` replayed it."""
    if not run.table_path("kl").is_file():
        return
    for key, row in _lists(run.table_path("kl"), ["forward"], texts, more=["prefix_set"]):
        text, forward_T = texts[key], row["forward"]
        if row["prefix_set"] == "own" and len(forward_T) == len(text.tokens):
            text.kl_T = forward_T
