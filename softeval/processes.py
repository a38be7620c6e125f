"""The processes of one run under torchrun, or the only one there is.

Rank and size come from torchrun's environment, before anything is loaded; talking to each other needs
the group of processes, which is accelerate's: training joins it here, an evaluation through lm-eval's
adapter. Weights are replicated and gradients summed explicitly, once an update, so no wrapper stands
between a trainer and its model; fully sharded training is not supported.

Knows nothing of what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=3)
"""How long a training process waits for the others: one may be writing 100 GB to a slow disk."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number.
        size: how many there are.
        device: where it computes, once it has joined the others.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @classmethod
    def here(cls) -> Processes:
        """From torchrun's environment variables."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @classmethod
    def joined(cls, device: torch.device) -> Processes:
        """In touch with the others.

        Args:
            device: of a process that is alone; several take one of its type each.
        """
        from accelerate import PartialState

        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        alone = state.num_processes == 1
        return cls(state.process_index, state.num_processes, device if alone else state.device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items: every size-th, as lm-eval shares them out.

        Not a contiguous part: samples of one question have one reward too often, and a process that
        held nothing else would idle in the training pass.
        """
        return items[self.rank :: self.size]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.size == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "sum")  # pyright: ignore[reportReturnType]

    def totals(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum of each number over the processes; every process gives the same names."""
        if self.size == 1:
            return sums
        import torch

        stacked = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
        return dict(zip(sums, self.total(stacked).tolist(), strict=True))

    def leave(self) -> None:
        """End the group of processes, once nothing more is to be said."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
