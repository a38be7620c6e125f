"""Numbers with units, percentages and degrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from softeval.scoring.grading.tokens import Node, Nodes, solid
from softeval.scoring.grading.vocabulary import (
    MULTIPLIERS,
    ORDINALS,
    Unit,
    modifies_unit,
    unit,
)

_CURRENCIES = {"$": "dollars", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "¢"}
_PERCENT = {"%", "percent", "percents", "pct", "percentage"}
_AFTER_DEGREES = ("N", "S", "E", "W", "C", "F")
_HOUR = (Node("symbol", "/"), Node("word", "hour", upright=True))
_SPEEDS = {
    "mph": (Node("word", "mile", upright=True), *_HOUR),
    **dict.fromkeys(("kmh", "kph", "kmph"), (Node("word", "km", upright=True), *_HOUR)),
}


@dataclass(frozen=True)
class Term:
    """A number, how often it counts (`million`) and what it measures: `()` for a bare number."""

    number: Nodes
    measures: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    scale: int = 1

    @property
    def size(self) -> Fraction:
        """How often the number counts in the base unit."""
        return self.factor * self.scale


@dataclass(frozen=True)
class Quantity:
    """One number, or several that are added: `2 hours 30 minutes`."""

    terms: tuple[Term, ...]
    percent: bool = False

    @property
    def measures(self) -> tuple[tuple[str, int], ...]:
        """What it measures; all terms measure the same."""
        return self.terms[0].measures

    @property
    def number(self) -> Nodes:
        """Its first number, which is the only one of most quantities."""
        return self.terms[0].number


class _NoUnitError(ValueError):
    pass


def read_quantity(nodes: Nodes) -> Quantity | None:
    """Read bare numbers with what follows them; None where letters or other words are left."""
    plain = list(nodes)
    terms: list[Term] = []
    percent = False
    try:
        prefix, at = _prefix(plain, 0)
        while at < len(plain):
            number, at = _number(plain, at)
            if not number:
                return None
            tail, at = _tail(plain, at)
            if any(node.text.lower() in _PERCENT for node in tail):
                percent = True
                tail = [node for node in tail if node.text.lower() not in _PERCENT]
            in_degrees = bool(terms) and terms[-1].measures == (("angle", 1),)
            terms.append(_term(number, prefix + tail, in_degrees))
            prefix = []
            while at < len(plain) and (
                plain[at].kind == "space" or plain[at].text.lower() in ("and",)
            ):
                at += 1
    except _NoUnitError:
        return None
    marked = percent or any(term.measures or term.scale != 1 for term in terms)
    ordinal = any(node.text in ORDINALS for node in plain)
    if not terms or not (marked or ordinal) or not _descend(terms) or (percent and len(terms) > 1):
        return None
    return Quantity(tuple(terms), percent)


def _descend(terms: Sequence[Term]) -> bool:
    """Whether several terms are one quantity: the same measure in smaller and smaller units."""
    return all(
        later.measures == earlier.measures and later.measures and later.factor < earlier.factor
        for earlier, later in pairwise(terms)
    )


def _prefix(nodes: Sequence[Node], at: int) -> tuple[list[Node], int]:
    r"""Take a currency before the number: `\$`, `US$`, `Rs.`, and a number sign."""
    found: list[Node] = []
    while at < len(nodes):
        node = nodes[at]
        lower = node.text.lower()
        if node.text in _CURRENCIES:
            found = [Node("word", _CURRENCIES[node.text], upright=True)]
        elif node.kind == "word" and lower in ("rs", "usd", "eur", "dollars", "gbp"):
            found = [node]
        elif not (node.kind == "space" or (node.text == "." and found) or node.text == "US"):
            break
        at += 1
    return found, at


def _number(nodes: Sequence[Node], at: int) -> tuple[Nodes, int]:
    """Take a number without letters, however it is written."""
    start = at
    while at < len(nodes) and _numeric(nodes[at]):
        at += 1
    taken = tuple(nodes[start:at])
    if not any(node.kind == "number" or node.children or node.text == r"\pi" for node in taken):
        return (), at
    return taken, at


def _numeric(node: Node) -> bool:
    if node.kind in ("number", "space"):
        return True
    if node.kind == "command" and node.text in (r"\frac", r"\sqrt", "^", r"\binom"):
        return all(_numeric(part) for child in node.children for part in child.children)
    return node.text in ("+", "-", "/", "!", "(", ")", r"\cdot", r"\pi")


def _tail(nodes: Sequence[Node], at: int) -> tuple[list[Node], int]:
    """Take what follows a number up to the next number."""
    start = at
    while (
        at < len(nodes)
        and nodes[at].kind != "number"
        and nodes[at].text not in (r"\frac", r"\sqrt")
    ):
        if nodes[at].text.lower() == "and":
            break
        at += 1
    tail = solid(nodes[start:at])
    return [part for node in tail for part in _SPEEDS.get(node.text.lower(), (node,))], at


def _term(number: Nodes, tail: Sequence[Node], in_degrees: bool) -> Term:
    """Give a number its unit; after degrees, a prime means minutes.

    Raises:
        _NoUnitError: some word or sign of the tail is no part of a unit.
    """
    powers: dict[str, int] = {}
    factor, scale, sign, power = Fraction(1), 1, 1, 1
    last: Unit | None = None
    for node in tail:
        word = node.text
        if word == "^" and last is not None:
            raised = "".join(child.text for child in node.children[0].children)
            if raised not in ("2", "3"):
                raise _NoUnitError(word)
            more = int(raised) - 1
            powers[last.measures] += sign * more
            factor *= last.factor ** (sign * more)
        elif word in ("/", "per"):
            sign = -1
        elif word in (r"\cdot", "-", ".") or word in ORDINALS:
            continue
        elif word == "'" and in_degrees and last is None:
            last = Unit("angle", Fraction(1, 60))
            powers["angle"], factor = 1, last.factor
        elif word in _CURRENCIES or _is_word(node):
            if word in _AFTER_DEGREES and powers == {"angle": 1}:
                powers = {f"degrees {word}": 1}
                continue
            if word.lower() in MULTIPLIERS and (len(word) > 1 or node.upright):
                scale *= MULTIPLIERS[word.lower()]
                continue
            if word.lower() in ("square", "sq", "cubic", "cu"):
                power = 3 if word.lower().startswith("cu") else 2
                if word.lower() == "square" and node is tail[-1]:
                    power = 1
                else:
                    continue
            found = unit(_CURRENCIES.get(word, word))
            if found is None:
                if modifies_unit(word):
                    continue
                raise _NoUnitError(word)
            last = found
            powers[found.measures] = powers.get(found.measures, 0) + sign * power
            factor *= found.factor ** (sign * power)
            power = 1
        else:
            raise _NoUnitError(word)
    return Term(number, tuple(sorted((n, p) for n, p in powers.items() if p)), factor, scale)


def _is_word(node: Node) -> bool:
    r"""Words of two letters or more, and single letters of `\text{}`, may be units."""
    return (
        node.text == "°"
        or (node.kind == "word" and (node.upright or len(node.text) > 1))
        or (node.kind == "letter" and node.upright)
    )
