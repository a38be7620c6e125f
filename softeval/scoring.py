r"""Is an answer right? math-verify judges, in processes that cannot hang, crash or run anything.

An *answer* is what a closed `\boxed{}` holds (the decoder cuts it out), a *target* the label of the
data set. Every answer of every mode goes through this one door.

Order of decisions for a mathematical answer:

1. No box, or nothing but white space in it: status `no_answer`.
2. Longer than `MAX_ANSWER_CHARS`: wrong. The longest label of the benchmarks has 204 characters.
3. Answer and label are tidied (`tidy`), which never changes what a mathematical text says.
4. Two plain integers, thousands separators allowed: compared exactly.
5. The same text up to white space: right, also where math-verify cannot read it.
6. Everything else: math-verify, in a worker under a limit of CPU time, wall time and memory.

What has not been decided in time (`timeout`), or took the worker down with it or was refused
(`error`), counts as wrong and is counted apart. There is no symbolic comparison of our own.

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from typing import Literal, NamedTuple, Self

from softeval.answer_text import choice_letter, plainly_equal, tidy
from softeval.scoring_process import ScoringProcess

MAX_ANSWER_CHARS = 2000
MEMO_SIZE = 100_000
MAX_DEFAULT_WORKERS = 4

Status = Literal["ok", "no_answer", "timeout", "error"]


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
            (not judged in time), `error` (the worker died, ran out of memory or was refused).
    """

    correct: bool
    status: Status


Item = tuple[str | None, str, ScoreKind]


class Pair(NamedTuple):
    """Tidied answer and label of which only math-verify can say whether they are equal."""

    answer: str
    target: str


def _letter_verdict(answer: str, target: str) -> Verdict:
    wanted = choice_letter(target)
    if wanted is None:
        raise ValueError(f"the label of a letter task must be a letter, not {target!r}")
    return Verdict(choice_letter(answer) == wanted, "ok")


def _cheap_verdict(answer: str | None, target: str, kind: ScoreKind) -> Verdict | Pair:
    """Take every decision that needs no worker; what is left is a pair for math-verify."""
    if answer is None or not answer.strip():
        return Verdict(False, "no_answer")
    if len(answer) > MAX_ANSWER_CHARS:
        return Verdict(False, "ok")
    if kind is ScoreKind.LETTER:
        return _letter_verdict(answer, target)
    pair = Pair(tidy(answer), tidy(target))
    equal = plainly_equal(*pair)
    return pair if equal is None else Verdict(equal, "ok")


class Scorer:
    """Scores answers with up to `workers` processes; a context manager, usable from any thread.

    Workers start when first needed and end with `close`, or with the process that made them. After
    a fork the child starts workers of its own.

    Args:
        workers: processes used at most at the same time.
        timeout: CPU seconds for one answer, so that a verdict does not depend on the load of the
            machine; the wall limit is five times that.
        memory_mb: address space of a worker in MiB.
    """

    def __init__(self, workers: int = 1, timeout: float = 5.0, memory_mb: int = 2048) -> None:
        if workers < 1 or timeout <= 0 or memory_mb < 1:
            raise ValueError("workers, timeout and memory_mb must be positive")
        self.timeout = timeout
        self.memory_mb = memory_mb
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

    def score(self, answer: str | None, target: str, kind: ScoreKind = ScoreKind.MATH) -> Verdict:
        r"""Score one answer.

        Args:
            answer: content of the closed box, None where none was closed.
            target: the label, as it would stand in a box.
            kind: how the two are compared.

        Raises:
            ValueError: if the label of a letter task is no letter.
            UserError: if no worker can be started.
        """
        return self.score_many([(answer, target, kind)])[0]

    def score_many(self, items: Sequence[Item]) -> list[Verdict]:
        """Score a batch, over all workers; equal items are judged once. Raises as `score`.

        Args:
            items: (answer, target, kind) each.

        Returns:
            The verdicts in the order of the items.
        """
        cases = [_cheap_verdict(*item) for item in items]
        pairs = list(dict.fromkeys(case for case in cases if not isinstance(case, Verdict)))
        judged = dict(zip(pairs, self._judge_all(pairs), strict=True))
        verdicts = [case if isinstance(case, Verdict) else judged[case] for case in cases]
        with self._lock:
            self._counts.update(verdict.status for verdict in verdicts)
        return verdicts

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
        """Have math-verify decide, or remember what it decided."""
        known = self._memo.get(pair)
        if known is not None:
            return known
        process = self._idle.get()
        try:
            correct, status = process.ask(answer=pair.answer, target=pair.target)
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


_scorers: weakref.WeakSet[Scorer] = weakref.WeakSet()


def _forget_parents_workers() -> None:
    for known in _scorers:
        known._start_over_after_fork()


os.register_at_fork(after_in_child=_forget_parents_workers)


@cache
def scorer() -> Scorer:
    """Give the scorer of this process: default limits, closed at exit."""
    default = Scorer(workers=min(MAX_DEFAULT_WORKERS, os.cpu_count() or 1))
    atexit.register(default.close)
    return default


def reward(verdict: Verdict) -> float:
    """Reward of a sample in training (paper section 4): 100 right, 10 for a box, else 0."""
    if verdict.correct:
        return 100.0
    return 0.0 if verdict.status == "no_answer" else 10.0


def scorer_identity(judge: Scorer | None = None) -> dict[str, str | int | float]:
    """Name everything a verdict depends on, for the run record.

    Args:
        judge: whose limits; None for those of `scorer()`.
    """
    packages = ("math-verify", "sympy", "latex2sympy2-extended", "antlr4-python3-runtime", "mpmath")
    judge = judge or scorer()
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "cpu_seconds": judge.timeout,
        "memory_mb": judge.memory_mb,
        "max_answer_chars": MAX_ANSWER_CHARS,
    }
