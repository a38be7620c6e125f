r"""One way of writing: LaTeX without dressing, every argument in a group, numbers in one piece.

Works on the tree of `softeval.scoring.grading.tokens` and ends the mistakes that come of notation alone:
unprinted space, thousands, `\boldsymbol{}`, `{\bf }`, `\frac\pi2`, `x^\frac12`, `\degree`. What
the result means is for `softeval.scoring.grading.forms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from softeval.scoring.grading.numerals import append, join_numbers
from softeval.scoring.grading.tokens import Kind, Node, Nodes, UnreadableError, group, solid, symbol
from softeval.scoring.grading.vocabulary import (
    ACCENTS,
    ALIASES,
    DRESSING,
    FUNCTIONS,
    HIDDEN,
    LINES,
    MATRICES,
    OF_TWO,
    ORDINALS,
    SPACE,
    TEXT,
    TRANSPARENT,
)

MAX_ARGUMENTS = 60  # of arguments in arguments without braces


def normalised(nodes: Nodes, *, thousands: bool = True, upright: bool = False) -> Nodes:
    """Write nodes in their normal form; spaces are kept as such.

    Args:
        nodes: as read by `tree`.
        thousands: whether a comma between digits may separate thousands.
        upright: whether the nodes stand in text.

    Raises:
        UnreadableError: an argument is missing, or arguments nest too deep.
    """
    return tuple(_Writer(nodes, thousands, upright).all())


class _Writer:
    """Reads nodes from a stack, so that what an argument leaves can be put back."""

    def __init__(self, nodes: Sequence[Node], thousands: bool, upright: bool) -> None:
        self.thousands = thousands
        self.upright = upright
        self.depth = 0
        joined = nodes if upright else join_numbers(nodes, thousands)
        self.rest = list(reversed(joined))

    def all(self) -> list[Node]:
        written: list[Node] = []
        while self.rest:
            for node in self.atom():
                append(written, node)
        return written

    def inner(self, nodes: Nodes, *, upright: bool = False) -> list[Node]:
        return list(normalised(nodes, thousands=self.thousands, upright=upright))

    def atom(self) -> list[Node]:
        """Take one thing with all its arguments."""
        node = self.rest.pop()
        match node.kind:
            case "group":
                return self.braces(node)
            case "environment":
                return self.environment(node)
            case "command":
                return self.command(node)
            case "word" if not self.upright and node.text in FUNCTIONS:
                self.rest.append(Node("command", rf"\{node.text}".replace("sqrt", "surd")))
                return self.atom()
            case "word" if node.text == "US" and self.rest and self.rest[-1].text == "$":
                self.rest.pop()
                return [Node("word", "dollars", upright=True)]
            case "word" | "letter":
                return [replace(node, upright=self.upright or node.upright)]
            case "symbol":
                return self.symbol(node)
            case _:
                return [node]

    def braces(self, node: Node) -> list[Node]:
        """Drop braces that only group; ones around a list stand for a set."""
        for position, child in enumerate(node.children):
            if child.text in (r"\over", r"\choose"):
                name = r"\frac" if child.text == r"\over" else r"\binom"
                sides = node.children[:position], node.children[position + 1 :]
                return [Node("command", name, tuple(group(self.inner(side)) for side in sides))]
        content = self.inner(node.children, upright=self.upright)
        if len(content) > 1 and any(child.text == "," for child in content):
            return [symbol(r"\{"), *content, symbol(r"\}")]
        return content

    def environment(self, node: Node) -> list[Node]:
        children = list(node.children)
        if node.text == "array" and children and children[0].kind == "group":
            children = children[1:]
        rows = [
            group(group(self.inner(cell)) for cell in _split(row, "&"))
            for row in _split(children, "\\\\")
            if solid(row)
        ]
        if node.text in LINES:
            lines = [[one for cell in row.children for one in cell.children] for row in rows]
            return [one for line in lines for one in [*line, symbol(",")]][:-1]
        return [Node("environment", "matrix" if node.text in MATRICES else node.text, tuple(rows))]

    def symbol(self, node: Node) -> list[Node]:
        if node.text in "^_" and self.rest:
            return self.script(node.text)
        if node.text == "$":
            self.upright = False
            return [Node("space", " ")]
        if node.text in "*~`" or not node.text.isprintable():
            return [symbol(r"\cdot") if node.text == "*" else Node("space", " ")]
        return [node]

    def script(self, sign: str) -> list[Node]:
        argument = self.argument(whole_number=True)
        texts = "".join(node.text for node in argument)
        if sign == "^":
            if texts in (r"\circ", "°"):
                return [symbol("°")]
            if argument and set(texts) <= {"'"}:
                return list(argument)
            if texts in ORDINALS:
                return [Node("word", texts, upright=True)]
        return [Node("command", sign, (group(argument),))]

    def command(self, node: Node) -> list[Node]:
        name = ALIASES.get(node.text, node.text)
        if name == r"\\" and self.rest and self.rest[-1].kind in ("word", "letter"):
            self.rest.append(Node("command", "\\" + self.rest.pop().text))  # over-escaped
            return self.atom()
        if name in SPACE:
            return [Node("space", " ")]
        if name == r"\$":
            return [Node("word", "dollars", upright=True)]
        if name in DRESSING:
            if name in (r"\left", r"\right") and self.rest and self.rest[-1].text == ".":
                self.rest.pop()
            return []
        if name in TRANSPARENT:
            return self.argument()
        if name in TEXT:
            return self.text(name)
        if name in HIDDEN:
            self.argument()
            return []
        if name == r"\textcolor":
            self.argument()
            return self.argument()
        if name in (r"\sqrt", r"\surd"):
            return [self.root(whole_number=name == r"\surd")]
        if name in (r"\pmod", r"\pod"):
            return [Node("command", r"\bmod"), *self.argument()]
        arguments = 2 if name in OF_TWO else int(name in ACCENTS)
        kind: Kind = "command" if name.startswith("\\") else "symbol"
        return [Node(kind, name, tuple(group(self.argument()) for _ in range(arguments)))]

    def text(self, name: str) -> list[Node]:
        self.skip_space()
        if not self.rest or self.rest[-1].kind != "group":
            return []
        children = self.rest.pop().children
        inside = "".join(child.text for child in children).strip()
        if name != r"\text" and inside in FUNCTIONS:
            self.rest.append(Node("command", f"\\{inside}"))
            return self.atom()
        space = [Node("space", " ")]
        return [*space, *self.inner(children, upright=True), *space]

    def root(self, *, whole_number: bool) -> Node:
        self.skip_space()
        index: list[Node] = []
        if self.rest and self.rest[-1].text == "[":
            inside = []
            self.rest.pop()
            while self.rest and self.rest[-1].text != "]":
                inside.append(self.rest.pop())
            if not self.rest:
                raise UnreadableError("an index stays open")
            self.rest.pop()
            index = [group(self.inner(tuple(inside)))]
        return Node("command", r"\sqrt", (*index, group(self.argument(whole_number=whole_number))))

    def skip_space(self) -> None:
        while self.rest and (self.rest[-1].kind == "space" or self.rest[-1].text in SPACE):
            self.rest.pop()

    def argument(self, *, whole_number: bool = False) -> list[Node]:
        """Take one argument: a group, or what TeX takes without braces.

        `whole_number` is for the notations of plain text (`x^10`, `2^(n+1)`, `x^-1`).
        """
        self.skip_space()
        if not self.rest:
            raise UnreadableError("an argument is missing")
        self.depth += 1
        if self.depth > MAX_ARGUMENTS:
            raise UnreadableError("arguments nested too deep")
        try:
            return self._argument(whole_number)
        finally:
            self.depth -= 1

    def _argument(self, whole_number: bool) -> list[Node]:
        node = self.rest.pop()
        if node.kind == "group":
            return list(solid(self.inner(node.children)))
        if node.kind == "number" and not whole_number and len(node.text) > 1:
            self.rest.append(replace(node, text=node.text[1:]))
            return [replace(node, text=node.text[0])]
        if node.kind == "word" and node.text not in ("max", "min", *FUNCTIONS):
            rest = node.text[1:]
            self.rest.append(replace(node, text=rest, kind="word" if len(rest) > 1 else "letter"))
            return [Node("letter", node.text[0])]
        if node.text == "(" and (inside := self._parenthesis()) is not None:
            return self.inner(inside)
        if node.text in "+-" and whole_number:
            return [node, *self.argument(whole_number=True)]
        self.rest.append(node)
        return self.atom()

    def _parenthesis(self) -> Nodes | None:
        """Take what stands up to the closing parenthesis, None if it stays open."""
        depth = 1
        for position in range(len(self.rest) - 1, -1, -1):
            depth += {"(": 1, ")": -1}.get(self.rest[position].text, 0)
            if depth == 0:
                inside = tuple(reversed(self.rest[position + 1 :]))
                del self.rest[position:]
                return inside
        return None


def _split(nodes: Iterable[Node], separator: str) -> list[Nodes]:
    parts: list[list[Node]] = [[]]
    for node in nodes:
        if node.text == separator and not node.children:
            parts.append([])
        else:
            parts[-1].append(node)
    return [tuple(part) for part in parts]
