"""COCONUT: the last hidden state is the next input.

Hao et al., *Training Large Language Models to Reason in a Continuous Latent Space* (2024, arXiv
2412.06769). The state after the final norm, of which the logits are made, is fed as it is; a model has
to be trained for that (`softeval train --method coconut`) and then thinks in a fixed number of such states
before its CoT goes on in tokens: `latents`. `realign` makes it work without training, after Zou et al., *Latent
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
    import torch
    from torch import Tensor

RIDGE = 1e-5
ROWS = 16_384
"""Rows of a table that are held in float32 at a time."""


@dataclass(frozen=True)
class Coconut(Mode):
    """The last hidden state, fed back; the shadow is the most likely token.

    Attributes:
        realign: map it into the space of the input embeddings first.
        latents: steps that feed it; after them the CoT goes on in its most likely tokens, and only
            their text can end it. 0 feeds it to the end.
    """

    name: str = "coconut"
    family: str = "coconut"
    realign: bool = False
    latents: int = 0

    def __post_init__(self) -> None:
        if self.latents < 0:
            raise UserError(f"{self.name}: latents starts at 0")

    @property
    def is_plain(self) -> bool:
        return True

    @property
    def needs_head(self) -> bool:
        return self.realign

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) softmax(z); nothing is mixed by it."""
        return softmax(seen.logits_NV, 1.0)

    @property
    def silent_steps(self) -> int:
        return self.latents

    def begin(self, rows: int, device: torch.device) -> Tensor | None:
        """(rows,) steps so far, where they are counted."""
        import torch

        return torch.zeros(rows, dtype=torch.int32, device=device) if self.latents else None

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        fed_ND, shadow_N = self.thought(seen), seen.logits_NV.argmax(-1)
        if state is None:
            return Step(fed_ND, shadow_N)
        fed_ND = fed_ND.where((state < self.latents)[:, None], seen.embedding.rows(shadow_N))
        return Step(fed_ND, shadow_N, state=state + 1)

    def thought(self, seen: Seen) -> Tensor:
        """(N, D) what a step feeds, in the dtype the model is fed; differentiable in the hidden state.

        Realigned, A counts as a constant; it is that of the present weights.
        """
        fed_ND = seen.thought_ND
        if self.realign:
            assert seen.head is not None, "realigning reads the output head"
            alignment = _alignment(seen.head, seen.embedding, fed_ND.device)
            fed_ND = fed_ND.float() @ alignment.matrix_DD
            fed_ND = fed_ND * (alignment.length / fed_ND.norm(dim=-1, keepdim=True))
        return fed_ND.to(seen.embedding.dtype)

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the state itself, as it is no mixture of embeddings; of a token the other's embedding.

        Raises:
            UserError: the other model has another width.
        """
        assert taken.fed_ND is not None, "a state that was fed is kept"
        if taken.fed_ND.shape[-1] != other.fed_width:
            raise UserError(
                f"a state of {self.name} of width {taken.fed_ND.shape[-1]} cannot be fed to a model of"
                f" width {other.fed_width}; give a base model as wide"
            )
        if not self.latents:
            return taken.fed_ND
        own_ND = seen.embedding.rows(taken.shadow_N).to(taken.fed_ND.dtype)
        is_token_N1 = (taken.fed_ND == own_ND).all(-1, keepdim=True)
        return other.rows(taken.shadow_N).to(own_ND.dtype).where(is_token_N1, taken.fed_ND)


class Alignment(NamedTuple):
    """A in float32, and the mean length of an embedding."""

    matrix_DD: Tensor
    length: float


_ALIGNMENTS: WeakKeyDictionary[Embedding, Alignment] = WeakKeyDictionary()


def forget_alignment(embedding: Embedding) -> None:
    """Have it made anew, because training has moved the weights."""
    _ALIGNMENTS.pop(embedding, None)


def _alignment(head: Head, embedding: Embedding, device: torch.device) -> Alignment:
    """Made once for a checkpoint where it lies, and usable where gradients are taken."""
    import torch

    found = _ALIGNMENTS.get(embedding)
    if found is None or found.matrix_DD.device != device:
        with torch.inference_mode(False), torch.no_grad():
            found = _ALIGNMENTS[embedding] = _align(head.matrix_VD, embedding)
    return found


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
