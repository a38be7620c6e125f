"""The processes of one training run: who does what, and sums over all of them.

A thin face of accelerate. Weights are replicated; gradients are summed here, explicitly, once an
update, so no wrapper stands between the trainer and the model. Fully sharded training is not
supported.

Knows nothing of what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from softeval.errors import UserError
from softeval.model.checkpoint import torch_device

Item = TypeVar("Item")
PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: the main one may be writing 100 GB to a slow disk."""


class Processes:
    """This process among the run's.

    Args:
        device: "auto", or a torch device type.
        trackers: names of accelerate's trackers.
        folder: where trackers write.

    Raises:
        UserError: a tracker that is unknown or not installed, or a device that is not there.
    """

    def __init__(self, device: str, trackers: Sequence[str], folder: Path) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        _check_trackers(trackers)
        chosen = torch_device(device)
        self.accelerator: Any = Accelerator(
            cpu=chosen.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        alone = self.accelerator.num_processes == 1
        automatic = device == "auto" or not alone
        self.device = self.accelerator.device if automatic else chosen

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items: every count-th, sizes differing by at most one.

        Not a contiguous part: samples of one question have one reward too often, and a process that
        held nothing else would idle in the training pass.
        """
        return items[self.rank :: self.count]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return self.accelerator.reduce(tensor, "sum") if self.count > 1 else tensor

    def totals(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum of each number over the processes; every process gives the same names."""
        if self.count == 1:
            return sums
        stacked = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
        return dict(zip(sums, self.total(stacked).tolist(), strict=True))

    def sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace each weight's gradient by its sum over the processes."""
        if self.count > 1:
            for weight in weights:
                weight.grad = self.total(weight.grad)  # type: ignore[arg-type]

    def wait(self) -> None:
        """Until every process has come here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """End trackers and the process group."""
        self.accelerator.end_training()


def launched_rank() -> int:
    """Rank given by torchrun or accelerate launch; 0 alone. Usable before torch is loaded."""
    return int(os.environ.get("RANK", "0"))


def _check_trackers(names: Sequence[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"--report-to {name}: none of {', '.join(known)}, none")
        if name not in installed:
            raise UserError(f"--report-to {name}: not installed; pip install {name}, or name none")
