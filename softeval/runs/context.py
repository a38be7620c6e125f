"""What of a request can be refused before the weights of its checkpoint are read.

The device, the checkpoint's config and tokenizer, the chat template, and whether every question of
every task fits the context, so that none ends a run hours later. `softeval run --dry-run` asks the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softeval.errors import UserError
from softeval.model.chat import example_hash, render_chat
from softeval.runs.cells import Cell
from softeval.runs.config import DEFAULT_MAX_COT_TOKENS, RunConfig
from softeval.runs.identity import bundled_checkpoint

if TYPE_CHECKING:
    from softeval.model.checkpoint import Checkpoint
    from softeval.model.language_model import LanguageModel

SHORTEST_DEFAULT_CAP = 64
"""A default cap is never below this; questions that then do not fit are an error that names one."""

Lengths = dict[tuple[str, int], int]


def examine(config: RunConfig, *, local_files_only: bool = False) -> Checkpoint:
    """The checkpoint that a run names, without its weights.

    Args:
        config: of the run.
        local_files_only: download nothing.

    Raises:
        UserError: a device that is not there, or a checkpoint that cannot be decoded.
    """
    from softeval.lmeval.loading import known_tokenizer
    from softeval.model.checkpoint import read_checkpoint, torch_device

    torch_device(config.device)
    checkpoint = read_checkpoint(
        config.model or str(bundled_checkpoint()),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        local_files_only=local_files_only,
    )
    known_tokenizer(checkpoint)
    return checkpoint


def check_template(config: RunConfig, checkpoint: Checkpoint | LanguageModel) -> None:
    """Render an example where the run wants the chat template.

    Raises:
        UserError: there is none, it fails, or it is not the same twice.
    """
    if config.apply_chat_template:
        example_hash(checkpoint.tokenizer, config.chat_date)


def settled_cot_cap(
    config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | LanguageModel
) -> int:
    """The cap on the CoT: as given, else the paper's, or what the context leaves.

    Raises:
        UserError: a prompt that the template or the embedding does not take, or one that with the
            caps exceeds the context.
    """
    lengths = _prompt_lengths(config, cells, checkpoint)
    if not lengths:
        return config.max_cot_tokens or DEFAULT_MAX_COT_TOKENS
    room = checkpoint.max_length - config.max_answer_tokens - checkpoint.stopper.longest_prefill
    (task, doc_id), longest = max(lengths.items(), key=lambda item: item[1])
    fitting = min(DEFAULT_MAX_COT_TOKENS, max(room - longest, SHORTEST_DEFAULT_CAP))
    cap = config.max_cot_tokens or fitting
    if longest + cap > room:
        raise UserError(
            f"{task} question {doc_id} has {longest} prompt tokens; with {cap} CoT and"
            f" {config.max_answer_tokens} answer tokens it exceeds the context of"
            f" {checkpoint.max_length}; {_remedy(room - longest)}"
        )
    return cap


def _prompt_lengths(
    config: RunConfig, cells: Sequence[Cell], checkpoint: Checkpoint | LanguageModel
) -> Lengths:
    """Tokens of the prompt of each (task, doc_id) of the generative tasks."""
    tasks = {cell.name: cell for cell in cells if cell.mode is not None}
    lengths: Lengths = {}
    for name, cell in tasks.items():
        for doc_id, document in cell.documents.items():
            text = document["prompt"]
            if config.apply_chat_template:
                messages = [{"role": "user", "content": text}]
                text = render_chat(checkpoint.tokenizer, messages, day=config.chat_date)
            lengths[name, doc_id] = len(checkpoint.vocabulary.encode(text))
    return lengths


def _remedy(fits: int) -> str:
    if fits < 1:
        return "take a checkpoint with a longer context"
    return f"lower --max-cot-tokens to at most {fits}"
