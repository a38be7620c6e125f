"""Model arguments as lm-eval passes them, read once into one record for the model and the tasks.

lm-eval hands all model arguments to every task as metadata, too, so ``num_samples=32`` among them
reaches both. It passes on what it does not know: unknown names are refused here, where a slip of the
pen would otherwise end in a message about another class, or overwrite a task's own metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from softeval.decoding.rows import Limits
from softeval.errors import UserError, suggest
from softeval.modes import MODES, Mode, get_mode, load_mode_file, with_options
from softeval.scoring.judge import Rules

if TYPE_CHECKING:
    from softeval.lmeval.requests import GenerationStore

MODEL_ARGUMENTS = (
    "pretrained",
    "mode",
    "mode_file",
    "logits_dtype",
    "num_samples",
    "max_cot_tokens",
    "max_answer_tokens",
    "seed",
    "batch_size",
    "max_batch_size",
    "dtype",
    "device",
    "data_dir",
    "pass_at",
    "scorer",
    "revision",
    "trust_remote_code",
    "self_check",
    "add_bos_token",
)
"""All but the options of the mode, which are arguments, too."""


@dataclass(frozen=True)
class Options:
    """How generations are made and judged.

    Attributes:
        mode: the CoT mode; None for a task that is loaded for no mode of ours.
        limits: caps on CoT and answer.
        seed: seed of the random numbers.
        num_samples: samples a question of the sampled modes; None where nothing was said.
        pass_at: the k of the pass@k that are reported; None takes the powers of two.
        batch_size: rows decoded at a time; None chooses by memory. It changes no result.
        data_dir: directory of local data; None takes the hub.
        scorer: who judges mathematical answers.
        record_top: entries of the mixture recorded at each position.
        store: where finished results are kept and found.
        progress: whether to show a progress bar.
        chat_date: what chat templates are told of the date; the same as long as the model lives.

    Raises:
        UserError: a k above the number of samples.
    """

    mode: Mode | None = None
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    seed: int = 0
    num_samples: int | None = None
    pass_at: tuple[int, ...] | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    scorer: Rules = Rules.SOFTEVAL
    record_top: int = 0
    store: GenerationStore | None = None
    progress: bool = True
    chat_date: date = field(default_factory=date.today)

    def __post_init__(self) -> None:
        most = max(self.pass_at or (1,))
        if most > (self.num_samples or 1):
            raise UserError(f"pass@{most} needs {most} samples: set num_samples to it")

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Options:
        """What model arguments say, as texts or as values.

        Raises:
            UserError: a value out of range.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        n, ks = given.get("num_samples"), given.get("pass_at")
        ks = ks if ks is None or isinstance(ks, list | tuple) else [ks]
        data_dir, batch_size = given.get("data_dir"), given.get("batch_size")
        return cls(
            mode=_mode(given) if "mode" in given else None,
            limits=_limits(given),
            seed=_whole_number("seed", given.get("seed", 0), least=0),
            num_samples=None if n is None else _whole_number("num_samples", n),
            pass_at=None if ks is None else tuple(_whole_number("pass_at", k) for k in ks),
            batch_size=fixed_batch(batch_size),
            data_dir=None if data_dir is None else str(data_dir),
            scorer=_rules(given.get("scorer", Rules.SOFTEVAL)),
        )

    @property
    def greedy(self) -> bool:
        """Whether all samples of a question are the same."""
        return self.mode is not None and self.mode.is_greedy

    @property
    def samples(self) -> int:
        """Samples a question: one where all are the same."""
        return 1 if self.greedy else self.num_samples or 1

    @property
    def expected_samples(self) -> int | None:
        """Samples a question that tasks must ask for; None where nothing was said."""
        return None if self.num_samples is None else self.samples

    @property
    def ks(self) -> tuple[int, ...]:
        """The k that are reported, rising."""
        asked = powers_of_two(self.samples) if self.pass_at is None else sorted(set(self.pass_at))
        return tuple(k for k in asked if k <= self.samples) or (1,)

    @property
    def max_gen_toks(self) -> int:
        """Cap on CoT and answer together, for models that are not ours."""
        return self.limits.max_cot_tokens + self.limits.max_answer_tokens


def powers_of_two(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to n: the k that are reported unless others are asked for."""
    return tuple(1 << i for i in range(n.bit_length()))


def refuse_unknown(names: Iterable[str], options: Iterable[str]) -> None:
    """Check model arguments.

    Args:
        names: of the arguments given.
        options: of the mode.

    Raises:
        UserError: one that is neither in `MODEL_ARGUMENTS` nor an option, with the nearest that is.
    """
    known = (*MODEL_ARGUMENTS, *options)
    for name in names:
        if name not in known:
            remedy = suggest(name, known) or f"; choose from {', '.join(known)}"
            raise UserError(f"unknown model argument {name!r}{remedy}")


def fixed_batch(batch_size: int | str | None) -> int | None:
    """The batch size; None where it is left to us: "auto", also in lm-eval's form "auto:4"."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return None
    return _whole_number("batch_size", batch_size)


def _mode(arguments: Mapping[str, Any]) -> Mode:
    if arguments.get("mode_file"):
        load_mode_file(str(arguments["mode_file"]))
    mode = arguments["mode"]
    mode = mode if isinstance(mode, Mode) else get_mode(str(mode))
    # An option of another mode is not passed over: it would seem to have had an effect.
    names = {option for known in MODES.values() for option in known.options}
    return with_options(mode, {k: v for k, v in arguments.items() if k in names})


def _limits(arguments: Mapping[str, Any]) -> Limits:
    """The caps that are named, the paper's where none are."""
    names = [name for name in ("max_cot_tokens", "max_answer_tokens") if name in arguments]
    return Limits(**{name: _whole_number(name, arguments[name]) for name in names})


def _rules(name: Any) -> Rules:
    try:
        return Rules(name)
    except ValueError:
        raise UserError(f"scorer={name!r} must be one of {', '.join(Rules)}") from None


def _whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, given as number or text; UserError otherwise."""
    if isinstance(value, bool) or not str(value).strip().lstrip("-").isdigit():
        raise UserError(f"{name}={value!r} must be a whole number")
    if int(value) < least:
        raise UserError(f"{name}={value} must be at least {least}")
    return int(value)
