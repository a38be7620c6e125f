r"""A protocol: how a question becomes a prompt, when its CoT ends, and where its answer stands.

The paper's is kept to the letter (appendices B and C): zero-shot, plain text, no chat template; the
CoT ends at "The final answer is:", a box is opened behind it, and the answer is what closes the box.
Thinking models were trained on other texts, and are run as they were trained. A protocol holds texts
only; `softeval.model.stopping` applies its stop rule to the tokens of one tokenizer.

Knows nothing of models, tokenizers or data sets.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from softeval.errors import UserError

PLACE = "QUESTION"
"""Stands for the question in a prompt template."""
BOX = "\\boxed{"

PAPER_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first shows the complete reasoning process step by step, then provides the "
    "final answer in \\boxed{}. The assistant must always follow the format: 'User: [question] "
    "Assistant: [detailed reasoning] The final answer is: \\boxed{[answer]}.' User: QUESTION "
    "Assistant:"
)
"""The prompt of paper appendix B."""

Chat = Callable[[list[dict[str, str]]], str]
"""A chat template: messages, each with "role" and "content", to one text that opens the reply."""


class Example(NamedTuple):
    """A question with its answer, shown before the one that is asked; the solution may be empty."""

    question: str
    solution: str
    target: str


@dataclass(frozen=True)
class Protocol:
    """How a model is asked; the defaults are the paper's.

    Attributes:
        name: of the preset that it began as.
        prompt: template of what the user says, with `PLACE` in it once.
        system: system text; without a chat template it stands before everything else.
        num_fewshot: examples of the training split before the question.
        chat: wrap what user and system say in the tokenizer's chat template.
        opening: what the reply begins with, unless the chat template has written it.
        cot_stop: text, or single token, that ends the CoT; put there where it did not come.
        gap: between CoT, stop and answer prefix, where there is no white space.
        answer_prefix: text between the CoT's stop and the answer.
        max_cot_tokens: cap on the CoT where nobody sets one; None leaves it to others.
        max_answer_tokens: likewise on the answer.
    """

    name: str = "paper"
    prompt: str = PAPER_PROMPT
    system: str | None = None
    num_fewshot: int = 0
    chat: bool = False
    opening: str = ""
    cot_stop: str = "The final answer is:"
    gap: str = " "
    answer_prefix: str = BOX
    max_cot_tokens: int | None = None
    max_answer_tokens: int = 32

    @property
    def opens_box(self) -> bool:
        """Whether the answer is what closes the prefix's box; else it is the last box before the end."""
        return self.answer_prefix.rstrip().endswith(BOX)

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the paper's protocol and changes samples, beside chat and caps."""
        ours, papers = asdict(self), asdict(PAPER)
        return {n: v for n, v in ours.items() if n not in _NO_CHANGE and v != papers[n]}

    @property
    def stops(self) -> dict[str, str]:
        """What decides, beside caps, when a CoT ends and what follows it."""
        return {"cot_stop": self.cot_stop, "gap": self.gap, "answer_prefix": self.answer_prefix}

    @property
    def is_literal(self) -> bool:
        """Whether a CoT ends only where its text ends with the stop, as the paper says.

        Elsewhere it also ends with a token that completes the stop and goes on beyond it, as
        ``:**`` does in "**The final answer is:**".
        """
        return self.prompt == PAPER.prompt and self.stops == PAPER.stops

    @property
    def is_paper(self) -> bool:
        """Whether samples are those of the paper's protocol."""
        return not self.changes and not self.chat

    def ask(self, question: str) -> str:
        """What the user says; the question is put in unchanged, white space included."""
        return question.join(self.prompt.split(PLACE))

    def whole_prompt(
        self, question: str, examples: Sequence[Example] = (), chat: Chat | None = None
    ) -> str:
        """All that the model is given.

        Args:
            question: what is asked.
            examples: those to choose from, one more than are shown: never the question itself.
            chat: the chat template, where the protocol wants one.

        Raises:
            UserError: the template does not let the model think.
        """
        asked_words = question.split()
        others = (e for e in examples if e.question.split() != asked_words)
        shown = islice(others, self.num_fewshot)
        turns = [(self.ask(example.question), self._reply(example)) for example in shown]
        asked = self.ask(question)
        if self.chat:
            assert chat is not None, "a chat needs a template"
            said = [("system", self.system)] if self.system else []
            said += [one for turn in turns for one in zip(("user", "assistant"), turn, strict=True)]
            text = chat([{"role": r, "content": c} for r, c in [*said, ("user", asked)]])
        else:
            before = [self.system] if self.system else []
            text = "\n\n".join([*before, *(f"{said} {reply}" for said, reply in turns), asked])
        if self.opening and text.rstrip().endswith(self.cot_stop):
            raise UserError(
                f"the prompt ends with {self.cot_stop}, so that nothing could be thought; take a chat"
                " template that leaves the thought open, or --protocol chat"
            )
        opened = text.rstrip().endswith(self.opening.strip())
        return text if opened else text + self.opening

    def prefill(self, cot_text: str, *, stopped: bool) -> str:
        """Text between CoT and answer: the stop, unless the CoT `stopped` at it, and the prefix."""
        parts = [self.answer_prefix] if stopped else [self.cot_stop, self.answer_prefix]
        text = self.gap.join(part for part in parts if part)
        needs_gap = text and cot_text and not cot_text[-1].isspace()
        return f"{self.gap}{text}" if needs_gap else text

    def describe(self) -> str:
        """One line: the preset's name, and what was set beside it."""
        preset = asdict(PROTOCOLS[self.name])
        said = [f"{n} {reprlib.repr(v)}" for n, v in asdict(self).items() if v != preset[n]]
        return ", ".join([self.name, *said])

    def _reply(self, example: Example) -> str:
        """An example's solution and answer, written as this protocol wants them."""
        if not self.opens_box:
            return f"{example.solution} {BOX}{example.target}}}".lstrip()
        thought = f"{self.opening}{example.solution}"
        return f"{thought}{self.prefill(thought, stopped=False)}{example.target}}}"


