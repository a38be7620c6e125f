"""Arithmetic on SymPy's numbers that fills neither memory nor time: what is too large stands as it is."""

from __future__ import annotations

import sympy
from sympy import Expr

from softeval.scoring.grading.tokens import UnsupportedError

MAX_BITS = 100_000
MAX_FACTORIAL = 5000


def quotient(upper: Expr, lower: Expr) -> Expr:
    """Divide.

    Raises:
        UnsupportedError: division by zero.
    """
    if lower == 0:
        raise UnsupportedError("division by zero")
    return upper / lower


def power(base: Expr, exponent: Expr) -> Expr:
    """Raise to a power, left standing where the number would fill the memory."""
    if base == 0 and exponent.is_negative:
        raise UnsupportedError("division by zero")
    size = 0
    if base.is_Rational and exponent.is_Rational:
        size = max(abs(base.p), base.q).bit_length() * abs(exponent.p)
    return sympy.Pow(base, exponent, evaluate=size <= MAX_BITS)


def factorial(operand: Expr) -> Expr:
    """Take a factorial, left standing where it is huge."""
    large = operand.is_Integer and operand.p > MAX_FACTORIAL
    return sympy.factorial(operand, evaluate=not large)


def choices(letter: str, n: Expr, k: Expr) -> Expr:
    """Count the ways to take k of n: `C` without order, `P` with it."""
    unordered = sympy.binomial(n, k)
    return unordered if letter == "C" else unordered * sympy.factorial(k)
