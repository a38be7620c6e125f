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
from softeval.modes.filtered import FewTokensMode
from softeval.modes.sampling import entropy, softmax
from softeval.modes.seam import Seen, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SoftThinking(FewTokensMode):
    """Mixture of the most likely tokens; ends the CoT when the model has made up its mind.

    The defaults are those of the authors' released code.

    Attributes:
        entropy_threshold: nats below which a step counts as cold; 0 never ends a CoT.
        patience: cold steps in a row that end the CoT.
    """

    name: str = "soft_thinking"
    family: str = "soft_thinking"
    entropy_threshold: float = 0.01
    patience: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 1:
            raise UserError(f"{self.name}: patience starts at 1")

    @property
    def has_stop_rule(self) -> bool:
        return self.entropy_threshold > 0

    def begin(self, rows: int, device: torch.device) -> Tensor:
        """(rows,) cold steps in a row so far."""
        import torch

        return torch.zeros(rows, dtype=torch.int32, device=device)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Mix; the shadow is the heaviest token."""
        assert state is not None, "the cold stop counts"
        cold_N = entropy(softmax(seen.logits_NV, self.temperature)) < self.entropy_threshold
        count_N = (state + 1) * cold_N
        mixed_ND = seen.embedding.mix(probs_NV).to(seen.embedding.dtype)
        return Step(mixed_ND, probs_NV.argmax(-1), state=count_N, ends_N=count_N >= self.patience)
