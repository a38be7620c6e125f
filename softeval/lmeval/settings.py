"""What a task takes from the run: samples a question, the k of pass@k, caps, data directory.

lm-eval hands all model arguments to every task as metadata, so ``num_samples=32`` among them
reaches the task too. Knows nothing of lm-eval's classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softeval.decoding.rows import Limits
from softeval.errors import UserError
from softeval.modes import MODES, Mode, get_mode, load_mode_file, with_options
from softeval.scoring.judge import Rules

ROW = "softeval_row"
"""Field of every document: its row number in the data set. It names the question in the keys of
random numbers and of the store, however the documents were selected."""


@dataclass(frozen=True)
class TaskSettings:
    """How a task is run.

    Attributes:
        num_samples: samples a question; 1 in a greedy mode, whose samples are all the same.
        pass_at: the k of the pass@k that are reported, rising.
        max_gen_toks: cap on CoT and answer together, for models that are not ours.
        data_dir: directory of local data; None takes the hub.
        scorer: who judges mathematical answers.
    """

    num_samples: int = 1
    pass_at: tuple[int, ...] = (1,)
    max_gen_toks: int = Limits().max_cot_tokens + Limits().max_answer_tokens
    data_dir: str | None = None
    scorer: Rules = Rules.SOFTEVAL

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> TaskSettings:
        """Read the model arguments that lm-eval put into a task's metadata.

        Raises:
            UserError: a value out of range, or a k above the number of samples.
        """
        asked = whole_number("num_samples", metadata.get("num_samples", 1))
        mode = mode_from(metadata) if "mode" in metadata else None
        n = 1 if mode is not None and mode.is_greedy else asked
        limits = limits_from(metadata)
        data_dir = metadata.get("data_dir")
        return cls(
            num_samples=n,
            pass_at=_pass_at(metadata.get("pass_at"), asked, n),
            max_gen_toks=limits.max_cot_tokens + limits.max_answer_tokens,
            data_dir=None if data_dir is None else str(data_dir),
            scorer=_rules(metadata.get("scorer", Rules.SOFTEVAL)),
        )


def _rules(name: Any) -> Rules:
    try:
        return Rules(name)
    except ValueError:
        raise UserError(f"scorer={name!r} must be one of {', '.join(Rules)}") from None


def mode_from(arguments: Mapping[str, Any]) -> Mode:
    """The mode that model arguments describe; UserError as `softeval.modes.get_mode`."""
    if arguments.get("mode_file"):
        load_mode_file(str(arguments["mode_file"]))
    mode = arguments["mode"]
    mode = mode if isinstance(mode, Mode) else get_mode(str(mode))
    # An option of another mode is not passed over: it would seem to have had an effect.
    names = {option for known in MODES.values() for option in known.options}
    given = {k: v for k, v in arguments.items() if k in names and v is not None}
    return with_options(mode, given)


def limits_from(arguments: Mapping[str, Any]) -> Limits:
    """The caps that model arguments name, the paper's where they name none."""
    given = {
        name: whole_number(name, arguments[name])
        for name in ("max_cot_tokens", "max_answer_tokens")
        if arguments.get(name) is not None
    }
    return Limits(**given)


def powers_of_two(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to n: the k that are reported unless others are asked for."""
    return tuple(1 << i for i in range(n.bit_length()))


def _pass_at(ks: Any, asked: int, n: int) -> tuple[int, ...]:
    if ks is None:
        return powers_of_two(n)
    given = ks if isinstance(ks, list | tuple) else [ks]
    chosen = sorted({whole_number("pass_at", k) for k in given})
    if chosen[-1] > asked:
        raise UserError(f"pass@{chosen[-1]} needs {chosen[-1]} samples: set num_samples to it")
    return tuple(k for k in chosen if k <= n) or (1,)


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, given as number or text; UserError otherwise."""
    if isinstance(value, bool) or not str(value).strip().lstrip("-").isdigit():
        raise UserError(f"{name}={value!r} must be a whole number")
    if int(value) < least:
        raise UserError(f"{name}={value} must be at least {least}")
    return int(value)
