"""lm-eval's flat list of requests, put back into questions with samples.

lm-eval gives a question that wants n samples as the same object n times in a row, and with several
processes appends further copies of the last one so that all processes have equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance

from softeval.errors import UserError
from softeval.lmeval.store import question_id

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
