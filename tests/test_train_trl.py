"""The hard method against TRL's RLOOTrainer: the same batch must give the same gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import made_generation, relative_distance, tiny_lm

from softeval.model.output_head import output_head
from softeval.modes import get_mode
from softeval.trainers.losses import Policy, collate, log_probs, policy_losses

trl = pytest.importorskip("trl")

PROMPT, COT, ANSWER = 5, 7, 4


def rloo_trainer(lm: Any, folder: Path) -> Any:
    from datasets import Dataset

    settings = trl.RLOOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=2,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
    )
    return trl.RLOOTrainer(
        model=lm.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=lm.tokenizer,
    )


def gradients(lm: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(lm.model.parameters())))


def test_gradient_of_a_fixed_batch_equals_trls(tmp_path: Path) -> None:
    lm = tiny_lm(width=32)
    # TRL has no prefill between CoT and answer; an empty one makes the two policies the same.
    shapes = [(PROMPT, COT, 0, ANSWER), (PROMPT, COT - 3, 0, ANSWER), (PROMPT, 1, 0, 1)]
    made = [made_generation(lm, shape, sample=n, inputs=False) for n, shape in enumerate(shapes)]
    advantages = torch.tensor([0.9, -1.7, 0.4])
    policy = Policy(get_mode("hard_sample"))
    batch = collate(made, lm.device, lm.dtype, policy.mode, policy.mode.draws(lm.embedding))
    found = log_probs(lm, output_head(lm, chunk=5), batch, policy)
    ours = gradients(lm, sum(policy_losses(found, batch, advantages, len(made))))  # type: ignore[arg-type]

    trainer = rloo_trainer(lm, tmp_path)
    completions = [[*g.shadow_ids, *g.answer_ids] for g in made]
    longest = max(map(len, completions))
    mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions])
    padded = torch.tensor([[*c, *[0] * (longest - len(c))] for c in completions])
    prompts = torch.tensor([list(g.prompt_ids) for g in made])
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded,
        "completion_mask": mask,
        "advantages": advantages,
    }
    ids, seen = torch.cat([prompts, padded], 1), torch.cat([torch.ones_like(prompts), mask], 1)
    with torch.no_grad():  # on-policy: the ratio is one
        old, _, _ = trainer._get_per_token_logps_and_entropies(lm.model, ids, seen, longest)
    inputs["old_logps"] = (old * mask).sum(1)
    theirs = gradients(lm, trainer._compute_loss(lm.model, inputs))

    # Two float32 sums of some twenty positions, in other orders: tens of 2^-24 apart.
    for mine, other in zip(ours, theirs, strict=True):
        assert float(other.norm()) > 1e-3
        assert relative_distance([mine], [other]) < 1e-5
