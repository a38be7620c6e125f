"""From the normal form of a text to the kind of answer that it is.

`read` takes nodes apart from the outside in: list, relation, union, bracket, and what is left as a
number with its unit, a time or ratio, a numeral with its base, words or a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile

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
)
from softeval.scoring.grading.quantities import Quantity, read_quantity
from softeval.scoring.grading.tokens import Node, Nodes, solid, symbol, written
from softeval.scoring.grading.vocabulary import BRACKETS, ROUNDING, names
from softeval.scoring.grading.words import as_words, is_prose

_OPENING = BRACKETS | ROUNDING
_CLOSING = set(_OPENING.values())
_RELATIONS = names("= < >") | names(r"\le \ge \ne \in \notin \approx \equiv \to \mid")
_TURNED = {">": "<", r"\ge": r"\le"}
_SET_OPERATORS = {r"\cup", r"\cap", r"\setminus"}
_CONDITION_WORDS = names("where for if when with such whenever provided because since")
_LEAD = names("the final answer is are so thus therefore hence")
_HALVES = {"am": "am", "pm": "pm", "noon": "pm"}
_PUNCTUATION = re.compile(r"[^\w]+")


def read(nodes: Sequence[Node]) -> Form:
    """Give an answer, as nodes in normal form, its form."""
    nodes = _without_dressing(tuple(nodes))
    condition = _condition_at(nodes)
    if condition is not None:
        main, rest = nodes[:condition], nodes[condition:]
        return Conditioned(read(main), (_prose_text(rest),))
    whole = _single(nodes)
    if isinstance(whole, Quantity | Colon | Listing | RealInterval):
        return whole
    pieces, joint = _pieces(nodes)
    if len(pieces) > 1:
        return _listing(pieces, joint)
    return whole if whole is not None else _item(nodes)


def _without_dressing(nodes: Nodes) -> Nodes:
    """Drop what surrounds an answer: spaces, a full stop, Markdown, "the answer is", `=`."""
    start, end = 0, len(nodes)
    while start < end and _dresses_start(nodes[start]):
        start += 1
    while end > start and _dresses_end(nodes, start, end):
        end -= 1
    nodes = nodes[start:end]
    if len(nodes) > 2 and nodes[0].text == "<" and nodes[-1].text == ">":
        return _without_dressing(nodes[1:-1])
    words = [node.text.lower() for node in nodes if node.kind == "word"]
    if words[:1] and words[0] in _LEAD and "is" in words:
        last = [node.text.lower() for node in nodes].index("is")
        if all(node.kind == "space" or node.text.lower() in _LEAD for node in nodes[:last]):
            return _without_dressing(nodes[last + 1 :])
    return nodes


def _dresses_start(node: Node) -> bool:
    return node.kind == "space" or node.text in ("=", r"\approx", r"\cdot", "#", "`", "~", '"')


def _dresses_end(nodes: Nodes, start: int, end: int) -> bool:
    node = nodes[end - 1]
    if node.text == "'":
        return nodes[start].text == "'"
    return node.kind == "space" or node.text in (".", ";", ",", ":", r"\cdot", "`", '"')


def _condition_at(nodes: Nodes) -> int | None:
    """Where "where ..." or "if ..." begins after a formula."""
    for position, node in _outside(nodes):
        if node.kind == "word" and node.text.lower() in _CONDITION_WORDS:
            return position if _has_formula(nodes[:position]) else None
    return None


def _has_formula(nodes: Sequence[Node]) -> bool:
    return any(node.kind in ("number", "letter", "command") for node in nodes)


def _prose_text(nodes: Sequence[Node]) -> str:
    return _PUNCTUATION.sub(" ", written(nodes).lower()).strip()


def _pieces(nodes: Nodes) -> tuple[list[Nodes], bool]:
    """Split a list at commas, semicolons, "and", "or"; also whether "or" was among them."""
    separators = {",", ";", "and", "or", "\\\\"}
    if any(node.text in _RELATIONS for node in nodes):  # else they join statements
        separators |= {r"\land", r"\lor"}
    words = {
        position: node.text.lower() if node.kind == "word" else node.text
        for position, node in _outside(nodes)
    }
    splits = [position for position, word in words.items() if word in separators]
    joint = any(words[position] in ("or", r"\lor") for position in splits)
    return [piece for piece in _parts(nodes, splits) if piece], joint


def _outside(nodes: Nodes) -> Iterator[tuple[int, Node]]:
    """Yield position and node of what stands outside all brackets; `]1, 2[` is a bracket too."""
    depth = 0
    for position, node in enumerate(nodes):
        depth += (node.text in _OPENING) - (node.text in _CLOSING)
        if depth == 0 and node.text not in _CLOSING:
            yield position, node


def _listing(pieces: list[Nodes], joint: bool) -> Form:
    r"""Read the members of a list, with conditions like `k \in \mathbb{Z}` set apart."""
    items = [_item(piece) for piece in pieces]
    conditions = [
        written(piece) for item, piece in zip(items, pieces, strict=True) if _is_domain(item)
    ]
    items = [item for item in items if not _is_domain(item)] or items
    if len(items) == len(pieces):
        conditions = []
    first, others = items[0], items[1:]
    named = isinstance(first, Relation) and first.operators == ("=",)
    if named and others and not any(isinstance(item, Relation) for item in others):
        assert isinstance(first, Relation)
        members: Form = Relation(
            (first.sides[0], Listing((first.sides[1], *others), joint=joint)), ("=",)
        )
    else:
        members = Listing(tuple(items), joint=joint) if others else first
    return Conditioned(members, tuple(conditions)) if conditions else members


def _is_domain(item: Form) -> bool:
    """Whether an item only says which numbers a letter stands for."""
    if not isinstance(item, Relation) or item.operators != (r"\in",):
        return False
    side = item.sides[1]
    return isinstance(side, Formula) and written(side.nodes).startswith(r"\mathbb")


def _item(nodes: Nodes) -> Form:
    """Read one member of a list."""
    single = _single(nodes)
    if single is not None:
        return single
    splits = [position for position, node in _outside(nodes) if node.text in _RELATIONS]
    if splits:
        return _relation(nodes, splits)
    operations = [position for position, _ in _outside(nodes) if _joins_sets(nodes, position)]
    if operations:
        parts = tuple(_item(part) for part in _parts(nodes, operations))
        operators = (nodes[position].text.replace("-", r"\setminus") for position in operations)
        return SetOperation(parts, tuple(operators))
    return _words_or_formula(nodes)


def _joins_sets(nodes: Nodes, position: int) -> bool:
    """Whether a sign joins sets; a minus does before a brace."""
    if nodes[position].text != "-":
        return nodes[position].text in _SET_OPERATORS
    following = solid(nodes[position + 1 :])
    return position > 0 and bool(following) and following[0].text == r"\{"


def _parts(nodes: Nodes, splits: Sequence[int]) -> list[Nodes]:
    edges = [-1, *splits, len(nodes)]
    return [_without_dressing(nodes[left + 1 : right]) for left, right in pairwise(edges)]


def _relation(nodes: Nodes, splits: Sequence[int]) -> Form:
    operators = [nodes[position].text for position in splits]
    parts = _parts(nodes, splits)
    # An approximation stands after what it approximates; a name before it is a name.
    if r"\approx" in operators:
        at = operators.index(r"\approx")
        if parts[at] and not is_name(parts[at]):
            operators, parts = operators[:at], parts[: at + 1]
        operators = ["=" if operator == r"\approx" else operator for operator in operators]
    if not operators:
        return _item(parts[0])
    if not set(operators) & {"<", r"\le"}:
        turned = [_TURNED.get(operator, operator) for operator in operators]
        if turned != operators:
            operators, parts = turned[::-1], parts[::-1]
    return Relation(tuple(read(part) for part in parts), tuple(operators))


def is_name(nodes: Sequence[Node]) -> bool:
    r"""Whether nodes only name something: `x`, `m_{\max}`, `f(x)`, `(p, q)`, `\angle ABC`."""
    found = False
    depth = 0
    for node in nodes:
        depth += (node.text == "(") - (node.text == ")")
        if node.kind == "number" and depth == 0:
            return False
        if node.text == "^" and written(node.children[0].children) == "- 1":
            continue  # an inverse function
        if (
            node.text in ("+", "-", "/", "^", r"\frac", r"\sqrt", "!", r"\pi", r"\cdot")
            and not depth
        ):
            return False
        found = found or node.kind in ("letter", "word") or node.text.startswith("\\")
    return found


def _single(nodes: Nodes) -> Form | None:
    """Read what is one thing from its first to its last node; None where it is not."""
    plain = solid(nodes)
    if not plain:
        return Words(())
    if len(plain) == 1 and plain[0].kind == "environment":
        return _environment(plain[0])
    for reader in (_bracketed, _colon, _numeral, _spread):
        form = reader(nodes, plain)
        if form is not None:
            return form
    return read_quantity(nodes)


def _spread(nodes: Nodes, plain: Nodes) -> Form | None:
    """`1 2 3` is a list of three."""
    if len(plain) < 2 or any(node.kind != "number" for node in plain):
        return None
    return Listing(tuple(Formula((node,)) for node in plain))


def _environment(node: Node) -> Form:
    rows = tuple(tuple(cell.children for cell in row.children) for row in node.children)
    if node.text == "matrix":
        return Matrix(rows)
    if node.text == "cases" and all(len(row) == 1 for row in rows):
        return Listing(tuple(_item(row[0]) for row in rows))
    return Formula((node,))


def _closes_last(plain: Nodes) -> bool:
    depth = 0
    for position, node in enumerate(plain):
        depth += (node.text in _OPENING) - (node.text in _CLOSING)
        if depth == 0:
            return position == len(plain) - 1
    return False


def _bracketed(nodes: Nodes, plain: Nodes) -> Form | None:
    opening, closing = plain[0].text, plain[-1].text
    if (opening == "]" and closing in "[]") or (opening == "[" and closing == "["):
        return _french_interval(plain)
    if len(plain) < 2 or opening not in ("(", "[", r"\{", r"\langle") or not _closes_last(plain):
        return None
    inside = _without_dressing(nodes[1:-1])
    inner = solid(inside)
    if opening == r"\{":
        return _set(inside)
    if len(inner) == 1 and inner[0].kind == "environment" and opening != r"\langle":
        return _single(inner)
    members = _members(inside)
    if len(members) == 1:
        return read(inside) if inner else Formula(nodes)
    if len(members) == 2 and (opening, closing) in (("(", "]"), ("[", ")"), ("[", "]")):
        return RealInterval(members[0], members[1], opening, closing)
    items = tuple(_item(member) for member in members)
    return Listing(items, "[" if opening == "[" else "(")


def _members(inside: Nodes) -> list[Nodes]:
    commas = [position for position, node in _outside(inside) if node.text in (",", ";")]
    return _parts(inside, commas)


def _set(inside: Nodes) -> Form:
    bars = [position for position, node in _outside(inside) if node.text in (r"\mid", "|", ":")]
    if len(bars) == 1:  # {x | 2 < x < 3}
        name, rule = _parts(inside, bars)
        bare = written(name).partition(r" \in \mathbb { R }")[0]
        if bare and bare in written(rule):
            return _item(rule)
    if not inside:
        return Formula((Node("command", r"\emptyset"),))
    return Listing(tuple(_item(member) for member in _members(inside)), "{")


def _french_interval(plain: Nodes) -> Form | None:
    members = _members(plain[1:-1])
    if len(members) != 2:
        return None
    opening = "(" if plain[0].text == "]" else "["
    left, right = members
    return RealInterval(left, right, opening, ")" if plain[-1].text == "[" else "]")


def _colon(nodes: Nodes, plain: Nodes) -> Form | None:
    """Read a time or a ratio; `a.m.` and `p.m.` are part of a time."""
    clock = tuple(takewhile(lambda node: node.kind == "number" or node.text == ":", plain))
    tail = "".join(node.text.lower() for node in plain[len(clock) :] if node.text != ".")
    half = _HALVES.get(tail, "") if clock else ""
    rest = clock if half else plain
    if any(node.text in _RELATIONS or node.text in (",", r"\{") for node in rest):
        return None
    colons = [
        position
        for position, node in _outside(rest)
        if node.text == ":" or (node.kind == "word" and node.text == "to")
    ]
    parts = _parts(rest, colons)
    numeric = all(part and not any(node.kind == "word" for node in part) for part in parts)
    return Colon(tuple(parts), half) if numeric and (colons or half) else None


def _numeral(nodes: Nodes, plain: Nodes) -> Form | None:
    r"""Read digits with a base: `52_8`, `2A_{16}`, `\text{A5}_{11}`."""
    if len(plain) < 2 or plain[-1].text != "_":
        return None
    if plain[0].text == "(" and plain[-2].text == ")":
        plain = (*plain[1:-2], plain[-1])
    digits = "".join(node.text for node in plain[:-1])
    base = written(plain[-1].children[0].children).replace(" ", "")
    known = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
    base = known.get(base, base).strip("()")
    if not re.fullmatch("[0-9A-Za-z]+", digits) or not base.isdigit():
        return None
    if not digits[0].isdigit() and not plain[0].upright and len(digits) < 2:
        return None  # a_1 is a name
    return Numeral(digits.upper().lstrip("0") or "0", base)


def _words_or_formula(nodes: Nodes) -> Form:
    plain = solid(nodes)
    words = [node for node in plain if is_prose(node)]
    if not words:
        return Formula(nodes)
    if all(is_prose(node) or node.kind in ("letter", "symbol") for node in plain):
        bare = [node for node in plain if node.kind != "symbol"]
        if all(node.kind == "word" or node.upright for node in bare) or len(words) > 1:
            return as_words(bare)
    return _prose(nodes)


def _prose(nodes: Nodes) -> Form:
    """Cut a mixture into runs of words and runs of formula."""
    pieces: list[Words | Form] = []
    run: list[Node] = []
    kind = False
    for node in (*nodes, symbol("")):
        if node.kind == "space" or (node.text == "." and run):
            continue
        if run and (node.text == "" or is_prose(node) != kind):
            pieces.append(as_words(run) if kind else _item(tuple(run)))
            run = []
        kind = is_prose(node)
        run.append(node)
    return Prose(tuple(pieces))
