"""What kinds of answer there are: number with unit, list, interval, equation, time, words, ...

Plain data; `softeval.scoring.grading.reading` makes them of text, `softeval.scoring.grading.comparison` compares
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.tokens import Nodes, written


@dataclass(frozen=True)
class Formula:
    """An expression."""

    nodes: Nodes


@dataclass(frozen=True)
class Colon:
    """A time (`5:30 p.m.`) or a ratio (`2:3:4`)."""

    parts: tuple[Nodes, ...]
    half: str = ""

    @property
    def is_time(self) -> bool:
        """Whether it is written like a time: two digits below 60 after every colon."""
        texts = [written(part) for part in self.parts]
        return bool(self.half) or (
            re.fullmatch("[0-9]{1,2}", texts[0]) is not None
            and int(texts[0]) <= 24
            and all(re.fullmatch("[0-5][0-9]", text) for text in texts[1:])
        )


@dataclass(frozen=True)
class Numeral:
    """Digits with the base they are written in."""

    digits: str
    base: str


@dataclass(frozen=True)
class Words:
    """Prose without a formula; lower case, except where all are capitals."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Prose:
    """Words and formulas mixed. `pieces` alternate between both as they stand."""

    pieces: tuple[Words | Form, ...]


@dataclass(frozen=True)
class Listing:
    """Several answers: a list without brackets, a set, a tuple, or a list in square brackets.

    `joint` says that "or" stands between them.
    """

    items: tuple[Form, ...]
    brackets: Literal["", "{", "(", "["] = ""
    joint: bool = False


@dataclass(frozen=True)
class Interval:
    """Two ends, each with its bracket; open ends are `(` and `)`."""

    left: Nodes
    right: Nodes
    opening: str
    closing: str


@dataclass(frozen=True)
class SetOperation:
    r"""Sets joined by `\\cup`, `\\cap` or `\\setminus`."""

    parts: tuple[Form, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    r"""Sides with `=`, `<`, `\le`, `\in`, ... between them."""

    sides: tuple[Form, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells."""

    rows: tuple[tuple[Nodes, ...], ...]


@dataclass(frozen=True)
class Conditioned:
    """An answer and what it is said to hold for: `2^n` if n is odd."""

    main: Form
    conditions: tuple[str, ...]


Form = (
    Formula
    | Quantity
    | Colon
    | Numeral
    | Words
    | Prose
    | Listing
    | Interval
    | SetOperation
    | Relation
    | Matrix
    | Conditioned
)
