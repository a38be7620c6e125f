"""Low-rank adapters: put into a model, switched off for the reference, merged for export.

peft's layers are injected in place, so that the model stays an ordinary transformers model for the
decoder and the trainer. Embeddings and head never get one: their plain matrices are needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softeval.errors import UserError
from softeval.trainers.config import TrainConfig

_NAME = "default"
_BASE_LAYER = re.compile(r"\.base_layer\b")


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
        self._config = lora
        self._layers = dict(_tuner_layers(model))
        plain = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(layer in self._layers.values() for layer in plain):
            raise UserError("--lora-target-modules: embeddings and head cannot get an adapter")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self._try_merging()

    def _try_merging(self) -> None:
        """Find out now, not after hours, whether these layers can be exported."""
        try:
            with self.merged():
                pass
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--lora: adapters of this architecture cannot be merged ({reason}); name plain linear "
                "layers by --lora-target-modules"
            ) from error

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before training."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    @contextmanager
    def merged(self) -> Iterator[dict[str, Tensor]]:
        """The model with the adapters added to its weights and rounded to their precision.

        This is what is exported, so it is also what is validated. Gives the state of an ordinary
        model; afterwards the weights are what they were, to the bit.
        """
        kept: list[tuple[Tensor, Tensor]] = []
        with self.disabled(), torch.no_grad():
            try:
                for layer in self._layers.values():
                    weight = _adapted(layer)
                    kept.append((weight, weight.data))
                    delta = layer.get_delta_weight(_NAME).float()
                    weight.data = (weight.float() + delta).to(weight.dtype)
                yield {
                    _BASE_LAYER.sub("", name): tensor
                    for name, tensor in self._model.state_dict().items()
                    if ".lora_" not in name
                }
            finally:
                for weight, before in reversed(kept):
                    weight.data = before

    def save(self, folder: Path, base: str) -> None:
        """Write the adapters as peft reads them: adapter_config.json, adapter_model.safetensors.

        Args:
            folder: an own one, since transformers would add an adapter that lies beside a model to it.
            base: name of the model they are for.
        """
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir()
        state = get_peft_model_state_dict(self._model, adapter_name=_NAME)
        named = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in state.items()}
        save_file(named, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = replace(self._config, base_model_name_or_path=base, inference_mode=True)
        config.save_pretrained(str(folder))

    def _switch(self, enabled: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(enabled)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("lora_" in name)


def _adapted(layer: Any) -> Tensor:
    """The weight that a layer's adapter is for; one of several, in experts that are fused."""
    named = getattr(layer, "parameter_name", None)
    base = layer.get_base_layer()
    return base.weight if named is None else getattr(base, named)


def _tuner_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module
