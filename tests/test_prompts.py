"""The prompts, to the letter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softeval.protocol import PAPER, PAPER_PROMPT
from softeval.tasks.problems import LETTERS, choice_question


def test_paper_prompt_is_the_papers() -> None:
    assert PAPER.ask("How many?") == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first shows the complete reasoning process step by step, then "
        "provides the final answer in \\boxed{}. The assistant must always follow the format: "
        "'User: [question] Assistant: [detailed reasoning] The final answer is: "
        "\\boxed{[answer]}.' User: How many? Assistant:"
    )


def test_paper_prompt_equals_the_notes_copy(shared: Path) -> None:
    text = (shared / "method.md").read_text(encoding="utf-8")
    found = re.search(r"^ {4}(A conversation between .* Assistant:)$", text, re.MULTILINE)
    assert found is not None
    assert found.group(1) == PAPER_PROMPT


@given(st.text())
def test_any_question_goes_in_unchanged(question: str) -> None:
    before, after = PAPER_PROMPT.split("QUESTION")
    prompt = PAPER.ask(question)
    assert prompt.startswith(before) and prompt.endswith(after)
    assert prompt[len(before) : len(prompt) - len(after)] == question


def test_choices_are_lettered_in_order() -> None:
    text = choice_question("Which?", ["one", "two {x}", "three"])
    assert text.split("\n") == [
        "Which?",
        "A. one",
        "B. two {x}",
        "C. three",
        "Answer with the letter of the correct choice.",
    ]


@pytest.mark.parametrize("count", [0, 1, 27])
def test_a_number_of_choices_without_letters_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} choices"):
        choice_question("Which?", ["x"] * count)


def test_26_choices_use_every_letter() -> None:
    lines = choice_question("Which?", [str(i) for i in range(26)]).split("\n")[1:-1]
    assert [line[0] for line in lines] == list(LETTERS)
