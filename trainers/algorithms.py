"""Algorithms of policy-gradient training: how rewards become advantages, and advantages a loss.

An algorithm is one class here and its entry in `ALGORITHMS`, of which the configuration takes its
choices; nothing else in the trainer knows which is in use. The loss of all is the mean over sequences
of -w·A·log π, summed over a sequence's choices: CoT steps, of whatever kind, and answer tokens. They
differ in the advantage A that rewards make and in the weight w that lengths make.

Where one batch of rollouts serves several updates (`--num-iterations`), the second and later ones
replace log π by the ratio to the policy that sampled, clipped as in PPO (arXiv 1707.06347). That is
for hard tokens: the log-probability of a Gaussian step sums D squares, and its ratio means nothing.

Shapes: P prompts, G samples of each; B sequences, N choices of all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from softeval.errors import suggest
from softeval.options import ModelOptions, option

if TYPE_CHECKING:
    from torch import Tensor

    from softeval.trainers.config import TrainConfig

STD_EPSILON = 1e-4
"""Added to a standard deviation before it divides, as in TRL."""


@dataclass(frozen=True)
class Algorithm(ABC):
    """The base of all: on-policy REINFORCE, every choice of weight 1.

    Attributes:
        epsilon: a ratio counts as no less than 1 - ε.
        epsilon_high: and as no more than 1 + this.
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.2

    smallest_group: ClassVar[int] = 1
    """Samples of one question that it needs."""
    takes_ratios: ClassVar[bool] = True
    """Whether it is meant for several updates on one batch of rollouts."""

    @abstractmethod
    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """(P, G) advantages; exactly zero where nothing is to be learnt."""

    def weights(self, lengths_PG: Tensor, longest: int) -> Tensor:
        """(P, G) weight of a sequence's choices in the mean over sequences.

        Args:
            lengths_PG: choices of each sequence of the update, over all processes.
            longest: the most that the caps allow.
        """
        return lengths_PG.new_ones(lengths_PG.shape)

    def loss(
        self,
        log_prob_N: Tensor,
        advantages_B: Tensor,
        row_N: Tensor,
        sequences: int,
        former_N: Tensor | None = None,
    ) -> Tensor:
        """What some choices add to the loss of an update.

        Args:
            log_prob_N: their log-probabilities, nats.
            advantages_B: w·A of each sequence, without gradient.
            row_N: sequence of each choice.
            sequences: sequences of the whole update, of which the B may be a part.
            former_N: log-probabilities under the policy that sampled; None where it is this one.
        """
        advantages_N = advantages_B[row_N].to(log_prob_N.dtype)
        if former_N is None:
            return -(advantages_N * log_prob_N).sum() / sequences
        ratio_N = (log_prob_N - former_N).exp()
        clipped_N = ratio_N.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        return -(ratio_N * advantages_N).minimum(clipped_N * advantages_N).sum() / sequences

    def clips(self, log_prob_N: Tensor, advantages_N: Tensor, former_N: Tensor) -> Tensor:
        """(N,) whether a choice has moved as far as it may, so that its gradient is zero."""
        ratio_N = (log_prob_N - former_N).exp()
        too_low_N = (ratio_N < 1 - self.epsilon) & (advantages_N < 0)
        return too_low_N | ((ratio_N > 1 + self.epsilon_high) & (advantages_N > 0))


class RLOO(Algorithm):
    """Reward less the mean reward of the group's other samples (paper appendix A; arXiv 2402.14740)."""

    smallest_group = 2
    takes_ratios = False

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        others_PG = (rewards_PG.sum(1, keepdim=True) - rewards_PG) / (rewards_PG.shape[1] - 1)
        return _taught(rewards_PG - others_PG, rewards_PG)


