"""The generated arithmetic task: arithmetic, styles, splits and the files that ship."""

import json
import re
import statistics
from pathlib import Path
from random import Random

import pytest

from softeval.tasks.arithmetic import (
    LARGEST_VALUE,
    SLOPPY_PROBABILITIES,
    SPLIT_SIZES,
    ArithmeticProblem,
    draw_problem,
    draw_splits,
    sloppy_probability,
    worked_solution,
    write_splits,
)

DATA = Path(__file__).parents[1] / "tasks" / "arithmetic"
STEP = re.compile(r"(\d+)([+*-])(\d+)([=~])(\d+);")


def problems(n: int, seed: int = 1) -> list[ArithmeticProblem]:
    rng = Random(seed)
    return [draw_problem(rng) for _ in range(n)]


def evaluate(expression: str) -> int:
    """Python's own arithmetic, an oracle for answers and steps."""
    assert re.fullmatch(r"[\d+*()-]+", expression)
    return eval(expression)


def test_answer_is_the_value_of_the_expression_in_the_question():
    for problem in problems(2000):
        expression = problem.question.removeprefix("What is ").removesuffix("?")
        assert evaluate(expression) == problem.answer


def test_parentheses_only_where_they_change_the_value():
    assert (
        ArithmeticProblem(47, (("-", 28), ("*", 3), ("+", 12))).question == "What is (47-28)*3+12?"
    )
    assert ArithmeticProblem(19, (("*", 3), ("+", 12))).question == "What is 19*3+12?"


def test_every_problem_has_two_to_four_operations_and_at_most_one_product():
    drawn = problems(2000)
    assert {len(p.operations) for p in drawn} == {2, 3, 4}
    assert {sum(sign == "*" for sign, _ in p.operations) for p in drawn} == {0, 1}


def test_steps_are_right_when_careful_and_one_too_large_when_sloppy():
    rng = Random(2)
    for problem in problems(1000):
        text = worked_solution(problem, rng)
        steps = STEP.findall(text)
        assert len(steps) == len(problem.operations)
        for left, sign, right, style, result in steps:
            assert int(result) == evaluate(left + sign + right) + (style == "~")
        assert [step[0] for step in steps[1:]] == [step[4] for step in steps[:-1]]
        ending = rf" The final answer is: \boxed{{{steps[-1][4]}}}"
        assert text == " " + "".join(map("{}{}{}{}{};".format, *zip(*steps, strict=True))) + ending


def test_answer_is_right_exactly_when_no_step_is_sloppy():
    rng = Random(3)
    for problem in problems(2000):
        text = worked_solution(problem, rng)
        assert (rf"\boxed{{{problem.answer}}}" in text) == ("~" not in text)


def test_running_values_stay_within_two_digits_in_every_style(monkeypatch: pytest.MonkeyPatch):
    for probability in (0.0, 1.0):
        monkeypatch.setattr(
            "softeval.tasks.arithmetic.sloppy_probability", lambda value, p=probability: p
        )
        for problem in problems(2000):
            steps = STEP.findall(worked_solution(problem, Random(0)))
            values = [int(number) for step in steps for number in (step[0], step[4])]
            assert min(values) >= 2
            assert max(values) <= LARGEST_VALUE


def test_share_of_sloppy_steps_follows_the_value():
    rng = Random(4)
    drawn: dict[int, list[bool]] = {}
    for problem in problems(4000):
        for left, _, _, style, _ in STEP.findall(worked_solution(problem, rng)):
            drawn.setdefault(int(left) % len(SLOPPY_PROBABILITIES), []).append(style == "~")
    for value, styles in drawn.items():
        expected = sloppy_probability(value)
        error = (expected * (1 - expected) / len(styles)) ** 0.5
        assert abs(statistics.mean(styles) - expected) < 4 * error


def test_the_ideal_reader_is_neither_hopeless_nor_perfect():
    """A model that learned the mixture exactly: greedy 50-75 %, sampling far below, pass@32 < 1."""
    careful, greedy = [], []
    for problem in draw_splits()["test"]:
        lefts = [int(s[0]) for s in STEP.findall(_careful_solution(problem))]
        probabilities = [sloppy_probability(left) for left in lefts]
        greedy.append(all(p < 0.5 for p in probabilities))
        chance = 1.0
        for p in probabilities:
            chance *= 1 - p
        careful.append(chance)
    assert 0.5 < statistics.mean(greedy) < 0.75
    assert statistics.mean(careful) < 0.4
    assert 0.8 < statistics.mean(1 - (1 - c) ** 32 for c in careful) < 0.95


def _careful_solution(problem: ArithmeticProblem) -> str:
    class NeverSloppy(Random):
        def random(self) -> float:
            return 1.0

    return worked_solution(problem, NeverSloppy())


def test_splits_are_disjoint_and_of_the_stated_sizes():
    splits = draw_splits()
    assert {name: len(rows) for name, rows in splits.items()} == SPLIT_SIZES
    questions = [p.question for rows in splits.values() for p in rows]
    assert len(set(questions)) == len(questions)


def test_only_the_long_split_has_more_than_four_operations():
    counts = {name: {len(p.operations) for p in rows} for name, rows in draw_splits().items()}
    assert counts.pop("long_test") == {2, 3, 4, 5, 6}
    assert all(found == {2, 3, 4} for found in counts.values())


def test_another_seed_draws_other_problems():
    assert draw_splits(0) != draw_splits(1)


def test_shipped_files_equal_regenerated_output(tmp_path: Path):
    for path in write_splits(tmp_path):
        assert path.read_bytes() == (DATA / path.name).read_bytes(), (
            f"{path.name} is stale: run python -m softeval.tasks.arithmetic --output-path {DATA}"
        )


def test_rows_hold_question_and_answer_as_text(tmp_path: Path):
    for path in write_splits(tmp_path):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert set(row) == {"question", "answer", "sloppy", "draw"}
            assert all(re.fullmatch(r"\d{1,2}", row[name]) for name in ("answer", "sloppy"))
