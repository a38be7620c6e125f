"""softeval inside lm-evaluation-harness: the model `softeval`, our tasks, and lm-eval's own CLI.

Importing this package imports neither lm_eval nor torch.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

MODEL_NAME = "softeval"
MODEL_CLASS = "softeval.lmeval.adapter:SoftEvalLM"
TASKS_DIR = Path(str(files("softeval.tasks")))
"""Folder of our task definitions, for lm-eval's ``include_path``."""


def register() -> None:
    """Make ``model="softeval"`` known to lm-eval; calling it again changes nothing.

    lm-eval fills its registry with its own models only while it is empty, so they go first. The
    class is named by a string: torch is imported when the model is made, not before.
    """
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_CLASS)


def register_when_imported() -> None:
    """Call `register` as soon as lm-eval's models are imported, at once where they are."""
    if "lm_eval.models" in sys.modules:
        register()
        return
    from softeval.lmeval.import_hook import after_import

    after_import("lm_eval.models", register)


def task_manager(**metadata: Any) -> TaskManager:
    """lm-eval's task manager with our tasks and nothing else.

    Args:
        metadata: what the tasks take from the model arguments: mode, num_samples, pass_at,
            max_cot_tokens, max_answer_tokens, data_dir.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=metadata)


def task_names(*, groups: bool = True) -> list[str]:
    """Names of our tasks, with those of groups of tasks unless left out."""
    manager = task_manager()
    return sorted(manager.all_tasks if groups else manager.all_subtasks)


def load_tasks(names: list[str], **metadata: Any) -> dict[str, Any]:
    """Load tasks and groups, with their questions, as ``lm_eval.evaluate`` takes them.

    Args:
        names: names of `task_names`.
        metadata: see `task_manager`.

    Returns:
        lm-eval's dictionary with "tasks" (every single task by name) and "groups".

    Raises:
        UserError: an unknown name, or data that cannot be read.
    """
    from softeval.lmeval.names import check_task_names

    manager = task_manager(**metadata)
    check_task_names(names, manager.all_tasks)
    return dict(manager.load(list(dict.fromkeys(names))))


def lm_eval_main(arguments: list[str]) -> None:
    """Run lm-eval's own command line (``run``, ``ls``, ``validate``) with our model and tasks.

    Raises:
        UserError: an option that would give wrong results with this model.
    """
    from softeval.lmeval.command import completed

    register()
    from lm_eval.__main__ import cli_evaluate

    given, sys.argv = sys.argv, ["lm_eval", *completed(arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
