"""Loads a checkpoint and answers what the decoder must know about it.

Knows nothing of modes, batches or tasks. Any decoder-only transformers checkpoint will do; what
cannot work is refused here with its remedy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softeval.errors import UserError
from softeval.model import BUNDLED_CHECKPOINT
from softeval.model.check_cache import refuse_non_finite
from softeval.model.checkpoint import (
    ATTENTION,
    Adapter,
    Checkpoint,
    check_config,
    first_line,
    max_length,
    read_checkpoint,
    torch_device,
    torch_dtype,
)
from softeval.model.embedding import InputEmbedding, input_embedding, on_device
from softeval.model.loading import load_weights
from softeval.model.mends import mend
from softeval.model.vocabulary import Vocabulary

NEVER = -65504.0
"""Logit of an id that the tokenizer does not know: probability 0 at every temperature, and a number
that every dtype holds, so that nothing computed from it overflows."""

_log = logging.getLogger(__name__)


class LogitsDtype(StrEnum):
    """Precision of the logits before the float32 softmax (method section 3, precision).

    MODEL: what the checkpoint's head gives. BFLOAT16: that, rounded. FLOAT32: the head itself
    computed in float32 from the last hidden state.
    """

    MODEL = "model"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(eq=False, repr=False)
class LanguageModel:
    """A checkpoint ready to decode.

    Attributes:
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        path: directory or hub id it came from.
        embedding: input embedding E over the ids that the tokenizer knows.
        max_length: largest number of positions the architecture takes.
        eos_ids: every id that ends a sequence.
        logits_dtype: precision of the logits.
        vocabulary: the ids that count, and how a text becomes ids.
        notes: what is done otherwise than the checkpoint's files say, a sentence each.
        self_check: whether it was tried that this model decodes rightly (`SelfCheck.status`).
        graphs: capture decode steps on CUDA.
        fused: let torch.compile fuse the model's part of them before.
        batch_invariant: whether a row had the same bits alone and beside many; None if not tried.
        adapter: the PEFT adapter that was merged into the model.
    """

    model: Any
    tokenizer: Any
    path: str
    embedding: InputEmbedding
    max_length: int
    eos_ids: frozenset[int]
    vocabulary: Vocabulary
    logits_dtype: LogitsDtype = LogitsDtype.MODEL
    notes: tuple[str, ...] = ()
    self_check: str = "skipped"
    graphs: bool = True
    fused: bool = False
    batch_invariant: bool | None = None
    adapter: Adapter | None = None

    @property
    def vocab(self) -> int:
        """Number of ids that both the tokenizer and the embedding know; others are masked."""
        return self.embedding.vocab

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def __repr__(self) -> str:
        kind, dtype = self.model.config.model_type, str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.path!r}, {kind}, {dtype} on {self.device})"

    @cached_property
    def runner(self) -> Callable[..., Any]:
        """What runs the model in a decode step."""
        return _fused(self.model) if self.fused else self.model

    def decode_by(self, *, graphs: bool, fused: bool) -> None:
        """Choose how decode steps are run on CUDA.

        Raises:
            UserError: nothing would be captured that could be fused before.
        """
        if fused and not (graphs and self.device.type == "cuda"):
            raise UserError("--compile fuses what is captured on a GPU; leave it out here")
        if fused != self.fused:
            vars(self).pop("runner", None)
        self.graphs, self.fused = graphs, fused

    def logits(self, hidden_or_logits: Tensor) -> Tensor:
        """(…, V) logits in the chosen precision, cut to the tokenizer's ids."""
        logits = hidden_or_logits[..., : self.vocab]
        if self.vocabulary.gaps:
            logits = logits.index_fill(-1, on_device(self.vocabulary.gaps, logits.device), NEVER)
        return logits.bfloat16() if self.logits_dtype is LogitsDtype.BFLOAT16 else logits


def _fused(model: Any) -> Callable[..., Any]:
    """The model compiled: one graph for all numbers of rows and slots, or two."""
    from torch._dynamo.exc import TorchDynamoException  # a second of imports

    compiled = torch.compile(model, fullgraph=True)

    def run(**inputs: Any) -> Any:
        try:
            return compiled(**inputs)
        except TorchDynamoException as problem:
            raise UserError(
                f"this architecture cannot be compiled ({first_line(problem)}); leave out --compile"
            ) from problem

    return run


def load_model(
    path: str | Path = BUNDLED_CHECKPOINT,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    logits_dtype: str = "model",
    revision: str | None = None,
    trust_remote_code: bool = False,
    self_check: bool = True,
    attn_implementation: str | None = None,
    device_map: str | None = None,
) -> LanguageModel:
    """Load a checkpoint directory or hub id, or the directory of a PEFT adapter.

    Args:
        path: local directory or hub id of a decoder-only transformers checkpoint.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        logits_dtype: "model", "bfloat16" or "float32".
        revision: hub revision.
        trust_remote_code: run code that comes with the checkpoint.
        self_check: try that the model decodes rightly; what passed once is not tried again.
        attn_implementation: "sdpa" or "eager"; None is the checkpoint's own.
        device_map: spread the layers over devices as transformers does; "auto" over all GPUs.

    Raises:
        UserError: nothing there, no tokenizer, not decoder-only, weights that are not finite, a
            model that would be decoded wrongly, or an unusable option.
    """
    place, precision = torch_device(device), torch_dtype(dtype)
    checkpoint = read_checkpoint(
        str(path),
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        device_map=device_map,
    )
    return load_checkpoint(checkpoint, precision, place, logits_dtype, self_check)


