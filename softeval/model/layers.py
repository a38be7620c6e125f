"""What a layer remembers of a batch of rows: one class for each kind of layer.

Attention keeps keys and values, a slot a position. Recurrent layers (linear attention, state spaces,
short convolutions) keep a state of fixed size a row. Some layers keep both, and some nothing: an
MLP, or one that shares the keys of an earlier layer. The first dimension of every tensor is the
row. Which kind a layer is, is asked of transformers' own mapping.

Shapes: B rows, N rows in use, H key-value heads, S slots, P prompt length.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

from softeval.errors import UserError

SLOT_TILE = 64
"""Visible slots are rounded up to this, so that vectorised sums group the same way in any batch."""

ROW_TILE = 16
"""Rows of a forward pass are rounded up to a multiple of this. Measured: from 16 rows on, a row of a
float32 matrix product has the same bits whatever the number of rows; below, it has not."""


def tiled(rows: int) -> int:
    """The number of rows that a pass over `rows` rows really has."""
    return -(-rows // ROW_TILE) * ROW_TILE


def promises_bits(model: Any) -> bool:
    """Whether a row has the same bits in any batch: in float32 on a CPU."""
    return model.device.type == "cpu" and model.dtype in (torch.float32, torch.float64)


class RowWindow:
    """Which rows the next forward pass writes to, at which positions; shared by all layers."""

    def __init__(self, fewest: int) -> None:
        self.rows = 0
        self.slots = 0
        self.fewest = fewest
        self.positions_N: Tensor = torch.empty(0, dtype=torch.long)

    def point(self, positions_N: Tensor, slots: int) -> None:
        """Aim the next pass at rows 0…N-1, whose new token stands at `positions_N` below `slots`."""
        self.rows = len(positions_N)
        self.slots = slots
        self.positions_N = positions_N


def rounded_slots(positions: int, tile: int = SLOT_TILE) -> int:
    """Slots that are visible where no row has more than so many positions."""
    return -(-positions // tile) * tile


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: (B, H, S, head width)."""

    def __init__(self, window: RowWindow, batch: int) -> None:
        super().__init__()
        self.window = window
        self.batch = batch

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate as the first keys and values come by. Zeros: hidden slots must be finite."""
        slots = max(self.window.slots, self.window.fewest)
        self.keys, self.values = (self._room(part, slots) for part in (key_states, value_states))
        self.is_initialized = True

    def _room(self, like: Tensor, slots: int) -> Tensor:
        """(B, H, slots, head width); where it stays, a slot's heads side by side (`slot_attention`)."""
        heads, width = like.shape[1], like.shape[-1]
        if self.window.fewest:
            return like.new_zeros(self.batch, slots, heads, width).transpose(1, 2)
        return like.new_zeros(self.batch, heads, slots, width)

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
        places = window.positions_N.to(key_states.device)  # layers may be spread over devices
        self.keys[rows, :, places] = key_states[:, :, 0]
        self.values[rows, :, places] = value_states[:, :, 0]
        seen = (slice(window.rows), slice(None), slice(window.slots))
        return self.keys[seen], self.values[seen]

    def fill(self, rows: Sequence[int], prompt: Any) -> None:
        """Copy a prompt's keys and values (1, H, P, head width) into several rows."""
        keys, values = prompt.keys, prompt.values
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.grow(keys.shape[2])
        assert self.keys is not None and self.values is not None
        chosen = torch.as_tensor(rows, device=keys.device)
        self.keys[chosen, :, : keys.shape[2]] = keys
        self.values[chosen, :, : keys.shape[2]] = values
        self._hide(chosen, keys.shape[2])

    def aim(self) -> None:
        """Before a pass; `update` reads the window itself."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another."""
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]
        self._hide(target, length)

    def clear(self, rows: Sequence[int]) -> None:
        """Empty several rows."""
        self._hide(torch.as_tensor(rows), 0)

    def _hide(self, rows: Tensor | int, start: int) -> None:
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


