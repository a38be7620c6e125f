"""Judged once: a sample has its verdict from the moment it is stored, and everybody reads that one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import make_generation

from softeval.display import Display
from softeval.records import SampleKey
from softeval.runs.journal import Journal
from softeval.runs.judging import JudgedJournal, judge_name, judged
from softeval.scoring.judge import Scorer, Verdict

QUESTION = {"target": "7", "kind": "math", "error": None}
QUESTIONS = dict.fromkeys(range(9), QUESTION)
MODE = "hard_sample"


class Counting(Scorer):
    """Counts what it is asked, and may be held up."""

    def __init__(self, rules: str = "softeval") -> None:
        super().__init__(workers=2, rules=rules)
        self.asked = 0
        self.open = threading.Event()
        self.open.set()

    def score_many(self, items: Sequence[Any], *, both: bool = False) -> list[Verdict]:
        self.open.wait()
        self.asked += len(items)
        return [Verdict(item.answer == "7", "ok", other=both) for item in items]


def make(doc_id: int, answer: str = "7") -> Any:
    return make_generation(SampleKey("t", doc_id, 0), answer=answer)


def run_cell(folder: Path, judge: Scorer, made: Sequence[Any]) -> list[Verdict]:
    """Store what is not stored yet, as the adapter does; the verdicts on all."""
    journal = Journal(folder)
    with JudgedJournal(journal, Display(), judge, QUESTIONS) as store:
        for generation in made:
            if store.get(generation.key, MODE) is None:
                store.add(generation, "q")
        verdicts = [store.verdict(generation.key, MODE) for generation in made]
    journal.close()
    return verdicts


def test_a_sample_is_judged_once_however_often_the_run_is_started(tmp_path: Path) -> None:
    made = [make(0), make(1, "8"), make(2)]
    first, second = Counting(), Counting()
    verdicts = run_cell(tmp_path, first, made[:2])
    assert [v.correct for v in verdicts] == [True, False] and verdicts[0].other is True
    assert first.asked == 2
    assert run_cell(tmp_path, second, made)[:2] == verdicts and second.asked == 1
    third = Counting()
    journal = Journal(tmp_path)
    assert judged(journal, third, made[:2], [QUESTION] * 2) == verdicts and third.asked == 0
    journal.close()


def test_other_rules_and_other_limits_judge_again(tmp_path: Path) -> None:
    made = [make(0)]
    run_cell(tmp_path, Counting(), made)
    paper = Counting("math-verify")
    run_cell(tmp_path, paper, made)
    assert paper.asked == 1
    patient = Counting()
    patient.timeout = 99.0
    run_cell(tmp_path, patient, made)
    assert patient.asked == 1


def test_what_a_kill_left_without_a_verdict_is_judged(tmp_path: Path) -> None:
    made = [make(0), make(1)]
    journal = Journal(tmp_path)
    for generation in made:
        journal.add(generation, "q")
    journal.close()
    judge = Counting()
    assert all(v.correct for v in run_cell(tmp_path, judge, made)) and judge.asked == 2


def test_a_slow_verdict_does_not_hold_up_the_decoder(tmp_path: Path) -> None:
    judge = Counting()
    judge.open.clear()
    journal, display = Journal(tmp_path), Display()
    with JudgedJournal(journal, display, judge, QUESTIONS) as store:
        for doc_id in range(9):
            store.add(make(doc_id), "q")
        assert len(journal.names()) == 9 and judge.asked == 0
        judge.open.set()
    assert judge.asked == 9
    name = judge_name(judge)
    assert all(journal.verdict(*held, name) is not None for held in journal.names())


def test_a_judge_that_fails_ends_the_run(tmp_path: Path) -> None:
    class Failing(Counting):
        def score_many(self, items: Sequence[Any], *, both: bool = False) -> list[Verdict]:
            raise RuntimeError("no worker")

    with pytest.raises(RuntimeError, match="no worker"):
        run_cell(tmp_path, Failing(), [make(0)])
    assert b'"kind": "generation"' in (tmp_path / "rank-0000.jsonl").read_bytes()
