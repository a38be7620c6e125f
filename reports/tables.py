"""Tables as data: what cells print, and a table as CSV and as LaTeX.

Cells hold what is printed; nothing is computed by whoever shows them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from softeval.reports.escaping import visible
from softeval.runs.run import RecordedMode

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
}


@dataclass(frozen=True)
class TableCell:
    """What one cell prints.

    Attributes:
        text: first line.
        note: second line, smaller; it may hold line ends.
        reference: third line: the paper's number.
        detail: said on hover and to screen readers.
        strong: not distinguishable from the best of its column.
        level: how much it should worry: "amber", "red" or "".
    """

    text: str
    note: str = ""
    reference: str = ""
    detail: str = ""
    strong: bool = False
    level: str = ""


@dataclass(frozen=True)
class Table:
    """A table with one header column.

    Attributes:
        caption: says what the rows are.
        columns: header texts; the first is that of the header column.
        rows: cells, the first of each row a header.
        label: names the region of the page that it stands in.
        text_columns: indices of columns that hold words, not numbers.
        groups: header cells above the columns as (text, columns spanned); may be empty.
        row_groups: a header above a row, by the index of that row.
        csv_rows: the same at full precision for download; empty for none.
    """

    kind: ClassVar = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    label: str = ""
    text_columns: tuple[int, ...] = ()
    groups: tuple[tuple[str, int], ...] = ()
    row_groups: Mapping[int, str] = field(default_factory=dict)
    csv_rows: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    def csv(self) -> str:
        """The download: `csv_rows`, or the printed texts."""
        rows = self.csv_rows or (self.columns, *(tuple(c.text for c in row) for row in self.rows))
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(_inert(row) for row in rows)
        return buffer.getvalue()


def _inert(row: Sequence[str]) -> list[str]:
    """Cells without hidden characters; one that would be a formula gets an apostrophe before it."""
    return [f"'{text}" if _is_formula(text) else text for text in map(visible, row)]


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would compute the text."""
    if not text:
        return False
    return text[0] in "=@\t\r" or (text[0] in "+-" and not _number(text))


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def points(value: float, digits: int = 1, sign: bool = False) -> str:
    """A fraction as percent or points with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return "–"
    percent = round(100 * value, 9)  # one number summed in two orders prints alike
    text = f"{percent:+.{digits}f}" if sign else f"{percent:.{digits}f}"
    return text.replace("-", "−")


def detectable_text(mde: float) -> str:
    """A minimum detectable difference, a fraction, in points; no difference is larger than 100."""
    return "over 100" if mde > 1 else points(mde)


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of fractions, in percent or points."""
    return f"[{points(low)}, {points(high)}]"


def on_questions(entered: int, there: int) -> str:
    """How many questions a number stands on: ``200 questions``, or ``101 of 200 questions``."""
    several = "" if there == 1 else "s"
    return f"{there} question{several}" if entered == there else f"{entered} of {there} questions"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, zeros too, with a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def nats(value: float) -> str:
    """Nats to three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else "not finite"


def not_negative(low: float, high: float) -> str:
    """Interval of what is never negative: a t interval may reach below 0, what is shown does not."""
    return f"[{max(low, 0.0):.3f}, {high:.3f}]".replace("nan", "–")


def margin_text(margin: float) -> str:
    """An equivalence margin in points as the user gave it: ``2`` or ``1.5``."""
    return f"{100 * margin:g}"


def p_text(p: float) -> str:
    """A p value as printed: never 0."""
    if math.isnan(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


def metric_name(mode: RecordedMode, k: int) -> str:
    """Column title under its mode: ``greedy``, ``pass@1`` or ``pass@32``."""
    return "greedy" if mode.is_greedy else f"pass@{k}"


def simple_table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    label: str = "",
    text_columns: tuple[int, ...] = (),
) -> Table:
    """A table of plain texts."""
    cells = tuple(tuple(TableCell(text) for text in row) for row in rows)
    return Table(caption, tuple(columns), cells, label, text_columns)


def to_latex(table: Table) -> str:
    r"""A `tabular` in the layout of the paper; needs only the booktabs package.

    Mean ± SD, the interval below, the paper's number on a third line; emphasis as `\textbf`.
    """
    alignment = "l" + "r" * (len(table.columns) - 1)
    lines = [f"% {_one_line(table.caption)}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    if table.groups:
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{latex_text(text)}}}" for text, n in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
    lines += [" & ".join(latex_text(c) for c in table.columns) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if index in table.row_groups:
            group = latex_text(table.row_groups[index])
            lines.append(rf"\multicolumn{{{len(table.columns)}}}{{l}}{{\textit{{{group}}}}} \\")
        first = [
            rf"\textbf{{{latex_text(c.text)}}}" if c.strong else latex_text(c.text) for c in row
        ]
        notes = [rf"{{\scriptsize {latex_text(c.note)}}}" if c.note else "" for c in row]
        lines.append(" & ".join(first) + r" \\")
        lines.append(" & ".join(notes) + r" \\")
        if any(c.reference for c in row):
            paper = [
                rf"{{\scriptsize {latex_text(c.reference)}}}" if c.reference else "" for c in row
            ]
            lines.append(" & ".join(paper) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex_text(text: str) -> str:
    """Text in which no character is a command."""
    return "".join(SPECIAL.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
