"""Into how many graphs torch.compile traces the passes of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from softeval.decoding import decoder as decoder_module
from softeval.decoding.decoder import Decoder, Question
from softeval.model.feeding import Replays
from softeval.model.language_model import LanguageModel
from softeval.model.stopping import Limits
from softeval.modes import Mode
from softeval.records import Generation, SampleKey

PROMPTS = ("12+34=", "abcdefg", "x")
FIRST = 3
"""Passes that allocate and measure; and `partial` objects are compared by their function."""


@contextmanager
def watched_passes(around: Callable[[Callable[[], None], Any], None]) -> Iterator[None]:
    """Lets `around(work, bucket)` do each pass of a decoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replays, "run", lambda self, bucket, work: around(work, bucket))
        yield


def decoded(
    lm: LanguageModel, mode: Mode, samples: tuple[int, ...] = (0, 1, 2), **how: Any
) -> dict[SampleKey, Generation]:
    """Samples of three prompts."""
    questions = [
        Question("t", index, tuple(lm.tokenizer.encode(text)), samples)
        for index, text in enumerate(PROMPTS)
    ]
    decoder = Decoder(lm, mode, Limits(10, 3), keep_inputs=True, record_top=2, **how)
    return {g.key: g for g in decoder.run(questions)}


def graphs_of(lm: LanguageModel, mode: Mode) -> tuple[int, int]:
    """Graphs that a decoder's passes are traced into, and buckets; a break is an error.

    A bucket is rows, slots and the phases that any row may be in; where no row may wait (recurrent
    layers) the latter differ between passes. All of a bucket are one function, called with other
    rows, positions and phases each time.
    """
    count = 0

    def backend(graph: Any, example_inputs: Any) -> Any:
        nonlocal count
        count += 1
        return graph.forward

    first: list[None] = []
    compiled: dict[Any, Any] = {}

    def around(work: Callable[[], None], bucket: Any) -> None:
        if len(first) < FIRST:
            first.append(work())
            return
        if bucket not in compiled:
            compiled[bucket] = torch.compile(work, fullgraph=True, backend=backend, dynamic=False)
        compiled[bucket]()

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, watched_passes(around):
        patch.setattr(decoder_module, "AHEAD", 0)  # random numbers ahead are drawn between passes
        found = decoded(lm, mode, batch_size=4, look_every=2)
    assert len(found) == 3 * len(PROMPTS)
    return count, len(compiled)
