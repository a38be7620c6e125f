"""The processes of one run under torchrun, or the only one there is, and the signals that stop them.

Rank and size come from torchrun's environment, before anything is loaded; talking to each other needs
the group of processes, which is accelerate's: training joins it here, an evaluation through lm-eval's
adapter. What the processes of a training share, weights or their shards, is decided there
(`trainers/optimization.py`).

Ctrl-C and termination let the update under way be finished and its state saved. A second signal ends
the run at once; what launches several processes sends a signal on to each of them within moments, so
one that follows the first closely is the same.

Knows nothing of what is computed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

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

    def gathered(self, value: T) -> list[T]:
        """The value of each process, in every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

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


ALONE = Processes()
"""The only process that there is."""

SAME = 1.0
"""Seconds within which two signals are one request."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run ended on request, its state saved.

    Args:
        step: updates done.
        number: of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped at step {step}; the same command continues")
        self.exit_code = 128 + number


class Interruption:
    """Catches the two signals while it is entered; elsewhere than in the main thread none.

    Args:
        say: told once, when the first one comes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number = 0
        self._say = say
        self._first = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {n: signal.signal(n, self._receive) for n in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._first = number, now
            self._say("stopping after this update; a second signal stops at once, without saving")
        elif now - self._first > SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
