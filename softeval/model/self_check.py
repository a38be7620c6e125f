"""Does this model decode rightly? Asked once at load, of any architecture.

Everything here rests on two things that transformers does not promise: that a model fed through
`inputs_embeds` is the model fed through `input_ids`, and that a row stepped through our slots beside
other rows is that row run alone without a memory. Both are tried on the model itself, past its
smallest window and past LongRoPE's limit; where these lie beyond `BOUND` positions, or the model is
in half precision, also on a shrunk copy of the same class in float32.

Shapes: L positions of a row, D width, W rows of the output head, S steps that are decoded.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softeval.errors import UserError
from softeval.model.check_cache import CheckCache
from softeval.model.embedding import InputEmbedding, input_embedding
from softeval.model.feeding import RowFeeder
from softeval.model.mends import long_rope_limit, mend

VERSION = 3
"""Part of the cache's key; raised when the check or the way of feeding changes."""
BOUND = 600
"""Longest row, in positions, that a loaded model is tried with."""
STEPS = 4
ROW = 70
"""Longest row where no window or limit asks for more: past one tile of slots."""
NEIGHBOUR = 17
MANY = 48
"""Rows at a time when bits are compared."""
PERTURBATION = 0.3

_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "local_attention")


class SelfCheck(NamedTuple):
    """What a model was found to be.

    Attributes:
        status: "passed", "cached" (passed at an earlier load), "partial" (passed, but windows or
            limits lie beyond what could be tried) or "skipped".
        batch_invariant: whether a row had the same bits beside many others; None if not tried.
    """

    status: str
    batch_invariant: bool | None


def self_check(
    model: Any, embedding: InputEmbedding, max_length: int, name: str, *, remembered: bool
) -> SelfCheck:
    """Try a model that has just been loaded.

    Args:
        model: the transformers model.
        embedding: its input embedding.
        max_length: most positions it takes.
        name: for messages.
        remembered: do not try again what passed once.

    Raises:
        UserError: it decodes wrongly, or not at all; the message says what disagreed.
    """
    cache = CheckCache(model, VERSION) if remembered else None
    found = None if cache is None else cache.read()
    if found is not None:
        return SelfCheck("cached", found)
    with torch.inference_mode():
        _refuse(name, model, _tried(model, embedding, max_length, name))
        wrong = _copys_disagreement(model) if _needs_copy(model, max_length) else None
        _refuse(f"{name}, as a shrunk copy", model, wrong)
        invariant = _same_bits(model, embedding, max_length)
    if wrong == _NO_COPY:
        return SelfCheck("partial", invariant)
    if cache is not None:
        cache.write(invariant)
    return SelfCheck("passed", invariant)


def _tried(model: Any, embedding: InputEmbedding, max_length: int, name: str) -> str | None:
    """`_disagreement`; a model that cannot be run at all is refused."""
    try:
        return _disagreement(model, embedding, max_length)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = [*str(error).splitlines(), ""]
        raise UserError(
            f"{name}: {type(model).__name__} cannot be decoded here ({type(error).__name__}: "
            f"{lines[0]}); use another checkpoint"
        ) from error


def _refuse(name: str, model: Any, wrong: str | None) -> None:
    if wrong:
        raise UserError(
            f"{name}: {type(model).__name__} would be decoded wrongly: {wrong}; use another "
            "checkpoint, or --no-self-check if you know better"
        )


def _disagreement(model: Any, embedding: InputEmbedding, max_length: int) -> str | None:
    """What disagreed by how much, or None."""
    ids = torch.linspace(0, embedding.vocab - 1, min(8, max_length), device=embedding.device)
    ids_1L = ids.long()[None]
    by_ids = model(input_ids=ids_1L, use_cache=False).logits[0]
    by_rows = model(inputs_embeds=embedding.rows(ids_1L), use_cache=False).logits[0]
    pairs = [("logits of token ids and of their embeddings", by_rows, by_ids)]
    limit = long_rope_limit(model.config)
    for what, lengths in _scenes(model.config, max_length, limit):
        rows = [_row(embedding, length, seed) for seed, length in enumerate(lengths)]
        # Copies, here and in `_alone`: CTRL scales what it is given in place.
        for row_LD, stepped in zip(rows, _stepped(model, [r.clone() for r in rows]), strict=True):
            alone = _alone(model, row_LD, len(stepped), limit)
            pairs.append((f"{what}, decoding and one plain pass", stepped, alone))
    for what, found, expected in pairs:
        gap = _gap(found[:, : embedding.vocab], expected[:, : embedding.vocab], embedding.dtype)
        if not gap <= _tolerance(embedding.dtype):
            dtype = str(embedding.dtype).removeprefix("torch.")
            return f"{what} differ by {gap:.2g} of the logits' spread in {dtype}"
    return None


