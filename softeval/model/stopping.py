"""When a CoT or an answer ends, by its text or its caps, and what is prefilled between them (paper appendix C).

Knows text and token ids, not tensors. The paper stops when the generated text ends with
"The final answer is: ". With byte-pair vocabularies the space after the colon belongs to the next
token, so the test here is on the right-stripped text, and the prefill continues it with exactly one
space before the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from softeval.errors import UserError
from softeval.records import StopReason
from softeval.scoring.boxed import closing_brace

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel

ANSWER_PREFIX = "The final answer is:"
BOX = "\\boxed{"

_TAIL = 32
"""Tokens decoded for the test: the prefix has 20 characters, so 32 tokens hold it in any tokenizer
of at least one character a token, white space after it included."""


@dataclass(frozen=True)
class Limits:
    """Caps of a generation (paper appendix C), in tokens; the prefill is not counted."""

    max_cot_tokens: int = 512
    max_answer_tokens: int = 32

    @property
    def tokens(self) -> int:
        """CoT and answer together."""
        return self.max_cot_tokens + self.max_answer_tokens

    def room(self, model: LanguageModel | Checkpoint) -> int:
        """Positions that a sample can take beside its prompt."""
        return self.tokens + model.stopper.longest_prefill


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
    """The stop rules for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # The right-stripped text can only come to end in a colon with a token that holds one, and
        # only a token that holds a brace can close one.
        self.colon_ids = _holding(":", tokenizer)
        self.brace_ids = _holding("}", tokenizer)

    def ends_cot(self, shadow_ids: Sequence[int]) -> bool:
        """Whether the CoT's shadow text now ends with the answer prefix."""
        if shadow_ids[-1] not in self.colon_ids:
            return False
        return self.decode(shadow_ids[-_TAIL:]).rstrip().endswith(ANSWER_PREFIX)

    def prefill_text(self, cot_text: str, stop_reason: StopReason) -> str:
        """Text between CoT and answer.

        After an early stop the box follows with one space; after the cap or an end-of-sequence
        token the whole answer prefix comes first.
        """
        gap = "" if not cot_text or cot_text[-1].isspace() else " "
        found = stop_reason is StopReason.ANSWER_PREFIX
        return gap + (BOX if found else f"{ANSWER_PREFIX} {BOX}")

    def prefill_ids(self, cot_text: str, stop_reason: StopReason) -> tuple[int, ...]:
        """Token ids of `prefill_text`."""
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
        """Content of the box once a brace closes it, else None."""
        text = self.decode(answer_ids)
        end = closing_brace(text)
        return None if end is None else text[:end]


def _holding(character: str, tokenizer: Any) -> frozenset[int]:
    """Tokens with this character in them, or its byte."""
    byte = f"<0x{ord(character):02X}>"
    vocab = tokenizer.get_vocab()
    return frozenset(id for text, id in vocab.items() if character in text or text == byte)