class StateLayer(LinearAttentionLayer):
    """Convolution and recurrent states of one layer: (B, …). A pass changes those of rows 0…N-1."""

    def __init__(self, window: RowWindow, batch: int, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self.window = window
        self.batch = batch
        self._states: dict[tuple[str, int], Tensor] = {}

    @property
    def is_allocated(self) -> bool:
        """Whether a prompt has told which states there are, and how large."""
        return bool(self._states)

    def fill(self, rows: Sequence[int], prompt: Any) -> None:
        """Copy a prompt's states (1, …) into several rows."""
        for index in range(self.number_of_states):
            for name in ("conv_states", "recurrent_states"):
                state = getattr(prompt, name)[index]
                if state is not None:
                    self._of_all_rows(name, index, state)[torch.as_tensor(rows)] = state
            self.conv_kernel_size[index] = prompt.conv_kernel_size[index]
            # Always: zeros are what comes before a first token, and every row takes the same path.
            self.has_previous_state[index] = True

    def _of_all_rows(self, name: str, index: int, like: Tensor) -> Tensor:
        if (name, index) not in self._states:
            self._states[name, index] = like.new_zeros(self.batch, *like.shape[1:])
            getattr(self, f"is_{name}_initialized")[index] = True
        return self._states[name, index]

    def aim(self) -> None:
        """Show the next pass the states of the rows in use."""
        for (name, index), state in self._states.items():
            getattr(self, name)[index] = state[: self.window.rows]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the states of one row to another."""
        for state in self._states.values():
            state[target] = state[source]

    def clear(self, rows: Sequence[int]) -> None:
        """Let several rows begin before their first token."""
        for state in self._states.values():
            state[torch.as_tensor(rows)] = 0


class SlotAndStateLayer(SlotLayer, StateLayer):
    """Attention and a recurrence side by side in one layer."""

    def __init__(self, window: RowWindow, batch: int, number_of_states: int = 1) -> None:
        SlotLayer.__init__(self, window, batch)
        StateLayer.__init__(self, window, batch, number_of_states)

    def fill(self, rows: Sequence[int], prompt: Any) -> None:
        SlotLayer.fill(self, rows, prompt)
        StateLayer.fill(self, rows, prompt)

    def aim(self) -> None:
        StateLayer.aim(self)

    def move(self, source: int, target: int, length: int) -> None:
        SlotLayer.move(self, source, target, length)
        StateLayer.move(self, source, target, length)

    def clear(self, rows: Sequence[int]) -> None:
        SlotLayer.clear(self, rows)
        StateLayer.clear(self, rows)


class EmptyLayer(DummyLayer):
    """A layer that remembers nothing."""

    def __init__(self, window: RowWindow, batch: int) -> None:
        super().__init__()

    def fill(self, rows: Sequence[int], prompt: Any) -> None: ...
    def aim(self) -> None: ...
    def move(self, source: int, target: int, length: int) -> None: ...
    def clear(self, rows: Sequence[int]) -> None: ...


RowLayer = SlotLayer | StateLayer | EmptyLayer

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
_KINDS: dict[str, tuple[type, type]] = {
    # Windows keep every position, too, and the masks hide what is past. A ring of slots would change
    # in which order a row is summed, so its bits, for rows longer than a window: few are (docs/log.md).
    **dict.fromkeys(_ATTENTION, (SlotLayer, DynamicLayer)),
    **dict.fromkeys(["conv", "linear_attention"], (StateLayer, LinearAttentionLayer)),
    "hybrid": (SlotAndStateLayer, LinearAttentionAndFullAttentionLayer),
    "dummy": (EmptyLayer, DummyLayer),
}
"""For a kind of layer: what it keeps of a batch of rows, and of a prompt that is prefilled."""


def _layers(config: Any) -> list[tuple[str, dict[str, int]]]:
    """Kind of each layer, and how many states it has where that is not one.

    Empty where a configuration names no kinds: then all is attention, and layers of the cache are
    added as they come.
    """
    text = config.get_text_config()
    if getattr(text, "layer_types", None) is None:
        return []
    kinds, arguments = get_layer_types_and_kwargs(text)
    counts = [{k: v for k, v in given.items() if k == "number_of_states"} for given in arguments]
    return list(zip(kinds, counts, strict=True))


def check_layer_kinds(config: Any) -> None:
    """Refuse layers that the masks and the cache are not made for.

    Raises:
        UserError: a kind of layer that is not known here.
    """
    strange = {kind for kind, _ in _layers(config)} - set(_KINDS)
    if strange:
        raise UserError(
            f"{config.get_text_config().model_type} has {', '.join(sorted(strange))} layers; softeval"
            f" decodes {', '.join(_KINDS)} only"
        )


def memory_argument(model: Any) -> str | None:
    """Name under which `forward` of a model or its class takes a memory of ours; None if it does not.

    "past_key_values", or "cache_params" where there is nothing but a recurrence (Mamba).
    """
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in takes), None)


def has_attention(config: Any) -> bool:
    """Whether any layer looks back at the positions before."""
    return not {kind for kind, _ in _layers(config)} or any(
        issubclass(_KINDS[kind][0], SlotLayer) for kind, _ in _layers(config)
    )


def has_states(config: Any) -> bool:
    """Whether any layer is a recurrence, which a pass moves on whether its row goes on or waits."""
    return any(issubclass(_KINDS[kind][0], StateLayer) for kind, _ in _layers(config))


def scans_from_zero(model: Any) -> bool:
    """Whether a recurrence goes on from its state by single positions only (Mamba's first form).

    transformers scans several positions of it as if nothing had come before.
    """
    return any(hasattr(m, "x_proj") or hasattr(m, "x_proj_weight") for m in model.modules())


def row_layers(config: Any, window: RowWindow, batch: int) -> list[RowLayer]:
    """A layer of each kind for a batch of rows."""
    return [_KINDS[kind][0](window, batch, **count) for kind, count in _layers(config)]


def prompt_cache(config: Any) -> DynamicCache:
    """An empty cache for one prompt, which keeps every position of every attention layer."""
    cache = DynamicCache()
    cache.layers = [_KINDS[kind][1](**count) for kind, count in _layers(config)]
    return cache


def cut(cache: DynamicCache, row: int, length: int) -> DynamicCache:
    """One row's first positions of the keys and values of several prompts, sharing their memory."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in own.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            layer.keys = layer.keys[row : row + 1, :, :length]
            layer.values = layer.values[row : row + 1, :, :length]
    return own
