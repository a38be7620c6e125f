"""Cells: chains of ordinary commands whose state is their directories.

A command is done when its directory was made by that very command and is whole. What is not done is
started again, and it is the command that knows what is left, and that refuses a directory of other
arguments. So a chain that was killed anywhere goes on, and nothing is kept beside the directories.

Knows nothing of grids, and of training and evaluation only how their directories say they are whole.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from softeval.runs import rundir

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a command that was told to stop."""


class CommandState(StrEnum):
    """How far a command is."""

    MISSING = "missing"
    BEGUN = "begun"
    DONE = "done"


@dataclass(frozen=True)
class Command:
    """An ordinary command, and the directory that it fills.

    Attributes:
        arguments: after `softeval`.
        folder: its directory.
    """

    arguments: tuple[str, ...]
    folder: Path

    @property
    def text(self) -> str:
        """As it is typed."""
        return shlex.join(["softeval", *self.arguments])

    @property
    def state(self) -> CommandState:
        """Read from the directory."""
        name, is_whole = KINDS[self.arguments[0]]
        try:
            record = _read(self.folder / name)
            done = record["command"] == self.text and is_whole(self.folder, record)
        except (OSError, ValueError, KeyError, TypeError):
            done = False
        if done:
            return CommandState.DONE
        return CommandState.BEGUN if self.folder.exists() else CommandState.MISSING


@dataclass(frozen=True)
class SweepCell:
    """One point of a grid under one seed.

    Attributes:
        name: what tells it from other points.
        seed: of its training; None without one.
        commands: in order; each needs those before it.
    """

    name: str
    seed: int | None
    commands: tuple[Command, ...]


def run_missing(
    cells: Sequence[SweepCell], tell: Callable[[str], None]
) -> tuple[list[Command], int]:
    """Run what is not done, one process at a time; a cell that fails does not stop the others.

    Args:
        cells: in the order in which they run.
        tell: is told of each command that starts.

    Returns:
        The commands that failed, and the exit code of an interruption, after which nothing more
        was started; 0 without one.
    """
    failed: list[Command] = []
    for number, cell in enumerate(cells, 1):
        for command in cell.commands:
            if command.state is CommandState.DONE:
                continue
            tell(f"cell {number} of {len(cells)}: {command.text}")
            code = execute(command)
            if code in INTERRUPTED:
                return failed, code
            if code:
                failed.append(command)
                break
    return failed, 0


def execute(command: Command) -> int:
    """Run a command as a process of its own, its output on our stderr; returns its exit code.

    Ctrl-C and SIGTERM are passed on once, and the command is waited for: it saves its state first.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        early.append(number) if child is None else child.send_signal(number)

    kept = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        words = [sys.executable, "-m", "softeval", *command.arguments]
        # In a group of its own, a terminal's Ctrl-C does not reach it a second time. No session of
        # its own: Linux shares the processors among sessions, and one that is nice stays so.
        child = subprocess.Popen(words, stdout=2, process_group=0)
        for number in early:
            child.send_signal(number)
        return child.wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _trained(folder: Path, record: Any) -> bool:
    """All updates are done, and `best` holds the best of them: it is exported last."""
    last, best = (_read(folder / name / rundir.TRAINING_FILE) for name in ("last", "best"))
    top = max(last["validation"], key=lambda point: point["success"])  # the first, as in training
    return last["step"] == record["config"]["max_steps"] and best["step"] == top["step"]


def _evaluated(folder: Path, record: Any) -> bool:
    return record["status"] == rundir.COMPLETE


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Told from the files alone: what trains and evaluates takes long to import.
KINDS = {"train": ("train.json", _trained), "run": (rundir.RUN_FILE, _evaluated)}
"""Each command's record in its directory, and what tells that the directory is whole."""
