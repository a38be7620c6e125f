"""One row of a batch: a sample on its way from the prompt through CoT and prefill to its answer.

Pure bookkeeping on token ids; no tensor, no model. `advance` takes what the row chose and says what
the row is fed next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from softeval.decoding.randomness import SampleRandomness
from softeval.errors import UserError
from softeval.model.stopping import Stopper
from softeval.records import AnswerStop, SampleKey, StopReason

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel


@dataclass(frozen=True)
class Limits:
    """Caps of a generation (paper appendix C), in tokens; the prefill is not counted."""

    max_cot_tokens: int = 512
    max_answer_tokens: int = 32

    @property
    def tokens(self) -> int:
        """CoT and answer together."""
        return self.max_cot_tokens + self.max_answer_tokens

    def room(self, model: LanguageModel | Checkpoint) -> int:
        """Positions that a sample can take beside its prompt."""
        return self.tokens + model.stopper.longest_prefill


def check_context(
    lengths: Sequence[tuple[int, str, int]], limits: Limits, model: LanguageModel | Checkpoint
) -> None:
    """Refuse caps that do not leave the longest prompt its place in the context.

    Args:
        lengths: (tokens, task, doc_id) of each prompt.
        limits: the caps.
        model: what decodes them.

    Raises:
        UserError: naming the question and the remedy; or a prompt without a token.
    """
    if not lengths:
        return
    shortest, task, doc_id = min(lengths)
    if not shortest:
        raise UserError(f"{task} question {doc_id}: the prompt has no token")
    longest, task, doc_id = max(lengths)
    spare = model.max_length - longest - limits.room(model)
    if spare < 0:
        fits = limits.max_cot_tokens + spare
        remedy = (
            f"lower --max-cot-tokens to at most {fits}"
            if fits > 0
            else "take a checkpoint with a longer context"
        )
        raise UserError(
            f"{task} question {doc_id} has {longest} prompt tokens; with {limits.max_cot_tokens} CoT"
            f" and {limits.max_answer_tokens} answer tokens it exceeds the context of"
            f" {model.max_length}; {remedy}"
        )


@dataclass(eq=False)
class Row:
    """A sample in progress.

    Attributes:
        position: where the token fed next stands.
        queue: token ids that must be fed before the row may choose again.
        in_cot: whether the row's next choice is a CoT step rather than an answer token.
    """

    key: SampleKey
    prompt_ids: tuple[int, ...]
    random: SampleRandomness
    position: int
    cot_ids: list[int] = field(default_factory=list)
    prefill_ids: tuple[int, ...] = ()
    answer_ids: list[int] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    in_cot: bool = True
    stop_reason: StopReason | None = None
    answer_stop: AnswerStop | None = None
    answer: str | None = None
    cot_text: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def chooses_cot(self) -> bool:
        """Whether the logits at hand decide a CoT step."""
        return self.in_cot and not self.queue

    def step_cot(
        self,
        token: int,
        stopper: Stopper,
        limits: Limits,
        eos_ids: frozenset[int],
        ended: bool = False,
    ) -> bool:
        """Take a CoT step whose shadow token is `token`; end the CoT where the rules say so.

        Where the mode ends it (`ended`), the step is not taken, unless the text ends with it anyway
        or it is the first: a CoT has at least one position. Returns whether the step was taken.
        """
        self.cot_ids.append(token)
        reason = None
        if token in eos_ids:
            reason = StopReason.EOS
        elif stopper.ends_cot(self.cot_ids):
            reason = StopReason.ANSWER_PREFIX
        elif ended and len(self.cot_ids) > 1:
            self.cot_ids.pop()
            reason = StopReason.MODE
        elif len(self.cot_ids) >= limits.max_cot_tokens:
            reason = StopReason.LENGTH
        if reason is not None:
            self._end_cot(reason, stopper)
        return reason is not StopReason.MODE

    def take_cot(self, shadow_ids: Sequence[int], reason: StopReason, stopper: Stopper) -> None:
        """Take a whole CoT that is given; its vectors are fed in the place of these tokens."""
        self.cot_ids.extend(shadow_ids)
        self.queue.extend(shadow_ids)
        self._end_cot(reason, stopper)

    def _end_cot(self, reason: StopReason, stopper: Stopper) -> None:
        self.stop_reason = reason
        self.in_cot = False
        self.cot_text = stopper.decode(self.cot_ids)
        self.prefill_ids = stopper.prefill_ids(self.cot_text, reason)
        self.queue.extend(self.prefill_ids)

    def step_answer(
        self, token: int, stopper: Stopper, limits: Limits, eos_ids: frozenset[int]
    ) -> None:
        """Take an answer token; end the answer at its closing brace, an EOS or the cap."""
        self.answer_ids.append(token)
        self.answer = stopper.closed_answer(self.answer_ids)
        if self.answer is not None:
            self.answer_stop = AnswerStop.CLOSED
        elif token in eos_ids:
            self.answer_stop = AnswerStop.EOS
        elif len(self.answer_ids) >= limits.max_answer_tokens:
            self.answer_stop = AnswerStop.LENGTH
