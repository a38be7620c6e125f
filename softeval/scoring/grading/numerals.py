r"""Digits that are one number: thousands, decimals of other countries, `1e3`, recurring decimals.

Ends the mistakes about commas: `1{,}000` and `1\,000` are numbers, `(100,200)` is a pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from softeval.scoring.grading.tokens import Node, fraction, symbol
from softeval.scoring.grading.vocabulary import BRACKETS, ORDINALS

MAX_EXPONENT = 400
MAX_PERIOD = 40
_DIGITS = re.compile(r"[0-9]+")


def append(written: list[Node], node: Node) -> None:
    """Add a node, joining what only together is a number: recurring decimals and `1e3`."""
    if node.text in ORDINALS and written and written[-1].kind == "number":
        return
    if node.text == r"\ldots" and written and (period := _repeated(written[-1])):
        written[-1] = recurring_decimal(written[-1].text, period)
        return
    recurring = node.text in (r"\overline", r"\bar", r"\dot") and node.children
    if recurring and (start := _decimal_start(written)) is not None:
        digits = "".join(child.text for child in node.children[0].children)
        if _DIGITS.fullmatch(digits) and len(digits) < MAX_PERIOD:
            del written[-1 if written[-1].kind == "number" else -2 :]
            written.append(recurring_decimal(start, digits))
            return
    if node.kind == "space" and written and written[-1].kind == "space":
        return
    written.append(node)


def _repeated(node: Node) -> str | None:
    """The digits that `0.333...` goes on with, None if none stand there often enough."""
    places = node.text.partition(".")[2] if node.kind == "number" else ""
    for length in range(1, 7):
        period = places[-length:]
        if len(places) >= max(3, 2 * length) and places.endswith(
            period * (3 if length == 1 else 2)
        ):
            return period
    return None


def _decimal_start(written: list[Node]) -> str | None:
    """What has been written of a decimal whose recurring digits follow: `0.1` or `0.`."""
    if written and written[-1].kind == "number" and "." in written[-1].text:
        return written[-1].text
    if len(written) > 1 and written[-1].text == "." and written[-2].kind == "number":
        return written[-2].text + "."
    return None


def recurring_decimal(start: str, period: str) -> Node:
    """Write a recurring decimal as the fraction that it is: 0.1(6) is 1/6."""
    whole, _, places = start.partition(".")
    scale = 10 ** len(places)
    value = Fraction(int((whole or "0") + places), scale)
    value += Fraction(int(period), scale * (10 ** len(period) - 1))
    return fraction(value.numerator, value.denominator)


def join_numbers(nodes: Sequence[Node], thousands: bool) -> list[Node]:
    r"""Join digits that are one number: `1,000`, `1{,}000`, `1\,000`, `10 000`, `1'000`, `1e3`.

    A bare comma separates thousands outside brackets, and inside them only where the members of
    the list are set apart by a comma and a space; `(100,200)` is a pair.
    """
    inside, spaced = _bracket_of_each(nodes)
    joined: list[Node] = []
    position = 0
    while position < len(nodes):
        if nodes[position].kind != "number":
            joined.append(nodes[position])
            position += 1
            continue
        bare = thousands and (inside[position] == 0 or inside[position] in spaced)
        text, position = _number_from(nodes, position, bare)
        joined.append(Node("number", text))
    return joined


def _bracket_of_each(nodes: Sequence[Node]) -> tuple[list[int], set[int]]:
    """Number of the bracket each node stands in (0: none); those with a comma before a space."""
    inside: list[int] = []
    spaced: set[int] = set()
    open_brackets, count = [0], 0
    for node, following in zip(nodes, [*nodes, symbol("")][1:], strict=True):
        if node.text in BRACKETS:
            count += 1
            open_brackets.append(count)
        elif node.text in BRACKETS.values() and len(open_brackets) > 1:
            open_brackets.pop()
        elif node.text == "," and following.kind == "space":
            spaced.add(open_brackets[-1])
        inside.append(open_brackets[-1])
    return inside, spaced


def _number_from(nodes: Sequence[Node], position: int, bare: bool) -> tuple[str, int]:
    """Read the number at `position` with its groups of thousands; also where it ends."""
    first = nodes[position].text
    end = position + 1
    groups = [first]
    if re.fullmatch(r"[1-9][0-9]{0,2}", first):
        at = end
        while (found := _next_group(nodes, at, bare)) is not None:
            groups.append(nodes[found].text)
            at = found + 1
            if "." in groups[-1]:
                break
        follows = at + 1 < len(nodes) and nodes[at].text == "," and nodes[at + 1].kind == "number"
        if not (follows and bare and nodes[end].text == ","):
            end = at
        else:
            groups = [first]
    text = "".join(groups)
    if text.startswith("."):
        text = "0" + text
    if european := _european(nodes, position, bare):
        return european, position + 3
    return _with_exponent(nodes, text, end)


def _next_group(nodes: Sequence[Node], at: int, bare: bool) -> int | None:
    """Index of the next three digits if a separator of thousands stands at `at`."""
    if at >= len(nodes):
        return None
    sign = nodes[at]
    after = at + 1
    if sign.kind == "group" and "".join(child.text for child in sign.children).strip() == ",":
        pass
    elif sign.text in (r"\,", r"\;", r"\:", r"\ ", "'") or sign.kind == "space":
        while after < len(nodes) and nodes[after].text == r"\!":
            after += 1
    elif sign.text == ",":
        hidden = False
        while after < len(nodes) and (
            nodes[after].text == r"\!" or (hidden and nodes[after].kind == "space")
        ):
            hidden, after = True, after + 1
        if not hidden and not bare:
            return None
    else:
        return None
    if after < len(nodes) and re.fullmatch(r"[0-9]{3}(?:\.[0-9]+)?", nodes[after].text):
        return after
    return None


def _european(nodes: Sequence[Node], position: int, bare: bool) -> str | None:
    """`1.234,5`: a stop between thousands and a decimal comma, where nothing else can be meant."""
    three = [node.text for node in nodes[position : position + 3]]
    if not bare or len(three) < 3 or three[1] != ",":
        return None
    if re.fullmatch(r"[1-9][0-9]{0,2}\.[0-9]{3}", three[0]) and re.fullmatch(
        "[0-9]{1,2}", three[2]
    ):
        return three[0].replace(".", "") + "." + three[2]
    return None


def _with_exponent(nodes: Sequence[Node], text: str, end: int) -> tuple[str, int]:
    """`1.5e3` is a number, `2e` is not."""
    if end + 1 >= len(nodes) or nodes[end].text not in ("e", "E"):
        return text, end
    sign = nodes[end + 1].text if nodes[end + 1].text in "+-" else ""
    at = end + 1 + bool(sign)
    if at >= len(nodes) or not _DIGITS.fullmatch(nodes[at].text) or len(nodes[at].text) > 3:
        return text, end
    exponent = int(sign + nodes[at].text)
    if abs(exponent) > MAX_EXPONENT:
        return text, end
    return decimal_text(Fraction(text) * Fraction(10) ** exponent), at + 1


def decimal_text(value: Fraction) -> str:
    """Write a fraction whose denominator divides a power of ten as a decimal."""
    places = 0
    while (value * 10**places).denominator > 1:
        places += 1
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