def load_checkpoint(
    checkpoint: Checkpoint,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    logits_dtype: str = "model",
    self_check: bool = True,
) -> LanguageModel:
    """The same for a checkpoint whose config and tokenizer are read already."""
    lm = wrap_model(
        load_weights(checkpoint, torch_dtype(dtype), torch_device(device)),
        checkpoint.tokenizer,
        checkpoint.path,
        logits_dtype=logits_dtype,
        notes=checkpoint.notes,
        self_check=False,
    )
    lm.adapter = checkpoint.adapter
    if self_check:
        _check(lm, remembered=True)
    return lm


def wrap_model(
    model: Any,
    tokenizer: Any,
    path: str = "",
    *,
    logits_dtype: str = "model",
    notes: Sequence[str] = (),
    self_check: bool = True,
) -> LanguageModel:
    """A `LanguageModel` around objects that are already loaded.

    Args:
        model: a transformers model; it is changed as `mends` says.
        tokenizer: its tokenizer.
        path: for messages and records.
        logits_dtype: "model", "bfloat16" or "float32".
        notes: what was done otherwise than the checkpoint's files say.
        self_check: try that the model decodes rightly, each time: hooks and patches can differ.

    Raises:
        UserError: an option or an architecture that cannot be used, or weights that are not finite.
    """
    if logits_dtype not in list(LogitsDtype):
        raise UserError(f"--logits-dtype {logits_dtype!r}: choose from model, bfloat16, float32")
    _check_loaded(model)
    refuse_non_finite(model, path or type(model).__name__)
    mend(model)
    table = model.get_input_embeddings()
    vocabulary = Vocabulary(tokenizer, getattr(getattr(table, "weight", None), "shape", (0,))[0])
    lm = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        path=path,
        embedding=input_embedding(model, vocabulary.size, vocabulary.gaps),
        max_length=max_length(model.config, tokenizer),
        eos_ids=_eos_ids(model, vocabulary),
        vocabulary=vocabulary,
        logits_dtype=LogitsDtype(logits_dtype),
        notes=(*notes, *_notes(vocabulary)),
    )
    for note in lm.notes:
        _log.warning("%s: %s", path, note)
    if lm.logits_dtype is LogitsDtype.FLOAT32 and lm.dtype != torch.float32:
        _float32_head(model)
    if self_check:
        _check(lm, remembered=False)
    return lm


def _check(lm: LanguageModel, *, remembered: bool) -> None:
    from softeval.model.self_check import self_check

    name = lm.path or type(lm.model).__name__
    found = self_check(lm.model, lm.embedding, lm.max_length, name, remembered=remembered)
    lm.self_check, lm.batch_invariant = found


def _check_loaded(model: Any) -> None:
    """What a checkpoint is checked for before it is loaded, for a model that came loaded."""
    check_config(model.config, remote=not type(model).__module__.startswith("transformers."))
    attention = model.config._attn_implementation
    if attention not in ATTENTION:
        raise UserError(
            f"attention {attention} is not decoded; load the model with attn_implementation='sdpa'"
        )


def _eos_ids(model: Any, vocabulary: Vocabulary) -> frozenset[int]:
    """All ids named by tokenizer, config and generation config; nothing else of the latter."""
    generation = getattr(model, "generation_config", None)
    named = model.config.get_text_config().eos_token_id
    return vocabulary.eos_ids(named, getattr(generation, "eos_token_id", None))


def _notes(vocabulary: Vocabulary) -> list[str]:
    notes = []
    if vocabulary.appended:
        tokens = vocabulary.tokenizer.convert_ids_to_tokens(list(vocabulary.appended))
        notes.append(f"the tokenizer appends {' '.join(tokens)} to a text; prompts go without it")
    if count := len(vocabulary.gaps):
        notes.append(f"{count} ids below {vocabulary.size} have no token; they are never chosen")
    return notes


def _float32_head(model: Any) -> None:
    """Compute the output projection in float32 (what follows it, a softcap say, then is too)."""

    def forward(own: Any, hidden: Tensor) -> Tensor:
        wide: Any = [p if p is None else p.float() for p in (own.wide_weight, own.wide_bias)]
        return nn.functional.linear(hidden.to(own.weight.device, torch.float32), *wide)

    head = model.get_output_embeddings()
    for name, part in (("wide_weight", head.weight), ("wide_bias", head.bias)):  # move with it
        head.register_buffer(name, None if part is None else part.detach().float(), False)
    vars(head).pop("forward", None)
    # Not in the head itself, a circle that would keep both weights until Python looks for circles.
    head.__class__ = type("Float32Head", (type(head),), {"forward": forward})
