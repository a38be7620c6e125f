"""The hard method against TRL's trainers: the same batch must give the same gradient.

RLOOTrainer has the default's loss, GRPOTrainer those of the other algorithms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import made_generation, relative_distance, tiny_config, tiny_lm

from softeval.model.output_head import output_head
from softeval.modes import get_mode
from softeval.records import Generation
from softeval.trainers.algorithms import ALGORITHMS
from softeval.trainers.learners.rewards import overlong_loss
from softeval.trainers.losses import Policy, collate, log_probs, policy_losses

trl = pytest.importorskip("trl")

PROMPT, COT, ANSWER = 5, 7, 4
ADVANTAGES = torch.tensor([0.9, -1.7, 0.4])


def make_trainer(lm: Any, folder: Path, kind: str, rewards: list[float], **settings: Any) -> Any:
    """TRL's trainer of a kind, RLOO or GRPO, whose reward function gives these rewards."""
    from datasets import Dataset

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        **settings,
    )
    return getattr(trl, f"{kind}Trainer")(
        model=lm.model,
        reward_funcs=lambda completions, **_: rewards[: len(completions)],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=lm.tokenizer,
    )


def gradients(lm: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(lm.model.parameters())))


def made_rollouts(lm: Any) -> list[Generation]:
    """TRL has no prefill between CoT and answer; an empty one makes the two policies the same."""
    shapes = [(PROMPT, COT, 0, ANSWER), (PROMPT, COT - 3, 0, ANSWER), (PROMPT, 1, 0, 1)]
    return [made_generation(lm, shape, sample=n, inputs=False) for n, shape in enumerate(shapes)]


def their_inputs(made: list[Generation]) -> dict[str, torch.Tensor]:
    completions = [[*g.shadow_ids, *g.answer_ids] for g in made]
    longest = max(map(len, completions))
    mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions])
    padded = torch.tensor([[*c, *[0] * (longest - len(c))] for c in completions])
    prompts = torch.tensor([list(g.prompt_ids) for g in made])
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded,
        "completion_mask": mask,
        "advantages": ADVANTAGES,
    }


def their_log_probs(trainer: Any, lm: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T) of the completions, before any update."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(lm.model, ids, seen, length)[0]


def assert_same_gradients(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """Two float32 sums of some twenty positions, in other orders: tens of 2^-24 apart."""
    for mine, other in zip(ours, theirs, strict=True):
        assert float(other.norm()) > 1e-4
        assert relative_distance([mine], [other]) < 1e-5


def test_gradient_of_a_fixed_batch_equals_trls(tmp_path: Path) -> None:
    lm = tiny_lm(width=32)
    made = made_rollouts(lm)
    policy = Policy(get_mode("hard_sample"))
    batch = collate(made, lm.device, lm.dtype, policy.mode, policy.mode.draws(lm.embedding))
    found = log_probs(lm, output_head(lm, chunk=5), batch, policy)
    ours = gradients(lm, sum(policy_losses(found, batch, ADVANTAGES, len(made))))  # type: ignore[arg-type]

    trainer = make_trainer(lm, tmp_path, "RLOO", [0.0] * 4, num_generations=2)
    inputs = their_inputs(made)
    old = their_log_probs(trainer, lm, inputs)  # on-policy: the ratio is one
    inputs["old_logps"] = (old * inputs["completion_mask"]).sum(1)
    assert_same_gradients(ours, gradients(lm, trainer._compute_loss(lm.model, inputs)))


@pytest.mark.parametrize("moved", [0.0, 0.3], ids=["first update", "second update"])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_other_algorithms_have_trls_gradients(name: str, moved: float, tmp_path: Path) -> None:
    """Also of a second update on the batch, in which some ratios are clipped on either side."""
    lm = tiny_lm(width=32)
    made, longest, algorithm = made_rollouts(lm), 15, ALGORITHMS[name]
    trainer = make_trainer(
        lm,
        tmp_path,
        "GRPO",
        [0.0] * 4,
        num_generations=2,
        loss_type=name,
        epsilon=algorithm.epsilon,
        epsilon_high=algorithm.epsilon_high,
        max_completion_length=longest,
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = their_inputs(made)
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    now = their_log_probs(trainer, lm, inputs)
    torch.manual_seed(0)
    former = now + moved * torch.randn_like(now)
    if moved:
        inputs["old_per_token_logps"] = former
    theirs = gradients(lm, trainer._compute_loss(lm.model, inputs))

    policy = Policy(get_mode("hard_sample"))
    batch = collate(made, lm.device, lm.dtype, policy.mode, policy.mode.draws(lm.embedding))
    lengths = torch.tensor([[float(g.choices) for g in made]])
    scaled = ADVANTAGES * algorithm.weights(lengths, longest)[0]
    cuts = [(len(g.shadow_ids), g.choices) for g in made]
    kept = (
        torch.cat([row[:cot] for row, (cot, _) in zip(former, cuts, strict=True)]),
        torch.cat([row[cot:end] for row, (cot, end) in zip(former, cuts, strict=True)]),
    )
    found = log_probs(lm, output_head(lm, chunk=5), batch, policy)
    terms = policy_losses(
        found, batch, scaled, len(made), algorithm, kept if moved else (None, None)
    )
    if moved:
        held = algorithm.clips(found.cot.log_prob_N, ADVANTAGES[batch.cot.row_N], kept[0])
        assert 0 < int(held.sum()) < len(held)
    assert_same_gradients(gradients(lm, terms[0] + terms[1]), theirs)


@pytest.mark.parametrize(
    ("name", "scale", "group"),
    [("grpo", "group", 2), ("dr_grpo", "none", 2), ("reinforce_plus_plus", "batch", 4)],
)
def test_advantages_are_trls(name: str, scale: str, group: int, tmp_path: Path) -> None:
    """TRL subtracts the group's mean in all; of one group that is REINFORCE++'s, too."""
    rewards = [100.0, 10.0, 0.0, 10.0]
    trainer = make_trainer(
        tiny_lm(),
        tmp_path,
        "GRPO",
        rewards,
        num_generations=group,
        scale_rewards=scale,
        max_completion_length=2,
    )
    theirs = trainer._generate_and_score_completions([{"prompt": "a"}] * 4)["advantages"]
    ours = ALGORITHMS[name].advantages(torch.tensor(rewards).double().view(-1, group))
    torch.testing.assert_close(ours.flatten().float(), theirs)


def test_overlong_shaping_is_trls() -> None:
    config = tiny_config(max_cot_tokens=20, overlong_cache=8, overlong_penalty=5.0)
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(20, 8)([[0] * n for n in range(21)])
    assert [-overlong_loss(n, config) / 5 for n in range(21)] == pytest.approx(theirs)
    assert overlong_loss(24, tiny_config(overlong_cache=8)) == config.reward_correct
    assert overlong_loss(20, tiny_config(max_cot_tokens=20)) == 0
