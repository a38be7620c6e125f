"""How many rows fit: from free memory and the measured size of one row's keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from softeval.model.layers import memory_argument, prompt_cache

_MOST = {"cpu": 128, "cuda": 512}
_SHARE = 0.5
"""Share of free memory given to keys and values; logits, activations and growth take the rest."""
_MEASURED = 4
"""Positions of the row whose keys and values are measured."""


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
