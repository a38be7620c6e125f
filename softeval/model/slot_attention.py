"""Attention of one new token a row over its own slots, by the row's length in place of a mask.

Under a mask a kernel reads all slots that any row needs, and first a mask of that size; by lengths it
reads what each row has. Only flash attention on CUDA in half precision takes lengths; whatever else
a layer asks for (a cap on its scores, sinks, biases, chunks) goes under the mask as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "softeval_slots"
WIDEST_HEAD = 256
"""Of flash attention."""


class SlotLengths(NamedTuple):
    """How the rows of a pass lie in memory, all int32.

    Attributes:
        queries: (N+1,) where each row's query begins.
        starts: (N+1,) where each row's slots begin.
        used_N: slots each row has used, the new token's among them.
        slots: slots of a row in memory.
    """

    queries: Tensor
    starts: Tensor
    used_N: Tensor
    slots: int


class _Pass:
    """What the layers of the pass under way go by; None outside of a decode step."""

    def __init__(self) -> None:
        self.lengths: SlotLengths | None = None


_PASS = _Pass()


def reads_lengths(model: Any) -> bool:
    """Whether a model's layers can be read by length.

    Layers that see chunks (Llama 4) tell it by their mask alone, so these models keep their masks.
    """
    return (
        model.device.type == "cuda"
        and not hasattr(model, "hf_device_map")
        and model.dtype in (torch.float16, torch.bfloat16)
        and model.config.get_text_config()._attn_implementation == "sdpa"
        and getattr(model.config.get_text_config(), "attention_chunk_size", None) is None
    )


@contextmanager
def by_lengths(model: Any) -> Iterator[None]:
    """Within, the model's layers take `set_lengths` as theirs."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own
        _PASS.lengths = None


def set_lengths(positions_N: Tensor, slots: int) -> None:
    """Say at which position the new token of each row stands, of how many slots in memory."""
    edges = torch.arange(len(positions_N) + 1, dtype=torch.int32, device=positions_N.device)
    _PASS.lengths = SlotLengths(edges, edges * slots, (positions_N + 1).int(), slots)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """One layer's attention, as transformers asks for it: (N, 1, heads, width)."""
    lengths = _PASS.lengths
    if lengths is None or not _fits(query, key, value, lengths, others):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling,
            sliding_window=sliding_window, **others,
        )  # fmt: skip
    keys, values = _rows_in_line(key, lengths), _rows_in_line(value, lengths)
    window = -1 if sliding_window is None else sliding_window - 1
    return flash(query[:, :, 0], keys, values, lengths, key.shape[2], window, scaling)[
        :, None
    ], None


def flash(
    query_NHX: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: SlotLengths,
    most: int,
    window: int,
    scale: float | None,
) -> Tensor:
    """(N, heads, width) attention of each row's last slot to the `window` before it; -1 for all."""
    return torch.ops.aten._flash_attention_forward(
        query_NHX, keys, values, lengths.queries, lengths.starts, 1, most, 0.0, False, False,
        scale=scale, window_size_left=window, window_size_right=-1 if window < 0 else 0,
        seqused_k=lengths.used_N,
    )[0]  # fmt: skip


def _fits(
    query: Tensor, key: Tensor, value: Tensor, lengths: SlotLengths, others: dict[str, Any]
) -> bool:
    strange = any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    width = query.shape[-1]
    return (
        not strange
        and query.shape[2] == 1
        and len(query) + 1 == len(lengths.queries)
        and width <= WIDEST_HEAD
        and width % 8 == 0
        and all(_lies(part, width, lengths.slots) for part in (key, value))
    )


def _lies(part: Tensor, width: int, slots: int) -> bool:
    """Whether (N, heads, S, width) is a view of rows of slots, one slot's heads side by side."""
    heads = part.shape[1]
    wanted = (slots * heads * width, width, heads * width, 1)
    return part.shape[-1] == width and part.stride() == wanted


def _rows_in_line(part: Tensor, lengths: SlotLengths) -> Tensor:
    """(slots of all rows, heads, width) over the memory of (N, heads, S, width)."""
    rows, heads, seen, width = part.shape
    total = (rows - 1) * lengths.slots + seen
    return part.as_strided((total, heads, width), (heads * width, width, 1))


AttentionInterface.register(NAME, attend)
