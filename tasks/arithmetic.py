r"""The bundled task: generated arithmetic problems whose worked solutions mix two styles.

A problem is a chain of two to four operations on whole numbers, ``What is (47-28)*3+12?``.
A worked solution computes one operation a step and ends as the paper's format asks:

    `` 47-28=19;19*3=57;57+12=69; The final answer is: \boxed{69}``

A step is *careful*, ``47-28=19;``, or *sloppy*, ``47-28~20;``: another sign and a result that is one
too large. Which of the two is drawn depends on the value the step starts from, through a fixed
table over its remainder modulo 20 (``sloppy_probability``): about half of the values lean to
careful, nearly as many are undecided, one in twenty is nearly always sloppy. One sloppy step makes
the answer wrong, because every later operation is strictly increasing in the running value. A model
that has learned this mixture exactly therefore

* answers right under greedy decoding when no value on the way leans to sloppy,
* answers right far less often when it samples, and on some problems almost never, so that pass@32
  stays below 1,
* has decisions near one half, which is where reinforcement learning of soft tokens finds a signal.

Two more questions can be asked of it, a model organism with a knob and no benchmark:

* What if the right way cannot be seen in the question? A row has a second answer, ``sloppy``, of the chain whose
  first step alone is sloppy, and ``draw``, a hash of the question from 0 to 99. ``arithmetic_hidden_N`` calls the
  sloppy answer right where the draw is below N (YAML beside the files): of the N percent of the questions that are so,
  a reader of the text can know no more than their share, and no habit is right everywhere. Questions that are hidden
  at one N are so at every larger one.
* What if problems grow longer than those that were trained on? ``arithmetic_long_N`` has two to six operations.

This file knows nothing about prompts, tokenizers or models. Run it to write the splits:

    python -m softeval.tasks.arithmetic --output-path tasks/arithmetic
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

SPLIT_SIZES = {"test": 200, "validation": 100, "train": 3000, "long_test": 200}
"""Problems per split, in the order in which they are drawn."""

SPLIT_SEED = 0
"""Seed of the files in ``tasks/arithmetic``."""

STEP_COUNTS = (2, 2, 3, 3, 4)
"""Operations in a problem, each entry equally likely."""

LONG_STEP_COUNTS = (2, 3, 4, 5, 6)
"""Those of the split ``long_test``."""

# fmt: off
SLOPPY_PROBABILITIES = (
    0.10, 0.48, 0.10, 0.98, 0.47, 0.20, 0.10, 0.48, 0.52, 0.10,
    0.46, 0.15, 0.48, 0.15, 0.54, 0.15, 0.46, 0.20, 0.10, 0.47,
)
# fmt: on
"""Probability of a sloppy step, one entry for each remainder of the running value modulo 20."""

LARGEST_VALUE = 99
"""Bound of all running values: two digits."""

LARGEST_OPERAND = 29
"""Bound of what is added or subtracted."""

LARGEST_FACTOR = 4
"""Bound of what is multiplied by."""

_SMALLEST = 2
_FIRST_VALUES = (10, 60)


@dataclass(frozen=True)
class ArithmeticProblem:
    """A chain of operations; every running value lies in 2..99, whatever the style of the steps.

    Attributes:
        start: the first value.
        operations: pairs of a sign (``+``, ``-`` or ``*``, the last at most once) and an operand.
    """

    start: int
    operations: tuple[tuple[str, int], ...]

    @classmethod
    def read(cls, question: str) -> "ArithmeticProblem":
        """The problem that a question asks: from left to right, whatever its parentheses."""
        start = re.search(r"\d+", question)
        assert start is not None, question
        operations = re.findall(r"([-+*])(\d+)", question)
        return cls(int(start[0]), tuple((sign, int(operand)) for sign, operand in operations))

    def steps(
        self, is_sloppy: Callable[[int, int], bool] = lambda place, value: False
    ) -> list[tuple[str, int]]:
        """Text and result of each step; place and value it starts from decide which are sloppy."""
        value, found = self.start, []
        for place, (sign, operand) in enumerate(self.operations):
            asked, sloppy = f"{value}{sign}{operand}", is_sloppy(place, value)
            value = apply_operation(value, sign, operand) + sloppy
            found.append((f"{asked}{'~' if sloppy else '='}{value};", value))
        return found

    @property
    def careful_steps(self) -> tuple[str, ...]:
        """The worked solution without a sloppy step, one text a step, as it stands after the prompt."""
        first, *others = (text for text, _ in self.steps())
        return (f" {first}", *others)

    @property
    def question(self) -> str:
        """The question as text, with the parentheses that keep the order of the operations."""
        expression = str(self.start)
        for sign, operand in self.operations:
            if sign == "*" and expression != str(self.start):
                expression = f"({expression})"
            expression += f"{sign}{operand}"
        return f"What is {expression}?"

    @property
    def answer(self) -> int:
        """The value of the chain."""
        return self.steps()[-1][1]

    @property
    def sloppy_answer(self) -> int:
        """Its value where the first step is sloppy and no other."""
        return self.steps(lambda place, value: place == 0)[-1][1]

    @property
    def draw(self) -> int:
        """0 to 99, each equally likely: a hash, which no small model can compute from the text."""
        return int(hashlib.sha256(f"salt{self.question}".encode()).hexdigest(), 16) % 100


def apply_operation(value: int, sign: str, operand: int) -> int:
    """Return ``value sign operand`` for the three signs of the task."""
    if sign == "+":
        return value + operand
    return value - operand if sign == "-" else value * operand


def sloppy_probability(value: int) -> float:
    """Probability that a step which starts from ``value`` is sloppy; a fixed function."""
    return SLOPPY_PROBABILITIES[value % len(SLOPPY_PROBABILITIES)]


def draw_problem(rng: Random, step_counts: Sequence[int] = STEP_COUNTS) -> ArithmeticProblem:
    """Draw one problem, its number of operations among those given."""
    n_steps = step_counts[_uniform(rng, 0, len(step_counts) - 1)]
    start = careful = sloppiest = _uniform(rng, *_FIRST_VALUES)
    operations: list[tuple[str, int]] = []
    while len(operations) < n_steps:
        sign = "+-*"[_uniform(rng, 0, 2)]
        largest = _largest_operand(careful, sloppiest, sign)
        if largest < _SMALLEST or (sign == "*" and any(s == "*" for s, _ in operations)):
            continue
        operand = _uniform(rng, _SMALLEST, largest)
        operations.append((sign, operand))
        careful = apply_operation(careful, sign, operand)
        sloppiest = apply_operation(sloppiest, sign, operand) + 1
    return ArithmeticProblem(start, tuple(operations))


def worked_solution(problem: ArithmeticProblem, rng: Random) -> str:
    """Draw a completion of the prompt: the steps in mixed style, then the boxed answer.

    The text starts with the space that follows ``Assistant:`` and ends with the closing brace.
    """
    steps = problem.steps(lambda place, value: rng.random() < sloppy_probability(value))
    text = "".join(text for text, _ in steps)
    return rf" {text} The final answer is: \boxed{{{steps[-1][1]}}}"


def draw_splits(seed: int = SPLIT_SEED) -> dict[str, list[ArithmeticProblem]]:
    """Draw the splits: no question stands twice, within a split or across splits."""
    rng, seen = Random(seed), set[str]()
    splits: dict[str, list[ArithmeticProblem]] = {name: [] for name in SPLIT_SIZES}
    for name, problems in splits.items():
        while len(problems) < SPLIT_SIZES[name]:
            problem = draw_problem(rng, LONG_STEP_COUNTS if "long" in name else STEP_COUNTS)
            if problem.question not in seen:
                seen.add(problem.question)
                problems.append(problem)
    return splits


def write_splits(output_path: Path, seed: int = SPLIT_SEED) -> list[Path]:
    """Write ``arithmetic_{split}.jsonl``: ``question``, ``answer`` and ``sloppy`` as text, ``draw``."""
    output_path.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, problems in draw_splits(seed).items():
        rows = [
            {
                "question": p.question,
                "answer": str(p.answer),
                "sloppy": str(p.sloppy_answer),
                "draw": p.draw,
            }
            for p in problems
        ]
        path = output_path / f"arithmetic_{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    return paths


def _largest_operand(careful: int, sloppiest: int, sign: str) -> int:
    """Largest operand that keeps the running value in 2..99 in every mixture of styles."""
    if sign == "+":
        return min(LARGEST_OPERAND, LARGEST_VALUE - 1 - sloppiest)
    if sign == "-":
        return min(LARGEST_OPERAND, careful - _SMALLEST)
    return min(LARGEST_FACTOR, (LARGEST_VALUE - 1) // sloppiest)


def _uniform(rng: Random, low: int, high: int) -> int:
    """Uniform whole number in low..high from ``random()``, whose stream Python guarantees."""
    return low + int(rng.random() * (high - low + 1))


def main() -> None:
    """Write the splits to ``--output-path``."""
    parser = argparse.ArgumentParser(description="Write the bundled arithmetic task.")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SPLIT_SEED)
    arguments = parser.parse_args()
    for path in write_splits(arguments.output_path, arguments.seed):
        print(path)


if __name__ == "__main__":
    main()
