"""Numbers with units, percentages and degrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile

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
DEGREES = (("angle", 1),)


def _word(text: str) -> Node:
    return Node("word", text, upright=True)


_SPEEDS = {
    name: (_word(length), _word("per"), _word("hour"))
    for name, length in {"mph": "mile", "kmh": "km", "kph": "km", "kmph": "km"}.items()
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
    terms: list[Term] = []
    percent = False
    prefix, rest = _prefix(nodes)
    try:
        while rest:
            number, rest = _span(rest, _numeric)
            if not any(_makes_number(node) for node in number):
                return None
            tail, rest = _span(rest, _trails)
            unit_words = [node for node in solid(tail) if node.text.lower() not in _PERCENT]
            percent = percent or len(unit_words) < len(solid(tail))
            in_degrees = bool(terms) and terms[-1].measures == DEGREES
            terms.append(_term(number, [*prefix, *unit_words], in_degrees))
            prefix = ()
            _, rest = _span(rest, _joins)
    except _NoUnitError:
        return None
    marked = percent or any(term.measures or term.scale != 1 for term in terms)
    ordinal = any(node.text in ORDINALS for node in nodes)
    if not terms or not (marked or ordinal) or not _descend(terms) or (percent and len(terms) > 1):
        return None
    return Quantity(tuple(terms), percent)


def _span(nodes: Nodes, test: Callable[[Node], bool]) -> tuple[Nodes, Nodes]:
    """Split nodes where a test first fails."""
    taken = tuple(takewhile(test, nodes))
    return taken, nodes[len(taken) :]


def _descend(terms: Sequence[Term]) -> bool:
    """Whether several terms are one quantity: the same measure in smaller and smaller units."""
    return all(
        later.measures == earlier.measures and later.measures and later.factor < earlier.factor
        for earlier, later in pairwise(terms)
    )


def _prefix(nodes: Nodes) -> tuple[Nodes, Nodes]:
    r"""Take a currency before the number: `\$`, `US$`, `Rs.`, and a number sign; also the rest."""
    found: Nodes = ()
    for at, node in enumerate(nodes):
        if node.text in _CURRENCIES:
            found = (_word(_CURRENCIES[node.text]),)
        elif node.kind == "word" and node.text.lower() in ("rs", "usd", "eur", "dollars", "gbp"):
            found = (node,)
        elif not (node.kind == "space" or (node.text == "." and found) or node.text == "US"):
            return found, nodes[at:]
    return found, ()


def _makes_number(node: Node) -> bool:
    return node.kind == "number" or bool(node.children) or node.text == r"\pi"


def _numeric(node: Node) -> bool:
    """Whether a node may be part of a number without letters."""
    if node.kind in ("number", "space"):
        return True
    if node.kind == "command" and node.text in (r"\frac", r"\sqrt", "^", r"\binom"):
        return all(_numeric(part) for child in node.children for part in child.children)
    return node.text in ("+", "-", "/", "!", "(", ")", r"\cdot", r"\pi")


def _trails(node: Node) -> bool:
    """Whether a node goes with the number before it and not with the next."""
    return node.kind != "number" and node.text.lower() not in (r"\frac", r"\sqrt", "and")


def _joins(node: Node) -> bool:
    return node.kind == "space" or node.text.lower() == "and"


def _term(number: Nodes, tail: Sequence[Node], in_degrees: bool) -> Term:
    """Give a number its unit; after degrees, a prime means minutes.

    Raises:
        _NoUnitError: some word or sign of the tail is no part of a unit.
    """
    powers: dict[str, int] = {}
    factor, scale, sign, power = Fraction(1), 1, 1, 1
    last: Unit | None = None
    for node in (part for one in tail for part in _SPEEDS.get(one.text.lower(), (one,))):
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
