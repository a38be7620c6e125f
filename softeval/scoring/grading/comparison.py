"""Whether two forms are the same answer.

Each rule names what it accepts; what no rule accepts is wrong, because a wrong acceptance weighs
more than a wrong refusal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest

import sympy

from softeval.scoring.grading.forms import (
    Colon,
    Conditioned,
    Form,
    Formula,
    Listing,
    Matrix,
    Numeral,
    Prose,
    RealInterval,
    Relation,
    SetOperation,
    Words,
    variants,
)
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.normal_form import normalised
from softeval.scoring.grading.quantities import Quantity
from softeval.scoring.grading.reading import read
from softeval.scoring.grading.relations import assignment, same_region, same_relation
from softeval.scoring.grading.scalars import (
    equal_expressions,
    same_quantity,
    same_value,
    within_error,
)
from softeval.scoring.grading.tokens import (
    Node,
    Nodes,
    UnreadableError,
    UnsupportedError,
    solid,
    symbol,
    tree,
    written,
)
from softeval.scoring.grading.words import plain_words, same_words

MAX_ITEMS = 64
_NOT_COMPARABLE = (
    UnreadableError,
    UnsupportedError,
    RecursionError,
    # What SymPy raises at expressions that it cannot carry out.
    ArithmeticError,
    AttributeError,
    IndexError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def same_answer(answer: str, label: str, error: float | None = None) -> bool:
    """Whether an answer says what a label says.

    Args:
        answer: content of the box.
        label: as it would stand in a box.
        error: how far a number may be from the label's, in the label's unit.
    """
    try:
        answer_tree, label_nodes = tree(answer), normalised(tree(label))
        nodes = normalised(answer_tree)
        if written(nodes) == written(label_nodes) or _chosen(nodes, label_nodes):
            return True
        ours, theirs = read(nodes), read(label_nodes)
        if error is not None and within_error(ours, theirs, Fraction(str(error))):
            return True
        if same(ours, theirs):
            return True
        separate = read(normalised(answer_tree, thousands=False))
        return _other_commas(separate, theirs)
    except _NOT_COMPARABLE:
        return False


def _chosen(answer: Nodes, label: Nodes) -> bool:
    """Whether an answer begins with the letter of the choice that is the label: `(C) 6` for `C`."""
    wanted = [node for node in solid(label) if node.text not in "(),."]
    if len(wanted) != 1 or wanted[0].kind != "letter" or not wanted[0].text.isupper():
        return False
    letter = wanted[0].text
    plain = [node.text.lower() if node.kind == "word" else node.text for node in solid(answer)]
    if plain[:3] == ["(", letter, ")"]:
        return plain[3:4] not in ([","], ["and"], ["or"])
    return plain[:1] == [letter] and plain[1:2] in ([")"], ["."], [":"])


def _other_commas(answer: Form, label: Form) -> bool:
    """`1,200,300` for a list of three, and `(1,000)` for a number."""
    if not isinstance(answer, Listing):
        return False
    if isinstance(label, Listing):
        return len(answer.items) > 2 and not answer.brackets and same(answer, label)
    texts = [written(item.nodes) for item in answer.items if isinstance(item, Formula)]
    grouped = re.fullmatch(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+", ",".join(texts))
    if answer.brackets != "(" or len(texts) < len(answer.items) or not grouped:
        return False
    return same(Formula((Node("number", "".join(texts)),)), label)


def same(answer: Form, label: Form) -> bool:
    """Whether two forms are the same answer; the label's form says what is asked for."""
    if answer == label:
        return True
    if isinstance(answer, Conditioned) or isinstance(label, Conditioned):
        return _same_conditioned(answer, label)
    ours, theirs = variants(answer), variants(label)
    if len(ours) > 1 or len(theirs) > 1:
        return _same_variants(ours, theirs)
    if same_region(answer, label):
        return True
    if isinstance(label, Relation):
        if isinstance(answer, Relation):
            return same_relation(answer, label, same)
        return _answers_relation(answer, label)
    if isinstance(answer, Relation):
        return _value_answers(answer, label)
    if isinstance(answer, Listing) or isinstance(label, Listing):
        return _same_listing(answer, label)
    return _same_single(answer, label)


