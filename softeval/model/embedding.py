"""The input embedding matrix E as the model's first layer really sees it.

Some architectures multiply token embeddings by a constant inside the embedding module (Gemma). Here
E always means what `inputs_embeds` must hold for a one-hot token, so that a one-hot mixture gives
bit for bit what `input_ids` gives.

Some have a second table that every layer looks up on its own (per-layer embeddings: Gemma 3n, Gemma
4). Its row is fed behind E's in one vector, and a mixture takes the same weights of both tables;
noise is added to E's part alone (docs/method.md).

Shapes: N rows, V vocabulary (ids the tokenizer knows), D width, F width of what is fed (D as a rule).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from softeval.errors import UserError


class InputEmbedding:
    """Rows of E and mixtures of them.

    Args:
        module: the model's input embedding module.
        vocab: number of ids the tokenizer knows; rows beyond are padding and never mixed in.
        gaps: ids below `vocab` that it does not know; their rows do not count for `rms`.
        per_layer: the table of per-layer embeddings; ids beyond its rows take its first (Gemma 3n).

    Raises:
        UserError: the module does something other than look up a row and scale it.
    """

    def __init__(
        self,
        module: nn.Module,
        vocab: int,
        gaps: Sequence[int] = (),
        per_layer: InputEmbedding | None = None,
    ) -> None:
        self.module = module
        self.vocab = vocab
        self.per_layer = per_layer
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
        if scale is None or isinstance(scale, Tensor):
            return None if scale is None else scale.to(self.device, self.dtype)
        return torch.full((), scale, device=self.device).to(self.dtype)  # a step uploads nothing

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
    def fed_width(self) -> int:
        """F: D, and the width of the per-layer embeddings where there are any."""
        return self.width + (0 if self.per_layer is None else self.per_layer.width)

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
        """(…, F) embeddings of token ids, as the module gives them."""
        own = self.module(ids)
        if self.per_layer is None:
            return own
        known = torch.where(ids < self.per_layer.vocab, ids, 0)
        return torch.cat([own, self.per_layer.rows(known).to(own.device)], -1)

    def mix(self, probs_NV: Tensor) -> Tensor:
        """(N, F) p·E in float32.

        A model in half precision multiplies in its own dtype (accumulating in float32), as its
        own layers do; a one-hot p is exact in every dtype.
        """
        mixed_ND = probs_NV.to(self.weight) @ self.weight  # either table may be on its own device
        if self.scale is not None:
            mixed_ND = mixed_ND * self.scale
        if self.per_layer is not None:
            beside = self.per_layer.mix(_folded(probs_NV, self.per_layer.vocab))
            return torch.cat([mixed_ND.float(), beside.to(mixed_ND.device)], -1)
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


@cache
def on_device(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids as a tensor, uploaded once: a decode step that is captured uploads nothing."""
    with torch.inference_mode(False):  # a backward pass may keep it
        return torch.tensor(ids, device=device)


def input_embedding(model: nn.Module, vocab: int, gaps: Sequence[int] = ()) -> InputEmbedding:
    """The input embedding of a model over `vocab` ids, with its per-layer embeddings.

    Raises:
        UserError: as `InputEmbedding`.
    """
    text, per_layer = _text_with_table(model), None
    if text is not None:
        table: nn.Module = text.embed_tokens_per_layer
        rows = min(vocab, table.weight.shape[0], text.config.vocab_size_per_layer_input)  # type: ignore[index]
        per_layer = InputEmbedding(table, rows)
    return InputEmbedding(model.get_input_embeddings(), vocab, gaps, per_layer)  # type: ignore[operator]


def take_per_layer_vectors(model: nn.Module) -> None:
    """Let a model with per-layer embeddings take vectors that carry theirs behind them."""
    text = _text_with_table(model)
    if text is not None:
        text.register_forward_pre_hook(_split, with_kwargs=True)


def _text_with_table(model: nn.Module) -> Any:
    """The part of a model that looks up per-layer embeddings; None if none does."""
    parts = model.modules()
    return next((m for m in parts if getattr(m, "embed_tokens_per_layer", None) is not None), None)


def _split(text: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    fed, width = kwargs.get("inputs_embeds"), text.config.hidden_size
    if fed is None or fed.shape[-1] == width:
        return None
    per_layer = fed[..., width:].unflatten(-1, (text.config.num_hidden_layers, -1))
    return args, kwargs | {
        "inputs_embeds": fed[..., :width].contiguous(),
        "per_layer_inputs": per_layer,
    }


def _folded(probs_NV: Tensor, vocab: int) -> Tensor:
    """(N, vocab) the same weights, those of ids beyond a table given to its first row."""
    if probs_NV.shape[-1] == vocab:
        return probs_NV
    beyond_N = probs_NV[..., vocab:].sum(-1)
    return torch.cat([probs_NV[..., :1] + beyond_N[..., None], probs_NV[..., 1:vocab]], -1)
