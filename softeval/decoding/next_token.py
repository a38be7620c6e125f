"""What the next token owes to the vector that was fed: one step of a CoT taken in three ways.

At some positions of a CoT the model is fed, after the same prefix, the recorded vector, the embedding
of its shadow token, and the mode's mixture before any draw or noise. Compared are the distributions
of the next token at temperature 1. Costs, for each position, a pass over its prefix and two steps.

Shapes: K positions tried, 3K rows, T CoT positions, P prompt tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softeval.decoding.kl import exact_kl
from softeval.decoding.randomness import SampleRandomness, Stream
from softeval.decoding.replay import closing
from softeval.errors import UserError
from softeval.model.feeding import RowFeeder, Shown
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import output_head
from softeval.model.stopping import stopper_of
from softeval.modes import Mode, Seen
from softeval.protocol import PAPER, Protocol
from softeval.records import Generation

WAYS = 3


class NextTokens(NamedTuple):
    """Of some steps of a CoT.

    Attributes:
        steps: how many were tried.
        agreeing: those after which the likeliest token is also that after the shadow's embedding.
        kl: mean KL(after the mixture‖after what was fed), nats; 0 in a greedy mode, which draws
            nothing; None where no step was tried.
    """

    steps: int
    agreeing: int
    kl: float | None


@torch.inference_mode()
def next_tokens(
    lm: LanguageModel, mode: Mode, cot: Generation, seed: int, most: int, protocol: Protocol = PAPER
) -> NextTokens:
    """Try up to `most` steps, keyed by seed and sample; none of what closed the CoT.

    Args:
        lm: the checkpoint.
        mode: that the CoT was made under.
        cot: with what was fed.
        seed: the run's.
        most: K at most.
        protocol: whose stop rule ended the CoT.

    Raises:
        UserError: the model's logits are not finite.
    """
    body = len(cot.shadow_ids) - closing(cot, stopper_of(lm.tokenizer, protocol))
    chosen = SampleRandomness(seed, cot.key).order(body, Stream.STEPS)[:most].tolist()
    if not chosen:
        return NextTokens(0, 0, None)
    assert cot.inputs is not None, "a step needs what was fed"
    prompt_PD = lm.embedding.rows(torch.as_tensor(cot.prompt_ids, device=lm.device))
    fed_LD = torch.cat([prompt_PD, cot.inputs.to(prompt_PD)])
    rows = WAYS * len(chosen)
    feeder, lasts = RowFeeder(lm.model, rows, len(fed_LD)), []
    for index, step in enumerate(chosen):
        lasts.append(len(prompt_PD) + step - 1)
        places = range(WAYS * index, WAYS * (index + 1))
        feeder.fill(places, feeder.prefill(fed_LD[: lasts[-1]]))
    positions = [last for last in lasts for _ in range(WAYS)]
    before = _step(lm, feeder, fed_LD[positions], positions)
    at = torch.tensor(chosen, device=lm.device)
    shadows_KD = lm.embedding.rows(torch.as_tensor(cot.shadow_ids, device=lm.device)[at])
    tried_KD = fed_LD[len(prompt_PD) + at]
    clean_KD = tried_KD if mode.is_greedy else _mixtures(lm, mode, before)[::WAYS].to(tried_KD)
    ways_ND = torch.stack([tried_KD, shadows_KD, clean_KD], 1).flatten(0, 1)
    after = _step(lm, feeder, ways_ND, [position + 1 for position in positions])
    log_p_KWV = after.logits_NW.float().log_softmax(-1).unflatten(0, (-1, WAYS))
    if not log_p_KWV.isfinite().all():
        raise UserError(
            f"{cot.key.task} question {cot.key.doc_id}: logits after a step of {mode.name} are not"
            " finite; attribute on the device and in the precision that evaluated it"
        )
    likeliest_KW = log_p_KWV.argmax(-1)
    agreeing = int((likeliest_KW[:, 0] == likeliest_KW[:, 1]).sum())
    return NextTokens(len(chosen), agreeing, _mean_kl(log_p_KWV[:, 2], log_p_KWV[:, 0]))


def _step(lm: LanguageModel, feeder: RowFeeder, fed_ND: Tensor, positions: list[int]) -> Shown:
    """What is seen of the rows in use, over the ids that the tokenizer knows."""
    shown = feeder.feed(fed_ND, positions)
    return Shown(lm.logits(shown.logits_NW), shown.hidden_ND)


def _mixtures(lm: LanguageModel, mode: Mode, shown: Shown) -> Tensor:
    """(N, D) the mode's mixture at each row."""
    head = output_head(lm) if mode.needs_head else None
    probs_NV = mode.probs(Seen(shown.logits_NW, lm.embedding, shown.hidden_ND, head))
    return lm.embedding.mix(probs_NV)


def _mean_kl(log_p_KV: Tensor, log_q_KV: Tensor) -> float:
    """Without what rounding leaves below zero."""
    return float(exact_kl(log_p_KV, log_q_KV).clamp(min=0).mean())
