"""What a page is written without, and why: no figure and no section ever costs the page.

Data that cannot be shown (an empty view, numbers that are not finite) are said where the figure
would stand. Anything unforeseen is said there too and is a `SectionFailed` warning besides: the
command line prints it, and the tests turn it into an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from softeval.errors import UserError

T = TypeVar("T")
LONGEST = 200


class NothingToShow(Exception):  # noqa: N818 - it is an answer, not an error
    """There is nothing that could be drawn; the message says why, as a clause."""


class SectionFailed(UserWarning):
    """A figure or section could not be made, for a reason that nobody has thought of."""


def attempt(what: str, build: Callable[[], T], otherwise: T) -> tuple[T, str]:
    """What `build` gives and "", or `otherwise` and a line that says what is left out and why.

    Args:
        what: what is made, as the reader knows it.
        build: makes it.
        otherwise: stands in its place.

    Raises:
        UserError: from `build`: what the user asked for cannot be met.
    """
    try:
        return build(), ""
    except UserError:
        raise
    except NothingToShow as reason:
        return otherwise, f"{what} is left out: {reason}."
    except Exception as error:  # noqa: BLE001 - whatever it is, the page is written
        said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        line = f"{what} is left out, because making it failed ({said}); please report this."
        warnings.warn(line, SectionFailed, stacklevel=2)
        return otherwise, line
