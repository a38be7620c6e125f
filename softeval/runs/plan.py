"""What a run would do, for --dry-run: no weights are read and nothing is downloaded or written.

What the real run would refuse before it reads weights is refused here by the same code, as far as
the data and the checkpoint are at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.modes import Mode, mode_record
from softeval.publishing import check_trackers
from softeval.runs import rundir
from softeval.runs.cells import Cell, chosen_benchmarks, load_cells, questions_asked
from softeval.runs.config import RunConfig
from softeval.runs.journal import check_idle, count_generations
from softeval.runs.request import examine, run_folder, settle, settled_cot_cap
from softeval.tasks.catalogue import LIKELIHOOD, Benchmark

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint


def make_plan(config: RunConfig, overwrite: bool = False) -> dict[str, Any]:
    """Resolved configuration, requests of each task, and the most tokens that can be generated.

    Args:
        config: of the run.
        overwrite: whether the run may replace one that is there.

    Raises:
        UserError: what a real run would refuse before it reads the weights.
    """
    if config.report_to:
        check_trackers(config.report_to)
    modes = config.selected_modes()
    tasks = chosen_benchmarks(config)
    checkpoint = _examined(config)
    cells = _cells_at_hand(config, tasks, modes)
    if checkpoint is not None and {cell.name for cell in cells} == {task.task for task in tasks}:
        request = settle(config, cells, checkpoint, overwrite)
        folder, cap = request.folder, request.config.limits.max_cot_tokens
        found, added = request.found, request.fresh_cells if request.kept else []
    else:
        folder = run_folder(config)
        cap, found, added = _cot_cap(config, cells, checkpoint), None, []
    there = _there(folder, found, overwrite, added)
    rows = {task.task: _task_plan(task, config, modes, cells, cap) for task in tasks}
    resolved = config.model_dump(mode="json") | {
        "tasks": [task.task for task in tasks],
        "modes": {mode.name: mode_record(mode) for mode in modes},
        "pass_at": list(config.ks(config.num_samples)),
        "max_cot_tokens": cap,
        "output_path": str(folder),
    }
    return {
        "config": resolved,
        "run": there,
        "checkpoint": _checkpoint_plan(checkpoint),
        "tasks": rows,
        "samples": sum(row.get("samples", 0) for row in rows.values()),
        "max_generated_tokens": sum(row.get("max_generated_tokens", 0) for row in rows.values()),
    }


def _there(
    folder: Path, found: Mapping[str, Any] | None, overwrite: bool, added: Collection[Cell]
) -> str:
    """What becomes of the run directory.

    Args:
        folder: the directory.
        found: record of the run that is continued there; None where there is none, or none that
            could be compared with what is asked.
        overwrite: whether a run that is there is replaced.
        added: what is asked for beside a finished run.

    Raises:
        UserError: another process is writing to it.
    """
    if not rundir.is_run(folder):
        return "new"
    shards = folder / rundir.SHARDS
    if shards.is_dir():
        check_idle(shards)
    if overwrite:
        return "starts anew; the run that is there is removed"
    if found is None:
        return "there is one; whether it can be continued is known once everything is downloaded"
    if added:
        return f"kept, and {', '.join(cell.title for cell in added)} added"
    if found.get("status") == rundir.COMPLETE:
        return "finished before; it is shown again and nothing is computed"
    return f"continued; {count_generations(shards):,} samples are there"


def _examined(config: RunConfig) -> Checkpoint | None:
    """The checkpoint without its weights; None for one that would have to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    from softeval.model.checkpoint import torch_device

    torch_device(config.device)
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
    config: RunConfig, tasks: Sequence[Benchmark], modes: tuple[Mode, ...]
) -> list[Cell]:
    """The cells whose questions need no download, read and checked as in a run."""
    at_hand = [task for task in tasks if not task.on_hub or config.data_dir is not None]
    return load_cells(config, modes, benchmarks=at_hand) if at_hand else []


def _cot_cap(config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | None) -> int:
    """The cap on the CoT, as far as it can be known without the questions on the hub."""
    if checkpoint is None:
        return config.limits.max_cot_tokens
    if config.max_cot_tokens and config.limits.room(checkpoint) >= checkpoint.max_length:
        raise UserError(
            f"--max-cot-tokens {config.max_cot_tokens} exceeds the context of"
            f" {checkpoint.max_length}; lower it"
        )
    cap = settled_cot_cap(config, cells, checkpoint)
    return config.max_cot_tokens or min(cap, checkpoint.max_length)


def _task_plan(
    task: Benchmark, config: RunConfig, modes: tuple[Mode, ...], cells: Sequence[Cell], cap: int
) -> dict[str, Any]:
    available, where = _available(task, cells)
    plan: dict[str, Any] = {"kind": task.kind, "data": where}
    if available is None:
        return plan | {"questions": "known once they are downloaded"}
    questions = questions_asked(config, task.task, available)
    if config.shard is not None:
        questions = len(range(config.shard.index - 1, questions, config.shard.count))
    plan["questions"] = questions
    if task.kind == LIKELIHOOD:
        return plan
    per_question = sum(config.samples_under(mode) for mode in modes)
    samples = questions * per_question
    tokens = samples * (cap + config.limits.max_answer_tokens)
    return plan | {"samples": samples, "max_generated_tokens": tokens}


def _available(task: Benchmark, cells: Sequence[Cell]) -> tuple[int | None, str]:
    """Questions of a task, where that is known, and where they come from."""
    source = next((cell.source for cell in cells if cell.name == task.task), None)
    if source is None:
        return task.rows, f"hub: {task.dataset_path}"
    return source.rows, f"{source.origin}: {source.location}"
