"""Reads a checkpoint's weights: the model itself, the language model of a multimodal one, or adapters.

A multimodal checkpoint is loaded as what it is, so that transformers finds every weight under its
name, and its language model is then given the class of a text-only one; images and sound go. A PEFT
adapter is merged into its base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from softeval.errors import UserError
from softeval.model.checkpoint import first_line, one_line

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint


def load_weights(checkpoint: Checkpoint, dtype: str | torch.dtype, device: torch.device) -> Any:
    """The transformers model, in evaluation mode.

    Args:
        checkpoint: what is loaded.
        dtype: of the weights; "auto" is the checkpoint's own.
        device: where to; a device map goes before it. On CUDA each tensor is read straight there.

    Raises:
        UserError: weights that are not there, not whole, or do not fit the device.
    """
    try:
        model = _read(checkpoint, dtype, device)
        if checkpoint.whole is not None:
            model = _language_model(model)
        if checkpoint.adapter is not None:
            model = _merged(model, checkpoint.path)
        return (model if checkpoint.device_map else model.to(device)).eval()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{checkpoint.path} does not fit {device} ({first_line(error)}); try --dtype bfloat16"
        ) from None


def _read(checkpoint: Checkpoint, dtype: str | torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole, base = checkpoint.whole, checkpoint.base
    reader = AutoModelForCausalLM if whole is None else AutoModelForImageTextToText
    place = checkpoint.device_map or ({"": device} if device.type == "cuda" else None)
    with one_line(f"the weights of {base!r}"):
        model, info = reader.from_pretrained(  # type: ignore[misc]
            base,
            config=checkpoint.config if whole is None else whole,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            device_map=place,
            **checkpoint.options,
        )
    if info["missing_keys"]:  # transformers would fill them with random numbers
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{base} lacks weights ({some}); give a complete checkpoint")
    return model


def _language_model(whole: Any) -> Any:
    """A text-only model around the language model and the head of a multimodal one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text, head = whole.get_decoder(), whole.get_output_embeddings()
    text_only: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text.config)]
    if isinstance(text, text_only):  # Llama 4 holds a whole language model
        text.generation_config = whole.generation_config
        return text
    with torch.device("meta"):
        model = text_only(text.config)
    place = next(name for name, part in model.named_children() if type(part) is type(text))
    setattr(model, place, text)
    model.set_output_embeddings(head)
    model.generation_config = whole.generation_config
    return model


def _merged(model: nn.Module, path: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise UserError(
            f"{path} is an adapter, for which peft is needed: pip install peft"
        ) from None
    with one_line(f"the adapter {path!r}"):
        return PeftModel.from_pretrained(model, path).merge_and_unload()  # type: ignore[operator, arg-type]
