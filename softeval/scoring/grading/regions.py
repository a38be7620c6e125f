"""Sets of real numbers, however they are written: intervals, inequalities, unions, words.

Ends the refusals of `0<x<1` for `(0,1)` and the acceptances of an open end for a closed one.
"""

from __future__ import annotations

from typing import NamedTuple

import sympy
from sympy import Set

from softeval.scoring.grading.forms import (
    Form,
    Formula,
    Listing,
    RealInterval,
    Relation,
    SetOperation,
    Words,
)
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.reading import is_name
from softeval.scoring.grading.tokens import Nodes, UnsupportedError, written
from softeval.scoring.grading.words import set_in_words

_LITERALS: dict[str, Set] = {
    r"\mathbb { R }": sympy.S.Reals,
    r"\mathbb { Z }": sympy.S.Integers,
    r"\mathbb { Q }": sympy.S.Rationals,
    r"\mathbb { N }": sympy.S.Naturals,
    r"\emptyset": sympy.S.EmptySet,
}


class Region(NamedTuple):
    """A set of numbers, and the letter that runs through it where one is named."""

    name: str | None
    numbers: Set


def same_region(answer: Form, label: Form) -> bool:
    """Whether two forms, one of them plainly a set, are the same set of real numbers."""
    if not (_is_set(answer) or _is_set(label)):
        return False
    try:
        left, right = region_of(answer), region_of(label)
    except (UnsupportedError, TypeError, ValueError, NotImplementedError):
        return False
    if left is None or right is None or (left.name and right.name and left.name != right.name):
        return False
    if left.numbers == right.numbers:
        return True
    if left.numbers.free_symbols or right.numbers.free_symbols:
        return False
    return left.numbers.symmetric_difference(right.numbers) == sympy.S.EmptySet


def _is_set(form: Form) -> bool:
    if isinstance(form, Formula):
        return bool(form.nodes) and form.nodes[0].text in (r"\mathbb", r"\emptyset")
    return isinstance(form, RealInterval | SetOperation | Relation | Words)


def region_of(form: Form) -> Region | None:
    """Read a form as a set of real numbers, None if it is none.

    Raises:
        UnsupportedError: an end is no formula.
    """
    match form:
        case RealInterval(left, right, opening, closing):
            return Region(None, _between(left, right, opening == "(", closing == ")"))
        case Listing((Formula(left), Formula(right)), "("):
            return Region(None, _between(left, right, True, True))
        case Listing(items, "{"):
            return Region(None, sympy.FiniteSet(*(_number(item) for item in items)))
        case Listing(items, "", joint):
            return _together(items, joint)
        case SetOperation(parts, operators):
            return _combined(parts, operators)
        case Formula(nodes):
            return _known(_LITERALS.get(written(nodes)))
        case Words():
            return _known(_LITERALS.get(set_in_words(form)))
        case Relation():
            return _solutions(form)
    return None


def _known(numbers: Set | None) -> Region | None:
    return None if numbers is None else Region(None, numbers)


def _number(item: Form) -> sympy.Expr:
    if isinstance(item, Quantity) and not item.percent:
        return formula(item.terms[0].number)
    if not isinstance(item, Formula):
        raise UnsupportedError("a set of other things than numbers")
    return formula(item.nodes)


def _between(left: Nodes, right: Nodes, left_open: bool, right_open: bool) -> Set:
    start, end = formula(left), formula(right)
    if start.is_comparable and end.is_comparable and start > end:
        raise UnsupportedError("an interval that runs backwards")
    return sympy.Interval(start, end, left_open, right_open)


def _together(items: tuple[Form, ...], joint: bool) -> Region | None:
    """Several inequalities for one letter: all hold, or with "or" one of them."""
    regions = [region_of(item) if isinstance(item, Relation) else None for item in items]
    known = [region for region in regions if region is not None]
    names = {region.name for region in known}
    if len(known) < len(regions) or len(names) != 1:
        return None
    join = sympy.Union if joint else sympy.Intersection
    return Region(names.pop(), join(*(region.numbers for region in known)))


def _combined(parts: tuple[Form, ...], operators: tuple[str, ...]) -> Region | None:
    regions = [region_of(part) for part in parts]
    if regions[0] is None:
        return None
    numbers = regions[0].numbers
    for operator, region in zip(operators, regions[1:], strict=True):
        if region is None:
            return None
        joined = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}
        numbers = joined[operator](numbers, region.numbers)
    return Region(regions[0].name, numbers)


def _solutions(relation: Relation) -> Region | None:
    """Solve `x < b`, `a < x` or `a < x < b` for the side that is a name."""
    sides, operators = relation.sides, relation.operators
    last = len(sides) - 1
    names = [(at, _name(sides[at])) for at in ((0, 1) if last == 1 else (1,))]
    named = [(at, name) for at, name in names if name is not None]
    if len(named) != 1 or last > 2:
        return None
    ((at, name),) = named
    if operators == (r"\in",) and at == 0:
        inside = region_of(sides[1])
        return None if inside is None else Region(name, inside.numbers)
    if operators == (r"\ne",):
        return Region(name, sympy.S.Reals - sympy.FiniteSet(_number(sides[1 - at])))
    if not set(operators) <= {"<", r"\le"}:
        return None
    low = _number(sides[at - 1]) if at > 0 else -sympy.oo
    high = _number(sides[at + 1]) if at < last else sympy.oo
    return Region(name, sympy.Interval(low, high, operators[0] == "<", operators[-1] == "<"))


def _name(side: Form) -> str | None:
    """The letter that a side is, None if it is none."""
    if not isinstance(side, Formula) or not is_name(side.nodes):
        return None
    lettered = any(node.kind == "letter" for node in side.nodes) or len(side.nodes) == 1
    return written(side.nodes) if lettered else None
