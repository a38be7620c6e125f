"""Advantages of grouped rewards.

Each algorithm is one case here; nothing else in the trainer knows which is in use.

Shapes: P prompts, G samples of each.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from softeval.errors import UserError


class Algorithm(StrEnum):
    """How rewards become advantages."""

    RLOO = "rloo"


def advantages(rewards_PG: Tensor, algorithm: Algorithm) -> Tensor:
    """(P, G) advantages.

    Raises:
        UserError: groups too small for the algorithm.
    """
    match algorithm:
        case Algorithm.RLOO:
            return leave_one_out(rewards_PG)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Reward less the mean reward of the group's other samples (RLOO; paper appendix A).

    A group of equal rewards has advantages of exactly zero.

    Raises:
        UserError: a group of one has no others.
    """
    size = rewards_PG.shape[1]
    if size < 2:
        raise UserError("RLOO needs at least two samples a prompt; set --group-size 2 or more")
    others_PG = (rewards_PG.sum(1, keepdim=True) - rewards_PG) / (size - 1)
    # Rounding must not turn a group that teaches nothing into one that does.
    return (rewards_PG - others_PG).masked_fill(uninformative(rewards_PG)[:, None], 0.0)


def uninformative(rewards_PG: Tensor) -> Tensor:
    """(P,) whether all rewards of a group are equal, so that it teaches nothing."""
    return torch.all(rewards_PG == rewards_PG[:, :1], dim=1)
