"""Decodes many samples at once under one CoT mode.

Every row of the batch goes its own way: a prompt is prefilled once and shared by its samples, a
finished row leaves and a waiting one takes its place. A sample's result does not depend on what
else is in the batch: rows keep to themselves in attention (`cache`), random numbers are keyed
(`randomness`), and the number of rows given to a matrix product is rounded up to a tile, because
small products round differently.

Shapes: N rows in use (with the tile's idle rows), V vocabulary, D width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softeval.batch_size import auto_batch_size
from softeval.cache import SlotCache, Visibility
from softeval.errors import UserError
from softeval.model import LanguageModel
from softeval.modes import Mode, Randomness, invert_cdf
from softeval.noise import NoiseFeed
from softeval.randomness import SampleRandomness, Stream
from softeval.records import Generation, SampleKey
from softeval.rows import Limits, Row
from softeval.trace import Trace, measure

ROW_TILE = 16
"""Rows of a forward pass are rounded up to a multiple of this. Measured: from 16 rows on, a row of a
float32 matrix product has the same bits whatever the number of rows; below, it has not."""


@dataclass(frozen=True)
class Question:
    """A prompt and which of its samples to generate."""

    task: str
    doc_id: int
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]


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
        self.stopper = lm.stopper
        self.sigma = mode.sigma(lm.embedding)
        self._visibility = Visibility(lm.model)

    def run(self, questions: Sequence[Question]) -> Iterator[Generation]:
        """Generate every sample of every question, in order of finishing.

        Raises:
            UserError: a question's prompt and caps together exceed the context.
        """
        for question in questions:
            self._check_context(question)
        total = sum(len(q.samples) for q in questions)
        if total == 0:
            return
        longest = max(len(q.prompt_ids) for q in questions) + self._room
        size = self.batch_size or auto_batch_size(self.lm.model, longest)
        batch = _Batch(self, min(size, total))
        waiting = _Waiting(self, questions)
        while True:
            batch.admit(waiting)
            if not batch.rows:
                return
            yield from batch.step()

    @property
    def _room(self) -> int:
        limits = self.limits
        return limits.max_cot_tokens + self.stopper.longest_prefill + limits.max_answer_tokens

    def _check_context(self, question: Question) -> None:
        needed = len(question.prompt_ids) + self._room
        if not question.prompt_ids:
            raise UserError(f"{question.task} question {question.doc_id}: the prompt has no token")
        if needed > self.lm.max_length:
            raise UserError(
                f"{question.task} question {question.doc_id}: prompt ({len(question.prompt_ids)}) "
                f"and caps ({self._room}) need {needed} positions, the context has "
                f"{self.lm.max_length}; lower --max-cot-tokens or --max-answer-tokens"
            )


@dataclass(frozen=True)
class _Prefilled:
    """A question whose prompt, less its last token, has been through the model."""

    question: Question
    cache: object | None


class _Waiting:
    """Samples not yet admitted, question by question; holds one prefilled prompt at a time."""

    def __init__(self, decoder: Decoder, questions: Sequence[Question]) -> None:
        self._decoder = decoder
        self._pending = [(q, s) for q in questions for s in q.samples][::-1]
        self._prefilled: _Prefilled | None = None

    def take(self, most: int) -> tuple[_Prefilled, list[int]] | None:
        """Up to `most` samples of the next question, with its prompt prefilled."""
        if not self._pending or most == 0:
            return None
        question = self._pending[-1][0]
        if self._prefilled is None or self._prefilled.question is not question:
            self._prefilled = _Prefilled(question, self._prefill(question))
        samples: list[int] = []
        while self._pending and len(samples) < most and self._pending[-1][0] is question:
            samples.append(self._pending.pop()[1])
        return self._prefilled, samples

    @torch.inference_mode()
    def _prefill(self, question: Question) -> object | None:
        from transformers import DynamicCache

        if len(question.prompt_ids) == 1:
            return None
        lm = self._decoder.lm
        ids = torch.tensor([question.prompt_ids[:-1]], device=lm.device)
        cache = DynamicCache()
        lm.model(
            inputs_embeds=lm.embedding.rows(ids),
            position_ids=torch.arange(ids.shape[1], device=lm.device)[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache


class _Batch:
    """The rows in flight and their tensors. Rows in use are always the first ones."""

    def __init__(self, decoder: Decoder, size: int) -> None:
        lm, mode = decoder.lm, decoder.mode
        self.decoder = decoder
        self.size = size
        self.rows: list[Row] = []
        tiled = _tiled(size)
        self._cache = SlotCache(tiled)
        self._fed_ND = torch.zeros(tiled, lm.embedding.width, dtype=lm.dtype, device=lm.device)
        self._noise = NoiseFeed(mode.randomness, tiled, lm.embedding.width, lm.device)
        answers = Randomness.UNIFORM if decoder.answer_temperature else Randomness.NONE
        self._answer_noise = NoiseFeed(answers, tiled, 1, lm.device, Stream.ANSWER)
        cap = decoder.limits.max_cot_tokens
        self._trace = Trace(tiled, cap, min(decoder.record_top, lm.vocab), lm.device)
        if decoder.keep_inputs:
            self._trace.keep_inputs(lm.embedding.width, lm.dtype)

    @torch.inference_mode()
    def admit(self, waiting: _Waiting) -> None:
        """Fill free rows with waiting samples."""
        embedding = self.decoder.lm.embedding
        while taken := waiting.take(self.size - len(self.rows)):
            prefilled, samples = taken
            question = prefilled.question
            places = range(len(self.rows), len(self.rows) + len(samples))
            if prefilled.cache is not None:
                self._cache.fill(places, prefilled.cache)  # type: ignore[arg-type]
            last = torch.tensor([question.prompt_ids[-1]], device=self._fed_ND.device)
            self._fed_ND[places.start : places.stop] = embedding.rows(last)
            for sample in samples:
                key = SampleKey(question.task, question.doc_id, sample)
                random = SampleRandomness(self.decoder.seed, key)
                position = len(question.prompt_ids) - 1
                self.rows.append(Row(key, question.prompt_ids, random, position))

    def step(self) -> list[Generation]:
        """One forward pass: every row is fed one vector and chooses the next; ended rows leave."""
        with torch.inference_mode():
            logits_NV = self._forward()
            self._choose(logits_NV)
        done = [index for index, row in enumerate(self.rows) if row.answer_stop is not None]
        finished = [self._finish(index) for index in done]
        with torch.inference_mode():
            self._remove(done)
        return finished

    def _forward(self) -> Tensor:
        """(N, V) logits after feeding each row its vector at its position."""
        decoder, rows = self.decoder, self.rows
        tiled = _tiled(len(rows))
        places = [row.position for row in rows] + [0] * (tiled - len(rows))
        positions_N = torch.tensor(places, device=self._fed_ND.device)
        self._cache.window.point(positions_N, max(places))
        output = decoder.lm.model(
            inputs_embeds=self._fed_ND[:tiled, None],
            attention_mask=decoder._visibility.masks(
                positions_N[:, None], self._cache.window.slots
            ),
            position_ids=positions_N[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        for row in rows:
            row.position += 1
        return decoder.lm.logits(output.logits[:, -1])

    def _choose(self, logits_NV: Tensor) -> None:
        """Let each row choose and set what it is fed next."""
        device = logits_NV.device
        thinking = [index for index, row in enumerate(self.rows) if row.chooses_cot]
        answering = any(not row.chooses_cot and not row.queue for row in self.rows)
        chosen_N = (
            self._answer_tokens(logits_NV)
            if answering
            else torch.zeros(len(logits_NV), dtype=torch.long, device=device)
        )
        inputs_ND = None
        if thinking:
            inputs_ND, shadow_N = self._think(logits_NV, thinking)
            chosen_N[thinking] = shadow_N[thinking]
        feed, ids = self._advance(chosen_N.tolist(), set(thinking))
        fed_ND = self.decoder.lm.embedding.rows(torch.tensor(ids, device=device))
        self._fed_ND[: len(self.rows)] = fed_ND
        if inputs_ND is not None and feed:
            self._fed_ND[feed] = inputs_ND[feed]

    def _think(self, logits_NV: Tensor, thinking: list[int]) -> tuple[Tensor, Tensor]:
        """A CoT step for all rows at once; recorded for those in their CoT."""
        mode = self.decoder.mode
        steps = [len(row.cot_ids) for row in self.rows]
        noise = self._noise.read([row.random for row in self.rows], steps, len(logits_NV))
        probs_NV = mode.probs(logits_NV)
        step = mode.step(logits_NV, probs_NV, self.decoder.lm.embedding, noise)
        where = torch.tensor(thinking, device=logits_NV.device)
        when = torch.tensor([steps[index] for index in thinking], device=logits_NV.device)
        measures = measure(logits_NV, probs_NV, mode.temperature)
        self._trace.write(where, when, measures, probs_NV, step.inputs_ND)
        return step.inputs_ND, step.shadow_N

    def _answer_tokens(self, logits_NV: Tensor) -> Tensor:
        """(N,) next ordinary tokens, greedy or sampled at the answer temperature."""
        temperature = self.decoder.answer_temperature
        if temperature == 0:
            return logits_NV.argmax(-1)
        steps = [len(row.answer_ids) for row in self.rows]
        uniform_N = self._answer_noise.read([r.random for r in self.rows], steps, len(logits_NV))
        assert uniform_N is not None
        return invert_cdf((logits_NV.float() / temperature).softmax(-1), uniform_N)

    def _advance(self, chosen: list[int], thinking: set[int]) -> tuple[list[int], list[int]]:
        """Move each row on. Returns the rows fed their mode's vector, and each row's token id."""
        decoder = self.decoder
        rules = (decoder.stopper, decoder.limits, decoder.lm.eos_ids)
        feed: list[int] = []
        ids: list[int] = []
        for index, row in enumerate(self.rows):
            token = chosen[index]
            if index in thinking:
                row.step_cot(token, *rules)
                feed.append(index)
            elif row.queue:
                token = row.queue.popleft()
            else:
                row.step_answer(token, *rules)
            ids.append(token)
        return feed, ids

    def _finish(self, index: int) -> Generation:
        row, decoder = self.rows[index], self.decoder
        assert row.stop_reason is not None and row.answer_stop is not None
        trace = self._trace.read(index, len(row.cot_ids))
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
            **trace._asdict(),
        )

    def _remove(self, done: list[int]) -> None:
        """Drop rows; the last ones move into the holes so that rows in use stay in front."""
        for index in reversed(done):
            last = len(self.rows) - 1
            if index != last:
                self._cache.move(last, index, self.rows[last].position)
                self._fed_ND[index] = self._fed_ND[last]
                self._trace.move(last, index)
                self._noise.move(last, index)
                self._answer_noise.move(last, index)
                self.rows[index] = self.rows[last]
            self.rows.pop()


def _tiled(rows: int) -> int:
    return -(-rows // ROW_TILE) * ROW_TILE


def _check_limits(limits: Limits, batch_size: int | None) -> None:
    if limits.max_cot_tokens < 1 or limits.max_answer_tokens < 1:
        raise UserError("--max-cot-tokens and --max-answer-tokens must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise UserError("--batch-size must be auto or at least 1")
