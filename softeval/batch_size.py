"""How many rows fit: an estimate from free memory and the size of one row's keys and values."""

from __future__ import annotations

from typing import Any

import torch

_MOST = {"cpu": 128, "cuda": 512}
_SHARE = 0.5
"""Share of free memory given to keys and values; logits, activations and growth take the rest."""


def auto_batch_size(model: Any, length: int) -> int:
    """Rows whose keys and values of `length` positions fit in half of the free memory.

    Capped where more rows stop helping: 128 on a CPU, 512 on a GPU. The result of a sample does
    not depend on it.
    """
    fit = int(_SHARE * _free_bytes(model.device)) // max(1, row_bytes(model, length))
    return max(1, min(fit, _MOST.get(model.device.type, 64)))


def row_bytes(model: Any, length: int) -> int:
    """Bytes of keys and values of one row of `length` positions, and of its logits in float32."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    element = torch.finfo(model.dtype).bits // 8
    cache = 2 * config.num_hidden_layers * kv_heads * width * length * element
    return cache + 6 * 4 * config.vocab_size


def _free_bytes(device: torch.device) -> int:
    """Bytes to be had: on CUDA also what torch's allocator holds and no tensor uses."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    import psutil

    return psutil.virtual_memory().available
