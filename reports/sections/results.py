"""The main tables: rows are arms, under their base model; columns are mode × metric; one a task."""

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

NO_MATCH = (
    "No value of the paper matches these runs: its models, training, whole benchmarks, decoding and"
    " k."
)


@dataclass(frozen=True, eq=False)
class MainTable:
    """Results of one task: rows are arms, columns are mode × metric, as in the paper.

    Attributes:
        task: the task.
        metrics: (mode, k) of each column.
        scores: by row, then column; None where not evaluated, or where no problem is complete.
        arms: of the rows.
        names: of the rows.
        table: as printed.
        questions: of the task in this report.
    """

    task: str
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
        rows, groups = [], {}
        for at, (arm, name, row) in enumerate(zip(self.arms, self.names, self.scores, strict=True)):
            if at in self.table.row_groups:
                groups[len(rows)] = self.table.row_groups[at]
            for index, checkpoint in enumerate(arm.checkpoints):
                seed = "" if checkpoint.train_seed is None else f"seed {checkpoint.train_seed}"
                cells = [_seed_cell(s, checkpoint, self.questions) for s in row]
                rows.append((TableCell(name, seed or f"checkpoint {index + 1}"), *cells))
        caption = f"{self.task}: problems solved by single checkpoints, percent."
        label = f"{self.task}: single checkpoints"
        columns, spans = self.table.columns, self.table.groups
        return Table(caption, columns, tuple(rows), label, groups=spans, row_groups=groups)


def _seed_cell(score: ArmScore | None, checkpoint: MeasuredCheckpoint, questions: int) -> TableCell:
    if score is None or checkpoint not in (having := score.arm.having(score.key)):
        return TableCell("–", detail="not evaluated")
    entered = score.mean.interval.m
    fewer = on_questions(entered, questions) if entered < questions else ""
    return TableCell(points(score.mean.seed_means[having.index(checkpoint)]), fewer)


def main_tables(arms: Arms, paper: bool = False) -> list[MainTable]:
    """One table a task, its rows under their base models.

    Args:
        arms: the rows.
        paper: lay the paper's numbers beside, where it has them.
    """
    tables = []
    for task in arms.tasks:
        columns = metrics(arms, task)
        kept = [a for a in arms.arms if any(a.having((task, mode)) for mode, _ in columns)]
        kept.sort(key=lambda arm: arms.families.index(arm.family))  # arms of a model together
        tables.append(_main_table(arms, task, columns, kept, paper))
    return tables


def _grouped(arms: Sequence[Arm]) -> bool:
    """Whether rows stand under their base models: several, of which one has several arms."""
    return 1 < len({arm.family for arm in arms}) < len(arms)


def _row_name(arms: Arms, arm: Arm, grouped: bool) -> str:
    """The arm's name; under its base model the name says no more than how it was trained."""
    if not grouped:
        return arms.name(arm)
    several = len({a.dataset for a in arms.arms if a.dataset}) > 1
    return f"{arm.method} on {arm.dataset}" if several and arm.dataset else arm.method


def _main_table(
    arms: Arms,
    task: str,
    columns: list[tuple[RecordedMode, int]],
    kept: list[Arm],
    paper: bool,
) -> MainTable:
    grouped, questions = _grouped(kept), arms.questions(task)
    names = [_row_name(arms, arm, grouped) for arm in kept]
    scores = [[arm_score(arm, (task, mode), k) for mode, k in columns] for arm in kept]
    families = [arm.family if grouped else "" for arm in kept]
    strong = [_strong_within(families, [row[c] for row in scores]) for c in range(len(columns))]
    seeds = [max(len(arm.having((task, mode))) for mode, _ in columns) for arm in kept]
    rows = []
    for r, row in enumerate(scores):
        of_several = f"{seeds[r]} seeds" if seeds[r] > 1 else "1 checkpoint"
        cells = [
            score_cell(s, _paper_value(s) if paper else None, questions, strong[c][r])
            if s
            else _no_score(kept[r], (task, columns[c][0]))
            for c, s in enumerate(row)
        ]
        rows.append((TableCell(names[r], of_several if max(seeds) > 1 else ""), *cells))
    modes = list(dict.fromkeys(mode for mode, _ in columns))
    table = Table(
        caption=_caption(task, questions, max(seeds) > 1, len(kept) > 1, grouped),
        columns=(
            "training" if any(a.trained for a in kept) else "",
            *(metric_name(m, k) for m, k in columns),
        ),
        rows=tuple(rows),
        label=f"{task}: problems solved",
        groups=tuple(
            (mode.replace("_", " "), sum(m == mode for m, _ in columns)) for mode in modes
        ),
        row_groups={families.index(name): name for name in dict.fromkeys(families) if grouped},
        csv_rows=_main_csv(task, kept, [_row_name(arms, a, True) for a in kept], scores, paper),
    )
    by_row = tuple(map(tuple, scores))
    return MainTable(task, tuple(columns), by_row, tuple(kept), tuple(names), table, questions)