class DrGRPO(Algorithm):
    """Reward less the group's mean; every choice counts alike, over the longest sequence that the caps allow.

    Liu et al. 2025 (arXiv 2503.20783): neither a question's spread nor a sequence's length is divided by.
    """

    smallest_group = 2

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return _taught(rewards_PG - rewards_PG.mean(1, keepdim=True), rewards_PG)

    def weights(self, lengths_PG: Tensor, longest: int) -> Tensor:
        return lengths_PG.new_full(lengths_PG.shape, 1 / longest)


class GRPO(DrGRPO):
    """Centred rewards over their standard deviation; the mean over each sequence's choices.

    Shao et al. 2024 (arXiv 2402.03300, equations 3 and 4).
    """

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        return super().advantages(rewards_PG) / (rewards_PG.std(1, keepdim=True) + STD_EPSILON)

    def weights(self, lengths_PG: Tensor, longest: int) -> Tensor:
        return 1 / lengths_PG


@dataclass(frozen=True)
class DAPO(GRPO):
    """GRPO's advantages, the mean over all choices of the update, and more room above than below.

    Yu et al. 2025 (arXiv 2503.14476, equations 8 and 12). Its other parts are options of their own, for
    any algorithm: `--dynamic-sampling` and `--overlong-cache`; the recipe `dapo` sets all.
    """

    epsilon_high: float = 0.28

    def weights(self, lengths_PG: Tensor, longest: int) -> Tensor:
        return lengths_PG.new_full(lengths_PG.shape, lengths_PG.numel() / float(lengths_PG.sum()))


class ReinforcePlusPlus(Algorithm):
    """Rewards less the mean of the whole update, over its standard deviation; the mean over choices.

    Hu et al. 2025 (arXiv 2501.03262), without its KL in the reward: `--beta` adds one to any loss. A
    group of equal rewards teaches, too, where other groups fared otherwise.
    """

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        centred_PG = rewards_PG - rewards_PG.mean()
        found_PG = centred_PG / (rewards_PG.std() + STD_EPSILON)
        return found_PG.masked_fill((rewards_PG == rewards_PG[0, 0]).all(), 0.0)

    def weights(self, lengths_PG: Tensor, longest: int) -> Tensor:
        return 1 / lengths_PG


ALGORITHMS: dict[str, Algorithm] = {
    "rloo": RLOO(),
    "grpo": GRPO(),
    "dr_grpo": DrGRPO(),
    "dapo": DAPO(),
    "reinforce_plus_plus": ReinforcePlusPlus(),
}


loss_option = partial(option, panel="Loss")


class LossOptions(ModelOptions):
    """What rewards are given for and how they become a loss."""

    algorithm: str = loss_option("rloo", f"How rewards become a loss: {', '.join(ALGORITHMS)}.")
    reward_correct: float = loss_option(100.0, "Reward of an accepted answer.")
    reward_boxed: float = loss_option(10.0, "Reward of any other boxed answer.")
    reward_none: float = loss_option(0.0, "Reward of a sample without a boxed answer.")
    reward: str | None = loss_option(
        None,
        "A function of your own, as module:function or file.py:function; it is given what "
        "softeval.trainers.learners.rewards describes, and gives the reward.",
    )
    cot_logprob_reduction: Literal["sum", "mean"] = loss_option(
        "sum", "Over the elements of a soft step: sum (the density) or mean."
    )
    score_error: Literal["recorded", "recomputed"] | None = loss_option(
        None,
        "What the score of a soft step takes for its noise: recorded (default), what the rollout "
        "drew, or recomputed from the training pass (the paper's formula; the same but for "
        "rounding, which in bfloat16 outweighs the rest of the gradient).",
    )
    detach_embedding_in_mixture: bool = loss_option(
        False, "Let no gradient reach E through the mixture p·E; p keeps its own."
    )
    beta: float = loss_option(
        0.0,
        "Coefficient of the KL to the initial model, summed over tokens (not in the paper).",
        ge=0,
    )
    num_iterations: int = loss_option(
        1,
        "Updates on one batch of rollouts; more than one for hard tokens only, and not rloo.",
        ge=1,
    )
    epsilon: float | None = loss_option(
        None, "With several: a ratio is clipped below at 1 - ε. Default: 0.2.", gt=0, lt=1
    )
    epsilon_high: float | None = loss_option(
        None, "And above at 1 + this. Default: 0.2, dapo 0.28.", gt=0
    )
    overlong_cache: int = loss_option(
        0,
        "Length of the last part of the cap on the CoT in which a CoT loses reward, the more the longer "
        "it is (DAPO's overlong shaping); 0 for none.",
        ge=0,
    )
    overlong_penalty: float | None = loss_option(
        None, "Reward lost by a CoT that fills the cap. Default: --reward-correct.", gt=0
    )

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: str) -> str:
        if value not in ALGORITHMS:
            known = f"{', '.join(ALGORITHMS)}{suggest(value, ALGORITHMS)}"
            raise ValueError(f"{value!r} is none of {known}")
        return value


