"""`softeval leaderboard`: every run below a folder in one table a task, the best first.

Only runs that answered the same questions of the same data stand in one table; where they differ in
the cap of the CoT, the prompts or the rules that judged, the rows say so. One run a row, so that
intervals are over questions alone; `softeval compare` tests a difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.modes import mode_order
from softeval.reports.layout import AMBER, Heading, Paragraph, Part, Section
from softeval.reports.measured.arms import Arms, MeasuredRun, measure
from softeval.reports.measured.cells import MeasuredCell
from softeval.reports.measured.scores import ArmScore, arm_score, headline_k
from softeval.reports.notes import rules_of_run, unfinished_notes
from softeval.reports.page import render_page
from softeval.reports.sections.results import score_cell, strong_marks
from softeval.reports.tables import Table, TableCell
from softeval.runs.run import RecordedMode
from softeval.runs.rundir import RUN_FILE

NOTE = (
    "Percent with 95 % intervals over questions, of one run each; sorted by pass@1, of greedy modes by"
    " their one answer. Shaded: not told from the best of its column on the questions that all share"
    " (paired, Holm-adjusted; the best is chosen from the same data)."
)


@dataclass(frozen=True, eq=False)
class Entry:
    """One run under one mode.

    Attributes:
        run: its directory, below the folder.
        model: checkpoint, with how it was trained.
        mode: CoT mode.
        scores: by k, ascending.
        settings: by name, what may differ between the rows of a board.
    """

    run: str
    model: str
    mode: RecordedMode
    scores: dict[int, ArmScore]
    settings: dict[str, str]


@dataclass(frozen=True, eq=False)
class Board:
    """Entries that answered the same questions of a task, the best first."""

    task: str
    questions: int
    data: str
    entries: tuple[Entry, ...]

    @property
    def table(self) -> Table:
        """A column a k; columns of settings only where these differ."""
        names = next(iter(self.entries)).settings
        differing = [n for n in names if len({e.settings[n] for e in self.entries}) > 1]
        ks = sorted({k for entry in self.entries for k in entry.scores})
        marks = {k: strong_marks([entry.scores.get(k) for entry in self.entries]) for k in ks}
        rows = tuple(
            (
                TableCell(entry.run),
                TableCell(entry.model),
                TableCell(entry.mode.replace("_", " ")),
                *(TableCell(entry.settings[name]) for name in differing),
                *(
                    score_cell(entry.scores[k], None, self.questions, marks[k][at])
                    if k in entry.scores
                    else TableCell("–")
                    for k in ks
                ),
            )
            for at, entry in enumerate(self.entries)
        )
        columns = ("run", "model", "mode", *differing, *(f"pass@{k}" for k in ks))
        title = f"{self.task}, {self.questions} questions (data and questions {self.data})"
        return Table(title, columns, rows, title, tuple(range(1, 3 + len(differing))))


def find_boards(folder: Path, task: str | None = None) -> tuple[list[Board], list[str]]:
    """The boards of all runs below a folder, and a line for each run that is not whole.

    Raises:
        UserError: no such folder, or no run with a finished sample of a generative task, or of the task, is there.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give one that holds run directories")
    entries: dict[tuple[str, str], list[tuple[int, Entry]]] = {}
    notes: list[str] = []
    for path in sorted(found.parent for found in folder.rglob(RUN_FILE)):
        try:
            arms = measure([(None, path)], positions=False)
        except UserError as reason:
            notes.append(f"Left out: {reason}")
            continue
        notes += unfinished_notes(arms)
        for key, cell in arms.runs[0].cells.items():
            entry = _entry(arms, str(path.relative_to(folder)), key)
            if entry.scores and task in (None, key[0]):
                where = key[0], _data(arms.runs[0], cell)
                entries.setdefault(where, []).append((len(cell.doc_M), entry))
    if not entries:
        raise UserError(
            f"no scored samples{f' of {task}' if task else ''} in runs below {folder};"
            f" `softeval ls runs {folder}` lists them{''.join(f'. {note}' for note in notes[:1])}"
        )
    return [
        Board(task, rows[0][0], data, tuple(sorted((entry for _, entry in rows), key=_worst_last)))
        for (task, data), rows in sorted(entries.items())
    ], notes


def _worst_last(entry: Entry) -> tuple[Any, ...]:
    return -next(iter(entry.scores.values())).mean.mean, entry.run, *mode_order(entry.mode)


def _entry(arms: Arms, run: str, key: tuple[str, RecordedMode]) -> Entry:
    (arm,), mode, cell = arms.arms, key[1], arms.runs[0].cells[key]
    ks = [1] if mode.is_greedy else sorted({1, headline_k(arms, key[0])})
    scores = {k: score for k in ks if (score := arm_score(arm, key, k)) is not None}
    settings = {
        "cap": str(arms.runs[0].config.get("max_cot_tokens")),
        "prompts": _digest(cell.prompt_M.tolist()),
        "judged by": rules_of_run(arms.runs[0]),
    }
    return Entry(run, arm.checkpoints[0].name, mode, scores, settings)


def _data(run: MeasuredRun, cell: MeasuredCell) -> str:
    """What tells the questions of a cell from others: their data set, and which of it."""
    return _digest([run.datasets().get(cell.task, {}).get("sha256"), cell.doc_M.tolist()])


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:6]


def leaderboard_page(folder: Path, boards: Sequence[Board], notes: Sequence[str]) -> str:
    """The boards as one HTML page."""
    header = {
        "title": f"Runs below {folder.name or folder.resolve().name}",
        "status": "partial" if notes else "complete",
        "version": "softeval leaderboard",
    }
    opening = Section("opening", "", "", {}), [Paragraph(note, AMBER) for note in notes]
    section = Section("boards", "Leaderboard", "Leaderboard", {})
    return render_page(header, [opening, (section, list(_parts(boards)))])


def _parts(boards: Sequence[Board]) -> Iterator[Part]:
    yield Paragraph(NOTE)
    for board in boards:
        yield Heading(board.task)
        yield board.table
