"""COCONUT: the last hidden state is the next input.

Hao et al., *Training Large Language Models to Reason in a Continuous Latent Space* (2024, arXiv
2412.06769). The state after the final norm, of which the logits are made, is fed as it is; a model has
to be trained for that. `realign` makes it work without training, after Zou et al., *Latent
Collaboration in Multi-Agent Systems* (2025, arXiv 2511.20639): h·A, A = (WᵀW + 10⁻⁵·I)⁻¹·WᵀE with W the
output head, scaled to the mean length of an embedding. Deterministic, hence without a density.

Shapes: N rows, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from softeval.errors import UserError
from softeval.modes.sampling import softmax
from softeval.modes.seam import Embedding, Head, Mode, Seen, Step, Taken

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-5
ROWS = 16_384
"""Rows of a table that are held in float32 at a time."""


@dataclass(frozen=True)
class Coconut(Mode):
    """Feeding back the last hidden state; the shadow is the most likely token.

    Attributes:
        realign: map it into the space of the input embeddings first.
    """

    name: str = "coconut"
    family: str = "coconut"
    realign: bool = False

    @property
    def is_plain(self) -> bool:
        return True

    @property
    def needs_head(self) -> bool:
        return self.realign

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) softmax(z); nothing is mixed by it."""
        return softmax(seen.logits_NV, 1.0)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        fed_ND = seen.thought_ND
        if self.realign:
            assert seen.head is not None, "realigning reads the output head"
            alignment = _alignment(seen.head, seen.embedding)
            fed_ND = fed_ND.float() @ alignment.matrix_DD
            fed_ND = fed_ND * (alignment.length / fed_ND.norm(dim=-1, keepdim=True))
        return Step(fed_ND.to(seen.embedding.dtype), seen.logits_NV.argmax(-1))

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the state itself: it is no mixture of embeddings.

        Raises:
            UserError: the other model has another width.
        """
        assert taken.fed_ND is not None, "a state that was fed is kept"
        if taken.fed_ND.shape[-1] != other.width:
            raise UserError(
                f"a state of {self.name} of width {taken.fed_ND.shape[-1]} cannot be fed to a model of"
                f" width {other.width}; give a base model as wide"
            )
        return taken.fed_ND


class Alignment(NamedTuple):
    """A in float32, and the mean length of an embedding."""

    matrix_DD: Tensor
    length: float


_ALIGNMENTS: WeakKeyDictionary[Embedding, Alignment] = WeakKeyDictionary()


def _alignment(head: Head, embedding: Embedding) -> Alignment:
    """Made once for a loaded checkpoint."""
    if embedding not in _ALIGNMENTS:
        _ALIGNMENTS[embedding] = _align(head.matrix_VD, embedding)
    return _ALIGNMENTS[embedding]


def _align(head_VD: Tensor, embedding: Embedding) -> Alignment:
    """Least squares from the head to the embedding; the sums in float32, the solution in float64."""
    import torch

    gram_DD = torch.zeros(head_VD.shape[1], head_VD.shape[1], device=head_VD.device)
    cross_DD, length = torch.zeros_like(gram_DD), 0.0
    for ids in torch.arange(embedding.vocab, device=head_VD.device).split(ROWS):
        head_vD, rows_vD = head_VD[ids].float(), embedding.rows(ids).float()
        gram_DD += head_vD.T @ head_vD
        cross_DD += head_vD.T @ rows_vD
        length += float(rows_vD.norm(dim=-1).sum())
    ridge_DD = RIDGE * torch.eye(len(gram_DD), dtype=torch.float64)
    solved_DD = torch.linalg.solve(gram_DD.double().cpu() + ridge_DD, cross_DD.double().cpu())
    return Alignment(solved_DD.to(gram_DD), length / embedding.vocab)
