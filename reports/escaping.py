"""Text of models and data made safe to show: control and direction marks visible, JSON inert.

HTML escaping itself is left to the template engine; this is what it does not do.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

LONGEST_TEXT = 70  # letters of a text in a figure

# Line ends and tabs lay text out; every other character of these categories hides or reorders it.
_SHOWN_AS_IS = "\n\t"
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")

# Inside <script>, these end the element, open a comment, or end a line of old JavaScript.
_SCRIPT = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def visible(text: str) -> str:
    """Control, format, direction and unassigned characters as ⟨U+202E⟩; all others unchanged."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _SHOWN_AS_IS or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def script_json(value: Any) -> str:
    """JSON that may stand inside a `<script>` element: no `<`, `>`, `&` or line separators."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: _SCRIPT[match.group()], text)


def clip(text: str, limit: int) -> str:
    """The text, or its beginning and how much was left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def printed(text: str, limit: int = LONGEST_TEXT) -> str:
    """Text as a figure may hold it: nothing hidden, and never so long that no room is left."""
    parts = visible(text).split("\n")
    return "\n".join(s if len(s) <= limit else f"{s[: limit - 1]}…" for s in parts)
