"""The report's tables as data: main results, comparisons, crossings, curves, entropy, KL.

One `Table` is shown in HTML, written as CSV and, for the main results, as LaTeX. Cells hold what is
printed; nothing is computed by whoever shows them.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from softeval.reports.arms import Arm, Arms, Checkpoint
from softeval.reports.cells import Key
from softeval.reports.contrasts import Comparison
from softeval.reports.escaping import visible
from softeval.reports.paper import paper_pass_at_k
from softeval.reports.recorded import RecordedMode
from softeval.reports.scores import ArmScore, Floats, arm_score, metrics
from softeval.statistics.equivalence import not_distinguishable_from_best


@dataclass(frozen=True)
class TableCell:
    """What one cell prints.

    Attributes:
        text: first line.
        note: second line, smaller; it may hold line ends.
        reference: third line: the paper's number.
        detail: said on hover and to screen readers.
        strong: not distinguishable from the best of its column.
    """

    text: str
    note: str = ""
    reference: str = ""
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one header column.

    Attributes:
        caption: says what the rows are.
        columns: header texts; the first is that of the header column.
        rows: cells, the first of each row a header.
        groups: header cells above the columns as (text, columns spanned); may be empty.
        csv_rows: the same at full precision for download; empty for none.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    groups: tuple[tuple[RecordedMode, int], ...] = ()
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
    text = f"{100 * value:+.{digits}f}" if sign else f"{100 * value:.{digits}f}"
    return text.replace("-", "−")


def interval_text(low: float, high: float) -> str:
    """Both ends of an interval of fractions, in percent or points."""
    return f"[{points(low)}, {points(high)}]"


def on_questions(entered: int, there: int) -> str:
    """How many questions a number stands on: ``200 questions``, or ``101 of 200 questions``."""
    several = "" if there == 1 else "s"
    return f"{there} question{several}" if entered == there else f"{entered} of {there} questions"


def number(value: float, digits: int = 3) -> str:
    """Significant digits with a true minus sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}".replace("-", "−")


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


@dataclass(frozen=True, eq=False)
class MainTable:
    """Results of one task: rows are arms, columns are mode × metric, as in the paper.

    Attributes:
        task: the task.
        family: the base model.
        metrics: (mode, k) of each column.
        scores: by row, then column; None where not evaluated, or where no problem is complete.
        arms: of the rows.
        names: of the rows.
        table: as printed.
        questions: of the task in this report.
    """

    task: str
    family: str
    metrics: tuple[tuple[RecordedMode, int], ...]
    scores: tuple[tuple[ArmScore | None, ...], ...]
    arms: tuple[Arm, ...]
    names: tuple[str, ...]
    table: Table
    questions: int

    def seed_table(self) -> Table | None:
        """Every checkpoint by itself; None where no arm has several."""
        if not any(s and len(s.mean.seed_means) > 1 for row in self.scores for s in row):
            return None
        rows = []
        for arm, name, row in zip(self.arms, self.names, self.scores, strict=True):
            for index, checkpoint in enumerate(arm.checkpoints):
                seed = "" if checkpoint.train_seed is None else f"seed {checkpoint.train_seed}"
                cells = [_seed_cell(s, checkpoint, self.questions) for s in row]
                rows.append((TableCell(name, seed or f"checkpoint {index + 1}"), *cells))
        caption = f"{self.task}: problems solved by single checkpoints, percent."
        return Table(caption, self.table.columns, tuple(rows), self.table.groups)


def _seed_cell(score: ArmScore | None, checkpoint: Checkpoint, questions: int) -> TableCell:
    if score is None or checkpoint not in (having := score.arm.having(score.key)):
        return TableCell("–", detail="not evaluated")
    entered = score.mean.interval.m
    fewer = on_questions(entered, questions) if entered < questions else ""
    return TableCell(points(score.mean.seed_means[having.index(checkpoint)]), fewer)


