"""Random numbers keyed by (seed, task, question, sample, step).

A sample's numbers come from a counter-based generator whose key is a hash of what names the sample
and whose counter is the step. They depend on nothing else, so neither batch size, batch
composition, order, number of processes nor a resume can change them. They are drawn on the CPU in
every case, so they are also the same on every device.

The mode is deliberately not part of the key: soft_sample and fuzzy_sample see the same noise, which
pairs their comparison.

Shapes of the feed: B rows of the batch, N rows of a forward pass, W numbers of a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from softeval.modes import Draws, Randomness
from softeval.records import SampleKey

BLOCK = 16
"""Steps drawn at once; a block's numbers depend on its index alone."""


class Stream(IntEnum):
    """What the numbers are for; streams of one sample never overlap."""

    COT = 0
    ANSWER = 1
    SHUFFLE = 2
    DONOR = 3
    STEPS = 4


class SampleRandomness:
    """The random numbers of one sample."""

    def __init__(self, seed: int, key: SampleKey) -> None:
        name = f"{seed}|{key.task}|{key.doc_id}|{key.sample}"
        digest = hashlib.sha256(name.encode()).digest()
        self._key = np.frombuffer(digest[:16], dtype=np.uint64)

    def normal(self, block: int, width: int, stream: Stream = Stream.COT) -> np.ndarray:
        """(BLOCK, width) float32 standard normals for steps block·BLOCK and following."""
        return self._generator(block, stream).standard_normal((BLOCK, width), dtype=np.float32)

    def normals(self, steps: int, width: int) -> np.ndarray:
        """(steps, width) float32 standard normals of a CoT from its first step on."""
        blocks = [self.normal(block, width) for block in range(-(-steps // BLOCK))]
        return np.concatenate(blocks)[:steps] if blocks else np.empty((0, width), np.float32)

    def uniform(self, block: int, stream: Stream = Stream.COT, width: int = 1) -> np.ndarray:
        """(BLOCK, width) float64 uniforms in [0, 1) for steps block·BLOCK and following.

        (BLOCK,) for a width of 1.
        """
        shape = (BLOCK, width) if width > 1 else BLOCK
        return self._generator(block, stream).random(shape)

    def order(self, steps: int, stream: Stream) -> np.ndarray:
        """(steps,) the numbers 0, 1, … in an order of chance."""
        drawn = self.uniform(0, stream, width=-(-steps // BLOCK)).ravel()[:steps]
        return drawn.argsort(kind="stable")

    def _generator(self, block: int, stream: Stream) -> np.random.Generator:
        counter = np.array([0, block, int(stream), 0], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self._key, counter=counter))


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
