"""The policy's log-probabilities of finished rollouts, and the losses made of them.

One teacher-forced pass over what was fed: prompt tokens, the recorded CoT vectors h̃ (constants),
prefill and answer tokens. The probability of a soft or fuzzy step is the Gaussian density of h̃ around
the model's mixture; of a hard step and of an answer token it is categorical. Prompt and prefill have
none. (Paper section 3 and equations 12-14.)

The rollouts are one padded batch: prompt, CoT, prefill, answer in a row, padded on the right, so that
no mask is needed: nothing that counts ever looks to the right. What the policy chose is listed flat:
the CoT positions of all rows one after the other, and likewise their answer tokens.

Knows nothing of rewards or of how the rollouts came about.

Shapes: B sequences, T positions, N CoT positions and M answer tokens of all sequences, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softeval.decoding.randomness import SampleRandomness
from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import OutputHead, last_hidden
from softeval.modes import Draws, Fused, Mode, Randomness, Seen, Taken
from softeval.records import Generation
from softeval.trainers.algorithms import ALGORITHMS, Algorithm
from softeval.trainers.chunked import mixtures, reference_kl, token_log_probs


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
        shared: first positions that are computed once, all rows having them in common.
    """

    ids_BT: Tensor
    cot: Choices
    answer: Choices
    fed_ND: Tensor | None
    record_NR: Tensor | None = None
    drawn_NX: Tensor | None = None
    shared: int = 0

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
    one_prompt: bool = False,
) -> Batch:
    """Pad rollouts to one batch.

    Args:
        rollouts: at least one.
        device: where to put the tensors.
        dtype: the model's dtype, for the fed vectors.
        mode: that made the CoTs.
        draws: the random numbers of its steps.
        seed: of the rollouts' random numbers; the noise is keyed, so it is drawn again, not stored.
        one_prompt: all are of one, which is computed once but for its last token, which chooses.
    """
    length = max(g.length for g in rollouts)
    ids_BT = np.zeros((len(rollouts), length), dtype=np.int64)
    for row, g in enumerate(rollouts):
        ids_BT[row, : g.length] = np.concatenate(
            [g.prompt_ids, g.shadow_ids, g.prefill_ids, g.answer_ids]
        )
    cot_starts = [len(g.prompt_ids) for g in rollouts]
    answer_starts = [g.length - len(g.answer_ids) for g in rollouts]
    fed_ND = record_NR = drawn_NX = None
    if not mode.feeds_tokens:
        fed_ND = torch.cat([_kept(g.inputs) for g in rollouts]).to(device, dtype)
    if rollouts[0].record is not None:
        record_NR = torch.cat([_kept(g.record) for g in rollouts]).to(device)
    if draws.kind is Randomness.NORMAL:
        drawn = [
            SampleRandomness(seed, g.key).normals(len(g.shadow_ids), draws.width) for g in rollouts
        ]
        drawn_NX = torch.cat(drawn).to(device)
    return Batch(
        ids_BT=torch.from_numpy(ids_BT).to(device),
        cot=choices(ids_BT, cot_starts, [len(g.shadow_ids) for g in rollouts], device),
        answer=choices(ids_BT, answer_starts, [len(g.answer_ids) for g in rollouts], device),
        fed_ND=fed_ND,
        record_NR=record_NR,
        drawn_NX=drawn_NX,
        shared=cot_starts[0] - 1 if one_prompt and len(rollouts) > 1 else 0,
    )


