"""The policy's log-probabilities of finished rollouts, and the losses made of them.

One teacher-forced pass over what was fed: prompt tokens, the recorded CoT vectors h̃ (constants),
prefill and answer tokens. The probability of a soft or fuzzy step is the Gaussian density of h̃ around
the model's mixture; of a hard step and of an answer token it is categorical. Prompt and prefill have
none. (Paper section 3 and equations 12-14.)

Knows nothing of rewards or of how the rollouts came about.

Shapes: B sequences, T positions, N CoT positions and M answer tokens of all sequences, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import OutputHead, last_hidden
from softeval.modes import Fused, Mode, Seen, Taken
from softeval.trainers.batch import Batch
from softeval.trainers.mixture_loss import divergences, mixtures, token_log_probs
from softeval.trainers.reference import Reference


class Reduction(StrEnum):
    """How the D elements of a soft step make one log-probability.

    SUM is the density (paper). MEAN divides it by D, which weighs the CoT against the answer
    differently and changes nothing in a hard CoT.
    """

    SUM = "sum"
    MEAN = "mean"


@dataclass(frozen=True)
class Policy:
    """What was sampled from; everything a log-probability depends on besides the weights.

    Attributes:
        mode: sampled mode of the CoT.
        answer_temperature: τ of the answer tokens.
        reduction: over the D elements of a soft step.
        detach_embedding: treat E as a constant in the mixture.
        recorded_noise: score a soft step by the noise that the rollout drew, rather than by its
            distance from the mixture that this pass makes (`softeval.modes.gaussian`).
        seed: seed of the rollouts' random numbers, from which their noise is drawn again.
    """

    mode: Mode
    answer_temperature: float = 1.0
    reduction: Reduction = Reduction.SUM
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
        seen = Seen(self.head.logits(hidden_nD), self.embedding, hidden_nD)
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
    hidden = last_hidden(lm.model, teacher_forced_inputs(lm.embedding, batch)).flatten(0, 1)
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
    if policy.reduction is Reduction.MEAN and not policy.mode.feeds_tokens:
        cot = replace(cot, log_prob_N=(1 / lm.embedding.width) * cot.log_prob_N)
    return LogProbs(cot, answer_M)


def policy_losses(
    found: LogProbs, batch: Batch, advantages_B: Tensor, sequences: int
) -> tuple[Tensor, Tensor]:
    """CoT and answer term of -1/sequences · Σ_b A_b · log π(h̃_b, a_b); their sum is the loss.

    Args:
        found: log-probabilities of the batch.
        batch: the rollouts.
        advantages_B: A, without gradient.
        sequences: sequences of the whole step, of which the batch may be a part.
    """
    cot = (
        advantages_B[batch.cot.row_N].to(found.cot.log_prob_N.dtype) * found.cot.log_prob_N
    ).sum()
    answer = (advantages_B[batch.answer.row_N].to(found.answer_M.dtype) * found.answer_M).sum()
    return -cot / sequences, -answer / sequences


def sequence_log_probs(found: LogProbs, batch: Batch) -> Tensor:
    """(B,) log π(h̃) + log π(a | h̃) of each sequence."""
    cot_N = found.cot.log_prob_N
    total_B = cot_N.new_zeros(batch.rows).index_add(0, batch.cot.row_N, cot_N)
    return total_B.index_add(0, batch.answer.row_N, found.answer_M)


@dataclass(frozen=True, eq=False)
class Drift:
    """Divergence from the reference model, given the same prefixes.

    Attributes:
        tokens: (N + M,) exact KL of the next-token distributions at temperature 1, in nats.
        gaussian_N: KL of the two Gaussians of each soft step, ‖pE - p'E'‖²/2σ²; None without.
    """

    tokens: Tensor
    gaussian_N: Tensor | None


def drift(
    hidden: tuple[Tensor, Tensor],
    head: OutputHead,
    found: LogProbs,
    batch: Batch,
    policy: Policy,
    reference: Reference,
) -> Drift:
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
    tokens = divergences(torch.cat(hidden), head, torch.cat([own_ND, own_MD]), initial_head)
    return Drift(tokens, gaussian_N)