_NO_CHANGE = ("name", "chat", "max_cot_tokens", "max_answer_tokens")
PAPER = Protocol()
CHAT = Protocol(
    name="chat",
    prompt=f"{PLACE}\n\nReason step by step, and end with 'The final answer is: \\boxed{{[answer]}}'.",
    chat=True,
)
THINK = Protocol(
    name="think",
    prompt=f"{PLACE}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    chat=True,
    opening="<think>\n",
    cot_stop="</think>",
    gap="\n",
    answer_prefix="",
    max_cot_tokens=8192,
    max_answer_tokens=1024,
)
PROTOCOLS = {protocol.name: protocol for protocol in (PAPER, THINK, CHAT)}
PROMPTS = {"paper": PAPER_PROMPT, "plain": PLACE}
"""Templates that --prompt knows by name."""


def read_template(given: str) -> str:
    """A prompt template by name, or from a file, without the line break at its end.

    Raises:
        UserError: unreadable, or the question's place is not in it exactly once.
    """
    if given in PROMPTS:
        return PROMPTS[given]
    try:
        text = Path(given).expanduser().read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(PROMPTS)
        raise UserError(
            f"--prompt {given} cannot be read ({error}); give a text, or {known}"
        ) from None
    if text.count(PLACE) != 1:
        raise UserError(
            f"--prompt {given} has the word {PLACE} {text.count(PLACE)} times; it stands for the"
            " question, once"
        )
    return text


def recorded_protocol(record: Mapping[str, Any]) -> Protocol:
    """The protocol of a run's record; one of before they were recorded had the paper's."""
    known = {field.name for field in fields(Protocol)}
    found = {n: v for n, v in (record.get("protocol") or {}).items() if n in known}
    chat = bool((record.get("config") or {}).get("apply_chat_template"))
    return replace(PAPER, **({"chat": chat} | found))
