"""What is recorded at each CoT position, row by row, while a batch decodes.

Shapes: B rows of the batch, N rows in use, T positions, V vocabulary, D width, K mixture entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softeval.modes import Step
from softeval.modes.sampling import entropy


class Measures(NamedTuple):
    """Scalars of N next-token distributions, float32: entropies in nats, largest probability."""

    entropy_N: Tensor
    mode_entropy_N: Tensor
    top1_prob_N: Tensor


def measure(logits_NV: Tensor, mode_probs_NV: Tensor, is_plain: bool) -> Measures:
    """Entropy at temperature 1 and of the mode's distribution, and top-1 probability at 1.

    `is_plain` says that the two distributions are one.
    """
    logits_NV = logits_NV.float()
    norm_N = logits_NV.logsumexp(-1)
    top1_N = (logits_NV.amax(-1) - norm_N).exp()
    if is_plain:
        entropy_N = entropy(mode_probs_NV)
        return Measures(entropy_N, entropy_N, top1_N)
    probs_NV = (logits_NV - norm_N[:, None]).exp()
    # Not norm - Σ p·z: with one token at a huge logit that cancels to noise, this does not.
    return Measures(entropy(probs_NV), entropy(mode_probs_NV), top1_N)


class Trace:
    """Per-position records of a batch: one row of buffers a row of the batch.

    Args:
        batch: B.
        positions: most positions of a CoT.
        top: K.
        device: where the buffers lie.
        keeps: also keep what is fed, and what the mode records for its log-probability.
    """

    def __init__(
        self, batch: int, positions: int, top: int, device: torch.device, keeps: bool
    ) -> None:
        positions += 1  # rows that record nothing write to the last one
        self._scalars = torch.zeros(batch, positions, 3, device=device)
        self._top_ids = torch.zeros(batch, positions, top, dtype=torch.int32, device=device)
        self._top_probs = torch.zeros(batch, positions, top, device=device)
        self._inputs: Tensor | None = None
        self._record: Tensor | None = None
        self._keeps = keeps
        self._top = top

    def write(
        self, thinks_N: Tensor, steps_N: Tensor, measures: Measures, probs_NV: Tensor, step: Step
    ) -> None:
        """Record one CoT position of each row that thinks, at its own step."""
        at_N = torch.where(thinks_N, steps_N, self._scalars.shape[1] - 1)
        _put(self._scalars, at_N, torch.stack(list(measures), -1))
        if self._top:
            top = probs_NV.topk(self._top, dim=-1)
            _put(self._top_ids, at_N, top.indices.int())
            _put(self._top_probs, at_N, top.values)
        if self._keeps:
            self._inputs = self._kept(self._inputs, at_N, step.inputs_ND)
        if self._keeps and step.record_NR is not None:
            self._record = self._kept(self._record, at_N, step.record_NR)

    def _kept(self, buffer: Tensor | None, at_N: Tensor, values_NX: Tensor) -> Tensor:
        if buffer is None:
            shape = (*self._scalars.shape[:2], values_NX.shape[-1])
            buffer = values_NX.new_zeros(shape)
        _put(buffer, at_N, values_NX)
        return buffer

    def move(self, source: int, target: int) -> None:
        """Move a row's records."""
        for buffer in self._buffers:
            if buffer is not None:
                buffer[target] = buffer[source]

    @property
    def _buffers(self) -> tuple[Tensor | None, ...]:
        return self._scalars, self._top_ids, self._top_probs, self._inputs, self._record

    def read(self, row: int, length: int) -> dict[str, Any]:
        """One row's first `length` positions, by the fields of `records.Generation`.

        On the host, but for what the model was fed.
        """
        scalars = self._scalars[row, :length].cpu().numpy().copy()
        return {
            "entropy": scalars[:, 0],
            "mode_entropy": scalars[:, 1],
            "top1_prob": scalars[:, 2],
            "top_ids": self._top_ids[row, :length].cpu().numpy().copy(),
            "top_probs": self._top_probs[row, :length].cpu().numpy().copy(),
            "inputs": _part(self._inputs, row, length),
            "record": _part(self._record, row, length),
        }


def _put(buffer_BTX: Tensor, at_N: Tensor, values_NX: Tensor) -> None:
    """Write a position of each of the first N rows."""
    where = at_N[:, None, None].expand(-1, 1, values_NX.shape[-1])
    buffer_BTX[: len(at_N)].scatter_(1, where, values_NX[:, None])


def _part(buffer: Tensor | None, row: int, length: int) -> Tensor | None:
    return None if buffer is None else buffer[row, :length].clone()
