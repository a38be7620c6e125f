"""Mixtures and token log-probabilities in chunks: no tensor of N x V is ever held.

Plain autograd would keep the logits, the softmax and its float32 copies of every position: several
times N·V numbers, 80 GB for a step of the paper's setting. Here the forward pass keeps the hidden
states only and the backward pass computes the distribution again, chunk by chunk.

Two choices differ from the obvious. The softmax is computed again rather than rebuilt from a saved
log-sum-exp, because at temperature 1e-4 both are near 1e5 and float32 resolves their difference to
0.01 only. And the inner product of weights and gradient is summed over the vocabulary rather than
taken as mixture·gradient, so that a one-hot mixture has a gradient of exactly zero in every
precision, as it must.

Knows nothing of sequences, advantages or σ.

Shapes: N positions, n positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from softeval.decoding.kl import exact_kl
from softeval.model.embedding import InputEmbedding
from softeval.model.output_head import HeadGradient, HeadRule, OutputHead, accumulate, wide_zeros


class Mixture(NamedTuple):
    """Mixtures p·E (N, D) in float32 and whether each position's two largest logits are equal."""

    mixed_ND: Tensor
    tied_N: Tensor


def mixtures(
    hidden_ND: Tensor,
    head: OutputHead,
    embedding: InputEmbedding,
    temperature: float,
    detach_embedding: bool = False,
) -> Mixture:
    """softmax(z/τ)·E, differentiable in the hidden states, the head and, unless detached, E.

    Args:
        hidden_ND: last hidden states.
        head: output head that makes the logits z.
        embedding: input embedding E.
        temperature: τ > 0.
        detach_embedding: treat E as a constant in the product; p still carries gradient.
    """
    matrix_WD: Tensor = embedding.module.weight  # type: ignore[assignment]
    mixed_ND, tied_N = _Mixture.apply(
        hidden_ND,
        head.weight_WD,
        head.bias_W,
        matrix_WD.detach() if detach_embedding else matrix_WD,
        embedding.scale,
        temperature,
        head.rule,
    )
    return Mixture(mixed_ND, tied_N)


def token_log_probs(
    hidden_ND: Tensor, ids_N: Tensor, head: OutputHead, temperature: float = 1.0
) -> Tensor:
    """(N,) log softmax(z/τ)[id] in nats, float32, differentiable in hidden states and head."""
    return _TokenLogProb.apply(
        hidden_ND, head.weight_WD, head.bias_W, ids_N, temperature, head.rule
    )


def reference_kl(
    hidden_ND: Tensor, head: OutputHead, reference_ND: Tensor, reference_head: OutputHead
) -> Tensor:
    """(N,) exact KL(p ‖ p_reference) over the vocabulary at temperature 1, in nats.

    Differentiable in the first two arguments; the reference is a constant.
    """
    parts = []
    for own_nD, other_nD in zip(
        hidden_ND.split(head.rule.chunk), reference_ND.split(head.rule.chunk), strict=True
    ):
        arguments = (own_nD, head, other_nD, reference_head)
        parts.append(checkpoint(_kl_of_chunk, *arguments, use_reentrant=False))
    return torch.cat(parts) if parts else hidden_ND.new_zeros(0)


