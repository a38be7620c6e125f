"""Hard sampling matched to another mode: what the mode does without its vectors.

A token is drawn from the mode's own distribution, with its temperature and filters, and its embedding
is fed. With `stops` the CoT ends where the mode's stop rule ends it besides, so that what the rule
does by itself is seen. A control, not a mode to choose: it has no name of its own.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from softeval.modes.sampling import invert_cdf
from softeval.modes.seam import Mode, Randomness, Seen, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MatchedHard(Mode):
    """Tokens of another mode's distribution.

    Attributes:
        of: that mode.
        stops: whether its stop rule ends the CoT; it then has one, and draws nothing.
    """

    of: Mode
    stops: bool = False

    feeds_tokens: ClassVar[bool] = True

    @property
    def randomness(self) -> Randomness:
        return Randomness.UNIFORM

    @property
    def needs_head(self) -> bool:
        return self.stops and self.of.needs_head

    @property
    def is_plain(self) -> bool:
        return self.of.is_plain

    def begin(self, rows: int, device: torch.device) -> Tensor | None:
        return self.of.begin(rows, device)

    def probs(self, seen: Seen) -> Tensor:
        """(N, V) the other mode's distribution."""
        return self.of.probs(seen)

    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Draw a token; of the other mode's step only its end is taken."""
        assert drawn is not None, "hard sampling needs one uniform a row"
        shadow_N = invert_cdf(probs_NV, drawn)
        hard = Step(seen.embedding.rows(shadow_N), shadow_N)
        if not self.stops:
            return hard
        other = self.of.step(seen, probs_NV, None, state)
        return hard._replace(state=other.state, ends_N=other.ends_N)


def hard_controls(mode: Mode) -> tuple[MatchedHard | None, MatchedHard | None]:
    """Matched hard sampling, and the same under the mode's stop rule; None where there is none."""
    if mode.feeds_tokens:
        return None, None
    matched = MatchedHard(mode.name, mode.family, mode)
    if not (mode.has_stop_rule and mode.is_greedy):
        return matched, None
    return matched, MatchedHard(mode.name, mode.family, mode, stops=True)
