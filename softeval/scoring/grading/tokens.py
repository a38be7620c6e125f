r"""LaTeX as tokens: one pass over the text, then a tree of braces and environments.

Ends the mistakes that come of reading LaTeX with regular expressions: a macro name cut in two, an
argument without braces, a brace inside a text. Linear in the length of the text; nesting is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from softeval.scoring.grading.vocabulary import GREEK, SIGNS

MAX_DEPTH = 40

Kind = Literal["number", "letter", "word", "command", "symbol", "space", "group", "environment"]


class UnreadableError(ValueError):
    """The text is no balanced LaTeX, or is nested deeper than any answer."""


class UnsupportedError(ValueError):
    """No formula that is known here."""


@dataclass(frozen=True)
class Node:
    r"""One token, or a token with what belongs to it.

    Attributes:
        kind: `word` is a run of letters, in `\text{}` (`upright`) or bare.
        text: the characters; of a command with its backslash, of an environment its name.
        children: content of a group or an environment; of a command its arguments, as groups.
        upright: whether the token stood in `\text{}` or its like.
    """

    kind: Kind
    text: str = ""
    children: tuple[Node, ...] = ()
    upright: bool = field(default=False, compare=False)


Nodes = tuple[Node, ...]


_ENVIRONMENT = re.compile(r"\\(begin|end)(?![A-Za-z])([^}]{0,40})\}")
_TOKEN = re.compile(
    r"\\(?:begin|end)(?![A-Za-z])[^}]{0,40}\}|\\[A-Za-z]+\*?|\\.|[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+|[A-Za-z]+"
    r"|\s+|.|\\$",
    re.DOTALL,
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘᵢⱼ", "0123456789+-=()nkmij")
_SIGNS = str.maketrans(
    {
        **{sign: f"{name} " for sign, name in (SIGNS | GREEK).items()},
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("′’‘´", "'"),
        **dict.fromkeys("。．", "."),
        **dict.fromkeys("，、", ","),
        "″": "''",
        "∛": r"\sqrt[3]",
        "§": " ",
        "\u00a0": " ",
        "\u202f": r"\,",
        "\u2009": r"\,",
    }
)
_RAISED = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{''.join(map(chr, _SUBSCRIPTS))}]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")
_WIDE = re.compile("[\uff01-\uff5e\u3000\U0001d400-\U0001d7ff]")


def _vulgar_fraction(found: re.Match[str]) -> str:
    upper, _, lower = unicodedata.normalize("NFKC", found[0]).partition("⁄")
    return rf"\frac{{{upper}}}{{{lower}}}"


def ascii_signs(text: str) -> str:
    """Write the signs that Unicode has for mathematics as LaTeX, and drop characters without ink.

    Ends refusals of `√3`, `x²`, a true minus sign, full-width digits and zero-width characters.
    """
    text = text.replace("...", r"\ldots ")
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = _WIDE.sub(lambda sign: unicodedata.normalize("NFKC", sign[0]), text)
    return "".join(
        character
        for character in text.translate(_SIGNS)
        if unicodedata.category(character) not in ("Cf", "Co")
    )


def _token(piece: str) -> Node:
    first = piece[0]
    if first == "\\":
        return Node("command", piece)
    if first.isspace():
        return Node("space", " ")
    if "0" <= first <= "9" or (first == "." and len(piece) > 1):
        return Node("number", piece)
    if first.isascii() and first.isalpha():
        return Node("word" if len(piece) > 1 else "letter", piece)
    if first.isalpha():
        return Node("word", piece, upright=True)  # another script: always words
    return Node("symbol", piece)


def tree(text: str) -> Nodes:
    r"""Read a text: braces become groups and `\begin{x}...\end{x}` environments.

    Raises:
        UnreadableError: braces or environments do not match, or are nested too deep.
    """
    stack: list[tuple[str, list[Node]]] = [("", [])]
    for piece in _TOKEN.findall(ascii_signs(text)):
        environment = _ENVIRONMENT.fullmatch(piece)
        name = (environment[2].strip("{ ") or "?") if environment else "{"
        if piece == "{" or (environment and environment[1] == "begin"):
            stack.append((name, []))
            if len(stack) > MAX_DEPTH:
                raise UnreadableError("nested too deep")
        elif piece == "}" or environment:
            opened, content = stack.pop()
            if opened != name:
                raise UnreadableError(f"{name} does not match")
            kind: Kind = "environment" if environment else "group"
            stack[-1][1].append(Node(kind, name if environment else "", tuple(content)))
        elif piece in (r"\begin", r"\end"):
            raise UnreadableError("an environment without a name")
        else:
            stack[-1][1].append(_token(piece))
    if len(stack) > 1:
        raise UnreadableError("a brace stays open")
    return tuple(stack[0][1])


def symbol(text: str) -> Node:
    """Make a symbol."""
    return Node("symbol", text)


def group(nodes: Iterable[Node]) -> Node:
    """Make a group."""
    return Node("group", "", tuple(nodes))


def fraction(upper: int, lower: int) -> Node:
    """Make the fraction of two whole numbers."""
    parts = (group((Node("number", str(part)),)) for part in (upper, lower))
    return Node("command", r"\frac", tuple(parts))


def written(nodes: Iterable[Node]) -> str:
    """Write nodes as LaTeX with a space between all tokens, the text for "same text"."""
    return " ".join(_written(nodes))


def _written(nodes: Iterable[Node]) -> Iterable[str]:
    for node in nodes:
        if node.kind == "space":
            continue
        if node.kind == "environment":
            rows = r" \\ ".join(
                " & ".join(written(cell.children) for cell in row.children) for row in node.children
            )
            yield rf"\begin{{{node.text}}} {rows} \end{{{node.text}}}"
            continue
        if node.kind != "group":
            yield node.text
        for number, child in enumerate(node.children if node.kind != "group" else ()):
            optional = node.text == r"\sqrt" and len(node.children) == 2 and number == 0
            yield ("[ %s ]" if optional else "{ %s }") % written(child.children)


def letters_of(nodes: Sequence[Node]) -> list[Node]:
    r"""Take runs of letters apart: in a formula they are products.

    Raises:
        UnsupportedError: a word of `\text{}` stands in the formula.
    """
    apart: list[Node] = []
    for node in nodes:
        if node.kind == "word":
            if node.upright and len(node.text) > 1:
                raise UnsupportedError(node.text)
            apart += [Node("letter", letter) for letter in node.text]
        else:
            apart.append(node)
    return apart


def solid(nodes: Iterable[Node]) -> Nodes:
    """The nodes without spaces."""
    return tuple(node for node in nodes if node.kind != "space")


class Cursor:
    """A place in a row of nodes that spaces do not count for."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.at = 0
        self.last: Node | None = None

    @property
    def next(self) -> Node | None:
        """The next node that is no space."""
        while self.at < len(self.nodes) and self.nodes[self.at].kind == "space":
            self.at += 1
        return self.nodes[self.at] if self.at < len(self.nodes) else None

    def peek(self, *texts: str) -> bool:
        return self.next is not None and self.next.text in texts

    def take(self) -> Node:
        node = self.next
        if node is None:
            raise UnsupportedError("something is missing")
        self.at += 1
        self.last = node
        return node

    def expect(self, text: str) -> None:
        if self.take().text != text:
            raise UnsupportedError(f"{text} is missing")
