"""The CoT modes: which vector is fed next, and the log-probability of having fed it.

Six modes of *Soft Tokens, Hard Truths* (section 3 and table 1): hard, soft, fuzzy, each greedy or
sampled. A mode is an immutable value. A new mode is one small class with `step` (the next input
vector) and `log_prob` (of what was fed); everything else in the project only calls these two.

Knows nothing of prompts, stopping or batches. Rows are independent: no operation here mixes them.

Shapes: N rows, V vocabulary (ids the tokenizer knows), D embedding width.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from softeval.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class NoiseNorm(StrEnum):
    """What the noise scale γ is multiplied with to give σ, the deviation of one element.

    ELEMENT: root mean square of the entries of E, so that the noise *vector* is γ times as long as
    a typical embedding (the reading this project takes of paper section 3.2). VECTOR: root mean
    square of the embeddings' norms, √D times larger; the paper's words taken literally.
    """

    ELEMENT = "element"
    VECTOR = "vector"


class Randomness(StrEnum):
    """Which random numbers a mode asks for at each step and row."""

    NONE = "none"
    UNIFORM = "uniform"
    NORMAL = "normal"


class Embedding(Protocol):
    """Input embedding matrix E as the model's first layer really sees it."""

    @property
    def rms(self) -> float: ...
    @property
    def width(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def rows(self, ids: Tensor) -> Tensor: ...
    def mix(self, probs_NV: Tensor) -> Tensor: ...


class Step(NamedTuple):
    """One CoT step: `inputs_ND` in the dtype the model is fed, `shadow_N` token ids (int64)."""

    inputs_ND: Tensor
    shadow_N: Tensor


@dataclass(frozen=True)
class HardMode:
    """Ordinary tokens: E[argmax z] at temperature 0, else E[token drawn from softmax(z/τ)]."""

    name: str
    temperature: float

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM if self.temperature > 0 else Randomness.NONE

    @property
    def noise_scale(self) -> float:
        return 0.0

    def sigma(self, embedding: Embedding) -> float:
        """Noise deviation of one input element: none in a hard mode."""
        return 0.0

    def probs(self, logits_NV: Tensor) -> Tensor:
        """(N, V) distribution over tokens in float32; one-hot at temperature 0."""
        return _softmax(logits_NV, self.temperature)

    def step(
        self, logits_NV: Tensor, probs_NV: Tensor, embedding: Embedding, noise: Tensor | None
    ) -> Step:
        """Choose a token a row.

        Args:
            logits_NV: raw logits.
            probs_NV: `probs(logits_NV)`.
            embedding: input embedding of the model.
            noise: (N,) uniforms in [0, 1) for a sampled mode, else None.
        """
        if self.temperature == 0:
            shadow_N = logits_NV.argmax(-1)
        else:
            assert noise is not None, "hard sampling needs one uniform a row"
            shadow_N = invert_cdf(probs_NV, noise)
        return Step(embedding.rows(shadow_N), shadow_N)

    def log_prob(
        self, logits_NV: Tensor, shadow_N: Tensor, fed_ND: Tensor, embedding: Embedding
    ) -> Tensor:
        """(N,) log p[token] at the sampling temperature, in nats, differentiable."""
        if self.temperature == 0:
            raise UserError("a greedy mode has no log-probability; train with hard_sample")
        scaled_NV = logits_NV.float() / self.temperature
        chosen_N = scaled_NV.gather(-1, shadow_N[:, None]).squeeze(-1)
        return chosen_N - scaled_NV.logsumexp(-1)


@dataclass(frozen=True)
class MixtureMode:
    """Soft and fuzzy tokens: softmax(z/τ)·E, plus σ·N(0, I) in a sampled mode."""

    name: str
    temperature: float
    noise_scale: float = 0.0
    noise_norm: NoiseNorm = NoiseNorm.ELEMENT

    @property
    def randomness(self) -> Randomness:
        return Randomness.NORMAL if self.noise_scale > 0 else Randomness.NONE

    def sigma(self, embedding: Embedding) -> float:
        """Noise deviation of one input element, from the checkpoint's own embeddings."""
        width = embedding.width if self.noise_norm is NoiseNorm.VECTOR else 1
        return self.noise_scale * embedding.rms * math.sqrt(width)

    def probs(self, logits_NV: Tensor) -> Tensor:
        """(N, V) mixture weights in float32."""
        return _softmax(logits_NV, self.temperature)

    def step(
        self, logits_NV: Tensor, probs_NV: Tensor, embedding: Embedding, noise: Tensor | None
    ) -> Step:
        """Mix embeddings; the shadow is the argmax token of the same logits.

        Args:
            logits_NV: raw logits.
            probs_NV: `probs(logits_NV)`.
            embedding: input embedding of the model.
            noise: (N, D) standard normals for a sampled mode, else None.
        """
        mixed_ND = embedding.mix(probs_NV)
        if noise is not None:
            mixed_ND = mixed_ND + self.sigma(embedding) * noise
        return Step(mixed_ND.to(embedding.dtype), logits_NV.argmax(-1))

    def log_prob(
        self, logits_NV: Tensor, shadow_N: Tensor, fed_ND: Tensor, embedding: Embedding
    ) -> Tensor:
        """(N,) log N(fed; p·E, σ²I) without its constant: -‖h̃ - pE‖² / (2σ²), differentiable.

        A sum over the D elements, never a mean (paper eq. 12; method section 3).
        """
        sigma = self.sigma(embedding)
        if sigma == 0:
            raise UserError(f"{self.name} without noise has no log-probability; set --noise-scale")
        error_ND = fed_ND.float() - embedding.mix(self.probs(logits_NV))
        return -error_ND.square().sum(-1) / (2 * sigma**2)


Mode = HardMode | MixtureMode

SOFT_TEMPERATURE = 0.5
FUZZY_TEMPERATURE = 1e-4
NOISE_SCALE = 0.33

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        HardMode("hard_greedy", 0.0),
        HardMode("hard_sample", 1.0),
        MixtureMode("soft_greedy", SOFT_TEMPERATURE),
        MixtureMode("soft_sample", SOFT_TEMPERATURE, NOISE_SCALE),
        MixtureMode("fuzzy_greedy", FUZZY_TEMPERATURE),
        MixtureMode("fuzzy_sample", FUZZY_TEMPERATURE, NOISE_SCALE),
    )
}


