"""What is changed in a loaded model so that rows stay independent and every way of feeding agrees.

- LongRoPE (Ding et al. 2024, arXiv 2402.13753, section 3.3): a sequence longer than the pretraining
  length takes another set of rotary factors than a shorter one, for all its positions. transformers
  chooses by the longest row of the batch; here every row chooses by its own.
- Per-layer embeddings (`embedding`): taken from the vector that is fed.
- Mixture-of-experts layers on a CPU: the rows of each expert are rounded up to a tile, too. An expert
  sees those rows of a batch that its router sends there, so a tile of rows in the batch (`feeding`)
  still is a handful in an expert, and its products round by how many there are.
- GPT-Neo's causal bands follow the rows' own positions (`KeyCountBands`).
- Mamba 2's time steps are bounded also in a step of one token. transformers bounds them in a pass
  over a sequence alone, so that a decoded token would come from another model than a plain pass.

Shapes: B rows of a batch, N rows or tokens, L LongRoPE's limit, P prompt length, S slots, Q positions of a pass, R rotary width, K experts a token, E experts, D width,
H heads of a state space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from softeval.errors import UserError
from softeval.model.embedding import take_per_layer_vectors
from softeval.model.layers import ROW_TILE, promises_bits

_TILED = "softeval_tiled"
"""Name among transformers' implementations of experts."""


def mend(model: nn.Module) -> None:
    """Make all these changes; a second time changes nothing.

    Raises:
        UserError: a model in which one of them cannot be made.
    """
    _choose_factors_by_row(model)
    _tile_experts(model)
    take_per_layer_vectors(model)
    _bound_time_steps(model)


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
        """(N, Q, R) cosines and sines, on the device where the module makes them."""
        short = self.forward(x, position_ids.clamp(max=self.limit - 1), *args, **kwargs)
        # One row beyond the limit asks for the long factors, and is dropped.
        beyond = torch.full_like(position_ids[:1], self.limit)
        long = self.forward(x, torch.cat([position_ids, beyond]), *args, **kwargs)
        long_N = (position_ids.amax(-1) >= self.limit).to(long[0].device) | self.long
        long_N11 = long_N[:, None, None]
        return tuple(torch.where(long_N11, b[:-1], a) for a, b in zip(short, long, strict=True))


def _choose_factors_by_row(model: nn.Module) -> None:
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


def _bound_time_steps(model: nn.Module) -> None:
    """Keep Mamba 2's time steps, softplus(Δ + bias), in their bounds before they are computed."""
    for mixer in model.modules():
        low, high = getattr(mixer, "time_step_limit", None) or (0.0, math.inf)
        scaled = hasattr(mixer, "mup_vector")  # Falcon-H1 multiplies Δ behind the projection
        if (low > 0 or high < math.inf) and not scaled and not _is_bounded(mixer):
            bounded = partial(_bounded, mixer, _inverse_softplus(low), _inverse_softplus(high))
            mixer.in_proj.register_forward_hook(bounded)  # type: ignore[union-attr]


def _is_bounded(mixer: Any) -> bool:
    hooks = mixer.in_proj._forward_hooks.values()
    return any(getattr(hook, "func", None) is _bounded for hook in hooks)


def _bounded(
    mixer: Any, low: float, high: float, _: nn.Module, __: Any, projected: Tensor
) -> Tensor:
    """A projection whose last columns, Δ of each head, are in bounds."""
    bias_H = mixer.dt_bias.to(projected.dtype)
    rest, delta_H = projected.split([projected.shape[-1] - len(bias_H), len(bias_H)], -1)
    return torch.cat([rest, delta_H.clamp(low - bias_H, high - bias_H)], -1)


def _inverse_softplus(value: float) -> float:
    if value <= 0:
        return -math.inf
    return value + math.log(-math.expm1(-value)) if value < math.inf else math.inf


def _tile_experts(model: Any) -> None:
    """Give a float32 model on a CPU experts whose rows have the same bits in any batch.

    Only those that transformers dispatches to an implementation; others stay as they are.
    """
    if not promises_bits(model):
        return
    experts = [m for m in model.modules() if hasattr(m, "_is_expert_parallel")]
    if experts:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(_TILED, _tiled_forward)
    for module in experts:
        module.config._experts_implementation_internal = _TILED


