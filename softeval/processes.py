"""The processes of one run under torchrun, or the only one there is.

Rank and size come from torchrun's environment, before anything is loaded; talking to each other
needs the process group, which lm-eval's adapter joins while the model is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> Processes:
        """From torchrun's environment variables."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Places of `count` questions that lm-eval gives to this process."""
        return range(self.rank, count, self.size)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def leave(self) -> None:
        """End the process group, once nothing more is to be said."""
        if self.size > 1:
            import torch.distributed

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
