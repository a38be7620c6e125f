"""Whether two numbers with units are the same.

A unit that only one side names is taken for granted; two that measure different things, or the
same in another size with another number, are not the same.
"""

from __future__ import annotations

from fractions import Fraction

import sympy
from sympy import Expr, Rational

from softeval.scoring.grading.forms import Form, Formula
from softeval.scoring.grading.formula import formula
from softeval.scoring.grading.quantities import Quantity, Term
from softeval.scoring.grading.scalars import equal_expressions, same_value, within
from softeval.scoring.grading.tokens import Nodes, UnsupportedError

_BARE: tuple[tuple[str, int], ...] = ()
_DEGREES = (("angle", 1),)
_MONEY = (("dollars", 1),)


def same_quantity(answer: Quantity | Formula, label: Quantity | Formula) -> bool:
    """Whether two numbers, at least one with a unit or a percent sign, are the same."""
    if _percent(answer) != _percent(label):
        return _same_percentage(answer, label)
    ours, theirs = _measures(answer), _measures(label)
    if ours and theirs:
        if ours != theirs:
            return False
        if _plain_pair(answer, label):
            return same_value(_first(answer), _first(label))
        return equal_expressions(_total(answer), _total(label))
    measured, bare = (answer, label) if ours else (label, answer)
    if not ours and not theirs:
        if _plain_pair(answer, label):
            return same_value(_first(answer), _first(label))
        return _equal(lambda: _total(answer), lambda: _total(label))
    assert isinstance(measured, Quantity)
    return _without_unit(measured, bare)


def within_error(answer: Form, label: Form, error: Fraction) -> bool:
    """Whether a number lies within the allowed error of the label."""
    if not isinstance(answer, Quantity | Formula) or not isinstance(label, Quantity | Formula):
        return False
    if _measures(answer) and _measures(label) and _measures(answer) != _measures(label):
        return False
    return within(_first(answer), _first(label), error)


def _equal(left: object, right: object) -> bool:
    try:
        return equal_expressions(left(), right())  # type: ignore[operator]
    except UnsupportedError:
        return False


def _percent(form: Quantity | Formula) -> bool:
    return isinstance(form, Quantity) and form.percent


def _measures(form: Form) -> tuple[tuple[str, int], ...]:
    return form.terms[0].measures if isinstance(form, Quantity) else _BARE


def _first(form: Quantity | Formula) -> Nodes:
    return form.terms[0].number if isinstance(form, Quantity) else form.nodes


def _plain_pair(*forms: Quantity | Formula) -> bool:
    """Whether all are one number in the same size of unit, so that the numbers decide."""
    sizes = set()
    for form in forms:
        terms = form.terms if isinstance(form, Quantity) else ()
        if len(terms) > 1:
            return False
        sizes |= {(term.factor, term.scale) for term in terms} or {(Fraction(1), 1)}
    return len(sizes) == 1


def _value(term: Term) -> Expr:
    size = term.factor * term.scale
    return formula(term.number) * Rational(size.numerator, size.denominator)


def _total(form: Quantity | Formula) -> Expr:
    """The sum of all terms in the base unit."""
    if isinstance(form, Formula):
        return formula(form.nodes)
    return sympy.Add(*(_value(term) for term in form.terms))


def _same_percentage(answer: Quantity | Formula, label: Quantity | Formula) -> bool:
    r"""`50\%` is 0.5, and 50 where percent are asked for."""
    percentage, other = (answer, label) if _percent(answer) else (label, answer)
    if _measures(other):
        return False
    if same_value(_first(percentage), _first(other)) and not isinstance(other, Quantity):
        return True
    return _equal(lambda: formula(_first(percentage)) / 100, lambda: _total(other))


def _without_unit(measured: Quantity, bare: Quantity | Formula) -> bool:
    """A bare number in the first or the last unit, cents as dollars, degrees as radians."""
    terms = measured.terms
    one_term = len(terms) == 1 and terms[0].scale == 1
    if one_term and isinstance(bare, Formula) and same_value(terms[0].number, bare.nodes):
        return True
    sizes = {terms[0].factor, terms[-1].factor}
    if measured.terms[0].measures == _MONEY:
        sizes.add(Fraction(1))
    try:
        total, wanted = _total(measured), _total(bare)
    except UnsupportedError:
        return False
    if terms[0].measures == _DEGREES and wanted.has(sympy.pi):
        return equal_expressions(total * sympy.pi / 180, wanted)
    return any(
        equal_expressions(total / Rational(size.numerator, size.denominator), wanted)
        for size in sizes
    )
