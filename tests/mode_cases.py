"""Steps of a mode on made-up logits, for the tests of the modes beside the paper's."""

from __future__ import annotations

import torch
from torch import nn

from softeval.model.embedding import InputEmbedding
from softeval.modes import Mode, Randomness, Seen, Step


class Same:
    """A head that hands the state through: the logits are the hidden state."""

    def __init__(self, vocab: int) -> None:
        self.matrix_VD = torch.eye(vocab)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return hidden_ND


def seen_of(logits_NV: torch.Tensor) -> Seen:
    """Logits as a model of as many dimensions as tokens shows them; E is the identity, so x is y."""
    vocab = logits_NV.shape[-1]
    table = nn.Embedding(vocab, vocab)
    table.weight.requires_grad_(False).copy_(torch.eye(vocab))
    return Seen(logits_NV, InputEmbedding(table, vocab), logits_NV, Same(vocab))


def numbers(mode: Mode, seen: Seen, seed: int = 0) -> torch.Tensor | None:
    """The random numbers that a step asks for."""
    kind, width = mode.draws(seen.embedding)
    generator = torch.Generator().manual_seed(seed)
    rows = len(seen.logits_NV)
    if kind is Randomness.NORMAL:
        return torch.randn(rows, width, generator=generator)
    shape = (rows, width) if width > 1 else (rows,)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return uniform if kind is Randomness.UNIFORM else None


def take(mode: Mode, seen: Seen, drawn: torch.Tensor | None = None) -> Step:
    """One step, with numbers of its own unless some are given."""
    state = mode.begin(len(seen.logits_NV), torch.device("cpu"))
    drawn = numbers(mode, seen) if drawn is None else drawn
    return mode.step(seen, mode.probs(seen), drawn, state)


def random_logits(rows: int = 8, vocab: int = 40, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)) * scale
