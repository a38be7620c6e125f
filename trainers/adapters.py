"""Low-rank adapters: put into a model, switched off for the reference, merged for export.

peft's layers are injected in place, so that the model stays an ordinary transformers model for the
decoder and the trainer. Embeddings and head never get one: their plain matrices are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from softeval.errors import UserError
from softeval.trainers.config import TrainConfig

_NAME = "default"


class Adapters:
    """The adapters of one model.

    Args:
        model: gets the adapters; everything else in it is frozen.
        config: rank, scale and target modules.

    Raises:
        UserError: peft is missing, or no module fits.
    """

    def __init__(self, model: Any, config: TrainConfig) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise UserError("--lora needs peft: pip install 'softeval[lora]'") from None
        targets = list(config.lora_target_modules)
        torch.manual_seed(config.seed)  # the adapters' first values are drawn
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            task_type="CAUSAL_LM",
        )
        try:
            inject_adapter_in_model(lora, model, adapter_name=_NAME)
        except ValueError as error:
            raise UserError(f"--lora-target-modules: {str(error).splitlines()[0]}") from error
        self._model = model
        self._layers = dict(_tuner_layers(model))
        plain = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(layer in self._layers.values() for layer in plain):
            raise UserError("--lora-target-modules: embeddings and head cannot get an adapter")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before training."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    @torch.no_grad()
    def merged_state(self) -> dict[str, Tensor]:
        """State of an ordinary model with the adapters added to its weights."""
        state = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self._model.state_dict().items()
            if ".lora_" not in name
        }
        for name, layer in self._layers.items():
            weight = layer.base_layer.weight
            delta = layer.get_delta_weight(_NAME)
            state[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
        return state

    def _switch(self, enabled: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(enabled)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("lora_" in name)


def _tuner_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module
