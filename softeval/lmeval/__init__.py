"""softeval inside lm-evaluation-harness: the model `softeval` and our tasks are made known to it.

Importing this package imports neither lm_eval nor torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError, suggest

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
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def task_manager(**metadata: Any) -> TaskManager:
    """lm-eval's task manager with our tasks and nothing else.

    Args:
        metadata: what the tasks take from the model arguments: mode, num_samples, pass_at,
            max_cot_tokens, max_answer_tokens, data_dir.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS_DIR), include_defaults=False, metadata=metadata)


def load_tasks(names: list[str], **metadata: Any) -> dict[str, Any]:
    """Load tasks and groups, with their questions, as ``lm_eval.evaluate`` takes them.

    Args:
        names: of tasks and groups.
        metadata: see `task_manager`.

    Returns:
        lm-eval's dictionary with "tasks" (every single task by name) and "groups".

    Raises:
        UserError: an unknown name, or data that cannot be read.
    """
    manager = task_manager(**metadata)
    for name in names:
        if name not in manager.all_tasks:
            remedy = suggest(name, manager.all_tasks) or "; see `softeval ls tasks`"
            raise UserError(f"unknown task {name!r}{remedy}")
    return dict(manager.load(list(dict.fromkeys(names))))


class _AfterImport(MetaPathFinder):
    """Calls `register` at the end of the first import of lm-eval's models, whoever imports them.

    So ``import softeval`` can be followed by ``lm_eval.simple_evaluate(model="softeval")`` without
    importing lm-eval for all who never call it. Finds nothing itself; takes the module's true
    loader and adds the call to it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "lm_eval.models":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register
        return spec
