"""Decodes many samples at once under one CoT mode.

Every row of the batch goes its own way: a prompt is prefilled once and shared by its samples, a
finished row leaves and a waiting one takes its place. A sample's result does not depend on what
else is in the batch: rows keep to themselves in attention (`cache`), random numbers are keyed
(`randomness`), and the number of rows of a pass is rounded up to a tile (`feeding`).

Shapes: N rows in use (with the tile's idle rows), V vocabulary, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softeval.decoding.batch_size import auto_batch_size
from softeval.decoding.randomness import NoiseFeed, SampleRandomness, Stream
from softeval.decoding.rows import Limits, Row, check_context
from softeval.decoding.trace import Trace, measure
from softeval.errors import UserError
from softeval.model.feeding import Prefilled, RowFeeder, tiled
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import output_head
from softeval.modes import Draws, Mode, Randomness, Seen, Step, invert_cdf
from softeval.records import Generation, SampleKey

NOT_FINITE = -1
"""Stands in for the token of a row whose logits hold NaN or infinity."""


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


class Decoder:
    """Runs questions through one checkpoint and one mode.

    Args:
        lm: the checkpoint.
        mode: how the CoT is fed.
        limits: caps on CoT and answer.
        seed: seed of the random numbers.
        batch_size: rows at a time; None chooses by memory. It never changes a result.
        answer_temperature: 0 decodes the answer greedily, as every evaluation does; training
            samples it at 1.
        record_top: how many of the mixture's largest entries to record at each position.
        keep_inputs: keep the vectors that were fed.
        given: CoTs, with what was fed, that these samples take instead of thinking their own.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mode: Mode,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        seed: int = 0,
        batch_size: int | None = None,
        answer_temperature: float = 0.0,
        record_top: int = 0,
        keep_inputs: bool = False,
        given: Mapping[SampleKey, Generation] | None = None,
    ) -> None:
        _check_limits(limits, batch_size)
        self.lm = lm
        self.mode = mode
        self.limits = limits
        self.seed = seed
        self.batch_size = batch_size
        self.answer_temperature = answer_temperature
        self.record_top = record_top
        self.keep_inputs = keep_inputs
        self.given = given or {}
        self.stopper = lm.stopper
        self.head = output_head(lm) if mode.needs_head else None

    def run(self, questions: Sequence[Question]) -> Iterator[Generation]:
        """Generate every sample of every question, in order of finishing.

        Raises:
            UserError: a question's prompt and caps together exceed the context, or a model whose
                logits are not finite.
        """
        lengths = [(len(q.prompt_ids), q.task, q.doc_id) for q in questions]
        check_context(lengths, self.limits, self.lm)
        total = sum(len(q.samples) for q in questions)
        if total == 0:
            return
        longest = max(lengths)[0] + self.limits.room(self.lm)
        size = self.batch_size or auto_batch_size(self.lm.model, longest)
        batch = _Batch(self, min(size, total), longest)
        waiting = _Waiting(questions)
        while True:
            batch.admit(waiting)
            if not batch.rows:
                return
            yield from batch.step()


