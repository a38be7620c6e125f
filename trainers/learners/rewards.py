"""Rewards of samples: the paper's three, what a long CoT loses, or a function of the user's own.

`--reward module:function` (or file.py:function) names a function that takes a `RewardInput` and gives a
finite number:

    def short_and_right(sample: RewardInput) -> float:
        return sample.reward - 0.1 * sample.cot_tokens

It runs in this process, unguarded: it is the user's own code. The file in which it stands is part of
what must agree when a run is continued; what that file imports is not.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.files import run_python
from softeval.terminal import one_line

if TYPE_CHECKING:
    from softeval.records import Generation
    from softeval.scoring.judge import Verdict
    from softeval.trainers.config import TrainConfig
    from softeval.trainers.questions import TrainingQuestion


@dataclass(frozen=True)
class RewardInput:
    r"""What a reward function is given.

    Attributes:
        question: the question's text.
        target: its right answer.
        cot: the CoT; of a soft or fuzzy one the most likely token at each step.
        answer: what stands in the box; None without one.
        correct: whether the scorer accepts it.
        cot_tokens: steps of the CoT.
        stop_reason: why the CoT ended: answer_prefix, eos or length.
        reward: what the sample would get without the function.
    """

    question: str
    target: str
    cot: str
    answer: str | None
    correct: bool
    cot_tokens: int
    stop_reason: str
    reward: float


def verdict_reward(verdict: Verdict, config: TrainConfig) -> float:
    """Right, any other boxed answer, or none (paper section 4)."""
    if verdict.correct:
        return config.reward_correct
    return config.reward_none if verdict.status == "no_answer" else config.reward_boxed


def overlong_loss(cot_tokens: int, config: TrainConfig) -> float:
    """What the length of a CoT costs (DAPO, arXiv 2503.14476, equation 13).

    Nothing up to the cap less `overlong_cache`, from there in proportion up to the whole penalty.
    """
    if config.overlong_cache == 0:
        return 0.0
    penalty = config.overlong_penalty or config.reward_correct
    beyond = cot_tokens - (config.cot_cap - config.overlong_cache)
    return penalty * max(0, beyond) / config.overlong_cache


def reward(
    question: TrainingQuestion, generation: Generation, verdict: Verdict, config: TrainConfig
) -> float:
    """Reward of a sample.

    Raises:
        UserError: the user's function fails, or gives no finite number.
    """
    steps = len(generation.shadow_ids)
    usual = verdict_reward(verdict, config) - overlong_loss(steps, config)
    if config.reward is None:
        return usual
    sample = RewardInput(
        question.problem.question,
        question.problem.target,
        generation.cot_text,
        generation.answer,
        verdict.correct,
        steps,
        str(generation.stop_reason),
        usual,
    )
    return _asked(config.reward, sample)


def _asked(name: str, sample: RewardInput) -> float:
    about = f"--reward {name}, asked about {sample.question[:60]!r},"
    try:
        found = load_reward(name)(sample)
    except UserError:
        raise
    except Exception as error:  # the user's own code: it can raise anything
        reason = one_line(str(error)) or "no message"
        raise UserError(f"{about} fails ({type(error).__name__}: {reason}); mend it") from error
    if isinstance(found, Real) and math.isfinite(found):
        return float(found)
    raise UserError(f"{about} gives {one_line(repr(found))[:60]}; it must give a finite number")


@cache
def load_reward(name: str) -> Callable[[RewardInput], Any]:
    """The function that "module:function" or "file.py:function" names.

    Raises:
        UserError: there is none, or its module cannot be imported.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = _module(place)
        found = getattr(module, attribute)
    except Exception as error:  # importing runs the user's code
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(
            f"--reward {name}: {reason}; name a function as module:function or file.py:function"
        ) from error
    if not callable(found):
        raise UserError(f"--reward {name}: {attribute} is no function")
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    file = Path(place).expanduser().resolve()
    return run_python(file, f"softeval rewards of {file}")


def source_hash(name: str) -> str:
    """First 16 hex digits of the sha256 of the source file in which the function stands.

    Raises:
        UserError: as `load_reward`.
    """
    load_reward.cache_clear()  # an edited file is run again, or its hash would tell of other code
    try:
        path = inspect.getsourcefile(inspect.unwrap(load_reward(name)))
    except TypeError:  # an object that can be called has no source; the module that names it has
        path = getattr(_module(name.rpartition(":")[0]), "__file__", None)
    content = Path(path).read_bytes() if path else name.encode()
    return hashlib.sha256(content).hexdigest()[:16]
