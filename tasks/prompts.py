r"""The texts that a model is asked to continue.

The paper's prompt is kept to the letter (appendix B): zero-shot, plain text, no chat template. A
multiple-choice question is put into the same prompt with lettered choices, so that its answer is a
letter in ``\boxed{}`` and every CoT mode can run on it.

Knows nothing of datasets, tokenizers or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

PAPER_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first shows the complete reasoning process step by step, then provides the "
    "final answer in \\boxed{}. The assistant must always follow the format: 'User: [question] "
    "Assistant: [detailed reasoning] The final answer is: \\boxed{[answer]}.' User: QUESTION "
    "Assistant:"
)
"""The prompt of paper appendix B; the word QUESTION stands for the question."""

LETTERS = ascii_uppercase
"""Labels of choices in order; ARC's own labels, some of which are digits, are replaced."""

_BEFORE, _AFTER = PAPER_PROMPT.split("QUESTION")


def paper_prompt(question: str) -> str:
    """The whole prompt for one question, which is put in unchanged, white space included."""
    return _BEFORE + question + _AFTER


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
