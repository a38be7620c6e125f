"""Gumbel noise on the weights of Soft Thinking: the relaxed categorical.

Wu et al., *LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking*
(2025, arXiv 2508.03440), and for training Zheng et al., *SofT-GRPO* (2025, arXiv 2511.06411). With w
over the n most likely tokens and g of the standard Gumbel distribution, g' = ln w + g, and the next
input is Σ yᵢ·eᵢ with y = softmax(g'/τ_g). The largest yᵢ falls on i with probability wᵢ exactly, whatever
τ_g; at τ_g = 0 this is hard sampling, at τ_g = ∞ the plain mean over the support, not w.

One uniform is drawn for each place of the support, not for each token of the vocabulary.

Shapes: N rows, K tokens of the support.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from softeval.modes.filtered import FewTokensMode, Recorded
from softeval.modes.sampling import mix_tokens, softmax
from softeval.modes.seam import Draws, Embedding, Mode, Randomness, Seen, Step, Taken
from softeval.modes.soft_thinking import SoftThinking

if TYPE_CHECKING:
    from torch import Tensor


class GumbelDensity(StrEnum):
    """Log-probability of g', with ε = g' - ln w.

    SOFTGRPO: the density, Σ (-ε - exp(-ε)). SOFTGRPO_RELEASE: what the released code trains with:
    the mean over tokens of ln w > -3, ln(w + 1e-6) for ln w, ε cut to [-1.5, 3]; its score has
    another mean than zero.
    """

    SOFTGRPO = "softgrpo"
    SOFTGRPO_RELEASE = "softgrpo_release"


@dataclass(frozen=True)
class Gumbel(FewTokensMode):
    """Soft Thinking with Gumbel noise; no cold stop.

    Attributes:
        gumbel_temperature: τ_g; 0.5 for inference, 0.1 in SofT-GRPO.
        density: what training takes as log-probability.
    """

    name: str = "gumbel"
    family: str = "gumbel"
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.001
    top_n: int = 10
    gumbel_temperature: float = 0.5
    density: GumbelDensity = GumbelDensity.SOFTGRPO

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(Randomness.UNIFORM, self.most_tokens(embedding))

    def greedy(self) -> Mode:
        """The mixture w itself."""
        return SoftThinking(**self.cuts, entropy_threshold=0.0)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        assert drawn is not None, "Gumbel noise is made of uniforms"
        found = self.support(seen, probs_NV)
        uniform_NK = drawn.view_as(found.probs_NK).clamp(min=2.0**-60)
        noised_NK = found.probs_NK.log() - (-uniform_NK.log()).log().float()
        shares_NK = softmax(noised_NK, self.gumbel_temperature)
        heaviest_N1 = noised_NK.argmax(-1, keepdim=True)
        return Step(
            mix_tokens(seen.embedding, shares_NK, found.ids_NK),
            found.ids_NK.gather(-1, heaviest_N1)[:, 0],
            record_NR=self.record(found, noised_NK),
        )

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the recorded shares of the other model's embeddings."""
        import torch

        recorded = self.recorded(seen, taken)
        noised_NK = recorded.values_NK.masked_fill(~recorded.kept_NK, -torch.inf)
        return mix_tokens(other, softmax(noised_NK, self.gumbel_temperature), recorded.ids_NK)

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) log-density of the noised log-weights, nats."""
        recorded = self.recorded(seen, taken)
        if self.density is GumbelDensity.SOFTGRPO_RELEASE:
            return _released(recorded)
        epsilon_NK = recorded.values_NK - recorded.log_weights_NK
        return (-epsilon_NK - (-epsilon_NK).exp()).where(recorded.kept_NK, 0.0).sum(-1)


def _released(recorded: Recorded) -> Tensor:
    """(N,) as the released code of SofT-GRPO computes it."""
    log_w_NK = (recorded.log_weights_NK.exp() + 1e-6).log()
    counted_NK = recorded.kept_NK & (recorded.log_weights_NK > -3)
    epsilon_NK = (recorded.values_NK - log_w_NK).clamp(-1.5, 3)
    terms_NK = (-epsilon_NK - (-epsilon_NK).exp()).where(counted_NK, 0.0)
    return terms_NK.sum(-1) / counted_NK.sum(-1).clamp(min=1)
