"""The way from the last hidden state to the logits, and the gradient's way back.

The training pass needs logits of N positions but must never hold N x V numbers at once, so it calls
the head chunk by chunk, here, instead of the model's own `forward`. The logits are those the decoder
sees: cut to the tokenizer's ids, capped where the architecture caps them, in the same precision.

Knows nothing of modes or losses.

Shapes: N positions, n positions of one chunk, D width, V vocabulary (ids the tokenizer knows),
W rows of the stored weight (W >= V: some checkpoints pad it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from softeval.errors import UserError
from softeval.model.embedding import on_device
from softeval.model.language_model import NEVER, LanguageModel, LogitsDtype
from softeval.model.layers import has_states, prompt_cache
from softeval.model.mends import long_rope_limit

CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""Logits computed at once: 32 or 256 MB a copy in float32. An accelerator reads the whole weight for
every chunk, so it wants enough positions in one to be busy."""


@dataclass(frozen=True)
class HeadRule:
    """How logits come from a projection; everything about the head that is no tensor.

    Attributes:
        vocab: V, ids the tokenizer knows; logits of padding rows are never computed.
        softcap: c of c·tanh(z/c) (Gemma 2), or None.
        logits_dtype: precision of the logits, as in the rollout.
        chunk: positions computed at once.
        gaps: ids below V that the tokenizer does not know.
    """

    vocab: int
    softcap: float | None = None
    logits_dtype: LogitsDtype = LogitsDtype.MODEL
    chunk: int = 256
    gaps: tuple[int, ...] = ()

    def project(self, hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        """(n, V) logits of one chunk; `weight_VD` as `prepare` gives it."""
        logits_nV = linear(hidden_nD.to(weight_VD.dtype), weight_VD, bias_V)
        if self.softcap is not None:
            logits_nV = torch.tanh(logits_nV / self.softcap) * self.softcap
        if self.gaps:
            logits_nV[:, on_device(self.gaps, logits_nV.device)] = NEVER
        if self.logits_dtype is LogitsDtype.BFLOAT16:
            logits_nV = logits_nV.to(torch.bfloat16)
        return logits_nV

    def prepare(self, tensor: Tensor | None) -> Tensor | None:
        """Weight or bias cut to V rows, in the precision the product is taken in."""
        if tensor is None:
            return None
        cut = tensor[: self.vocab]
        return cut.float() if self._widens(cut) else cut

    def uncap(self, grad_nV: Tensor, logits_nV: Tensor | None) -> Tensor:
        """Gradient before the cap from the gradient after it, in place; no logits, no cap."""
        if self.softcap is None or logits_nV is None:
            return grad_nV
        return grad_nV.mul_(1 - (logits_nV.to(grad_nV.dtype) / self.softcap).square())

    def _widens(self, tensor: Tensor) -> bool:
        half = tensor.dtype in (torch.bfloat16, torch.float16)
        return self.logits_dtype is LogitsDtype.FLOAT32 and half


@dataclass(frozen=True, eq=False)
class OutputHead:
    """A model's head: its live parameters and its rule."""

    weight_WD: Tensor
    bias_W: Tensor | None
    rule: HeadRule

    @property
    def matrix_VD(self) -> Tensor:
        """The weight cut to V rows, in the precision the product is taken in."""
        weight_VD = self.rule.prepare(self.weight_WD)
        assert weight_VD is not None
        return weight_VD

    def logits(self, hidden_nD: Tensor) -> Tensor:
        """(n, V) logits of one chunk, differentiable."""
        return self.rule.project(hidden_nD, self.matrix_VD, self.rule.prepare(self.bias_W))


class HeadGradient:
    """Collects the gradient of the head's parameters over the chunks of one backward pass.

    Sums are kept in at least float32 whatever the parameter's dtype.
    """

    def __init__(self, weight_WD: Tensor, bias_W: Tensor | None, wanted: tuple[bool, bool]) -> None:
        self.weight_WD = wide_zeros(weight_WD) if wanted[0] else None
        self.bias_W = wide_zeros(bias_W) if wanted[1] and bias_W is not None else None

    def add(self, grad_nV: Tensor, hidden_nD: Tensor) -> None:
        """Add one chunk; `grad_nV` in the dtype of the product."""
        vocab = grad_nV.shape[-1]
        if self.weight_WD is not None:
            accumulate(self.weight_WD[:vocab], grad_nV.T, hidden_nD.to(grad_nV.dtype))
        if self.bias_W is not None:
            self.bias_W[:vocab] += grad_nV.sum(0, dtype=self.bias_W.dtype)


def output_head(lm: LanguageModel, chunk: int | None = None) -> OutputHead:
    """The head of a loaded model.

    Args:
        lm: the model.
        chunk: positions computed at once; None fits them to the vocabulary.

    Raises:
        UserError: the architecture does something else between hidden state and logits.
    """
    module = lm.model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        raise UserError(
            f"{_architecture(lm)}: the output head is no plain matrix; it cannot be used in chunks"
        )
    rule = HeadRule(
        vocab=lm.vocab,
        softcap=getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None),
        logits_dtype=lm.logits_dtype,
        chunk=chunk or max(16, CHUNK_ELEMENTS.get(lm.device.type, 2**24) // lm.vocab),
        gaps=lm.vocabulary.gaps,
    )
    bias = getattr(module, "bias", None)  # either is copied only where layers are spread
    head = OutputHead(weight.to(lm.device), bias if bias is None else bias.to(lm.device), rule)
    _verify(lm, head)
    return head


def last_hidden(model: Any, inputs_BTD: Tensor, shared: int = 0) -> Tensor:
    """(B, T, D) last hidden states, causal; rows padded on the right if at all.

    Each is that of the sequence that ends there: under LongRoPE, positions below the limit are those
    of a pass that ends below it, as they were when the row was decoded.

    Args:
        model: the transformers model.
        inputs_BTD: what it is fed.
        shared: first positions that all rows have in common: they are computed once, and every row
            attends to their keys and values (`can_share`).
    """

    def states(inputs_BTD: Tensor, **memory: Any) -> Tensor:
        body = model.model if model.base_model is model else model.base_model  # the first: Llama 4
        fed = {"inputs_embeds": inputs_BTD, "use_cache": bool(memory), **memory}
        return body(**fed).last_hidden_state

    if shared > 0:
        cache = prompt_cache(model.config)
        first_1SD = states(inputs_BTD[:1, :shared], past_key_values=cache)
        cache.batch_repeat_interleave(len(inputs_BTD))
        rest_BRD = states(inputs_BTD[:, shared:], past_key_values=cache)
        return torch.cat([first_1SD.expand(len(rest_BRD), -1, -1), rest_BRD], 1)
    limit = long_rope_limit(model.config)
    if limit is None or inputs_BTD.shape[1] <= limit:
        return states(inputs_BTD)
    return torch.cat([states(inputs_BTD[:, :limit]), states(inputs_BTD)[:, limit:]], 1)


def can_share(model: Any) -> bool:
    """Whether `last_hidden` may compute once what rows have in common.

    Keys and values carry gradients; a recurrence's state, and LongRoPE's factors, which depend on the
    whole length, do not fit. On an accelerator the kernels for such a mask are others: not measured.
    """
    fits = not has_states(model.config) and long_rope_limit(model.config) is None
    return fits and model.device.type == "cpu"


def keep_float32_head_live(module: nn.Module) -> None:
    """Make a half-precision head compute in float32 from its *present* weights.

    The evaluation's own float32 head keeps a copy taken at loading, which training would leave
    behind.
    """

    def project(hidden: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.float()  # type: ignore[union-attr]
        return linear(hidden.float(), module.weight.float(), bias)  # type: ignore[operator]

    module.forward = project


@torch.no_grad()
def _verify(lm: LanguageModel, head: OutputHead) -> None:
    ids = torch.arange(min(8, lm.vocab), device=lm.device)[None]
    inputs = lm.embedding.rows(ids)
    expected = lm.logits(lm.model(inputs_embeds=inputs, use_cache=False).logits)[0].float()
    rule = head.rule
    found = head.logits(last_hidden(lm.model, inputs)[0].to(lm.device)).float()
    tolerance = 1e-4 if lm.dtype in (torch.float32, torch.float64) else 3e-2
    if rule.logits_dtype is LogitsDtype.BFLOAT16:
        tolerance = max(tolerance, 1e-2)
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise UserError(
            f"{_architecture(lm)} changes its logits after the output head in a way this trainer "
            "does not know, so its logits would be wrong in chunks; use another architecture"
        )


def _architecture(lm: LanguageModel) -> str:
    return type(lm.model).__name__


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left·right to `total`, without a copy where the precisions agree."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def wide_zeros(tensor: Tensor) -> Tensor:
    """Zeros to add up gradients in, at least float32."""
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
