"""What is recorded at each CoT position, row by row, while a batch decodes.

Shapes: B rows of the batch, N rows in use, T positions, V vocabulary, D width, K mixture entries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Measures(NamedTuple):
    """Scalars of N next-token distributions, float32: entropies in nats, largest probability."""

    entropy_N: Tensor
    mode_entropy_N: Tensor
    top1_prob_N: Tensor


def measure(logits_NV: Tensor, mode_probs_NV: Tensor, temperature: float) -> Measures:
    """Entropy at temperature 1 and at the mode's own, and top-1 probability at temperature 1."""
    logits_NV = logits_NV.float()
    norm_N = logits_NV.logsumexp(-1)
    top1_N = (logits_NV.amax(-1) - norm_N).exp()
    if temperature == 1.0:
        entropy_N = entropy(mode_probs_NV)
        return Measures(entropy_N, entropy_N, top1_N)
    probs_NV = (logits_NV - norm_N[:, None]).exp()
    # Not norm - Σ p·z: with one token at a huge logit that cancels to noise, this does not.
    return Measures(entropy(probs_NV), entropy(mode_probs_NV), top1_N)


def entropy(probs_NV: Tensor) -> Tensor:
    """(N,) -Σ p ln p in nats; 0 where p = 0."""
    return torch.special.entr(probs_NV).sum(-1)


class Trace:
    """Per-position records of a batch: one row of buffers a row of the batch."""

    def __init__(self, batch: int, positions: int, top: int, device: torch.device) -> None:
        self._scalars = torch.zeros(batch, positions, 3, device=device)
        self._top_ids = torch.zeros(batch, positions, top, dtype=torch.int32, device=device)
        self._top_probs = torch.zeros(batch, positions, top, device=device)
        self._inputs: Tensor | None = None
        self._top = top

    def keep_inputs(self, width: int, dtype: torch.dtype) -> None:
        """Also keep what is fed."""
        batch, positions, _ = self._scalars.shape
        device = self._scalars.device
        self._inputs = torch.zeros(batch, positions, width, dtype=dtype, device=device)

    def write(
        self, rows: Tensor, steps: Tensor, measures: Measures, probs_NV: Tensor, inputs_ND: Tensor
    ) -> None:
        """Record one CoT position of each of `rows`, at its own step."""
        scalars_N3 = torch.stack(list(measures), -1)
        self._scalars[rows, steps] = scalars_N3[rows]
        if self._top:
            top = probs_NV[rows].topk(self._top, dim=-1)
            self._top_ids[rows, steps] = top.indices.int()
            self._top_probs[rows, steps] = top.values
        if self._inputs is not None:
            self._inputs[rows, steps] = inputs_ND[rows]

    def move(self, source: int, target: int) -> None:
        """Move a row's records."""
        for buffer in (self._scalars, self._top_ids, self._top_probs, self._inputs):
            if buffer is not None:
                buffer[target] = buffer[source]

    def read(self, row: int, length: int) -> RowTrace:
        """Records of one row's first `length` positions, on the host."""
        scalars = self._scalars[row, :length].cpu().numpy().copy()
        inputs = self._inputs
        return RowTrace(
            entropy=scalars[:, 0],
            mode_entropy=scalars[:, 1],
            top1_prob=scalars[:, 2],
            top_ids=self._top_ids[row, :length].cpu().numpy().copy(),
            top_probs=self._top_probs[row, :length].cpu().numpy().copy(),
            # bfloat16 has no numpy type; float32 holds it exactly.
            inputs=None if inputs is None else inputs[row, :length].float().cpu().numpy().copy(),
        )


class RowTrace(NamedTuple):
    """One row's records; fields as in `records.Generation`."""

    entropy: np.ndarray
    mode_entropy: np.ndarray
    top1_prob: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    inputs: np.ndarray | None
