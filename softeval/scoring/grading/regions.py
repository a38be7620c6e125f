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
)
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.reading import is_name
from softeval.scoring.grading.tokens import Nodes, UnsupportedError, written

_LITERALS: dict[str, Set] = {
    r"\mathbb { R }": sympy.S.Reals,
    r"\mathbb { Z }": sympy.S.Integers,
    r"\mathbb { Q }": sympy.S.Rationals,
    r"\mathbb { N }": sympy.S.Naturals,
    r"\emptyset": sympy.S.EmptySet,
}
_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


class Region(NamedTuple):
    """A set of numbers, and the letter that runs through it where one is named."""

    name: str | None
    numbers: Set


def same_region(answer: Form, label: Form) -> bool:
    """Whether two forms are the same set of real numbers."""
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
            numbers = _LITERALS.get(written(nodes))
            return None if numbers is None else Region(None, numbers)
        case Relation():
            return _solutions(form)
    return None


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
    """Solve `a < x < b` and the like for the side that is a name."""
    named = [number for number, side in enumerate(relation.sides) if _names_number(side)]
    if len(relation.sides) == 3:
        named = [number for number in named if number == 1]
    if len(named) != 1:
        return None
    at = named[0]
    side = relation.sides[at]
    assert isinstance(side, Formula)
    name = written(side.nodes)
    if relation.operators == (r"\in",) and at == 0:
        inside = region_of(relation.sides[1])
        return None if inside is None else Region(name, inside.numbers)
    if at == 1 and len(relation.sides) == 3:
        return _between_bounds(name, relation)
    if len(relation.sides) != 2:
        return None
    operator = relation.operators[0] if at == 0 else _MIRRORED.get(relation.operators[0])
    part = _half_line(operator, _number(relation.sides[1 - at]))
    return None if part is None else Region(name, part)


def _between_bounds(name: str, relation: Relation) -> Region | None:
    """`a < x < b` and `b > x > a`."""
    first, second = relation.operators
    low, high = relation.sides[0], relation.sides[2]
    if {first, second} <= {">", r"\ge"}:
        first, second, low, high = _MIRRORED[second], _MIRRORED[first], high, low
    if not {first, second} <= {"<", r"\le"}:
        return None
    open_ends = first == "<", second == "<"
    return Region(name, sympy.Interval(_number(low), _number(high), *open_ends))


def _names_number(side: Form) -> bool:
    if not isinstance(side, Formula) or not is_name(side.nodes):
        return False
    return any(node.kind == "letter" for node in side.nodes) or len(side.nodes) == 1


def _half_line(operator: str | None, bound: sympy.Expr) -> Set | None:
    infinity = sympy.oo
    match operator:
        case "<":
            return sympy.Interval.open(-infinity, bound)
        case r"\le":
            return sympy.Interval(-infinity, bound)
        case ">":
            return sympy.Interval.open(bound, infinity)
        case r"\ge":
            return sympy.Interval(bound, infinity)
        case r"\ne":
            return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(bound))
    return None
