"""Every algorithm's advantages, weights and loss by hand; ratios; what fits which method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_cases import (
    METHODS,
    made_generation,
    read_metrics,
    relative_distance,
    run,
    same,
    tiny_config,
    tiny_lm,
    weights,
)

from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import output_head
from softeval.modes import get_mode
from softeval.trainers.algorithms import ALGORITHMS, DAPO, GRPO, make_algorithm
from softeval.trainers.losses import Policy, Reference
from softeval.trainers.optimization import MasterWeights
from softeval.trainers.training_pass import PassPlan, TrainingPass

REWARDS = torch.tensor([[100.0, 10.0, 10.0, 0.0], [10.0, 10.0, 10.0, 10.0]], dtype=torch.float64)
"""A group that teaches, and one of equal rewards; mean 30 of the first, 20 of both."""
LENGTHS = torch.tensor([[2.0, 4.0, 8.0, 2.0], [4.0, 4.0, 4.0, 4.0]], dtype=torch.float64)
"""32 choices of 8 sequences."""


def test_advantages_by_hand() -> None:
    centred = torch.tensor([70.0, -20.0, -20.0, -30.0], dtype=torch.float64)
    spread = (6600 / 3) ** 0.5  # of a sample of four
    whole = REWARDS - 20
    of_all = float(whole.square().sum() / 7) ** 0.5
    expected = {
        "rloo": torch.stack([centred * 4 / 3, 0 * centred]),
        "dr_grpo": torch.stack([centred, 0 * centred]),
        "grpo": torch.stack([centred / (spread + 1e-4), 0 * centred]),
        "dapo": torch.stack([centred / (spread + 1e-4), 0 * centred]),
        "reinforce_plus_plus": whole / (of_all + 1e-4),
    }
    assert expected.keys() == ALGORITHMS.keys()
    for name, values in expected.items():
        torch.testing.assert_close(ALGORITHMS[name].advantages(REWARDS), values)


def test_weights_by_hand() -> None:
    expected = {
        "rloo": torch.ones(2, 4),
        "dr_grpo": torch.full((2, 4), 1 / 10),
        "grpo": 1 / LENGTHS,
        "dapo": torch.full((2, 4), 8 / 32),
        "reinforce_plus_plus": 1 / LENGTHS,
    }
    for name, values in expected.items():
        torch.testing.assert_close(ALGORITHMS[name].weights(LENGTHS, 10), values.double())


@pytest.mark.parametrize("name", ALGORITHMS)
@given(st.lists(st.sampled_from([0.0, 0.1, 10.0, 100.0]), min_size=6, max_size=6))
def test_advantages_are_exactly_zero_without_a_difference_and_ignore_the_level(
    name: str, rewards: list[float]
) -> None:
    algorithm = ALGORITHMS[name]
    found = algorithm.advantages(torch.tensor([rewards[:3], rewards[3:]], dtype=torch.float64))
    shifted = algorithm.advantages(torch.tensor([rewards[:3], rewards[3:]]).double() + 7)
    torch.testing.assert_close(found, shifted, atol=1e-6, rtol=1e-6)
    assert float(found.sum()) == pytest.approx(0, abs=1e-6)
    if len(set(rewards)) == 1:
        assert (found == 0).all()


def clipped_by_hand(ratio: float, advantage: float, low: float, high: float) -> float:
    """PPO's objective, case by case (arXiv 1707.06347, figure 1)."""
    if advantage >= 0:
        return advantage * min(ratio, 1 + high)
    return advantage * max(ratio, 1 - low)


