"""lm-eval's model arguments: what they say of mode and samples, and the checkpoint that they name.

lm-eval hands all model arguments to every task as metadata, too, so ``num_samples=32`` among them
reaches both. It passes on what it does not know: unknown names are refused here, where a slip of the
pen would otherwise end in a message about another class, or overwrite a task's own metadata.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from softeval.errors import UserError, suggest
from softeval.model.checkpoint import Checkpoint
from softeval.model.language_model import LanguageModel, load_model
from softeval.modes import MODES, Mode, get_mode, load_mode_file, with_options
from softeval.options import GenerationOptions, ModelOptions, validated

CPU_LIKELIHOOD_BATCH = 16
"""Log-likelihood rows at a time on a CPU where the batch size is auto: lm-eval's search for the
largest batch runs five passes of 64 rows first, which a CPU has no use for."""

_RENAMED = {"pretrained": "model"}
_HIDDEN = ("model", "mode_args")
_FURTHER = (*_RENAMED, "mode", "max_batch_size", "add_bos_token")


def read_arguments(arguments: Mapping[str, Any]) -> tuple[GenerationOptions, Mode | None]:
    """What model arguments say, as texts or as values; what is none of them is passed over.

    Returns:
        The options, and the mode with its own in place; None for a task that is loaded for no mode
        of ours.

    Raises:
        UserError: an unknown mode, or a value that cannot be used.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if "mode_file" in given:
        load_mode_file(str(given["mode_file"]))
    names = [name for name in GenerationOptions.model_fields if name not in _HIDDEN]
    values = {name: given[name] for name in names if name in given}
    if str(given.get("batch_size")).startswith("auto"):  # also in lm-eval's form "auto:4"
        values["batch_size"] = "auto"
    # An option of another mode is not passed over: it would seem to have had an effect.
    of_modes = {option for mode in MODES.values() for option in mode.options} - values.keys()
    values["mode_args"] = {name: given[name] for name in given if name in of_modes}
    options = validated(GenerationOptions, values)
    mode = given.get("mode")
    if mode is None:
        return options, None
    mode = mode if isinstance(mode, Mode) else get_mode(str(mode))
    return options, with_options(mode, options.mode_options())


def refuse_unknown(names: Iterable[str], mode: Mode) -> None:
    """Check the names of model arguments.

    Raises:
        UserError: one that is no option, with the nearest that is.
    """
    fields = (name for name in GenerationOptions.model_fields if name not in _HIDDEN)
    known = dict.fromkeys((*_FURTHER, *fields, *mode.options))
    for name in names:
        if name not in known:
            remedy = suggest(name, known) or f"; choose from {', '.join(known)}"
            raise UserError(f"unknown model argument {name!r}{remedy}")


def loaded_model(pretrained: str | LanguageModel, options: ModelOptions) -> LanguageModel:
    """The checkpoint itself where it is loaded already, else from its path; UserError if not."""
    if isinstance(pretrained, LanguageModel):
        return pretrained
    names = ("dtype", "logits_dtype", "revision", "trust_remote_code", "self_check")
    names += ("attn_implementation", "device_map")
    how: dict[str, Any] = {name: getattr(options, name, None) for name in names}
    lm = load_model(str(pretrained), device=device_here(options.device), **how)
    lm.decode_by(graphs=options.graphs, fused=options.compile)
    return lm


def device_here(device: str) -> str:
    """Where to load: each of several processes on a machine takes a GPU of its own, as accelerate has it."""
    local = os.environ.get("LOCAL_RANK")
    if device not in ("auto", "cuda") or local is None:
        return device
    import torch

    return f"cuda:{int(local) % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def known_tokenizer(lm: LanguageModel | Checkpoint) -> Any:
    """The tokenizer, if lm-eval's base class takes it; UserError otherwise."""
    from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

    if not isinstance(lm.tokenizer, PreTrainedTokenizer | PreTrainedTokenizerFast):
        raise UserError(
            f"lm-eval cannot use a {type(lm.tokenizer).__name__}; save the tokenizer in "
            "transformers' fast format (tokenizer.json) beside the checkpoint"
        )
    return lm.tokenizer


def likelihood_batch(batch_size: int | str, lm: LanguageModel) -> int | str:
    """Log-likelihood rows at a time, as lm-eval's base class takes it."""
    if batch_size != "auto":
        return batch_size
    return CPU_LIKELIHOOD_BATCH if lm.device.type == "cpu" else "auto"


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Without the warnings about a model that is already loaded: here it always is."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
