"""Overlap filter, hold-out and data order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import SHARED
from train_cases import tiny_config, tiny_lm, write_rows

from softeval.errors import UserError
from softeval.protocol import PAPER
from softeval.trainers.questions import DataOrder, QuestionSet, load_questions

needs_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"no benchmark data in {SHARED}"
)


def encode(text: str) -> list[int]:
    return list(text.encode())


def texts(questions: QuestionSet) -> list[str]:
    return [q.problem.question for q in questions.train + questions.validation]


def test_evaluation_questions_are_dropped_whatever_their_white_space(tmp_path: Path) -> None:
    for name, asked in (("gsm8k", "question"), ("math500", "problem")):
        row = {asked: f"What is\n 1+1 in  {name}?", "answer": "#### 2", "solution": ""}
        write_rows(tmp_path / f"{name}_test.jsonl", [row])
    rows = [
        {"question": f"What is 1+1 in {name}? ", "answer": "2"} for name in ("gsm8k", "math500")
    ]
    rows += [{"question": f"q{n}", "answer": "1"} for n in range(6)]
    rows += [{"question": " q3", "answer": "1"}]
    config = tiny_config(
        dataset=write_rows(tmp_path / "own.jsonl", rows),
        data_dir=str(tmp_path),
        exclude_tasks=("gsm8k", "math500"),
        limit=None,
    )
    found = load_questions(config, encode)
    assert found.overlaps == {"gsm8k": 1, "math500": 1} and found.repeated == 1
    assert sorted(texts(found)) == [f"q{n}" for n in range(6)]
    assert len(found.validation) == 4 and len(found.train) == 2
    assert "1 in gsm8k, 1 in math500, 1 repeated" in found.summary()
    unfiltered = load_questions(config.model_copy(update={"exclude_tasks": ()}), encode)
    assert len(texts(unfiltered)) == 8


COPIES = [
    (r"Find the roots of $x^{2}+3x-5=0.$", r"Find the roots of \[ x^2 + 3x - 5 = 0. \]"),
    (r"Let $f(x)=\left|x-p\right|,$ where $0 < p.$", r"let \(f(x) = |x-p|\), where $0 \,<\, p$."),
    (r"Compute $\dfrac{1}{2} \quad + 2$", r"Compute $\frac{1}{2}+2$."),
    ("It costs 3,500 dollars.", "It costs $3500$ dollars"),
]
OTHERS = [
    ("Factor $z^4-z^2+1$", "Factor $z^4+z^2+1$"),
    (r"Compute $\tan 22.5^\circ$.", r"Compute $\tan 225^\circ$."),
    ("Is $a < b$?", "Is $a > b$?"),
    ("What is $(-1)^2$?", "What is $(1)^2$?"),
]


@pytest.mark.parametrize(
    ("pair", "answers", "copied"),
    [(pair, ("1", "$1$"), True) for pair in COPIES]
    + [(pair, ("1", "2"), False) for pair in COPIES]
    + [(pair, ("1", "1"), False) for pair in OTHERS],
)
def test_copies_are_known_under_another_dressing(
    tmp_path: Path, pair: tuple[str, str], answers: tuple[str, str], copied: bool
) -> None:
    """In an evaluation set and in the training set itself; operators and labels keep apart."""
    evaluated = {"problem": pair[0], "answer": answers[0], "solution": ""}
    write_rows(tmp_path / "math500_test.jsonl", [evaluated])
    fillers = [{"question": f"q{n}", "answer": "1"} for n in range(6)]
    both = [{"question": q, "answer": a} for q, a in zip(pair, answers, strict=True)]
    options = {"data_dir": str(tmp_path), "limit": None}
    path = write_rows(tmp_path / "one.jsonl", fillers + both[1:])
    against = load_questions(
        tiny_config(dataset=path, exclude_tasks=("math500",), **options), encode
    )
    assert against.overlaps == {"math500": int(copied)}
    assert (pair[1] in texts(against)) != copied
    path = write_rows(tmp_path / "both.jsonl", fillers + both)
    within = load_questions(tiny_config(dataset=path, **options), encode)
    assert within.repeated == int(copied) and pair[0] in texts(within)


def test_the_prompt_is_the_papers() -> None:
    found = load_questions(tiny_config(), tiny_lm().tokenizer.encode)
    question = found.train[0]
    expected = tiny_lm().tokenizer.encode(PAPER.ask(question.problem.question))
    assert list(question.prompt_ids) == expected


def test_the_hold_out_does_not_depend_on_seed_or_order(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": "1"} for n in range(40)]
    held = []
    for seed, order in ((0, rows), (1, rows[::-1])):
        path = write_rows(tmp_path / f"{seed}.jsonl", order)
        config = tiny_config(dataset=path, seed=seed, limit=None)
        found = load_questions(config, encode)
        held.append({q.problem.question for q in found.validation})
        assert not held[-1] & {q.problem.question for q in found.train}
    assert held[0] == held[1] and len(held[0]) == 4


def test_long_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"question": "q" * n, "answer": "1"} for n in range(1, 11)]
    path = write_rows(tmp_path / "own.jsonl", rows)
    longest = len(PAPER.ask("q" * 8))
    config = tiny_config(dataset=path, max_prompt_tokens=longest, limit=None)
    found = load_questions(config, encode)
    assert found.too_long == 2 and len(texts(found)) == 8


def test_questions_without_a_label_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": " " if n < 2 else "1"} for n in range(8)]
    path = write_rows(tmp_path / "own.jsonl", rows)
    found = load_questions(tiny_config(dataset=path, limit=None), encode)
    assert found.unlabelled == 2 and "2 without a label" in found.summary()
    assert sorted(q.index for q in found.train + found.validation) == list(range(2, 8))


def test_the_order_is_a_permutation_each_epoch_and_a_function_of_the_place() -> None:
    order = DataOrder(7, seed=3)
    drawn = order.take(0, 21)
    assert all(sorted(drawn[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert drawn[:7] != drawn[7:14]
    assert [DataOrder(7, 3).take(place, 1)[0] for place in range(21)] == drawn
    assert DataOrder(7, 4).take(0, 21) != drawn
    assert Counter(drawn) == dict.fromkeys(range(7), 3)


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        ([{"question": "q"}], {}, "needs .*answer"),
        ([{"ask": "q", "answer": "1"}] * 9, {}, "needs problem, answer"),
        ([{"question": "q", "answer": "1"}] * 9, {}, "--validation-size"),
        ([], {}, "no rows"),
    ],
)
def test_bad_data(
    tmp_path: Path, rows: list[dict[str, str]], options: dict[str, object], match: str
) -> None:
    path = write_rows(tmp_path / "own.jsonl", rows)
    with pytest.raises(UserError, match=match):
        load_questions(tiny_config(dataset=path, **options), encode)


def test_an_unreachable_evaluation_set_says_why_it_is_wanted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", [{"question": "q", "answer": "1"}])
    config = tiny_config(dataset=path, data_dir=str(tmp_path), exclude_tasks=("math500",))
    match = "drop its questions from training, --exclude-tasks none"
    with pytest.raises(UserError, match=match):
        load_questions(config, encode)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("dataset", "rows"), [("gsm8k", 7473), ("math", 12000), ("deepscaler", 3660)]
)
def test_real_training_sets(dataset: str, rows: int) -> None:
    data = {"dataset": dataset, "data_dir": str(SHARED / "data"), "exclude_tasks": None}
    config = tiny_config(**data, limit=None, validation_size=100)
    found = load_questions(config, encode)
    dropped = sum(found.overlaps.values()) + found.repeated + found.unlabelled
    assert len(texts(found)) + dropped == rows == found.source.rows
    assert len(found.validation) == 100
    assert found.unlabelled == (2 if dataset == "math" else 0)
    copies = {"math": {"olympiadbench": 4}, "deepscaler": {"math500": 6}}.get(dataset, {})
    assert {task: n for task, n in found.overlaps.items() if n} == copies
