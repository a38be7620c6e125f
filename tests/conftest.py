"""Shared fixtures: where the real data and checkpoints lie, if they are here."""

from __future__ import annotations

import os

# Before torch is imported anywhere: several test processes that each start a thread for every core
# wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A text that takes long on a busy machine is no failure.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

# What one session's models were found to be is nobody else's, and never lands in the user's folder.
_CACHE = tempfile.TemporaryDirectory(prefix="softeval-tests-")
os.environ["SOFTEVAL_CACHE"] = _CACHE.name

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SOFTEVAL_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real benchmarks, tokenizers and a real checkpoint; not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real test data absent: no {SHARED.name}/ beside the project")
    return SHARED


@pytest.fixture
def drawing_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Draw figures whose names begin so; the others are their descriptions, as drawing takes 9/10."""
    from markupsafe import Markup

    from softeval.reports import layout

    described, drawn = Markup("<svg><title>{}</title><desc>{}</desc></svg>").format, layout.drawn

    def some(names: tuple[str, ...], draw: Any, name: str, *texts: str) -> Markup:
        return drawn(draw, name, *texts) if name.startswith(names) else described(*texts)

    return lambda *names: monkeypatch.setattr(layout, "drawn", partial(some, names))


@pytest.fixture
def undrawn(drawing_only: Callable[..., None]) -> None:
    """Pages without a figure, for tests of words."""
    drawing_only()


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip and the compiler about the machine after each evaluation, which takes seconds."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture
def boxing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of short trainings that move their weights, on a tiny checkpoint."""
    from train_cases import BOXING, BoxJudge, boxing_model

    from softeval.trainers import rollout

    monkeypatch.setattr(rollout, "scorer", BoxJudge)
    return {"model": boxing_model(), "save_steps": 100} | BOXING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first in each worker's share of all tests, with which it begins.

    What is left at the end, and what one then takes from another, is quick: none waits for long.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    marks = ("slow", "browser")
    slow = {item.path for item in items if any(map(item.get_closest_marker, marks))}
    files = sorted(dict.fromkeys(item.path for item in items), key=lambda path: path not in slow)
    shares = {path: (number % workers, path not in slow) for number, path in enumerate(files)}
    items.sort(key=lambda item: shares[item.path])


def mostly_slow(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Cases of a parametrisation that take one path: the `quick` ones stand for it in `make quick`.

    A tuple is the values of several arguments. All the others run in `make slow`.
    """
    known = list(cases)
    assert all(case in known for case in quick), "a quick case that is none of the cases"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in quick else pytest.mark.slow,
        )
        for case in known
    ]
