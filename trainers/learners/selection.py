"""Options of what is asked, and of what chooses the best checkpoint.

Knows nothing of models or files of a run.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.modes import get_mode
from softeval.options import ProtocolOptions, option
from softeval.tasks.local_data import task_name

if TYPE_CHECKING:
    from softeval.trainers.config import TrainConfig

task_option = partial(option, panel="Task")
selection_option = partial(option, panel="Validation and checkpoints")

PASS_RATE_SAMPLES = 8


class SelectionOptions(ProtocolOptions):
    """Difficulty and validation."""

    min_pass_rate: float = task_option(
        0.0,
        "Train only on questions that the untrained model answers right at least so often, as a share "
        "of --pass-rate-samples; measured once, in runs/.",
        ge=0,
        le=1,
    )
    max_pass_rate: float = task_option(1.0, "And at most so often.", ge=0, le=1)
    pass_rate_samples: int | None = task_option(
        None,
        "Samples of each question, in the mode of training, that measure it. Default: 8.",
        ge=1,
    )
    validation_size: int = selection_option(
        100, "Questions held out of the training set to choose the best checkpoint."
    )
    validation_sets: tuple[str, ...] = selection_option(
        (),
        "Further sets to validate on, tasks or JSONL files: the first --validation-size questions of "
        "each, which are dropped from training.",
    )
    validation_modes: tuple[str, ...] = selection_option(
        ("hard_greedy",), "Greedy modes to validate in beside the method's own."
    )
    select_by: str = selection_option(
        "success",
        "The validation figure that chooses the best checkpoint: success of the method's own mode, "
        "hard_greedy_success, or of another set, such as gsm8k/success.",
    )

    @property
    def filters_difficulty(self) -> bool:
        """Whether questions are chosen by how often the untrained model answers them right."""
        return self.min_pass_rate > 0 or self.max_pass_rate < 1

    @property
    def selectors(self) -> tuple[str, ...]:
        """Names of the figures that a validation gives: of each set, in each mode."""
        sets = ("", *(f"{task_name(name)}/" for name in self.validation_sets))
        modes = ("success", *(f"{name}_success" for name in self.validation_modes))
        return tuple(f"{one}{other}" for one in sets for other in modes)


def check_selection(config: TrainConfig) -> None:
    """Refuse, with a ValueError, what cannot be measured, or cannot choose a checkpoint."""
    if config.validation_size < 1:
        raise ValueError(
            f"--validation-size {config.validation_size} leaves no validation data, which chooses "
            "the best checkpoint; hold out 1 or more"
        )
    if not config.filters_difficulty and config.pass_rate_samples is not None:
        raise ValueError("--pass-rate-samples needs --min-pass-rate or --max-pass-rate")
    if config.min_pass_rate > config.max_pass_rate:
        raise ValueError(
            f"--min-pass-rate {config.min_pass_rate} is above --max-pass-rate {config.max_pass_rate}"
        )
    if config.filters_difficulty and config.num_fewshot:
        raise ValueError(
            "--min-pass-rate and --max-pass-rate are measured without examples; leave --num-fewshot out"
        )
    for name in config.validation_modes:
        try:
            mode = get_mode(name)
        except UserError as error:
            raise ValueError(f"--validation-modes: {error}") from None
        if not mode.is_greedy:
            raise ValueError(f"--validation-modes {name} is sampled; name greedy modes")
    sets = [task_name(name) for name in config.validation_sets]
    if len(set(sets)) < len(sets):
        raise ValueError(
            f"--validation-sets: two are called {max(sets, key=sets.count)}; rename a file"
        )
    if config.select_by not in config.selectors:
        known = ", ".join(config.selectors)
        raise ValueError(f"--select-by {config.select_by!r} is none of {known}")
