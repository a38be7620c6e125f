"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the request, with its remedy.

    The command line prints the message on one line and exits with code 2; no traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """A "; did you mean X?" where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
