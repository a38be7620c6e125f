"""How much memory a training run will take on each device, told before anything is loaded.

Weights, masters, moments and gradients follow from the number of parameters; what a sequence adds is
measured on a model without storage (`meta_model`), so that the configuration of a checkpoint is enough.
Whether a run of several processes shards its weights is decided here, too: where it does not fit otherwise.

Bytes throughout; GiB where people read. Knows nothing of files or rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from softeval.errors import UserError
from softeval.model.checkpoint import torch_device
from softeval.model.feeding import tiled
from softeval.model.language_model import LanguageModel
from softeval.model.mends import long_rope_limit
from softeval.model.output_head import CHUNK_ELEMENTS
from softeval.model.weights import meta_model
from softeval.trainers.config import TrainConfig
from softeval.trainers.meta_model import position_bytes, saved_bytes, tensors_of
from softeval.trainers.questions import Lengths
from softeval.trainers.setup import Adapters, recompute_activations

GIB = 2**30
LIBRARIES = 32 * 2**20
"""What torch and the interpreter take beside all tensors once a run is under way."""
MOST_DEVICES = 64
USABLE = {"cuda": 0.95}
"""Share of a device's memory that tensors can have: the driver's context and gaps take the rest."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes on one device, in bytes.

    Attributes:
        standing: held between the phases of an update, by name.
        phases: peak of each phase, what stands included.
        micro_batch: sequences of a training pass that this is for.
        sequence: bytes that one of them leaves for the backward pass.
        rows: sequences decoded at a time.
        row: bytes of one's keys and values.
        sharded: whether each process holds its part of masters, gradients and moments only.
    """

    standing: dict[str, int]
    phases: dict[str, int]
    micro_batch: int
    sequence: int
    rows: int
    row: int
    sharded: bool

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    def lines(self) -> list[str]:
        """The estimate for people."""
        named = [*self.standing.items(), *((f"peak of {n}", b) for n, b in self.phases.items())]
        return [
            *(f"{name:<32}{size / GIB:8.2f} GiB" for name, size in named),
            f"training pass: {self.micro_batch} sequences of {self.sequence / GIB:.3f} GiB",
            f"decoding: {self.rows} rows of {self.row / GIB:.3f} GiB",
        ]


class MemoryModel:
    """Estimates for one architecture.

    Args:
        model: on the meta device; it is changed as the run would change it.
        config: the run.
        lengths: of its longest sequence.
        kind: type of the device, "cuda" or "cpu".
        processes: among which the sequences are shared out.
    """

    def __init__(
        self, model: Any, config: TrainConfig, lengths: Lengths, kind: str, processes: int = 1
    ) -> None:
        self.config = config
        self.lengths = lengths
        self.kind = kind
        self.processes = processes
        self.model = model
        head = model.get_output_embeddings().weight
        # Slots are added by doubling, or 512 at a time.
        slots = min(2 * lengths.total, lengths.total + 512)
        self.row = slots * position_bytes(model)
        if config.lora:
            with torch.device("meta"):
                Adapters(model, config)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.head, self.head_trained = head.numel(), head.requires_grad
        self.item = head.element_size()
        self.vocab, self.width = head.shape
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        sizes = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in layers]
        self.layer = max(sizes, default=0)
        self.outside = sum(p.numel() for p in self.trained) - sum(sizes)
        self._plain = saved_bytes(model, lengths.total)
        recompute_activations(model)
        self._recomputed = saved_bytes(model, lengths.total)

    @cached_property
    def _weights(self) -> int:
        return sum(t.numel() * t.element_size() for t in tensors_of(self.model))

    def among(self, processes: int) -> MemoryModel:
        """The same run spread over another number of processes."""
        other = copy(self)
        other.processes = processes
        return other

    @property
    def sequences(self) -> int:
        """Sequences of an update that one process has."""
        return -(-self.config.sequences // self.processes)

    @property
    def ways(self) -> tuple[str, ...]:
        """What `shard` may be, in the order in which it is tried."""
        config, rope = self.config, long_rope_limit(self.model.config)
        # A sequence beyond that limit takes two passes, which processes without one do not do.
        apart = rope is not None and self.lengths.total > rope
        if config.shard == "full" and apart:
            raise UserError(
                f"--shard full: sequences may cross LongRoPE's limit of {rope} positions, which takes "
                "passes of their own; lower --max-cot-tokens, or take --shard none"
            )
        if config.shard != "auto":
            return (config.shard,)
        apart = apart or config.lora or config.is_staged or not config.master_weights
        return ("none",) if apart or self.processes == 1 else ("none", "full")

    def estimate(self, limit: int | None = None, **changes: Any) -> Estimate:
        """What the run takes.

        Args:
            limit: bytes to fit in, which decides where the batch sizes are "auto".
            **changes: fields of the configuration to take otherwise.
        """
        config = self.config.model_copy(update=changes)
        standing = self._standing(config)
        held = sum(standing.values()) + LIBRARIES
        sequence = self._sequence(config)
        for size in self._sizes(config):
            phases = {
                "the rollouts": held + self._rollouts(config, held, limit),
                "the training pass": held + self._pass(config, size),
                "the optimizer step": held + self._gradients(config) + self._update(config),
            }
            rows, sharded = self._rows(config, held, limit), config.shard == "full"
            found = Estimate(standing, phases, size, sequence, rows, self.row, sharded)
            if limit is None or found.peak <= limit:
                break
        return found

    def _standing(self, config: TrainConfig) -> dict[str, int]:
        part = self._gradients(config)
        standing = {"model": self._weights}
        standing |= {"float32 masters": part} if self._apart(config) else {}
        standing["AdamW's two moments"] = 2 * part
        if (config.beta or config.kl_steps) and not config.lora:
            standing["initial model, for the KL"] = self._weights
        return standing

    def _wide(self, config: TrainConfig) -> int:
        """Bytes of a master's element."""
        return max(4, self.item) if config.master_weights else self.item

    def _apart(self, config: TrainConfig) -> bool:
        """Whether masters are other tensors than the model's weights."""
        return config.shard == "full" or self._wide(config) != self.item

    def _shards(self, config: TrainConfig) -> int:
        return self.processes if config.shard == "full" else 1

    def _gradients(self, config: TrainConfig) -> int:
        """Of masters; as much as the masters themselves."""
        count = sum(p.numel() for p in self.trained)
        return -(-self._wide(config) * count // self._shards(config))

    def _update(self, config: TrainConfig) -> int:
        """What AdamW holds for one weight, or what a weight that is gathered passes through."""
        largest = max(p.numel() for p in self.trained)
        adam = 3 * self._wide(config) * largest // self._shards(config)
        return max(adam, 2 * self.item * largest if config.shard == "full" else 0)

    def _summing(self, config: TrainConfig, count: int) -> int:
        """Gradients of so many weights, and their float32 copy on the way to the processes' parts.

        Between processors gloo sums in a second such copy, once the gradients are gone.
        """
        wide = self._wide(config)
        beside = wide if self.kind == "cpu" else self.item
        return (beside + wide) * count if config.shard == "full" else 0

    def _sizes(self, config: TrainConfig) -> Iterator[int]:
        """Micro-batches to try, as the training pass would."""
        size = config.micro_batch_size
        if size != "auto" or self.kind == "cpu":
            yield min(16 if size == "auto" else size, self.sequences)
            return
        size = self.sequences
        while size:
            yield size
            size //= 2

    def _sequence(self, config: TrainConfig) -> int:
        saved = self._recomputed if config.gradient_checkpointing else self._plain
        if config.is_staged:  # a pass over the prompt for each thought
            thoughts = config.stages.thoughts(config.stages.last)
            saved += thoughts * saved * (self.lengths.prompt + thoughts) // self.lengths.total
        # Hidden states picked out, and of a mixture itself, its error and their gradients.
        noisy = not config.mode.feeds_tokens
        return saved + self.lengths.cot * self.width * (3 * self.item + 16 * noisy)

    def _pass(self, config: TrainConfig, size: int) -> int:
        """Peak above what stands: at the start of a backward pass, or at its end."""
        half = self.item * sum(p.numel() for p in self.trained)  # the pass's own, of the model's
        if config.shard == "full":
            half = 0  # but for a layer's, they are summed into the parts at once
        wide = self._gradients(config)
        earlier = wide if size < self.sequences else 0  # gradients of earlier parts
        parts = self._kept_parts(config)
        layers = self.model.config.get_text_config().num_hidden_layers
        layer = size * self._plain // layers
        start = size * self._sequence(config) + layer * (1 + config.gradient_checkpointing)
        start += self._head(config, size) + earlier + parts + self._summing(config, self.layer)
        if config.gradient_split_steps:  # a term by itself: its gradient while all is still kept
            start += half
        end = earlier + half if self._apart(config) else wide
        return max(start, parts + max(end, wide) + self._summing(config, self.outside))

    def _kept_parts(self, config: TrainConfig) -> int:
        """Gradients of single terms, which are kept on the host: the device's own on a CPU."""
        if not config.gradient_split_steps or self.kind != "cpu" or config.shard == "full":
            return 0
        return self._gradients(config) * (2 if config.beta else 1)

    def _head(self, config: TrainConfig, size: int) -> int:
        """Logits of a chunk and the gradients of head and E, which are summed in float32."""
        elements = CHUNK_ELEMENTS.get(self.kind, 2**24)
        rows = config.loss_chunk_size or max(16, elements // self.vocab)
        rows = min(rows, size * max(self.lengths.cot, config.limits.max_answer_tokens))
        measured = bool(config.beta or config.kl_steps)
        chunk = rows * self.vocab * ((6 if measured else 4) * 4 + self.item)
        matrices = 2 if not config.mode.feeds_tokens else 1
        widened = 4 * self.head if config.logits_dtype == "float32" and self.item < 4 else 0
        gradient = matrices * (4 + self.item) * self.head + self.item * self.head
        return chunk + widened + (gradient if self.head_trained else 0)

    def _rows(self, config: TrainConfig, held: int, limit: int | None) -> int:
        wanted = max(self.sequences, -(-self.config.validation_size // self.processes))
        if config.decode_batch_size != "auto":
            return min(config.decode_batch_size, wanted)
        fit = wanted if limit is None else (limit - held) // 2 // self.row
        return max(1, min(wanted, fit))

    def _rollouts(self, config: TrainConfig, held: int, limit: int | None) -> int:
        fed = self.lengths.cot * self.width * self.item
        rows = tiled(self._rows(config, held, limit))
        return rows * (self.row + fed + 24 * self.vocab)


def require_memory(memory: MemoryModel, total: int | None) -> Estimate:
    """The estimate of a run that fits a device.

    Args:
        memory: of the run.
        total: bytes of the device; None where they are not known.

    Raises:
        UserError: it does not fit, naming what would.
    """
    limit = usable(memory, total)
    found = fitting(memory, limit)
    if limit is None or found.peak <= limit:
        return found
    raise UserError(
        f"training takes about {found.peak / GIB:.1f} GiB on each device and {limit / GIB:.1f} GiB "
        f"can be had; {_remedy(memory, limit)}"
    )


def usable(memory: MemoryModel, total: int | None) -> int | None:
    """Bytes of a device that tensors can have; None where its size is not known."""
    return None if total is None else int(total * USABLE.get(memory.kind, 1.0))


def fitting(memory: MemoryModel, limit: int | None) -> Estimate:
    """The estimate of the first way to share out weights that fits; of the last one if none does."""
    for shard in memory.ways:
        found = memory.estimate(limit, shard=shard)
        if limit is None or found.peak <= limit:
            break
    return found


def smallest_number(memory: MemoryModel, limit: int) -> int | None:
    """Of devices on which the run fits; None if none does up to a number nobody has."""
    for number in range(1, min(MOST_DEVICES, memory.config.sequences) + 1):
        if fitting(memory.among(number), limit).peak <= limit:
            return number
    return None


_SAVINGS: tuple[tuple[str, Any, str], ...] = (
    ("gradient_checkpointing", True, "--gradient-checkpointing"),
    ("kl_steps", 0, "--kl-steps 0"),
    ("gradient_split_steps", 0, "--gradient-split-steps 0"),
    ("micro_batch_size", 1, "--micro-batch-size 1"),
)


def _remedy(memory: MemoryModel, limit: int) -> str:
    """The shortest list of options that makes the run fit."""
    changes: dict[str, Any] = {}
    named: list[str] = []
    for field, value, flag in _SAVINGS:
        if getattr(memory.config, field) == value:
            continue
        changes[field] = value
        named.append(flag)
        if memory.estimate(limit, shard=memory.ways[-1], **changes).peak <= limit:
            return f"give {' '.join(named)}"
    larger = "take a smaller model or a larger device"
    number = smallest_number(memory, limit)
    if number is not None:
        larger = f"take {number} such devices (torchrun --nproc-per-node {number}), or {larger}"
    return larger if memory.config.lora else f"give --lora, or {larger}"


def check_memory(
    config: TrainConfig, lm: LanguageModel, lengths: Lengths, processes: int
) -> Estimate | str:
    """What the run takes on each device, or why that cannot be told.

    Raises:
        UserError: more than there is, with what would fit.
    """
    make = partial(meta_model, lm.model.config, lm.dtype, config.trust_remote_code)
    memory = modelled(make, config, lengths, lm.device.type, processes)
    if isinstance(memory, str):
        return memory
    return require_memory(memory, device_memory(lm.device, config.device_memory))


def modelled(
    make: Callable[[], Any], config: TrainConfig, lengths: Lengths, kind: str, processes: int = 1
) -> MemoryModel | str:
    """Estimates of the model that is made; or why there are none, on one line."""
    try:
        return MemoryModel(make(), config, lengths, kind, processes)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - code of an architecture that wants real tensors
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def device_memory(device: torch.device, given: float | None) -> int | None:
    """Bytes of a device: as given in GiB, the card's own, or the host's; None without such a card."""
    if given is not None:
        return int(given * GIB)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def planned_device(name: str) -> torch.device:
    """The device that a run would take; a card need not be here yet."""
    return torch.device("cuda") if name.startswith("cuda") else torch_device(name)
