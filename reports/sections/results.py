"""The main tables, as in the paper: rows are arms, columns are mode × metric, one table a task."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from softeval.reports.layout import QUIET, Details, Heading, Own, Paragraph, Part, Section
from softeval.reports.material import Material
from softeval.reports.measured.arms import Arm, Arms, MeasuredCheckpoint
from softeval.reports.measured.cells import Key
from softeval.reports.measured.scores import ArmScore, Floats, arm_score, metrics
from softeval.reports.paper import PublishedScore, paper_out_of_domain, paper_pass_at_k
from softeval.reports.tables import (
    Table,
    TableCell,
    interval_text,
    metric_name,
    on_questions,
    points,
    to_latex,
)
from softeval.runs.run import RecordedMode
from softeval.statistics.equivalence import not_distinguishable_from_best


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

    @property
    def heading(self) -> str:
        """Above the table."""
        return f"{self.task} · {self.family}"

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
        label = f"{self.heading}: single checkpoints"
        return Table(caption, self.table.columns, tuple(rows), label, groups=self.table.groups)


def _seed_cell(score: ArmScore | None, checkpoint: MeasuredCheckpoint, questions: int) -> TableCell:
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
            score_cell(s, _paper_value(s) if paper else None, questions, strong[c][r])
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
        label=f"{task} · {family}: problems solved",
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


def score_cell(
    score: ArmScore, paper: PublishedScore | None, questions: int, strong: bool = False
) -> TableCell:
    """Mean ± SD over seeds, the interval, and the paper's value below.

    Args:
        score: what is printed.
        paper: the paper's value; None for none.
        questions: of the task.
        strong: not distinguishable from the best of its column.
    """
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
    fewer = f"\n{on_questions(interval.m, questions)}" if interval.m < questions else ""
    return TableCell(
        text=points(mean.mean) + spread,
        note=interval_text(interval.low, interval.high) + fewer,
        reference=f"paper {paper.text}" if paper else "",
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


def _paper_value(score: ArmScore) -> PublishedScore | None:
    return paper_pass_at_k(score.arm, *score.key, score.k)


def _paper_numbers(score: ArmScore) -> tuple[str, str]:
    """The paper's mean and standard deviation as in its file; empty where it has none."""
    found = _paper_value(score)
    if found is None:
        return "", ""
    return f"{found.mean:g}", "" if found.std is None else f"{found.std:g}"


# Layout --------------------------------------------------------------------------------------


def _parts(material: Material) -> Iterator[Part]:
    """A table of each task and base model, with its downloads."""
    arms, paper = material.arms, material.options.paper_reference
    tables = main_tables(arms, paper)
    for main in tables:
        yield Heading(main.heading)
        yield main.table
        if (seeds := main.seed_table()) is not None:
            yield Details("Single checkpoints", (seeds,))
        yield Own("downloads.html.j2", _downloads(main))
    if not tables:
        yield Paragraph(_no_results(arms))
    else:
        matched = not paper or _paper_matches(arms, tables)
        yield Paragraph(_how_to_read(arms, matched), QUIET)


def _downloads(main: MainTable) -> dict[str, str]:
    return {
        "file": f"{main.task}-{main.family}",
        "csv": _data_address("text/csv", main.table.csv()),
        "latex": _data_address("application/x-tex", to_latex(main.table)),
    }


def _data_address(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _no_results(arms: Arms) -> str:
    if any(not (run.cells or run.answers or run.complete) for run in arms.runs):
        return "There is no table yet: the run is not finished, see above."
    return "These runs hold no generative task."


def _how_to_read(arms: Arms, matched: bool) -> str:
    """How to read the tables; `matched` is False where the paper's numbers were asked for in vain."""
    marked = "Shaded cells are those that cannot be told from the best of their column. "
    scope = (
        "Intervals are over problems and, with several seeds, over training seeds too; ± is the SD"
        " over seeds and is no interval."
    )
    if not matched:
        scope += (
            " No value of the paper matches these runs: its models, training, whole benchmarks,"
            " decoding and k."
        )
    return (marked if len(arms.arms) > 1 else "") + scope


def _paper_matches(arms: Arms, tables: Sequence[MainTable]) -> bool:
    """Whether any number of the paper stands in the report, log-likelihood tasks among them."""
    cells = (cell for main in tables for row in main.table.rows for cell in row)
    return any(cell.reference for cell in cells) or any(
        paper_out_of_domain(arm, task, metric)
        for arm in arms.arms
        for checkpoint in arm.checkpoints
        for task in checkpoint.likelihoods
        for metric in ("accuracy_percent", "nll_correct_per_token")
    )


SECTION = Section("results", "Results", "Results", {"Results": _parts})
