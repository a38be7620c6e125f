"""Dirichlet noise on the weights of Soft Thinking.

Wu et al., *LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking*
(2025, arXiv 2508.03440). With w over the n most likely tokens, y ~ Dir(α·w) and the next input is
Σ yᵢ·eᵢ: E[y] = w, Var yᵢ = wᵢ(1 - wᵢ)/(α + 1); α = ∞ gives w, α = 0 hard sampling.

The Gamma variates behind y are made on the CPU, in float64, of two uniforms for each place of the
support: Γ(a) = Γ(a + 1)·U^(1/a), whose first factor is the inverse of its distribution function. In
logarithms, as a share can be far below what a float holds.

Shapes: N rows, K tokens of the support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes.filtered import FewTokensMode
from softeval.modes.sampling import mix_tokens
from softeval.modes.seam import Draws, Embedding, Mode, Randomness, Seen, Step, Taken
from softeval.modes.soft_thinking import SoftThinking

if TYPE_CHECKING:
    from torch import Tensor

LEAST = -1e30
"""Logarithm of the smallest share; below, float32 would have it infinite."""


@dataclass(frozen=True)
class Dirichlet(FewTokensMode):
    """Soft Thinking with Dirichlet noise; no cold stop.

    Attributes:
        alpha: concentration α > 0.
    """

    name: str = "dirichlet"
    family: str = "dirichlet"
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.001
    top_n: int = 10
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0:
            raise UserError(f"{self.name}: alpha is larger than 0")

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(Randomness.UNIFORM, 2 * self.most_tokens(embedding))

    def greedy(self) -> Mode:
        """The mixture w itself, which is the mean."""
        return SoftThinking(**self.cuts, entropy_threshold=0.0)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        assert drawn is not None, "Gamma variates are made of uniforms"
        found = self.support(seen, probs_NV)
        log_shares_NK = _log_gammas(self.alpha * found.probs_NK, drawn).log_softmax(-1)
        heaviest_N1 = log_shares_NK.argmax(-1, keepdim=True)
        return Step(
            mix_tokens(seen.embedding, log_shares_NK.exp(), found.ids_NK),
            found.ids_NK.gather(-1, heaviest_N1)[:, 0],
            record_NR=self.record(found, log_shares_NK),
        )

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the recorded shares of the other model's embeddings."""
        recorded = self.recorded(seen, taken)
        return mix_tokens(other, recorded.values_NK.exp() * recorded.kept_NK, recorded.ids_NK)

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) log-density of y, nats."""
        import torch

        recorded = self.recorded(seen, taken)
        shape_NK = (self.alpha * recorded.log_weights_NK.exp()).clamp(min=1e-30)
        terms_NK = (shape_NK - 1) * recorded.values_NK - torch.lgamma(shape_NK)
        total = torch.lgamma(terms_NK.new_tensor(self.alpha))
        return terms_NK.where(recorded.kept_NK, 0.0).sum(-1) + total


def _log_gammas(shape_NK: Tensor, uniform_NX: Tensor) -> Tensor:
    """(N, K) logarithms of Gamma variates, float32; -inf where the shape is 0."""
    import torch
    from scipy.special import gammaincinv

    shape = shape_NK.double().cpu()
    body, power = uniform_NX.double().cpu().clamp(min=2.0**-60).chunk(2, -1)
    above = torch.from_numpy(gammaincinv((shape + 1).numpy(), body.numpy()))
    logs = (above.log() + power.log() / shape).clamp(min=LEAST).masked_fill(shape == 0, -torch.inf)
    return logs.to(shape_NK.device, torch.float32)
