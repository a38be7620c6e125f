"""Multiplex Thinking: several tokens drawn at once, and their embeddings merged.

Tang et al., *Multiplex Thinking: Reasoning via Token-wise Branch-and-Merge* (2026, arXiv 2601.08808).
k₁ … k_K are drawn from p independently; with n_v the count of token v, the next input is Σ w_v·e_v. K = 1
is hard sampling. The paper prints weights that do not sum to 1; the three here do.

Shapes: N rows, V vocabulary, K tokens drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes.filtered import FilteredMode
from softeval.modes.sampling import invert_cdf, mix_tokens
from softeval.modes.seam import Draws, Embedding, Randomness, Seen, Step, Taken

if TYPE_CHECKING:
    from torch import Tensor


class MultiplexWeights(StrEnum):
    """w_v ∝ n_v (UNIFORM), n_v·p_v (REWEIGHTED, the released code), p_v (UNIQUE, the paper's text)."""

    UNIFORM = "uniform"
    REWEIGHTED = "reweighted"
    UNIQUE = "unique"


@dataclass(frozen=True)
class Multiplex(FilteredMode):
    """Several tokens drawn at once, and their embeddings merged.

    Attributes:
        width: K, tokens drawn at a step.
        weights: how they are merged.
    """

    name: str = "multiplex"
    family: str = "multiplex"
    top_p: float = 0.95
    width: int = 3
    weights: MultiplexWeights = MultiplexWeights.REWEIGHTED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise UserError(f"{self.name}: width starts at 1")

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    def draws(self, embedding: Embedding) -> Draws:
        return Draws(Randomness.UNIFORM, self.width)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Draw and merge; the shadow is the token drawn most often, the likelier one of two such."""
        import torch

        assert drawn is not None, "each token takes a uniform"
        uniform_NK = drawn.view(len(probs_NV), self.width)
        ids_NK = torch.stack([invert_cdf(probs_NV, u_N) for u_N in uniform_NK.unbind(-1)], -1)
        drawn_probs_NK = probs_NV.gather(-1, ids_NK)
        counts_NK = _same(ids_NK).sum(-1)
        often_N1 = (counts_NK + drawn_probs_NK / 2).argmax(-1, keepdim=True)
        mixed_ND = mix_tokens(seen.embedding, self._weights(ids_NK, drawn_probs_NK), ids_NK)
        return Step(mixed_ND, ids_NK.gather(-1, often_N1)[:, 0], record_NR=ids_NK.float())

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the drawn tokens' embeddings in the other model, merged with the same weights."""
        assert taken.record_NR is not None, "the drawn tokens are recorded"
        ids_NK = taken.record_NR.long()
        return mix_tokens(other, self._weights(ids_NK, self.probs(seen).gather(-1, ids_NK)), ids_NK)

    def _weights(self, ids_NK: Tensor, probs_NK: Tensor) -> Tensor:
        """(N, K) w; a token counts where it was drawn first."""
        same_NKK = _same(ids_NK)
        repeated_NK = same_NKK.tril(-1).any(-1)
        parts_NK = self._parts(same_NKK.sum(-1), probs_NK).masked_fill(repeated_NK, 0.0)
        return parts_NK / parts_NK.sum(-1, keepdim=True)

    def _parts(self, counts_NK: Tensor, probs_NK: Tensor) -> Tensor:
        """(N, K) weights up to a factor."""
        if self.weights is MultiplexWeights.UNIQUE:
            return probs_NK
        parts_NK = counts_NK.float()
        return parts_NK if self.weights is MultiplexWeights.UNIFORM else parts_NK * probs_NK

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) Σ ln p of the tokens drawn, nats."""
        assert taken.record_NR is not None, "the drawn tokens are recorded"
        return self.token_log_probs(seen, taken.record_NR.long()).sum(-1)


def _same(ids_NK: Tensor) -> Tensor:
    """(N, K, K) which of the drawn tokens are equal."""
    return ids_NK[:, :, None] == ids_NK[:, None, :]
