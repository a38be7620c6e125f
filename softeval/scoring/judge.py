r"""Is an answer right? Judged in processes that cannot hang, crash or run anything.

An *answer* is what a closed `\boxed{}` holds (the decoder cuts it out), a *target* the label of the
data set. Every answer of every mode goes through this one door.

Order of decisions for a mathematical answer:

1. No box, or nothing but white space in it: status `no_answer`.
2. Longer than `MAX_ANSWER_CHARS`: wrong. The longest label of the benchmarks has 204 characters.
3. Two plain integers, thousands separators allowed: compared exactly.
4. The same text up to white space: right.
5. Everything else in a worker under a limit of CPU time, wall time and memory, by one of two sets
   of `Rules`: `softeval.scoring.grading`, which reads LaTeX as tokens and compares forms, or math-verify
   as the paper used it.

What has not been decided in time (`timeout`), or took the worker down with it or was refused
(`error`), counts as wrong and is counted apart.

Not known here: where the answer comes from, and how scores are averaged.
"""

from __future__ import annotations

import atexit
import os
import platform
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, Self

from softeval.errors import UserError
from softeval.scoring.answer_text import choice_letter, plainly_equal, tidy, without_currency
from softeval.scoring.grading import RULES
from softeval.scoring.process import ScoringProcess

MAX_ANSWER_CHARS = 2000
MEMO_SIZE = 100_000
MAX_DEFAULT_WORKERS = 4

NOT_JUDGED = "not_judged"
NOBODY = "none"
"""In a record: the rules of who judges nothing."""
Status = Literal["ok", "no_answer", "timeout", "error", "not_judged"]


class Rules(StrEnum):
    """Who judges mathematical answers."""

    SOFTEVAL = "softeval"
    MATH_VERIFY = "math-verify"


class ScoreKind(StrEnum):
    """How a task's answers are compared."""

    MATH = "math"
    LETTER = "letter"


@dataclass(frozen=True)
class Verdict:
    """One scored answer.

    Attributes:
        correct: whether the answer was accepted; false in every status but `ok`.
        status: `ok` (judged, right or wrong), `no_answer` (nothing in a closed box), `timeout`
            (not judged in time), `error` (the worker died, ran out of memory or was refused),
            `not_judged` (left to `softeval score`).
        other: whether the other set of rules accepts the answer; None where it was not asked.
    """

    correct: bool
    status: Status
    other: bool | None = field(default=None, compare=False)


class Item(NamedTuple):
    """One answer to be scored.

    Attributes:
        answer: content of the closed box, None where none was closed.
        target: the label, as it would stand in a box.
        kind: how the two are compared.
        error: how far a number may be from the label's; None where it must be the same.
    """

    answer: str | None
    target: str
    kind: ScoreKind = ScoreKind.MATH
    error: float | None = None


class Pair(NamedTuple):
    """Tidied answer and label of which only a worker can say whether they are equal."""

    answer: str
    target: str
    rules: Rules
    error: float | None


def _letter_verdict(answer: str, target: str) -> Verdict:
    wanted = choice_letter(target)
    if wanted is None:
        raise ValueError(f"the label of a letter task must be a letter, not {target!r}")
    return Verdict(choice_letter(answer) == wanted, "ok")


def _cheap_verdict(item: Item, rules: Rules) -> Verdict | Pair:
    """Take every decision that needs no worker; what is left is a pair for one."""
    answer, target, kind, error = item
    if answer is None or not answer.strip():
        return Verdict(False, "no_answer")
    if len(answer) > MAX_ANSWER_CHARS:
        return Verdict(False, "ok")
    if kind is ScoreKind.LETTER:
        return _letter_verdict(answer, target)
    if rules is Rules.MATH_VERIFY:
        answer, target, error = without_currency(answer), without_currency(target), None
    pair = Pair(tidy(answer), tidy(target), rules, error)
    equal = plainly_equal(pair.answer, pair.target)
    return pair if equal is None or (pair.error and not equal) else Verdict(equal, "ok")


