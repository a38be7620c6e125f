"""`softeval train --dry-run`: the memory a training run needs, told for one device and for several."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from softeval.trainers.config import TrainConfig
from softeval.trainers.memory import (
    GIB,
    MemoryModel,
    device_memory,
    fitting,
    modelled,
    planned_device,
    require_memory,
    smallest_number,
    usable,
)
from softeval.trainers.questions import Lengths
from softeval.trainers.setup import planned_model

ASSUMED_PROMPT, ASSUMED_PREFILL = 256, 8
"""Tokens, where no tokenizer tells."""


def plan_memory(config: TrainConfig, processes: int = 1) -> Iterator[str]:
    """The estimate of a run of which nothing but its configuration is at hand, for people, by lines.

    Raises:
        UserError: it does not fit the devices, said last; or there is no such checkpoint or device.
    """
    prompt = config.max_prompt_tokens or ASSUMED_PROMPT
    rest = config.cot_cap + ASSUMED_PREFILL + config.limits.max_answer_tokens
    lengths = Lengths(prompt, config.cot_cap, prompt + rest)
    device = planned_device(config.device)
    memory = modelled(partial(planned_model, config), config, lengths, device.type, processes)
    if isinstance(memory, str):
        yield f"memory not estimated: {memory}"
        return
    total = device_memory(device, config.device_memory)
    limit = usable(memory, total)
    of = "" if total is None else f" of {total / GIB:.1f}"
    yield f"devices ({device.type}{of} GiB), prompts of {prompt} tokens:"
    yield from _device_table(memory, limit)
    found = require_memory(memory, total)
    yield f"on each of {processes}:" if processes > 1 else "on one:"
    yield from found.lines()
    yield f"highest: {found.peak / GIB:.1f}{of} GiB"


def _device_table(memory: MemoryModel, limit: int | None) -> list[str]:
    """Estimates for several numbers of devices, for people."""
    lines = [f"{'devices':>8}{'weights':>10}{'GiB on each':>13}"]
    for number in (1, 2, 4, 8):
        if number > memory.config.sequences:
            break
        found = fitting(memory.among(number), limit)
        way = "sharded" if found.sharded else "whole"
        little = "" if limit is None or found.peak <= limit else "  more than there is"
        lines.append(f"{number:>8}{way:>10}{found.peak / GIB:13.1f}{little}")
    if limit is not None:
        lines.append(f"smallest number that fits: {smallest_number(memory, limit) or 'none'}")
    return lines
