"""What a chain-of-thought (CoT) mode is: the seam between a way of thinking and everything else.

A mode is a frozen dataclass. Its fields are its options: the command line takes them as
``--mode-args``, run.json stores them. `family` and `is_greedy` are data that reports group by, so
nothing has to know a mode by its name. What a mode does is in four methods: `probs` (its
distribution over tokens), `step` (which vector is fed next), `log_prob` (of having fed it, for
training) and `replay` (the same step through another model).

Knows nothing of prompts, batches or files. Rows are independent: no method may mix them.

Shapes: N rows, V vocabulary (ids the tokenizer knows), D embedding width, R recorded numbers.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from softeval.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAMING = ("name", "family")
"""Fields of every mode that name it rather than set it."""


class Randomness(StrEnum):
    """Which random numbers a mode asks for at each step and row."""

    NONE = "none"
    UNIFORM = "uniform"
    NORMAL = "normal"


class Draws(NamedTuple):
    """Kind and width of a step's random numbers: (N, width), and (N,) for uniforms of width 1.

    A number costs some ten integer operations a word of 32 bits, so a width of V makes a step of a
    large vocabulary slow on a CPU.
    """

    kind: Randomness
    width: int = 1


class Embedding(Protocol):
    """Input embedding matrix E as the model's first layer really sees it."""

    @property
    def rms(self) -> float: ...
    @property
    def width(self) -> int: ...
    @property
    def fed_width(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def rows(self, ids: Tensor) -> Tensor: ...
    def mix(self, probs_NV: Tensor) -> Tensor: ...


class Head(Protocol):
    """Output head: the logits that a hidden state gives, as the decoder has them."""

    @property
    def matrix_VD(self) -> Tensor: ...
    def logits(self, hidden_ND: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What the model shows at a step.

    Attributes:
        logits_NV: next-token logits in the chosen precision.
        embedding: the model's input embedding.
        hidden_ND: last hidden state that the logits were made of; None where the architecture
            has no output head to read it at.
        head: output head that made the logits; None for a mode that does not ask for it.
    """

    logits_NV: Tensor
    embedding: Embedding
    hidden_ND: Tensor | None = None
    head: Head | None = None

    @property
    def thought_ND(self) -> Tensor:
        """The last hidden state, for a mode that cannot do without.

        Raises:
            UserError: the architecture shows none, or one of another width than its input.
        """
        if self.hidden_ND is None or self.hidden_ND.shape[-1] != self.embedding.fed_width:
            raise UserError(
                "this architecture shows no last hidden state as wide as its input embedding; "
                "use another checkpoint, or a mode that needs none"
            )
        return self.hidden_ND


class Step(NamedTuple):
    """One CoT step.

    Attributes:
        inputs_ND: vectors to feed, in the dtype the model is fed.
        shadow_N: token ids (int64) that stand for them in the CoT's text.
        record_NR: numbers that `log_prob` needs besides these two, float32; None where it needs none.
        state: the rows' next state; None for a mode without.
        ends_N: rows whose CoT ends here; their vector is not fed, the answer follows at once.
    """

    inputs_ND: Tensor
    shadow_N: Tensor
    record_NR: Tensor | None = None
    state: Tensor | None = None
    ends_N: Tensor | None = None


class Taken(NamedTuple):
    """N steps that were taken, as a rollout recorded them: `Step` without what is gone.

    Attributes:
        fed_ND: vectors that were fed; None in a mode that feeds tokens.
        shadow_N: shadow tokens.
        record_NR: `Step.record_NR`.
        drawn_NX: the random numbers that were drawn, where they were normals.
    """

    fed_ND: Tensor | None
    shadow_N: Tensor
    record_NR: Tensor | None = None
    drawn_NX: Tensor | None = None

    def part(self, rows: slice) -> Taken:
        """Some of the steps."""
        return Taken(
            self.fed_ND if self.fed_ND is None else self.fed_ND[rows],
            self.shadow_N[rows],
            self.record_NR if self.record_NR is None else self.record_NR[rows],
            self.drawn_NX if self.drawn_NX is None else self.drawn_NX[rows],
        )


@dataclass(frozen=True)
class Mode(ABC):
    """A way to think. Sub-classes are frozen dataclasses; every further field is an option.

    Attributes:
        name: what users call it, unique.
        family: modes that reports show together, such as soft_greedy and soft_sample: "soft".
    """

    name: str
    family: str

    feeds_tokens: ClassVar[bool] = False
    """Whether every fed vector is the embedding of the shadow token."""
    is_gaussian: ClassVar[bool] = False
    """Whether a sampled step is a mixture plus Gaussian noise, so that χ²/d and ties are defined."""
    asks_host: ClassVar[bool] = False
    """Whether a step computes something on the host, so that it cannot be captured on a GPU."""

    @property
    def meaning(self) -> str:
        """What a step feeds, in a sentence: the first paragraph of the class's docstring."""
        own = type(self).__doc__ or ""  # the dataclass makes one where none was written
        made = own.startswith(f"{type(self).__name__}(")
        return "" if made else " ".join(own.split("\n\n")[0].split())

    @property
    def randomness(self) -> Randomness:
        """Which random numbers a step takes."""
        return Randomness.NONE

    def draws(self, embedding: Embedding) -> Draws:
        """Kind and width of a step's random numbers: one uniform or D normals by default."""
        kind = self.randomness
        return Draws(kind, embedding.width if kind is Randomness.NORMAL else 1)

    @property
    def silent_steps(self) -> int:
        """Steps at the beginning of a CoT whose shadow is no text that could end it."""
        return 0

    @property
    def needs_head(self) -> bool:
        """Whether a step reads the output head."""
        return False

    @property
    def has_stop_rule(self) -> bool:
        """Whether a step may end the CoT by itself (`Step.ends_N`)."""
        return False

    @property
    def is_greedy(self) -> bool:
        """Whether every sample of a question is the same."""
        return self.randomness is Randomness.NONE

    @property
    def is_plain(self) -> bool:
        """Whether `probs` is softmax(z) itself, so that its entropy need not be taken twice."""
        return False

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its value."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in NAMING]
        return {name: getattr(self, name) for name in names}

    def facts(self, embedding: Embedding) -> dict[str, Any]:
        """What a run records besides the options, from the checkpoint at hand."""
        return {}

    def greedy(self) -> Mode | None:
        """The same mode without randomness, where there is one; validation in training uses it."""
        return self if self.is_greedy else None

    def begin(self, rows: int, device: torch.device) -> Tensor | None:
        """(rows, …) state of rows at their first step; None for a mode without state.

        The decoder keeps the state beside each row and hands it to `step`.
        """
        return None

    @abstractmethod
    def probs(self, seen: Seen) -> Tensor:
        """(N, V) the mode's own distribution over tokens, float32, before any noise."""

    @abstractmethod
    def step(
        self, seen: Seen, probs_NV: Tensor, drawn: Tensor | None, state: Tensor | None
    ) -> Step:
        """Choose what is fed next.

        Args:
            seen: what the model shows.
            probs_NV: `probs(seen)`.
            drawn: the random numbers that `draws` asks for; None in a greedy mode.
            state: the rows' state; None for a mode without.
        """

    def log_prob(self, seen: Seen, taken: Taken) -> Tensor:
        """(N,) log-density of the steps, nats, up to a constant; differentiable in the logits.

        Raises:
            UserError: the mode has no density, so it cannot be trained.
        """
        raise UserError(f"{self.name} has no log-probability; train with a sampled mode")

    def fused_log_prob(self, kernels: Kernels, taken: Taken) -> Fused | None:
        """`log_prob` by the memory-saving kernels of the trainer; None takes `log_prob` itself."""
        return None

    @property
    def has_density(self) -> bool:
        """Whether the mode can be trained."""
        return not self.is_greedy and type(self).log_prob is not Mode.log_prob

    def replay(self, seen: Seen, taken: Taken, other: Embedding) -> Tensor:
        """(N, D) the same steps through another model's embedding, in float32 or its dtype.

        The same weights over tokens, and the same difference between what was fed and their
        mixture: a noise vector, in the paper's modes.
        """
        if self.feeds_tokens or taken.fed_ND is None:
            return other.rows(taken.shadow_N)
        probs_NV = self.probs(seen)
        return other.mix(probs_NV) + (taken.fed_ND.float() - seen.embedding.mix(probs_NV))


class Kernels(Protocol):
    """Chunked kernels over N positions whose logits are never held at once (trainers)."""

    @property
    def embedding(self) -> Embedding: ...
    @property
    def recorded_noise(self) -> bool: ...
    def token_log_probs(self, ids_N: Tensor, temperature: float) -> Tensor: ...
    def mixtures(self, temperature: float) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Fused:
    """Log-probabilities by the kernels, and what was seen on the way.

    Attributes:
        log_prob_N: nats, up to a constant.
        sigma: σ of a Gaussian step; None of another.
        squared_N: ‖h̃ - pE‖²/σ² of a Gaussian step, of mean D under the policy; detached.
        mixed_ND: the mixtures pE; detached.
        tied_N: whether a step's two largest logits are equal.
        mismatched_N: whether pE is another mixture than the rollout's.
    """

    log_prob_N: Tensor
    sigma: float | None = None
    squared_N: Tensor | None = None
    mixed_ND: Tensor | None = None
    tied_N: Tensor | None = None
    mismatched_N: Tensor | None = None


def mode_record(mode: Mode) -> dict[str, Any]:
    """What a run stores of a mode: name, family, nature and every option."""
    nature = {"is_greedy": mode.is_greedy, "feeds_tokens": mode.feeds_tokens}
    return {"name": mode.name, "family": mode.family, **nature, **_plain(mode.options)}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, StrEnum) else v for k, v in options.items()}
