r"""What an answer says, as far as its text alone tells: integers, same wording, choice letters.

Everything here is decided by plain rules in linear time. What needs mathematics is left to
math-verify (`softeval.scoring.judge`).
"""

from __future__ import annotations

import re

_INTEGER = re.compile(r"[+-]?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)")
_THOUSANDS_SPACE = re.compile(r"(?<=[0-9])\\[,!;: ]\s*(?:\\!)?(?=[0-9]{3}(?![0-9]))")
_CURRENCY = str.maketrans("", "", "£€¥")
_FULL_STOP = re.compile(r"(?<=[0-9A-Za-z)\]}%$])\.$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit)\s*\{(.*)\}(.*)")
_LETTER = re.compile(r"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])[.:)])(?:\s.*)?|([A-Za-z])", re.DOTALL)


def tidy(content: str) -> str:
    r"""Write out what math-verify 0.9 stumbles over and what can only mean one thing.

    The full stop of a sentence (`18.`), LaTeX spaces between the thousands (`10\,000`), and the
    sign for degrees.
    """
    content = _THOUSANDS_SPACE.sub("", content).replace("°", r"^\circ")
    return _FULL_STOP.sub("", content.strip())


def without_currency(content: str) -> str:
    """Drop the signs of currencies other than the dollar, the only one that math-verify knows."""
    return content.translate(_CURRENCY)


def plainly_equal(answer: str, target: str) -> bool | None:
    """Compare two tidied texts as far as no mathematics is needed.

    Returns:
        For two plain integers, whether they are the same number (`1,000` is 1000); True for the
        same text up to white space; None where only mathematics can tell.
    """
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(target):
        return int(answer.replace(",", "")) == int(target.replace(",", ""))
    return True if answer.split() == target.split() else None


def choice_letter(answer: str) -> str | None:
    r"""Read the letter of a multiple-choice answer.

    Accepted are `C`, `c`, `(C)`, `C.`, `C)`, `C:`, the last four also with the text of the choice
    after a space (`C. photosynthesis`), and each in `$...$` or `\text{...}` and its like. "A plant"
    or "A and B" name no letter.

    Returns:
        The upper-case letter, None where there is none.
    """
    answer = answer.strip().strip("$").strip()
    if wrapped := _TEXT_COMMAND.fullmatch(answer):
        answer = (wrapped[1] + wrapped[2]).strip()
    found = _LETTER.fullmatch(answer)
    return next(letter for letter in found.groups() if letter).upper() if found else None
