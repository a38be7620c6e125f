"""Memory of a batch whose rows come and go, each at its own length, and what of it a row sees.

The slot of a token is its position: row b holds position j at index j, and everything beyond the
row's length is hidden by the mask. No row is ever padded or shifted on behalf of another, so what a
row attends to, and in which order it is summed, does not depend on its neighbours.

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
    rounded_slots,
    row_layers,
)


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
        # A recurrence takes no mask; layers with both ask for one by their own name or by the part's.
        forms: dict[str, Tensor | None] = dict.fromkeys(["linear_attention", *self._kinds])
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
