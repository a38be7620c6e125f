"""The density of a step that adds Gaussian noise to a mixture, and its score.

A step made h̃ = μ + σε with ε standard normal; the score ∂/∂μ of -‖h̃ - μ‖²/2σ² is (h̃ - μ)/σ², that is
ε/σ where a later pass makes the rollout's mixture μ again. Where it does not, as at a near tie in
bfloat16, h̃ - μ holds the distance of two tokens, √D/γ times the noise in that direction, and such
positions outweigh all others. Hence the score is taken from the recorded noise ε unless asked for
otherwise. (Paper section 3 and equations 12-14.)

Shapes: N steps, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softeval.modes.seam import Embedding, Fused, Taken

if TYPE_CHECKING:
    from torch import Tensor

MISMATCH = 0.05
"""Distance of two mixtures, in lengths of a typical embedding, from where they count as different."""


def gaussian_step(
    mixed_ND: Tensor,
    tied_N: Tensor,
    taken: Taken,
    sigma: float,
    embedding: Embedding,
    recorded_noise: bool,
) -> Fused:
    """Log N(h̃; μ, σ²I) without its constant, and what is measured beside it.

    Args:
        mixed_ND: μ as this pass makes it; carries the gradient.
        tied_N: whether a step's two largest logits are equal.
        taken: the steps, with the noise that was drawn.
        sigma: σ.
        embedding: input embedding, for the length of a typical one.
        recorded_noise: take the score from the recorded noise, whatever mixture this pass makes;
            the value is then the rollout's, -‖ε‖²/2. Else from h̃ - μ.
    """
    constant_ND = mixed_ND.detach()
    squared_N = _squared_error(taken, constant_ND if recorded_noise else mixed_ND, sigma)
    density_N = _recorded_density(taken, mixed_ND, sigma) if recorded_noise else -0.5 * squared_N
    return Fused(
        log_prob_N=density_N,
        sigma=sigma,
        squared_N=squared_N.detach(),
        mixed_ND=constant_ND,
        tied_N=tied_N,
        mismatched_N=_mismatched(taken, constant_ND, sigma, embedding),
    )


def _squared_error(taken: Taken, mixed_ND: Tensor, sigma: float) -> Tensor:
    """(N,) ‖h̃ - μ‖²/σ² around the mixtures of this pass."""
    assert taken.fed_ND is not None and sigma > 0, "a soft step needs its vector and noise"
    return (taken.fed_ND.to(mixed_ND.dtype) - mixed_ND).square().sum(-1) / sigma**2


def _recorded_density(taken: Taken, mixed_ND: Tensor, sigma: float) -> Tensor:
    """(N,) -‖ε‖²/2 with the gradient ε/σ in the mixtures."""
    assert taken.drawn_NX is not None, "the score from recorded noise needs that noise"
    noise_ND = taken.drawn_NX.to(mixed_ND.dtype)
    moved_ND = mixed_ND - mixed_ND.detach()  # zeros, which carry the gradient
    return (noise_ND / sigma * moved_ND).sum(-1) - 0.5 * noise_ND.square().sum(-1)


def _mismatched(taken: Taken, mixed_ND: Tensor, sigma: float, embedding: Embedding) -> Tensor:
    """(N,) whether ‖μ - (h̃ - σε)‖ exceeds what MISMATCH and the rounding of h̃ allow."""
    import torch

    assert taken.fed_ND is not None and taken.drawn_NX is not None
    fed_ND = taken.fed_ND.to(mixed_ND.dtype)
    apart_N = (fed_ND - sigma * taken.drawn_NX - mixed_ND).norm(dim=-1)
    rounding_N = torch.finfo(taken.fed_ND.dtype).eps / 2 * fed_ND.norm(dim=-1)
    return apart_N > MISMATCH * embedding.rms * embedding.width**0.5 + rounding_N
