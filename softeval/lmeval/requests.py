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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from softeval.decoding.decoder import Question
from softeval.errors import UserError
from softeval.modes import Mode
from softeval.options import GenerationOptions
from softeval.records import Generation, SampleKey, ScoreTuple
from softeval.scoring.judge import Verdict

ROW = "softeval_row"
"""Field of every document: its row number in the data set. It names the question in the keys of
random numbers and of the store, however the documents were selected."""

_GREEDY: dict[str, Any] = {"do_sample": False, "temperature": 0.0, "top_p": 1.0, "top_k": 1}
"""Values with which a task asks for ordinary greedy text; they leave everything to the mode."""


def group_requests(
    requests: Sequence[Instance],
    encode: Callable[[str], list[int]],
    options: GenerationOptions,
    mode: Mode,
) -> dict[Question, list[int]]:
    """The questions behind requests, each with the places of its samples in their list.

    Place i of a question holds its sample i, a copy of the last one from `len(samples)` on.

    Args:
        requests: as lm-eval passes them to ``generate_until``.
        encode: text to token ids.
        options: those of the model.
        mode: its CoT mode.

    Raises:
        UserError: task and model disagree on the number of samples, or a generation argument that
            the modes do not have.
    """
    questions: dict[int, Question] = {}
    places: dict[Question, list[int]] = {}
    for place, request in enumerate(requests):
        if id(request) not in questions:
            questions[id(request)] = _question(request, encode, options, mode)
        places.setdefault(questions[id(request)], []).append(place)
    return places


def _question(
    request: Instance, encode: Callable[[str], list[int]], options: GenerationOptions, mode: Mode
) -> Question:
    task, repeats, expected = (
        str(request.task_name),
        request.repeats or 1,
        options.samples_under(mode),
    )
    if options.num_samples is not None and repeats != expected:
        raise UserError(
            f"{task} asks for {repeats} samples a question, the model for {expected}: write"
            f" `repeats: {expected}` into the task's YAML (softeval's own tasks: load them with"
            f" metadata num_samples={expected} and the mode's name)"
        )
    _check_arguments(task, request.args[-1], options.limits.tokens)
    # A question may come with several requests; each is a question of its own here.
    name = task if request.idx == 0 else f"{task}#{request.idx}"
    samples = tuple(range(1 if mode.is_greedy else repeats))
    return Question(name, question_id(request), tuple(encode(request.args[0])), samples)


def stop_strings(request: Instance) -> tuple[str, ...]:
    """Strings at which the text of a request is cut."""
    until = request.args[-1].get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


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


def texts_of(
    requests: Sequence[Instance],
    places: Mapping[Question, Sequence[int]],
    done: Mapping[SampleKey, Generation],
    store: GenerationStore | None,
    mode: str,
) -> list[str]:
    """The text of each request, with what the store judged of it.

    Args:
        requests: as lm-eval passes them to ``generate_until``.
        places: of `group_requests`.
        done: every sample of every question.
        store: where they are judged, if anywhere.
        mode: name of the CoT mode.
    """
    texts: list[str] = [""] * len(requests)
    for question, found in places.items():
        keys = question.keys
        for index, place in enumerate(found):
            key = keys[min(index, len(keys) - 1)]
            judged = None if store is None else store.verdict(key, mode)
            texts[place] = GenText.of(done[key], stop_strings(requests[place]), judged)
    return texts


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

    def get_likelihood(self, task: str, doc_id: int, choice: int, /) -> ScoreTuple | None:
        """The score of one continuation, or None where it is not finished."""
        ...

    def add_likelihood(self, task: str, doc_id: int, choice: int, score: ScoreTuple, /) -> None:
        """Keep the score of one continuation."""
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
