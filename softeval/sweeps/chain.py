"""Cells: ordinary commands that need each other, whose state is their directories.

A command is done when its directory was made by that very command and is whole. What is not done is
started again, and it is the command that knows what is left, and that refuses a directory of other
arguments. So a chain that was killed anywhere goes on, and nothing is kept beside the directories.

Knows nothing of grids, and of training and evaluation only how their directories say they are whole.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from softeval.runs import rundir


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
        needs: what must be done before it.
        processes: how many torchrun starts; 1 does without it.
    """

    arguments: tuple[str, ...]
    folder: Path
    needs: tuple[Command, ...] = ()
    processes: int = 1

    @property
    def kind(self) -> str:
        """Which command."""
        return self.arguments[0]

    @property
    def text(self) -> str:
        """As its directory records it."""
        return shlex.join(["softeval", *self.arguments])

    @property
    def typed(self) -> str:
        """As it is typed."""
        if self.processes == 1:
            return self.text
        spread = ["torchrun", f"--nproc-per-node={self.processes}", "-m"]
        return f"{shlex.join(spread)} {self.text}"

    @property
    def name(self) -> str:
        """What tells it from every other command in a queue."""
        digest = hashlib.sha256(f"{self.folder.resolve()} {self.text}".encode()).hexdigest()
        return f"softeval-{self.kind}-{digest[:12]}"

    @property
    def log(self) -> Path:
        """Where its output goes when several run at once."""
        return self.folder.parent / f"{self.folder.name}-{self.kind}.log"

    @property
    def state(self) -> CommandState:
        """Read from the directory."""
        name, recorded, is_whole = KINDS[self.kind]
        try:
            record = _read(self.folder / name)
            done = recorded(record) == self.text and is_whole(self.folder, record)
        except (OSError, ValueError, KeyError, TypeError):
            done = False
        if done:
            return CommandState.DONE
        return CommandState.BEGUN if self.folder.exists() else CommandState.MISSING

    def start(self, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """A process of its own, both its outputs to a place."""
        words = [sys.executable, "-m", "softeval", *self.arguments]
        if self.processes > 1:
            spread = ["-m", "torch.distributed.run", f"--nproc-per-node={self.processes}"]
            words[1:1] = spread
        # In a group of its own, a terminal's Ctrl-C does not reach it a second time. No session of
        # its own: Linux shares the processors among sessions, and one that is nice stays so.
        return subprocess.Popen(words, stdout=output, stderr=output, process_group=0)


@dataclass(frozen=True)
class SweepCell:
    """One point of a grid under one seed.

    Attributes:
        name: what tells it from other points.
        seed: of its training; None without one.
        commands: each after those that it needs.
    """

    name: str
    seed: int | None
    commands: tuple[Command, ...]

    @property
    def reported(self) -> tuple[Path, ...]:
        """Directories that a report is about: of the training, and of the whole evaluation."""
        folders = [c.folder for c in self.commands if "--shard" not in c.arguments]
        return tuple(dict.fromkeys(folders))


def _trained(folder: Path, record: Any) -> bool:
    """All updates are done, and `best` holds the best of them: it is exported last."""
    last, best = (_read(folder / name / rundir.TRAINING_FILE) for name in ("last", "best"))
    if "best_step" not in last:  # of before it was recorded
        chosen_by = record["config"].get("select_by", "success")
        top = max(last["validation"], key=lambda point: point[chosen_by])
        last["best_step"] = top["step"]
    return last["step"] == record["config"]["max_steps"] and best["step"] == last["best_step"]


def _evaluated(folder: Path, record: Any) -> bool:
    """Every sample is there, and the checkpoint has not been trained anew or further since."""
    model = record["config"]["model"]
    now = None if model is None else Path(model) / rundir.TRAINING_FILE
    trained_since = now is not None and now.exists() and _read(now) != record.get("training")
    return record["status"] == rundir.COMPLETE and not trained_since


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


Kind = tuple[str, Callable[[Any], Any], Callable[[Path, Any], bool]]

# Told from the files alone: what trains and evaluates takes long to import.
KINDS: dict[str, Kind] = {
    "train": ("train.json", itemgetter("command"), _trained),
    "run": (rundir.RUN_FILE, itemgetter("command"), _evaluated),
    "merge": (rundir.RUN_FILE, itemgetter("command"), _evaluated),
    "diagnose": (rundir.RUN_FILE, lambda record: record["diagnose"]["command"], _evaluated),
}
"""Each command's record in its directory, the command that it names, and what tells that it is whole."""
