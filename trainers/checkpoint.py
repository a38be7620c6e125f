"""The state of a training run on disk: all that the next update depends on.

States are directories `step-000120`, each whole or not at all; the newest whole one continues the
run. Weights and optimizer tensors are safetensors, the rest JSON. The noise of the rollouts needs no
state: it is keyed (`softeval.decoding.randomness`).

Knows nothing of how updates are made.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softeval.errors import UserError
from softeval.trainers.atomic import is_whole, write_directory

TENSORS = "tensors.safetensors"
PROGRESS = "progress.json"
_RANDOM = "random."
_NAME = re.compile(r"step-(\d+)")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        cursor: place in the data order.
        embedding_rms: root mean square of E's entries when training began; σ is made of it.
        best_step: step of the best validation so far, -1 before the first.
        best_success: its share of accepted answers.
        micro_batch: sequences of a training pass, where memory decided; it must stay.
        curve: every validation, as {"step", "success", ...}.
    """

    step: int = 0
    cursor: int = 0
    embedding_rms: float = 0.0
    best_step: int = -1
    best_success: float = -1.0
    micro_batch: int | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


def save_state(folder: Path, progress: Progress, tensors: dict[str, Tensor], keep: int) -> Path:
    """Write the state after `progress.step` updates and drop the oldest beyond `keep`."""
    place = folder / f"step-{progress.step:06d}"

    def fill(partial: Path) -> None:
        host = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(host | _random_tensors(), str(partial / TENSORS))
        record = {"progress": asdict(progress), "random": _random_numbers()}
        (partial / PROGRESS).write_text(json.dumps(record) + "\n", encoding="utf-8")

    write_directory(place, fill, manifest=True)
    for old in saved_states(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


@dataclass(frozen=True)
class SavedState:
    """A state read back.

    Attributes:
        progress: where the run stood.
        tensors: weights and optimizer, by name.
        torn: states that were newer but not whole.
    """

    progress: Progress
    tensors: dict[str, Tensor]
    torn: tuple[str, ...]
    random: dict[str, Any]

    def restore_random(self) -> None:
        """Set every random generator back."""
        version, numbers, gauss = self.random["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = self.random["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(self.tensors[f"{_RANDOM}torch"])
        saved = [n for n in sorted(self.tensors) if n.startswith(f"{_RANDOM}cuda")]
        if saved and torch.cuda.is_available():
            for device, name in enumerate(saved[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(self.tensors[name], device)


def load_state(folder: Path) -> SavedState | None:
    """The newest whole state, None where nothing was saved yet.

    Raises:
        UserError: states are there, but every one is torn.
    """
    torn: list[str] = []
    for place in reversed(saved_states(folder)):
        if is_whole(place):
            record = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
            tensors = load_file(str(place / TENSORS))
            return SavedState(
                Progress(**record["progress"]), tensors, tuple(torn), record["random"]
            )
        torn.append(place.name)
    if torn:
        raise UserError(
            f"every state in {folder} is torn ({', '.join(torn)}); start anew in another --output-path"
        )
    return None


def saved_states(folder: Path) -> list[Path]:
    """State directories, oldest first, torn ones too."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _random_tensors() -> dict[str, Tensor]:
    states = {f"{_RANDOM}torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        for device, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"{_RANDOM}cuda{device:03d}"] = state
    return states


def _random_numbers() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}
