"""The six modes of *Soft Tokens, Hard Truths* (section 3 and table 1).

Hard, soft and fuzzy, each greedy or sampled: three classes, six settings.

Shapes: N rows, V vocabulary (ids the tokenizer knows), D embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from softeval.errors import UserError
from softeval.modes.filtered import FilteredMode
from softeval.modes.gaussian import gaussian_step
from softeval.modes.sampling import invert_cdf, softmax
from softeval.modes.seam import Embedding, Fused, Kernels, Mode, Randomness, Seen, Step, Taken

if TYPE_CHECKING:
    from torch import Tensor

SOFT_TEMPERATURE = 0.5
FUZZY_TEMPERATURE = 1e-4
NOISE_SCALE = 0.33


class NoiseNorm(StrEnum):
    """What the noise scale γ is multiplied with to give σ, the deviation of one element.

    ELEMENT: root mean square of the entries of E, so that the noise *vector* is γ times as long as
    a typical embedding (the reading this project takes of paper section 3.2). VECTOR: root mean
    square of the embeddings' norms, √D times larger; the paper's words taken literally.
    """

    ELEMENT = "element"
    VECTOR = "vector"


@dataclass(frozen=True)
class HardMode(FilteredMode):
    """Ordinary tokens: the likeliest at temperature 0, else drawn by softmax(z/τ).

    The filters make hard sampling the control of a mode that has them too.
    """

    feeds_tokens: ClassVar[bool] = True

    @property
    def meaning(self) -> str:
        chosen = "drawn by softmax(z/τ)" if self.temperature > 0 else "the likeliest"
        return f"Ordinary tokens, {chosen}."

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM if self.temperature > 0 else Randomness.NONE

    @property
    def options(self) -> dict[str, Any]:
        """At temperature 0 there is nothing to filter."""
        every = super().options
        return every if self.temperature > 0 else {"temperature": self.temperature}

    def greedy(self) -> Mode:
        return HardMode(f"{self.family}_greedy", self.family, 0.0)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        if self.temperature == 0:
            shadow_N = seen.logits_NV.argmax(-1)
        else:
            assert drawn is not None, "hard sampling needs one uniform a row"
            shadow_N = invert_cdf(probs_NV, drawn)
        return Step(seen.embedding.rows(shadow_N), shadow_N)

    def fused_log_prob(self, kernels: Kernels, taken: Taken) -> Fused | None:
        if self.is_filtered:
            return None
        return Fused(kernels.token_log_probs(taken.shadow_N, self.temperature))


@dataclass(frozen=True)
class MixtureMode(Mode):
    """Mixture of all tokens, weighted by their probabilities, without noise.

    Soft and fuzzy tokens: softmax(z/τ)·E.
    """

    temperature: float

    @property
    def is_plain(self) -> bool:
        return self.temperature == 1.0

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) mixture weights."""
        return softmax(seen.logits_NV, self.temperature)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix embeddings; the shadow is the argmax token of the same logits."""
        mixed_ND = seen.embedding.mix(probs_NV)
        if drawn is not None:
            mixed_ND[:, : drawn.shape[-1]] += self.sigma(seen.embedding) * drawn
        return Step(mixed_ND.to(seen.embedding.dtype), seen.logits_NV.argmax(-1))

    def sigma(self, embedding: Embedding) -> float:
        """Noise deviation of one input element; none here."""
        return 0.0


@dataclass(frozen=True)
class NoisyMixtureMode(MixtureMode):
    """Mixture of all tokens, weighted by their probabilities, plus noise, σ = γ · rms of embeddings.

    Soft and fuzzy tokens as sampled: softmax(z/τ)·E + σ·N(0, I).
    """

    noise_scale: float = NOISE_SCALE
    noise_norm: NoiseNorm = NoiseNorm.ELEMENT

    is_gaussian: ClassVar[bool] = True

    @property
    def randomness(self) -> Randomness:
        return Randomness.NORMAL if self.noise_scale > 0 else Randomness.NONE

    def sigma(self, embedding: Embedding) -> float:
        """Noise deviation of one input element, from the checkpoint's own embeddings."""
        width = embedding.width if self.noise_norm is NoiseNorm.VECTOR else 1
        return self.noise_scale * embedding.rms * math.sqrt(width)

    def facts(self, embedding: Embedding) -> dict[str, Any]:
        return {"sigma": self.sigma(embedding)}

    def greedy(self) -> Mode:
        return MixtureMode(f"{self.family}_greedy", self.family, self.temperature)

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) log N(fed; p·E, σ²I) without its constant: -‖h̃ - pE‖² / (2σ²).

        A sum over the D elements, never a mean (paper eq. 12; method section 3).
        """
        sigma = self.sigma(seen.embedding)
        if sigma == 0:
            raise UserError(f"{self.name} without noise has no log-probability; set --noise-scale")
        assert taken.fed_ND is not None, "a soft step needs its vector"
        error_ND = taken.fed_ND.float() - seen.embedding.mix(self.probs(seen))
        return -error_ND.square().sum(-1) / (2 * sigma**2)

    def fused_log_prob(self, kernels: Kernels, taken: Taken) -> Fused:
        mixed_ND, tied_N = kernels.mixtures(self.temperature)
        embedding = kernels.embedding
        sigma = self.sigma(embedding)
        return gaussian_step(mixed_ND, tied_N, taken, sigma, embedding, kernels.recorded_noise)


PAPER_MODES: tuple[Mode, ...] = (
    HardMode("hard_greedy", "hard", 0.0),
    HardMode("hard_sample", "hard", 1.0),
    MixtureMode("soft_greedy", "soft", SOFT_TEMPERATURE),
    NoisyMixtureMode("soft_sample", "soft", SOFT_TEMPERATURE),
    MixtureMode("fuzzy_greedy", "fuzzy", FUZZY_TEMPERATURE),
    NoisyMixtureMode("fuzzy_sample", "fuzzy", FUZZY_TEMPERATURE),
)
