"""One and the same model in rollout and training pass: nothing is dropped, jittered or skipped.

A rollout is scored by a second pass over what was fed. Dropout in that pass alone would score another
model than the one that sampled, and no loss would show it. So the model stays in evaluation mode all
the time, also where activations are computed again in the backward pass: transformers' own gradient
checkpointing wants training mode, so its layers are wrapped here instead.

Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import last_hidden


def disable_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and layer drop to zero, under whatever name.

    Router jitter is left to evaluation mode: Phi-MoE's is also a threshold that decoding needs.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def recompute_activations(model: nn.Module) -> None:
    """Gradient checkpointing: keep each layer's input only, and compute the rest again.

    Raises:
        UserError: the architecture has no layers that transformers would recompute.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient-checkpointing: {type(model).__name__} has no layers that can be computed "
            "again; leave it out"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def check_training_pass(lm: LanguageModel) -> None:
    """Compare the hidden states of a training pass with those of decoding, twice.

    Raises:
        UserError: they differ, so something random, or another computation, is left in the pass.
    """
    ids = torch.arange(min(16, lm.vocab), device=lm.device)[None]
    inputs = lm.embedding.rows(ids).detach()
    with torch.no_grad():
        expected = last_hidden(lm.model, inputs).float()
    tolerance = 2e-2 if torch.finfo(lm.dtype).bits < 32 else 1e-4
    for _ in range(2):
        with torch.enable_grad():
            found = last_hidden(lm.model, inputs).detach().float()
        gap = float((found - expected).abs().max() / expected.abs().max())
        if not gap <= tolerance:
            raise UserError(
                f"{type(lm.model).__name__}: hidden states of a training pass differ from those of "
                f"decoding by {gap:.1g} of the largest; dropout, layer drop or router noise is still "
                "on in it; take another architecture"
            )


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # Nothing is random in evaluation mode, so no generator need be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return run
