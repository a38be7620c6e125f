"""Samples that wait, and rows: samples on their way through CoT and prefill to their answers.

A prompt goes through the model once, whatever the number of its samples, together with the next
questions' as many as make one pass (`RowFeeder.together`); each sample's place gets a copy. Not
straight into places, as these come free one by one: each short prompt would then be a pass of its
own, which takes as long as a step of the whole batch. Only one pass's prompts are kept.

Of a row there is here what the host knows: bookkeeping on token ids; `state` has the rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from softeval.decoding.state import Phase
from softeval.model.feeding import Prefilled, RowFeeder
from softeval.model.language_model import LanguageModel
from softeval.model.stopping import Limits, Stopper
from softeval.records import AnswerStop, SampleKey, StopReason


@dataclass(frozen=True)
class Question:
    """A prompt and which of its samples to generate."""

    task: str
    doc_id: int
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]

    @property
    def keys(self) -> list[SampleKey]:
        """What names its samples."""
        return [SampleKey(self.task, self.doc_id, sample) for sample in self.samples]


class Waiting:
    """Samples not yet admitted, question by question.

    Args:
        questions: in the order in which they are taken.
        lm: embeds their prompts.
        feeder: prefills them.
    """

    def __init__(self, questions: Sequence[Question], lm: LanguageModel, feeder: RowFeeder) -> None:
        self._questions = deque(question for question in questions if question.samples)
        self._prefilled: deque[Prefilled] = deque()
        self._admitted = 0
        self._lm = lm
        self._feeder = feeder

    def take(self, most: int) -> tuple[Question, tuple[int, ...], Prefilled] | None:
        """Up to `most` samples of the next question, and its prompt less the last token."""
        if not self._questions or most == 0:
            return None
        if not self._prefilled:
            self._prefill()
        question, prefilled = self._questions[0], self._prefilled[0]
        samples = question.samples[self._admitted : self._admitted + most]
        self._admitted += len(samples)
        if self._admitted == len(question.samples):
            self._questions.popleft()
            self._prefilled.popleft()
            self._admitted = 0
        return question, samples, prefilled

    def _prefill(self) -> None:
        """Prefill the next questions' prompts, as many as make one pass."""
        count = self._feeder.together(len(q.prompt_ids) - 1 for q in self._questions)
        some = [q.prompt_ids[:-1] for q in islice(self._questions, count)]
        ids = [torch.tensor(prompt, dtype=torch.long, device=self._lm.device) for prompt in some]
        prompts = [self._lm.embedding.rows(ids_P) for ids_P in ids]
        self._prefilled.extend(self._feeder.prefill_together(prompts))


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
        if spoken and stopper.ends_cot(ids):  # before EOS, which may be the protocol's stop
            self.end_cot(ids, StopReason.ANSWER_PREFIX, stopper)
        elif spoken and ids[-1] in eos_ids:
            self.end_cot(ids, StopReason.EOS, stopper)
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
        """End the answer of these tokens at the brace that closes an open box, an EOS or the cap."""
        self.answer_ids = ids
        self.answer = stopper.closed_answer(ids)
        if self.answer is not None and stopper.protocol.opens_box:
            self.answer_stop = AnswerStop.CLOSED
        elif ids[-1] in eos_ids:
            self.answer_stop = AnswerStop.EOS
        elif len(ids) >= limits.max_answer_tokens:
            self.answer_stop = AnswerStop.LENGTH
