"""What lm-eval asks and what it gets: its requests as questions, texts and scores with more to them.

lm-eval gives a question that wants n samples as the same object n times in a row, and with several
processes appends further copies of the last one so that all processes have equally many. It passes
generated texts as `str` and scores as pairs; the sub-classes here look like them to every filter,
logger and JSON writer, and survive pickling between processes.

`softeval run` keeps finished results in a `GenerationStore`; stock lm-eval runs have none. A result
that is found there is not computed again, which is all there is to resuming.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from softeval.errors import UserError
from softeval.records import Generation, SampleKey
from softeval.scoring.judge import Verdict

ROW = "softeval_row"
"""Field of every document: its row number in the data set. It names the question in the keys of
random numbers and of the store, however the documents were selected."""

_GREEDY: dict[str, Any] = {"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 1}
"""Values with which a task asks for ordinary greedy text; they leave everything to the mode."""


@dataclass
class Ask:
    """A question and where its samples go.

    Attributes:
        task: name of the task.
        doc_id: number of the question.
        prompt: text of the prompt, with its chat template if any.
        samples: how many different samples are wanted.
        until: stop strings at which the text is cut.
        places: positions in the list of requests; place i holds sample i, copies of the last
            sample from place `samples` on.
    """

    task: str
    doc_id: int
    prompt: str
    samples: int
    until: tuple[str, ...]
    places: list[int] = field(default_factory=list)

    def sample_at(self, index: int) -> int:
        """Which sample the index-th place holds."""
        return min(index, self.samples - 1)


def group_requests(
    requests: Sequence[Instance], *, greedy: bool, expected: int | None, max_gen_toks: int
) -> list[Ask]:
    """Requests by question, in their order.

    Args:
        requests: as lm-eval passes them to ``generate_until``.
        greedy: whether all samples of a question are the same, so that one is enough.
        expected: samples a question that the model was told; None takes what the task says.
        max_gen_toks: CoT and answer cap together.

    Raises:
        UserError: task and model disagree on the number of samples, or a generation argument that
            the modes do not have.
    """
    asks: dict[int, Ask] = {}
    for place, request in enumerate(requests):
        if id(request) not in asks:
            asks[id(request)] = _ask(request, greedy, expected, max_gen_toks)
        asks[id(request)].places.append(place)
    return list(asks.values())


def _ask(request: Instance, greedy: bool, expected: int | None, max_gen_toks: int) -> Ask:
    prompt: str = request.args[0]
    arguments: dict[str, Any] = request.args[-1]
    repeats = request.repeats or 1
    task = str(request.task_name)
    if expected is not None and repeats != expected:
        raise UserError(
            f"{task} asks for {repeats} samples a question, the model for {expected}: write"
            f" `repeats: {expected}` into the task's YAML (softeval's own tasks: load them with"
            f" metadata num_samples={expected} and the mode's name)"
        )
    _check_arguments(task, arguments, max_gen_toks)
    # A question may come with several requests; each is a question of its own here.
    name = task if request.idx == 0 else f"{task}#{request.idx}"
    until = arguments.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    return Ask(name, question_id(request), prompt, 1 if greedy else repeats, until)


def _check_arguments(task: str, arguments: dict[str, Any], max_gen_toks: int) -> None:
    """Nothing that a user asks for may be dropped silently."""
    for name, value in arguments.items():
        if name == "until" or (name in _GREEDY and value == _GREEDY[name]):
            continue
        if name == "max_gen_toks":
            if int(value) != max_gen_toks:
                raise UserError(
                    f"{task} asks for max_gen_toks={value}, the caps give {max_gen_toks}: set "
                    "max_cot_tokens and max_answer_tokens in the model arguments to agree"
                )
            continue
        raise UserError(
            f"generation argument {name}={value!r} has no effect on a CoT mode: choose mode, "
            "temperature and caps in the model arguments"
        )


class GenText(str):
    """The whole text of a generation (CoT, prefill, answer) with what is known about it.

    Attributes:
        meta: scalars, none of a text that is no sample: mode, sample, answer, stop_reason, answer_stop, n_cot_tokens,
            n_answer_tokens, mean_entropy (nats), seconds.
        generation: the record itself; None after pickling, which drops its arrays.
        verdict: on its answer; None where no run has judged it.
    """

    meta: dict[str, Any]
    generation: Generation | None
    verdict: Verdict | None

    def __new__(
        cls,
        text: object = "",
        meta: dict[str, Any] | None = None,
        generation: Generation | None = None,
        verdict: Verdict | None = None,
    ) -> Self:
        # Anything, like `str`: lm-eval makes the label a text of the type of the result.
        self = super().__new__(cls, text)
        self.meta = {} if meta is None else meta
        self.generation = generation
        self.verdict = verdict
        return self

    @classmethod
    def of(
        cls,
        generation: Generation,
        until: tuple[str, ...] = (),
        verdict: Verdict | None = None,
    ) -> GenText:
        """Wrap a generation; the text ends before the first of the stop strings, as in lm-eval."""
        text = generation.text
        for stop in until:
            if stop:
                text = text.split(stop, 1)[0]
        return cls(text, _scalars(generation), generation, verdict)

    def __reduce__(self) -> tuple[Any, ...]:
        return (GenText, (str(self), self.meta, None, self.verdict))


class ScoreTuple(tuple[float, bool]):
    """(log-probability in nats, whether greedy) of a continuation, with its number of tokens.

    A pair, because lm-eval unpacks pairs; the count makes NLL per token possible.
    """

    n_tokens: int

    def __new__(cls, log_prob: float, is_greedy: bool, n_tokens: int) -> Self:
        self = super().__new__(cls, (log_prob, is_greedy))
        self.n_tokens = n_tokens
        return self

    @property
    def log_prob(self) -> float:
        return self[0]

    @property
    def is_greedy(self) -> bool:
        return self[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return (ScoreTuple, (self[0], self[1], self.n_tokens))


def _scalars(generation: Generation) -> dict[str, Any]:
    n_cot = len(generation.shadow_ids)
    return {
        "mode": generation.mode,
        "sample": generation.key.sample,
        "answer": generation.answer,
        "stop_reason": str(generation.stop_reason),
        "answer_stop": str(generation.answer_stop),
        "n_cot_tokens": n_cot,
        "n_answer_tokens": len(generation.answer_ids),
        "mean_entropy": float(generation.entropy.mean()) if n_cot else None,
        "seconds": float(generation.seconds),
    }


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

    def verdict(self, key: SampleKey, mode: str, /) -> Verdict | None:
        """The verdict on a generation that is stored; None of a store that has none judged."""
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
