"""The rollouts of one update: drawn, decoded, scored, and grouped.

Decoding is the evaluation's own `Decoder`. A sample's random numbers are keyed by the question, its
place in the data order and the sample's place in the group, so neither the number of processes nor a
resume changes them, and a question met again in a later epoch is sampled anew.

Knows nothing of losses.

Shapes: P questions, G samples of each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softeval.decoding.decoder import Decoder, Question
from softeval.records import Generation
from softeval.scoring.judge import Verdict, scorer
from softeval.trainers.advantages import uninformative
from softeval.trainers.config import TrainConfig
from softeval.trainers.processes import Processes
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
        reward: made of the verdict.
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
        cursor: place in the data order after drawing.
        drawn: questions drawn, refills included.
        equal_groups: groups of equal rewards among those drawn.
        drawn_sums: rollouts, right answers and tokens of everything this process decoded, the
            groups that were replaced included.
        seconds: spent decoding and scoring.
    """

    local: list[Rollout]
    rewards_PG: Tensor
    cursor: int
    drawn: int
    equal_groups: int
    drawn_sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DRAWN_SUMS, 0.0))
    seconds: dict[str, float] = field(default_factory=lambda: {"rollout": 0.0, "scoring": 0.0})


class RolloutCollector:
    """Draws the rollouts of each update.

    Args:
        decoder: decodes in the training mode, keeping what it feeds.
        questions: what to draw from.
        order: in which order.
        config: group size, rewards, dynamic sampling.
        processes: among which the samples are shared out.
    """

    def __init__(
        self,
        decoder: Decoder,
        questions: QuestionSet,
        order: DataOrder,
        config: TrainConfig,
        processes: Processes,
    ) -> None:
        self.decoder = decoder
        self._questions = questions
        self._order = order
        self._config = config
        self._processes = processes

    def collect(self, cursor: int) -> StepRollouts:
        """The rollouts of one update, drawing questions from place `cursor` of the order on."""
        size = self._config.prompts_per_step
        shape = (size, self._config.num_generations)
        found = StepRollouts([], torch.zeros(shape, dtype=torch.float64), cursor, 0, 0)
        pending = list(range(size))
        refills = self._config.max_refills if self._config.dynamic_sampling else 0
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
        indices = self._order.take(found.cursor, len(groups))
        asked = {g: self._questions.train[i] for g, i in zip(groups, indices, strict=True)}
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
        rewards_PG = torch.zeros_like(found.rewards_PG)
        for rollout in fresh:
            rewards_PG[rollout.group, rollout.member] = rollout.reward
        shared = self._processes.total(rewards_PG.to(self._sum_device)).cpu()
        found.rewards_PG[groups] = shared[groups]

    @property
    def _sum_device(self) -> torch.device:
        return self._processes.device if self._processes.count > 1 else torch.device("cpu")

    def _decode(
        self, groups: dict[int, int], asked: dict[int, TrainingQuestion]
    ) -> list[tuple[int, int, Generation]]:
        """(group, member, generation) of this process's share; `groups` by place in the order."""
        size = self._config.num_generations
        mine = self._processes.share([p * size + m for p in groups for m in range(size)])
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
        items = [asked[group].item(g.answer) for group, _, g in decoded]
        verdicts = scorer(self._config.scorer).score_many(items) if items else []
        return [
            Rollout(group, member, asked[group], g, verdict, reward(verdict, self._config))
            for (group, member, g), verdict in zip(decoded, verdicts, strict=True)
        ]


def _count_drawn(sums: dict[str, float], fresh: Sequence[Rollout]) -> None:
    sums["drawn_rollouts"] += len(fresh)
    sums["drawn_success"] += sum(r.verdict.correct for r in fresh)
    generations = [r.generation for r in fresh]
    sums["drawn_tokens"] += sum(len(g.shadow_ids) + len(g.answer_ids) for g in generations)


def reward(verdict: Verdict, config: TrainConfig) -> float:
    """Reward of a sample: right, any other boxed answer, or none (paper section 4)."""
    if verdict.correct:
        return config.reward_correct
    return config.reward_none if verdict.status == "no_answer" else config.reward_boxed


def boxed(rollouts: Sequence[Rollout]) -> int:
    """How many hold a boxed answer, right or wrong."""
    return sum(r.verdict.status != "no_answer" for r in rollouts)
