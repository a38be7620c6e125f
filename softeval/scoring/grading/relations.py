"""Whether two equations, inequalities or chains of them say the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import sympy

from softeval.scoring.grading.forms import (
    Form,
    Formula,
    Listing,
    Relation,
    Words,
)
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.reading import is_name
from softeval.scoring.grading.scalars import equal_expressions, ratio_somewhere
from softeval.scoring.grading.tokens import Node, Nodes, UnsupportedError, solid, written

Same = Callable[[Form, Form], bool]


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