def is_greedy(mode: Mode) -> bool:
    """Whether every sample of a question is the same."""
    return mode.randomness is Randomness.NONE


def get_mode(
    name: str,
    temperature: float | None = None,
    noise_scale: float | None = None,
    noise_norm: str | None = None,
) -> Mode:
    """A mode by name, with any of its parameters overridden.

    Raises:
        UserError: unknown name, a value out of range, or a parameter the mode does not have.
    """
    mode = MODES.get(name.replace("-", "_"))
    if mode is None:
        near = [known for known in MODES if known.startswith(f"{name}_")]
        near = near or difflib.get_close_matches(name, MODES, n=1)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(MODES)}"
        raise UserError(f"unknown mode {name!r}; {remedy}")
    if temperature is not None:
        if mode.name == "hard_greedy":
            raise UserError("hard_greedy has temperature 0; override it on hard_sample")
        mode = replace(mode, temperature=_checked("--temperature", temperature))
    if noise_scale is None and noise_norm is None:
        return mode
    if isinstance(mode, HardMode) or is_greedy(mode):
        raise UserError(f"{mode.name} has no noise; use soft_sample or fuzzy_sample")
    if noise_scale is not None:
        mode = replace(mode, noise_scale=_checked("--noise-scale", noise_scale))
    if noise_norm is not None:
        if noise_norm not in list(NoiseNorm):
            raise UserError(f"--noise-norm {noise_norm!r}: choose from element, vector")
        mode = replace(mode, noise_norm=NoiseNorm(noise_norm))
    return mode


def select_modes(
    names: Sequence[str],
    temperature: float | None = None,
    noise_scale: float | None = None,
    noise_norm: str | None = None,
) -> tuple[Mode, ...]:
    """The named modes (or "all"), each override given to the modes that have the parameter.

    Raises:
        UserError: an override that no named mode has, or a temperature for modes of several kinds.
    """
    chosen = list(MODES) if "all" in names else list(dict.fromkeys(names))
    modes = [get_mode(name) for name in chosen]
    if temperature is not None and len({m.name.split("_")[0] for m in modes}) > 1:
        raise UserError("--temperature fits one kind of mode; name only hard, soft or fuzzy modes")
    noisy = [m.name for m in modes if m.randomness is Randomness.NORMAL]
    if not noisy and not (noise_scale is None and noise_norm is None):
        raise UserError("no chosen mode has noise; add soft_sample or fuzzy_sample to --modes")
    return tuple(
        get_mode(m.name, temperature, noise_scale, noise_norm)
        if m.name in noisy
        else get_mode(m.name, temperature)
        for m in modes
    )


def _checked(flag: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{flag} {value} must be a finite number >= 0")
    return float(value)


CDF_BLOCK = 512
"""Tokens of a block in `invert_cdf`."""


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


def _softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Softmax in float32 whatever the logits' dtype; the one-hot limit at temperature 0."""
    if temperature == 0:
        import torch

        hot_NV = torch.zeros_like(logits_NV, dtype=torch.float32)
        return hot_NV.scatter_(-1, logits_NV.argmax(-1, keepdim=True), 1.0)
    return (logits_NV.float() / temperature).softmax(-1)
