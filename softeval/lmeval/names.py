"""Task names: what to say when one is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from softeval.errors import UserError


def check_task_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an unknown name.

    Raises:
        UserError: with the nearest known name, or all of them.
    """
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}"
        raise UserError(f"unknown task {name!r}; {remedy}")
