"""Mixture of Inputs: the token drawn, blended with the distribution it was drawn from.

Zhuang et al., *Text Generation Beyond Discrete Token Sampling* (2025, arXiv 2505.14827). With y the
token drawn, as one-hot, and H the entropy of p as a share of the largest, the next input is Σ wᵢ·eᵢ,
w = (H·p + (β + 1 - H)·y)/(β + 1): the mean of a Dirichlet posterior with prior H·p and weight β + 1 - H on
the observation y. H = 0 and β = ∞ give y, hard sampling; H = 1 gives (p + β·y)/(1 + β).

The paper takes p and H over the vocabulary, the released code over its engine's 20 likeliest tokens.
Here y belongs to the support in every case, or w would not sum to 1.

Shapes: N rows, V vocabulary, K tokens of the support and the one drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes.filtered import FilteredMode
from softeval.modes.sampling import entropy, invert_cdf, mix_tokens, softmax
from softeval.modes.seam import Embedding, Randomness, Seen, Step, Taken

if TYPE_CHECKING:
    from torch import Tensor


class EntropyBase(StrEnum):
    """The number of tokens whose logarithm counts as the largest entropy."""

    SUPPORT = "support"
    VOCABULARY = "vocabulary"


@dataclass(frozen=True)
class MixtureOfInputs(FilteredMode):
    """The token drawn, blended with the distribution p it was drawn from.

    The filters are those of the sampler, and do not touch p.

    Attributes:
        beta: β, the weight of the token drawn.
        support: tokens of p that are mixed; 0 mixes all.
        entropy_base: what H is a share of.
    """

    name: str = "mixture_of_inputs"
    family: str = "mixture_of_inputs"
    temperature: float = 0.6
    top_p: float = 0.95
    beta: float = 1.0
    support: int = 20
    entropy_base: EntropyBase = EntropyBase.SUPPORT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or self.support < 0 or self.support == 1:
            raise UserError(f"{self.name}: beta starts at 0, support at 2 (0 is all)")

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Draw a token, which is the shadow, and mix."""
        assert drawn is not None, "drawing a token takes a uniform"
        token_N = invert_cdf(probs_NV, drawn)
        return Step(mix_tokens(seen.embedding, *self._mixture(seen, token_N)), token_N)

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the same weights of the other model's embeddings."""
        return mix_tokens(other, *self._mixture(seen, taken.shadow_N))

    def _mixture(self, seen: Seen, token_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K) w and its tokens."""
        import torch

        prior_NV = softmax(seen.logits_NV, self.temperature)
        vocab = prior_NV.shape[-1]
        size = min(self.support or vocab, vocab)
        prior_NK, ids_NK = prior_NV.topk(size, dim=-1)
        inside_NK = ids_NK == token_N[:, None]
        outside_N1 = ~inside_NK.any(-1, keepdim=True)
        own_N1 = prior_NV.gather(-1, token_N[:, None]) * outside_N1
        prior_NK = torch.cat([prior_NK, own_N1], -1)
        prior_NK = prior_NK / prior_NK.sum(-1, keepdim=True)
        hot_NK = torch.cat([inside_NK, outside_N1], -1).float()
        largest = math.log(size if self.entropy_base is EntropyBase.SUPPORT else vocab)
        share_N1 = (entropy(prior_NK) / largest).clamp(max=1.0)[:, None]
        parts_NK = share_N1 * prior_NK + (self.beta + 1 - share_N1) * hot_NK
        return parts_NK / (self.beta + 1), torch.cat([ids_NK, token_N[:, None]], -1)
