"""Brings a checkpoint to the adapter: where to load it, and what lm-eval can take of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from softeval.errors import UserError
from softeval.model.checkpoint import Checkpoint
from softeval.model.language_model import LanguageModel, load_model

CPU_LIKELIHOOD_BATCH = 16
"""Log-likelihood rows at a time on a CPU where the batch size is auto: lm-eval's search for the
largest batch runs five passes of 64 rows first, which a CPU has no use for."""


def loaded_model(pretrained: str | LanguageModel, arguments: Mapping[str, Any]) -> LanguageModel:
    """The checkpoint itself where it is loaded already, else from its path; UserError if not."""
    if isinstance(pretrained, LanguageModel):
        return pretrained
    options = {
        name: arguments[name]
        for name in ("dtype", "logits_dtype", "revision", "trust_remote_code", "self_check")
        if arguments.get(name) is not None
    }
    return load_model(str(pretrained), device=device_here(arguments.get("device")), **options)


def device_here(device: str | None) -> str:
    """Where to load: each of several processes on a machine takes a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    if device not in (None, "auto", "cuda") or local is None:
        return device or "auto"
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else (device or "auto")


def known_tokenizer(lm: LanguageModel | Checkpoint) -> Any:
    """The tokenizer, if lm-eval's base class takes it; UserError otherwise."""
    from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

    if not isinstance(lm.tokenizer, PreTrainedTokenizer | PreTrainedTokenizerFast):
        raise UserError(
            f"lm-eval cannot use a {type(lm.tokenizer).__name__}; save the tokenizer in "
            "transformers' fast format (tokenizer.json) beside the checkpoint"
        )
    return lm.tokenizer


def likelihood_batch(batch_size: int | None, lm: LanguageModel) -> int | str:
    """Log-likelihood rows at a time, as lm-eval's base class takes it; None leaves it to us."""
    if batch_size is not None:
        return batch_size
    return CPU_LIKELIHOOD_BATCH if lm.device.type == "cpu" else "auto"


def package_version() -> str:
    """Version of this code, for the results."""
    try:
        return version("softeval")
    except PackageNotFoundError:
        from softeval import __version__

        return f"{__version__} (not installed)"


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
