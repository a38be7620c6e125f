"""Key-value memory of a batch whose rows come and go, each at its own length.

The slot of a token is its position: row b holds position j at index j, and everything beyond the
row's length is hidden by the mask. No row is ever padded or shifted on behalf of another, so what a
row attends to, and in which order it is summed, does not depend on its neighbours.

Shapes: B rows, N rows in use, H key-value heads, S slots, P prompt length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from softeval.errors import UserError

SLOT_TILE = 64
"""Visible slots are rounded up to this, so that vectorised sums group the same way in any batch."""


class RowWindow:
    """Which rows the next forward pass writes to, at which positions; shared by all layers."""

    def __init__(self) -> None:
        self.rows = 0
        self.slots = 0
        self.positions_N: Tensor = torch.empty(0, dtype=torch.long)

    def point(self, positions_N: Tensor, longest: int) -> None:
        """Aim the next pass at rows 0…N-1, whose new token stands at `positions_N`."""
        self.rows = len(positions_N)
        self.slots = -(-(longest + 1) // SLOT_TILE) * SLOT_TILE
        self.positions_N = positions_N


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: (B, H, S, head width)."""

    def __init__(self, window: RowWindow, batch: int) -> None:
        super().__init__()
        self.window = window
        self.batch = batch

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate as the first keys and values come by. Zeros: hidden slots must be finite."""
        slots = self.window.slots
        self.keys = key_states.new_zeros(
            self.batch, key_states.shape[1], slots, key_states.shape[-1]
        )
        self.values = value_states.new_zeros(
            self.batch, value_states.shape[1], slots, value_states.shape[-1]
        )
        self.is_initialized = True

    def grow(self, slots: int) -> None:
        """Make room for at least `slots`."""
        if self.keys is None or self.values is None or slots <= self.keys.shape[2]:
            return
        room = max(slots, min(2 * self.keys.shape[2], slots + 512)) - self.keys.shape[2]
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, room))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, room))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store one new token a row; return what the rows in use may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        self.grow(window.slots)
        assert self.keys is not None and self.values is not None
        rows = torch.arange(window.rows, device=key_states.device)
        self.keys[rows, :, window.positions_N] = key_states[:, :, 0]
        self.values[rows, :, window.positions_N] = value_states[:, :, 0]
        seen = (slice(window.rows), slice(None), slice(window.slots))
        return self.keys[seen], self.values[seen]

    def fill(self, rows: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Copy a prompt's keys and values (1, H, P, head width) into several rows."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.grow(keys.shape[2])
        assert self.keys is not None and self.values is not None
        chosen = torch.as_tensor(rows, device=keys.device)
        self.keys[chosen, :, : keys.shape[2]] = keys
        self.values[chosen, :, : keys.shape[2]] = values
        self.clear(chosen, keys.shape[2])

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another."""
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]
        self.clear(target, length)

    def clear(self, rows: Tensor | int, start: int) -> None:
        """Forget what an earlier row left from slot `start` on: hidden, but 0 times NaN is NaN."""
        if self.keys is not None and self.values is not None:
            self.keys[rows, :, start:] = 0
            self.values[rows, :, start:] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.slots, 0

    def get_seq_length(self) -> int:
        return self.window.slots

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """All layers of a batch of rows."""

    def __init__(self, batch: int) -> None:
        self.window = RowWindow()
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(self.window, batch))  # type: ignore[arg-type]

    def fill(self, rows: Sequence[int], prompt: Cache) -> None:
        """Give several rows the same prefilled prompt."""
        length = prompt.layers[0].keys.shape[2]  # type: ignore[union-attr]
        self.window.slots = max(self.window.slots, -(-(length + 1) // SLOT_TILE) * SLOT_TILE)
        while len(self.layers) < len(prompt.layers):
            self.layers.append(self.layer_class_to_replicate())  # type: ignore[misc]
        for layer, filled in zip(self.layers, prompt.layers, strict=True):
            layer.fill(rows, filled.keys, filled.values)  # type: ignore[union-attr]

    def clear(self, rows: Sequence[int]) -> None:
        """Empty several rows."""
        for layer in self.layers:
            layer.clear(torch.as_tensor(rows), 0)  # type: ignore[union-attr]

    def move(self, source: int, target: int, length: int) -> None:
        """Move a row of `length` positions to another slot of the batch."""
        for layer in self.layers:
            layer.move(source, target, length)  # type: ignore[union-attr]


def check_layer_kinds(config: Any) -> None:
    """Refuse layers that the masks and the cache are not made for.

    Raises:
        UserError: a kind of layer that is neither full nor sliding-window attention.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    strange = set(kinds) - {"full_attention", "sliding_attention"}
    if strange:
        raise UserError(
            f"{text.model_type} has {', '.join(sorted(strange))} layers; softeval decodes "
            "full and sliding-window attention only"
        )


class Visibility:
    """Attention masks for rows at their own positions, for every kind of layer of a model.

    Raises:
        UserError: the model has layers that are neither full nor sliding-window attention.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._window: int | None = getattr(config, "sliding_window", None)
        self._kinds: list[str] | None = None
        kinds = getattr(config, "layer_types", None)
        if kinds is not None:
            self._kinds = sorted(set(kinds) | {"full_attention"})
        check_layer_kinds(config)
        self._additive = config._attn_implementation != "sdpa"
        self._dtype = model.dtype

    def masks(self, positions_NQ: Tensor, slots: int) -> Tensor | dict[str, Tensor]:
        """Masks (N, 1, Q, slots) for queries at `positions_NQ`, in the form the model takes."""
        slot_S = torch.arange(slots, device=positions_NQ.device)
        query = positions_NQ[:, None, :, None]
        seen = slot_S <= query
        if self._kinds is None:  # one kind of layer: a plain mask, sliding where the config says so
            return self._form(self._slide(seen, slot_S, query))
        forms = {"full_attention": seen, "sliding_attention": self._slide(seen, slot_S, query)}
        return {kind: self._form(forms[kind]) for kind in self._kinds}

    def _slide(self, seen: Tensor, slot_S: Tensor, query: Tensor) -> Tensor:
        return seen if self._window is None else seen & (slot_S > query - self._window)

    def _form(self, seen: Tensor) -> Tensor:
        if not self._additive:
            return seen
        hidden = torch.finfo(self._dtype).min
        return torch.zeros_like(seen, dtype=self._dtype).masked_fill_(~seen, hidden)