def make_algorithm(config: LossOptions) -> Algorithm:
    """The configured algorithm with its clip range."""
    given = {n: getattr(config, n) for n in _CLIP if getattr(config, n) is not None}
    return replace(ALGORITHMS[config.algorithm], **given)


_CLIP = ("epsilon", "epsilon_high")


def uninformative(rewards_PG: Tensor) -> Tensor:
    """(P,) whether all rewards of a group are equal, so that it teaches nothing by itself."""
    return (rewards_PG == rewards_PG[:, :1]).all(1)


def _taught(advantages_PG: Tensor, rewards_PG: Tensor) -> Tensor:
    """Rounding must not turn a group that teaches nothing into one that does."""
    return advantages_PG.masked_fill(uninformative(rewards_PG)[:, None], 0.0)


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
    if config.sequences < 2:
        raise ValueError("one sequence has nothing to be compared with; raise --prompts-per-step")
    if config.dynamic_sampling and config.num_generations == 1:
        raise ValueError(
            "--dynamic-sampling replaces groups of equal rewards, and one sample is always such a "
            "group; set --group-size 2 or more, or leave it out"
        )
    _check_ratios(config)
    if config.overlong_cache > config.cot_cap:
        raise ValueError(
            f"--overlong-cache {config.overlong_cache} is longer than the cap on the CoT, {config.cot_cap}"
        )
    if config.overlong_cache > 0 and (config.overlong_penalty or config.reward_correct) <= 0:
        raise ValueError(
            "--overlong-cache costs a share of --reward-correct; give --overlong-penalty"
        )
    if config.overlong_penalty is not None and config.overlong_cache == 0:
        raise ValueError(
            "--overlong-penalty needs --overlong-cache, the part of the cap that costs"
        )
    if not config.mode.is_gaussian and (config.score_error or config.detach_embedding_in_mixture):
        raise ValueError(
            "--score-error and --detach-embedding-in-mixture fit soft and fuzzy, not "
            f"{config.method}"
        )
    if not config.reward_correct > max(config.reward_boxed, config.reward_none):
        raise ValueError("--reward-correct must be the largest of the three rewards")


def _check_ratios(config: TrainConfig) -> None:
    """Several updates on one batch, and the clip range that they need, only where they are meant."""
    if config.num_iterations == 1:
        for name in _CLIP:
            if getattr(config, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} clips the ratio to the policy that sampled, which is "
                    "one in the only update of a batch; set --num-iterations 2 or more"
                )
    elif not config.mode.feeds_tokens:
        raise ValueError(
            f"--num-iterations: {config.method} steps are strictly on-policy; use 1, or --method hard "
            "(the log-probability of a fuzzy CoT differs by up to 1420 nats between two "
            "precisions of one model: no usable importance ratio)"
        )
    elif not ALGORITHMS[config.algorithm].takes_ratios:
        meant = ", ".join(name for name, a in ALGORITHMS.items() if a.takes_ratios)
        raise ValueError(
            f"--num-iterations: {config.algorithm} is strictly on-policy; use 1, or --algorithm {meant}"
        )
