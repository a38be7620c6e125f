"""LongRoPE (Ding et al. 2024, arXiv 2402.13753, section 3.3): each row by its own length.

A sequence longer than the pretraining length takes another set of rotary factors than a shorter one,
for all its positions. transformers chooses by the longest row of the batch; here every row chooses
by its own, so that no row depends on its neighbours.

Shapes: N rows, Q positions of a pass, R rotary width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softeval.errors import UserError


def long_rope_limit(config: Any) -> int | None:
    """Longest sequence that takes the short factors; None where a model has one set only.

    Raises:
        UserError: kinds of layers that change at different lengths.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    limits = {
        int(p["original_max_position_embeddings"])
        for p in nested
        if p.get("rope_type") == "longrope"
    }
    if len(limits) > 1:
        raise UserError(f"{config.model_type}: LongRoPE with several limits is not supported")
    return limits.pop() if limits else None


class RowFactors:
    """A rotary module's `forward` that chooses the factors row by row.

    Attributes:
        limit: longest sequence that takes the short factors.
        long: take the long ones whatever the positions: the row will be longer.
    """

    def __init__(self, forward: Any, limit: int) -> None:
        self.forward = forward
        self.limit = limit
        self.long = False

    def __call__(
        self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """(N, Q, R) cosines and sines."""
        long_N11 = (position_ids.amax(-1) >= self.limit)[:, None, None] | self.long
        short = self.forward(x, position_ids.clamp(max=self.limit - 1), *args, **kwargs)
        # One row beyond the limit asks for the long factors, and is dropped.
        beyond = torch.full_like(position_ids[:1], self.limit)
        long = self.forward(x, torch.cat([position_ids, beyond]), *args, **kwargs)
        return tuple(torch.where(long_N11, b[:-1], a) for a, b in zip(short, long, strict=True))


def choose_factors_by_row(model: nn.Module) -> None:
    """Let every row of a batch take the factors of its own length; once a model.

    Raises:
        UserError: LongRoPE that is computed in a way not known here.
    """
    limit = long_rope_limit(model.config)
    if limit is None:
        return
    rotary = [m for m in model.modules() if hasattr(m, "rope_type") and hasattr(m, "inv_freq")]
    if not rotary:
        raise UserError(f"{type(model).__name__}: its LongRoPE is computed in an unknown way")
    for module in rotary:
        if not isinstance(module.forward, RowFactors):
            module.forward = RowFactors(module.forward, limit)


@contextmanager
def long_factors(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within, passes take the long factors even for positions below the limit."""
    found = [m.forward for m in model.modules() if isinstance(m.forward, RowFactors)]
    for factors in found:
        factors.long = wanted
    try:
        yield
    finally:
        for factors in found:
            factors.long = False
