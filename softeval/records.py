"""What one generation is, and the tables that a run directory holds.

Knows nothing of models, tasks or files. Every table on disk has its Arrow schema here; a change of
columns or meaning raises `SCHEMA_VERSION`.

Shapes: T chain-of-thought (CoT) positions, D embedding width, K recorded mixture entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

SCHEMA_VERSION = 3

RANDOM_NUMBERS = "philox4x32-10"
"""Where samples draw from; what another generator drew (schema versions 1 and 2) cannot be drawn again."""

GROUP = "group"
"""Column of prompts.parquet, the part of its task that a question belongs to; null where it has none."""

MIXTURE_SAMPLES = 1
"""Mixture entries are kept of the first samples of a question: they are many, and for looking at."""


class StopReason(StrEnum):
    """Why a CoT ended (method, paper appendix C); MODE: the mode itself ended it (cold stop)."""

    ANSWER_PREFIX = "answer_prefix"
    EOS = "eos"
    LENGTH = "length"
    MODE = "mode"


class AnswerStop(StrEnum):
    """Why an answer ended: its box was closed, an end-of-sequence token came, or the cap."""

    CLOSED = "closed"
    EOS = "eos"
    LENGTH = "length"


STOP_WORDS = {
    "answer_prefix": "announced its answer",
    "closed": "closed its box",
    "eos": "ended the text",
    "length": "was cut at the cap",
    "mode": "was ended by the mode's own rule",
}
"""What is said of a CoT or an answer that ended for a reason."""


@dataclass(frozen=True)
class SampleKey:
    """What names a generation inside one run and mode; also the key of its random numbers."""

    task: str
    doc_id: int
    sample: int


@dataclass(frozen=True, eq=False)
class Generation:
    r"""One sample: a CoT of T positions, the prefill and the answer.

    Position t of the CoT is predicted by the logits at position t-1 (t = 0: by those of the last
    prompt token). A CoT that ends with an end-of-sequence token holds that token as its last
    position, and it is fed like any other.

    Attributes:
        key: task, question and sample index.
        mode: name of the CoT mode.
        cot_text: decoded shadow tokens.
        prefill_text: what the decoder put between CoT and answer, up to and with ``\boxed{``.
        answer: content of the box; None where no brace closed it.
        answer_text: everything decoded after the prefill.
        stop_reason: why the CoT ended.
        answer_stop: why the answer ended.
        prompt_ids: token ids of the prompt.
        shadow_ids: (T,) argmax token at each position; the token drawn in hard_sample.
        prefill_ids: token ids of the prefill.
        answer_ids: token ids of the answer, the closing token with it.
        entropy: (T,) entropy in nats of the next-token distribution at temperature 1.
        mode_entropy: (T,) the same at the mode's own temperature.
        top1_prob: (T,) largest probability at temperature 1.
        top_ids: (T, K) token ids of the K largest entries of the mode's distribution; K may be 0.
        top_probs: (T, K) their probabilities.
        inputs: (T, D) vectors as given to the model's ``inputs_embeds``, where they were kept; in the
            model's dtype and on its device. With per-layer embeddings these stand behind, in one row.
        record: (T, R) what the mode recorded for its log-probability, float32, where it was kept.
        seconds: wall-clock seconds from admission to the batch until the end.
    """

    key: SampleKey
    mode: str
    cot_text: str
    prefill_text: str
    answer: str | None
    answer_text: str
    stop_reason: StopReason
    answer_stop: AnswerStop
    prompt_ids: np.ndarray
    shadow_ids: np.ndarray
    prefill_ids: np.ndarray
    answer_ids: np.ndarray
    entropy: np.ndarray
    mode_entropy: np.ndarray
    top1_prob: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    inputs: Tensor | None
    seconds: float
    record: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions of the whole sequence, the prompt's with them."""
        parts = (self.prompt_ids, self.shadow_ids, self.prefill_ids, self.answer_ids)
        return sum(map(len, parts))

    @property
    def choices(self) -> int:
        """What the policy chose: CoT steps and answer tokens."""
        return len(self.shadow_ids) + len(self.answer_ids)

    @property
    def text(self) -> str:
        """CoT, prefill and answer as one text."""
        return self.cot_text + self.prefill_text + self.answer_text


class ScoreTuple(tuple[float, bool]):
    """(log-probability in nats, whether greedy) of a scored continuation, with its number of tokens.

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


@cache
def samples_schema() -> pa.Schema:
    """One row a generation; sorted by task, mode, doc_id, sample."""
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("mode", pa.string()),
            ("sample", pa.int32()),
            ("prompt_hash", pa.string()),
            ("cot_text", pa.string()),
            ("prefill", pa.string()),
            ("answer_text", pa.string()),
            ("answer", pa.string()),  # null: no box was closed
            ("target", pa.string()),
            ("correct", pa.bool_()),
            ("verdict", pa.string()),  # ok | no_answer | timeout | error | not_judged
            ("stop_reason", pa.string()),
            ("answer_stop", pa.string()),
            ("n_cot_tokens", pa.int32()),
            ("n_answer_tokens", pa.int32()),
            ("seconds", pa.float32()),
            ("other_correct", pa.bool_()),  # by the rules that did not give "correct"
            ("target_error", pa.float64()),  # how far a number may be from the label's
        ]
    )


@cache
def positions_schema() -> pa.Schema:
    """One row a generation, sorted like the samples; its CoT positions as lists. Entropies in nats.

    The mixture lists hold K entries a position, the largest first; null where none were kept.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("mode", pa.string()),
            ("sample", pa.int32()),
            ("entropy", _list(pa.float32())),  # of the temperature-1 distribution
            ("mode_entropy", _list(pa.float32())),  # at the mode's own temperature
            ("top1_prob", _list(pa.float32())),  # at temperature 1
            ("shadow_id", _list(pa.int32())),
            ("mixture_id", _list(pa.int32())),
            ("mixture_prob", _list(pa.float32())),
        ]
    )


