"""What a model keeps of a sequence, measured on a copy without storage (torch's meta device).

Shapes are all that is computed, so nothing but the configuration is needed, and every architecture is
counted as it is written. Attention alone is replaced: its kernels and masks want real tensors.

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softeval.model.layers import memory_argument, prompt_cache
from softeval.model.output_head import last_hidden

_ATTENTION = "softeval_memory"


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def position_bytes(model: Any) -> int:
    """Bytes of the keys and values of one position; a recurrence's state has none to itself."""
    cache = prompt_cache(model.config)
    inputs = torch.empty(1, 2, width_of(model), device="meta", dtype=model.dtype)
    with torch.no_grad(), _counted_attention(model):
        model.base_model(
            inputs_embeds=inputs,
            position_ids=torch.arange(2, device="meta")[None],
            use_cache=True,
            **{memory_argument(model) or "past_key_values": cache},
        )
    held = [part for layer in cache.layers for part in vars(layer).values()]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor)) // 2


def saved_bytes(model: Any, length: int) -> int:
    """Bytes that a forward pass of one sequence keeps for its backward pass, weights apart."""
    weights = {t.untyped_storage()._cdata for t in tensors_of(model)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = torch.empty(1, length, width_of(model), device="meta", dtype=model.dtype)
    inputs.requires_grad_(model.get_input_embeddings().weight.requires_grad)
    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with _counted_attention(model), saving:
        last_hidden(model, inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def width_of(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[1]


@contextmanager
def _counted_attention(model: Any) -> Iterator[None]:
    """Attention that keeps what the model's own does, without its kernels or its mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config()
    used = config._attn_implementation
    eager = used == "eager"

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_: Any,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        masked = sliding_window is not None and query.shape[2] > sliding_window
        if eager or masked:  # both copy the key-value heads for each of their queries
            groups = query.shape[1] // key.shape[1]
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        if eager:
            found = _eager(query, key, value, softcap)
        else:
            length = query.shape[2] if masked else 0
            found = _Fused.apply(query, key, value, query.new_empty(length, length))
        return found.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, attend)
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = used


def _eager(query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor:
    weights = query @ key.transpose(2, 3)
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    return weights.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


class _Fused(torch.autograd.Function):
    """Shapes of fused attention: it keeps its arguments, its result and a number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, mask, found, query[..., 0].float())
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Sequence[None]:
        raise AssertionError("only shapes are asked for")
