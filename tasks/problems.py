r"""What a row asks and what the right answer is, as a benchmark's templates say.

Two kinds: a question whose answer is generated and judged, and a question whose given answers are
compared by log-likelihood.

A multiple-choice question is put into the same prompt with lettered choices, so that its answer is a
letter in ``\boxed{}`` and every CoT mode can run on it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from softeval.errors import UserError
from softeval.tasks.catalogue import Benchmark, Scoring

Row = Mapping[str, Any]

LETTERS = ascii_uppercase
"""Labels of choices in order; ARC's own labels, some of which are digits, are replaced."""


def choice_question(question: str, choices: Sequence[str]) -> str:
    r"""A multiple-choice question as text, one choice a line, asking for a letter.

    Args:
        question: what is asked, or the text to continue.
        choices: from two to 26 answers; the first is lettered A.
    """
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} choices: a question has from 2 to {len(LETTERS)}")
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the correct choice."])


@dataclass(frozen=True)
class Problem:
    """A question with a free answer.

    Attributes:
        question: the text that goes into the prompt.
        target: the right answer as LaTeX or plain text.
        error: how far a number may be from the target; None where it must be the same.
    """

    question: str
    target: str
    error: float | None = None


@dataclass(frozen=True)
class Choice:
    """A question whose choices are scored.

    Attributes:
        query: the text that the choices are scored after.
        choices: what is scored after the query, without the space between.
        gold: index of the right one.
        description: text before the query, "" for most.
    """

    query: str
    choices: tuple[str, ...]
    gold: int
    description: str


def read_row(benchmark: Benchmark, row: Row) -> Problem | Choice:
    """What one row asks, in the benchmark's kind; listed choices to be generated ask for a letter.

    Raises:
        UserError: a template that this row does not fit.
    """
    templates = benchmark.templates
    question, answer = (templates[name].render(row) for name in ("question", "answer"))
    if benchmark.choices is None:
        return Problem(question, answer, _error(benchmark, row))
    choices = _choices(benchmark, row)
    gold = _index(answer, len(choices))
    if benchmark.scoring is not Scoring.LIKELIHOOD:
        return Problem(choice_question(question, choices), LETTERS[gold])
    description = templates["description"].render(row) if "description" in templates else ""
    return Choice(question, choices, gold, description)


def _choices(benchmark: Benchmark, row: Row) -> tuple[str, ...]:
    text = benchmark.templates["choices"].render(row)
    try:
        choices = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        choices = None
    if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"choices: {text[:40]!r} is no list of 2 to {len(LETTERS)}; mend it")
    return tuple(map(str, choices))


def _index(answer: str, count: int) -> int:
    if not answer.isdigit() or int(answer) >= count:
        raise UserError(f"answer: {answer[:40]!r} is no index of {count} choices, from 0; mend it")
    return int(answer)


def _error(benchmark: Benchmark, row: Row) -> float | None:
    text = benchmark.templates["error"].render(row) if benchmark.error is not None else ""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise UserError(f"error: {text[:40]!r} is no number; mend it") from None
