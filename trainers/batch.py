"""Finished rollouts as one padded batch for the training pass.

A sequence is prompt, CoT, prefill, answer; rows are padded on the right, so that no mask is needed:
nothing that counts ever looks to the right. What the policy chose is listed flat: the CoT positions
of all rows one after the other, and likewise their answer tokens. Prompt and prefill were not
chosen and appear in neither list.

Knows nothing of log-probabilities.

Shapes: B sequences, T positions, N CoT positions and M answer tokens of all sequences, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softeval.decoding.randomness import SampleRandomness
from softeval.modes import Draws, Mode, Randomness, Taken
from softeval.records import Generation


@dataclass(frozen=True, eq=False)
class Choices:
    """Positions that the policy chose, flat over the batch.

    Attributes:
        source_N: index into B·T of the position whose logits made the choice.
        place_N: index into B·T of the position where the choice stands.
        ids_N: token there (the shadow token of a mixture).
        row_N: sequence it belongs to.
    """

    source_N: Tensor
    place_N: Tensor
    ids_N: Tensor
    row_N: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B padded sequences.

    Attributes:
        ids_BT: token ids; shadow tokens in the CoT; 0 beyond the end.
        cot: the N choices of the CoT.
        answer: the M choices of the answer.
        fed_ND: vectors fed in the CoT, in the model's dtype; None where tokens were fed.
        record_NR: what the mode recorded for its log-probability, float32; None for nothing.
        drawn_NX: standard normals that the rollouts drew, float32; None where they drew none.
    """

    ids_BT: Tensor
    cot: Choices
    answer: Choices
    fed_ND: Tensor | None
    record_NR: Tensor | None = None
    drawn_NX: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.ids_BT)

    @property
    def taken(self) -> Taken:
        """The CoT's steps, as a mode's log-probability takes them."""
        return Taken(self.fed_ND, self.cot.ids_N, self.record_NR, self.drawn_NX)


def collate(
    rollouts: Sequence[Generation],
    device: torch.device,
    dtype: torch.dtype,
    mode: Mode,
    draws: Draws,
    seed: int = 0,
) -> Batch:
    """Pad rollouts to one batch.

    Args:
        rollouts: at least one.
        device: where to put the tensors.
        dtype: the model's dtype, for the fed vectors.
        mode: that made the CoTs.
        draws: the random numbers of its steps.
        seed: of the rollouts' random numbers; the noise is keyed, so it is drawn again, not stored.
    """
    length = max(_length(g) for g in rollouts)
    ids_BT = np.zeros((len(rollouts), length), dtype=np.int64)
    for row, g in enumerate(rollouts):
        ids_BT[row, : _length(g)] = np.concatenate(
            [g.prompt_ids, g.shadow_ids, g.prefill_ids, g.answer_ids]
        )
    cot_starts = [len(g.prompt_ids) for g in rollouts]
    answer_starts = [_length(g) - len(g.answer_ids) for g in rollouts]
    fed_ND = record_NR = drawn_NX = None
    if not mode.feeds_tokens:
        fed_ND = _flat([_kept(g.inputs) for g in rollouts]).to(device, dtype)
    if rollouts[0].record is not None:
        record_NR = _flat([_kept(g.record) for g in rollouts]).to(device)
    if draws.kind is Randomness.NORMAL:
        drawn = [
            SampleRandomness(seed, g.key).normals(len(g.shadow_ids), draws.width) for g in rollouts
        ]
        drawn_NX = _flat(drawn).to(device)
    return Batch(
        ids_BT=torch.from_numpy(ids_BT).to(device),
        cot=_choices(ids_BT, cot_starts, [len(g.shadow_ids) for g in rollouts], device),
        answer=_choices(ids_BT, answer_starts, [len(g.answer_ids) for g in rollouts], device),
        fed_ND=fed_ND,
        record_NR=record_NR,
        drawn_NX=drawn_NX,
    )


def _choices(
    ids_BT: np.ndarray, starts: list[int], lengths: list[int], device: torch.device
) -> Choices:
    width = ids_BT.shape[1]
    spans = [
        np.arange(row * width + start, row * width + start + length)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    place_N = np.concatenate(spans)
    fields = (place_N - 1, place_N, ids_BT.reshape(-1)[place_N], place_N // width)
    return Choices(*(torch.from_numpy(field).to(device) for field in fields))


def _flat(parts: list[np.ndarray]) -> Tensor:
    return torch.cat([torch.from_numpy(part) for part in parts])


def _kept(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "the decoder must keep its steps"
    return values


def _length(g: Generation) -> int:
    return len(g.prompt_ids) + len(g.shadow_ids) + len(g.prefill_ids) + len(g.answer_ids)
