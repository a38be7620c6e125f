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
from functools import partial

import numpy as np
import torch
from torch import Tensor

from softeval.decoding.randomness import AHEAD, NoiseFeed, SampleRandomness, Stream
from softeval.decoding.rows import Question, Row, Waiting
from softeval.decoding.state import NOT_FINITE, Phase, State, advance, holds, new_state
from softeval.decoding.trace import Trace, measure
from softeval.errors import UserError
from softeval.model.cache import auto_batch_size
from softeval.model.feeding import Replays, RowFeeder, tiled
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import output_head
from softeval.model.stopping import Limits, check_context, stopper_of
from softeval.modes import Draws, Mode, Randomness, Seen, Step, invert_cdf
from softeval.modes.sampling import softmax
from softeval.records import Generation, SampleKey, StopReason

LOOK_EVERY = 8
"""Passes between two looks of the host, where passes are captured."""


class Decoder:
    """Runs questions through one checkpoint and one mode.

    Args:
        lm: the checkpoint.
        mode: how the CoT is fed.
        limits: caps on CoT and answer, and the protocol whose stop rule ends a CoT.
        seed: seed of the random numbers.
        batch_size: rows at a time; None chooses by memory. It never changes a result.
        answer_temperature: 0 decodes the answer greedily, as every evaluation does; training
            samples it at 1.
        record_top: how many of the mixture's largest entries to record at each position.
        keep_inputs: keep the vectors that were fed.
        given: CoTs, with what was fed, that these samples take instead of thinking their own.
        look_every: passes between two looks of the host at what was decoded; None chooses 8 where
            passes are captured, else 1. It never changes a result; it is 1 where a row that waits
            would go on all the same, as with recurrent layers.
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
        look_every: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError("--batch-size must be auto or at least 1")
        self.lm = lm
        self.mode = mode
        self.limits = limits
        self.seed = seed
        self.batch_size = batch_size
        self.answer_temperature = answer_temperature
        self.record_top = record_top
        self.keep_inputs = keep_inputs
        self.given = given or {}
        self.look_every = look_every
        self.stopper = stopper_of(lm.tokenizer, limits.protocol)
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
        batch = _Batch(self, min(size, total), longest, questions)
        while True:
            batch.admit()
            if not batch.rows:
                return
            yield from batch.step()


class _Batch:
    """The rows in flight. A row's place is its index in every tensor; free places are taken again."""

    def __init__(
        self, decoder: Decoder, size: int, longest: int, questions: Sequence[Question]
    ) -> None:
        lm, mode, limits = decoder.lm, decoder.mode, decoder.limits
        self.decoder = decoder
        self.size = size
        self.rows: dict[int, Row] = {}
        self._longest = 0
        self._feeder = RowFeeder(lm.model, size, longest, run=lm.runner)
        self._waiting = Waiting(questions, lm, self._feeder)
        passed = tiled(size)
        answers = Draws(Randomness.UNIFORM if decoder.answer_temperature else Randomness.NONE)
        spread = hasattr(lm.model, "hf_device_map")
        captured = lm.graphs and self._feeder.repeats and not (spread or mode.asks_host)
        self._replays = Replays(lm.device, wanted=captured)
        usual = LOOK_EVERY if self._replays.captures else 1
        self._look_every = (decoder.look_every or usual) if self._feeder.repeats else 1
        ahead = 0 if self._replays.captures or self._look_every > 1 else AHEAD
        self._noise, self._answer_noise = (
            NoiseFeed(draws, passed, lm.device, stream, ahead)
            for draws, stream in ((mode.draws(lm.embedding), Stream.COT), (answers, Stream.ANSWER))
        )
        given = [len(g.shadow_ids) for g in decoder.given.values()]
        forced = decoder.stopper.longest_prefill + max(given, default=0)
        caps = (limits.max_cot_tokens, limits.max_answer_tokens, forced)
        thought_B = mode.begin(passed, lm.device)
        self._state = new_state(lm, passed, caps, thought_B, forces_vectors=bool(given))
        self._holds = holds(lm, decoder.stopper)
        self._rules = (decoder.stopper, limits, lm.eos_ids)
        top = min(decoder.record_top, lm.vocab)
        self._trace = Trace(passed, caps[0], top, lm.device, decoder.keep_inputs)

    @torch.inference_mode()
    def admit(self) -> None:
        """Fill free places with waiting samples."""
        free = [place for place in range(self.size) if place not in self.rows]
        while taken := self._waiting.take(len(free)):
            question, samples, prefilled = taken
            places, free = free[: len(samples)], free[len(samples) :]
            self._feeder.fill(places, prefilled)
            self._begin(places, question)
            for place, sample in zip(places, samples, strict=True):
                self.rows[place] = self._row(place, question, sample)
            random = [SampleRandomness(self.decoder.seed, self.rows[p].key) for p in places]
            self._noise.begin(places, random)
            self._answer_noise.begin(places, random)
            self._longest = max(self._longest, len(question.prompt_ids) - 1)

    def _begin(self, places: list[int], question: Question) -> None:
        """Let rows stand before the last token of a prompt, about to think."""
        state, lm = self._state, self.decoder.lm
        rows = torch.tensor(places, device=lm.device)
        for lengths_B in (state.cot_len_B, state.answer_len_B, state.ended_B):
            lengths_B[rows] = 0
        state.phase_B[rows] = Phase.COT
        state.position_B[rows] = len(question.prompt_ids) - 1
        last = torch.tensor([question.prompt_ids[-1]], device=lm.device)
        state.fed_BD[rows] = lm.embedding.rows(last)
        fresh = self.decoder.mode.begin(len(places), lm.device)
        if state.thought_B is not None and fresh is not None:
            state.thought_B[rows] = fresh

    def _row(self, place: int, question: Question, sample: int) -> Row:
        decoder = self.decoder
        key = SampleKey(question.task, question.doc_id, sample)
        row = Row(key, question.prompt_ids)
        if (given := decoder.given.get(key)) is not None:
            row.end_cot(given.shadow_ids.tolist(), given.stop_reason, decoder.stopper)
            self._force(place, (*row.cot_ids, *row.prefill_ids), given.inputs)
            row.phase = Phase.FORCED
        return row

    def _force(self, place: int, ids: Sequence[int], inputs_TD: Tensor | None = None) -> None:
        """Let a row be fed these tokens, the first of them as the vectors given, and then answer."""
        state, lm = self._state, self.decoder.lm
        ids_Q = torch.tensor(ids, device=lm.device)
        state.forced_BQ[place, : len(ids)] = ids_Q
        state.forced_at_B[place] = 0
        state.forced_len_B[place] = len(ids)
        state.phase_B[place] = Phase.FORCED
        if state.forced_BQD is not None:
            state.forced_BQD[place, : len(ids)] = lm.embedding.rows(ids_Q)
            if inputs_TD is not None:
                state.forced_BQD[place, : len(inputs_TD)] = inputs_TD

    def step(self) -> list[Generation]:
        """Let rows go on until the host looks; those that have ended leave."""
        with torch.inference_mode():
            for _ in range(self._look_every):
                self._pass()
            return self._look()

    def _pass(self) -> None:
        """Feed each row one vector and let it choose the next."""
        rows, slots = self._feeder.bucket(1 + max(self.rows), self._longest + 1)
        thinks, answers = self._anyone(Phase.COT), self._anyone(Phase.ANSWER)
        work = partial(self._work, rows, slots, thinks=thinks, answers=answers)
        self._replays.run((rows, slots, thinks, answers), work)
        self._longest += 1

    def _work(self, rows: int, slots: int, *, thinks: bool, answers: bool) -> None:
        """One pass over the first rows and slots: nothing in it asks the host, all shapes are fixed."""
        lm, state = self.decoder.lm, self._state.first(rows)
        shown = self._feeder.step(state.fed_BD, state.position_B, slots)
        logits_NV = lm.logits(shown.logits_NW)
        seen = Seen(logits_NV, lm.embedding, shown.hidden_ND, self.decoder.head)
        step = self._think(seen, state) if thinks else None
        answer_N = self._answer_tokens(logits_NV, state) if answers else None
        advance(state, step, answer_N, self._holds, lm.embedding)

    def _anyone(self, phase: int) -> bool:
        """Whether a row may be in a phase; between two looks any row may be."""
        return self._look_every > 1 or any(row.phase == phase for row in self.rows.values())

    def _think(self, seen: Seen, state: State) -> Step:
        """A CoT step for all rows at once; recorded for those in their CoT."""
        mode, logits_NV = self.decoder.mode, seen.logits_NV
        drawn = self._noise.read(state.cot_len_B)
        probs_NV = mode.probs(seen)
        step = mode.step(seen, probs_NV, drawn, state.thought_B)
        measures = measure(logits_NV, probs_NV, mode.is_plain)
        self._trace.write(state.phase_B == Phase.COT, state.cot_len_B, measures, probs_NV, step)
        found_N = measures.top1_prob_N + measures.mode_entropy_N
        return step._replace(shadow_N=_if_finite(step.shadow_N, found_N))

    def _answer_tokens(self, logits_NV: Tensor, state: State) -> Tensor:
        """(N,) next ordinary tokens, greedy or sampled at the answer temperature."""
        temperature = self.decoder.answer_temperature
        greedy_N = logits_NV.argmax(-1)
        largest_N = logits_NV.gather(-1, greedy_N[:, None])[:, 0]
        if temperature == 0:
            return _if_finite(greedy_N, largest_N)
        uniform_N = self._answer_noise.read(state.answer_len_B)
        assert uniform_N is not None
        probs_NV = softmax(logits_NV, temperature)
        return _if_finite(invert_cdf(probs_NV, uniform_N), probs_NV.amax(-1))

    def _look(self) -> list[Generation]:
        """Judge the rows that are held; take out those that have ended."""
        state = self._state
        counts = (state.phase_B, state.position_B, state.cot_len_B, state.answer_len_B)
        now = torch.stack([*counts, state.ended_B.long()], 1).tolist()
        for place, row in self.rows.items():
            row.phase, row.position, *row.lengths, row.ended = now[place]
        held = [place for place, row in self.rows.items() if row.phase == Phase.HELD]
        if held:
            self._judge(held)
        done = [place for place in held if self.rows[place].answer_stop is not None]
        finished = [self._finish(place) for place in sorted(done)]
        self._settle()
        self._longest = max((row.position for row in self.rows.values()), default=0)
        return finished

    def _judge(self, held: list[int]) -> None:
        """Let the texts of held rows decide how these go on."""
        tokens = [
            tokens_BX[held].cpu() for tokens_BX in (self._state.cot_BT, self._state.answer_BA)
        ]
        for place, cot_T, answer_A in zip(held, *tokens, strict=True):
            row = self.rows[place]
            ids = (cot_T if row.in_cot else answer_A)[: row.lengths[not row.in_cot]].tolist()
            if ids[-1] == NOT_FINITE:
                raise self._not_finite(row, len(ids) - 1)
            if row.in_cot:
                self._judge_cot(place, row, ids)
            else:
                row.judge_answer(ids, *self._rules)
                self._enter(place, Phase.ANSWER)

    def _judge_cot(self, place: int, row: Row, ids: list[int]) -> None:
        silent = self.decoder.mode.silent_steps
        row.judge_cot(ids, *self._rules, ended=bool(row.ended), silent=silent)
        if row.in_cot or not row.prefill_ids:  # the answer may follow the stop at once
            self._enter(place, Phase.COT if row.in_cot else Phase.ANSWER)
            return
        self._force(place, row.prefill_ids)
        if row.stop_reason is StopReason.MODE:  # the step is not taken: its vector is not fed
            state = self._state
            state.fed_BD[place] = self.decoder.lm.embedding.rows(state.forced_BQ[place, :1])[0]
            state.forced_at_B[place] = 1
            if len(row.prefill_ids) == 1:
                self._enter(place, Phase.ANSWER)

    def _enter(self, place: int, phase: int) -> None:
        self._state.phase_B[place] = phase
        self.rows[place].phase = phase

    def _not_finite(self, row: Row, step: int) -> UserError:
        key, dtype = row.key, str(self.decoder.lm.dtype).removeprefix("torch.")
        part = "CoT" if row.in_cot else "answer"
        half = dtype in ("float16", "bfloat16")
        remedy = "try --dtype float32" if half else "the checkpoint or its architecture overflows"
        return UserError(
            f"{key.task} question {key.doc_id}, sample {key.sample}: the logits at {part} position "
            f"{step} (token {row.position} of the sequence) are not finite in {dtype}; {remedy}"
        )

    def _finish(self, place: int) -> Generation:
        """What came of a row, whose place is free from now on."""
        row, decoder = self.rows.pop(place), self.decoder
        self._state.phase_B[place] = Phase.IDLE
        self._state.position_B[place] = 0
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
            **self._trace.read(place, len(row.cot_ids)),
        )

    def _settle(self) -> None:
        """Move the last rows into free places where a pass then has a tile of rows less."""
        fewest = tiled(len(self.rows))
        for last in sorted(place for place in self.rows if place >= fewest):
            place = next(p for p in range(fewest) if p not in self.rows)
            self._feeder.move(last, place, self.rows[last].position)
            for part in (self._state, self._trace, self._noise, self._answer_noise):
                part.move(last, place)
            self._state.phase_B[last] = Phase.IDLE
            self._state.position_B[last] = 0
            self.rows[place] = self.rows.pop(last)


def _if_finite(chosen_N: Tensor, by_N: Tensor) -> Tensor:
    """The tokens, or `NOT_FINITE` where what they were chosen by is none; read with the tokens."""
    return chosen_N.masked_fill(~by_N.isfinite(), NOT_FINITE)
