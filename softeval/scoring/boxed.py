r"""The boxes of an answer: where `\boxed{` closes, and what the last one of a text holds.

Pure text. It knows only the braces of LaTeX (`\{` and `\}` are characters, not braces); what the
content means is for `softeval.scoring.judge`.
"""

from __future__ import annotations

import re

_BOX = r"\\(?:boxed|fbox)\s*\{"
# In order: a box opens; any other escaped character (a backslash right before a box is left alone,
# so that the `\\boxed{` of over-escaped output is still a box); a bare brace.
_TOKEN = re.compile(rf"{_BOX}|\\(?!{_BOX}).?|[{{}}]", re.DOTALL)


def closing_brace(text: str) -> int | None:
    r"""Find the brace that closes a box opened just before `text`.

    Args:
        text: What follows `\boxed{`.

    Returns:
        The index of the closing brace, or None while the box is still open.
    """
    depth = 1
    for token in _TOKEN.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        if depth == 0:
            return token.start()
    return None


def boxed_content(text: str) -> str | None:
    r"""Take the content of the last complete `\boxed{...}` (or `\fbox{...}`) of a text.

    "Last" is the one that opens last, so of nested boxes it is the innermost. One pass, linear in
    the length of the text.

    Args:
        text: Any text, of any length.

    Returns:
        The content as it stands, possibly empty; None where no box is complete.
    """
    open_braces: list[int | None] = []  # where the content of a box starts; None: a mere brace
    best: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (best is None or start > best[0]):
                best = (start, token.start())
        elif token[0].endswith("{") and token[0] != r"\{":
            open_braces.append(None if token[0] == "{" else token.end())
    return None if best is None else text[slice(*best)]
