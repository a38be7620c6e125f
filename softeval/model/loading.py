"""Reads a checkpoint's weights: the model itself, the language model of a multimodal one, or adapters.

A multimodal checkpoint is loaded as what it is, so that transformers finds every weight under its
name, and its language model is then given the class of a text-only one; images and sound go. A PEFT
adapter is merged into its base.
"""

from __future__ import annotations

import re
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
        if checkpoint.adapter is not None:
            model = _merged(_named_by_adapter(model, checkpoint), checkpoint.path)
        if isinstance(model.config, type(checkpoint.whole)):
            model = _language_model(model)
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


def _named_by_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    """What an adapter was trained on: the whole of a multimodal model, or its language model alone."""
    if checkpoint.whole is None:
        return model
    with one_line(f"the adapter {checkpoint.path!r}"):
        keys = _peft().load_peft_weights(checkpoint.path, "cpu")
    owners = (re.split(r"\.(?:lora_|base_layer|weight$)", key)[0] for key in keys)
    named = {owner.removeprefix("base_model.model.") for owner in owners}
    text = _language_model(model)
    return text if named <= {name for name, _ in text.named_modules()} else model


def _merged(model: Any, path: str) -> Any:
    """A model with an adapter added to its weights.

    Raises:
        UserError: no peft, an adapter that is no change of weights, or weights of another base.
    """
    peft = _peft()
    with one_line(f"the adapter {path!r}"):
        tuned = peft.PeftModel.from_pretrained(model, path)
        if not hasattr(tuned.base_model, "merge_and_unload"):
            kind = tuned.peft_config["default"].peft_type.value
            raise UserError(f"the adapter {path} is of kind {kind}, which cannot be merged")
        _check_whole(tuned, path)
        _untie(tuned.base_model.model)
        merged = tuned.merge_and_unload()
        if not _share_a_table(merged):  # nor may they when they are saved
            for config in (merged.config, merged.config.get_text_config()):
                config.tie_word_embeddings = False
        return merged


def _check_whole(tuned: Any, path: str) -> None:
    """Refuse an adapter file that is not of this base: peft warns, and leaves the base as it is."""
    peft = _peft()
    found = peft.set_peft_model_state_dict(tuned, peft.load_peft_weights(path, "cpu"))
    tensors = tuned.state_dict()
    read = {tensors[name].data_ptr() for name in tensors.keys() - {*found.missing_keys}}
    lacking = [
        name
        for name in found.missing_keys  # those of the base are not the adapter's; some are shared
        if "default" in name.split(".") and tensors[name].data_ptr() not in read
    ]
    for name in (*found.unexpected_keys, *lacking):
        raise UserError(
            f"the adapter {path} and its base name different weights, {name} among them; give the"
            " base that it was trained on, and its whole file"
        )


def _untie(adapted: Any) -> None:
    """Give the head a table of its own where it shares the embedding's and an adapter changes either.

    Merged into the table of both, what was learned for one of them would change the other.
    """
    head, embedding = adapted.get_output_embeddings(), adapted.get_input_embeddings()
    changed = hasattr(head, "base_layer") or hasattr(embedding, "base_layer")
    if changed and _share_a_table(adapted):
        table = getattr(head, "base_layer", head)
        table.weight = nn.Parameter(table.weight.detach().clone())


def _share_a_table(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head.weight.data_ptr() == embedding.weight.data_ptr()


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("an adapter's weights are read by peft: pip install peft") from None
    return peft
