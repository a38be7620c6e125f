"""What words in an answer say: a number, a set, or the same as other words."""

from __future__ import annotations

from collections.abc import Sequence

from softeval.scoring.grading.forms import Form, Formula, Words
from softeval.scoring.grading.tokens import Node
from softeval.scoring.grading.vocabulary import NUMBER_WORDS, names

_SHORT_WORDS = names("""no yes all odd the is are it not one two six ten red any dne for if or and may jun jul
    none east""")
_EMPTY = {"no solution", "empty set", "empty", "no real solution", "none", "no solution exist"}
_ALL = {"all real number", "all real", "real number", "any real number"}
_INTEGERS = {"all integer", "integer"}
_NEVER = {"dne", "doe not exist"}
_ARTICLES = {"the", "a", "an"}


def is_prose(node: Node) -> bool:
    """Whether a node is a word of a sentence and not a product of letters."""
    if node.kind != "word":
        return False
    return node.upright or len(node.text) >= 4 or node.text.lower() in _SHORT_WORDS


def as_words(nodes: Sequence[Node]) -> Form:
    """Read words as the number or the infinity that they name, else as words."""
    texts = [
        node.text if len(nodes) == 1 and node.text.isupper() else node.text.lower()
        for node in nodes
    ]
    if len(texts) == 1 and texts[0] in NUMBER_WORDS:
        return Formula((Node("number", NUMBER_WORDS[texts[0]]),))
    if texts == ["infinity"]:
        return Formula((Node("command", r"\infty"),))
    return Words(tuple(texts))


def same_words(answer: Words, label: Words) -> bool:
    """Whether words say the same: two capitals the same letter, else the same but for grammar."""
    if (
        answer.words[1:] == label.words[1:] == ()
        and answer.words[0].isupper()
        and label.words[0].isupper()
    ):
        return answer.words == label.words
    ours, theirs = plain_words(answer), plain_words(label)
    alike = any({ours, theirs} <= group for group in (_EMPTY, _ALL, _NEVER))
    return bool(ours) and (ours == theirs or alike)


def plain_words(form: Form) -> str:
    """Words without articles and plurals."""
    words = form.words if isinstance(form, Words) else ()
    kept = [word.lower() for word in words if word not in _ARTICLES]
    if kept[:1] == ["there"] and kept[1:2] in (["is"], ["are"], ["exist"], ["exists"]):
        kept = kept[2:]
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in kept)


def set_in_words(words: Words) -> str:
    """The set of numbers that words name, as LaTeX; no text if they name none."""
    text = plain_words(words)
    if text in _ALL:
        return r"\mathbb { R }"
    if text in _INTEGERS:
        return r"\mathbb { Z }"
    return r"\emptyset" if text in _EMPTY else ""