def _tiled_forward(module: Any, hidden_ND: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """(N, D) weighted sum of each token's experts; tokens of weight zero fill the tiles."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    tokens, chosen = index_NK.shape
    index_S = index_NK.reshape(-1)
    counts_E = torch.bincount(index_S, minlength=module.num_experts)
    filling_F = torch.repeat_interleave(-counts_E % ROW_TILE)
    each_SD = hidden_ND.repeat_interleave(chosen, 0)
    found_SD = grouped_mm_experts_forward(
        module,
        torch.cat([each_SD, each_SD.new_zeros(len(filling_F), each_SD.shape[1])]),
        torch.cat([index_S, filling_F])[:, None],
        torch.cat([weight_NK.reshape(-1), weight_NK.new_zeros(len(filling_F))])[:, None],
    )
    return found_SD[: len(index_S)].view(tokens, chosen, -1).sum(1)


class LongRopeCrossing:
    """What rows were fed below LongRoPE's limit, to run it again once they are longer.

    A sequence beyond the limit takes other factors at all its positions, so the keys that a row has
    stored by then are those of another sequence.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self.limit = limit
        self._batch = batch
        self._fed_BLD: Tensor | None = None
        self._short = [False] * batch

    def begin(self, rows: Sequence[int], inputs_PD: Tensor) -> None:
        """Rows start from a prompt."""
        if self._fed_BLD is None:
            self._fed_BLD = inputs_PD.new_zeros(self._batch, self.limit, inputs_PD.shape[1])
        for row in rows:
            self._short[row] = len(inputs_PD) < self.limit
            if self._short[row]:
                self._fed_BLD[row, : len(inputs_PD)] = inputs_PD

    def due(self, fed_ND: Tensor, positions_N: Tensor) -> list[int]:
        """Keep what is fed below the limit; the rows that cross it now."""
        positions = positions_N[: self._batch].tolist()
        below = [i for i, p in enumerate(positions) if self._short[i] and p < self.limit]
        if below:
            assert self._fed_BLD is not None
            rows = torch.tensor(below, device=fed_ND.device)
            at = torch.tensor([positions[i] for i in below], device=fed_ND.device)
            self._fed_BLD[rows, at] = fed_ND[rows]
        return [i for i, p in enumerate(positions) if self._short[i] and p >= self.limit]

    def cross(self, row: int) -> Tensor:
        """(limit, D) all that the row was fed; from now on it is a long one."""
        assert self._fed_BLD is not None
        self._short[row] = False
        return self._fed_BLD[row]

    def move(self, source: int, target: int) -> None:
        assert self._fed_BLD is not None
        self._fed_BLD[target] = self._fed_BLD[source]
        self._short[target] = self._short[source]


class KeyCountBands:
    """GPT-Neo's attention takes its causal band from the number of keys; here that is a rounded one.

    Within `at` its layers see bands (N, 1, ·, S) that follow from the rows' own positions.
    """

    def __init__(self, model: Any) -> None:
        self._layers = [m for m in model.modules() if hasattr(m, "attention_type") and _is_band(m)]
        self._window: int = getattr(model.config.get_text_config(), "window_size", 0)

    @contextmanager
    def at(self, positions_N: Tensor, slots: int) -> Iterator[None]:
        own = [layer.bias for layer in self._layers]
        if own:
            slot_S = torch.arange(slots, device=positions_N.device)
            query = positions_N[:, None, None, None]
            seen = slot_S <= query
            local = seen & (slot_S > query - self._window)
            for layer, bias in zip(self._layers, own, strict=True):  # each on its layer's device
                band = local if layer.attention_type == "local" else seen
                layer.bias = band.to(bias.device).expand(-1, 1, slots, slots)
        try:
            yield
        finally:
            for layer, bias in zip(self._layers, own, strict=True):
                layer.bias = bias


def _is_band(module: Any) -> bool:
    bias = getattr(module, "bias", None)
    return isinstance(bias, Tensor) and bias.ndim == 4
