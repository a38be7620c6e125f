"""The initial model, kept to measure how far training has gone from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from softeval.model.language_model import LanguageModel
from softeval.model.output_head import OutputHead
from softeval.trainers.adapters import Adapters


@dataclass(frozen=True, eq=False)
class Reference:
    """A frozen model: a second copy, or the trained one with its adapters switched off.

    Attributes:
        lm: the model.
        head: its output head.
        adapters: to switch off while it is used; None where it is a copy.
    """

    lm: LanguageModel
    head: OutputHead
    adapters: Adapters | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the reference is used."""
        with self.adapters.disabled() if self.adapters else nullcontext():
            yield
