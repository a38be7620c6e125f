"""Tables of texts: drawn on a terminal, in parts where it is narrow; Markdown elsewhere.

`score_tables` makes them of a run's scores. Computes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from softeval.terminal import clean

if TYPE_CHECKING:
    from rich.table import Table

Score = Mapping[str, Any]
PASS_METRICS = ("greedy pass@1", "pass@k")


@dataclass(frozen=True)
class TextTable:
    """A table.

    Attributes:
        columns: their names.
        rows: texts, one a column.
        title: what stands above it; may be empty.
        names: leading columns that say what a row is; they stand again in every part.
        widest: characters of a name that stand in one line on a terminal.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    names: int = 2
    widest: int | None = None


def score_tables(scores: Sequence[Score]) -> list[TextTable]:
    """The tables of a run: success in percent, then log-likelihoods; each only where it has rows.

    Args:
        scores: rows of `Run.scores()` as dicts.
    """
    found = []
    success = [score for score in scores if score["metric"] in PASS_METRICS]
    if success:
        title = "Success in percent, with 95 % interval over questions"
        columns = [f"pass@{k}" for k in sorted({score["k"] for score in success})]
        found.append(
            _score_table(title, ("task", "mode"), columns, success, lambda s: f"pass@{s['k']}")
        )
    likelihood = [score for score in scores if score["metric"] not in PASS_METRICS]
    if likelihood:
        title = "Log-likelihood: accuracy in percent, NLL of the correct answer in nats a token"
        columns = list(dict.fromkeys(score["metric"] for score in likelihood))
        found.append(_score_table(title, ("task",), columns, likelihood, lambda s: s["metric"]))
    return found


def print_table(table: TextTable, stream: TextIO | None = None) -> None:
    """Print a table; on a terminal what a cell has in brackets stands below the rest of it."""
    shown: TextIO = stream or sys.stdout
    if not shown.isatty():
        print("\n".join(markdown_lines(table)), file=shown)
        return
    from rich.console import Console

    console = Console(file=shown, highlight=False)
    unbounded = console.options.update(width=10_000)
    if table.title:
        console.print(f"\n{table.title}", markup=False)
    for size in range(len(table.columns) - table.names, 0, -1):
        starts = range(table.names, len(table.columns), size)
        parts = [_drawn(table, start, size) for start in starts]
        if max(console.measure(p, options=unbounded).maximum for p in parts) <= console.width:
            break
    for part in parts:
        console.print(part)


def markdown_lines(table: TextTable) -> list[str]:
    """The table as Markdown, its title on a line of its own."""
    rows = [[clean(text).replace("|", "\\|") for text in row] for row in table.rows]
    rule = ["---" if i < table.names else "---:" for i in range(len(table.columns))]
    lines = ["| " + " | ".join(row) + " |" for row in [list(table.columns), rule, *rows]]
    return [f"{table.title}:", "", *lines, ""] if table.title else lines


def _score_table(
    title: str,
    names: tuple[str, ...],
    columns: Sequence[str],
    scores: Sequence[Score],
    column: Callable[[Score], str],
) -> TextTable:
    """One row for each distinct value of `names`, with the score of each column."""
    grouped: dict[tuple[Any, ...], list[Score]] = {}
    for score in scores:
        grouped.setdefault(tuple(score[name] for name in names), []).append(score)
    rows = []
    for named, group in grouped.items():
        questions = int(group[0]["questions"])
        found = {column(score): _cell(score, questions) for score in group}
        size = f"{questions}×{group[0]['n']}"
        rows.append([*map(str, named), size, *(found.get(name, "") for name in columns)])
    return TextTable([*names, "n", *columns], rows, title, len(names) + 1)


def _cell(score: Score, questions: int) -> str:
    """The number with its interval, marked where it stands on fewer questions than its row."""
    scale, digits = (1, 3) if score["metric"] == "nll_per_token" else (100, 1)
    value, low, high = (_number(scale * score[part], digits) for part in ("value", "low", "high"))
    fewer = f" ({score['questions']} of {questions})" if score["questions"] < questions else ""
    return f"{value}{fewer} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    """A single question has no interval: its ends are not a number."""
    return "?" if math.isnan(value) else f"{value:.{digits}f}"


def _drawn(table: TextTable, start: int, size: int) -> Table:
    """So many columns of a table from one on, behind those of its names."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    places = [*range(table.names), *range(start, min(start + size, len(table.columns)))]
    for place in places:
        justify, most = ("left", table.widest) if place < table.names else ("right", None)
        drawn.add_column(Text(table.columns[place]), justify=justify, max_width=most)
    for row in table.rows:
        drawn.add_row(*(Text(clean(row[place]).replace(" [", "\n[")) for place in places))
    return drawn
