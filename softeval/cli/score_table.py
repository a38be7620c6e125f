"""The final table: success per task and mode, and the log-likelihood tasks.

Rows of `Run.scores()` in, text out: drawn on a terminal, Markdown elsewhere. Computes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from softeval.terminal import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Score = Mapping[str, Any]
PASS_METRICS = ("greedy pass@1", "pass@k")
_NAMES = ("task", "mode")


@dataclass(frozen=True)
class ScoreCell:
    """One number of a table: its value and interval, as texts."""

    value: str
    low: str
    high: str


@dataclass(frozen=True)
class ScoreTable:
    """A table of texts and cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | ScoreCell, ...], ...]


def score_tables(scores: Sequence[Score]) -> list[ScoreTable]:
    """The tables of a run: success in percent, then log-likelihoods; each only where it has rows.

    Args:
        scores: rows of `Run.scores()` as dicts.
    """
    success = [s for s in scores if s["metric"] in PASS_METRICS]
    likelihood = [s for s in scores if s["metric"] not in PASS_METRICS]
    tables = []
    if success:
        title = "Success in percent, with 95 % interval over questions"
        by_k = sorted(success, key=lambda score: score["k"])
        columns = list(dict.fromkeys(_pass_column(score) for score in by_k))
        tables.append(_table(title, ("task", "mode"), success, columns, _pass_column))
    if likelihood:
        title = "Log-likelihood: accuracy in percent, NLL of the correct answer in nats a token"
        columns = list(dict.fromkeys(score["metric"] for score in likelihood))
        tables.append(_table(title, ("task",), likelihood, columns, lambda s: s["metric"]))
    return tables


def print_tables(scores: Sequence[Score], stream: TextIO | None = None) -> None:
    """Print the tables of `score_tables`."""
    shown: TextIO = stream or sys.stdout
    for table in score_tables(scores):
        if shown.isatty():
            from rich.console import Console

            console = Console(file=shown, highlight=False)
            console.print(f"\n{table.title}", markup=False)
            for part in _fitting(table, console):
                console.print(_drawn(part))
        else:
            print("\n".join([f"{table.title}:", "", *markdown_lines(table), ""]), file=shown)


def markdown_lines(table: ScoreTable) -> list[str]:
    """The table as Markdown, intervals in brackets."""
    rows = [[_markdown_text(part) for part in row] for row in table.rows]
    rule = ["---" if name in _NAMES else "---:" for name in table.header]
    return ["| " + " | ".join(row) + " |" for row in [list(table.header), rule, *rows]]


def _pass_column(score: Score) -> str:
    return f"pass@{score['k']}"


def _table(
    title: str,
    names: tuple[str, ...],
    scores: Sequence[Score],
    columns: Sequence[str],
    column: Callable[[Score], str],
) -> ScoreTable:
    """One row for each distinct value of `names`, with the score of each column."""
    grouped: dict[Hashable, list[Score]] = {}
    for score in scores:
        grouped.setdefault(tuple(score[name] for name in names), []).append(score)
    rows = []
    for group in grouped.values():
        first = group[0]
        found = {column(score): _cell(score, int(first["questions"])) for score in group}
        size = f"{first['questions']}×{first['n']}"
        named = [str(first[name]) for name in names]
        rows.append((*named, size, *(found.get(name, "") for name in columns)))
    return ScoreTable(title, (*names, "n", *columns), tuple(rows))


def _cell(score: Score, questions: int) -> ScoreCell:
    """The number, marked where it stands on fewer questions than its row."""
    scale, digits = (1, 3) if score["metric"] == "nll_per_token" else (100, 1)
    value, low, high = (_number(scale * score[part], digits) for part in ("value", "low", "high"))
    fewer = f" ({score['questions']} of {questions})" if score["questions"] < questions else ""
    return ScoreCell(value + fewer, low, high)


def _number(value: float, digits: int) -> str:
    """A single question has no interval: its ends are not a number."""
    return "?" if math.isnan(value) else f"{value:.{digits}f}"


def _markdown_text(part: str | ScoreCell) -> str:
    if isinstance(part, ScoreCell):
        return f"{part.value} [{part.low}, {part.high}]"
    return clean(part).replace("|", "\\|")


def _fitting(table: ScoreTable, console: Console) -> list[ScoreTable]:
    """The table, in parts of fewer score columns where the terminal is narrow."""
    names = table.header.index("n") + 1
    unbounded = console.options.update(width=10_000)
    parts = [table]
    for size in range(len(table.header) - names, 0, -1):
        starts = range(names, len(table.header), size)
        parts = [_columns(table, names, slice(start, start + size)) for start in starts]
        widths = [console.measure(_drawn(part), options=unbounded).maximum for part in parts]
        if max(widths) <= console.width:
            return parts
    return parts


def _columns(table: ScoreTable, names: int, chosen: slice) -> ScoreTable:
    rows = tuple((*row[:names], *row[chosen]) for row in table.rows)
    return ScoreTable(table.title, (*table.header[:names], *table.header[chosen]), rows)


def _drawn(table: ScoreTable) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in table.header:
        left = name in _NAMES
        drawn.add_column(Text(name), justify="left" if left else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(_drawn_text(part) for part in row))
    return drawn


def _drawn_text(part: str | ScoreCell) -> Any:
    """The interval goes below the value, so that six values of k fit 100 columns."""
    from rich.text import Text

    if isinstance(part, str):
        return Text(clean(part))
    return Text.assemble(part.value, "\n", (f"{part.low}–{part.high}", "dim"))
