"""What kinds of answer there are: number with unit, list, interval, equation, time, words, ...

Plain data; `softeval.scoring.grading.reading` makes them of text, `softeval.scoring.grading.comparison` compares
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.tokens import Node, Nodes, written

MAX_VARIANTS = 64


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
class RealInterval:
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
    r"""Sides with `=`, `<`, `\le`, `\in`, ... between them; `b > a` is read as `a < b`."""

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
    | RealInterval
    | SetOperation
    | Relation
    | Matrix
    | Conditioned
)


def variants(form: Form) -> list[Form]:
    r"""Write out a form with `\pm`: upper signs, then lower signs; without it, the form alone."""
    if not _has_sign(form):
        return [form]
    if isinstance(form, Listing) and form.brackets in ("", "{"):
        return [variant for item in form.items for variant in variants(item)][:MAX_VARIANTS]
    return [_with_signs(form, upper="+", lower="-"), _with_signs(form, upper="-", lower="+")]


def _has_sign(part: Any) -> bool:
    if isinstance(part, Node):
        return part.text in (r"\pm", r"\mp") or _has_sign(part.children)
    if isinstance(part, tuple):
        return any(map(_has_sign, part))
    return is_dataclass(part) and any(_has_sign(getattr(part, one.name)) for one in fields(part))


def _with_signs(part: Any, upper: str, lower: str) -> Any:
    if isinstance(part, Node):
        if part.text in (r"\pm", r"\mp"):
            return Node("symbol", upper if part.text == r"\pm" else lower)
        return replace(part, children=_with_signs(part.children, upper, lower))
    if isinstance(part, tuple):
        return tuple(_with_signs(one, upper, lower) for one in part)
    if is_dataclass(part) and not isinstance(part, type):
        changed = {
            one.name: _with_signs(getattr(part, one.name), upper, lower) for one in fields(part)
        }
        return replace(part, **changed)
    return part