class _Waiting:
    """Samples not yet admitted, question by question."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._pending = [(q, s) for q in questions for s in q.samples][::-1]

    def take(self, most: int) -> tuple[Question, list[int]] | None:
        """Up to `most` samples of the next question."""
        if not self._pending or most == 0:
            return None
        question = self._pending[-1][0]
        samples: list[int] = []
        while self._pending and len(samples) < most and self._pending[-1][0] is question:
            samples.append(self._pending.pop()[1])
        return question, samples


class _Batch:
    """The rows in flight and their tensors. Rows in use are always the first ones."""

    def __init__(self, decoder: Decoder, size: int, longest: int) -> None:
        lm, mode = decoder.lm, decoder.mode
        self.decoder = decoder
        self.size = size
        self.rows: list[Row] = []
        self._feeder = RowFeeder(lm.model, size, longest)
        self._prompt: tuple[Question, Prefilled] | None = None
        passed = tiled(size)
        self._fed_ND = torch.zeros(passed, lm.embedding.width, dtype=lm.dtype, device=lm.device)
        self._noise = NoiseFeed(mode.draws(lm.embedding), passed, lm.device)
        answers = Draws(Randomness.UNIFORM if decoder.answer_temperature else Randomness.NONE)
        self._answer_noise = NoiseFeed(answers, passed, lm.device, Stream.ANSWER)
        self._state = mode.begin(passed, lm.device)
        cap = decoder.limits.max_cot_tokens
        top = min(decoder.record_top, lm.vocab)
        self._trace = Trace(passed, cap, top, lm.device, decoder.keep_inputs)

    @torch.inference_mode()
    def admit(self, waiting: _Waiting) -> None:
        """Fill free rows with waiting samples."""
        while taken := waiting.take(self.size - len(self.rows)):
            question, samples = taken
            places = range(len(self.rows), len(self.rows) + len(samples))
            self._feeder.fill(places, self._prefilled(question))
            last = torch.tensor([question.prompt_ids[-1]], device=self._fed_ND.device)
            self._fed_ND[places.start : places.stop] = self.decoder.lm.embedding.rows(last)
            fresh = self.decoder.mode.begin(len(places), self._fed_ND.device)
            if self._state is not None and fresh is not None:
                self._state[places.start : places.stop] = fresh
            for sample in samples:
                key = SampleKey(question.task, question.doc_id, sample)
                random = SampleRandomness(self.decoder.seed, key)
                position = len(question.prompt_ids) - 1
                row = Row(key, question.prompt_ids, random, position)
                if (given := self.decoder.given.get(key)) is not None:
                    row.take_cot(given.shadow_ids.tolist(), given.stop_reason, self.decoder.stopper)
                self.rows.append(row)

    def _prefilled(self, question: Question) -> Prefilled:
        """The prompt less its last token; the latest is kept for the question's other samples."""
        if self._prompt is None or self._prompt[0] is not question:
            ids = torch.tensor(
                question.prompt_ids[:-1], dtype=torch.long, device=self._fed_ND.device
            )
            inputs_PD = self.decoder.lm.embedding.rows(ids)
            self._prompt = question, self._feeder.prefill(inputs_PD)
        return self._prompt[1]

    def step(self) -> list[Generation]:
        """One forward pass: every row is fed one vector and chooses the next; ended rows leave."""
        with torch.inference_mode():
            self._choose(self._forward())
        done = [index for index, row in enumerate(self.rows) if row.answer_stop is not None]
        finished = [self._finish(index) for index in done]
        with torch.inference_mode():
            self._remove(done)
        return finished

    def _forward(self) -> Seen:
        """What the model shows after each row was fed its vector at its position."""
        positions = [row.position for row in self.rows]
        shown = self._feeder.step(self._fed_ND[: tiled(len(positions))], positions)
        for row in self.rows:
            row.position += 1
        lm = self.decoder.lm
        logits_NV = lm.logits(shown.logits_NW)
        return Seen(logits_NV, lm.embedding, shown.hidden_ND, self.decoder.head)

    def _choose(self, seen: Seen) -> None:
        """Let each row choose and set what it is fed next."""
        logits_NV, device = seen.logits_NV, seen.logits_NV.device
        thinking = [index for index, row in enumerate(self.rows) if row.chooses_cot]
        answering = any(not row.chooses_cot and not row.queue for row in self.rows)
        chosen_N = (
            self._answer_tokens(logits_NV)
            if answering
            else torch.zeros(len(logits_NV), dtype=torch.long, device=device)
        )
        step, ended = None, []
        if thinking:
            step = self._think(seen, thinking)
            chosen_N[thinking] = step.shadow_N[thinking]
            ended = [] if step.ends_N is None else step.ends_N.tolist()
        feed, ids = self._advance(chosen_N.tolist(), set(thinking), ended)
        fed_ND = self.decoder.lm.embedding.rows(torch.tensor(ids, device=device))
        self._fed_ND[: len(self.rows)] = fed_ND
        if step is not None and feed:
            self._fed_ND[feed] = step.inputs_ND[feed]
        if self.decoder.given:
            self._feed_given()

    def _feed_given(self) -> None:
        """Let rows that stand in a given CoT be fed its vectors."""
        for index, row in enumerate(self.rows):
            given, step = self.decoder.given.get(row.key), row.position - len(row.prompt_ids)
            if given is not None and given.inputs is not None and step < len(given.inputs):
                self._fed_ND[index] = given.inputs[step]

    def _think(self, seen: Seen, thinking: list[int]) -> Step:
        """A CoT step for all rows at once; recorded for those in their CoT."""
        mode, logits_NV = self.decoder.mode, seen.logits_NV
        steps = [len(row.cot_ids) for row in self.rows]
        drawn = self._noise.read([row.random for row in self.rows], steps, len(logits_NV))
        probs_NV = mode.probs(seen)
        state = None if self._state is None else self._state[: len(logits_NV)]
        step = mode.step(seen, probs_NV, drawn, state)
        if self._state is not None and step.state is not None:
            self._state[: len(logits_NV)] = step.state
        where = torch.tensor(thinking, device=logits_NV.device)
        when = torch.tensor([steps[index] for index in thinking], device=logits_NV.device)
        measures = measure(logits_NV, probs_NV, mode.is_plain)
        self._trace.write(where, when, measures, probs_NV, step)
        return step._replace(shadow_N=_if_finite(step.shadow_N, measures.top1_prob_N))

    def _answer_tokens(self, logits_NV: Tensor) -> Tensor:
        """(N,) next ordinary tokens, greedy or sampled at the answer temperature."""
        temperature = self.decoder.answer_temperature
        greedy_N = logits_NV.argmax(-1)
        largest_N = logits_NV.gather(-1, greedy_N[:, None])[:, 0]
        if temperature == 0:
            return _if_finite(greedy_N, largest_N)
        steps = [len(row.answer_ids) for row in self.rows]
        uniform_N = self._answer_noise.read([r.random for r in self.rows], steps, len(logits_NV))
        assert uniform_N is not None
        sampled_N = invert_cdf((logits_NV.float() / temperature).softmax(-1), uniform_N)
        return _if_finite(sampled_N, largest_N)

    def _advance(
        self, chosen: list[int], thinking: set[int], ended: list[bool]
    ) -> tuple[list[int], list[int]]:
        """Move each row on. Returns the rows fed their mode's vector, and each row's token id.

        `ended` says whose CoT the mode ends here; empty for none.
        """
        decoder = self.decoder
        rules = (decoder.stopper, decoder.limits, decoder.lm.eos_ids)
        feed: list[int] = []
        ids: list[int] = []
        for index, row in enumerate(self.rows):
            token = chosen[index]
            if token == NOT_FINITE and not row.queue:
                raise self._not_finite(row)
            if index in thinking:
                if row.step_cot(token, *rules, ended=bool(ended) and ended[index]):
                    feed.append(index)
                else:
                    token = row.queue.popleft()
            elif row.queue:
                token = row.queue.popleft()
            else:
                row.step_answer(token, *rules)
            ids.append(token)
        return feed, ids

    def _not_finite(self, row: Row) -> UserError:
        key, dtype = row.key, str(self.decoder.lm.dtype).removeprefix("torch.")
        part, step = ("CoT", row.cot_ids) if row.in_cot else ("answer", row.answer_ids)
        half = dtype in ("float16", "bfloat16")
        remedy = "try --dtype float32" if half else "the checkpoint or its architecture overflows"
        return UserError(
            f"{key.task} question {key.doc_id}, sample {key.sample}: the logits at {part} position "
            f"{len(step)} (token {row.position} of the sequence) are not finite in {dtype}; {remedy}"
        )

    def _finish(self, index: int) -> Generation:
        row, decoder = self.rows[index], self.decoder
        assert row.stop_reason is not None and row.answer_stop is not None
        ids = {
            "prompt_ids": row.prompt_ids,
            "shadow_ids": row.cot_ids,
            "prefill_ids": row.prefill_ids,
            "answer_ids": row.answer_ids,
        }
        return Generation(
            key=row.key,
            mode=decoder.mode.name,
            cot_text=row.cot_text,
            prefill_text=decoder.stopper.prefill_text(row.cot_text, row.stop_reason),
            answer=row.answer,
            answer_text=decoder.stopper.decode(row.answer_ids),
            stop_reason=row.stop_reason,
            answer_stop=row.answer_stop,
            seconds=time.perf_counter() - row.started,
            **{name: np.asarray(value, dtype=np.int64) for name, value in ids.items()},
            **self._trace.read(index, len(row.cot_ids)),
        )

    def _remove(self, done: list[int]) -> None:
        """Drop rows; the last ones move into the holes so that rows in use stay in front."""
        for index in reversed(done):
            last = len(self.rows) - 1
            if index != last:
                self._feeder.move(last, index, self.rows[last].position)
                self._fed_ND[index] = self._fed_ND[last]
                if self._state is not None:
                    self._state[index] = self._state[last]
                self._trace.move(last, index)
                self._noise.move(last, index)
                self._answer_noise.move(last, index)
                self.rows[index] = self.rows[last]
            self.rows.pop()


def _if_finite(chosen_N: Tensor, largest_N: Tensor) -> Tensor:
    """The tokens, or `NOT_FINITE` where a row's largest number is none; read with the tokens."""
    return chosen_N.masked_fill(~largest_N.isfinite(), NOT_FINITE)


def _check_limits(limits: Limits, batch_size: int | None) -> None:
    if limits.max_cot_tokens < 1 or limits.max_answer_tokens < 1:
        raise UserError("--max-cot-tokens and --max-answer-tokens must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError("--batch-size must be auto or at least 1")
