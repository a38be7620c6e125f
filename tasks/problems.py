r"""What a row of each data set asks, and what the right answer is.

Two kinds: a question whose answer is free text, scored by math-verify, and a question with choices,
of which one is right. This is the only file that knows the fields of the data sets.

The texts of choice questions are those of lm-eval's own hellaswag, mmlu and arc tasks, so that
accuracies can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softeval.errors import UserError
from softeval.tasks.data import DatasetSource, load, load_file
from softeval.tasks.local_data import Row
from softeval.tasks.prompts import LETTERS, choice_question


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
    """A question with choices.

    Attributes:
        question: what is asked when the choices are listed and a letter is wanted.
        query: the text that lm-eval scores the continuations after.
        continuations: what is scored after the query, one a choice, without the space between.
        choices: the answers.
        gold: index of the right one.
        description: text before the query, "" for most.
    """

    question: str
    query: str
    continuations: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    description: str = ""

    def as_problem(self) -> Problem:
        """The same question with listed choices; the answer is a letter."""
        return Problem(choice_question(self.question, self.choices), LETTERS[self.gold])


def read_problem(name: str, row: Row) -> Problem:
    """Question and answer of one row; a choice question asks for its letter."""
    return _PROBLEMS[name](row) if name in _PROBLEMS else read_choice(name, row).as_problem()


def read_choice(name: str, row: Row) -> Choice:
    """The choice question of one row of a data set that has choices."""
    return _CHOICES[name](row)


def has_choices(name: str) -> bool:
    """Whether the data set asks choice questions."""
    return name in _CHOICES


def load_problems(
    name: str, data_dir: str | None = None, split: str | None = None
) -> tuple[list[Problem], DatasetSource]:
    """All problems of a data set, or of a JSONL file with a question (or problem) and an answer.

    Args:
        name: a name of `softeval.tasks.data.DATASETS`, or a path that ends in .jsonl or .jsonl.gz.
        data_dir: directory of local files; None takes the hub. A path needs none.
        split: another split than the default one.

    Raises:
        UserError: what `softeval.tasks.data.load` raises.
    """
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _load_own(Path(name))
    loaded = load(name, data_dir, split)
    return [read_problem(name, row) for row in loaded.rows], loaded.source


def _load_own(path: Path) -> tuple[list[Problem], DatasetSource]:
    first = load_file(path, ("answer",)).rows[0]
    asked = "question" if "question" in first else "problem"
    loaded = load_file(path, (asked, "answer"))
    problems = [Problem(str(row[asked]), str(row["answer"])) for row in loaded.rows]
    return problems, loaded.source


def _gsm8k(row: Row) -> Problem:
    _, mark, target = row["answer"].rpartition("#### ")
    if not mark:
        raise UserError(f"gsm8k: no '#### ' before the answer of {row['question'][:40]!r}; add it")
    return Problem(row["question"], target.strip())


def _math(row: Row) -> Problem:
    return Problem(row["problem"], row["answer"])


def _olympiadbench(row: Row) -> Problem:
    """Several answers are one list, as the data set's single string of several answers is."""
    question = row["question"]
    if row.get("context"):
        question = f"{row['context']}\n{question}"
    answers = row["final_answer"]
    target = answers if isinstance(answers, str) else ", ".join(answers)
    return Problem(question, target, float(row["error"]) if row.get("error") else None)


def _arithmetic(row: Row) -> Problem:
    return Problem(row["question"], row["answer"])


def _hellaswag(row: Row) -> Choice:
    context = row["ctx_a"] + " " + row["ctx_b"].capitalize()
    query = _clean_hellaswag(row["activity_label"] + ": " + context)
    endings = tuple(_clean_hellaswag(ending) for ending in row["endings"])
    question = f"Which choice continues the text best?\n{query}"
    return Choice(question, query, endings, endings, int(row["label"]))


def _clean_hellaswag(text: str) -> str:
    """Without the marks of WikiHow articles, exactly as lm-eval removes them."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _mmlu(row: Row) -> Choice:
    """The continuation is the letter; the description names the subject, as in lm-eval."""
    choices = tuple(row["choices"])
    letters = tuple(LETTERS[: len(choices)])
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    query = "\n".join([row["question"].strip(), *lines, "Answer:"])
    subject = row["subject"].replace("_", " ")
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return Choice(row["question"].strip(), query, letters, choices, int(row["answer"]), about)


def _arc(row: Row) -> Choice:
    choices = tuple(row["choices"]["text"])
    gold = row["choices"]["label"].index(row["answerKey"])
    query = f"Question: {row['question']}\nAnswer:"
    return Choice(row["question"], query, choices, choices, gold)


_PROBLEMS: dict[str, Callable[[Row], Problem]] = {
    "arithmetic": _arithmetic,
    "gsm8k": _gsm8k,
    "math500": _math,
    "math": _math,
    "deepscaler": _math,
    "olympiadbench": _olympiadbench,
}

_CHOICES: dict[str, Callable[[Row], Choice]] = {
    "hellaswag": _hellaswag,
    "mmlu": _mmlu,
    "arc_challenge": _arc,
    "arc_easy": _arc,
}
