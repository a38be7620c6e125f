"""From logits to distributions and tokens: softmax at a temperature, filters, inverse sampling.

Everything in float32 whatever the logits' dtype (sums of an inverse cumulation in float64), row by
row.

Shapes: N rows, V vocabulary, K tokens of a row (in `invert_cdf` blocks of C tokens), D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from softeval.modes.seam import Embedding

CDF_BLOCK = 512
"""Tokens of a block in `invert_cdf`."""
MOST_GATHERED = 64
"""Tokens a row whose embeddings `mix_tokens` gathers."""


def invert_cdf(probs_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """(N,) token ids whose cumulative interval holds the row's uniform; never of probability 0.

    In float64. Blocks are summed first and only the block that is hit token by token, because
    cumulating a whole vocabulary takes longer than a small model's forward pass.
    """
    import torch

    ends_NK = _block_sums(probs_NV).cumsum(-1)
    target_N1 = uniform_N.double()[:, None] * ends_NK[:, -1:]
    block_N1 = (ends_NK <= target_N1).sum(-1, keepdim=True).clamp(max=ends_NK.shape[1] - 1)
    before_N1 = torch.where(block_N1 > 0, ends_NK.gather(1, (block_N1 - 1).clamp(min=0)), 0.0)
    ids_NC = block_N1 * CDF_BLOCK + torch.arange(CDF_BLOCK, device=probs_NV.device)
    beyond_NC = ids_NC >= probs_NV.shape[1]
    inside_NC = probs_NV.gather(1, ids_NC.clamp(max=probs_NV.shape[1] - 1)).double()
    cdf_NC = inside_NC.masked_fill(beyond_NC, 0.0).cumsum(-1)
    # The two ways of summing a block differ in their last bits; stay below its end.
    end_N1 = torch.nextafter(cdf_NC[:, -1:], torch.zeros_like(before_N1))
    rest_N1 = torch.minimum(target_N1 - before_N1, end_N1)
    return block_N1[:, 0] * CDF_BLOCK + (cdf_NC <= rest_N1).sum(-1)


def _block_sums(probs_NV: Tensor) -> Tensor:
    """(N, K) sums of blocks of tokens in float64; the last block may be shorter."""
    import torch

    blocks = probs_NV.shape[1] // CDF_BLOCK
    whole = blocks * CDF_BLOCK
    blocks_NKC = probs_NV[:, :whole].unflatten(1, (blocks, CDF_BLOCK))
    sums_NK = blocks_NKC.sum(-1, dtype=torch.float64)
    if whole == probs_NV.shape[1]:
        return sums_NK
    tail_N1 = probs_NV[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)
    return torch.cat([sums_NK, tail_N1], 1)


def softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Softmax in float32 whatever the logits' dtype; the one-hot limit at temperature 0."""
    if temperature == 0:
        import torch

        hot_NV = torch.zeros_like(logits_NV, dtype=torch.float32)
        return hot_NV.scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    return (logits_NV.float() / temperature).softmax(-1)


def entropy(probs_NV: Tensor) -> Tensor:
    """(N,) -Σ p ln p in nats; 0 where p = 0."""
    import torch

    return torch.special.entr(probs_NV).sum(-1)


def most_likely(
    probs_NV: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, top_n: int = 0
) -> Tensor:
    """(N, V) the probabilities of `support`; those of other tokens are 0."""
    import torch

    probs_NK, ids_NK = support(probs_NV, top_k, top_p, min_p, top_n)
    return torch.zeros_like(probs_NV).scatter_(-1, ids_NK, probs_NK)


class Support(NamedTuple):
    """Some tokens of each row, the most likely first; probability 0 marks one that was cut."""

    probs_NK: Tensor
    ids_NK: Tensor


def support(
    probs_NV: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, top_n: int = 0
) -> Support:
    """The most likely tokens, renormalised after each cut.

    Each cut keeps a beginning of the tokens in falling order of probability.

    Args:
        probs_NV: distributions.
        top_k: this many tokens; 0 keeps all.
        top_p: the fewest tokens that sum to this; 1 keeps all.
        min_p: tokens at least this share as likely as the likeliest; 0 keeps all.
        top_n: this many of what is left; 0 keeps all.
    """
    vocab = probs_NV.shape[-1]
    values_NK, ids_NK = probs_NV.topk(min(top_k or vocab, vocab), dim=-1)
    values_NK = _renormalised(values_NK)
    before_NK = values_NK.cumsum(-1) - values_NK
    values_NK = _renormalised(values_NK.masked_fill((before_NK >= top_p) & (top_p < 1), 0.0))
    low_NK = values_NK < min_p * values_NK[:, :1]
    values_NK = _renormalised(values_NK.masked_fill(low_NK, 0.0))
    if top_n:
        values_NK = _renormalised(values_NK[:, :top_n])
    return Support(values_NK, ids_NK[:, : values_NK.shape[-1]])


def mix_tokens(embedding: Embedding, weights_NK: Tensor, ids_NK: Tensor) -> Tensor:
    """(N, D) Σ wᵢ·eᵢ over a few tokens of each row, in the dtype the model is fed.

    Summed in float32 over gathered rows, so a weight of 1 beside zeros gives that row bit for bit;
    many tokens go through the whole table instead, which then takes less memory.
    """
    import torch

    if ids_NK.shape[-1] > MOST_GATHERED:
        weights_NV = weights_NK.new_zeros(len(ids_NK), embedding.vocab)
        return embedding.mix(weights_NV.scatter_add_(-1, ids_NK, weights_NK)).to(embedding.dtype)
    rows_NKD = embedding.rows(ids_NK).to(torch.float32)
    return (weights_NK.float()[..., None] * rows_NKD).sum(1).to(embedding.dtype)


def _renormalised(probs_NK: Tensor) -> Tensor:
    return probs_NK / probs_NK.sum(-1, keepdim=True)