def main_tables(arms: Arms, paper: bool = False) -> list[MainTable]:
    """One table a base model and task.

    Args:
        arms: the rows.
        paper: lay the paper's numbers beside, where it has them.
    """
    tables = []
    for family in arms.families:
        rows = [arm for arm in arms.arms if arm.family == family]
        for task in arms.tasks:
            columns = metrics(arms, task)
            kept = [a for a in rows if any(a.having((task, mode)) for mode, _ in columns)]
            if kept:
                names = [_row_name(arms, arm.method, arm.dataset) for arm in kept]
                questions = arms.questions(task)
                tables.append(_main_table(family, task, columns, kept, names, paper, questions))
    return tables


def _row_name(arms: Arms, method: str, dataset: str | None) -> str:
    several = len({a.dataset for a in arms.arms if a.dataset}) > 1
    return f"{method} on {dataset}" if several and dataset else method


def _main_table(
    family: str,
    task: str,
    columns: list[tuple[RecordedMode, int]],
    arms: list[Arm],
    names: list[str],
    paper: bool,
    questions: int,
) -> MainTable:
    scores = [[arm_score(arm, (task, mode), k) for mode, k in columns] for arm in arms]
    strong = [_strong([row[c] for row in scores]) for c in range(len(columns))]
    rows = []
    for r, row in enumerate(scores):
        seeds = max(len(arms[r].having((task, mode))) for mode, _ in columns)
        header = TableCell(names[r], f"{seeds} seeds" if seeds > 1 else "1 checkpoint")
        cells = [
            _score_cell(s, strong[c][r], paper, questions)
            if s
            else _no_score(arms[r], (task, columns[c][0]))
            for c, s in enumerate(row)
        ]
        rows.append((header, *cells))
    modes = list(dict.fromkeys(mode for mode, _ in columns))
    table = Table(
        caption=f"{task}, {on_questions(questions, questions)}: problems solved, percent. Mean ± SD"
        " over training seeds, 95 % interval below; a cell that stands on fewer questions says so.",
        columns=("training", *(metric_name(mode, k) for mode, k in columns)),
        rows=tuple(rows),
        groups=tuple(
            (mode.replace("_", " "), sum(m == mode for m, _ in columns)) for mode in modes
        ),
        csv_rows=_main_csv(family, task, names, scores, paper),
    )
    by_row = tuple(map(tuple, scores))
    return MainTable(
        task, family, tuple(columns), by_row, tuple(arms), tuple(names), table, questions
    )


def _strong(column: Sequence[ArmScore | None]) -> list[bool]:
    """Marks the cells not told apart from the best on the problems that all share.

    None is marked where fewer than two problems are complete in every cell.
    """
    present = [score for score in column if score is not None]
    shared = _on_shared_problems(present) if len(present) > 1 else []
    if not shared or shared[0].shape[1] < 2:
        return [False] * len(column)
    marks = iter(not_distinguishable_from_best(shared))
    return [score is not None and bool(next(marks)) for score in column]


def _on_shared_problems(scores: Sequence[ArmScore]) -> list[Floats]:
    """Each table on the problems that are complete, for every seed, in all of them."""
    complete = [score.doc_M[~np.isnan(score.x_SM).any(axis=0)] for score in scores]
    doc_M = reduce(np.intersect1d, complete)
    return [score.x_SM[:, np.searchsorted(score.doc_M, doc_M)] for score in scores]


def _no_score(arm: Arm, key: Key) -> TableCell:
    why = "no problem is complete for every seed" if arm.having(key) else "not evaluated"
    return TableCell("–", detail=why)


def _score_cell(score: ArmScore, strong: bool, paper: bool, questions: int) -> TableCell:
    mean, interval = score.mean, score.mean.interval
    spread = "" if math.isnan(mean.sd) else f" ± {points(mean.sd)}"
    several = len(mean.seed_means) > 1
    detail = f"n = {score.n}, {on_questions(interval.m, questions)}"
    if not math.isnan(score.se_resampled):
        detail += f"; SE of sampling these problems again {points(score.se_resampled)}"
    if several:
        detail += "; seeds " + ", ".join(points(value) for value in mean.seed_means)
    if interval.excluded:
        detail += f"; {interval.excluded} problems with n < {score.k} left out"
    reference = paper_pass_at_k(score.arm, *score.key, score.k) if paper else None
    fewer = f"\n{on_questions(interval.m, questions)}" if interval.m < questions else ""
    return TableCell(
        text=points(mean.mean) + spread,
        note=interval_text(interval.low, interval.high) + fewer,
        reference=f"paper {reference.text}" if reference else "",
        detail=detail,
        strong=strong,
    )


