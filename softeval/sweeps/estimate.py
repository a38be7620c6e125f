"""GPU-hours and bytes of a training or an evaluation, by arithmetic, before anything is loaded.

A decoder's pass reads all weights and the rows' keys and values, or multiplies; whichever takes longer.
A training pass multiplies. Both go at a share of an H100's peak that is assumed, not measured, and every
CoT is taken to reach its cap. So this says of what order a sweep is and how its parts compare; a run's
own seconds (`softeval plan`) say more.

Knows the options of both commands, and nothing of how they work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from softeval.model import BUNDLED_CHECKPOINT
from softeval.runs import config as evaluation
from softeval.runs.cells import chosen_benchmarks, questions_asked
from softeval.sweeps.chain import Command
from softeval.tasks.catalogue import LIKELIHOOD
from softeval.trainers import config as training
from softeval.trainers.config import TrainConfig

CARD = "H100"
BANDWIDTH, OPERATIONS, MEMORY = 3.35e12, 989e12, 80e9
"""Of the card: bytes a second, dense bfloat16 operations a second, bytes."""
READ, MULTIPLIED = 0.5, 0.4
"""Shares of both that are assumed to be reached."""
PROMPT = 200
"""Tokens of a prompt, where no tokenizer tells."""
CHOICES, CHOICE_TOKENS = 4, 128
"""Choices of a log-likelihood question, and tokens of one with its context."""
MOST_ROWS = 512
POSITION_BYTES, SAMPLE_BYTES = 15, 1200
"""In a run directory, of a position of a CoT and of a sample's texts."""


@dataclass(frozen=True)
class Shape:
    """What a checkpoint weighs.

    Attributes:
        parameters: of all weights, tied ones once.
        position: bytes of one position's keys and values.
        item: bytes of a weight in computing.
    """

    parameters: float
    position: int
    item: int = 2

    def pass_seconds(self, rows: float, context: float) -> float:
        """A decoder's pass over so many rows of so many positions."""
        read = self.parameters * self.item + rows * context * self.position
        multiplied = 2 * self.parameters * rows
        return max(read / (BANDWIDTH * READ), multiplied / (OPERATIONS * MULTIPLIED))

    def token_seconds(self, tokens: float, passes: float = 1) -> float:
        """Tokens at once, through so many forward passes' worth of operations."""
        return 2 * self.parameters * tokens * passes / (OPERATIONS * MULTIPLIED)


# The checkpoints of the paper's recipes, whose files want a download and a licence.
KNOWN = {
    "meta-llama/Llama-3.2-3B-Instruct": Shape(3.213e9, 2 * 28 * 8 * 128 * 2),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(8.030e9, 2 * 32 * 8 * 128 * 2),
    "Qwen/Qwen2.5-3B-Instruct": Shape(3.086e9, 2 * 36 * 2 * 128 * 2),
}


@dataclass(frozen=True)
class Cost:
    """Of a command: GPU-hours, and bytes on disk."""

    gpu_hours: float
    bytes: float


@lru_cache
def shape_of(model: str | None) -> Shape | None:
    """Of a checkpoint that is at hand, or of the paper's; None for others."""
    if model in KNOWN:
        return KNOWN[model]
    from softeval.model.checkpoint import read_config
    from softeval.model.weights import meta_model
    from softeval.trainers.meta_model import position_bytes

    try:
        config = read_config(
            model or BUNDLED_CHECKPOINT, {"trust_remote_code": False, "local_files_only": True}
        )
        import torch

        built = meta_model(config, getattr(config, "dtype", None) or torch.float32)
        count = sum(p.numel() for p in built.parameters())
        return Shape(count, position_bytes(built), next(built.parameters()).element_size())
    except Exception:  # noqa: BLE001 - not at hand, or an architecture that wants real tensors
        return None


def training_cost(config: TrainConfig, shape: Shape, processes: int = 1) -> Cost:
    """Of all updates and validations; sequences are shared out among the processes."""
    length = PROMPT + config.limits.tokens
    decoded = config.limits.tokens
    context = PROMPT + decoded / 2
    rows = config.sequences / processes
    rollouts = decoded * shape.pass_seconds(rows, context)
    # A backward pass is two forward ones; checkpointing adds another.
    backward = shape.token_seconds(rows * length, 3 + config.gradient_checkpointing)
    step = 28 * shape.parameters / processes / (BANDWIDTH * READ)  # AdamW's reads and writes
    validations = config.max_steps // config.eval_steps + 1
    validation = decoded * shape.pass_seconds(config.validation_size / processes, context)
    seconds = config.max_steps * (rollouts + backward + step) + validations * validation
    states = (config.save_total_limit + 1) * 12 * shape.parameters
    return Cost(processes * seconds / 3600, states + 2 * shape.item * shape.parameters)


def evaluation_cost(config: evaluation.RunConfig, shape: Shape) -> Cost | None:
    """Of all samples and scores; None where a task does not say how many questions it has."""
    limits, modes = config.limits, config.selected_modes()
    decoded = limits.tokens
    room = 0.5 * (MEMORY - shape.parameters * shape.item)
    rows = max(1, min(MOST_ROWS, room // (shape.position * (PROMPT + decoded))))
    seconds = size = 0.0
    for task in chosen_benchmarks(config):
        if task.rows is None:
            return None
        questions = questions_asked(config, task.task, task.rows)
        if config.shard is not None:
            questions /= config.shard.count
        if task.kind == LIKELIHOOD:
            seconds += shape.token_seconds(questions * CHOICES * CHOICE_TOKENS)
            continue
        samples = questions * sum(config.samples_under(mode) for mode in modes)
        seconds += samples / rows * decoded * shape.pass_seconds(rows, PROMPT + decoded / 2)
        seconds += shape.token_seconds(questions * len(modes) * PROMPT)
        size += samples * (POSITION_BYTES * limits.max_cot_tokens + SAMPLE_BYTES)
    return Cost(seconds / 3600, size)


def cost_of(command: Command) -> Cost | None:
    """Of a command; None where it cannot be told, or is next to nothing (a merge, a diagnosis)."""
    values = dict(_values(command.arguments[1:]))
    if command.kind == "train":
        config = training.make_config(values)
        shape = shape_of(config.model)
        return None if shape is None else training_cost(config, shape, command.processes)
    if command.kind != "run":
        return None
    asked = evaluation.make_config(values)
    trained = [dict(_values(c.arguments[1:])).get("model") for c in command.needs]
    shape = shape_of(trained[0] if trained else asked.model)
    return None if shape is None else evaluation_cost(asked, shape)


def _values(arguments: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The options of a command of a sweep by the names of their fields."""
    for flag, word in pairwise((*arguments, "--")):
        if flag.startswith("--"):
            name = flag[2:].replace("-", "_")
            bare = word.startswith("--")
            no = bare and name.startswith("no_")
            yield (name.removeprefix("no_") if no else name), (not no if bare else word)


def cost_record(cost: Cost | None) -> Mapping[str, Any] | None:
    """A cost as plain values, with what it rests on."""
    if cost is None:
        return None
    return {"gpu_hours": float(f"{cost.gpu_hours:.3g}"), "bytes": round(cost.bytes), "card": CARD}