def _same_variants(ours: list[Form], theirs: list[Form]) -> bool:
    ours = _opened(_opened(ours, ("",)), ("{",))
    return _same_unordered(ours, _opened(theirs, ("", "{")))


def _opened(forms: list[Form], brackets: tuple[str, ...]) -> list[Form]:
    """The members of an only form that is a list in such brackets, else the forms."""
    only = forms[0] if len(forms) == 1 else None
    return list(only.items) if isinstance(only, Listing) and only.brackets in brackets else forms


def _same_conditioned(answer: Form, label: Form) -> bool:
    if isinstance(label, Conditioned):
        if isinstance(answer, Conditioned):
            return set(answer.conditions) == set(label.conditions) and same(answer.main, label.main)
        return same(answer, label.main)
    assert isinstance(answer, Conditioned)
    domains = all(r"\in" in condition for condition in answer.conditions)
    return domains and same(answer.main, label)


def _answers_relation(answer: Form, label: Relation) -> bool:
    """A value answers `name = value`, and any side of a chain of values."""
    if label.operators == (r"\in",):
        return same(answer, label.sides[1])
    found = assignment(label, same)
    if found is None:
        return False
    name, value = found
    if name is None:
        return any(same(answer, side) for side in label.sides)
    return same(answer, value)


def _value_answers(answer: Relation, label: Form) -> bool:
    if answer.operators == (r"\in",):
        return same(answer.sides[1], label)
    found = assignment(answer, same)
    if isinstance(label, Prose):
        formulas = [piece for piece in label.pieces if isinstance(piece, Relation)]
        return len(formulas) == 1 and same(answer, formulas[0])
    return found is not None and same(found[1], label)


def _same_listing(answer: Form, label: Form) -> bool:
    if not isinstance(label, Listing):
        assert isinstance(answer, Listing)
        if isinstance(label, Matrix) and answer.brackets == "(":
            return _same_listing(answer, _as_tuple(label))
        if len(answer.items) == 1 and answer.brackets == "{":
            return same(answer.items[0], label)
        explained = all(isinstance(item, Words) for item in answer.items) and not answer.brackets
        return (
            explained
            and plain_words(label) in ("yes", "no", "true", "false")
            and same(answer.items[0], label)
        )
    if isinstance(answer, Matrix) and label.brackets == "(":
        answer = _as_tuple(answer)
    theirs = _named_values(label)
    if not isinstance(answer, Listing):
        values = list(theirs.values()) if theirs else []
        repeated = len(values) > 1 and all(same(values[0], value) for value in values[1:])
        single = len(label.items) == 1 and label.brackets == "{"
        return (repeated and same(answer, values[0])) or (single and same(answer, label.items[0]))
    ours = _named_values(answer)
    if ours and theirs:
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if theirs:
        return _same_ordered(_values(answer), list(theirs.values()))
    if ours:
        return _same_ordered([ours[name] for name in sorted(ours)], _values(label))
    return _same_members(answer, label)


def _as_tuple(matrix: Matrix) -> Form:
    """A column or row as a tuple; other matrices stay."""
    if len(matrix.rows) > 1 and any(len(row) > 1 for row in matrix.rows):
        return matrix
    return Listing(tuple(read(cell) for row in matrix.rows for cell in row), "(")


def _same_members(answer: Listing, label: Listing) -> bool:
    ours, theirs = _values(answer), _values(label)
    if label.brackets in ("(", "["):
        if answer.brackets == "{" or (answer.brackets == "[") != (label.brackets == "["):
            return False
        return _same_ordered(ours, theirs)
    if label.brackets == "{" and answer.brackets == "(":
        return False
    if answer.brackets == "{":
        ours = _distinct(ours)
    if label.brackets == "{":
        theirs = _distinct(theirs)
    return _same_unordered(ours, theirs)


def _values(listing: Listing) -> list[Form]:
    """Members, of equations for one unknown their values: `x = 1 or x = 2`."""
    relations = [item for item in listing.items if isinstance(item, Relation)]
    found = [assignment(item, same) for item in relations]
    values = [one[1] for one in found if one is not None and one[0] is not None]
    return values if len(values) == len(listing.items) else list(listing.items)


