"""The policy's log-probabilities of finished rollouts, and the losses made of them.

One teacher-forced pass over what was fed: prompt tokens, the recorded CoT vectors h̃ (constants),
prefill and answer tokens. The probability of a soft or fuzzy step is the Gaussian density of h̃ around
the model's mixture; of a hard step and of an answer token it is categorical. Prompt and prefill have
none. (Paper section 3 and equations 12-14.)

The score of a soft step is ∂/∂μ of -‖h̃ - μ‖²/2σ², that is (h̃ - μ)/σ². The rollout made h̃ = μ + σε with
ε standard normal, so the score is ε/σ where this pass makes the rollout's mixture μ again. Where it
does not, as at a near tie in bfloat16, h̃ - μ holds the distance of two tokens, √D/γ times the noise in
that direction, and such positions outweigh all others. `ScoreError` says which of the two is used.

Knows nothing of rewards or of how the rollouts came about.

Shapes: B sequences, T positions, N CoT positions and M answer tokens of all sequences, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from softeval.embedding import InputEmbedding
from softeval.model import LanguageModel
from softeval.modes import HardMode, Mode
from softeval.output_head import OutputHead, last_hidden
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


class ScoreError(StrEnum):
    """What a soft step's score takes for h̃ - μ.

    RECORDED is the noise σε that the rollout added, whatever mixture this pass makes: the score of
    what was sampled, of size √D/σ in every precision. RECOMPUTED subtracts the mixture of this pass.
    In exact arithmetic the two are one.
    """

    RECORDED = "recorded"
    RECOMPUTED = "recomputed"


MISMATCH = 0.05
"""Distance of two mixtures, in lengths of a typical embedding, from where they count as different."""


@dataclass(frozen=True)
class Policy:
    """What was sampled from; everything a log-probability depends on besides the weights.

    Attributes:
        mode: sampled mode of the CoT.
        sigma: noise deviation of one input element, fixed when training began; 0 in hard mode.
        answer_temperature: τ of the answer tokens.
        reduction: over the D elements of a soft step.
        detach_embedding: treat E as a constant in the mixture.
        score_error: what a soft step's score takes for the error.
        seed: seed of the rollouts' random numbers, from which their noise is drawn again.
    """

    mode: Mode
    sigma: float
    answer_temperature: float = 1.0
    reduction: Reduction = Reduction.SUM
    detach_embedding: bool = False
    score_error: ScoreError = ScoreError.RECORDED
    seed: int = 0

    @property
    def feeds_tokens(self) -> bool:
        """Whether the CoT is made of ordinary tokens."""
        return isinstance(self.mode, HardMode)


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities in nats, up to the Gaussian's constant, and what is seen on the way.

    Attributes:
        cot_N: of the CoT steps. From recorded noise the value is the rollout's, -‖ε‖²/2, and only
            the gradient is this pass's.
        answer_M: of the answer tokens.
        squared_N: ‖h̃ - pE‖²/σ² of soft and fuzzy steps, of mean D under the policy; detached.
        mixed_ND: the mixtures pE; detached.
        tied_N: whether a step's two largest logits are equal.
        mismatched_N: whether pE is another mixture than the rollout's.
    """

    cot_N: Tensor
    answer_M: Tensor
    squared_N: Tensor | None = None
    mixed_ND: Tensor | None = None
    tied_N: Tensor | None = None
    mismatched_N: Tensor | None = None


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
    if policy.feeds_tokens:
        return LogProbs(
            token_log_probs(cot_ND, batch.cot.ids_N, head, policy.mode.temperature), answer_M
        )
    mixed_ND, tied_N = mixtures(
        cot_ND, head, lm.embedding, policy.mode.temperature, policy.detach_embedding
    )
    constant_ND = mixed_ND.detach()
    recorded = policy.score_error is ScoreError.RECORDED
    squared_N = _squared_error(batch, constant_ND if recorded else mixed_ND, policy)
    density_N = _recorded_density(batch, mixed_ND, policy) if recorded else -0.5 * squared_N
    scale = 1 / lm.embedding.width if policy.reduction is Reduction.MEAN else 1.0
    return LogProbs(
        cot_N=scale * density_N,
        answer_M=answer_M,
        squared_N=squared_N.detach(),
        mixed_ND=constant_ND,
        tied_N=tied_N,
        mismatched_N=_mismatched(batch, constant_ND, policy, lm.embedding),
    )


def _squared_error(batch: Batch, mixed_ND: Tensor, policy: Policy) -> Tensor:
    """(N,) ‖h̃ - μ‖²/σ² around the mixtures of this pass."""
    assert batch.fed_ND is not None and policy.sigma > 0, "a soft step needs its vector and noise"
    return (batch.fed_ND.to(mixed_ND.dtype) - mixed_ND).square().sum(-1) / policy.sigma**2


def _recorded_density(batch: Batch, mixed_ND: Tensor, policy: Policy) -> Tensor:
    """(N,) -‖ε‖²/2 with the gradient ε/σ in the mixtures."""
    assert batch.noise_ND is not None, "the score from recorded noise needs that noise"
    noise_ND = batch.noise_ND.to(mixed_ND.dtype)
    moved_ND = mixed_ND - mixed_ND.detach()  # zeros, which carry the gradient
    return (noise_ND / policy.sigma * moved_ND).sum(-1) - 0.5 * noise_ND.square().sum(-1)


def _mismatched(
    batch: Batch, mixed_ND: Tensor, policy: Policy, embedding: InputEmbedding
) -> Tensor:
    """(N,) whether ‖μ - (h̃ - σε)‖ exceeds what MISMATCH and the rounding of h̃ allow."""
    assert batch.fed_ND is not None and batch.noise_ND is not None
    fed_ND = batch.fed_ND.to(mixed_ND.dtype)
    apart_N = (fed_ND - policy.sigma * batch.noise_ND - mixed_ND).norm(dim=-1)
    rounding_N = torch.finfo(batch.fed_ND.dtype).eps / 2 * fed_ND.norm(dim=-1)
    return apart_N > MISMATCH * embedding.rms * embedding.width**0.5 + rounding_N


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
    cot = (advantages_B[batch.cot.row_N].to(found.cot_N.dtype) * found.cot_N).sum()
    answer = (advantages_B[batch.answer.row_N].to(found.answer_M.dtype) * found.answer_M).sum()
    return -cot / sequences, -answer / sequences


def sequence_log_probs(found: LogProbs, batch: Batch) -> Tensor:
    """(B,) log π(h̃) + log π(a | h̃) of each sequence."""
    total_B = found.cot_N.new_zeros(batch.rows)
    total_B = total_B.index_add(0, batch.cot.row_N, found.cot_N)
    return total_B.index_add(0, batch.answer.row_N, found.answer_M)


@dataclass(frozen=True, eq=False)
class Drift:
    """Divergence from the reference model, given the same prefixes.

    Attributes:
        tokens: (N + M,) exact KL of the next-token distributions at temperature 1, in nats.
        gaussian_N: KL of the two Gaussians of each soft step, ‖pE - p'E'‖²/2σ²; None in hard mode.
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
        if found.mixed_ND is not None:
            temperature = policy.mode.temperature
            other_ND = mixtures(own_ND, initial_head, initial.embedding, temperature).mixed_ND
            gaussian_N = (found.mixed_ND - other_ND).square().sum(-1) / (2 * policy.sigma**2)
    tokens = divergences(torch.cat(hidden), head, torch.cat([own_ND, own_MD]), initial_head)
    return Drift(tokens, gaussian_N)
