"""A mode that is no part of softeval: what somebody else would write, registered under its own name.

Half of the likeliest token's embedding, half of the mixture, and Gaussian noise that grows with the
steps taken; it has a name that says nothing, a state, an option and a density.
"""

from dataclasses import dataclass

# pyright: basic, reportOptionalOperand=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
import torch

import softeval
from softeval.modes import Mode, Randomness, Step


@softeval.register_mode
@dataclass(frozen=True)
class Dozen(Mode):
    name: str = "zwoelf"
    family: str = "dozen"
    loudness: float = 0.1

    @property
    def randomness(self):
        return Randomness.NORMAL

    def begin(self, rows, device):
        return torch.zeros(rows, device=device)

    def probs(self, seen):
        probs = seen.logits_NV.float().softmax(-1)
        return (probs + torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1])) / 2

    def step(self, seen, probs_NV, drawn, state):
        loud = self.loudness * seen.embedding.rms * (1 + state.clamp(max=3))
        fed = seen.embedding.mix(probs_NV) + loud[:, None] * drawn
        return Step(
            fed.to(seen.embedding.dtype),
            probs_NV.argmax(-1),
            record_NR=loud[:, None],
            state=state + 1,
        )

    def log_prob(self, seen, taken):
        loud = taken.record_NR
        error = taken.fed_ND.float() - seen.embedding.mix(self.probs(seen))
        return -(error / loud).square().sum(-1) / 2