class Scorer:
    """Scores answers with up to `workers` processes; a context manager, usable from any thread.

    Workers start when first needed and end with `close`, or with the process that made them. After
    a fork the child starts workers of its own.

    Args:
        workers: processes used at most at the same time.
        timeout: CPU seconds for one answer, so that a verdict does not depend on the load of the
            machine; the wall limit is five times that.
        memory_mb: address space of a worker in MiB.
        rules: who judges mathematical answers.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout: float = 5.0,
        memory_mb: int = 2048,
        rules: Rules | str = Rules.SOFTEVAL,
    ) -> None:
        if workers < 1 or timeout <= 0 or memory_mb < 1:
            raise ValueError("workers, timeout and memory_mb must be positive")
        self.workers = workers
        self.timeout = timeout
        self.memory_mb = memory_mb
        self.rules = Rules(rules)
        self._processes = [ScoringProcess(timeout, memory_mb) for _ in range(workers)]
        self._make_shared_state()
        _scorers.add(self)

    def _make_shared_state(self) -> None:
        """Locks, idle workers and memo: all that a fork may have caught in mid-change."""
        self._lock = threading.Lock()
        self._counts: Counter[Status] = Counter()
        self._memo: dict[Pair, Verdict] = {}
        # Last in, first out: one caller at a time keeps to one worker.
        self._idle: queue.LifoQueue[ScoringProcess] = queue.LifoQueue()
        for process in reversed(self._processes):
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[Status, int]:
        """How many answers ended in each status so far."""
        with self._lock:
            return dict(self._counts)

    def score(
        self,
        answer: str | None,
        target: str,
        kind: ScoreKind = ScoreKind.MATH,
        error: float | None = None,
    ) -> Verdict:
        r"""Score one answer; the arguments are those of an `Item`.

        Raises:
            ValueError: if the label of a letter task is no letter.
            UserError: if no worker can be started.
        """
        return self.score_many([Item(answer, target, kind, error)])[0]

    def score_many(
        self, items: Sequence[Item | tuple[str | None, str, ScoreKind]], *, both: bool = False
    ) -> list[Verdict]:
        """Score a batch, over all workers; equal items are judged once. Raises as `score`.

        Args:
            items: what to score; an `Item` each, or its first three fields.
            both: whether the other set of rules is asked too.

        Returns:
            The verdicts in the order of the items.
        """
        asked = [item if isinstance(item, Item) else Item(*item) for item in items]
        verdicts = self._by_rules(asked, self.rules)
        with self._lock:
            self._counts.update(verdict.status for verdict in verdicts)
        if not both:
            return verdicts
        (other_rules,) = set(Rules) - {self.rules}
        others = self._by_rules(asked, other_rules)
        return [
            replace(verdict, other=other.correct)
            for verdict, other in zip(verdicts, others, strict=True)
        ]

    def _by_rules(self, items: Sequence[Item], rules: Rules) -> list[Verdict]:
        cases = [_cheap_verdict(item, rules) for item in items]
        pairs = list(dict.fromkeys(case for case in cases if not isinstance(case, Verdict)))
        judged = dict(zip(pairs, self._judge_all(pairs), strict=True))
        return [case if isinstance(case, Verdict) else judged[case] for case in cases]

    def close(self) -> None:
        """End the workers. The scorer stays usable: the next question starts a worker again."""
        for process in self._processes:
            process.stop()

    def _judge_all(self, pairs: Sequence[Pair]) -> list[Verdict]:
        threads = min(len(pairs), len(self._processes))
        if threads <= 1:
            return [self._judge(pair) for pair in pairs]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._judge, pairs))

    def _judge(self, pair: Pair) -> Verdict:
        """Have a worker decide, or remember what one decided."""
        known = self._memo.get(pair)
        if known is not None:
            return known
        process = self._idle.get()
        try:
            correct, status = process.ask(**pair._asdict())
        finally:
            self._idle.put(process)
        verdict = Verdict(correct, status)
        if status != "error":  # the worker may have died of something else
            self._remember(pair, verdict)
        return verdict

    def _remember(self, pair: Pair, verdict: Verdict) -> None:
        with self._lock:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            self._memo[pair] = verdict

    def _start_over_after_fork(self) -> None:
        for process in self._processes:
            process.forget()
        self._make_shared_state()


class NotJudging:
    """In the place of a scorer where answers are judged later."""

    workers = 1

    def score_many(self, items: Sequence[Item], *, both: bool = False) -> list[Verdict]:
        """Of each item that it is not judged."""
        return [Verdict(False, NOT_JUDGED) for _ in items]


_scorers: weakref.WeakSet[Scorer] = weakref.WeakSet()


def _forget_parents_workers() -> None:
    for known in _scorers:
        known._start_over_after_fork()


os.register_at_fork(after_in_child=_forget_parents_workers)


def scorer(rules: Rules | str = Rules.SOFTEVAL) -> Scorer:
    """Give the scorer of this process for a set of rules: default limits, closed at exit."""
    return _scorer(Rules(rules))


def judge_of(rules: Rules | None) -> Scorer | NotJudging:
    """The scorer of a run; None for rules judges nothing."""
    return NotJudging() if rules is None else scorer(rules)


@cache
def _scorer(rules: Rules) -> Scorer:
    default = Scorer(workers=min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1), rules=rules)
    atexit.register(default.close)
    return default


def score(
    answers: Sequence[str | None],
    labels: Sequence[str],
    kind: ScoreKind | str = ScoreKind.MATH,
    *,
    rules: Rules | str = Rules.SOFTEVAL,
) -> list[Verdict]:
    r"""Score answers against labels, as `softeval run` does.

    Args:
        answers: contents of closed boxes (without `\boxed{}`); None where none was closed.
        labels: one for each answer.
        kind: "math", or "letter" for the letter of a choice.
        rules: "softeval", or "math-verify" for its verdicts as the paper used it.

    Returns:
        One verdict an answer, each also with what the other rules say (`other`).

    Raises:
        ValueError: answers and labels differ in number, or the label of a letter task is no letter.
        UserError: no worker can be started.
    """
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers for {len(labels)} labels")
    pairs = zip(answers, labels, strict=True)
    items = [Item(answer, label, ScoreKind(kind)) for answer, label in pairs]
    return scorer(rules).score_many(items, both=True)


def reward(verdict: Verdict) -> float:
    """Reward of a sample in training (paper section 4): 100 right, 10 for a box, else 0."""
    if verdict.correct:
        return 100.0
    return 0.0 if verdict.status == "no_answer" else 10.0


def rules_name(rules: Rules) -> str:
    """Name and version of a set of rules, as it stands in run.json."""
    return f"softeval {RULES}" if rules is Rules.SOFTEVAL else str(rules)


def is_judged(record: Mapping[str, Any]) -> bool:
    """Whether a run's answers were judged, by whatever rules."""
    return (record.get("scorer") or {}).get("rules") != NOBODY


