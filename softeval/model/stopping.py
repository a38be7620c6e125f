"""When a CoT or an answer ends, by its text or its caps: a protocol on the tokens of one tokenizer.

Knows text and token ids, not tensors. The paper stops when the generated text ends with
"The final answer is: " (appendix C). With byte-pair vocabularies the space after the colon belongs to
the next token, so the test here is on the right-stripped text, and the prefill continues it with
exactly one space before the box. Where a protocol is not the paper's, a token that holds the stop's
end and more ends the CoT, too. A stop that is a single added token, as ``</think>`` often is, is also
known by its id: the text may be without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.protocol import PAPER, Protocol
from softeval.records import StopReason
from softeval.scoring.boxed import boxed_content, closing_brace

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel

_SPARE = 12
"""Tokens decoded for the test beside one for each byte of the stop: white space may stand after it."""


@dataclass(frozen=True)
class Limits:
    """What ends a generation: caps (paper appendix C), in tokens, and the protocol's stop rule.

    The prefill is not counted.
    """

    max_cot_tokens: int = 512
    max_answer_tokens: int = 32
    protocol: Protocol = PAPER

    def __post_init__(self) -> None:
        if self.max_cot_tokens < 1 or self.max_answer_tokens < 1:
            raise UserError("--max-cot-tokens and --max-answer-tokens must be at least 1")

    @property
    def tokens(self) -> int:
        """CoT and answer together."""
        return self.max_cot_tokens + self.max_answer_tokens

    def room(self, model: LanguageModel | Checkpoint) -> int:
        """Positions that a sample can take beside its prompt."""
        return self.tokens + stopper_of(model.tokenizer, self.protocol).longest_prefill


def check_context(
    lengths: Sequence[tuple[int, str, int]],
    limits: Limits,
    model: LanguageModel | Checkpoint,
    further: str = "",
) -> None:
    """Refuse caps that do not leave the longest prompt its place in the context.

    Args:
        lengths: (tokens, task, doc_id) of each prompt.
        limits: the caps.
        model: what decodes them.
        further: another remedy.

    Raises:
        UserError: naming the question and the remedy; or a prompt without a token.
    """
    if not lengths:
        return
    shortest, task, doc_id = min(lengths)
    if not shortest:
        raise UserError(f"{task} question {doc_id}: the prompt has no token")
    longest, task, doc_id = max(lengths)
    spare = model.max_length - longest - limits.room(model)
    if spare < 0:
        fits = limits.max_cot_tokens + spare
        remedy = (
            f"lower --max-cot-tokens to at most {fits}"
            if fits > 0
            else "take a checkpoint with a longer context"
        )
        raise UserError(
            f"{task} question {doc_id} has {longest} prompt tokens; with {limits.max_cot_tokens} CoT"
            f" and {limits.max_answer_tokens} answer tokens it exceeds the context of"
            f" {model.max_length}; {remedy} {further}".rstrip()
        )


class Stopper:
    """The stop rules of a protocol for one tokenizer.

    Args:
        tokenizer: of the checkpoint.
        protocol: whose rules.

    Attributes:
        may_end_cot: tokens with which the text can come to end in the stop.
        may_end_answer: likewise tokens that can close the box, where one is open.
    """

    def __init__(self, tokenizer: Any, protocol: Protocol = PAPER) -> None:
        self.protocol = protocol
        self._tokenizer = tokenizer
        stop = protocol.cot_stop
        self.may_end_cot = _holding(stop[-1], tokenizer)
        self.may_end_answer = _holding("}", tokenizer) if protocol.opens_box else frozenset()
        self._stop_id: int | None = tokenizer.get_added_vocab().get(stop)
        self._tail = len(stop.encode()) + _SPARE

    def ends_cot(self, shadow_ids: Sequence[int]) -> bool:
        """Whether the last token brings the stop: by its id, or as what ends the shadow text."""
        if shadow_ids[-1] not in self.may_end_cot:
            return False
        tail, stop = shadow_ids[-self._tail :], self.protocol.cot_stop
        text = self.decode(tail)
        if shadow_ids[-1] == self._stop_id or text.rstrip().endswith(stop):
            return True
        if self.protocol.is_literal:
            return False
        return text.count(stop) > self.decode(tail[:-1]).count(stop)

    def has_stop(self, ids: Sequence[int]) -> bool:
        """Whether the stop is among these tokens."""
        return self._stop_id in ids or self.protocol.cot_stop in self.decode(ids)

    def prefill_text(self, cot_text: str, stop_reason: StopReason) -> str:
        """Text between CoT and answer.

        After the stop the answer prefix follows; after the cap or an end-of-sequence token the stop
        comes first.
        """
        return self.protocol.prefill(cot_text, stopped=stop_reason is StopReason.ANSWER_PREFIX)

    def prefill_ids(self, cot_text: str, stop_reason: StopReason) -> tuple[int, ...]:
        """Token ids of `prefill_text`; none after the stop of a protocol without a prefix."""
        return self._encode(self.prefill_text(cot_text, stop_reason))

    @lru_cache(maxsize=16)  # noqa: B019 - a handful of texts, and a stopper lives as long as its model
    def _encode(self, text: str) -> tuple[int, ...]:
        return self.continuation_ids(text)

    def continuation_ids(self, text: str) -> tuple[int, ...]:
        """Ids that continue a text: encoded behind an anchor, as some tokenizers add a space."""
        anchor = self._tokenizer.encode("is:", add_special_tokens=False)
        whole = self._tokenizer.encode("is:" + text, add_special_tokens=False)
        if whole[: len(anchor)] == anchor:
            return tuple(whole[len(anchor) :])
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    @property
    def longest_prefill(self) -> int:
        """Tokens of the longest prefill, for context checks."""
        return max(len(self.prefill_ids(text, r)) for text in ("x", " ") for r in StopReason)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces as they are."""
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def closed_answer(self, answer_ids: Sequence[int]) -> str | None:
        """Content of the box once a brace closes it, else None; of the last box where none was open."""
        text = self.decode(answer_ids)
        if not self.protocol.opens_box:
            return boxed_content(text)
        end = closing_brace(text)
        return None if end is None else text[:end]


@lru_cache(maxsize=8)
def stopper_of(tokenizer: Any, protocol: Protocol) -> Stopper:
    """The stop rules, made once: they read the whole vocabulary."""
    return Stopper(tokenizer, protocol)


def _holding(character: str, tokenizer: Any) -> frozenset[int]:
    """Tokens with this character in them, or its byte; any token where it is of several bytes."""
    vocab = tokenizer.get_vocab()
    if not character.isascii():  # byte-level vocabularies spell its bytes with other characters
        return frozenset(vocab.values())
    byte = f"<0x{ord(character):02X}>"
    return frozenset(id for text, id in vocab.items() if character in text or text == byte)
