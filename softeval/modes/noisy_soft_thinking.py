"""Soft Thinking with noise on its weights: Gumbel, the relaxed categorical, and Dirichlet.

Wu et al., *LLMs are Single-threaded Reasoners: Demystifying the Working Mechanism of Soft Thinking*
(2025, arXiv 2508.03440). With w over the n most likely tokens, shares y are drawn and the next input is
Σ yᵢ·eᵢ.

**Gumbel** (for training Zheng et al., *SofT-GRPO*, 2025, arXiv 2511.06411): with g of the standard Gumbel
distribution, g' = ln w + g and y = softmax(g'/τ_g). The largest yᵢ falls on i with probability wᵢ exactly,
whatever τ_g; at τ_g = 0 this is hard sampling, at τ_g = ∞ the plain mean over the support, not w.

**Dirichlet**: y ~ Dir(α·w): E[y] = w, Var yᵢ = wᵢ(1 - wᵢ)/(α + 1); α = ∞ gives w, α = 0 hard sampling. The
Gamma variates behind y are made on the CPU, in float64, of two uniforms for each place of the
support: Γ(a) = Γ(a + 1)·U^(1/a), whose first factor is the inverse of its distribution function. In
logarithms, as a share can be far below what a float holds.

Uniforms are drawn for each place of the support, not for each token of the vocabulary.

Shapes: N rows, K tokens of the support.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from softeval.errors import UserError
from softeval.modes.filtered import FewTokensMode
from softeval.modes.sampling import Support, mix_tokens, softmax
from softeval.modes.seam import Draws, Embedding, Mode, Randomness, Seen, Step, Taken
from softeval.modes.soft_thinking import SoftThinking

if TYPE_CHECKING:
    from torch import Tensor

LEAST_UNIFORM = 2.0**-60
LEAST = -1e30
"""Logarithm of the smallest share; below, float32 would have it infinite."""


@dataclass(frozen=True)
class _NoisyWeights(FewTokensMode):
    """What both share; no cold stop."""

    uniforms: ClassVar[int] = 1
    """Drawn for each place of the support."""

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(Randomness.UNIFORM, self.uniforms * self.most_tokens(embedding))

    def greedy(self) -> Mode:
        """The mixture w itself."""
        return SoftThinking(temperature=self.temperature, **self.cuts, entropy_threshold=0.0)

    @abstractmethod
    def noised(self, found: Support, drawn: Tensor) -> Tensor:
        """(N, K) numbers that a step records, the largest for the heaviest token; -inf where cut."""

    @abstractmethod
    def shares(self, noised_NK: Tensor) -> Tensor:
        """(N, K) y."""

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        assert drawn is not None, "the noise is made of uniforms"
        found = self.support(seen, probs_NV)
        noised_NK = self.noised(found, drawn)
        heaviest_N1 = noised_NK.argmax(-1, keepdim=True)
        return Step(
            mix_tokens(seen.embedding, self.shares(noised_NK), found.ids_NK),
            found.ids_NK.gather(-1, heaviest_N1)[:, 0],
            record_NR=_record(found, noised_NK),
        )

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the recorded shares of the other model's embeddings."""
        import torch

        recorded = self.recorded(seen, taken)
        noised_NK = recorded.values_NK.masked_fill(~recorded.kept_NK, -torch.inf)
        return mix_tokens(other, self.shares(noised_NK), recorded.ids_NK)

    def recorded(self, seen: Seen, taken: Taken) -> Recorded:
        """What a step recorded, beside log w of the same tokens under these logits.

        The support is a constant: w is softmax(z/τ) over the recorded tokens.
        """
        import torch

        assert taken.record_NR is not None, "the step's tokens and numbers are recorded"
        ids_NK, values_NK = taken.record_NR.chunk(2, -1)
        kept_NK = ids_NK >= 0
        scaled_NK = seen.logits_NV.float().gather(-1, ids_NK.long().clamp(min=0)) / self.temperature
        log_w_NK = scaled_NK.masked_fill(~kept_NK, -torch.inf).log_softmax(-1)
        log_w_NK = log_w_NK.masked_fill(~kept_NK, 0.0)
        return Recorded(log_w_NK, values_NK, kept_NK, ids_NK.long().clamp(min=0))


class Recorded(NamedTuple):
    """(N, K) of a recorded support: log w (0 where cut), the number recorded, whether kept, the token."""

    log_weights_NK: Tensor
    values_NK: Tensor
    kept_NK: Tensor
    ids_NK: Tensor


def _record(found: Support, values_NK: Tensor) -> Tensor:
    """(N, 2K) the support's ids and a number for each; -1 and 0 for a token that was cut."""
    import torch

    cut_NK = found.probs_NK == 0
    ids_NK, values_NK = found.ids_NK.masked_fill(cut_NK, -1), values_NK.masked_fill(cut_NK, 0)
    return torch.cat([ids_NK.float(), values_NK.float()], -1)


class GumbelDensity(StrEnum):
    """Log-probability of g', with ε = g' - ln w.

    SOFTGRPO: the density, Σ (-ε - exp(-ε)). SOFTGRPO_RELEASE: what the released code trains with:
    the mean over tokens of ln w > -3, ln(w + 1e-6) for ln w, ε cut to [-1.5, 3]; its score has
    another mean than zero.
    """

    SOFTGRPO = "softgrpo"
    SOFTGRPO_RELEASE = "softgrpo_release"


@dataclass(frozen=True)
class Gumbel(_NoisyWeights):
    """Mixture of the most likely tokens, its weights shaken by Gumbel noise.

    Attributes:
        gumbel_temperature: τ_g; 0.5 for inference, 0.1 in SofT-GRPO.
        density: what training takes as log-probability.
    """

    name: str = "gumbel"
    family: str = "gumbel"
    gumbel_temperature: float = 0.5
    density: GumbelDensity = GumbelDensity.SOFTGRPO

    def noised(self, found: Support, drawn: Tensor) -> Tensor:
        """(N, K) g'."""
        uniform_NK = drawn.view_as(found.probs_NK).clamp(min=LEAST_UNIFORM)
        return found.probs_NK.log() - (-uniform_NK.log()).log().float()

    def shares(self, noised_NK: Tensor) -> Tensor:
        return softmax(noised_NK, self.gumbel_temperature)

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


@dataclass(frozen=True)
class Dirichlet(_NoisyWeights):
    """Mixture of the most likely tokens, its weights drawn from a Dirichlet around them.

    Attributes:
        alpha: concentration α > 0.
    """

    name: str = "dirichlet"
    family: str = "dirichlet"
    alpha: float = 1.0

    uniforms: ClassVar[int] = 2
    asks_host: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha <= 0:
            raise UserError(f"{self.name}: alpha is larger than 0")

    def noised(self, found: Support, drawn: Tensor) -> Tensor:
        """(N, K) ln y."""
        return _log_gammas(self.alpha * found.probs_NK, drawn).log_softmax(-1)

    def shares(self, noised_NK: Tensor) -> Tensor:
        return noised_NK.exp()

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
    body, power = uniform_NX.double().cpu().clamp(min=LEAST_UNIFORM).chunk(2, -1)
    above = torch.from_numpy(gammaincinv((shape + 1).numpy(), body.numpy()))
    logs = (above.log() + power.log() / shape).clamp(min=LEAST).masked_fill(shape == 0, -torch.inf)
    return logs.to(shape_NK.device, torch.float32)
