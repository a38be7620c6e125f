"""RLOO against its definition; rewards from real strings."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_cases import read_metrics, run, tiny_config

from softeval.errors import UserError
from softeval.scoring.boxed import closing_brace
from softeval.scoring.judge import ScoreKind, reward, scorer
from softeval.trainers import rollout
from softeval.trainers.algorithms import ALGORITHMS, RLOO, Algorithm, uninformative
from softeval.trainers.config import make_config
from softeval.trainers.learners.rewards import verdict_reward as configured_reward


@given(st.lists(st.sampled_from([0.0, 10.0, 100.0]), min_size=2, max_size=32))
def test_leave_one_out_is_the_definition_and_sums_to_zero(rewards: list[float]) -> None:
    group = torch.tensor([rewards], dtype=torch.float64)
    found = RLOO().advantages(group)[0]
    for b, own in enumerate(rewards):
        others = rewards[:b] + rewards[b + 1 :]
        assert float(found[b]) == pytest.approx(own - sum(others) / len(others))
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 10.0, 100.0, 0.1])
@pytest.mark.parametrize("size", [2, 3, 7, 32])
def test_equal_rewards_have_advantages_of_exactly_zero(value: float, size: int) -> None:
    rewards = torch.full((2, size), value, dtype=torch.float64)
    rewards[1, 0] += 1
    found = RLOO().advantages(rewards)
    assert (found[0] == 0).all()
    assert uninformative(rewards).tolist() == [True, False]


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"rlo.*none of rloo.*did you mean"):
        make_config({"algorithm": "rlo"})


@pytest.mark.slow
def test_an_algorithm_that_is_added_is_a_choice_and_makes_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxing: dict[str, Any]
) -> None:
    """One class and one entry: rewards less their mean, a token's weight one over its length."""

    class Centred(Algorithm):
        def advantages(self, rewards_PG: torch.Tensor) -> torch.Tensor:
            return rewards_PG - rewards_PG.mean(1, keepdim=True)

        def weights(self, lengths_PG: torch.Tensor, longest: int) -> torch.Tensor:
            return 1 / lengths_PG

    monkeypatch.setitem(ALGORITHMS, "centred", Centred())
    losses = {}
    for name in ("rloo", "centred"):
        rewards = cycle([100.0, 10.0, 0.0])
        monkeypatch.setattr(rollout, "reward", lambda *_, rewards=rewards: next(rewards))
        run(tmp_path / name, algorithm=name, **boxing | {"max_steps": 1})
        losses[name] = read_metrics(tmp_path / name)[1]
    assert losses["rloo"]["reward/mean"] == losses["centred"]["reward/mean"]
    assert losses["rloo"]["gradient/norm"] > 2 * losses["centred"]["gradient/norm"] > 0


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("72}", "72", 100.0),
        (r"\frac{1}{2}}", "0.5", 100.0),
        ("1,000} apples", "1000", 100.0),
        ("73}", "72", 10.0),
        ("no idea}", "72", 10.0),
        ("72", "72", 0.0),
        ("72 and so on", "72", 0.0),
        ("}", "72", 0.0),
    ],
)
def test_rewards_of_real_strings(text: str, target: str, expected: float) -> None:
    """`text` is what the model writes after the prefilled `\\boxed{`."""
    end = closing_brace(text)
    verdict = scorer().score(None if end is None else text[:end], target, ScoreKind.MATH)
    assert configured_reward(verdict, tiny_config()) == expected
    assert reward(verdict) == expected


def test_the_three_rewards_can_be_set() -> None:
    config = tiny_config(reward_correct=1.0, reward_boxed=0.5, reward_none=-1.0)
    answers = ("4", "5", None)
    verdicts = [scorer().score(answer, "4", ScoreKind.MATH) for answer in answers]
    assert [configured_reward(v, config) for v in verdicts] == [1.0, 0.5, -1.0]
