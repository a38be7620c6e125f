"""The cells of a run: which task under which mode, with its questions and labels.

A log-likelihood task has one cell and no mode; a generative task one for each mode. Reads the tasks
through lm-eval, loads no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from softeval.errors import UserError
from softeval.modes import Mode
from softeval.runs import rundir
from softeval.runs.config import RunConfig, Shard
from softeval.tasks.catalogue import LIKELIHOOD, Benchmark, find_benchmarks
from softeval.tasks.data import DatasetSource, load
from softeval.tasks.local_data import is_jsonl, task_name

Document = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One task under one mode.

    Attributes:
        task: lm-eval's task object, with its questions.
        mode: the CoT mode; None for a log-likelihood task.
        num_samples: samples a question; 1 in a greedy mode.
        limit: as in `RunConfig`.
        shard: the part of the questions that is run; None for all.
        docs: doc_ids of those asked for, rising; None where `limit` chooses.
    """

    task: Any
    mode: Mode | None
    num_samples: int
    limit: int | float | None
    shard: Shard | None = None
    docs: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Name of the task."""
        return str(self.task.task_name)

    @property
    def title(self) -> str:
        """Task and mode, as results.json names them."""
        return self.name if self.mode is None else f"{self.name}@{self.mode.name}"

    @property
    def source(self) -> DatasetSource:
        """Where the questions came from."""
        return self.task.source

    @cached_property
    def every_document(self) -> dict[int, Document]:
        """The questions of all shards by doc_id, their row in the data set."""
        from softeval.lmeval.requests import ROW

        docs = self.task.eval_docs
        beyond = [row for row in self.docs or () if row >= len(docs)]
        if beyond:
            raise UserError(
                f"{self.name} has no question {beyond[0]}: 0 to {len(docs) - 1} are there"
            )
        first = islice(docs, question_count(len(docs), self.limit))
        chosen = first if self.docs is None else (docs[row] for row in self.docs)
        return {int(doc[ROW]): doc for doc in chosen}

    @cached_property
    def documents(self) -> dict[int, Document]:
        """The questions of this run by doc_id."""
        first, step = (0, 1) if self.shard is None else (self.shard.index - 1, self.shard.count)
        return dict(islice(self.every_document.items(), first, None, step))

    @property
    def chosen(self) -> dict[str, Any]:
        """The same questions as an argument of lm-eval's `evaluate`."""
        if self.shard is None and self.docs is None:
            return {"limit": len(self.documents)}
        return {"samples": {self.name: list(self.documents)}}


def question_count(available: int, limit: float | None) -> int:
    """How many of the available questions a limit takes; a fraction is rounded up, as lm-eval does.

    Args:
        available: questions in the data set.
        limit: number, fraction below 1, or None for all.
    """
    if limit is None:
        return available
    return min(available, math.ceil(available * limit) if limit < 1 else int(limit))


def questions_asked(config: RunConfig, task: str, available: int) -> int:
    """How many of a task's available questions a run takes, those of all shards."""
    docs = config.docs_of(task)
    return question_count(available, config.limit) if docs is None else len(docs)


def load_cells(
    config: RunConfig, modes: Sequence[Mode], benchmarks: Sequence[Benchmark] | None = None
) -> list[Cell]:
    """The cells of a run: log-likelihood tasks first, then each task under each mode.

    Data are read once a benchmark. Modes that take equally many samples share a task object.

    Args:
        config: of the run.
        modes: of the run.
        benchmarks: only these; None takes all that the run names.

    Raises:
        UserError: an unknown task, data that cannot be read, or a shard without a question.
    """
    from softeval.tasks.benchmark import BenchmarkTask

    counts = {mode: config.samples_under(mode) for mode in modes}
    likelihood, generative = [], []
    for benchmark in chosen_benchmarks(config) if benchmarks is None else benchmarks:
        loaded = load(benchmark, config.data_dir)
        chosen = (config.limit, config.shard, config.docs_of(benchmark.task))
        if benchmark.kind == LIKELIHOOD:
            task = BenchmarkTask(benchmark, config, 1, loaded)
            likelihood.append(Cell(task, None, 1, *chosen))
            continue
        tasks = {n: BenchmarkTask(benchmark, config, n, loaded) for n in sorted({*counts.values()})}
        generative += [Cell(tasks[n], mode, n, *chosen) for mode, n in counts.items()]
    cells = [*likelihood, *generative]
    for cell in cells:
        questions = len(cell.every_document)
        if config.shard is not None and config.shard.count > questions:
            raise UserError(f"--shard {config.shard}: {cell.name} has {questions} questions only")
    return cells


def chosen_benchmarks(config: RunConfig) -> list[Benchmark]:
    """The benchmarks that a run names, those of groups and bare files among them.

    Raises:
        UserError: an unknown one, or a definition that cannot be used.
    """
    found = find_benchmarks(config.tasks, config.include_path, config.question, config.answer)
    if not found:
        raise UserError("--tasks names no task; see `softeval ls tasks`")
    return found


def refuse_unread(config: RunConfig, cells: Iterable[Cell]) -> None:
    """Refuse words of a protocol where no question is put in them.

    Raises:
        UserError: naming the first of them.
    """
    if all(cell.mode is None for cell in cells):
        words = ("prompt", "cot_stop", "answer_prefix")
        for name in (n for n in words if getattr(config, n) is not None):
            raise UserError(
                f"--{name.replace('_', '-')} has no effect on tasks scored by log-likelihood; leave"
                " it out, or name a generative task (`softeval ls tasks`)"
            )


def joined(config: RunConfig, cells: Sequence[Cell], found: Mapping[str, Any]) -> RunConfig:
    """The configuration with the tasks and modes that the run has beside it; itself if none."""
    there = found.get("config") or {}
    modes = [mode.name for mode in config.selected_modes()]
    old_tasks, old_modes = there.get("tasks") or [], there.get("modes") or []
    ours = {cell.name for cell in cells}
    if ours >= {*map(task_name, old_tasks)} and {*modes} >= {*old_modes}:
        return config
    tasks = [str(Path(t).expanduser().resolve()) if is_jsonl(t) else t for t in config.tasks]
    unset = ("include_path", "question", "answer", "data_dir", "mode_file")
    filled = {n: there.get(n) for n in unset if getattr(config, n) is None}
    both = {"tasks": [*old_tasks, *tasks], "modes": [*old_modes, *modes]}
    changed = {name: tuple(dict.fromkeys(names)) for name, names in both.items()}
    return config.model_copy(update=filled | changed)


def kept_titles(found: Mapping[str, Any] | None, cells: Iterable[Cell]) -> frozenset[str]:
    """Titles of the cells that the tables hold, and the journal perhaps not."""
    if found is None:
        return frozenset()
    if found.get("status") != rundir.COMPLETE:
        return frozenset(found.get(rundir.KEPT) or ())
    tasks, modes = (found["identity"][name] for name in ("tasks", "modes"))
    held = (c for c in cells if c.name in tasks and (c.mode is None or c.mode.name in modes))
    return frozenset(cell.title for cell in held)
