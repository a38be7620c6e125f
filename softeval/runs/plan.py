"""What a run would do, for --dry-run: no weights are read and nothing is downloaded or written.

What the real run would refuse before it reads weights is refused here by the same code, as far as
the data and the checkpoint are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.modes import Mode, mode_record
from softeval.runs import rundir
from softeval.runs.cells import Cell, load_cells, question_count
from softeval.runs.config import DEFAULT_MAX_COT_TOKENS, RunConfig
from softeval.runs.context import check_template, examine, settled_cot_cap
from softeval.runs.identity import Request, choose_folder, default_folder
from softeval.tasks.catalogue import LIKELIHOOD, TaskEntry, expand_tasks
from softeval.tasks.data import dataset_spec

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint

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


def make_plan(config: RunConfig, overwrite: bool = False) -> dict[str, Any]:
    """Resolved configuration, requests of each task, and the most tokens that can be generated.

    Args:
        config: of the run.
        overwrite: whether the run may replace one that is there.

    Raises:
        UserError: what a real run would refuse before it reads the weights.
    """
    modes = config.selected_modes()
    tasks = expand_tasks(config.tasks)
    checkpoint = _examined(config)
    if checkpoint is not None:
        check_template(config, checkpoint)
    cells = _cells_at_hand(config, tasks, modes)
    cap = _cot_cap(config, cells, checkpoint)
    rows = {task.name: _task_plan(task, config, modes, cells, cap) for task in tasks}
    resolved = config.model_dump(mode="json") | {
        "tasks": [task.name for task in tasks],
        "modes": {mode.name: mode_record(mode) for mode in modes},
        "pass_at": list(config.ks),
        "max_cot_tokens": cap,
        "output_path": str(_folder(config, modes, cells, len(tasks), overwrite)),
    }
    return {
        "config": resolved,
        "checkpoint": _checkpoint_plan(checkpoint),
        "tasks": rows,
        "samples": sum(row.get("samples", 0) for row in rows.values()),
        "max_generated_tokens": sum(row.get("max_generated_tokens", 0) for row in rows.values()),
    }


def _examined(config: RunConfig) -> Checkpoint | None:
    """The checkpoint without its weights; None for one that would have to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    model = config.model
    named = None if model is None or Path(model).expanduser().exists() else model
    if named is not None and named.count("/") < 2 and not named.startswith((".", "/", "~")):
        files = ("config.json", "tokenizer_config.json")
        found = [try_to_load_from_cache(named, name, revision=config.revision) for name in files]
        if not all(isinstance(path, str) for path in found):
            return None
    return examine(config, local_files_only=True)


def _checkpoint_plan(checkpoint: Checkpoint | None) -> dict[str, Any] | str:
    if checkpoint is None:
        return "on the hub; looked at once it is downloaded"
    return {
        "model_type": checkpoint.config.model_type,
        "max_length": checkpoint.max_length,
        "notes": list(checkpoint.notes),
    }


def _cells_at_hand(
    config: RunConfig, tasks: Sequence[TaskEntry], modes: tuple[Mode, ...]
) -> list[Cell]:
    """The cells whose questions need no download, read and checked as in a run."""
    names = tuple(task.name for task in tasks if not _on_hub(task, config))
    return load_cells(config.model_copy(update={"tasks": names}), modes) if names else []


def _on_hub(task: TaskEntry, config: RunConfig) -> bool:
    return bool(dataset_spec(task.dataset).hub_id) and config.data_dir is None


def _cot_cap(config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | None) -> int:
    """The cap on the CoT, as far as it can be known without the questions on the hub."""
    if checkpoint is None:
        return config.max_cot_tokens or DEFAULT_MAX_COT_TOKENS
    cap = settled_cot_cap(config, cells, checkpoint)
    return config.max_cot_tokens or min(cap, checkpoint.max_length)


def _folder(
    config: RunConfig,
    modes: tuple[Mode, ...],
    cells: Sequence[Cell],
    tasks: int,
    overwrite: bool,
) -> Path:
    """Where the run would go; with all questions at hand also whether it may."""
    if len({cell.name for cell in cells}) == tasks:
        return choose_folder(Request.of(config, modes, cells), overwrite, probe=False)
    folder = Path(config.output_path or default_folder(config)).expanduser()
    rundir.check_place(folder)
    return folder


def _task_plan(
    task: TaskEntry, config: RunConfig, modes: tuple[Mode, ...], cells: Sequence[Cell], cap: int
) -> dict[str, Any]:
    available, where = _available(task, cells)
    questions = question_count(available, config.limit)
    plan: dict[str, Any] = {"kind": task.kind, "data": where, "questions": questions}
    if task.kind == LIKELIHOOD:
        return plan
    per_question = sum(1 if mode.is_greedy else config.num_samples for mode in modes)
    samples = questions * per_question
    tokens = samples * (cap + config.max_answer_tokens)
    return plan | {"samples": samples, "max_generated_tokens": tokens}


def _available(task: TaskEntry, cells: Sequence[Cell]) -> tuple[int, str]:
    """Questions of a task, and where they come from."""
    source = next((cell.source for cell in cells if cell.name == task.name), None)
    if source is None:
        spec = dataset_spec(task.dataset)
        return HUB_ROWS[spec.name], f"hub: {spec.hub_id}"
    return source.rows, f"{source.origin}: {source.location}"
