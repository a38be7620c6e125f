"""Gaussian noise elsewhere than at the input: at the final hidden state, or at the logits.

*Soft Tokens, Hard Truths*, appendix F.2. The mixture softmax(z̃/τ)·E is fed, with z̃ the logits of a noised
last hidden state, noised logits, or the noised k largest logits, all others -∞. The density is that of
the noised quantity (D, V or K numbers), which is what a step records; what head and embedding make
of it counts as given.

The paper does not give σ here. Reading: γ times the root mean square of the hidden state, or of the
noised logits about their mean (a softmax does not see the mean), at each step; a constant in the
density.

Noise on all logits takes V normals a step and records V numbers, slow and large for a large
vocabulary; noise on the k largest takes k of both.

Shapes: N rows, V vocabulary, D width, K noised logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes.paper import NOISE_SCALE, SOFT_TEMPERATURE
from softeval.modes.sampling import mix_tokens, most_likely, softmax
from softeval.modes.seam import Draws, Embedding, Mode, Randomness, Seen, Step, Taken

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = -6e4
"""Logits below belong to ids that the tokenizer does not know; they do not count for σ."""
LEAST_SIGMA = 1e-6


@dataclass(frozen=True)
class _PlacedNoise(Mode):
    """What the placements share.

    Attributes:
        temperature: τ of the mixture.
        noise_scale: γ.
    """

    temperature: float = SOFT_TEMPERATURE
    noise_scale: float = NOISE_SCALE

    @property
    def randomness(self) -> Randomness:
        return Randomness.NORMAL if self.noise_scale > 0 else Randomness.NONE

    def greedy(self) -> Mode:
        """The same without noise."""
        return replace(self, name=f"{self.family}_greedy", noise_scale=0.0)

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) softmax(z/τ), without noise."""
        return softmax(seen.logits_NV, self.temperature)

    def clean(self, seen: Seen) -> Tensor:
        """(N, K) the numbers that are noised."""
        return seen.logits_NV

    def spread(self, clean_NK: Tensor) -> Tensor:
        """(N, 1) what γ is multiplied with."""
        return _deviation(clean_NK)

    def logits(self, seen: Seen, noised_NK: Tensor) -> Tensor:
        """(N, V) z̃."""
        return noised_NK

    def noised(self, clean_NK: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """σ of each row, (N, 1), and the numbers with noise of it, float32."""
        clean_NK = clean_NK.float()
        sigma_N1 = self.noise_scale * self.spread(clean_NK)
        return sigma_N1, clean_NK if drawn is None else clean_NK + sigma_N1 * drawn

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        sigma_N1, noised_NK = self.noised(self.clean(seen), drawn)
        logits_NV = self.logits(seen, noised_NK)
        mixed_ND = seen.embedding.mix(softmax(logits_NV, self.temperature))
        record_NR = _record(sigma_N1, noised_NK)
        return Step(mixed_ND.to(seen.embedding.dtype), logits_NV.argmax(-1), record_NR)

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the weights that the noised numbers give, of the other model's embeddings."""
        assert taken.record_NR is not None, "the noised numbers are recorded"
        return other.mix(softmax(self.logits(seen, taken.record_NR[:, 1:]), self.temperature))

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) ln N(noised; clean, σ²I) without its constant, nats; differentiable in the clean."""
        assert taken.record_NR is not None, "the noised numbers are recorded"
        return _gaussian(taken.record_NR, self.clean(seen))


@dataclass(frozen=True)
class HiddenNoise(_PlacedNoise):
    """Mixture of all tokens by z̃ = W(h + σε), σ = γ · rms of the last hidden state at each step."""

    name: str = "hidden_noise"
    family: str = "hidden_noise"

    @property
    def needs_head(self) -> bool:
        return True

    def clean(self, seen: Seen) -> Tensor:
        return seen.thought_ND

    def spread(self, clean_NK: Tensor) -> Tensor:
        """(N, 1) root mean square."""
        return clean_NK.square().mean(-1, keepdim=True).sqrt()

    def logits(self, seen: Seen, noised_NK: Tensor) -> Tensor:
        assert seen.head is not None, "noised states go through the output head"
        return seen.head.logits(noised_NK.to(seen.thought_ND.dtype))


@dataclass(frozen=True)
class LogitNoise(_PlacedNoise):
    """Mixture of all tokens by z̃ = z + σε, σ = γ · rms of the logits about their mean."""

    name: str = "logit_noise"
    family: str = "logit_noise"

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(self.randomness, embedding.vocab)


@dataclass(frozen=True)
class TopLogitNoise(_PlacedNoise):
    """Mixture by the k largest logits with noise, σ = γ · their rms about their mean; others -∞.

    Attributes:
        top_k: k; the paper has 5 and 50, at temperature 1.
    """

    name: str = "top_logit_noise"
    family: str = "top_logit_noise"
    temperature: float = 1.0
    top_k: int = 5

    def __post_init__(self) -> None:
        if self.top_k < 2:
            raise UserError(f"{self.name}: top_k starts at 2; one logit has no spread")

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(self.randomness, self._size(embedding))

    def _size(self, embedding: Embedding) -> int:
        return min(self.top_k, embedding.vocab)

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) softmax(z/τ) over the k largest, without noise."""
        return most_likely(super().probs(seen), self.top_k)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        import torch

        logits_NK, ids_NK = seen.logits_NV.topk(self._size(seen.embedding), dim=-1)
        sigma_N1, noised_NK = self.noised(logits_NK, drawn)
        mixed_ND = mix_tokens(seen.embedding, softmax(noised_NK, self.temperature), ids_NK)
        heaviest_N1 = noised_NK.argmax(-1, keepdim=True)
        record_NR = torch.cat([_record(sigma_N1, noised_NK), ids_NK.float()], -1)
        return Step(mixed_ND, ids_NK.gather(-1, heaviest_N1)[:, 0], record_NR)

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the weights that the noised logits give, of the other model's embeddings."""
        noised_NR, ids_NK = self._recorded(seen, taken)
        return mix_tokens(other, softmax(noised_NR[:, 1:], self.temperature), ids_NK)

    def _recorded(self, seen: Seen, taken: Taken) -> tuple[Tensor, Tensor]:
        """What `_record` wrote, and the tokens of the k logits."""
        assert taken.record_NR is not None, "the noised logits are recorded"
        size = self._size(seen.embedding)
        noised_NR, ids_NK = taken.record_NR.split([1 + size, size], -1)
        return noised_NR, ids_NK.long()

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) ln N(z̃; z, σ²I) over the k logits without its constant, nats."""
        noised_NR, ids_NK = self._recorded(seen, taken)
        return _gaussian(noised_NR, seen.logits_NV.gather(-1, ids_NK))


def _deviation(logits_NK: Tensor) -> Tensor:
    """(N, 1) root mean square about the mean, over known tokens."""
    known_NK = logits_NK > UNKNOWN
    count_N1 = known_NK.sum(-1, keepdim=True)
    mean_N1 = logits_NK.where(known_NK, 0.0).sum(-1, keepdim=True) / count_N1
    about_NK = (logits_NK - mean_N1).where(known_NK, 0.0)
    return (about_NK.square().sum(-1, keepdim=True) / count_N1).sqrt()


def _record(sigma_N1: Tensor, noised_NK: Tensor) -> Tensor:
    import torch

    return torch.cat([sigma_N1, noised_NK], -1)


def _gaussian(record_NR: Tensor, clean_NK: Tensor) -> Tensor:
    """(N,) -‖noised - clean‖²/2σ² of what `_record` wrote: a sum over the K numbers."""
    sigma_N1, noised_NK = record_NR[:, :1].clamp(min=LEAST_SIGMA), record_NR[:, 1:]
    return -((noised_NK - clean_NK.float()) / sigma_N1).square().sum(-1) / 2
