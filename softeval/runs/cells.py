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
from softeval.scoring.judge import Rules
from softeval.tasks.catalogue import Benchmark, find_benchmarks
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
        from softeval.lmeval.requests import ROW

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
    config: RunConfig,
    modes: Sequence[Mode],
    max_cot_tokens: int = DEFAULT_MAX_COT_TOKENS,
    benchmarks: Sequence[Benchmark] | None = None,
) -> list[Cell]:
    """The cells of a run: log-likelihood tasks first, then each task under each mode.

    Modes that take equally many samples share a task object, so that its data is read once.

    Args:
        config: of the run.
        modes: of the run.
        max_cot_tokens: cap on the CoT, for models that are not ours.
        benchmarks: only these; None takes all that the run names.

    Raises:
        UserError: an unknown task, or data that cannot be read.
    """
    benchmarks = chosen_benchmarks(config) if benchmarks is None else benchmarks
    counts = {mode.name: 1 if mode.is_greedy else config.num_samples for mode in modes}
    loaded = {
        n: _load(benchmarks, config, n, max_cot_tokens) for n in dict.fromkeys(counts.values())
    }
    likelihood, generative = [], []
    for name, task in next(iter(loaded.values())).items():
        if is_likelihood(task):
            likelihood.append(Cell(task, None, 1, config.limit))
            continue
        for mode in modes:
            count = counts[mode.name]
            generative.append(Cell(loaded[count][name], mode, count, config.limit))
    return [*likelihood, *generative]


def chosen_benchmarks(config: RunConfig) -> list[Benchmark]:
    """The benchmarks that a run names, those of groups and bare files among them.

    Raises:
        UserError: an unknown one, or a definition that cannot be used.
    """
    found = find_benchmarks(config.tasks, config.include_path, config.question, config.answer)
    if not found:
        raise UserError("--tasks names no task; see `softeval ls tasks`")
    return found


def is_likelihood(task: Any) -> bool:
    """Whether a task compares the log-likelihoods of given answers."""
    return task.OUTPUT_TYPE != "generate_until"


def _load(
    benchmarks: Sequence[Benchmark], config: RunConfig, num_samples: int, max_cot_tokens: int
) -> dict[str, Any]:
    from softeval.decoding.rows import Limits
    from softeval.lmeval.options import Options
    from softeval.tasks.benchmark import BenchmarkTask

    options = Options(
        limits=Limits(max_cot_tokens, config.max_answer_tokens),
        num_samples=num_samples,
        pass_at=tuple(k for k in config.ks if k <= num_samples) or None,
        data_dir=config.data_dir,
        scorer=Rules(config.scorer),
    )
    return {benchmark.task: BenchmarkTask(benchmark, options) for benchmark in benchmarks}