def _list(element: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return pa.list_(pa.field("element", element, nullable=False))


@cache
def position_rows_schema() -> pa.Schema:
    """One row a CoT position: the positions as `softeval.Run` gives them, and schema 1 had them."""
    import pyarrow as pa

    number = pa.float32()
    values = [("entropy", number), ("mode_entropy", number), ("top1_prob", number)]
    return _rows_schema([*values, ("shadow_id", pa.int32())])


@cache
def mixture_rows_schema() -> pa.Schema:
    """One row a mixture entry, likewise; rank 0 is the largest of its position."""
    import pyarrow as pa

    return _rows_schema([("rank", pa.int8()), ("token_id", pa.int32()), ("prob", pa.float32())])


def _rows_schema(values: list[tuple[str, pa.DataType]]) -> pa.Schema:
    import pyarrow as pa

    name, number = pa.dictionary(pa.int16(), pa.string()), pa.int32()
    keys = [("task", name), ("doc_id", number), ("mode", name), ("sample", number)]
    return pa.schema([*keys, ("position", number), *values])


@cache
def prompts_schema(grouped: bool = False) -> pa.Schema:
    """One row a question: the exact prompt that was given to the model, and the label.

    Args:
        grouped: whether a task of the run has parts; the last column then names the question's.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("prompt_hash", pa.string()),
            ("prompt", pa.string()),
            ("target", pa.string()),
            *([(GROUP, pa.string())] if grouped else []),
        ]
    )


@cache
def tokens_schema() -> pa.Schema:
    """Text of each token id that the positions name."""
    import pyarrow as pa

    return pa.schema([("token_id", pa.int32()), ("text", pa.string())])


@cache
def likelihoods_schema() -> pa.Schema:
    """One row a question of a log-likelihood task. NLL in nats, of the correct answer."""
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("target", pa.int32()),  # index of the correct choice
            ("prediction", pa.int32()),  # index of the most likely choice
            ("correct", pa.bool_()),
            ("nll", pa.float64()),
            ("n_tokens", pa.int32()),
            ("nll_per_token", pa.float64()),
        ]
    )


PREFIX_SETS = ("base", "own", "gold")
"""Sets of prefixes along which `softeval diagnose` measures KL, as they are shown."""


@cache
def kl_schema() -> pa.Schema:
    """One row a replayed prefix, as `softeval diagnose` measures it. KL in nats, a position each."""
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("mode", pa.string()),  # that made the prefix; "" for gold
            ("sample", pa.int32()),
            ("prefix_set", pa.string()),  # own | base | gold
            ("forward", _list(pa.float32())),  # KL(base‖checkpoint)
            ("reverse", _list(pa.float32())),  # KL(checkpoint‖base)
        ]
    )


INTERVENTIONS = (
    "unchanged", "top1", "noise_only", "shuffled", "donor", "cut_25", "cut_50", "cut_75",
)  # fmt: skip
"""What `softeval attribute` changes of a CoT, as it is shown; `unchanged` is the check of the replay."""

CONTROLS = ("matched_hard", "stop_rule")
"""Hard CoTs that it decodes in the place of a mode's own: tokens drawn from the mode's distribution, and
the same ended by the mode's stop rule."""


@cache
def attribution_schema() -> pa.Schema:
    """One row a replayed CoT, as `softeval attribute` decodes its answer."""
    import pyarrow as pa

    return pa.schema(
        [
            ("task", pa.string()),
            ("doc_id", pa.int32()),
            ("mode", pa.string()),
            ("sample", pa.int32()),
            ("intervention", pa.string()),  # one of `INTERVENTIONS` and `CONTROLS`
            ("stop_reason", pa.string()),  # of the CoT before this answer
            ("answer_text", pa.string()),
            ("answer", pa.string()),  # null: no box was closed
            ("changed", pa.bool_()),  # another answer than the recorded one
            ("correct", pa.bool_()),
            # Of unchanged CoTs, over some of their steps; null elsewhere.
            ("steps", pa.int32()),
            ("agreeing", pa.int32()),  # same next token after the shadow token's embedding
            ("step_kl", pa.float64()),  # mean KL(after the mode's mixture‖after what was fed), nats
        ]
    )
