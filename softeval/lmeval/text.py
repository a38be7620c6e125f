"""What the adapter hands to lm-eval: plain values that carry more than lm-eval knows of.

lm-eval passes generated texts as `str` and scores as pairs. These sub-classes look like them to
every filter, logger and JSON writer, and survive pickling between processes.
"""

from __future__ import annotations

from typing import Any, Self

from softeval.records import Generation


class GenText(str):
    """The whole text of a generation (CoT, prefill, answer) with what is known about it.

    Attributes:
        meta: scalars, none of a text that is no sample: mode, sample, answer, stop_reason, answer_stop, n_cot_tokens,
            n_answer_tokens, mean_entropy (nats), seconds.
        generation: the record itself; None after pickling, which drops its arrays.
    """

    meta: dict[str, Any]
    generation: Generation | None

    def __new__(
        cls,
        text: object = "",
        meta: dict[str, Any] | None = None,
        generation: Generation | None = None,
    ) -> Self:
        # Anything, like `str`: lm-eval makes the label a text of the type of the result.
        self = super().__new__(cls, text)
        self.meta = {} if meta is None else meta
        self.generation = generation
        return self

    @classmethod
    def of(cls, generation: Generation, until: tuple[str, ...] = ()) -> GenText:
        """Wrap a generation; the text ends before the first of the stop strings, as in lm-eval."""
        text = generation.text
        for stop in until:
            if stop:
                text = text.split(stop, 1)[0]
        return cls(text, _scalars(generation), generation)

    def __reduce__(self) -> tuple[Any, ...]:
        return (GenText, (str(self), self.meta))


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
