"""Verdicts, and that no answer hangs, crashes or runs anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import mostly_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_cases import LETTERS, math_cases, our_cases

from softeval.scoring.answer_text import plainly_equal, tidy
from softeval.scoring.grading import RULES
from softeval.scoring.judge import (
    MAX_ANSWER_CHARS,
    Rules,
    ScoreKind,
    Scorer,
    Verdict,
    reward,
    scorer,
    scorer_identity,
)
from softeval.scoring.process import ScoringProcess

LATEX_TOKENS = (
    r"\frac{ \sqrt{ } { ( ) [ ] ^ _ = , ; + - * / ! % $ & \\ \{ \} \left \right 1 2 x e i \text{"
    r" \infty \pi \pm < > \le \cup \in | \begin{pmatrix} \end{pmatrix} ° . : '"
)
ROOT = Path(__file__).resolve().parent.parent
MATH, LETTER = ScoreKind.MATH, ScoreKind.LETTER
ACCEPTED = Verdict(True, "ok")
REJECTED = Verdict(False, "ok")


@pytest.fixture(scope="module")
def judge() -> Iterator[Scorer]:
    with Scorer(timeout=10) as shared_scorer:
        yield shared_scorer


@pytest.fixture(scope="module")
def paper() -> Iterator[Scorer]:
    with Scorer(timeout=10, rules="math-verify") as shared_scorer:
        yield shared_scorer


# --- verdicts -------------------------------------------------------------------------------------


def test_there_are_enough_cases() -> None:
    assert len(set(math_cases())) == len(math_cases()) >= 150


@pytest.mark.parametrize(("answer", "label", "accepted"), our_cases())
def test_mathematical_verdict(judge: Scorer, answer: str, label: str, accepted: bool) -> None:
    assert judge.score(answer, label) == Verdict(accepted, "ok")


@pytest.mark.parametrize(
    ("answer", "label", "accepted"),
    [
        ("€12", r"\$12", False),
        ("€12", "£12", False),
        ("€12", r"12 \text{ euros}", True),
        ("£1,200", "1200", True),
        ("12€", "12.00", True),
    ],
)
def test_a_currency_is_a_unit(judge: Scorer, answer: str, label: str, accepted: bool) -> None:
    assert judge.score(answer, label) == Verdict(accepted, "ok")


@pytest.mark.parametrize(
    ("answer", "label", "accepted"), mostly_slow(math_cases(), math_cases()[::10])
)
def test_verdict_of_math_verify(paper: Scorer, answer: str, label: str, accepted: bool) -> None:
    assert paper.score(answer, label) == Verdict(accepted, "ok")


@pytest.mark.parametrize(("answer", "label", "accepted"), LETTERS)
def test_letter_verdict(judge: Scorer, answer: str, label: str, accepted: bool) -> None:
    assert judge.score(answer, label, LETTER) == Verdict(accepted, "ok")


@pytest.mark.parametrize("kind", list(ScoreKind))
@pytest.mark.parametrize("answer", [None, "", " ", "\n\t", "\u00a0"])
def test_an_empty_box_is_no_answer(judge: Scorer, answer: str | None, kind: ScoreKind) -> None:
    assert judge.score(answer, "C", kind) == Verdict(False, "no_answer")


def test_a_label_that_is_no_letter_is_refused(judge: Scorer) -> None:
    with pytest.raises(ValueError, match="must be a letter"):
        judge.score("C", "photosynthesis", LETTER)


@given(st.integers(), st.integers())
def test_integers_are_compared_as_numbers(left: int, right: int) -> None:
    assert plainly_equal(f"{left:,}", str(right)) == (left == right)


@given(st.text())
def test_every_text_equals_itself(text: str) -> None:
    assert plainly_equal(tidy(text), tidy(f" {text}\n"))


@pytest.mark.slow
def test_the_cheap_comparison_agrees_with_math_verify() -> None:
    process = ScoringProcess(10, 2048)
    numbers = st.integers(-(10**7), 10**7) | st.integers(-3, 3)
    written = st.tuples(numbers, st.sampled_from(["{}", "{:,}", "{:+}", "{:08}"]))

    @settings(max_examples=60)
    @given(written, written)
    def agrees(left: tuple[int, str], right: tuple[int, str]) -> None:
        answer, target = left[1].format(left[0]), right[1].format(right[0])
        cheap = plainly_equal(answer, target)
        for rules in Rules:
            assert cheap == process.ask(answer=answer, target=target, rules=rules).correct

    try:
        agrees()
    finally:
        process.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "expected"),
    [("math500_test.jsonl", 500), ("olympiadbench_OE_TO_maths_en_COMP.jsonl", 675)],
)
@pytest.mark.parametrize("rules", list(Rules))
def test_every_benchmark_label_is_accepted(
    shared: Path, file: str, expected: int, rules: Rules
) -> None:
    rows = [json.loads(line) for line in (shared / "data" / file).read_text().splitlines()]
    labels = [row["answer"] if "answer" in row else row["final_answer"][0] for row in rows]
    assert len(labels) == expected
    if rules is Rules.MATH_VERIFY:
        labels = labels[::3]  # none of ours, and slow
    process = ScoringProcess(10, 2048)  # the scorer itself would see the same text and not ask
    outcomes = {
        label: process.ask(answer=f"${label.strip('$')}$", target=label, rules=rules)
        for label in set(labels)
    }
    process.stop()
    assert [label for label, outcome in outcomes.items() if not outcome.correct] == []


# --- batches, memo, counts ------------------------------------------------------------------------


def test_a_batch_gives_the_verdicts_of_its_items_in_order(judge: Scorer) -> None:
    items = [(answer, label, MATH) for answer, label, _ in math_cases()[::7]] * 2
    items += [(None, "5", MATH), ("C.", "C", LETTER)]
    assert judge.score_many(items) == [judge.score(*item) for item in items]
    assert judge.score_many([]) == []


def test_equal_items_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = ScoringProcess.ask
    monkeypatch.setattr(
        ScoringProcess, "ask", lambda self, **pair: asked.append(pair) or ask(self, **pair)
    )
    with Scorer() as fresh:
        fresh.score_many([("1/2", "0.5", MATH)] * 5)
        fresh.score("1/2", "0.5")
        assert len(asked) == 1
        assert fresh.counts == {"ok": 6}


@pytest.mark.slow
def test_counts_by_status() -> None:
    # A short answer takes hundredths of a second here.
    with Scorer(timeout=1.5, rules="math-verify") as fresh:
        verdicts = fresh.score_many(
            [(None, "5", MATH), ("5", "5", MATH), ("6", "5", MATH), ("9^{9^{9^{9}}}", "0.5", MATH)]
        )
        assert [verdict.status for verdict in verdicts] == ["no_answer", "ok", "ok", "timeout"]
        assert fresh.counts == {"no_answer": 1, "ok": 2, "timeout": 1}


def test_reward_of_the_paper() -> None:
    assert reward(ACCEPTED) == 100
    assert reward(REJECTED) == 10
    assert reward(Verdict(False, "timeout")) == reward(Verdict(False, "error")) == 10
    assert reward(Verdict(False, "no_answer")) == 0


def test_identity_names_what_verdicts_depend_on() -> None:
    identity = scorer_identity()
    assert identity["math-verify"].startswith("0.9")
    assert identity["rules"] == f"softeval {RULES}"
    assert scorer_identity(scorer("math-verify"))["rules"] == "math-verify"
    assert {"sympy", "latex2sympy2-extended", "cpu_seconds", "memory_mb"} <= identity.keys()
    assert identity["cpu_seconds"] == scorer().timeout
    json.dumps(identity)
    assert scorer() is scorer()


# --- long and scrambled answers ------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit", ["9", "{", "}", "(", r"\frac", "9^", "$", "\\", "x ", "\u0665", "\n5"]
)
@pytest.mark.parametrize("kind", list(ScoreKind))
def test_a_megabyte_is_wrong_at_once(judge: Scorer, unit: str, kind: ScoreKind) -> None:
    assert judge.score(unit * (1_000_000 // len(unit)), "C", kind) == REJECTED


def test_the_length_limit_is_above_every_label_and_inclusive(judge: Scorer) -> None:
    longest = "0" * (MAX_ANSWER_CHARS - 1) + "5"
    assert judge.score(longest, "5") == ACCEPTED
    assert judge.score("0" + longest, "5") == REJECTED


@settings(max_examples=60)
@given(st.lists(st.sampled_from(LATEX_TOKENS.split()), max_size=12).map(" ".join))
def test_scrambled_latex_is_judged(judge: Scorer, answer: str) -> None:
    assert judge.score(answer, r"\frac{271}{3}").status in {"ok", "no_answer", "timeout"}


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_any_text_is_judged(judge: Scorer, answer: str) -> None:
    assert judge.score(answer, r"\frac{271}{3}").correct is False
