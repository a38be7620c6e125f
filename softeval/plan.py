"""What a run would do, for --dry-run: no weights are loaded and nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softeval.catalogue import LIKELIHOOD, TaskEntry, expand_tasks
from softeval.cells import question_count
from softeval.config import DEFAULT_MAX_COT_TOKENS, RunConfig
from softeval.data import dataset_spec, load
from softeval.errors import UserError
from softeval.identity import default_folder, mode_record
from softeval.modes import Mode, is_greedy, select_modes

# Rows of the splits that come from the hub, which a dry run does not ask.
HUB_ROWS = {
    "gsm8k": 1319,
    "math500": 500,
    "olympiadbench": 675,
    "hellaswag": 10042,
    "mmlu": 14042,
    "arc_challenge": 1172,
    "arc_easy": 2376,
}


def make_plan(config: RunConfig) -> dict[str, Any]:
    """Resolved configuration, requests of each task, and the most tokens that can be generated.

    Raises:
        UserError: what a real run would refuse before it loads a checkpoint.
    """
    modes = select_modes(config.modes, config.temperature, config.noise_scale, config.noise_norm)
    tasks = expand_tasks(config.tasks)
    cap = config.max_cot_tokens or _default_cap(config)
    rows = {task.name: _task_plan(task, config, modes, cap) for task in tasks}
    resolved = config.model_dump(mode="json") | {
        "tasks": [task.name for task in tasks],
        "modes": {mode.name: mode_record(mode) for mode in modes},
        "pass_at": list(config.ks),
        "max_cot_tokens": cap,
        "output_path": str(config.output_path or default_folder(config)),
    }
    return {
        "config": resolved,
        "tasks": rows,
        "samples": sum(row.get("samples", 0) for row in rows.values()),
        "max_generated_tokens": sum(row.get("max_generated_tokens", 0) for row in rows.values()),
    }


def _task_plan(
    task: TaskEntry, config: RunConfig, modes: tuple[Mode, ...], cap: int
) -> dict[str, Any]:
    available, where = _available(task, config)
    questions = question_count(available, config.limit)
    plan: dict[str, Any] = {"kind": task.kind, "data": where, "questions": questions}
    if task.kind == LIKELIHOOD:
        return plan
    per_question = sum(1 if is_greedy(mode) else config.num_samples for mode in modes)
    samples = questions * per_question
    tokens = samples * (cap + config.max_answer_tokens)
    return plan | {"samples": samples, "max_generated_tokens": tokens}


def _available(task: TaskEntry, config: RunConfig) -> tuple[int, str]:
    """Questions of a task, and where they come from."""
    spec = dataset_spec(task.dataset)
    if spec.hub_id and config.data_dir is None:
        return HUB_ROWS[spec.name], f"hub: {spec.hub_id}"
    source = load(task.dataset, config.data_dir, task.split).source
    return source.rows, f"{source.origin}: {source.location}"


def _default_cap(config: RunConfig) -> int:
    """The default cap, not above a local checkpoint's context; the run itself looks closer."""
    context = _context_length(config.model)
    return DEFAULT_MAX_COT_TOKENS if context is None else min(DEFAULT_MAX_COT_TOKENS, context)


def _context_length(model: str | None) -> int | None:
    """Positions of a local checkpoint by its config.json; None for one on the hub.

    Raises:
        UserError: a path with no checkpoint.
    """
    from softeval.identity import bundled_checkpoint

    folder = bundled_checkpoint() if model is None else Path(model).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        if folder.exists() or model is None or model.startswith((".", "/", "~")):
            raise UserError(
                f"no checkpoint at {folder}; give a directory or a hub id like org/name"
            )
        return None
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text: Mapping[str, Any] = content.get("text_config") or content
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(text.get(name), int):
            return int(text[name])
    return None
