"""What equations and inequalities say: a value, each other, or a set of real numbers.

Ends the refusals of `0<x<1` for `(0,1)` and the acceptances of an open end for a closed one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
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
from softeval.scoring.grading.scalars import equal_expressions, ratio_somewhere
from softeval.scoring.grading.tokens import Node, Nodes, UnsupportedError, solid, written
from softeval.scoring.grading.words import set_in_words

Same = Callable[[Form, Form], bool]
_LITERALS: dict[str, Set] = {
    r"\mathbb { R }": sympy.S.Reals,
    r"\mathbb { Z }": sympy.S.Integers,
    r"\mathbb { Q }": sympy.S.Rationals,
    r"\mathbb { N }": sympy.S.Naturals,
    r"\emptyset": sympy.S.EmptySet,
}


def name_of(form: Form) -> str | None:
    """The name that a side is, without words in its subscript (`m_{max}`); None if it is none."""
    if isinstance(form, Listing) and form.brackets == "(":
        names = [name_of(item) for item in form.items]
        known = [name for name in names if name is not None]
        return f"({','.join(known)})" if len(known) == len(names) else None
    if isinstance(form, Words):
        return " ".join(form.words) or None
    if not isinstance(form, Formula) or not form.nodes or not is_name(form.nodes):
        return None
    kept = [node for node in form.nodes if not _word_below(node)]
    return written(kept).replace(" ", "")


def _word_below(node: Node) -> bool:
    if node.text != "_":
        return False
    inside = solid(node.children[0].children)
    return all(child.kind == "word" or child.text in (r"\max", r"\min") for child in inside)


def assignment(relation: Relation, same: Same) -> tuple[str | None, Form] | None:
    """Read `name = value` or a chain `name = ... = value` of equal sides.

    Returns:
        The name, None for a chain of values only (`2+3 = 5`), and the last side. None where the
        relation is no equation, sides of the chain differ, or one is only repeated (`5 = 5`).
    """
    if set(relation.operators) != {"="}:
        return None
    sides = list(relation.sides)
    if len(sides) == 2 and name_of(sides[0]) is None and name_of(sides[1]) is not None:
        sides.reverse()
    name = name_of(sides[0])
    values = sides[1:] if name is not None else sides
    if name is None and values[0] == values[-1]:
        return None
    if any(not same(one, other) for one, other in pairwise(values)):
        return None
    return name, values[-1]


def same_relation(answer: Relation, label: Relation, same: Same) -> bool:
    """Whether two relations say the same, turned round or, where unsolved, multiplied included."""
    ours, theirs = assignment(answer, same), assignment(label, same)
    if ours is not None and theirs is not None and ours[0] and ours[0] == theirs[0]:
        return same(ours[1], theirs[1])
    if answer.operators != label.operators:
        return False
    if all(map(same, answer.sides, label.sides)):
        return True
    return len(label.operators) == 1 and not _solved(label) and _multiple(answer, label)


def _solved(relation: Relation) -> bool:
    """Whether a label is one unknown against a number: then no other equation answers it."""
    left, right = relation.sides
    return (name_of(left) is not None and _is_number(right)) or (
        name_of(right) is not None and _is_number(left)
    )


def _is_number(form: Form) -> bool:
    if isinstance(form, Quantity):
        return True
    try:
        return isinstance(form, Formula) and bool(formula(form.nodes).is_number)
    except UnsupportedError:
        return False


def _multiple(answer: Relation, label: Relation) -> bool:
    """Whether the differences of the sides are a multiple of each other."""
    if answer.operators[0] not in ("=", "<", r"\le", r"\ne"):
        return False
    try:
        ours, theirs = (_difference(relation.sides) for relation in (answer, label))
    except UnsupportedError:
        return False
    if theirs == 0 or ours == 0 or ours.free_symbols != theirs.free_symbols:
        return False
    ratio = ratio_somewhere(ours, theirs)
    if ratio is None or (ratio.is_negative and answer.operators[0] in ("<", r"\le")):
        return False
    return equal_expressions(ours, ratio * theirs)


def _difference(sides: tuple[Form, ...]) -> sympy.Expr:
    if not all(isinstance(side, Formula) for side in sides):
        raise UnsupportedError("sides that are no formulas")
    nodes: list[Nodes] = [side.nodes for side in sides if isinstance(side, Formula)]
    return sympy.expand(formula(nodes[0]) - formula(nodes[1]))


class Region(NamedTuple):
    """A set of numbers, and the letter that runs through it where one is named."""

    name: str | None
    numbers: Set


def same_region(answer: Form, label: Form) -> bool:
    """Whether two forms, one of them plainly a set, are the same set of real numbers."""
    if not (_is_set(answer) or _is_set(label)):
        return False
    try:
        left, right = _region(answer), _region(label)
    except (UnsupportedError, TypeError, ValueError, NotImplementedError):
        return False
    if left.name and right.name and left.name != right.name:
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


def _region(form: Form) -> Region:
    """Read a form as a set of real numbers.

    Raises:
        UnsupportedError: it is none, or an end is no formula.
    """
    match form:
        case RealInterval(left, right, opening, closing):
            return Region(None, _between(left, right, opening == "(", closing == ")"))
        case Listing((Formula(left), Formula(right)), "("):
            return Region(None, _between(left, right, True, True))
        case Listing(items, "{"):
            return Region(None, sympy.FiniteSet(*map(_number, items)))
        case Listing(items, "", joint):
            return _together(items, joint)
        case SetOperation(parts, operators):
            return _combined(parts, operators)
        case Formula(nodes):
            return _literal(written(nodes))
        case Words():
            return _literal(set_in_words(form))
        case Relation():
            return _solutions(form)
    raise UnsupportedError("no set of numbers")


def _literal(text: str) -> Region:
    if text not in _LITERALS:
        raise UnsupportedError("no set of numbers")
    return Region(None, _LITERALS[text])


def _number(item: Form) -> sympy.Expr:
    if isinstance(item, Quantity) and not item.percent:
        return formula(item.number)
    if not isinstance(item, Formula):
        raise UnsupportedError("a set of other things than numbers")
    return formula(item.nodes)


def _between(left: Nodes, right: Nodes, left_open: bool, right_open: bool) -> Set:
    start, end = formula(left), formula(right)
    if start.is_comparable and end.is_comparable and start > end:
        raise UnsupportedError("an interval that runs backwards")
    return sympy.Interval(start, end, left_open, right_open)


def _together(items: tuple[Form, ...], joint: bool) -> Region:
    """Several inequalities for one letter: all hold, or with "or" one of them."""
    if not all(isinstance(item, Relation) for item in items):
        raise UnsupportedError("no inequality")
    regions = [_region(item) for item in items]
    if len({region.name for region in regions}) != 1:
        raise UnsupportedError("inequalities for several letters")
    join = sympy.Union if joint else sympy.Intersection
    return Region(regions[0].name, join(*(region.numbers for region in regions)))


def _combined(parts: tuple[Form, ...], operators: tuple[str, ...]) -> Region:
    first, *others = map(_region, parts)
    joined = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}
    numbers = first.numbers
    for operator, other in zip(operators, others, strict=True):
        numbers = joined[operator](numbers, other.numbers)
    return Region(first.name, numbers)


def _solutions(relation: Relation) -> Region:
    """Solve `x < b`, `a < x` or `a < x < b` for the side that is a name."""
    sides, operators = relation.sides, relation.operators
    last = len(sides) - 1
    names = [(at, _letter(sides[at])) for at in ((0, 1) if last == 1 else (1,))]
    named = [(at, name) for at, name in names if name is not None]
    if len(named) != 1 or last > 2:
        raise UnsupportedError("not one letter between numbers")
    ((at, name),) = named
    if operators == (r"\in",) and at == 0:
        return Region(name, _region(sides[1]).numbers)
    if operators == (r"\ne",):
        return Region(name, sympy.S.Reals - sympy.FiniteSet(_number(sides[1 - at])))
    if not set(operators) <= {"<", r"\le"}:
        raise UnsupportedError("no inequality")
    low = _number(sides[at - 1]) if at > 0 else -sympy.oo
    high = _number(sides[at + 1]) if at < last else sympy.oo
    return Region(name, sympy.Interval(low, high, operators[0] == "<", operators[-1] == "<"))


def _letter(side: Form) -> str | None:
    """The letter that a side is, None if it is none."""
    if not isinstance(side, Formula) or not is_name(side.nodes):
        return None
    lettered = any(node.kind == "letter" for node in side.nodes) or len(side.nodes) == 1
    return written(side.nodes) if lettered else None
