"""Random numbers keyed by (seed, task, question, sample, step).

A sample's numbers come from a counter-based generator whose key is a hash of what names the sample
and whose counter is the step. They depend on nothing else, so neither batch size, batch
composition, order, number of processes nor a resume can change them. They are drawn on the CPU in
every case, so they are also the same on every device.

The mode is deliberately not part of the key: soft_sample and fuzzy_sample see the same noise, which
pairs their comparison.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np

from softeval.records import SampleKey

BLOCK = 16
"""Steps drawn at once; a block's numbers depend on its index alone."""


class Stream(IntEnum):
    """What the numbers are for; streams of one sample never overlap."""

    COT = 0
    ANSWER = 1


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

    def _generator(self, block: int, stream: Stream) -> np.random.Generator:
        counter = np.array([0, block, int(stream), 0], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self._key, counter=counter))
