"""The curriculum of COCONUT: which steps of a worked solution are thoughts, and when.

Hao et al. 2024 (arXiv 2412.06769, section 3): stage 0 is a text with all its steps; stage k replaces the
first k by c thoughts each, as long as k is at most K; the stage after K has the thoughts of stage K and
no step left. A question with fewer than k steps has none left either, and as many thoughts as any
other. The optimizer starts anew with each stage. Markers around the thoughts are not used: the prompt
is the evaluator's, and so is the number of thoughts, which a mode option holds.

Knows nothing of tokens, tensors or models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from softeval.errors import UserError
from softeval.protocol import PAPER

if TYPE_CHECKING:
    from softeval.trainers.config import TrainConfig

NEUTRAL = {
    "num_generations": 1,
    "kl_steps": 0,
    "gradient_split_steps": 0,
    "log_completions_steps": 0,
}
"""What options of reinforcement learning are here: one sequence a question, no rollouts to measure."""
_SAMPLED = ("answer_temperature", "dynamic_sampling", "max_refills", "num_completions")


class Curriculum(BaseModel):
    """The stages, as `--curriculum name=value,…` sets them; defaults are the paper's for GSM8K.

    Attributes:
        latents: c, thoughts in place of a step; 0 drops steps without a replacement.
        stages: K; thoughts stand for at most so many steps.
        updates: updates of a stage; the last one takes what is left.
        first: updates of stage 0; by default twice as many, as in the paper.
        mixing: probability that a sequence is of an earlier stage, any of them alike (the released
            code's `uniform_prob` draws from later ones, too).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latents: int = Field(2, ge=0)
    stages: int = Field(3, ge=0)
    updates: int = Field(200, ge=1)
    first: int | None = Field(None, ge=1)
    mixing: float = Field(0.0, ge=0, lt=1)

    @property
    def last(self) -> int:
        """Number of the last stage, in which no step is left."""
        return self.stages + 1

    def stage(self, update: int) -> int:
        """Stage of an update, counted from 1; 0 for the model before the first."""
        past = update - 1 - self._first
        return 0 if past < 0 else min(1 + past // self.updates, self.last)

    def thoughts(self, stage: int) -> int:
        """Thoughts of a sequence in a stage."""
        return self.latents * min(stage, self.stages)

    def left(self, steps: Sequence[str], stage: int) -> Sequence[str]:
        """The steps that are still text in a stage."""
        return () if stage > self.stages else steps[stage:]

    def drawn(self, stage: int, key: tuple[int, int]) -> int:
        """Stage of one sequence, drawn by its key: the given one, or an earlier one."""
        rng = random.Random(repr(key))
        mixed = stage > 0 and rng.random() < self.mixing
        return rng.randrange(stage) if mixed else stage

    @property
    def _first(self) -> int:
        return self.first or 2 * self.updates


def check_stages(config: TrainConfig) -> None:
    """Refuse, with a ValueError, what a curriculum has no use for."""
    fields = {name: field.json_schema_extra for name, field in type(config).model_fields.items()}
    loss = [
        n for n, extra in fields.items() if isinstance(extra, dict) and extra["panel"] == "Loss"
    ]
    for name in (*NEUTRAL, *_SAMPLED, "skip_zero_advantage", *loss):
        if name in config.model_fields_set and getattr(config, name) != NEUTRAL.get(name):
            raise ValueError(
                f"--{name.replace('_', '-')} is of reinforcement learning; --method coconut learns "
                "from worked solutions, so leave it out"
            )
    if config.selected_protocol().stops != PAPER.stops:
        raise ValueError(
            "--method coconut learns texts that end as the paper's do; leave --cot-stop,"
            " --answer-prefix and --protocol think out"
        )
    if "latents" in config.mode_args:
        raise ValueError("--mode-args latents: the stage says how many; use --curriculum latents=…")


def read_curriculum(options: Mapping[str, str]) -> Curriculum:
    """The curriculum from texts.

    Raises:
        UserError: no such option, or no such value.
    """
    try:
        return Curriculum.model_validate(options)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        if name not in Curriculum.model_fields:
            known = ", ".join(Curriculum.model_fields)
            raise UserError(f"--curriculum has no {name!r}; it takes {known}") from None
        raise UserError(f"--curriculum {name}={problem['input']}: {problem['msg']}") from None


def solution_text(steps: Sequence[str]) -> str:
    """What follows the thoughts, up to the paper's stop: steps that are left, each with its space."""
    return f"{''.join(steps)} {PAPER.cot_stop}"
