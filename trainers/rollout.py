"""The rollouts of one update: drawn, decoded, scored, and grouped.

Decoding is the evaluation's own `Decoder`. A sample's random numbers are keyed by the question, its
place in the data order and the sample's place in the group, so neither the number of processes nor a
resume changes them, and a question met again in a later epoch is sampled anew.

Validation decodes the held-out questions: the method's mode without noise or sampling, greedy answers.

Knows nothing of losses.

Shapes: P questions, G samples of each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softeval.decoding.decoder import Decoder, Question
from softeval.model.language_model import LanguageModel
from softeval.modes import Mode, get_mode
from softeval.options import fixed_size
from softeval.processes import Processes
from softeval.records import Generation
from softeval.scoring.judge import Verdict, scorer
from softeval.trainers.algorithms import uninformative
from softeval.trainers.config import TrainConfig
from softeval.trainers.learners.rewards import reward
from softeval.trainers.questions import DataOrder, QuestionSet, TrainingQuestion

TRAIN_KEY = "train"
"""First part of the key of every training sample's random numbers."""


DRAWN_SUMS = ("drawn_rollouts", "drawn_success", "drawn_tokens")


@dataclass(frozen=True, eq=False)
class Rollout:
    """One scored sample.

    Attributes:
        group: its question's place among the P of the update.
        member: its place among the G samples.
        question: what was asked.
        generation: what was decoded.
        verdict: of the scorer.
        reward: of `softeval.trainers.learners.rewards`.
    """

    group: int
    member: int
    question: TrainingQuestion
    generation: Generation
    verdict: Verdict
    reward: float


@dataclass(eq=False)
class StepRollouts:
    """What one update learns from.

    Attributes:
        local: this process's rollouts, by group and member.
        rewards_PG: rewards of all processes, float64 on the host.
        lengths_PG: likewise the choices of each sequence: CoT steps and answer tokens.
        cursor: place in the data order after drawing.
        drawn: questions drawn, refills included.
        equal_groups: groups of equal rewards among those drawn.
        drawn_sums: rollouts, right answers and tokens of everything this process decoded, the
            groups that were replaced included.
        seconds: spent decoding and scoring.
    """

    local: list[Rollout]
    rewards_PG: Tensor
    lengths_PG: Tensor
    cursor: int
    drawn: int
    equal_groups: int
    drawn_sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DRAWN_SUMS, 0.0))
    seconds: dict[str, float] = field(default_factory=lambda: {"rollout": 0.0, "scoring": 0.0})

    def of_local(self, values_PG: Tensor) -> Tensor:
        """(B,) what this process's rollouts have of all."""
        mine = [float(values_PG[r.group, r.member]) for r in self.local]
        return torch.tensor(mine, dtype=values_PG.dtype)