def rules_of(record: Mapping[str, Any]) -> Rules | None:
    """The rules that judged a run, None if none did; softeval's for a record older than their names.

    Raises:
        UserError: rules that are not known here, as of a later version.
    """
    if not is_judged(record):
        return None
    named = str((record.get("scorer") or {}).get("rules", Rules.SOFTEVAL)).partition(" ")[0]
    if named not in set(Rules):
        raise UserError(
            f"the run is judged by {named}, which is not known here; `softeval score RUN --scorer"
            f" {Rules.SOFTEVAL}` judges it again, old verdicts kept beside"
        )
    return Rules(named)


def scorer_identity(judge: Scorer | NotJudging | None = None) -> dict[str, str | int | float]:
    """Name everything a verdict depends on, for the run record.

    Args:
        judge: whose limits; None for those of `scorer()`.
    """
    if isinstance(judge, NotJudging):
        return {"rules": NOBODY}
    packages = ("math-verify", "sympy", "latex2sympy2-extended", "antlr4-python3-runtime", "mpmath")
    judge = judge or scorer()
    return {
        "rules": rules_name(judge.rules),
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "cpu_seconds": judge.timeout,
        "memory_mb": judge.memory_mb,
        "max_answer_chars": MAX_ANSWER_CHARS,
    }
