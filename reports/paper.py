"""Reference numbers of *Soft Tokens, Hard Truths* (tables 2-8), laid beside measured ones.

The CSV files ship with the package. A measured cell is matched by model, task, training set and
method, mode and k, and only where it was decoded with the paper's settings on the whole benchmark;
nothing is matched by guess. The ablations (tables 6-8), made with one model on one task, are matched by
the options of the training alone: who shows them says of which model they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from softeval.modes import MODES
from softeval.options import DEFAULT_MAX_COT_TOKENS
from softeval.reports.measured.arms import BASE, Arm, MeasuredRun
from softeval.reports.measured.cells import Key


@dataclass(frozen=True)
class PublishedScore:
    """A number of the paper: mean and standard deviation over its three seeds.

    Attributes:
        mean: in percent, or nats for an NLL.
        std: the same unit; None for a single model (the base).
        source: table of the paper.
    """

    mean: float
    std: float | None
    source: str

    @property
    def text(self) -> str:
        """``97.9 ± 0.3``."""
        return f"{self.mean:g}" if self.std is None else f"{self.mean:g} ± {self.std:g}"


ARM = ("model", "task", "train_dataset", "train_method")
"""Columns by which `_arm_key` finds an arm."""
TASKS = {"gsm8k": "gsm8k", "math500": "math500", "olympiadbench": "olympiadbench"}
ABLATED = "Llama 3.2 3B Instruct, trained and tested on GSM8K"
"""What the paper's ablations are of."""
UNTRAINED = "none"
LIKELIHOOD_TASKS = {"hellaswag": "hellaswag", "arc": "arc", "arc_challenge": "arc", "mmlu": "mmlu"}


def paper_pass_at_k(arm: Arm, task: str, mode: str, k: int) -> PublishedScore | None:
    """The paper's pass@k for this arm, or None where it printed none or measured otherwise."""
    for run in (run for c in arm.checkpoints for run in c.runs):
        cell = run.cells.get((task, mode))
        if cell is not None and not (
            _decoded_as_in_paper(run, (task, mode)) and _is_whole(run, task, len(cell.doc_M))
        ):
            return None
    return _pass_at_k().get((*_arm_key(arm, TASKS.get(task, "")), mode, str(k)))


def paper_out_of_domain(arm: Arm, task: str, metric: str) -> PublishedScore | None:
    """The paper's ``accuracy_percent`` or ``nll_correct_per_token``, or None."""
    for run in (run for c in arm.checkpoints for run in c.runs):
        answered = run.answers.get(task)
        if answered is not None and not _is_whole(run, task, len(answered.doc_M)):
            return None
    return _out_of_domain().get((*_arm_key(arm, LIKELIHOOD_TASKS.get(task, "")), metric))


def paper_ablation(trained: Mapping[str, Any], mode: str, k: int) -> PublishedScore | None:
    """The paper's pass@k (appendix F) after such a training, or None where it printed none.

    Args:
        trained: the training's mode with its options, as a run records it; empty for no training.
        mode: of the evaluation.
        k: of pass@k.
    """
    found = _ablations().get((str(trained.get("name", UNTRAINED)), mode, k), [])
    return next((score for options, score in found if options.items() <= trained.items()), None)


def _decoded_as_in_paper(run: MeasuredRun, key: Key) -> bool:
    """The mode's own options, and the same cap on the CoT."""
    used, own = run.modes.get(key[1]), MODES.get(key[1])
    return (
        used is not None
        and own is not None
        and own.options.items() <= used.options.items()
        and run.config.get("max_cot_tokens") == DEFAULT_MAX_COT_TOKENS
    )


def _is_whole(run: MeasuredRun, task: str, answered: int) -> bool:
    """Every question of the benchmark was answered, in the plain prompt."""
    rows = run.questions(task)
    return rows is not None and answered >= rows and run.protocol.is_paper


def paper_model(name: str) -> str:
    """The paper's spelling of a model name: ``Llama-3.2-3B-Instruct`` → the same in lower case.

    ``Qwen2.5`` and ``Qwen-2.5`` are one name; so is a ``Meta-`` before ``Llama``.
    """
    spelled = re.sub(r"^(qwen|llama)-?(\d)", r"\1-\2", name.lower().removeprefix("meta-"))
    return spelled.replace("_", "-")


def _arm_key(arm: Arm, task: str) -> tuple[str, str, str, str]:
    method = "none" if arm.method == BASE else arm.method
    return paper_model(arm.family), task, (arm.dataset or "none").lower(), method


@cache
def _pass_at_k() -> dict[tuple[str, ...], PublishedScore]:
    return {
        tuple(row[name] for name in (*ARM, "mode", "k")): PublishedScore(
            float(row["mean_percent"]), _spread(row, "std_percent"), row["source"]
        )
        for row in _rows("pass_at_k.csv")
    }


@cache
def _out_of_domain() -> dict[tuple[str, ...], PublishedScore]:
    return {
        tuple(row[name] for name in (*ARM, "metric")): PublishedScore(
            float(row["mean"]), _spread(row, "std"), row["source"]
        )
        for row in _rows("out_of_domain.csv")
    }


@cache
def _ablations() -> dict[tuple[str, str, int], list[tuple[dict[str, float], PublishedScore]]]:
    """(options of the training, score) by mode of the training, mode of the evaluation and k."""
    table: dict[tuple[str, str, int], list[tuple[dict[str, float], PublishedScore]]] = {}
    for row in _rows("ablations.csv"):
        pairs = (part.split("=") for part in row["train_options"].split(";") if part)
        options = {name: float(value) for name, value in pairs}
        spread = None if row["train_mode"] == UNTRAINED else float(row["std_percent"])
        score = PublishedScore(float(row["mean_percent"]), spread, row["source"])
        key = (row["train_mode"], row["mode"], int(row["k"]))
        table.setdefault(key, []).append((options, score))
    return table


def _spread(row: dict[str, str], column: str) -> float | None:
    """The base model is one checkpoint: its printed 0.0 is no spread over seeds."""
    return None if row["train_method"] == "none" else float(row[column])


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = (files("softeval.reports") / "data" / name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())
