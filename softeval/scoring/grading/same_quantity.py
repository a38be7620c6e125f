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
from softeval.scoring.grading.tokens import UnsupportedError

_DEGREES = (("angle", 1),)
_MONEY = (("dollars", 1),)


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
    return within(ours.number, theirs.number, error)


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
    if measured.measures == _DEGREES and wanted.has(sympy.pi):
        return equal_expressions(total * sympy.pi / 180, wanted)
    units = {terms[0].factor, terms[-1].factor}
    if measured.measures == _MONEY:
        units.add(Fraction(1))
    return any(equal_expressions(total / Rational(unit), wanted) for unit in units)
