"""softeval: the six CoT modes of *Soft Tokens, Hard Truths*, measured.

The public names load lazily, so that `import softeval` costs next to nothing. It also makes
`model="softeval"` known to lm-eval, at once or as soon as lm-eval is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softeval.lmeval import register_when_imported

if TYPE_CHECKING:
    from softeval.decoding.generate import generate
    from softeval.errors import UserError
    from softeval.model.language_model import LanguageModel, load_model
    from softeval.modes import MODES, get_mode, register_mode
    from softeval.protocol import Protocol
    from softeval.records import Generation
    from softeval.runs.evaluation import evaluate
    from softeval.runs.run import Run, load_run
    from softeval.scoring.judge import Verdict, score

__version__ = "0.1.0"

register_when_imported()

__all__ = [
    "MODES",
    "Generation",
    "LanguageModel",
    "Protocol",
    "Run",
    "UserError",
    "Verdict",
    "evaluate",
    "generate",
    "get_mode",
    "load_model",
    "load_run",
    "register_mode",
    "score",
]

_HOMES = {
    "MODES": "softeval.modes",
    "Generation": "softeval.records",
    "LanguageModel": "softeval.model.language_model",
    "Protocol": "softeval.protocol",
    "Run": "softeval.runs.run",
    "UserError": "softeval.errors",
    "Verdict": "softeval.scoring.judge",
    "evaluate": "softeval.runs.evaluation",
    "generate": "softeval.decoding.generate",
    "get_mode": "softeval.modes",
    "load_model": "softeval.model.language_model",
    "load_run": "softeval.runs.run",
    "register_mode": "softeval.modes",
    "score": "softeval.scoring.judge",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softeval' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
