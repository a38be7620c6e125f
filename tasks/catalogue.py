"""The tasks there are, read from their definitions without lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from softeval.errors import UserError, suggest

GENERATIVE = "generative"
LIKELIHOOD = "log-likelihood"
GROUP = "group"


@dataclass(frozen=True)
class TaskEntry:
    """One task or group.

    Attributes:
        name: as --tasks takes it.
        kind: "generative" (runs under every mode), "log-likelihood" (runs once) or "group".
        dataset: name of its data set; "" for a group.
        split: the split it reads; "" for a group.
        members: tasks of a group.
    """

    name: str
    kind: str
    dataset: str = ""
    split: str = ""
    members: tuple[str, ...] = ()


@cache
def task_catalogue() -> dict[str, TaskEntry]:
    """Every task and group by name."""
    folder = Path(str(files("softeval.tasks")))
    entries = [_entry(path) for path in sorted(folder.glob("*/*.yaml"))]
    return {entry.name: entry for entry in entries}


def expand_tasks(names: Sequence[str]) -> list[TaskEntry]:
    """The single tasks that names of tasks and groups stand for.

    Raises:
        UserError: an unknown name, with the nearest known one.
    """
    known = task_catalogue()
    found: dict[str, TaskEntry] = {}
    for name in names:
        if name not in known:
            hint = suggest(name, known) or "; see `softeval ls tasks`"
            raise UserError(f"unknown task {name!r}{hint}")
        entry = known[name]
        members = expand_tasks(entry.members) if entry.kind == GROUP else [entry]
        found |= {member.name: member for member in members}
    return list(found.values())


def _entry(path: Path) -> TaskEntry:
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if "group" in content:
        return TaskEntry(content["group"], GROUP, members=tuple(content["task"]))
    generative = content["output_type"] == "generate_until"
    return TaskEntry(
        content["task"],
        GENERATIVE if generative else LIKELIHOOD,
        content["dataset_kwargs"]["name"],
        content["test_split"],
    )


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's ``!function`` as the text behind it; nothing is imported."""


def _function_name(loader: yaml.SafeLoader, node: Any) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function_name)