class _Softmax:
    """softmax(z/τ) of chunks of positions, and the way back. Holds no chunk beyond a call."""

    def __init__(
        self, weight_WD: Tensor, bias_W: Tensor | None, temperature: float, rule: HeadRule
    ) -> None:
        weight_VD = rule.prepare(weight_WD)
        assert weight_VD is not None
        self.weight_VD = weight_VD
        self.bias_V = rule.prepare(bias_W)
        self.temperature = temperature
        self.rule = rule

    def logits(self, hidden_nD: Tensor) -> Tensor:
        """(n, V) logits as the decoder has them."""
        return self.rule.project(hidden_nD, self.weight_VD, self.bias_V)

    def scaled(self, logits_nV: Tensor) -> Tensor:
        """(n, V) z/τ in at least float32, divided before the softmax as in the decoder.

        Float32 logits are overwritten.
        """
        return logits_nV.to(_wide(logits_nV)).div_(self.temperature)

    def probs(self, hidden_nD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n, V) distribution, and the logits where the way back through a cap needs them."""
        logits_nV = self.logits(hidden_nD)
        capped_nV = logits_nV.clone() if self.rule.softcap is not None else None
        return self.scaled(logits_nV).softmax(-1), capped_nV

    def pull_back(
        self, grad_nV: Tensor, capped_nV: Tensor | None, hidden_nD: Tensor, head: HeadGradient
    ) -> Tensor:
        """(n, D) gradient of the hidden states from that of the logits; the head's is added."""
        grad_nV = self.rule.uncap(grad_nV, capped_nV).to(self.weight_VD.dtype)
        head.add(grad_nV, hidden_nD)
        return (grad_nV @ self.weight_VD).to(hidden_nD.dtype)


class _Mixer:
    """Mixtures of chunks of positions, and their gradient."""

    def __init__(self, softmax: _Softmax, matrix_WD: Tensor, scale: Tensor | None) -> None:
        self._softmax = softmax
        self._matrix_VD = matrix_WD[: softmax.rule.vocab]
        self._scale = scale

    def mix(self, hidden_nD: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) mixtures, and whether each position's two largest logits are equal."""
        logits_nV = self._softmax.logits(hidden_nD)
        tied_n = (logits_nV == logits_nV.amax(-1, keepdim=True)).sum(-1) > 1
        probs_nV = self._softmax.scaled(logits_nV).softmax(-1)
        del logits_nV
        mixed_nD = probs_nV.to(self._matrix_VD.dtype) @ self._matrix_VD
        return (mixed_nD if self._scale is None else mixed_nD * self._scale), tied_n

    def pull_back(
        self, grad_nD: Tensor, hidden_nD: Tensor, head: HeadGradient, grad_matrix: Tensor | None
    ) -> Tensor:
        """(n, D) gradient of the hidden states; those of head and E are added."""
        scaled_nD = grad_nD if self._scale is None else grad_nD * self._scale
        scaled_nD = scaled_nD.to(self._matrix_VD.dtype)
        probs_nV, capped_nV = self._softmax.probs(hidden_nD)
        if grad_matrix is not None:
            weights_Vn = probs_nV.to(self._matrix_VD.dtype).T
            accumulate(grad_matrix[: self._softmax.rule.vocab], weights_Vn, scaled_nD)
        pull_nV = (scaled_nD @ self._matrix_VD.T).to(probs_nV.dtype)
        grad_nV = _through_softmax(probs_nV, pull_nV).div_(self._softmax.temperature)
        del probs_nV
        return self._softmax.pull_back(grad_nV, capped_nV, hidden_nD, head)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_WD: Tensor,
        bias_W: Tensor | None,
        matrix_WD: Tensor,
        scale: Tensor | None,
        temperature: float,
        rule: HeadRule,
    ) -> tuple[Tensor, Tensor]:
        mixer = _Mixer(_Softmax(weight_WD, bias_W, temperature, rule), matrix_WD, scale)
        mixed_ND = hidden_ND.new_empty(len(hidden_ND), matrix_WD.shape[1], dtype=_wide(hidden_ND))
        tied_N = torch.empty(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device)
        for rows in _chunks(len(hidden_ND), rule.chunk):
            mixed_ND[rows], tied_N[rows] = mixer.mix(hidden_ND[rows])
        ctx.save_for_backward(hidden_ND, weight_WD, bias_W, matrix_WD, scale)
        ctx.temperature, ctx.rule = temperature, rule
        ctx.mark_non_differentiable(tied_N)
        return mixed_ND, tied_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_WD, bias_W, matrix_WD, scale = ctx.saved_tensors
        softmax = _Softmax(weight_WD, bias_W, ctx.temperature, ctx.rule)
        mixer = _Mixer(softmax, matrix_WD, scale)
        head = HeadGradient(weight_WD, bias_W, ctx.needs_input_grad[1:3])
        grad_matrix = wide_zeros(matrix_WD) if ctx.needs_input_grad[3] else None
        grad_hidden_ND = torch.empty_like(hidden_ND)
        for rows in _chunks(len(hidden_ND), ctx.rule.chunk):
            grad_hidden_ND[rows] = mixer.pull_back(
                grad_ND[rows], hidden_ND[rows], head, grad_matrix
            )
        weight_grad, bias_grad = _like(head.weight_WD, weight_WD), _like(head.bias_W, bias_W)
        matrix_grad = _like(grad_matrix, matrix_WD)
        return grad_hidden_ND, weight_grad, bias_grad, matrix_grad, None, None, None


