"""The store that the adapter writes to: the journal, watched.

Each finished generation is journalled first; then it is counted, and its answer is scored in a
thread of its own, so that a slow verdict never holds up the decoder.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from softeval.display import Display
from softeval.records import Generation, SampleKey
from softeval.runs.journal import Journal, Likelihood
from softeval.scoring.judge import ScoreKind, Scorer


class WatchedJournal:
    """A journal that tells a display what comes in; a context manager around one cell.

    Args:
        journal: where results are kept.
        display: what is told.
        scorer: gives the verdicts of the running score.
        documents: question by doc_id, with "target" and "kind".
    """

    def __init__(
        self,
        journal: Journal,
        display: Display,
        scorer: Scorer,
        documents: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self._journal = journal
        self._display = display
        self._scorer = scorer
        self._documents = documents
        self._waiting: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._score_waiting, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            return  # the thread is a daemon; nobody waits for its verdicts any more
        self._waiting.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        self._display.leave()

    def get(self, key: SampleKey, mode: str, /) -> Generation | None:
        """The generation where it is finished; counted as done."""
        found = self._journal.get(key, mode)
        if found is not None:
            self._count(found, fresh=False)
        return found

    def add(self, generation: Generation, prompt: str, /) -> None:
        """Journal a finished generation, then count it."""
        self._journal.add(generation, prompt)
        self._count(generation, fresh=True)

    def get_likelihood(self, task: str, doc_id: int, choice: int, /) -> Likelihood | None:
        """The score of a continuation where it is finished; counted as done."""
        found = self._journal.get_likelihood(task, doc_id, choice)
        if found is not None:
            self._display.meter.count(done=1)
            self._display.update()
        return found

    def add_likelihood(self, task: str, doc_id: int, choice: int, result: Any, /) -> None:
        """Journal the score of a continuation, then count it."""
        self._journal.add_likelihood(
            task, doc_id, choice, Likelihood(result.log_prob, result.is_greedy, result.n_tokens)
        )
        self._display.meter.count(done=1, fresh=1, tokens=result.n_tokens)
        self._display.update()

    def _count(self, generation: Generation, fresh: bool) -> None:
        tokens = len(generation.shadow_ids) + len(generation.answer_ids)
        self._display.meter.count(done=1, fresh=int(fresh), tokens=tokens if fresh else 0)
        self._waiting.put(generation)
        self._display.update()

    def _score_waiting(self) -> None:
        try:
            while (generation := self._waiting.get()) is not None:
                document = self._documents[generation.key.doc_id]
                kind = ScoreKind(document["kind"])
                verdict = self._scorer.score(
                    generation.answer, document["target"], kind, document.get("error")
                )
                self._display.meter.score(1, int(verdict.correct))
        except BaseException as failure:  # noqa: BLE001 - carried to the main thread, which raises it
            self._failure = failure