def choices(
    ids_BT: np.ndarray, starts: list[int], lengths: list[int], device: torch.device
) -> Choices:
    """The positions starts … starts + lengths - 1 of each row."""
    width = ids_BT.shape[1]
    spans = [
        np.arange(row * width + start, row * width + start + length)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    place_N = np.concatenate(spans)
    fields = (place_N - 1, place_N, ids_BT.reshape(-1)[place_N], place_N // width)
    return Choices(*(torch.from_numpy(field).to(device) for field in fields))


def _kept(values: Tensor | None) -> Tensor:
    assert values is not None, "the decoder must keep its steps"
    return values


@dataclass(frozen=True)
class Policy:
    """What was sampled from; everything a log-probability depends on besides the weights.

    Attributes:
        mode: sampled mode of the CoT.
        answer_temperature: τ of the answer tokens.
        reduction: of the D elements of a soft step to one log-probability. The sum is the density
            (paper); the mean weighs the CoT against the answer differently and changes no hard CoT.
        detach_embedding: treat E as a constant in the mixture.
        recorded_noise: score a soft step by the noise that the rollout drew, rather than by its
            distance from the mixture that this pass makes (`softeval.modes.gaussian`).
        seed: seed of the rollouts' random numbers, from which their noise is drawn again.
    """

    mode: Mode
    answer_temperature: float = 1.0
    reduction: Literal["sum", "mean"] = "sum"
    detach_embedding: bool = False
    recorded_noise: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities in nats, up to a density's constant.

    Attributes:
        cot: of the CoT steps (N), with what is measured beside them.
        answer_M: of the answer tokens.
    """

    cot: Fused
    answer_M: Tensor

    def by_sequence(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Those of each sequence's CoT and answer, without gradient."""
        pairs = ((self.cot.log_prob_N, batch.cot.row_N), (self.answer_M, batch.answer.row_N))
        split = (
            values.detach().split(torch.bincount(rows, minlength=batch.rows).tolist())
            for values, rows in pairs
        )
        return list(zip(*split, strict=True))


@dataclass(frozen=True, eq=False)
class ChunkedSteps:
    """N positions whose logits are made chunk by chunk; the `Kernels` that modes take."""

    hidden_ND: Tensor
    head: OutputHead
    embedding: InputEmbedding
    recorded_noise: bool = True
    detach_embedding: bool = False

    def token_log_probs(self, ids_N: Tensor, temperature: float) -> Tensor:
        """(N,) log softmax(z/τ)[id], nats."""
        return token_log_probs(self.hidden_ND, ids_N, self.head, temperature)

    def mixtures(self, temperature: float) -> tuple[Tensor, Tensor]:
        """(N, D) mixtures softmax(z/τ)·E, and whether each position's two largest logits tie."""
        return mixtures(
            self.hidden_ND, self.head, self.embedding, temperature, self.detach_embedding
        )

    def log_prob(self, mode: Mode, taken: Taken) -> Fused:
        """Log-probabilities of the steps: by the mode's kernel, else by `log_prob` in chunks.

        A chunk's logits are computed again in the backward pass rather than kept.
        """
        found = mode.fused_log_prob(self, taken)
        if found is not None:
            return found
        chunk = self.head.rule.chunk
        parts = [
            checkpoint(self._chunk_log_prob, mode, taken, slice(n, n + chunk), use_reentrant=False)
            for n in range(0, len(self.hidden_ND), chunk)
        ]
        return Fused(torch.cat(parts) if parts else self.hidden_ND.new_zeros(0))

    def _chunk_log_prob(self, mode: Mode, taken: Taken, rows: slice) -> Tensor:
        hidden_nD = self.hidden_ND[rows]
        seen = Seen(self.head.logits(hidden_nD), self.embedding, hidden_nD, self.head)
        return mode.log_prob(seen, taken.part(rows))


def teacher_forced_inputs(embedding: InputEmbedding, batch: Batch) -> Tensor:
    """(B, T, D) what the model was fed; gradient reaches E through the tokens only.

    None reaches the row that the module calls its padding (`padding_idx`), should it ever be sampled.
    """
    rows_BTD = embedding.rows(batch.ids_BT)
    if batch.fed_ND is None:
        return rows_BTD
    flat = rows_BTD.flatten(0, 1).index_copy(0, batch.cot.place_N, batch.fed_ND)
    return flat.view_as(rows_BTD)


def policy_hidden(lm: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """(N, D) and (M, D) last hidden states whose logits chose the CoT and the answer."""
    inputs_BTD = teacher_forced_inputs(lm.embedding, batch)
    hidden = last_hidden(lm.model, inputs_BTD, batch.shared).flatten(0, 1)
    return hidden[batch.cot.source_N], hidden[batch.answer.source_N]


def log_probs(
    lm: LanguageModel,
    head: OutputHead,
    batch: Batch,
    policy: Policy,
    hidden: tuple[Tensor, Tensor] | None = None,
) -> LogProbs:
    """Log-probabilities of everything the policy chose, differentiable in the weights.

    Args:
        lm: the model.
        head: its output head.
        batch: the rollouts.
        policy: what they were sampled from.
        hidden: `policy_hidden`, where it is at hand already.
    """
    cot_ND, answer_MD = policy_hidden(lm, batch) if hidden is None else hidden
    answer_M = token_log_probs(answer_MD, batch.answer.ids_N, head, policy.answer_temperature)
    steps = ChunkedSteps(cot_ND, head, lm.embedding, policy.recorded_noise, policy.detach_embedding)
    cot = steps.log_prob(policy.mode, batch.taken)
    if policy.reduction == "mean" and not policy.mode.feeds_tokens:
        cot = replace(cot, log_prob_N=(1 / lm.embedding.width) * cot.log_prob_N)
    return LogProbs(cot, answer_M)


def policy_losses(
    found: LogProbs,
    batch: Batch,
    advantages_B: Tensor,
    sequences: int,
    algorithm: Algorithm = ALGORITHMS["rloo"],
    former: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """CoT and answer term of the algorithm's loss; their sum is the loss.

    Args:
        found: log-probabilities of the batch.
        batch: the rollouts.
        advantages_B: A times the algorithm's weights, without gradient.
        sequences: sequences of the whole step, of which the batch may be a part.
        algorithm: makes the loss.
        former: log-probabilities of CoT and answer under the policy that sampled, where it is another.
    """
    cot_N, answer_M = former
    cot = algorithm.loss(found.cot.log_prob_N, advantages_B, batch.cot.row_N, sequences, cot_N)
    answer = algorithm.loss(found.answer_M, advantages_B, batch.answer.row_N, sequences, answer_M)
    return cot, answer


@dataclass(frozen=True, eq=False)
class Reference:
    """The initial model: a second copy, or the trained one with its adapters switched off.

    Attributes:
        lm: the model.
        head: its output head.
        active: entered while it is used; switches adapters off where it is not a copy.
    """

    lm: LanguageModel
    head: OutputHead
    active: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True, eq=False)
class ReferenceKL:
    """Divergence from the reference model, given the same prefixes.

    Attributes:
        tokens: (N + M,) exact KL of the next-token distributions at temperature 1, in nats.
        gaussian_N: KL of the two Gaussians of each soft step, ‖pE - p'E'‖²/2σ²; None without.
    """

    tokens: Tensor
    gaussian_N: Tensor | None


def policy_kl(
    hidden: tuple[Tensor, Tensor],
    head: OutputHead,
    found: LogProbs,
    batch: Batch,
    policy: Policy,
    reference: Reference,
) -> ReferenceKL:
    """KL to a reference model; `tokens` is differentiable in the policy's hidden states and head."""
    initial, initial_head = reference.lm, reference.head
    with torch.no_grad(), reference.active():
        own_ND, own_MD = policy_hidden(initial, batch)
        gaussian_N = None
        if found.cot.mixed_ND is not None:
            steps = ChunkedSteps(own_ND, initial_head, initial.embedding)
            other = steps.log_prob(policy.mode, batch.taken)
            assert other.mixed_ND is not None and found.cot.sigma is not None
            moved_ND = found.cot.mixed_ND - other.mixed_ND
            gaussian_N = moved_ND.square().sum(-1) / (2 * found.cot.sigma**2)
    tokens = reference_kl(torch.cat(hidden), head, torch.cat([own_ND, own_MD]), initial_head)
    return ReferenceKL(tokens, gaussian_N)