def _named_values(listing: Listing) -> dict[str, Form]:
    """Values by name where every member is `name = value` and the names are different unknowns."""
    named: dict[str, Form] = {}
    for item in listing.items:
        found = assignment(item, same) if isinstance(item, Relation) else None
        if found is None or found[0] is None or found[0] in named:
            return {}
        named[found[0]] = found[1]
    bases = {re.sub(r"_\{?[0-9]+\}?$", "", name) for name in named}
    return named if len(bases) > 1 else {}


def _distinct(forms: Sequence[Form]) -> list[Form]:
    kept: list[Form] = []
    for form in forms[:MAX_ITEMS]:
        if not any(same(form, other) for other in kept):
            kept.append(form)
    return kept


def _same_ordered(ours: Sequence[Form], theirs: Sequence[Form]) -> bool:
    return len(ours) == len(theirs) and all(map(same, ours, theirs))


def _same_unordered(ours: Sequence[Form], theirs: Sequence[Form]) -> bool:
    """Whether two lists have the same members, copies counted."""
    if len(ours) != len(theirs) or len(ours) > MAX_ITEMS:
        return False
    left = list(ours)
    for wanted in theirs:
        at = next((number for number, one in enumerate(left) if same(one, wanted)), None)
        if at is None:
            return False
        del left[at]
    return True


def _same_single(answer: Form, label: Form) -> bool:
    if isinstance(label, Colon | Numeral | Matrix) and isinstance(answer, Formula | Quantity):
        answer, label = label, answer
    match answer, label:
        case Formula(), Formula():
            return same_value(answer.nodes, label.nodes)
        case ((Quantity() | Formula()), (Quantity() | Formula())):
            return same_quantity(answer, label)
        case Colon(), Colon():
            return _same_colon(answer, label)
        case Colon(), Formula() | Quantity():
            return _same_quotient(answer, label)
        case Numeral(digits), Formula(nodes):
            return written(nodes).replace(" ", "").lstrip("0").upper() == digits
        case Words(), Words():
            return same_words(answer, label)
        case Prose(), Prose():
            return _same_ordered(answer.pieces, label.pieces)
        case Matrix(), Matrix():
            return _same_matrix(answer, label)
        case Matrix(rows), Formula(nodes):
            matrix = sympy.Matrix([[formula(cell) for cell in row] for row in rows])
            return equal_expressions(matrix, formula(nodes))
        case RealInterval(), RealInterval():
            brackets = answer.opening == label.opening and answer.closing == label.closing
            ends = ((answer.left, label.left), (answer.right, label.right))
            return brackets and all(same_value(*pair) for pair in ends)
        case SetOperation(), SetOperation() if (
            set(answer.operators) == set(label.operators) == {r"\cup"}
        ):
            return _same_unordered(answer.parts, label.parts)
    return False


def _same_colon(answer: Colon, label: Colon) -> bool:
    if answer.is_time or label.is_time:
        return _same_time(answer, label)
    if len(answer.parts) != len(label.parts):
        return False
    ours, theirs = (list(map(formula, one.parts)) for one in (answer, label))
    if any(value == 0 for value in (*ours, *theirs)):
        return False
    return all(
        sympy.simplify(one / other - ours[0] / theirs[0]) == 0
        for one, other in zip(ours, theirs, strict=True)
    )


def _same_time(answer: Colon, label: Colon) -> bool:
    """Whether two times agree as far as both go; minutes may be missing beside a.m. or p.m."""
    if answer.half and label.half and answer.half != label.half:
        return False
    if len(answer.parts) != len(label.parts) and not (answer.half or label.half):
        return False
    parts = zip_longest(answer.parts, label.parts, fillvalue=(Node("number", "0"),))
    return all(same_value(*pair) for pair in parts)


def _same_quotient(colon: Colon, other: Form) -> bool:
    """A ratio of two is their quotient; a full hour with a.m. or p.m. its number."""
    if len(colon.parts) == 1:
        return same(Formula(colon.parts[0]), other)
    if len(colon.parts) != 2 or colon.half:
        return False
    upper, lower = ((symbol("("), *part, symbol(")")) for part in colon.parts)
    return same(Formula((*upper, symbol("/"), *lower)), other)


def _same_matrix(answer: Matrix, label: Matrix) -> bool:
    ours, theirs = ([list(map(read, row)) for row in matrix.rows] for matrix in (answer, label))
    return len(ours) == len(theirs) and all(map(_same_ordered, ours, theirs))