def _caption(task: str, questions: int, seeds: bool, several: bool, grouped: bool) -> str:
    """What the numbers of a table are, and of its marks those that it has."""
    means = "Mean ± SD over training seeds (no interval), below" if seeds else "Below"
    over = "problems and training seeds" if seeds else "problems"
    within = " of its base model" if grouped else ""
    shaded = f" Shaded: not told from the best of its column{within}." if several else ""
    return (
        f"{task}, {on_questions(questions, questions)}: problems solved, percent. {means} the 95 %"
        f" interval over {over}; a cell that stands on fewer questions says so.{shaded}"
    )


def _strong_within(families: Sequence[str], column: Sequence[ArmScore | None]) -> list[bool]:
    """The marks of a column, found among the rows of each base model."""
    marks = [False] * len(column)
    for family in dict.fromkeys(families):
        rows = [r for r, other in enumerate(families) if other == family]
        for r, mark in zip(rows, strong_marks([column[r] for r in rows]), strict=True):
            marks[r] = mark
    return marks


def strong_marks(column: Sequence[ArmScore | None]) -> list[bool]:
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
    task: str,
    arms: Sequence[Arm],
    names: Sequence[str],
    scores: Sequence[Sequence[ArmScore | None]],
    paper: bool,
) -> tuple[tuple[str, ...], ...]:
    header = ("model", "task", "training", "mode", "k", "n", "problems", "seeds")
    header += ("mean_percent", "sd_percent", "low_percent", "high_percent")
    header += ("se_resampled_percent", "seed_means_percent")
    header += ("paper_mean_percent", "paper_sd_percent") if paper else ()
    rows: list[tuple[str, ...]] = [header]
    for arm, name, row in zip(arms, names, scores, strict=True):
        for s in (s for s in row if s is not None):
            interval, seeds = s.mean.interval, s.mean.seed_means
            sd = "" if math.isnan(s.mean.sd) else f"{100 * s.mean.sd:.4f}"
            numbers = (interval.mean, interval.low, interval.high)
            mean, low, high = (f"{100 * value:.4f}" for value in numbers)
            seed_text = " ".join(f"{100 * value:.4f}" for value in seeds)
            counts = (str(s.k), str(s.n), str(interval.m), str(len(seeds)))
            again = "" if math.isnan(s.se_resampled) else f"{100 * s.se_resampled:.4f}"
            cells = (arm.family, task, name, s.key[1], *counts, mean, sd, low, high)
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
    """A table of each task, with its downloads."""
    arms, paper = material.arms, material.options.paper_reference
    tables = main_tables(arms, paper)
    for main in tables:
        if len(tables) > 1:
            yield Heading(main.task)
        yield main.table
        if (seeds := main.seed_table()) is not None:
            yield Details("Single checkpoints", (seeds,))
        yield Own("downloads.html.j2", _downloads(main))
    if not tables:
        yield Paragraph(_no_results(arms))
    elif paper and not _paper_matches(arms, tables):
        yield Paragraph(NO_MATCH, QUIET)


def _downloads(main: MainTable) -> dict[str, str]:
    return {
        "file": main.task,
        "csv": _data_address("text/csv", main.table.csv()),
        "latex": _data_address("application/x-tex", to_latex(main.table)),
    }


def _data_address(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _no_results(arms: Arms) -> str:
    if any(not (run.cells or run.answers or run.complete) for run in arms.runs):
        return "There is no table yet: the run is not finished, see above."
    return "These runs hold no generative task."


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
