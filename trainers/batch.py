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

from softeval.randomness import SampleRandomness
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
        noise_ND: standard normals that the rollouts drew for them, float32; None likewise.
    """

    ids_BT: Tensor
    cot: Choices
    answer: Choices
    fed_ND: Tensor | None
    noise_ND: Tensor | None

    @property
    def rows(self) -> int:
        return len(self.ids_BT)


def collate(
    rollouts: Sequence[Generation],
    device: torch.device,
    dtype: torch.dtype,
    keep_fed: bool,
    seed: int = 0,
) -> Batch:
    """Pad rollouts to one batch.

    Args:
        rollouts: at least one.
        device: where to put the tensors.
        dtype: the model's dtype, for the fed vectors.
        keep_fed: take along the vectors fed in the CoT and their noise (soft and fuzzy).
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
    fed_ND = noise_ND = None
    if keep_fed:
        vectors = [_inputs(g) for g in rollouts]
        fed_ND = _flat(vectors).to(device, dtype)
        drawn = [SampleRandomness(seed, g.key) for g in rollouts]
        noise_ND = _flat([r.normals(*v.shape) for r, v in zip(drawn, vectors, strict=True)])
        noise_ND = noise_ND.to(device)
    return Batch(
        ids_BT=torch.from_numpy(ids_BT).to(device),
        cot=_choices(ids_BT, cot_starts, [len(g.shadow_ids) for g in rollouts], device),
        answer=_choices(ids_BT, answer_starts, [len(g.answer_ids) for g in rollouts], device),
        fed_ND=fed_ND,
        noise_ND=noise_ND,
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


def _inputs(rollout: Generation) -> np.ndarray:
    assert rollout.inputs is not None, "the decoder must keep its inputs"
    return rollout.inputs


def _length(g: Generation) -> int:
    return len(g.prompt_ids) + len(g.shadow_ids) + len(g.prefill_ids) + len(g.answer_ids)
