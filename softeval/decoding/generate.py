"""`generate`: texts in, samples out. The decoder's plain face for Python users."""

from __future__ import annotations

from collections.abc import Sequence

from softeval.decoding.decoder import Decoder, Question
from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.stopping import Limits
from softeval.modes import Mode, get_mode
from softeval.protocol import PAPER, Protocol
from softeval.records import Generation


def generate(
    lm: LanguageModel,
    prompts: Sequence[str] | str,
    mode: str | Mode = "hard_greedy",
    num_samples: int = 1,
    seed: int = 0,
    max_cot_tokens: int = 512,
    max_answer_tokens: int = 32,
    keep_inputs: bool = False,
    *,
    batch_size: int | None = None,
    protocol: Protocol = PAPER,
    record_top: int = 0,
    task: str = "prompt",
) -> list[list[Generation]]:
    """Generate samples for each prompt under one CoT mode.

    Args:
        lm: from `load_model`.
        prompts: whole texts (`Protocol.whole_prompt` makes one), encoded as the tokenizer does by default (with its BOS token, if any,
            unless the text begins with it).
        mode: name of a mode, or a mode with other parameters from `get_mode`.
        num_samples: samples a prompt; in a greedy mode they are all the same.
        seed: with task, prompt index and sample index the key of the random numbers.
        max_cot_tokens: cap on the CoT.
        max_answer_tokens: cap on the answer, the prefill not counted.
        keep_inputs: keep the vectors that were fed, a (T, D) tensor a sample.
        batch_size: rows at a time; None chooses by memory. It does not change the result.
        protocol: says when a CoT ends and where its answer stands.
        record_top: record this many of the mixture's largest entries at each position.
        task: name in the key of the random numbers.

    Returns:
        For each prompt its samples in order.

    Raises:
        UserError: unknown mode, an option out of range, or a prompt that does not fit the context.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    chosen = get_mode(mode) if isinstance(mode, str) else mode
    if num_samples < 1:
        raise UserError(f"num_samples {num_samples} must be at least 1")
    distinct = 1 if chosen.is_greedy else num_samples
    decoder = Decoder(
        lm,
        chosen,
        Limits(max_cot_tokens, max_answer_tokens, protocol),
        seed=seed,
        batch_size=batch_size,
        record_top=record_top,
        keep_inputs=keep_inputs,
    )
    questions = [
        Question(task, index, tuple(lm.vocabulary.encode(text)), tuple(range(distinct)))
        for index, text in enumerate(texts)
    ]
    found = {(g.key.doc_id, g.key.sample): g for g in decoder.run(questions)}
    return [
        [found[index, sample % distinct] for sample in range(num_samples)]
        for index in range(len(texts))
    ]
