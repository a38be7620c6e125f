"""How the adapter makes generations: mode, caps, seed, samples, and where they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from softeval.decoding.rows import Limits
from softeval.lmeval.settings import limits_from, mode_from, whole_number
from softeval.lmeval.store import GenerationStore
from softeval.modes import Mode


@dataclass(frozen=True)
class CotSettings:
    """How generations are made.

    Attributes:
        mode: the CoT mode.
        limits: caps on CoT and answer.
        seed: seed of the random numbers.
        num_samples: samples a question of the sampled modes; None takes what the tasks say.
        batch_size: rows decoded at a time; None chooses by memory. It changes no result.
        record_top: entries of the mixture recorded at each position.
        store: where finished results are kept and found.
        progress: whether to show a progress bar.
        chat_date: what chat templates are told of the date; the same as long as the model lives.
    """

    mode: Mode
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    seed: int = 0
    num_samples: int | None = None
    batch_size: int | None = None
    record_top: int = 0
    store: GenerationStore | None = None
    progress: bool = True
    chat_date: date = field(default_factory=date.today)

    @property
    def greedy(self) -> bool:
        """Whether all samples of a question are the same."""
        return self.mode.is_greedy

    @property
    def expected_samples(self) -> int | None:
        """Samples a question that tasks must ask for; None where nothing was said."""
        return 1 if self.greedy and self.num_samples is not None else self.num_samples


def cot_settings(arguments: Mapping[str, Any], batch_size: int | str | None) -> CotSettings:
    """What model arguments say about generations; UserError for a value out of range."""
    n, seed = arguments.get("num_samples"), arguments.get("seed")
    return CotSettings(
        mode=mode_from(arguments),
        limits=limits_from(arguments),
        seed=0 if seed is None else whole_number("seed", seed, least=0),
        num_samples=None if n is None else whole_number("num_samples", n),
        batch_size=None if is_auto(batch_size) else whole_number("batch_size", batch_size),
    )


def is_auto(batch_size: int | str | None) -> bool:
    """Whether the batch size is left to us: "auto", also in lm-eval's form "auto:4"."""
    return batch_size is None or str(batch_size).startswith("auto")
