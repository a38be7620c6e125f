"""Modes over the likeliest tokens: temperature, top-k, top-p, min-p and top-n, alike for all of them.

Shapes: N rows, V vocabulary, K tokens of a row, R recorded numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.modes.sampling import Support, most_likely, softmax
from softeval.modes.seam import Embedding, Mode, Seen, Taken

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FilteredMode(Mode):
    """A mode whose distribution is softmax(z/τ) after the usual filters of a sampler.

    Attributes:
        temperature: τ of the softmax.
        top_k: tokens kept by rank; 0 keeps all.
        top_p: tokens kept until their sum reaches this; 1 keeps all.
        min_p: tokens kept at this share of the largest probability; 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise UserError(f"{self.name}: top_p lies in (0, 1], min_p in [0, 1]")
        if self.top_k < 0 or self.temperature < 0:
            raise UserError(f"{self.name}: top_k and temperature start at 0")
        if self.temperature == 0 and not self.is_greedy:
            raise UserError(f"{self.name} samples, so its temperature is larger than 0")

    @property
    def is_filtered(self) -> bool:
        """Whether any token is cut."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def is_plain(self) -> bool:
        return self.temperature == 1.0 and not self.is_filtered

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) softmax(z/τ), filtered: top-k, top-p, min-p in this order, each renormalised."""
        probs_NV = softmax(seen.logits_NV, self.temperature)
        return most_likely(probs_NV, **self.cuts) if self.is_filtered else probs_NV

    @property
    def cuts(self) -> dict[str, Any]:
        """The options that cut tokens."""
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) ln p of the token drawn, nats, where the shadow is that token."""
        if self.is_greedy:
            return super().log_prob(seen, taken)
        return self.token_log_probs(seen, taken.shadow_N[:, None])[:, 0]

    def token_log_probs(self, seen: Seen, ids_NK: Tensor) -> Tensor:
        """(N, K) log-probabilities of tokens that were drawn, nats, differentiable in the logits.

        Which tokens are kept is a constant. What was drawn was kept, wherever the rounding of this
        pass has moved the edge.
        """
        import torch

        scaled_NV = seen.logits_NV.float() / self.temperature
        if self.is_filtered:
            with torch.no_grad():
                kept_NV = (self.probs(seen) > 0).scatter(-1, ids_NK, True)
            scaled_NV = scaled_NV.masked_fill(~kept_NV, -torch.inf)
        return scaled_NV.gather(-1, ids_NK) - scaled_NV.logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class FewTokensMode(FilteredMode):
    """A mode that mixes the n most likely of the tokens that the filters leave.

    The defaults are those of Soft Thinking's released code.

    Attributes:
        top_n: tokens that are mixed; 0 mixes all that are left.
    """

    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.001
    top_n: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_n < 0:
            raise UserError(f"{self.name}: top_n starts at 0")

    @property
    def is_filtered(self) -> bool:
        return super().is_filtered or self.top_n > 0

    @property
    def cuts(self) -> dict[str, Any]:
        # Said again: torch traces no property through `super`.
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p, "top_n": self.top_n}

    def most_tokens(self, embedding: Embedding) -> int:
        """K, how many tokens a step may mix."""
        cuts = [cut for cut in (self.top_n, self.top_k) if cut]
        return min([*cuts, embedding.vocab])

    def support(self, seen: Seen, probs_NV: Tensor) -> Support:
        """(N, K) tokens that are mixed and their w; 0 where fewer are left."""
        return Support(*probs_NV.topk(self.most_tokens(seen.embedding), dim=-1))
