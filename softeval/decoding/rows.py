"""One row of a batch: a sample on its way from the prompt through CoT and prefill to its answer.

What the host knows of it: pure bookkeeping on token ids; no tensor, no model. `state` has the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from softeval.decoding.state import Phase
from softeval.model.stopping import Limits, Stopper
from softeval.records import AnswerStop, SampleKey, StopReason


@dataclass(eq=False)
class Row:
    """A sample in progress, as the host knows it since it last looked.

    Attributes:
        phase: what the row does with the logits of a pass.
        position: where the vector fed next stands.
        lengths: tokens of the CoT and of the answer so far.
        ended: whether the mode ends the CoT with the last of them.
        in_cot: whether the CoT has not ended yet.
    """

    key: SampleKey
    prompt_ids: tuple[int, ...]
    phase: int = Phase.COT
    position: int = 0
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    ended: int = 0
    in_cot: bool = True
    cot_ids: Sequence[int] = ()
    prefill_ids: tuple[int, ...] = ()
    answer_ids: Sequence[int] = ()
    stop_reason: StopReason | None = None
    answer_stop: AnswerStop | None = None
    answer: str | None = None
    cot_text: str = ""
    started: float = field(default_factory=time.perf_counter)

    def judge_cot(
        self,
        ids: Sequence[int],
        stopper: Stopper,
        limits: Limits,
        eos_ids: frozenset[int],
        ended: bool = False,
        silent: int = 0,
    ) -> None:
        """End the CoT of these shadow tokens where the rules say so.

        Where the mode ends it (`ended`), the last step is not taken, unless the text ends with it
        anyway or it is the first: a CoT has at least one position. The first `silent` tokens are no
        text that could end it.
        """
        spoken = len(ids) > silent
        if spoken and ids[-1] in eos_ids:
            self.end_cot(ids, StopReason.EOS, stopper)
        elif spoken and stopper.ends_cot(ids):
            self.end_cot(ids, StopReason.ANSWER_PREFIX, stopper)
        elif ended and len(ids) > 1:
            self.end_cot(ids[:-1], StopReason.MODE, stopper)
        elif len(ids) >= limits.max_cot_tokens:
            self.end_cot(ids, StopReason.LENGTH, stopper)

    def end_cot(self, ids: Sequence[int], reason: StopReason, stopper: Stopper) -> None:
        """End the CoT: of these tokens, for this reason."""
        self.cot_ids = ids
        self.stop_reason = reason
        self.in_cot = False
        self.cot_text = stopper.decode(ids)
        self.prefill_ids = stopper.prefill_ids(self.cot_text, reason)

    def judge_answer(
        self, ids: Sequence[int], stopper: Stopper, limits: Limits, eos_ids: frozenset[int]
    ) -> None:
        """End the answer of these tokens at its closing brace, an EOS or the cap."""
        self.answer_ids = ids
        self.answer = stopper.closed_answer(ids)
        if self.answer is not None:
            self.answer_stop = AnswerStop.CLOSED
        elif ids[-1] in eos_ids:
            self.answer_stop = AnswerStop.EOS
        elif len(ids) >= limits.max_answer_tokens:
            self.answer_stop = AnswerStop.LENGTH