def _main_csv(
    family: str,
    task: str,
    names: Sequence[str],
    scores: Sequence[Sequence[ArmScore | None]],
    paper: bool,
) -> tuple[tuple[str, ...], ...]:
    header = ("model", "task", "training", "mode", "k", "n", "problems", "seeds")
    header += ("mean_percent", "sd_percent", "low_percent", "high_percent")
    header += ("se_resampled_percent", "seed_means_percent")
    header += ("paper_mean_percent", "paper_sd_percent") if paper else ()
    rows: list[tuple[str, ...]] = [header]
    for name, row in zip(names, scores, strict=True):
        for s in (s for s in row if s is not None):
            interval, seeds = s.mean.interval, s.mean.seed_means
            sd = "" if math.isnan(s.mean.sd) else f"{100 * s.mean.sd:.4f}"
            numbers = (interval.mean, interval.low, interval.high)
            mean, low, high = (f"{100 * value:.4f}" for value in numbers)
            seed_text = " ".join(f"{100 * value:.4f}" for value in seeds)
            counts = (str(s.k), str(s.n), str(interval.m), str(len(seeds)))
            again = "" if math.isnan(s.se_resampled) else f"{100 * s.se_resampled:.4f}"
            cells = (family, task, name, s.key[1], *counts, mean, sd, low, high)
            rows.append((*cells, again, seed_text, *(_paper_numbers(s) if paper else ())))
    return tuple(rows)


def _paper_numbers(score: ArmScore) -> tuple[str, str]:
    """The paper's mean and standard deviation as in its file; empty where it has none."""
    found = paper_pass_at_k(score.arm, *score.key, score.k)
    if found is None:
        return "", ""
    return f"{found.mean:g}", "" if found.std is None else f"{found.std:g}"


def comparison_table(comparisons: Sequence[Comparison], margin: float) -> Table:
    """Every comparison with its effect first and p last."""
    columns = ("comparison", "difference, points", "detectable", "verdict")
    columns += ("A / B does better on", "p")
    rows = tuple(_comparison_row(c, margin) for c in comparisons)
    return Table("All comparisons; A − B, positive when A solves more.", columns, rows)


def _comparison_row(c: Comparison, margin: float) -> tuple[TableCell, ...]:
    contrast, counts = c.contrast, c.contrast.discordance
    word: str = c.verdict.word
    if word == "equivalent":
        found = c.verdict.equivalence
        word += f" (±{margin_text(margin)}; 90 % interval {interval_text(found.low, found.high)})"
    elif word != "inconclusive" and c.verdict.within_margin:
        word += f", by less than {margin_text(margin)}"
    kind = f"primary, {c.origin}" if c.primary else "exploratory"
    return (
        TableCell(c.name, c.metric_name),
        TableCell(
            points(contrast.diff, sign=True),
            interval_text(contrast.low, contrast.high),
        ),
        TableCell(points(contrast.mde) if contrast.se > 0 else "–"),
        TableCell(word, f"{kind}; {contrast.scope}"),
        TableCell(
            f"{counts.a_only} / {counts.b_only}",
            f"of {on_questions(contrast.problems, c.questions)}",
        ),
        TableCell(p_text(c.verdict.p), contrast.test + (", Holm" if c.primary else "")),
    )


def simple_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts."""
    cells = tuple(tuple(TableCell(text) for text in row) for row in rows)
    return Table(caption, tuple(columns), cells)


def by_position(
    caption: str, names: Sequence[str], starts: Sequence[int], value: Callable[[int, int], float]
) -> Table:
    """Numbers by position: one row a line of the figure, one column a position."""
    columns = ("", *(str(start) for start in starts))
    rows = [
        (name, *(number(value(row, column), 2) for column in range(len(starts))))
        for row, name in enumerate(names)
    ]
    return simple_table(caption, columns, rows)