@dataclass(frozen=True, eq=False)
class RolloutCollector:
    """Draws the rollouts of each update.

    Attributes:
        decoder: decodes in the training mode, keeping what it feeds.
        questions: what to draw from.
        order: in which order.
        config: group size, rewards, dynamic sampling.
        processes: among which the samples are shared out.
    """

    decoder: Decoder
    questions: QuestionSet
    order: DataOrder
    config: TrainConfig
    processes: Processes

    def collect(self, cursor: int) -> StepRollouts:
        """The rollouts of one update, drawing questions from place `cursor` of the order on."""
        size = self.config.prompts_per_step
        shape = (size, self.config.num_generations)
        nothing_PG = torch.zeros(shape, dtype=torch.float64)
        found = StepRollouts([], nothing_PG, nothing_PG.clone(), cursor, 0, 0)
        pending = list(range(size))
        refills = self.config.max_refills if self.config.dynamic_sampling else 0
        for _ in range(1 + refills):
            self._draw(found, pending)
            equal = uninformative(found.rewards_PG)
            found.equal_groups += int(equal[pending].sum())
            pending = [group for group in pending if equal[group]]
            if not pending:
                break
        found.local.sort(key=lambda r: (r.group, r.member))
        return found

    def _draw(self, found: StepRollouts, groups: list[int]) -> None:
        """Fill the groups from the next questions, in place of what they held."""
        places = range(found.cursor, found.cursor + len(groups))
        indices = self.order.take(found.cursor, len(groups))
        asked = {g: self.questions.train[i] for g, i in zip(groups, indices, strict=True)}
        found.cursor += len(groups)
        found.drawn += len(groups)
        found.local = [r for r in found.local if r.group not in asked]
        started = time.perf_counter()
        decoded = self._decode(dict(zip(places, groups, strict=True)), asked)
        decoded_at = time.perf_counter()
        fresh = self._scored(asked, decoded)
        found.seconds["rollout"] += decoded_at - started
        found.seconds["scoring"] += time.perf_counter() - decoded_at
        found.local += fresh
        _count_drawn(found.drawn_sums, fresh)
        mine = torch.zeros((2, *found.rewards_PG.shape), dtype=torch.float64)
        for r in fresh:
            mine[:, r.group, r.member] = mine.new_tensor([r.reward, r.generation.choices])
        rewards_PG, lengths_PG = self.processes.total(mine.to(self.processes.device)).cpu()
        found.rewards_PG[groups] = rewards_PG[groups]
        found.lengths_PG[groups] = lengths_PG[groups]

    def _decode(
        self, groups: dict[int, int], asked: dict[int, TrainingQuestion]
    ) -> list[tuple[int, int, Generation]]:
        """(group, member, generation) of this process's share; `groups` by place in the order."""
        size = self.config.num_generations
        mine = self.processes.share([p * size + m for p in groups for m in range(size)])
        requests = [
            Question(
                TRAIN_KEY,
                asked[group].index,
                asked[group].prompt_ids,
                tuple(sample for sample in mine if sample // size == place),
            )
            for place, group in groups.items()
        ]
        found = self.decoder.run([r for r in requests if r.samples])
        return [(groups[g.key.sample // size], g.key.sample % size, g) for g in found]

    def _scored(
        self, asked: dict[int, TrainingQuestion], decoded: list[tuple[int, int, Generation]]
    ) -> list[Rollout]:
        config = self.config
        items = [asked[group].item(g.answer) for group, _, g in decoded]
        verdicts = scorer(config.scorer).score_many(items) if items else []
        return [
            Rollout(
                group, member, asked[group], g, verdict, reward(asked[group], g, verdict, config)
            )
            for (group, member, g), verdict in zip(decoded, verdicts, strict=True)
        ]


def _count_drawn(sums: dict[str, float], fresh: Sequence[Rollout]) -> None:
    sums["drawn_rollouts"] += len(fresh)
    sums["drawn_success"] += sum(r.verdict.correct for r in fresh)
    generations = [r.generation for r in fresh]
    sums["drawn_tokens"] += sum(g.choices for g in generations)


@dataclass(frozen=True)
class Validation:
    """Result of one validation.

    Attributes:
        success: share of accepted answers.
        boxed: share of answers in a box.
        cot_length: mean CoT length in tokens.
        stopped: share of CoTs that ended with the answer prefix.
    """

    success: float
    boxed: float
    cot_length: float
    stopped: float


def training_decoder(config: TrainConfig, lm: LanguageModel) -> Decoder:
    """The decoder of the rollouts: it keeps what it feeds, where that is no token."""
    return Decoder(
        lm,
        config.mode,
        config.limits,
        seed=config.seed,
        batch_size=fixed_size(config.decode_batch_size),
        answer_temperature=config.answer_temperature,
        keep_inputs=not config.mode.feeds_tokens,
    )


def greedy_mode(config: TrainConfig) -> Mode:
    """The method's mode without randomness (method section 3, selection), hard where it has none."""
    return config.mode.greedy() or get_mode("hard_greedy")


def validate(
    lm: LanguageModel,
    questions: tuple[TrainingQuestion, ...],
    config: TrainConfig,
    processes: Processes,
    mode: Mode,
) -> Validation:
    """Decode in a greedy mode and score the held-out questions, shared out among the processes."""
    decoder = Decoder(lm, mode, config.limits, batch_size=fixed_size(config.decode_batch_size))
    mine = {q.index: q for q in processes.share(questions)}
    asked = [Question("validation", q.index, q.prompt_ids, (0,)) for q in mine.values()]
    found = list(decoder.run(asked))
    items = [mine[g.key.doc_id].item(g.answer) for g in found]
    verdicts = scorer(config.scorer).score_many(items) if items else []
    sums = {
        "success": float(sum(v.correct for v in verdicts)),
        "boxed": float(sum(v.status != "no_answer" for v in verdicts)),
        "cot_length": float(sum(len(g.shadow_ids) for g in found)),
        "stopped": float(sum(g.stop_reason == "answer_prefix" for g in found)),
    }
    totals = processes.totals(sums)
    return Validation(**{name: value / len(questions) for name, value in totals.items()})


RECORDED_TOP = 3
"""Largest mixture entries kept at each position of the rollouts in a table."""


def sample_rows(
    rollouts: Sequence[Rollout], advantages: Sequence[float], number: int, tokenizer: Any
) -> list[dict[str, Any]]:
    """Rows for about `number` rollouts, spread evenly over the groups."""
    stride = max(1, len(rollouts) // number)
    chosen = list(zip(rollouts, advantages, strict=True))[::stride][:number]
    return [_row(rollout, advantage, tokenizer) for rollout, advantage in chosen]


def _row(rollout: Rollout, advantage: float, tokenizer: Any) -> dict[str, Any]:
    g = rollout.generation
    return {
        "question": rollout.question.problem.question,
        "target": rollout.question.problem.target,
        "cot": g.cot_text,
        "answer": g.answer,
        "stop_reason": str(g.stop_reason),
        "reward": rollout.reward,
        "advantage": advantage,
        "positions": [
            {
                "shadow": tokenizer.decode([shadow]),
                "entropy": round(float(entropy), 4),
                "mixture": {
                    tokenizer.decode([token]): round(float(weight), 4)
                    for token, weight in zip(ids, weights, strict=True)
                },
            }
            for shadow, entropy, ids, weights in zip(
                g.shadow_ids.tolist(), g.entropy, g.top_ids.tolist(), g.top_probs, strict=True
            )
        ],
    }
