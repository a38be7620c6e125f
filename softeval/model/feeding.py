"""Feeds rows of vectors through a model, each row at its own position, through the slots.

The one way in which a model is run with a memory: the decoder uses it, and the self-check holds it
against plain passes. The number of rows of a pass is rounded up to a tile, because small products
round differently.

Shapes: B rows of the batch, N rows in use, P prompt length, D width, W rows of the output head.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from softeval.errors import UserError
from softeval.model.cache import SlotCache, Visibility
from softeval.model.checkpoint import first_line
from softeval.model.layers import (
    ROW_TILE,
    cut,
    has_states,
    memory_argument,
    promises_bits,
    prompt_cache,
    rounded_slots,
    scans_from_zero,
    tiled,
)
from softeval.model.mends import (
    KeyCountBands,
    LongRopeCrossing,
    long_factors,
    long_rope_limit,
)
from softeval.model.slot_attention import by_lengths, reads_lengths, set_lengths

CUDA_SLOTS = 256
"""Slots on CUDA are rounded up to a multiple of this."""

PREFILL_POSITIONS = 2048
"""Most positions of prompts in one pass: so many prompts go together, and a longer one in chunks.
That bounds what a pass takes beside the cache (activations, masks), and is enough to keep any device
busy with arithmetic: from a few hundred positions on, reading the weights is no longer what takes time."""


class Prefilled(NamedTuple):
    """A prompt, less its last token, that has been through the model; no cache if it is empty."""

    inputs_PD: Tensor
    cache: Cache | None


class Shown(NamedTuple):
    """What a pass shows of each row: logits, and the last hidden state that they were made of.

    The hidden state is None where the architecture has no output head to read it at.
    """

    logits_NW: Tensor
    hidden_ND: Tensor | None


class RowFeeder:
    """A model and the memory of a batch of rows. Rows in use are always the first ones.

    Args:
        model: the transformers model.
        batch: B, most rows in use at a time.
        longest: most positions a row takes.
        chunk: most positions of prompts in one pass; None is `PREFILL_POSITIONS`.
        run: what a decode step calls in place of the model; None is the model itself.

    Raises:
        UserError: the model has layers that cannot be decoded.
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        longest: int,
        chunk: int | None = None,
        run: Callable[..., Any] | None = None,
    ) -> None:
        self._model = model
        self._run = model if run is None else run
        self._chunk = chunk or PREFILL_POSITIONS
        self._memory = memory_argument(model) or "past_key_values"
        self._batch = batch
        by_length = reads_lengths(model)
        fixed = by_length or model.device.type == "cuda"  # where a graph holds their addresses
        fewest = rounded_slots(longest, CUDA_SLOTS) if fixed else 0
        self._by_length = fewest if by_length else 0
        self._cache = SlotCache(model.config, tiled(batch), fewest)
        self._visibility = Visibility(model)
        self._bands = KeyCountBands(model)
        self._head = _Head.of(model)
        limit = long_rope_limit(model.config)
        self._crossing = (
            None if limit is None or longest <= limit else LongRopeCrossing(limit, batch)
        )

    def prefill(self, inputs_PD: Tensor) -> Prefilled:
        """Run the vectors of positions 0…P-1, for rows that go on at P; P may be 0."""
        return self.prefill_together([inputs_PD])[0]

    def prefill_together(self, prompts: Sequence[Tensor]) -> list[Prefilled]:
        """The same for several prompts (P, D), as many as `together` says.

        Shorter ones are padded behind their end, where causal attention does not look.
        """
        rows, length = len(prompts), max(len(inputs_PD) for inputs_PD in prompts)
        inputs_RLD = pad_sequence(list(prompts), batch_first=True)
        cache = prompt_cache(self._model.config)
        crosses = self._crossing is not None and length >= self._crossing.limit
        with long_factors(self._model, crosses):
            for start, stop in self._chunks(rows, length):
                positions_Q = torch.arange(start, stop, device=inputs_RLD.device)
                self._model(
                    inputs_embeds=inputs_RLD[:, start:stop],
                    position_ids=positions_Q.expand(rows, -1),
                    use_cache=True,
                    logits_to_keep=1,
                    **{self._memory: cache},
                )
        self._head.take()  # or the next step would find it there, and be compiled for that
        caches = [cache] if rows == 1 else [cut(cache, i, len(p)) for i, p in enumerate(prompts)]
        return [Prefilled(p, c if len(p) else None) for p, c in zip(prompts, caches, strict=True)]

    @property
    def prefills_alone(self) -> bool:
        """Whether each prompt is prefilled by itself, as company would show.

        It does by the padding in a recurrence, by LongRoPE's factors on either side of its limit, and
        in the bits of float32 on a CPU.
        """
        return promises_bits(self._model) or not self.repeats

    def _chunks(self, rows: int, length: int) -> list[tuple[int, int]]:
        """First and last positions, the latter excluded, of each pass over so many rows."""
        first = min(length, max(1, self._chunk // rows))
        step = 1 if scans_from_zero(self._model) else max(1, first)
        ends = [*range(first, length, step), length]
        return list(pairwise([0, *ends])) if length else []

    def together(self, lengths: Iterable[int]) -> int:
        """How many of the next prompts, of these lengths, are prefilled in one pass."""
        if self.prefills_alone:
            return 1
        longest = 0
        for count, length in enumerate(lengths, 1):
            longest = max(longest, length)
            if count > 1 and count * longest > self._chunk:
                return count - 1
        return count

    def fill(self, rows: Sequence[int], prefilled: Prefilled) -> None:
        """Let rows begin after a prefilled prompt; nothing of an earlier row is left in them."""
        if prefilled.cache is not None:
            self._cache.fill(rows, prefilled.cache, len(prefilled.inputs_PD))
        else:
            if self._cache.lacks_states:  # only a pass shows how large they are; of any vector
                shown = self.prefill(prefilled.inputs_PD.new_zeros(1, prefilled.inputs_PD.shape[1]))
                self._cache.fill(rows, shown.cache, 1)  # type: ignore[arg-type]
            self._cache.clear(rows)
        if self._crossing is not None:
            self._crossing.begin(rows, prefilled.inputs_PD)

    @property
    def repeats(self) -> bool:
        """Whether a row may be fed the same vector at the same position twice without a trace."""
        return self._crossing is None and not has_states(self._model.config)

    def bucket(self, rows: int, positions: int) -> tuple[int, int]:
        """The rows and slots of a pass over so many rows, none beyond so many positions.

        Few different ones on CUDA, where each is captured for itself.
        """
        if self._model.device.type != "cuda":
            return tiled(rows), rounded_slots(positions)
        power = max(ROW_TILE, 1 << (rows - 1).bit_length())
        most = self._cache.window.fewest  # passes go on behind it until the host looks
        seen = self._by_length or min(rounded_slots(positions, CUDA_SLOTS), most)
        return min(power, tiled(self._batch)), seen

    def step(self, fed_ND: Tensor, positions_N: Tensor, slots: int) -> Shown:
        """Feed each row one vector at its position.

        Args:
            fed_ND: vectors, with those of the tile's idle rows.
            positions_N: positions; 0 for an idle row.
            slots: no position is beyond so many.

        Returns:
            What is seen of N rows, the idle ones among them.
        """
        if self._crossing is not None:
            for row in self._crossing.due(fed_ND, positions_N):
                again = self.prefill(self._crossing.cross(row))
                assert again.cache is not None
                self._cache.fill([row], again.cache, len(again.inputs_PD))
        self._cache.point(positions_N, slots)
        # Around the step alone: prompts that are run again above have no lengths, but a mask.
        reading = by_lengths(self._model) if self._by_length else nullcontext()
        with reading, self._bands.at(positions_N, slots):
            if self._by_length:
                set_lengths(positions_N, self._by_length)
            output = self._run(
                inputs_embeds=fed_ND[:, None],
                attention_mask=self._visibility.masks(positions_N[:, None], slots),
                position_ids=positions_N[:, None],
                use_cache=True,
                **{self._memory: self._cache},
            )
        hidden, device = self._head.take(), fed_ND.device  # layers may be spread over devices
        shown = None if hidden is None else hidden[:, -1].to(device)
        return Shown(output.logits[:, -1].to(device), shown)

    def feed(self, fed_ND: Tensor, positions: Sequence[int]) -> Shown:
        """`step` of as many rows as there are positions; what is seen of these."""
        rows, slots = self.bucket(len(positions), max(positions) + 1)
        places = [*positions, *[0] * (rows - len(positions))]
        idle_ID = fed_ND.new_zeros(rows - len(positions), fed_ND.shape[1])
        places_N = torch.tensor(places, device=fed_ND.device)
        shown = self.step(torch.cat([fed_ND[: len(positions)], idle_ID]), places_N, slots)
        return Shown(*(part if part is None else part[: len(positions)] for part in shown))  # type: ignore[arg-type]

    def move(self, source: int, target: int, length: int) -> None:
        """Move a row of `length` positions to another place of the batch."""
        self._cache.move(source, target, length)
        if self._crossing is not None:
            self._crossing.move(source, target)


class Replays:
    """Runs the same work again and again; on CUDA captured, a graph a bucket.

    A decode step is some 1,700 small kernels; launched one by one from Python they take several
    times as long as the device needs for them.

    Args:
        device: where the work is done; only on CUDA is it captured.
        wanted: whether to capture at all.
    """

    def __init__(self, device: torch.device, *, wanted: bool = True) -> None:
        self._device = device  # not always the one that torch calls current
        self.captures = wanted and device.type == "cuda"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.captures else None
        self._stream = torch.cuda.Stream(device) if self.captures else None

    def run(self, bucket: Hashable, work: Callable[[], None]) -> None:
        """Do the work, which for one bucket must be the same kernels on the same memory each time.

        The first time as it is, so that everything is allocated and set up; then by its graph.

        Raises:
            UserError: work that asks the host for something, as routing by experts does.
        """
        if not self.captures:
            work()
        elif bucket not in self._graphs:
            self._aside(work)
            self._graphs[bucket] = None
        else:
            graph = self._graphs[bucket] = self._graphs[bucket] or self._captured(work)
            graph.replay()

    def _aside(self, work: Callable[[], None]) -> None:
        """Do the work on the stream that it will be captured on.

        What a library allocates for a stream must be there by then: cuBLAS otherwise fails now and
        then in a capture.
        """
        here, aside = torch.cuda.current_stream(self._device), self._stream
        assert aside is not None
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            work()
        here.wait_stream(aside)

    def _captured(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except torch.OutOfMemoryError:
            raise  # which is no fault of the architecture
        except RuntimeError as problem:
            raise UserError(
                f"this architecture's step cannot be captured ({first_line(problem)}); use --no-graphs"
            ) from problem
        return graph


class _Head:
    """Sees what a model's output head is given; one a model, so that nothing about it changes."""

    _of_models: ClassVar[weakref.WeakKeyDictionary[Any, _Head]] = weakref.WeakKeyDictionary()

    def __init__(self, model: Any) -> None:
        last: list[Tensor] = []

        def keep(_: Any, args: tuple[Tensor, ...]) -> None:
            if not torch.is_grad_enabled():  # a training pass must not be kept
                last[:] = args[:1]

        self._last = last
        model.get_output_embeddings().register_forward_pre_hook(keep)

    @classmethod
    def of(cls, model: Any) -> _Head:
        """The one of this model."""
        if model not in cls._of_models:
            cls._of_models[model] = cls(model)
        return cls._of_models[model]

    def take(self) -> Tensor | None:
        """What it was given last; None where the architecture goes without its head."""
        return self._last.pop() if self._last else None
