"""Feeds keyed random numbers to the rows of a batch, a block of steps at a time.

Shapes: B rows of the batch, N rows of a forward pass, W numbers of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softeval.decoding.randomness import BLOCK, SampleRandomness, Stream
from softeval.modes import Draws, Randomness


class NoiseFeed:
    """Buffers of (B, BLOCK, W) numbers, or (B, BLOCK) uniforms where W is 1, refilled row by row."""

    def __init__(
        self,
        draws: Draws,
        batch: int,
        device: torch.device,
        stream: Stream = Stream.COT,
    ) -> None:
        kind, width = self._kind, self._width = draws
        self._stream = stream
        self._filled: list[tuple[SampleRandomness, int] | None] = [None] * batch
        flat = kind is Randomness.UNIFORM and width == 1
        shape = (batch, BLOCK) if flat else (batch, BLOCK, width)
        dtype = torch.float32 if kind is Randomness.NORMAL else torch.float64
        if kind is not Randomness.NONE:
            # Double precision is not to be had on every accelerator; uniforms stay on the host.
            self._buffer = torch.zeros(shape, dtype=dtype, device=_home(kind, device))
        self._device = device

    def read(
        self, rows: Sequence[SampleRandomness], steps: Sequence[int], tiled: int
    ) -> Tensor | None:
        """(tiled, W) or (tiled,) numbers of each row at its own step; None where none are used."""
        if self._kind is Randomness.NONE:
            return None
        for index, (random, step) in enumerate(zip(rows, steps, strict=True)):
            if self._filled[index] != (random, step // BLOCK):
                self._fill(index, random, step // BLOCK)
        offsets = [step % BLOCK for step in steps] + [0] * (tiled - len(steps))
        picked = self._buffer[torch.arange(tiled), torch.tensor(offsets)]
        return picked.to(self._device)

    def move(self, source: int, target: int) -> None:
        """Move a row's block."""
        if self._kind is not Randomness.NONE:
            self._buffer[target] = self._buffer[source]
            self._filled[target] = self._filled[source]

    def _fill(self, index: int, random: SampleRandomness, block: int) -> None:
        if self._kind is Randomness.NORMAL:
            numbers = random.normal(block, self._width, self._stream)
        else:
            numbers = random.uniform(block, self._stream, self._width)
        self._buffer[index] = torch.from_numpy(numbers)
        self._filled[index] = (random, block)


def _home(kind: Randomness, device: torch.device) -> torch.device:
    return device if kind is Randomness.NORMAL else torch.device("cpu")
