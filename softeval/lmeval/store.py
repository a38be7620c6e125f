"""Where finished results are kept while a run goes on, as the adapter needs it.

`softeval run` gives the adapter its journal; stock lm-eval runs have none. A result that is found
here is not computed again, which is all there is to resuming.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from softeval.lmeval.settings import ROW
from softeval.lmeval.text import ScoreTuple
from softeval.records import Generation, SampleKey


class Scored(Protocol):
    """A stored score of one continuation."""

    @property
    def log_prob(self) -> float: ...
    @property
    def is_greedy(self) -> bool: ...
    @property
    def n_tokens(self) -> int: ...


class GenerationStore(Protocol):
    """Finished generations and scores; each call may come at any moment and takes effect at once."""

    def get(self, key: SampleKey, mode: str, /) -> Generation | None:
        """The generation of that name, or None where it is not finished."""
        ...

    def add(self, generation: Generation, prompt: str, /) -> None:
        """Keep a finished generation and the text of its prompt."""
        ...

    def get_likelihood(self, task: str, doc_id: int, choice: int, /) -> Scored | None:
        """The score of one continuation, or None where it is not finished."""
        ...

    def add_likelihood(self, task: str, doc_id: int, choice: int, result: Any, /) -> None:
        """Keep the score of one continuation, a `Scored`."""
        ...


class ChoiceKey(NamedTuple):
    """What names a continuation in a store."""

    task: str
    doc_id: int
    choice: int


def question_id(request: Instance) -> int:
    """The question's row in its data set; lm-eval's own number for tasks that are not ours."""
    row = request.doc.get(ROW) if isinstance(request.doc, dict) else None
    return int(request.doc_id or 0) if row is None else int(row)


def choice_key(request: Instance) -> ChoiceKey:
    """Name of a log-likelihood request."""
    return ChoiceKey(str(request.task_name), question_id(request), request.idx)


def stored_score(store: GenerationStore, request: Instance) -> ScoreTuple | None:
    """The score of a request where the store has it."""
    found = store.get_likelihood(*choice_key(request))
    return None if found is None else ScoreTuple(found.log_prob, found.is_greedy, found.n_tokens)


class SavingHook(CacheHook):
    """Hands each score to the store as soon as lm-eval's loop has it.

    lm-eval names a score by its texts only; the hook knows whose texts they are.
    """

    def __init__(self, store: GenerationStore, requests: Iterable[Instance]) -> None:
        super().__init__(None)
        self._store = store
        self._keys: dict[tuple[str, ...], list[ChoiceKey]] = defaultdict(list)
        self.n_tokens: dict[tuple[str, ...], int] = {}
        for request in requests:
            self._keys[request.args].append(choice_key(request))

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Called by lm-eval with (context, continuation) and its pair."""
        texts = tuple(req)
        score = ScoreTuple(res[0], res[1], self.n_tokens[texts])
        for key in self._keys[texts]:
            self._store.add_likelihood(*key, score)
