"""Runs a function right after a module has been imported by whoever imports it.

It lets ``import softeval`` be followed by ``lm_eval.simple_evaluate(model="softeval")`` without
importing lm-eval for all the users who never call it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(module: str, call: Callable[[], None]) -> None:
    """Arrange for `call` to run once, at the end of the first import of `module`."""
    if not any(isinstance(f, _Waiting) and f.module == module for f in sys.meta_path):
        sys.meta_path.insert(0, _Waiting(module, call))


class _Waiting(MetaPathFinder):
    """Finds nothing itself; takes the module's true loader and adds the call to it."""

    def __init__(self, module: str, call: Callable[[], None]) -> None:
        self.module = module
        self.call = call

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            self.call()

        spec.loader.exec_module = execute_and_call
        return spec
