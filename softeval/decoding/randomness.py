"""Random numbers keyed by (seed, task, question, sample, step, element).

A counter-based generator: its key is a hash of what names the sample, its counter the step and the
element. A number depends on nothing else, so neither batch size, batch composition, order, number
of processes nor a resume can change it. The generator is integer arithmetic alone, so its words are
the same on every device; logarithm and cosine of a normal may differ there in the last bit.

The mode is deliberately not part of the key: soft_sample and fuzzy_sample see the same noise, which
pairs their comparison.

Shapes: B rows of the batch, N rows of a pass or steps of a sample, W numbers of a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from softeval.modes import Draws, Randomness
from softeval.records import SampleKey

AHEAD = 16
"""Steps drawn at once where a pass is a few small operations and drawing would be as many again."""
WIDEST_AHEAD = 2**14  # numbers a step; those of a vocabulary, drawn ahead, would fill gigabytes
ROUNDS = 10
_WORD = 0xFFFFFFFF


class Stream(IntEnum):
    """What the numbers are for; streams of one sample never overlap."""

    COT = 0
    ANSWER = 1
    SHUFFLE = 2
    DONOR = 3
    STEPS = 4


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four 32-bit words, as int64, of Philox4x32-10 (Salmon et al. 2011, Random123).

    Args:
        counter: four words.
        key: two words.
    """
    (a, b, c, d), (k, m) = counter, key
    for _ in range(ROUNDS):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # wraps around, and the 64 bits are right
        a, b, c, d = ((q >> 32) & _WORD) ^ b ^ k, q & _WORD, ((p >> 32) & _WORD) ^ d ^ m, p & _WORD
        k, m = (k + 0x9E3779B9) & _WORD, (m + 0xBB67AE85) & _WORD
    return [a, b, c, d]


