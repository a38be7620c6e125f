"""Memory of a batch whose rows come and go, each at its own length, and what of it a row sees.

The slot of a token is its position: row b holds position j at index j, and everything beyond the
row's length is hidden by the mask. No row is ever padded or shifted on behalf of another, so what a
row attends to, and in which order it is summed, does not depend on its neighbours. How many rows fit,
`auto_batch_size` says.

Shapes: B rows, N rows, Q positions of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from softeval.model.layers import (
    RowWindow,
    SlotLayer,
    StateLayer,
    check_layer_kinds,
    has_attention,
    memory_argument,
    prompt_cache,
    rounded_slots,
    row_layers,
)

_MOST = {"cpu": 128, "cuda": 512}
_SHARE = 0.5
"""Share of free memory given to keys and values; logits, activations and growth take the rest."""
_MEASURED = 4
"""Positions of the row whose keys and values are measured."""


class SlotCache(Cache):
    """All layers of a batch of rows, with room for at least `fewest` slots from the start."""

    def __init__(self, config: Any, batch: int, fewest: int = 0) -> None:
        window = self.window = RowWindow(fewest)
        super().__init__(layers=row_layers(config, window, batch))  # type: ignore[arg-type]
        # No `self` in there: a circle would keep all keys and values until Python looks for circles.
        self.layer_class_to_replicate = lambda: SlotLayer(window, batch)  # type: ignore[assignment]

    @property
    def lacks_states(self) -> bool:
        """Whether there are recurrent layers whose states no prompt has shown yet."""
        return any(not x.is_allocated for x in self.layers if isinstance(x, StateLayer))

    def fill(self, rows: Sequence[int], prompt: Cache, length: int) -> None:
        """Give several rows the same prefilled prompt."""
        self.window.slots = max(self.window.slots, rounded_slots(length + 1))
        while len(self.layers) < len(prompt.layers):
            self.layers.append(self.layer_class_to_replicate())  # type: ignore[misc]
        for layer, filled in zip(self.layers, prompt.layers, strict=True):
            layer.fill(rows, filled)  # type: ignore[union-attr]

    def point(self, positions_N: Tensor, slots: int) -> None:
        """Aim the next pass at rows 0…N-1, whose new token stands at `positions_N` below `slots`."""
        self.window.point(positions_N, slots)
        for layer in self.layers:
            layer.aim()  # type: ignore[union-attr]

    def clear(self, rows: Sequence[int]) -> None:
        """Empty several rows."""
        for layer in self.layers:
            layer.clear(rows)  # type: ignore[union-attr]

    def move(self, source: int, target: int, length: int) -> None:
        """Move a row of `length` positions to another slot of the batch."""
        for layer in self.layers:
            layer.move(source, target, length)  # type: ignore[union-attr]


class Visibility:
    """Attention masks for rows at their own positions, for every kind of layer of a model.

    Raises:
        UserError: the model has layers of a kind that is not decoded.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        check_layer_kinds(config)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._chunk: int | None = getattr(config, "attention_chunk_size", None)
        self._kinds = getattr(config, "layer_types", None)
        self._attends = has_attention(config)
        self._additive = config._attn_implementation != "sdpa"
        self._dtype = model.dtype

    def masks(self, positions_NQ: Tensor, slots: int) -> Tensor | dict[str, Tensor | None] | None:
        """Masks (N, 1, Q, slots) for queries at `positions_NQ`, in the form the model takes."""
        if not self._attends:
            return None
        slot_S = torch.arange(slots, device=positions_NQ.device)
        query = positions_NQ[:, None, :, None]
        seen = slot_S <= query
        if self._kinds is None:  # one kind of layer: a plain mask, sliding where the config says so
            return self._form(self._slide(seen, slot_S, query))
        # A recurrence's None comes last: some models take the first. Hybrids ask by either name.
        forms: dict[str, Tensor | None] = dict.fromkeys([*self._kinds, "linear_attention"])
        for kind in ("full_attention", "hybrid"):
            forms[kind] = self._form(seen)
        for kind in forms.keys() & {"sliding_attention", "hybrid_sliding"}:
            forms[kind] = self._form(self._slide(seen, slot_S, query))
        if "chunked_attention" in forms:
            forms["chunked_attention"] = self._form(self._same_chunk(seen, slot_S, query))
        return forms

    def _slide(self, seen: Tensor, slot_S: Tensor, query: Tensor) -> Tensor:
        return seen if self._window is None else seen & (slot_S > query - self._window)

    def _same_chunk(self, seen: Tensor, slot_S: Tensor, query: Tensor) -> Tensor:
        return seen & (slot_S // self._chunk == query // self._chunk)  # type: ignore[operator]

    def _form(self, seen: Tensor) -> Tensor:
        if not self._additive:
            return seen
        hidden = torch.finfo(self._dtype).min
        return torch.zeros_like(seen, dtype=self._dtype).masked_fill_(~seen, hidden)


def auto_batch_size(model: Any, length: int) -> int:
    """Rows whose keys and values of `length` positions fit in half of the free memory.

    Capped where more rows stop helping: 128 on a CPU, 512 on a GPU. The result of a sample does
    not depend on it.
    """
    fit = int(_SHARE * _free_bytes(model.device)) // max(1, row_bytes(model, length))
    return max(1, min(fit, _MOST.get(model.device.type, 64)))


@torch.inference_mode()
def row_bytes(model: Any, length: int) -> int:
    """Bytes of keys and values of one row of `length` positions, and of its logits in float32.

    Measured on a short row: what an architecture stores does not follow from its configuration.
    """
    ids = torch.zeros(1, _MEASURED, dtype=torch.long, device=model.device)
    cache = prompt_cache(model.config)
    memory = {memory_argument(model) or "past_key_values": cache}
    logits = model(input_ids=ids, use_cache=True, **memory).logits
    kept = [part for layer in cache.layers for part in vars(layer).values()]
    states = [part for some in kept if isinstance(some, dict) for part in some.values()]
    growing, fixed = _bytes(kept) * length // _MEASURED, _bytes(states)
    return growing + fixed + 6 * 4 * logits.shape[-1]


def _bytes(parts: Sequence[Any]) -> int:
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


def _free_bytes(device: torch.device) -> int:
    """Bytes to be had: on CUDA also what torch's allocator holds and no tensor uses."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    import psutil

    return psutil.virtual_memory().available
