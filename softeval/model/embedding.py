"""The input embedding matrix E as the model's first layer really sees it.

Some architectures multiply token embeddings by a constant inside the embedding module (Gemma). Here
E always means what `inputs_embeds` must hold for a one-hot token, so that a one-hot mixture gives
bit for bit what `input_ids` gives.

Shapes: N rows, V vocabulary (ids the tokenizer knows), D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softeval.errors import UserError


class InputEmbedding:
    """Rows of E and mixtures of them.

    Args:
        module: the model's input embedding module.
        vocab: number of ids the tokenizer knows; rows beyond are padding and never mixed in.
        gaps: ids below `vocab` that it does not know; their rows do not count for `rms`.

    Raises:
        UserError: the module does something other than look up a row and scale it.
    """

    def __init__(self, module: nn.Module, vocab: int, gaps: Sequence[int] = ()) -> None:
        self.module = module
        self.vocab = vocab
        self._gaps = list(gaps)
        self._rms: float | None = None
        self._verify()

    @property
    def weight(self) -> Tensor:
        """(V, D) rows before the architecture's scale; the trainable parameter's own storage."""
        return self.module.weight[: self.vocab]  # type: ignore[index]

    @property
    def scale(self) -> Tensor | None:
        """The architecture's factor in the embedding's dtype, or None."""
        scale = getattr(self.module, "embed_scale", None)
        if scale is None:
            return None
        return torch.as_tensor(scale, device=self.device).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the model takes its inputs."""
        return self.module.weight.dtype  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.module.weight.device  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """D."""
        return int(self.module.weight.shape[1])  # type: ignore[index]

    @property
    def rms(self) -> float:
        """Root mean square of the entries of E (method section 1, reading of the noise scale).

        Taken once: σ stays what it was when the checkpoint was loaded, also while E is trained.
        """
        if self._rms is None:
            self._rms = self._measure_rms()
        return self._rms

    def _measure_rms(self) -> float:
        with torch.no_grad():
            total = sum(float(part.double().square().sum()) for part in self.weight.split(16_384))
            if self._gaps:
                total -= float(self.weight[self._gaps].double().square().sum())
        scale = 1.0 if self.scale is None else float(self.scale)
        return abs(scale) * math.sqrt(total / ((self.vocab - len(self._gaps)) * self.width))

    def rows(self, ids: Tensor) -> Tensor:
        """(…, D) embeddings of token ids, as the module gives them."""
        return self.module(ids)

    def mix(self, probs_NV: Tensor) -> Tensor:
        """(N, D) p·E in float32.

        A model in half precision multiplies in its own dtype (accumulating in float32), as its
        own layers do; a one-hot p is exact in every dtype.
        """
        mixed_ND = probs_NV.to(self.dtype) @ self.weight
        if self.scale is not None:
            mixed_ND = mixed_ND * self.scale
        return mixed_ND.float()

    @torch.no_grad()
    def _verify(self) -> None:
        weight = getattr(self.module, "weight", None)
        if weight is None or weight.ndim != 2:
            raise UserError("the model's input embedding is no plain table; it cannot be mixed")
        probe = torch.arange(min(4, self.vocab), device=weight.device)
        hot = torch.zeros(len(probe), self.vocab, device=weight.device)
        hot[torch.arange(len(probe)), probe] = 1.0
        if not torch.equal(self.mix(hot).to(self.dtype), self.rows(probe)):
            raise UserError(
                "this architecture's input embedding is neither a plain nor a scaled table, so "
                "mixtures of its tokens are not defined; use another checkpoint"
            )
