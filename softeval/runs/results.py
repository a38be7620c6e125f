"""results.json: what lm-eval reports on each cell, as one file in lm-eval's own shape.

A generative task has one entry for each mode, named ``task@mode``; a log-likelihood task keeps its
name. docs/results-schema.md describes the file. Knows nothing of how the results were made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.runs.environment import describe, hardware, package_versions

if TYPE_CHECKING:
    from softeval.lmeval.adapter import SoftEvalLM
    from softeval.runs.identity import Request

# Keys of lm-eval's results that hold one entry a task.
PER_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


@dataclass(frozen=True)
class CellResult:
    """What lm-eval returned on one cell.

    Attributes:
        task: name of the task.
        result: of ``lm_eval.evaluate``.
        facts: the adapter's ``mode_facts`` under this cell's mode.
    """

    task: str
    result: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def merge_results(cells: Mapping[str, CellResult]) -> dict[str, Any]:
    """One results file from those of the cells, by title."""
    merged: dict[str, Any] = {key: {} for key in PER_TASK}
    for title, cell in cells.items():
        for key in PER_TASK:
            if cell.task in cell.result.get(key, {}):
                merged[key][title] = cell.result[key][cell.task]
        merged["results"][title] = {**merged["results"][title], "alias": title}
    merged["groups"] = {}
    merged["group_subtasks"] = {title: [] for title in cells}
    merged["modes"] = {title: dict(cell.facts) for title, cell in cells.items() if cell.facts}
    return merged


def run_facts(lm: SoftEvalLM, request: Request) -> dict[str, Any]:
    """What lm-eval's own results files say beside the scores: model, machine, date, tokenizer."""
    from lm_eval.loggers.utils import add_tokenizer_info, get_commit_from_path

    config = request.config
    versions = package_versions()
    facts: dict[str, Any] = {
        "config": {
            "model": "softeval",
            "model_args": {"pretrained": lm.pretrained},
            **{k: v for k, v in lm.get_model_info().items() if k not in lm.mode_facts},
            "batch_size": config.batch_size,
            "device": str(lm.device),
            "limit": config.limit,
            "gen_kwargs": None,
        },
        "git_hash": get_commit_from_path(Path.cwd()),
        "date": time.time(),
        # lm-eval asks pip, git and nvidia-smi here, for seconds; this is what we know already.
        "pretty_env_info": describe(versions, hardware()),
        "transformers_version": versions.get("transformers", "N/A"),
        "lm_eval_version": versions.get("lm-eval", "N/A"),
        "upper_git_hash": get_commit_from_path(Path.cwd().parent),
    }
    add_tokenizer_info(facts, lm)
    return facts


def serialisable(value: Any) -> Any:
    """Values as JSON has them: not-a-number becomes null, an unknown object its text."""
    return json.loads(json.dumps(_finite(value), default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
