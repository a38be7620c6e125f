"""Soft Thinking: mixtures of the most likely tokens, and an end when the model has made up its mind.

Zhang et al., *Soft Thinking: Unlocking the Reasoning Potential of LLMs in Continuous Concept Space*
(2025, arXiv 2505.15778). The next input is Σ wᵢ·eᵢ over the n most likely tokens after top-k, top-p
and min-p, in this order, each renormalised. Cold stop: when the entropy of softmax(z/τ), before any
filter, has been below a threshold for `patience` steps in a row, the CoT ends and the answer
follows; an end that the text itself makes comes first. Deterministic, hence without a density.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes.sampling import entropy, most_likely, softmax
from softeval.modes.seam import Mode, Seen, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SoftThinking(Mode):
    """Soft Thinking with the defaults of its authors' released code.

    Attributes:
        temperature: τ of the softmax.
        top_k: tokens kept by rank; 0 keeps all.
        top_p: tokens kept until their sum reaches this; 1 keeps all.
        min_p: tokens kept at this share of the largest probability; 0 keeps all.
        top_n: tokens that are mixed; 0 mixes all that are left.
        entropy_threshold: nats below which a step counts as cold; 0 never ends a CoT.
        patience: cold steps in a row that end the CoT.
    """

    name: str = "soft_thinking"
    family: str = "soft_thinking"
    temperature: float = 0.6
    top_k: int = 30
    top_p: float = 0.95
    min_p: float = 0.001
    top_n: int = 10
    entropy_threshold: float = 0.01
    patience: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise UserError(f"{self.name}: top_p lies in (0, 1], min_p in [0, 1]")
        if min(self.top_k, self.top_n) < 0 or self.patience < 1 or self.temperature < 0:
            raise UserError(f"{self.name}: patience starts at 1, the other options at 0")

    def begin(self, rows: int, device: torch.device) -> Tensor:
        """(rows,) cold steps in a row so far."""
        import torch

        return torch.zeros(rows, dtype=torch.int32, device=device)

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) weights of the mixture."""
        probs_NV = softmax(seen.logits_NV, self.temperature)
        return most_likely(probs_NV, self.top_k, self.top_p, self.min_p, self.top_n)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        assert state is not None, "the cold stop counts"
        cold_N = entropy(softmax(seen.logits_NV, self.temperature)) < self.entropy_threshold
        count_N = (state + 1) * cold_N
        mixed_ND = seen.embedding.mix(probs_NV).to(seen.embedding.dtype)
        return Step(mixed_ND, probs_NV.argmax(-1), state=count_N, ends_N=count_N >= self.patience)
