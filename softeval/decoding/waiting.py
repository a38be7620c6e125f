"""Samples that wait for a place in the batch, and the prompts that are prefilled for them.

A prompt goes through the model once, whatever the number of its samples, together with the next
questions' prompts, as many as make one pass (`RowFeeder.together`); each sample's place then gets a
copy. They are prefilled ahead of being admitted, and not straight into places, because places come
free one by one: then every short prompt would be a pass of its own, which takes as long as a step of
the whole batch. What is kept is one pass's prompts, or one long one.

Shapes: P prompt length, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from softeval.model.feeding import Prefilled, RowFeeder
from softeval.model.language_model import LanguageModel
from softeval.records import SampleKey


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
        prompts = [self._embedded(q) for q in islice(self._questions, count)]
        self._prefilled.extend(self._feeder.prefill_together(prompts))

    def _embedded(self, question: Question) -> Tensor:
        """(P, D) vectors of the prompt less its last token."""
        ids = torch.tensor(question.prompt_ids[:-1], dtype=torch.long, device=self._lm.device)
        return self._lm.embedding.rows(ids)
