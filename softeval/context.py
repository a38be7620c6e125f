"""Does every question fit the context, and how long may the CoT then be?

Asked before anything is generated, over all tasks, so that a question that is too long does not end
a run hours later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softeval.cells import Cell
from softeval.config import DEFAULT_MAX_COT_TOKENS
from softeval.errors import UserError
from softeval.stopping import Stopper

SHORTEST_DEFAULT_CAP = 64
"""A default cap is never below this; questions that then do not fit are an error that names one."""

Lengths = dict[tuple[str, int], int]


def prompt_lengths(cells: Sequence[Cell], adapter: Any, chat_template: bool) -> Lengths:
    """Tokens of the prompt of each (task, doc_id) of the generative tasks.

    Args:
        cells: of the run.
        adapter: the lm-eval model, which encodes the prompts as it will for the run.
        chat_template: whether prompts are wrapped in the tokenizer's chat template.
    """
    tasks = {cell.name: cell for cell in cells if cell.mode is not None}
    lengths: Lengths = {}
    for name, cell in tasks.items():
        for doc_id, document in cell.documents.items():
            text = document["prompt"]
            if chat_template:
                text = adapter.apply_chat_template([{"role": "user", "content": text}])
            lengths[name, doc_id] = len(adapter.tok_encode(text))
    return lengths


def fitting_cot_cap(lengths: Lengths, adapter: Any, max_answer_tokens: int) -> int:
    """The paper's cap on the CoT, or what the context leaves beside the longest prompt."""
    if not lengths:
        return DEFAULT_MAX_COT_TOKENS
    left = _room(adapter, max_answer_tokens) - max(lengths.values())
    return min(DEFAULT_MAX_COT_TOKENS, max(left, SHORTEST_DEFAULT_CAP))


def check_context(lengths: Lengths, adapter: Any, cot_cap: int, max_answer_tokens: int) -> None:
    """Refuse a question whose prompt and caps together exceed the context.

    Raises:
        UserError: naming the longest one.
    """
    if not lengths:
        return
    (task, doc_id), longest = max(lengths.items(), key=lambda item: item[1])
    room = _room(adapter, max_answer_tokens)
    if longest + cot_cap > room:
        context = adapter.language_model.max_length
        raise UserError(
            f"{task} question {doc_id} has {longest} prompt tokens; with {cot_cap} CoT and"
            f" {max_answer_tokens} answer tokens it exceeds the context of {context};"
            f" {_remedy(room - longest)}"
        )


def _room(adapter: Any, max_answer_tokens: int) -> int:
    """Tokens that prompt and CoT may have together."""
    lm = adapter.language_model
    return lm.max_length - max_answer_tokens - Stopper(lm.tokenizer).longest_prefill


def _remedy(fits: int) -> str:
    if fits < 1:
        return "take a checkpoint with a longer context"
    return f"lower --max-cot-tokens to at most {fits}"
