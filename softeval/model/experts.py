"""Mixture-of-experts layers on a CPU: the rows of each expert are rounded up to a tile, too.

An expert sees those rows of a batch that its router sends there, so a tile of rows in the batch
(`feeding`) still is a handful in an expert, and its products round by how many there are.

Shapes: N tokens, K experts a token, E experts, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softeval.model.feeding import ROW_TILE

TILED = "softeval_tiled"
"""Name among transformers' implementations of experts."""


def tile_experts(model: Any) -> None:
    """Give a float32 model on a CPU experts whose rows have the same bits in any batch.

    Only those that transformers dispatches to an implementation; others stay as they are.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.float64):
        return
    experts = [m for m in model.modules() if hasattr(m, "_is_expert_parallel")]
    if experts:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(TILED, _tiled_forward)
    for module in experts:
        module.config._experts_implementation_internal = TILED


def _tiled_forward(module: Any, hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """(N, D) weighted sum of each token's experts; tokens of weight zero fill the tiles."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    tokens, chosen = index_NK.shape
    index_S = index_NK.reshape(-1)
    counts_E = torch.bincount(index_S, minlength=module.num_experts)
    filling_F = torch.arange(len(counts_E)).repeat_interleave(-counts_E % ROW_TILE)
    each_SD = hidden_ND.repeat_interleave(chosen, 0)
    found_SD = grouped_mm_experts_forward(
        module,
        torch.cat([each_SD, each_SD.new_zeros(len(filling_F), each_SD.shape[1])]),
        torch.cat([index_S, filling_F])[:, None],
        torch.cat([weight_NK.reshape(-1), weight_NK.new_zeros(len(filling_F))])[:, None],
    )
    return found_SD[: len(index_S)].view(tokens, chosen, -1).sum(1)
