"""How samples are shared out, keyed and grouped; and the pass's answer to a full memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from train_cases import made_generation, tiny_config, tiny_lm

from softeval.data import DatasetSource, Origin
from softeval.decoding import Decoder
from softeval.modes import get_mode
from softeval.output_head import output_head
from softeval.problems import Problem
from softeval.rows import Limits
from softeval.trainers.losses import Policy
from softeval.trainers.optimization import MasterWeights
from softeval.trainers.questions import DataOrder, QuestionSet, TrainingQuestion
from softeval.trainers.rollout import RolloutCollector, StepRollouts
from softeval.trainers.training_pass import PassPlan, TrainingPass

SOURCE = DatasetSource("made", Origin.LOCAL, "", "train", 2, "")


class OneOf:
    """A process among several, whose peers' rewards are taken to be zero."""

    device = torch.device("cpu")

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        bounds = [len(items) * r // self.count for r in (self.rank, self.rank + 1)]
        return items[bounds[0] : bounds[1]]

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def collect(rank: int = 0, count: int = 1, cursor: int = 0, questions: int = 2) -> StepRollouts:
    lm = tiny_lm()
    asked = tuple(
        TrainingQuestion(n, Problem(f"q{n}", "1"), (7 + n, 8, 9)) for n in range(questions)
    )
    decoder = Decoder(lm, get_mode("soft_sample"), Limits(4, 3), answer_temperature=1.0)
    config = tiny_config(prompts_per_step=3, num_generations=4)
    order = DataOrder(questions, 0)
    processes: Any = OneOf(rank, count)
    collector = RolloutCollector(decoder, QuestionSet(asked, (), SOURCE), order, config, processes)
    return collector.collect(cursor)


def texts(found: StepRollouts) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(r.group, r.member): tuple(r.generation.shadow_ids) for r in found.local}


def test_processes_share_the_samples_of_one() -> None:
    alone = texts(collect())
    assert list(alone) == [(g, m) for g in range(3) for m in range(4)]
    for count in (2, 3, 5):
        together: dict[tuple[int, int], tuple[int, ...]] = {}
        for rank in range(count):
            mine = texts(collect(rank, count))
            assert not mine.keys() & together.keys()
            together |= mine
        assert together == alone


def test_a_question_drawn_twice_is_sampled_anew() -> None:
    """Three groups of one question; and the same question in a later epoch."""
    found = texts(collect(questions=1))
    groups = [tuple(found[g, m] for m in range(4)) for g in range(3)]
    assert len(set(groups)) == 3
    later = texts(collect(questions=1, cursor=3))
    assert {tuple(later[g, m] for m in range(4)) for g in range(3)}.isdisjoint(groups)
    again = texts(collect(questions=1, cursor=1))
    assert [again[0, m] for m in range(4)] == list(groups[1])


def test_rewards_stand_where_their_samples_do() -> None:
    found = collect()
    for rollout in found.local:
        assert float(found.rewards_PG[rollout.group, rollout.member]) == rollout.reward
    assert found.cursor == 3 and found.drawn == 3


def pass_over(micro_batch: int | None = None) -> tuple[TrainingPass, MasterWeights]:
    lm = tiny_lm()
    mode = get_mode("soft_sample")
    weights = MasterWeights(lm.model)
    policy = Policy(mode, mode.sigma(lm.embedding))
    return TrainingPass(lm, output_head(lm), weights, policy, micro_batch=micro_batch), weights


def test_a_full_memory_halves_the_pass_and_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_lm()
    made = [made_generation(lm, (3, n % 4 + 1, 1, 2), sample=n) for n in range(11)]
    advantages = torch.linspace(-1, 1, 11)
    plain, expected = pass_over(micro_batch=2)
    plain.run(made, advantages, PassPlan(11))
    passes, weights = pass_over()
    monkeypatch.setattr(passes, "_add", picky(passes._add, 3))
    passes.run(made, advantages, PassPlan(11))
    assert passes.fitted == 2
    for found, wanted in zip(weights.masters, expected.masters, strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert torch.equal(found.grad, wanted.grad)
    fixed, _ = pass_over(micro_batch=8)
    monkeypatch.setattr(fixed, "_add", picky(fixed._add, 3))
    with pytest.raises(torch.OutOfMemoryError):
        fixed.run(made, advantages, PassPlan(11))


def picky(add: Any, most: int) -> Any:
    """`add` on a device that holds at most so many sequences, and fails after doing the work."""

    def wrapped(batch: Any, *rest: Any) -> None:
        add(batch, *rest)
        if batch.rows > most:
            raise torch.OutOfMemoryError

    return wrapped


def test_sequences_of_advantage_zero_are_left_out_unless_wanted() -> None:
    lm = tiny_lm()
    made = [made_generation(lm, sample=n) for n in range(4)]
    passes, weights = pass_over(micro_batch=4)
    advantages = torch.tensor([0.0, 1.0, 0.0, -1.0])
    assert passes.run(made, advantages, PassPlan(4)).sums["sequences"] == 2
    passes.skip_zero = False
    assert passes.run(made, advantages, PassPlan(4)).sums["sequences"] == 4
    weights.clear()
    passes.skip_zero = True
    nothing = torch.zeros(4)
    assert passes.run(made, nothing, PassPlan(4)).sums["sequences"] == 0
    assert passes.run(made, nothing, PassPlan(4, keep_first=True)).sums["sequences"] == 1
    assert all(m.grad is None or not m.grad.any() for m in weights.masters)
    assert passes.run([], nothing, PassPlan(4, keep_first=False)).sums["sequences"] == 0