def words(keys_N3: Tensor, steps_N: Tensor, width: int, stream: Stream) -> Tensor:
    """(N, width) 32-bit words, as int64, of each row at its own step.

    Args:
        keys_N3: from `SampleRandomness.key`.
        steps_N: steps.
        width: W.
        stream: what the numbers are for.
    """
    element_C = torch.arange(-(-width // 4), device=keys_N3.device)
    step_N1 = steps_N[:, None].expand(-1, len(element_C))
    key_N1, more_N1, rest_N1 = keys_N3.unsqueeze(1).unbind(-1)
    counter = (element_C.expand_as(step_N1), step_N1, torch.full_like(step_N1, stream), rest_N1)
    return torch.stack(philox(counter, (key_N1, more_N1)), -1).flatten(1)[:, :width]


def normals(keys_N3: Tensor, steps_N: Tensor, width: int, stream: Stream = Stream.COT) -> Tensor:
    """(N, width) float32 standard normals, two of each pair of uniforms (Box and Muller)."""
    pairs_NC2 = words(keys_N3, steps_N, width + width % 2, stream).unflatten(1, (-1, 2))
    radius_NC, turn_NC = ((pairs_NC2.float() + 0.5) * 2.0**-32).unbind(-1)
    radius_NC, turn_NC = (-2 * radius_NC.log()).sqrt(), 2 * math.pi * turn_NC
    both_NC2 = torch.stack([radius_NC * turn_NC.cos(), radius_NC * turn_NC.sin()], -1)
    return both_NC2.flatten(1)[:, :width]


def uniforms(keys_N3: Tensor, steps_N: Tensor, width: int, stream: Stream = Stream.COT) -> Tensor:
    """(N, width) float64 uniforms in [0, 1), multiples of 2^-53."""
    high_NW, low_NW = words(keys_N3, steps_N, 2 * width, stream).unflatten(1, (-1, 2)).unbind(-1)
    return ((high_NW >> 5) * 2**26 + (low_NW >> 6)).double() * 2.0**-53


class SampleRandomness:
    """The random numbers of one sample."""

    def __init__(self, seed: int, key: SampleKey) -> None:
        name = f"{seed}|{key.task}|{key.doc_id}|{key.sample}"
        digest = hashlib.sha256(name.encode()).digest()
        self.key = tuple(int.from_bytes(digest[at : at + 4], "little") for at in (0, 4, 8))

    def normals(self, steps: int, width: int, stream: Stream = Stream.COT) -> Tensor:
        """(steps, width) float32 standard normals of the first steps."""
        return normals(*self._rows(steps), width, stream)

    def uniforms(self, steps: int, width: int = 1, stream: Stream = Stream.COT) -> Tensor:
        """(steps, width) float64 uniforms in [0, 1) of the first steps."""
        return uniforms(*self._rows(steps), width, stream)

    def order(self, steps: int, stream: Stream) -> np.ndarray:
        """(steps,) the numbers 0, 1, … in an order of chance."""
        return self.uniforms(steps, stream=stream)[:, 0].argsort(stable=True).numpy()

    def _rows(self, steps: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.key).expand(steps, -1), torch.arange(steps)


class NoiseFeed:
    """What the rows of a batch draw at each step.

    Args:
        draws: kind and width of a step's numbers.
        batch: B.
        device: of the numbers.
        stream: what they are for.
        ahead: steps drawn at once; 0 draws each step's when it is asked for, which asks the host
            for nothing.
    """

    def __init__(
        self,
        draws: Draws,
        batch: int,
        device: torch.device,
        stream: Stream = Stream.COT,
        ahead: int = AHEAD,
    ) -> None:
        self._draws = draws
        self._stream = stream
        self._ahead = ahead if draws.width <= WIDEST_AHEAD else 0
        self._device = device
        self._keys_B3 = torch.zeros(batch, 3, dtype=torch.long, device=_home(device))
        self._first_B = torch.full((batch,), -AHEAD, device=_home(device))
        self._drawn_BAW: Tensor | None = None

    def begin(self, places: Sequence[int], rows: Sequence[SampleRandomness]) -> None:
        """Let samples take places of the batch."""
        self._keys_B3[list(places)] = torch.tensor([row.key for row in rows]).to(self._keys_B3)
        self._first_B[list(places)] = -AHEAD

    def move(self, source: int, target: int) -> None:
        """Move a row."""
        for part in (self._keys_B3, self._first_B, self._drawn_BAW):
            if part is not None:
                part[target] = part[source]

    def read(self, steps_N: Tensor) -> Tensor | None:
        """(N, W) numbers of the first N rows at their steps, (N,) uniforms where W is 1.

        None where none are used.
        """
        if self._draws.kind is Randomness.NONE:
            return None
        steps_N = steps_N.to(self._keys_B3.device)
        drawn_NW = (
            self._buffered(steps_N) if self._ahead else self._now(steps_N, slice(len(steps_N)))
        )
        if self._draws.kind is Randomness.UNIFORM and self._draws.width == 1:
            drawn_NW = drawn_NW[:, 0]
        return drawn_NW.to(self._device)

    def _now(self, steps_N: Tensor, rows: slice | Tensor) -> Tensor:
        draw = normals if self._draws.kind is Randomness.NORMAL else uniforms
        return draw(self._keys_B3[rows], steps_N, self._draws.width, self._stream)

    def _buffered(self, steps_N: Tensor) -> Tensor:
        """The same from a buffer; who has used up its part lets all rows draw anew."""
        at_N = steps_N - self._first_B[: len(steps_N)]
        lacks_N = (at_N < 0) | (at_N >= self._ahead)
        if lacks_N.any():
            everyone = bool((at_N == self._ahead).any())
            self._refill(steps_N, torch.ones_like(lacks_N) if everyone else lacks_N)
            at_N = steps_N - self._first_B[: len(steps_N)]
        assert self._drawn_BAW is not None
        return self._drawn_BAW[torch.arange(len(at_N), device=at_N.device), at_N]

    def _refill(self, steps_N: Tensor, chosen_N: Tensor) -> None:
        rows = chosen_N.nonzero()[:, 0]
        first_R = steps_N[rows]
        steps = (first_R[:, None] + torch.arange(self._ahead, device=first_R.device)).flatten()
        drawn = self._now(steps, rows.repeat_interleave(self._ahead))
        if self._drawn_BAW is None:
            shape = (len(self._keys_B3), self._ahead, drawn.shape[-1])
            self._drawn_BAW = drawn.new_zeros(shape)
        self._drawn_BAW[rows] = drawn.unflatten(0, (-1, self._ahead))
        self._first_B[rows] = first_R


def _home(device: torch.device) -> torch.device:
    """Where numbers are made: not every accelerator has the double precision of uniforms."""
    return device if device.type == "cuda" else torch.device("cpu")
