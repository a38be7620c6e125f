"""The cells of a run: which task under which mode, with its questions and labels.

A log-likelihood task has one cell and no mode; a generative task one for each mode. Reads the tasks
through lm-eval, loads no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from softeval.errors import UserError
from softeval.modes import Mode
from softeval.runs.config import DEFAULT_MAX_COT_TOKENS, RunConfig
from softeval.tasks.data import DatasetSource

Document = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One task under one mode.

    Attributes:
        task: lm-eval's task object, with its questions.
        mode: the CoT mode; None for a log-likelihood task.
        num_samples: samples a question; 1 in a greedy mode.
        limit: as in `RunConfig`.
    """

    task: Any
    mode: Mode | None
    num_samples: int
    limit: int | float | None

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
    def documents(self) -> dict[int, Document]:
        """The questions of this run by doc_id, their row in the data set."""
        from softeval.lmeval.settings import ROW

        docs = self.task.eval_docs
        chosen = islice(docs, question_count(len(docs), self.limit))
        return {int(doc[ROW]): doc for doc in chosen}


def question_count(available: int, limit: float | None) -> int:
    """How many of the available questions a limit takes; a fraction is rounded up, as lm-eval does.

    Args:
        available: questions in the data set.
        limit: number, fraction below 1, or None for all.
    """
    if limit is None:
        return available
    return min(available, math.ceil(available * limit) if limit < 1 else int(limit))


def load_cells(
    config: RunConfig, modes: Sequence[Mode], max_cot_tokens: int = DEFAULT_MAX_COT_TOKENS
) -> list[Cell]:
    """The cells of a run: log-likelihood tasks first, then each task under each mode.

    Modes that take equally many samples share a task object, so that its data is read once.

    Raises:
        UserError: an unknown task, or data that cannot be read.
    """
    by_count: dict[int, list[Mode]] = {}
    for mode in modes:
        count = 1 if mode.is_greedy else config.num_samples
        by_count.setdefault(count, []).append(mode)
    loaded = {count: _load(config, alike[0], max_cot_tokens) for count, alike in by_count.items()}
    likelihood, generative = [], []
    for name, task in next(iter(loaded.values())).items():
        if is_likelihood(task):
            likelihood.append(Cell(task, None, 1, config.limit))
            continue
        for mode in modes:
            count = 1 if mode.is_greedy else config.num_samples
            generative.append(Cell(loaded[count][name], mode, count, config.limit))
    return [*likelihood, *generative]


def is_likelihood(task: Any) -> bool:
    """Whether a task compares the log-likelihoods of given answers."""
    return task.OUTPUT_TYPE != "generate_until"


def _load(config: RunConfig, mode: Mode, max_cot_tokens: int) -> dict[str, Any]:
    from softeval.lmeval import load_tasks

    loaded = load_tasks(
        list(config.tasks),
        mode=mode.name,
        num_samples=config.num_samples,
        pass_at=list(config.ks),
        max_cot_tokens=max_cot_tokens,
        max_answer_tokens=config.max_answer_tokens,
        data_dir=config.data_dir,
        scorer=config.scorer,
    )["tasks"]
    if not loaded:
        raise UserError("--tasks names no task; see `softeval ls tasks`")
    return loaded
