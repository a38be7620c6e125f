"""Whether two formulas, or two numbers with units, have the same value.

Ends the acceptances that come of comparing by an absolute tolerance: numbers are compared exactly,
or to 120 significant digits where no exact form decides. A decimal equals a number that has no
finite decimal only if it is that number rounded, to six digits or more.

A unit that only one side names is taken for granted; two that measure different things, or the
same in another size with another number, are not the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import sympy
from sympy import Basic, Expr, MatrixBase, Rational, Symbol

from softeval.scoring.grading.forms import Form, Formula
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.quantities import DEGREES, Quantity, Term
from softeval.scoring.grading.tokens import Node, UnsupportedError, solid, written

ROUNDED_DIGITS = 6
ENOUGH_DIGITS = 120
_DECIMAL = re.compile(r"([+-]?) ?([0-9]+(?:\.[0-9]+)?)(?: \\cdot 10 \^ \{ (-? ?[0-9]{1,3}) \})?")
_MONEY = (("dollars", 1),)
_INTEGER_LETTERS = set("nkm")
_PROBES = (Rational(7, 5), Rational(13, 11), Rational(31, 17), Rational(23, 7), Rational(5, 3))


def decimal(nodes: Sequence[Node]) -> tuple[Fraction, int] | None:
    """Read a plain decimal numeral: its value and how many places follow the point; else None."""
    found = _DECIMAL.fullmatch(written(nodes))
    if found is None:
        return None
    exponent = int((found[3] or "0").replace(" ", ""))
    value = Fraction(found[2]) * Fraction(10) ** exponent
    places = len(found[2].partition(".")[2]) - exponent
    return (-value if found[1] == "-" else value), places


def same_value(answer: Sequence[Node], label: Sequence[Node]) -> bool:
    """Whether two formulas are the same text, number or function."""
    if written(answer) == written(label):
        return True
    if _has_modulus(answer) or _has_modulus(label):
        return _congruent(answer, label)
    left, right = decimal(answer), decimal(label)
    if left is not None and right is not None:
        return left[0] == right[0]
    try:
        left_value, right_value = formula(answer), formula(label)
    except (UnsupportedError, TypeError, AttributeError):
        return False
    for numeral, exact in ((left, right_value), (right, left_value)):
        if numeral is not None and numeral[1] > 0 and exact.is_number:
            return _rounded(*numeral, exact)
    return equal_expressions(left_value, right_value)


def _has_modulus(nodes: Sequence[Node]) -> bool:
    return any(node.text == r"\bmod" for node in nodes)


def _congruent(answer: Sequence[Node], label: Sequence[Node]) -> bool:
    """Whether two residues are the same of the same modulus; `5 mod 3` is also the number 2."""
    if not (_has_modulus(answer) and _has_modulus(label)):
        return equal_expressions(formula(answer), formula(label))
    (ours, modulus), (theirs, other) = _residue(answer), _residue(label)
    return same_value(modulus, other) and equal_expressions(
        sympy.Mod(formula(ours) - formula(theirs), formula(modulus)), sympy.Integer(0)
    )


def _residue(nodes: Sequence[Node]) -> tuple[Sequence[Node], Sequence[Node]]:
    """What stands before and after the sign of the modulus, without its parentheses."""
    at = next(position for position, node in enumerate(nodes) if node.text == r"\bmod")
    before = solid(nodes[:at])
    if before and before[-1].text == "(":
        after = solid(nodes[at + 1 :])
        return before[:-1], after[:-1] if after[-1:] and after[-1].text == ")" else after
    return before, nodes[at + 1 :]


def _rounded(numeral: Fraction, places: int, exact: Expr) -> bool:
    """Whether a decimal is the exact number, or that number rounded where the decimal ends."""
    value = Rational(numeral)
    if exact.is_Rational and value == exact:
        return True
    digits = len(str(abs(numeral.numerator * 10**places // numeral.denominator)).lstrip("0"))
    if min(places, digits) < ROUNDED_DIGITS:
        return False
    difference = (value - exact).evalf(30)
    return bool(difference.is_real and abs(difference) <= Rational(1, 2 * 10**places))


def equal_expressions(left: Expr, right: Expr) -> bool:
    """Whether two expressions are equal for all values of their letters."""
    if left == right:
        return True
    if isinstance(left, MatrixBase) or isinstance(right, MatrixBase):
        return _equal_matrices(left, right)
    left, right = _carried_out(left), _carried_out(right)
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return False
    if not left.free_symbols and not right.free_symbols:
        return _equal_numbers(left, right)
    if not _functions(left, right) and _differ_somewhere(left, right):
        return _equal_for_integers(left, right)
    return _zero(left - right) or _equal_for_integers(left, right)


def _equal_matrices(left: object, right: object) -> bool:
    if not isinstance(left, MatrixBase) or not isinstance(right, MatrixBase):
        return False
    return left.shape == right.shape and all(map(equal_expressions, left.flat(), right.flat()))


def _carried_out(expression: Expr) -> Expr:
    unfinished = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
    return expression.doit() if expression.has(*unfinished) else expression


def _functions(*expressions: Expr) -> bool:
    return any(expression.atoms(sympy.core.function.AppliedUndef) for expression in expressions)


def _equal_numbers(left: Expr, right: Expr) -> bool:
    if _functions(left, right):
        return _zero(left - right)
    if left.has(sympy.oo, sympy.zoo, sympy.nan) or right.has(sympy.oo, sympy.zoo, sympy.nan):
        return False
    for digits in (20, ENOUGH_DIGITS + 30):
        one, other = left.evalf(digits), right.evalf(digits)
        difference, size = abs(one - other), max(abs(one), abs(other))
        if not difference.is_comparable or difference > size * Rational(1, 10 ** (digits * 4 // 5)):
            return False
    return True


def _point(left: Expr, right: Expr, shift: int = 0) -> dict[Basic, Expr]:
    """Numbers for the letters of two expressions."""
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    return {
        letter: _PROBES[(number + shift) % len(_PROBES)] + number // len(_PROBES)
        for number, letter in enumerate(letters)
    }


def _differ_somewhere(left: Expr, right: Expr) -> bool:
    """Whether some point shows that two expressions are not equal; most pairs end here."""
    for shift in range(3):
        point = _point(left, right, shift)
        one, other = left.subs(point).evalf(20), right.subs(point).evalf(20)
        if not (one.is_number and other.is_number) or one.has(sympy.nan, sympy.zoo, sympy.oo):
            return False
        difference, size = abs(one - other), max(abs(one), abs(other))
        comparable = difference.is_comparable and size.is_comparable
        if comparable and difference > size * Rational(1, 10**12):
            return True
    return False


def ratio_somewhere(left: Expr, right: Expr) -> Expr | None:
    """The quotient of two expressions at some point, None where it is no real number but zero."""
    point = _point(left, right)
    one, other = left.subs(point), right.subs(point)
    if other == 0:
        return None
    ratio = one / other
    return ratio if ratio.is_real and ratio.is_finite and not ratio.is_zero else None


def _zero(difference: Expr) -> bool:
    if sympy.expand(difference) == 0:
        return True
    counts = difference.has(sympy.factorial, sympy.binomial, sympy.gamma)
    if counts and sympy.combsimp(difference.rewrite(sympy.factorial)) == 0:
        return True
    if difference.has(sympy.functions.elementary.trigonometric.TrigonometricFunction):
        as_powers = difference.rewrite(sympy.exp)
        if (
            sympy.expand(as_powers) == 0
            or sympy.expand(sympy.fraction(sympy.together(as_powers))[0]) == 0
        ):
            return True
    simplified = sympy.simplify(difference)
    return bool(simplified == 0 or simplified.is_zero)


def _equal_for_integers(left: Expr, right: Expr) -> bool:
    """Whether n, k and m, which stand for natural numbers, make two expressions equal.

    Rounded expressions are compared at many numbers: no rule of algebra knows them.
    """
    letters = left.free_symbols | right.free_symbols
    if not letters or not {letter.name for letter in letters} <= _INTEGER_LETTERS:
        return False
    if left.has(sympy.floor, sympy.ceiling) or right.has(sympy.floor, sympy.ceiling):
        return len(letters) == 1 and all(
            left.subs(letter, number) == right.subs(letter, number)
            for letter in letters
            for number in range(1, 66)
        )
    if not (left.has(sympy.Pow) or right.has(sympy.Pow)):
        return False
    natural = {letter: Symbol(letter.name, integer=True, positive=True) for letter in letters}
    return _zero(left.subs(natural) - right.subs(natural))


def same_quantity(answer: Quantity | Formula, label: Quantity | Formula) -> bool:
    """Whether two numbers, at least one with a unit or a percent sign, are the same."""
    ours, theirs = _quantity(answer), _quantity(label)
    try:
        if ours.percent != theirs.percent:
            return _same_percentage(*((ours, theirs) if ours.percent else (theirs, ours)))
        if bool(ours.measures) != bool(theirs.measures):
            return _without_unit(*((ours, theirs) if ours.measures else (theirs, ours)))
        if ours.measures != theirs.measures:
            return False
        if _alike(ours, theirs):
            return same_value(ours.number, theirs.number)
        return equal_expressions(_total(ours), _total(theirs))
    except UnsupportedError:
        return False


def within_error(answer: Form, label: Form, error: Fraction) -> bool:
    """Whether a number lies within the allowed error of the label."""
    if not isinstance(answer, Quantity | Formula) or not isinstance(label, Quantity | Formula):
        return False
    ours, theirs = _quantity(answer), _quantity(label)
    if ours.measures and theirs.measures and ours.measures != theirs.measures:
        return False
    try:
        difference = formula(ours.number) - formula(theirs.number)
    except (UnsupportedError, TypeError):
        return False
    return bool(difference.is_number and abs(difference) <= Rational(error))


def _quantity(form: Quantity | Formula) -> Quantity:
    """A formula is a number without a unit."""
    return form if isinstance(form, Quantity) else Quantity((Term(form.nodes),))


def _alike(*quantities: Quantity) -> bool:
    """Whether all are one number in the same size of unit, so that the numbers decide."""
    sizes = {term.size for quantity in quantities for term in quantity.terms}
    return len(sizes) == 1 and all(len(quantity.terms) == 1 for quantity in quantities)


def _total(quantity: Quantity) -> Expr:
    """The sum of all terms in the base unit."""
    return sympy.Add(*(formula(term.number) * Rational(term.size) for term in quantity.terms))


def _same_percentage(percentage: Quantity, other: Quantity) -> bool:
    r"""`50\%` is 0.5, and 50 where percent are asked for."""
    if other.measures:
        return False
    if other.terms[0].scale == 1 and same_value(percentage.number, other.number):
        return True
    return equal_expressions(formula(percentage.number) / 100, _total(other))


def _without_unit(measured: Quantity, bare: Quantity) -> bool:
    """A bare number in the first or the last unit, cents as dollars, degrees as radians."""
    terms = measured.terms
    one_term = len(terms) == 1 and terms[0].scale == 1
    if one_term and bare.terms[0].scale == 1 and same_value(measured.number, bare.number):
        return True
    total, wanted = _total(measured), _total(bare)
    if measured.measures == DEGREES and wanted.has(sympy.pi):
        return equal_expressions(total * sympy.pi / 180, wanted)
    units = {terms[0].factor, terms[-1].factor}
    if measured.measures == _MONEY:
        units.add(Fraction(1))
    return any(equal_expressions(total / Rational(unit), wanted) for unit in units)
