"""Algorithms of policy-gradient training: how rewards become advantages, and advantages a loss.

An algorithm is one class here and its entry in `ALGORITHMS`, of which the configuration takes its
choices; nothing else in the trainer knows which is in use. Every rollout serves one update of the
weights that made it, so no ratio of probabilities stands in a loss.

Shapes: P prompts, G samples of each; B sequences, N choices of all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from softeval.trainers.config import TrainConfig


class Algorithm(ABC):
    """The base of all: its loss is REINFORCE's, the mean over sequences of -A·log π."""

    smallest_group: ClassVar[int] = 1
    """Samples of one question that it needs."""

    @abstractmethod
    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """(P, G) advantages; exactly zero in a group that teaches nothing."""

    def loss(
        self, log_prob_N: Tensor, advantages_B: Tensor, row_N: Tensor, sequences: int
    ) -> Tensor:
        """What some choices add to the loss of an update.

        Args:
            log_prob_N: their log-probabilities, nats.
            advantages_B: A of each sequence, without gradient.
            row_N: sequence of each choice, from which its length follows.
            sequences: sequences of the whole update, of which the B may be a part.
        """
        return -(advantages_B[row_N].to(log_prob_N.dtype) * log_prob_N).sum() / sequences


class RLOO(Algorithm):
    """Reward less the mean reward of the group's other samples (paper appendix A)."""

    smallest_group = 2

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        others_PG = (rewards_PG.sum(1, keepdim=True) - rewards_PG) / (rewards_PG.shape[1] - 1)
        # Rounding must not turn a group that teaches nothing into one that does.
        return (rewards_PG - others_PG).masked_fill(uninformative(rewards_PG)[:, None], 0.0)


ALGORITHMS: dict[str, Algorithm] = {"rloo": RLOO()}


def uninformative(rewards_PG: Tensor) -> Tensor:
    """(P,) whether all rewards of a group are equal, so that it teaches nothing."""
    return (rewards_PG == rewards_PG[:, :1]).all(1)


def check_rollouts(config: TrainConfig) -> None:
    """Refuse, with a ValueError, what no rollout can be learnt from."""
    if config.curriculum:
        raise ValueError(f"--curriculum is for --method coconut, not {config.method}")
    smallest = ALGORITHMS[config.algorithm].smallest_group
    if config.num_generations < smallest:
        raise ValueError(
            f"--num-generations {config.num_generations}: {config.algorithm} compares a sample with "
            f"the others of its question; set --group-size {smallest} or more"
        )
    if config.num_iterations > 1:
        raise ValueError(
            "--num-iterations: this trainer is strictly on-policy; use 1, or TRL for hard CoTs "
            "(the log-probability of a fuzzy CoT differs by up to 1420 nats between two "
            "precisions of one model: no usable importance ratio)"
        )
    if not config.mode.is_gaussian and (config.score_error or config.detach_embedding_in_mixture):
        raise ValueError(
            "--score-error and --detach-embedding-in-mixture fit soft and fuzzy, not "
            f"{config.method}"
        )
    if not config.reward_correct > max(config.reward_boxed, config.reward_none):
        raise ValueError("--reward-correct must be the largest of the three rewards")