def test_the_clipped_loss_is_ppos_and_its_gradient_ends_beyond_the_range() -> None:
    ratios = [0.5, 0.79, 0.9, 1.0, 1.1, 1.27, 1.29, 2.0]
    former = torch.full((len(ratios),), -1.5, dtype=torch.float64)
    rows = torch.zeros(len(ratios), dtype=torch.long)
    algorithm = DAPO()
    for advantage in (2.0, -3.0):
        now = (former + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
        weighed = torch.tensor([advantage], dtype=torch.float64)
        loss = algorithm.loss(now, weighed, rows, 4, former)
        values = [clipped_by_hand(r, advantage, 0.2, 0.28) for r in ratios]
        assert float(loss.detach()) == pytest.approx(-sum(values) / 4)
        (gradient,) = torch.autograd.grad(loss, now)
        held = algorithm.clips(now.detach(), weighed[rows], former)
        outside = [r > 1.28 if advantage > 0 else r < 0.8 for r in ratios]
        assert held.tolist() == outside == (gradient == 0).tolist()


def test_at_the_sampling_policy_the_clipped_loss_has_the_gradient_of_reinforce() -> None:
    now = torch.randn(5, dtype=torch.float64, requires_grad=True)
    advantages, rows = torch.tensor([1.5, -2.0]).double(), torch.tensor([0, 0, 1, 1, 1])
    plain = GRPO().loss(now, advantages, rows, 2)
    ratio = GRPO().loss(now, advantages, rows, 2, now.detach())
    for one, other in zip(*(torch.autograd.grad(x, now) for x in (plain, ratio)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_clip_range_is_the_algorithms_until_it_is_given() -> None:
    def clip(**options: Any) -> tuple[float, float]:
        made = make_algorithm(tiny_config(method="hard", num_iterations=2, **options))
        return made.epsilon, made.epsilon_high

    assert clip(algorithm="grpo") == (0.2, 0.2)
    assert clip(algorithm="dapo") == (0.2, 0.28)
    assert clip(algorithm="dapo", epsilon=0.1) == (0.1, 0.28)
    assert clip(algorithm="dr_grpo", epsilon_high=0.5) == (0.2, 0.5)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"algorithm": "grpo", "method": "soft", "num_iterations": 2}, "1420 nats"),
        ({"algorithm": "dapo", "method": "multiplex", "num_iterations": 2}, "on-policy.*hard"),
        ({"algorithm": "rloo", "method": "hard", "num_iterations": 2}, "--algorithm grpo, dr_grpo"),
        ({"algorithm": "dapo", "method": "hard", "epsilon": 0.1}, "--num-iterations 2"),
        ({"algorithm": "dapo", "method": "soft", "epsilon_high": 0.3}, "--num-iterations 2"),
        ({"algorithm": "grpo", "num_generations": 1}, "--group-size 2"),
        ({"num_generations": 1}, "--group-size 2"),
        (
            {"algorithm": "reinforce_plus_plus", "num_generations": 1, "prompts_per_step": 1},
            "--prompts-per-step",
        ),
        ({"overlong_cache": 25}, "longer than the cap"),
        ({"overlong_penalty": 5.0}, "--overlong-cache"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        tiny_config(**options)


@pytest.mark.slow
def test_each_algorithm_trains_its_own_way_and_a_run_keeps_to_one(
    tmp_path: Path, boxing: dict[str, Any]
) -> None:
    options = METHODS["soft"] | boxing | {"max_steps": 2}
    found = {}
    for name in ALGORITHMS:
        run(tmp_path / name, algorithm=name, **options)
        found[name] = weights(tmp_path / name / "last")
    names = list(found)
    for number, name in enumerate(names):
        assert not any(same(found[name], found[other]) for other in names[:number])
    with pytest.raises(UserError, match="algorithm: grpo there, dapo now"):
        run(tmp_path / "grpo", algorithm="dapo", **options)


@pytest.mark.slow
def test_further_updates_of_a_batch_move_on_and_are_clipped(
    tmp_path: Path, boxing: dict[str, Any]
) -> None:
    """A rate so large that ratios leave the range; a narrower one holds more of them."""
    options = {"method": "hard", "algorithm": "grpo", "max_steps": 1, "learning_rate": 1e-2}
    options |= boxing
    for name, extra in {
        "one": {},
        "two": {"num_iterations": 2},
        "narrow": {"num_iterations": 2, "epsilon": 0.01, "epsilon_high": 0.01},
        "three": {"num_iterations": 3},
    }.items():
        run(tmp_path / name, **options, **extra)
    lines = {name: read_metrics(tmp_path / name)[1] for name in ("one", "two", "narrow", "three")}
    assert "ratio/clipped" not in lines["one"]
    assert 0 < lines["two"]["ratio/clipped"] < lines["narrow"]["ratio/clipped"] <= 1
    assert lines["one"]["gradient/norm"] == lines["two"]["gradient/norm"]
    ends = [weights(tmp_path / name / "last") for name in lines]
    for number, one in enumerate(ends):
        assert not any(same(one, other) for other in ends[:number])


def made_pass(lm: LanguageModel, **options: Any) -> TrainingPass:
    policy = Policy(get_mode("hard_sample"))
    return TrainingPass(lm, output_head(lm), MasterWeights(lm.model), policy, **options)


LENGTHS_MADE = ((4, 5, 2, 3), (4, 2, 2, 1), (3, 7, 0, 2), (5, 1, 1, 4))


def test_a_second_pass_compares_each_choice_with_its_own_former_probability() -> None:
    """While the weights stand still every ratio is one, whatever parts the two passes take."""
    lm = tiny_lm()
    made = [made_generation(lm, n, sample=b, inputs=False) for b, n in enumerate(LENGTHS_MADE)]
    advantages = torch.tensor([1.0, -2.0, 0.0, 1.5], dtype=torch.float64)
    passes = made_pass(lm, micro_batch=3, algorithm=ALGORITHMS["grpo"])
    passes.run(made, advantages, PassPlan(4, keep_log_probs=True))
    first = [m.grad for m in passes.weights.masters]
    passes.weights.clear()
    passes.micro_batch = 1
    again = passes.run(made, advantages, PassPlan(4, again=True))
    second = [m.grad for m in passes.weights.masters]
    assert relative_distance(second, first) < 1e-5
    assert again.sums["clipped"] == 0
    assert again.sums["compared"] == sum(made[b].choices for b in (0, 1, 3))


def test_weights_are_the_losss_and_the_kls() -> None:
    lm, other = tiny_lm(), tiny_lm(seed=1)
    made = [made_generation(lm, n, sample=b, inputs=False) for b, n in enumerate(LENGTHS_MADE)]
    passes = made_pass(lm, beta=0.5, reference=Reference(other, output_head(other)))
    advantages = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64)

    def found(*given: float) -> tuple[float, float]:
        scales = torch.tensor(given, dtype=torch.float64)
        sums = passes.run(made, advantages, PassPlan(4), scales).sums
        passes.weights.clear()
        return sums["loss_kl"], sums["loss_cot"] + sums["loss_answer"]

    ones = [found(*(float(b == n) for b in range(4))) for n in range(4)]
    given = (0.5, 2.0, 0.0, 3.0)
    for part, value in enumerate(found(*given)):
        parts = [w * one[part] for w, one in zip(given, ones, strict=True)]
        assert value == pytest.approx(sum(parts), rel=1e-5) and value != 0