def _scenes(config: Any, max_length: int, limit: int | None) -> list[tuple[str, list[int]]]:
    """Lengths of rows that are decoded together, and what they are there for.

    The last one is decoded from its first position on, as a prompt of one token is.
    """
    longest = min(max_length, BOUND)
    scenes = [("ragged rows", ROW)]
    scenes += [(f"past the window of {w}", w + ROW // 2) for w in windows(config)[:1]]
    if limit is not None:
        scenes.append((f"across LongRoPE's limit of {limit}", limit + STEPS // 2))
    fitting = [(what, length) for what, length in scenes[1:] if length <= longest]
    return [
        (what, [length, min(NEIGHBOUR, length), min(STEPS, length)])
        for what, length in [(scenes[0][0], min(ROW, longest)), *fitting]
    ]


def windows(config: Any) -> list[int]:
    """Windows of attention that a configuration names, the smallest first."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in _WINDOWS]
    return sorted(int(w) for w in found if isinstance(w, int) and w > 0)


def _row(embedding: InputEmbedding, length: int, seed: int) -> Tensor:
    """(L, D) embeddings of random tokens, moved off the table as soft tokens are."""
    random = torch.Generator().manual_seed(seed)
    ids_L = torch.randint(embedding.vocab, (length,), generator=random)
    rows_LD = embedding.rows(ids_L.to(embedding.device))
    noise_LD = torch.randn(rows_LD.shape, generator=random).to(embedding.device)
    size = rows_LD.float().square().mean().sqrt()
    return (rows_LD.float() + PERTURBATION * size * noise_LD).to(embedding.dtype)


def _stepped(model: Any, rows: Sequence[Tensor]) -> list[Tensor]:
    """(S, W) logits of each row's last positions, decoded beside the others.

    What comes before is prefilled as it may be: in chunks, and together.
    """
    steps = min(STEPS, *(len(row) for row in rows))
    longest = max(len(row) for row in rows)
    feeder = RowFeeder(model, len(rows), longest, chunk=max(1, longest // 2))
    starts = [len(row) - steps for row in rows]
    prompts = [row_LD[:start] for row_LD, start in zip(rows, starts, strict=True)]
    groups = [[prompt] for prompt in prompts] if feeder.prefills_alone else [prompts]
    prefilled = [each for group in groups for each in feeder.prefill_together(group)]
    for index, each in enumerate(prefilled):
        feeder.fill([index], each)
    fed_ND = rows[0].new_zeros(len(rows), rows[0].shape[1])
    found = []
    for step in range(steps):
        for index, (row_LD, start) in enumerate(zip(rows, starts, strict=True)):
            fed_ND[index] = row_LD[start + step]
        shown = feeder.feed(fed_ND, [start + step for start in starts])
        found.append(shown.logits_NW)
    return list(torch.stack(found, 1))


def _alone(model: Any, row_LD: Tensor, steps: int, limit: int | None) -> Tensor:
    """(S, W) the same logits from plain passes; two of them for a row that crosses the limit."""

    def last(length: int, wanted: int) -> Tensor:
        given = row_LD[None, :length].clone()
        return model(inputs_embeds=given, use_cache=False, logits_to_keep=wanted).logits[
            0, -wanted:
        ]

    length = len(row_LD)
    above = steps if limit is None else min(steps, max(0, length - limit))
    if above in (0, steps):
        return last(length, steps)
    return torch.cat([last(length - above, steps - above), last(length, above)])


def _gap(found_SW: Tensor, expected_SW: Tensor, dtype: torch.dtype) -> float:
    """Root mean square difference over the spread of the logits; the worst position's.

    In half precision the median position's: one token that goes to another expert is no fault.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    found, expected = found_SW.double(), expected_SW.double()
    spread_S = (expected - expected.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    gap_S = (found - expected).square().mean(-1).sqrt() / spread_S.clamp_min(1e-12)
    return float(gap_S.median() if half else gap_S.max())


def _tolerance(dtype: torch.dtype) -> float:
    """What rounding alone may do between two ways to one number.

    In float32 it is some 1e-6, and 4e-4 in a model that amplifies it; in half precision a few dozen
    roundings add up.
    """
    return max(2e-3, 32 * torch.finfo(dtype).eps)


def _same_bits(model: Any, embedding: InputEmbedding, max_length: int) -> bool:
    """Whether a row's logits have the same bits alone and beside many others, here and now."""
    length = min(NEIGHBOUR, max_length)
    row_LD = _row(embedding, length, 0)
    fed_ND = _row(embedding, MANY, 1)
    fed_ND[0] = row_LD[-1]
    found = []
    for rows in (1, MANY):
        feeder = RowFeeder(model, rows, length)
        feeder.fill(range(rows), feeder.prefill(row_LD[:-1]))
        found.append(feeder.feed(fed_ND, [length - 1] * rows).logits_NW[0])
    return torch.equal(*found)


_SHRUNK_LENGTH = 128
_SHRUNK_SIZES = {
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "vocab_size": 128,
}
_SHRUNK_WINDOW = 24
_SHRUNK_LIMIT = 40


def _needs_copy(model: Any, max_length: int) -> bool:
    """Whether the model itself cannot show all: a far window or limit, or coarse rounding."""
    limit = long_rope_limit(model.config)
    far = [*windows(model.config)[:1], *([] if limit is None else [limit])]
    beyond = any(length + ROW // 2 > min(BOUND, max_length) for length in far)
    return beyond or model.dtype not in (torch.float32, torch.float64)


_NO_COPY = ""
"""What a copy that can be neither built nor run shows of a disagreement."""


def _copys_disagreement(model: Any) -> str | None:
    """`_disagreement` of a small random model of the same class in float32."""
    for fewer_heads in (True, False):
        with suppress(Exception):
            small = _shrunk(model, fewer_heads)
            rows = input_embedding(small, len(small.get_input_embeddings().weight))
            return _disagreement(small, rows, _SHRUNK_LENGTH)
    return _NO_COPY


def _shrunk(model: Any, fewer_heads: bool) -> Any:
    config = _shrunk_config(model.config, fewer_heads)
    implementation = model.config._attn_implementation
    random = torch.random.get_rng_state()
    torch.default_generator.manual_seed(0)  # a GPU's own are the user's, and draw nothing here
    small = type(model)._from_config(config, attn_implementation=implementation)
    small = small.to(device=model.device, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in small.parameters():  # nothing may hide behind a weight that begins as zero
            spread = 0.1 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape).to(parameter) * spread)
    torch.random.set_rng_state(random)
    mend(small)
    return small


def _shrunk_config(config: Any, fewer_heads: bool) -> Any:
    text = copy.deepcopy(config.get_text_config())
    values = text.to_dict()
    for name, size in _SHRUNK_SIZES.items():
        if isinstance(values.get(name), int) and values[name] > size:
            setattr(text, name, size)
    for name in _WINDOWS:
        if isinstance(values.get(name), int) and values[name] > _SHRUNK_WINDOW:
            setattr(text, name, _SHRUNK_WINDOW)
    if "max_position_embeddings" in values:
        text.max_position_embeddings = _SHRUNK_LENGTH
    kinds = values.get("layer_types")
    if kinds:
        text.layer_types = _few_of_each(kinds, text.num_hidden_layers)
    if long_rope_limit(text) is not None:
        text.original_max_position_embeddings = _SHRUNK_LIMIT
        text.rope_parameters = _with_limit(text.rope_parameters)
    if fewer_heads:
        width = values.get("head_dim") or text.hidden_size // text.num_attention_heads
        grouped = (values.get("num_key_value_heads") or 4) < text.num_attention_heads
        text.num_attention_heads = 4
        if "num_key_value_heads" in values:
            text.num_key_value_heads = 2 if grouped else 4
        text.hidden_size = 4 * width
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    return text


def _few_of_each(kinds: Sequence[str], count: int) -> list[str]:
    """Kinds of `count` layers that hold every kind of a longer list."""
    first = list(dict.fromkeys(kinds))
    return [*first, *kinds][:count]


def _with_limit(parameters: Any) -> Any:
    changed = copy.deepcopy(parameters)
    for part in (changed, *changed.values()):
        if isinstance(part, dict) and "original_max_position_embeddings" in part:
            part["original_max_position_embeddings"] = _SHRUNK_LIMIT
    return changed
