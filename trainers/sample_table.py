"""A few rollouts of an update in full: what was thought, in words and in mixtures.

Knows nothing of files or displays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softeval.trainers.rollout import Rollout

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