class _TokenLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_WD: Tensor,
        bias_W: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        rule: HeadRule,
    ) -> Tensor:
        softmax = _Softmax(weight_WD, bias_W, temperature, rule)
        log_probs_N = hidden_ND.new_empty(len(hidden_ND), dtype=_wide(hidden_ND))
        for rows in _chunks(len(hidden_ND), rule.chunk):
            log_probs_N[rows] = _chosen(softmax, hidden_ND[rows], ids_N[rows])
        ctx.save_for_backward(hidden_ND, weight_WD, bias_W, ids_N)
        ctx.temperature, ctx.rule = temperature, rule
        return log_probs_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_WD, bias_W, ids_N = ctx.saved_tensors
        softmax = _Softmax(weight_WD, bias_W, ctx.temperature, ctx.rule)
        head = HeadGradient(weight_WD, bias_W, ctx.needs_input_grad[1:3])
        grad_hidden_ND = torch.empty_like(hidden_ND)
        for rows in _chunks(len(hidden_ND), ctx.rule.chunk):
            arguments = (softmax, hidden_ND[rows], ids_N[rows], grad_N[rows], head)
            grad_hidden_ND[rows] = _pull_back_chosen(*arguments)
        weight_grad, bias_grad = _like(head.weight_WD, weight_WD), _like(head.bias_W, bias_W)
        return grad_hidden_ND, weight_grad, bias_grad, None, None, None


def _chosen(softmax: _Softmax, hidden_nD: Tensor, ids_n: Tensor) -> Tensor:
    """(n,) log-probability of each position's token."""
    scaled_nV = softmax.scaled(softmax.logits(hidden_nD))
    return scaled_nV.gather(-1, ids_n[:, None]).squeeze(-1) - scaled_nV.logsumexp(-1)


def _pull_back_chosen(
    softmax: _Softmax, hidden_nD: Tensor, ids_n: Tensor, grad_n: Tensor, head: HeadGradient
) -> Tensor:
    """(n, D) gradient of the hidden states from that of the tokens' log-probabilities."""
    probs_nV, capped_nV = softmax.probs(hidden_nD)
    slope_n1 = (grad_n / softmax.temperature)[:, None].to(probs_nV.dtype)
    grad_nV = probs_nV.mul_(-slope_n1).scatter_add_(-1, ids_n[:, None], slope_n1)
    return softmax.pull_back(grad_nV, capped_nV, hidden_nD, head)


def _kl_of_chunk(own_nD: Tensor, head: OutputHead, other_nD: Tensor, other: OutputHead) -> Tensor:
    own_nV = _log_softmax(own_nD, head)
    with torch.no_grad():
        other_nV = _log_softmax(other_nD, other)
    return exact_kl(own_nV, other_nV)


def _log_softmax(hidden_nD: Tensor, head: OutputHead) -> Tensor:
    logits_nV = head.logits(hidden_nD)
    return logits_nV.to(_wide(logits_nV)).log_softmax(-1)


def _through_softmax(probs_nV: Tensor, grad_nV: Tensor) -> Tensor:
    """p·(g - Σ p·g), in place of `grad_nV`; exactly zero where p is one-hot."""
    grad_nV.mul_(probs_nV)
    total_n1 = grad_nV.sum(-1, keepdim=True)
    return grad_nV.addcmul_(probs_nV, total_n1, value=-1)


def _chunks(rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)
