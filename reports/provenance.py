"""Validity and provenance of a report as tables: what each number rests on and comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from softeval.reports.arms import Arms, MeasuredRun
from softeval.reports.tables import Table, TableCell, points
from softeval.reports.validity import CellValidity, find_validity

SHARES = {
    "no_answer": "no answer",
    "truncated": "truncated",
    "eos": "ended by EOS",
    "timeout": "timed out",
    "duplicates": "duplicates",
}
RECORD_PARTS = ("config", "modes", "versions", "hardware", "counts", "training", "diagnose")


@dataclass(frozen=True)
class LevelCell(TableCell):
    """A cell that may be marked "amber" or "red"."""

    level: str = ""


def validity_context(arms: Arms) -> dict[str, Any]:
    """The tables of the validity section."""
    cells = find_validity(arms)
    return {
        "validity": _summary(cells),
        "validity_cells": Table(
            "What each cell rests on; shares of samples.",
            ("cell", "problems", "n", "missing", *SHARES.values()),
            tuple(_cell_row(cell) for cell in cells),
        ),
        "validity_note": "△ above 5 %, ▲ above 20 % (scoring time-outs: 0.5 % and 5 %). Samples"
        " without an answer or not scored in time count as wrong; truncated CoTs are asked for"
        " their answer at the cap.",
        "provenance": _provenance(arms),
        "data": _data(arms),
        "runs": [_run_record(run) for run in arms.runs],
    }


def _summary(cells: Sequence[CellValidity]) -> Table:
    """One row a method and task: the range over its checkpoints and modes."""
    columns = ("training", "seeds", "problems", "n", "missing")
    rows = []
    for (arm, task), group in groupby(cells, key=lambda c: (c.arm, c.task)):
        mine = list(group)
        missing = sum(c.missing for c in mine)
        rows.append(
            (
                LevelCell(arm, task),
                LevelCell(str(len({c.name for c in mine}))),
                LevelCell(_range([c.problems for c in mine], str)),
                LevelCell(
                    ", ".join(map(str, sorted({n for c in mine for n in (c.n_low, c.n_high)})))
                ),
                LevelCell(str(missing), level="red" if missing else ""),
                *(_share_cell(mine, name) for name in SHARES),
            )
        )
    return Table(
        "Least and most over checkpoints and modes; shares of samples.",
        (*columns, *SHARES.values()),
        tuple(rows),
    )


def _share_cell(cells: Sequence[CellValidity], name: str) -> LevelCell:
    worst = max(cells, key=lambda cell: getattr(cell, name))
    text = _range([getattr(cell, name) for cell in cells], points)
    return LevelCell(
        f"{text} %",
        detail=f"most in {worst.name}, {worst.mode.replace('_', ' ')}",
        level=worst.level(name),
    )


def _range(values: Sequence[Any], text: Callable[[Any], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low}–{high}"


def _cell_row(cell: CellValidity) -> tuple[TableCell, ...]:
    return (
        LevelCell(cell.name, f"{cell.task}, {cell.mode.replace('_', ' ')}"),
        LevelCell(str(cell.problems)),
        LevelCell(_range([cell.n_low, cell.n_high], str)),
        LevelCell(str(cell.missing), level="red" if cell.missing else ""),
        *(LevelCell(f"{points(getattr(cell, name))} %", level=cell.level(name)) for name in SHARES),
    )


def _provenance(arms: Arms) -> Table:
    columns = ("run", "status", "checkpoint", "weights", "trained", "dtype", "device", "scorer")
    columns += ("started",)
    rows = []
    for run in arms.runs:
        record, model = run.run.record, run.run.model
        scorer = record.get("scorer") or {}
        cells = (
            run.run.folder.name,
            str(record.get("status")),
            str(model.get("path")),
            str(model.get("weights_hash"))[:8],
            _training(run),
            _precision(model),
            str(model.get("device")),
            _scorer_text(scorer),
            str(record.get("started"))[:16].replace("T", " "),
        )
        rows.append(tuple(TableCell(text) for text in cells))
    return Table("Where the numbers come from.", columns, tuple(rows))


def _scorer_text(scorer: Mapping[str, Any]) -> str:
    """The rules that judged, and the library below them."""
    library = f"math-verify {scorer['math-verify']}" if "math-verify" in scorer else ""
    rules = str(scorer.get("rules") or "")
    return ", ".join(part for part in (rules, library) if part and part != "math-verify") or "–"


def _precision(model: Mapping[str, Any]) -> str:
    logits = model.get("logits_dtype")
    return f"{model.get('dtype')}" + ("" if logits in (None, "model") else f", logits {logits}")


def _training(run: MeasuredRun) -> str:
    """Method, data, seed and step, and how the checkpoint was chosen."""
    training = run.run.training
    if not training:
        return "–"
    words = [f"{training.get('method')} on {training.get('dataset')}"]
    words += [
        f"{name.removeprefix('train_')} {training[name]}"
        for name in ("train_seed", "step")
        if name in training
    ]
    return ", ".join([*words, *([str(training["selected"])] if "selected" in training else [])])


def _data(arms: Arms) -> Table:
    """One row a task; all runs have the same data, or they would not stand in one report."""
    sources = {task: source for run in arms.runs for task, source in run.run.datasets().items()}
    rows = tuple(
        tuple(map(TableCell, (task, *_source(source)))) for task, source in sources.items()
    )
    columns = ("task", "data set", "split", "questions", "from", "SHA-256")
    return Table("Questions of each task.", columns, rows)


def _source(source: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(source.get("name")),
        str(source.get("split") or "–"),
        str(source.get("rows") or "–"),
        f"{source.get('origin')} {source.get('location') or ''}".strip(),
        str(source.get("sha256") or "–")[:12],
    )


def _run_record(run: MeasuredRun) -> dict[str, str]:
    record = run.run.record
    shown = {name: record[name] for name in RECORD_PARTS if name in record}
    return {
        "name": run.run.folder.name,
        "command": str(record.get("command")),
        "record": json.dumps(shown, indent=1, ensure_ascii=False, default=str),
    }
