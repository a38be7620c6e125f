"""Reads one formula in its normal form into a SymPy expression.

A reader of its own and not math-verify's, because that one takes letters for units, folds case,
drops primes, subscripts of numbers and copies, and reads decimals as floating point. Here every
decimal is an exact fraction. Nothing is evaluated as Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

import sympy
from sympy import Expr, Integer, MatrixBase, Rational, Symbol

from softeval.scoring.grading.bounded import choices, factorial, power, quotient
from softeval.scoring.grading.tokens import (
    Cursor,
    Node,
    Nodes,
    UnsupportedError,
    letters_of,
    solid,
    written,
)
from softeval.scoring.grading.vocabulary import ACCENTS, GREEK, ROUNDING, names

MAX_FORMULA_DEPTH = 60

_LETTERS = {*GREEK.values()} - {r"\pi"} | names(
    r"\Upsilon \varrho \varsigma \vartheta \ell \hbar \angle \triangle"
)
_HYPERBOLIC = (sympy.sinh, sympy.cosh, sympy.tanh)
_TRIGONOMETRIC = (sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc)
_INVERSES = {r"\sin": sympy.asin, r"\cos": sympy.acos, r"\tan": sympy.atan}
_FUNCTIONS: dict[str, Callable[..., Expr]] = {
    **{rf"\{function.__name__}": function for function in (*_TRIGONOMETRIC, *_HYPERBOLIC)},
    **{rf"\arc{name[1:]}": inverse for name, inverse in _INVERSES.items()},
    r"\ln": sympy.log,
    r"\exp": sympy.exp,
}
_OF_MANY = {r"\max": sympy.Max, r"\min": sympy.Min, r"\gcd": sympy.gcd, r"\lcm": sympy.lcm}
_BRACKETS = {"(": ")", "[": "]"} | ROUNDING
_FUNCTION_LETTERS = set("fghFG")
_SIGNS = {r"\pi": sympy.pi, r"\infty": sympy.oo}
_CONSTANTS = {"i": sympy.I, "e": sympy.E}
_BOUND = {r"\sum": sympy.Sum, r"\prod": sympy.Product}
_LOGARITHMS = {r"\log", r"\lg"}
_BEGIN_FACTOR = names(r"\frac \sqrt \binom \pi \infty \int \lim") | _LETTERS | ACCENTS | _LOGARITHMS
_BEGIN_FACTOR |= {*_BRACKETS, *_FUNCTIONS, *_OF_MANY, *_BOUND}


def formula(nodes: Sequence[Node]) -> Expr:
    """Read nodes as one expression.

    Raises:
        UnsupportedError: they are none, or one with signs unknown here.
    """
    return _Reader(nodes, frozenset(), 0).whole()


class _Reader(Cursor):
    def __init__(self, nodes: Sequence[Node], bound: frozenset[str], depth: int) -> None:
        if depth > MAX_FORMULA_DEPTH:
            raise UnsupportedError("nested too deep")
        super().__init__(letters_of(nodes))
        self.bound = bound
        self.depth = depth
        self.absolutes = 0

    def whole(self) -> Expr:
        result = self.expression()
        if self.next is not None:
            raise UnsupportedError(self.next.text)
        return result

    def inner(self, nodes: Sequence[Node], *bound: str) -> Expr:
        return _Reader(nodes, self.bound | set(bound), self.depth + 1).whole()

    def expression(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_FORMULA_DEPTH:
            raise UnsupportedError("nested too deep")
        terms = [self.term()]
        while self.peek("+", "-"):
            terms.append(self.term())  # the sign is the term's
        self.depth -= 1
        if any(isinstance(term, MatrixBase) for term in terms):
            return sum(terms[1:], terms[0])
        return sympy.Add(*terms)

    def term(self) -> Expr:
        sign = self.sign()
        result = self.mixed_number() or self.factor()
        while True:
            if self.peek(r"\cdot"):
                self.take()
                result = result * self.signed_factor()
            elif self.peek("/"):
                self.take()
                result = quotient(result, self.signed_factor())
            elif self.peek(r"\bmod"):
                self.take()
                result = sympy.Mod(result, self.factor())
            elif self.begins_factor():
                result = result * self.factor()
            else:
                return sign * result

    def sign(self) -> int:
        sign = 1
        while self.peek("+", "-"):
            sign = -sign if self.take().text == "-" else sign
        return sign

    def signed_factor(self) -> Expr:
        return self.sign() * self.factor()

    def mixed_number(self) -> Expr | None:
        r"""Read `3\frac{1}{2}` and `3 1/2`: a whole number and a proper fraction of two."""
        if self.next is None or not _whole(self.next):
            return None
        following = solid(self.nodes[self.at + 1 :])[:4]
        whole = int(self.next.text)
        match following:
            case [Node(text=r"\frac") as proper, *rest]:
                parts, used = [argument.children for argument in proper.children], 1
            case [upper, Node(text="/"), lower, *rest] if self.nodes[self.at + 1].kind == "space":
                parts, used = [(upper,), (lower,)], 3
            case _:
                return None
        if not all(len(part) == 1 and _whole(part[0]) for part in parts):
            return None
        upper_value, lower_value = (int(part[0].text) for part in parts)
        if upper_value >= lower_value or (rest and rest[0].text in ("^", "!")):
            return None
        self.take()
        for _ in range(used):
            self.take()
        return whole + Rational(upper_value, lower_value)

    def begins_factor(self) -> bool:
        node = self.next
        if node is None:
            return False
        if node.kind == "number":  # two numbers side by side are not a product
            return self.last is not None and self.last.kind != "number"
        if node.text == "|":
            return not self.absolutes
        return node.kind in ("letter", "environment") or node.text in _BEGIN_FACTOR

    def factor(self) -> Expr:
        """Read a primary with its powers, factorials, degrees and percent signs."""
        result = self.primary()
        while self.next is not None:
            if self.peek("^"):
                result = power(result, self.inner(self.take().children[0].children))
                if self.peek("^"):
                    raise UnsupportedError("two superscripts on one base")
            elif self.peek("!"):
                self.take()
                if self.peek("!"):
                    raise UnsupportedError("double factorial")
                result = factorial(result)
            elif self.peek("°"):
                self.take()
                result = result * sympy.pi / 180
            elif self.peek("%"):
                self.take()
                result = result / 100
            else:
                break
        return result

    def primary(self) -> Expr:
        node = self.take()
        if node.kind == "number":
            if self.peek("_"):
                raise UnsupportedError("a numeral with its base")
            return Rational(*Fraction(node.text).as_integer_ratio())
        if node.kind == "letter" or node.text in _LETTERS or node.text in ACCENTS:
            return self.named(node)
        if node.text in _BRACKETS:
            return self.bracketed(node.text)
        if node.text in _SIGNS:
            return _SIGNS[node.text]
        match node.text:
            case "|":
                self.absolutes += 1
                inside = self.expression()
                self.absolutes -= 1
                self.expect("|")
                return sympy.Abs(inside)
            case r"\frac":
                return quotient(*(self.inner(part.children) for part in node.children))
            case r"\binom":
                return sympy.binomial(*(self.inner(part.children) for part in node.children))
            case r"\sqrt":
                *index, radicand = (self.inner(part.children) for part in node.children)
                return power(radicand, 1 / index[0] if index else Rational(1, 2))
            case r"\lim":
                return self.limit()
            case r"\det":
                return self.determinant(self.take())
            case "vmatrix":
                return self.determinant(node)
            case "matrix":
                return self.matrix(node)
            case "^" | "_":
                return self.combination(node)
            case r"\int":
                return self.integral()
        if node.text in _BOUND:
            return self.sum_or_product(_BOUND[node.text])
        if node.text in _OF_MANY:
            return _OF_MANY[node.text](*self.members())
        if node.text in _FUNCTIONS or node.text in _LOGARITHMS:
            return self.function(node.text)
        raise UnsupportedError(node.text)

    def matrix(self, node: Node) -> MatrixBase:
        if node.kind != "environment":
            raise UnsupportedError("no matrix")
        rows = [[self.inner(cell.children) for cell in row.children] for row in node.children]
        if len({len(row) for row in rows}) != 1:
            raise UnsupportedError("rows of different lengths")
        return sympy.Matrix(rows)

    def determinant(self, node: Node) -> Expr:
        rows = self.matrix(node)
        if not rows.is_square:
            raise UnsupportedError("no square matrix")
        return rows.det()

    def combination(self, above: Node) -> Expr:
        """Read `_5 C_2` and `^5 C_2`, the number of choices."""
        node = self.take()
        if node.text not in ("C", "P") or not self.peek("_"):
            raise UnsupportedError("a script without a base")
        n = self.inner(above.children[0].children)
        k = self.inner(self.take().children[0].children)
        return choices(node.text, n, k)

    def bracketed(self, opening: str) -> Expr:
        outer, self.absolutes = self.absolutes, 0
        inside = self.expression()
        self.absolutes = outer
        self.expect(_BRACKETS[opening])
        if opening == r"\lfloor":
            return sympy.floor(inside)
        return sympy.ceiling(inside) if opening == r"\lceil" else inside

    def named(self, node: Node) -> Expr:
        """Read a letter with accents, subscript and primes, which all are part of its name."""
        name = written([node])
        if node.text in (r"\angle", r"\triangle"):
            while self.next is not None and self.next.kind == "letter":
                name += self.take().text
        if self.peek("_"):
            subscript = self.take().children[0].children
            if node.text == "C" and self.peek("^"):  # the binomial coefficient of many countries
                upper = self.inner(self.take().children[0].children)
                return sympy.binomial(self.inner(subscript), upper)
            name += "_" + written(subscript).replace(" ", "")
        while self.peek("'"):
            name += self.take().text
        if node.text in "CP" and self.peek("(") and (pair := self.two_numbers()):
            return choices(node.text, *pair)
        if name[0] in _FUNCTION_LETTERS and self.peek("("):
            return sympy.Function(name)(*self.members())
        if name in _CONSTANTS and name not in self.bound:
            return _CONSTANTS[name]
        return Symbol(name, real=True)

    def two_numbers(self) -> list[Expr] | None:
        start = self.at
        try:
            members = self.members()
        except UnsupportedError:
            members = []
        if len(members) == 2 and all(member.is_Integer for member in members):
            return members
        self.at = start
        return None

    def members(self) -> list[Expr]:
        r"""Read `(a, b, c)` or `\{a, b, c\}`."""
        closing = {"(": ")", r"\{": r"\}"}.get(self.take().text)
        if closing is None:
            raise UnsupportedError("a function of many without brackets")
        members = [self.expression()]
        while self.peek(","):
            self.take()
            members.append(self.expression())
        self.expect(closing)
        return members

    def function(self, name: str) -> Expr:
        exponent: Expr | None = None
        base: Expr = Integer(10)
        while self.peek("^", "_"):
            mark = self.take()
            argument = self.inner(mark.children[0].children)
            if mark.text == "^":
                exponent = argument
            else:
                base = argument
        inside = self.argument()
        if name in _LOGARITHMS:
            result = sympy.log(inside) / sympy.log(base)
        elif exponent == -1 and name in _INVERSES:
            return _INVERSES[name](inside)
        else:
            result = _FUNCTIONS[name](inside)
        return result if exponent is None else power(result, exponent)

    def argument(self) -> Expr:
        r"""Read what a function without parentheses applies to: `2x` of `\sin 2x \cos y`."""
        if self.peek("("):
            self.take()
            return self.bracketed("(")
        sign = -1 if self.peek("-") else 1
        if sign < 0:
            self.take()
        result = self.mixed_number() or self.factor()
        while self.begins_factor() and not self.peek("("):
            if self.next is not None and self.next.text in {*_FUNCTIONS, *_LOGARITHMS}:
                break
            result = result * self.factor()
        return sign * result

    def limits(self) -> tuple[Nodes, Nodes]:
        """Read subscript and superscript of a large operator."""
        found: dict[str, Nodes] = {}
        while self.peek("^", "_"):
            mark = self.take()
            found[mark.text] = mark.children[0].children
        return found.get("_", ()), found.get("^", ())

    def bound_variable(self, below: Nodes, sign: str) -> tuple[str, Nodes]:
        r"""Read `k = 1` or `x \to 0` below a large operator: the letter, and what follows the sign."""
        plain = solid(below)
        if len(plain) < 3 or plain[0].kind != "letter" or plain[1].text != sign:
            raise UnsupportedError("what stands below an operator")
        return plain[0].text, plain[2:]

    def sum_or_product(self, kind: Callable[..., Expr]) -> Expr:
        below, above = self.limits()
        variable, start = self.bound_variable(below, "=")
        if not above:
            raise UnsupportedError("bounds of a sum")
        body_reader = _Reader(self.nodes[self.at :], self.bound | {variable}, self.depth + 1)
        body = body_reader.term()
        self.at += body_reader.at
        bounds = (Symbol(variable, real=True), self.inner(start), self.inner(above))
        return kind(body, bounds)

    def integral(self) -> Expr:
        below, above = self.limits()
        rest = self.nodes[self.at :]
        ends = (
            position
            for position, (first, second) in enumerate(pairwise(rest))
            if first.text == "d" and second.kind == "letter"
        )
        end = next(ends, None)
        if end is None or not below or not above:
            raise UnsupportedError("an integral without bounds or variable")
        variable = rest[end + 1].text
        body = self.inner(rest[:end], variable)
        self.at += end + 2
        bounds = (Symbol(variable, real=True), self.inner(below), self.inner(above))
        return sympy.Integral(body, bounds)

    def limit(self) -> Expr:
        below, _ = self.limits()
        variable, end = self.bound_variable(below, r"\to")
        return sympy.Limit(self.term(), Symbol(variable, real=True), self.inner(end))


def _whole(node: Node) -> bool:
    return node.kind == "number" and "." not in node.text
