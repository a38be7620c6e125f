"""A main table as LaTeX, in the layout of the paper: booktabs, mean ± SD, interval below.

The paper's number, where there is one, stands on a third line.
"""

from __future__ import annotations

from softeval.reports.tables import Table

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


def to_latex(table: Table) -> str:
    r"""A `tabular` that needs only the booktabs package; emphasis as `\textbf`."""
    lines = [f"% {_one_line(table.caption)}", rf"\begin{{tabular}}{{l{'r' * _width(table)}}}"]
    lines.append(r"\toprule")
    if table.groups:
        spans = [rf"\multicolumn{{{n}}}{{c}}{{{escape(text)}}}" for text, n in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
    lines += [" & ".join(escape(c) for c in table.columns) + r" \\", r"\midrule"]
    for row in table.rows:
        first = [rf"\textbf{{{escape(c.text)}}}" if c.strong else escape(c.text) for c in row]
        notes = [rf"{{\scriptsize {escape(c.note)}}}" if c.note else "" for c in row]
        lines.append(" & ".join(first) + r" \\")
        lines.append(" & ".join(notes) + r" \\")
        if any(c.reference for c in row):
            paper = [rf"{{\scriptsize {escape(c.reference)}}}" if c.reference else "" for c in row]
            lines.append(" & ".join(paper) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Text in which no character is a command."""
    return "".join(SPECIAL.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _width(table: Table) -> int:
    return len(table.columns) - 1
