"""Soft Thinking against its definition, written here from the paper with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_lm

import softeval
from softeval.errors import UserError
from softeval.modes import Seen, get_mode

PROMPTS = ["1+2=", "What is 7 times 8, and why?"]


def weights_by_hand(logits: list[float], mode) -> dict[int, float]:
    """Token id to weight: softmax, top-k, top-p, min-p, top-n, each renormalised."""
    largest = max(logits)
    probs = {i: math.exp((z - largest) / mode.temperature) for i, z in enumerate(logits)}

    def renormalised(kept):
        total = sum(kept.values())
        return {i: p / total for i, p in kept.items()}

    def ranked(kept):
        return sorted(kept, key=lambda i: -kept[i])

    kept = renormalised(probs)
    if mode.top_k:
        kept = renormalised({i: kept[i] for i in ranked(kept)[: mode.top_k]})
    nucleus, total = {}, 0.0
    for i in ranked(kept):
        nucleus[i] = kept[i]
        total += kept[i]
        if total >= mode.top_p:
            break
    kept = renormalised(nucleus)
    kept = renormalised({i: p for i, p in kept.items() if p >= mode.min_p * max(kept.values())})
    if mode.top_n:
        kept = renormalised({i: kept[i] for i in ranked(kept)[: mode.top_n]})
    return kept


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5},
        {"top_k": 0, "top_p": 0.5, "min_p": 0.0, "top_n": 0},
        {"top_p": 1.0, "min_p": 0.3},
        {"top_n": 2, "temperature": 1.5},
    ],
)
def test_weights_are_those_of_the_definition(options) -> None:
    lm, mode = tiny_lm(), get_mode("soft_thinking", **options)
    logits = torch.randn(6, lm.vocab, generator=torch.Generator().manual_seed(0)) * 3
    found = mode.probs(Seen(logits, lm.embedding))
    for row in range(6):
        expected = weights_by_hand(logits[row].double().tolist(), mode)
        assert set(found[row].nonzero().flatten().tolist()) == set(expected)
        for token, weight in expected.items():
            assert float(found[row, token]) == pytest.approx(weight, rel=1e-4)


def test_without_filters_it_is_soft_greedy() -> None:
    lm = tiny_lm()
    everything = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "top_n": 0, "entropy_threshold": 0.0}
    mode = get_mode("soft_thinking", temperature=0.5, **everything)
    ours = softeval.generate(
        lm, PROMPTS, mode, max_cot_tokens=6, max_answer_tokens=2, keep_inputs=True
    )
    paper = softeval.generate(
        lm, PROMPTS, "soft_greedy", max_cot_tokens=6, max_answer_tokens=2, keep_inputs=True
    )
    for [a], [b] in zip(ours, paper, strict=True):
        assert a.shadow_ids.tolist() == b.shadow_ids.tolist()
        # The first step sees the same logits; later ones also see what rounding has made of it.
        torch.testing.assert_close(a.inputs[0], b.inputs[0])


def test_the_cold_stop_ends_a_chain_after_its_patience() -> None:
    """Every step is cold below a huge threshold: the CoT ends before its third cold step is fed."""
    lm = tiny_lm()
    mode = get_mode("soft_thinking", entropy_threshold=1e9, patience=3)
    for [sample] in softeval.generate(lm, PROMPTS, mode, max_cot_tokens=6, max_answer_tokens=2):
        assert sample.stop_reason == "mode" and len(sample.shadow_ids) == 2
        assert sample.prefill_text.endswith("The final answer is: \\boxed{")
    hasty = get_mode("soft_thinking", entropy_threshold=1e9, patience=1)
    for [sample] in softeval.generate(lm, PROMPTS, hasty, max_cot_tokens=6, max_answer_tokens=2):
        assert len(sample.shadow_ids) == 1  # a CoT has at least one position
    never = get_mode("soft_thinking", entropy_threshold=0.0, patience=1)
    for [sample] in softeval.generate(lm, PROMPTS, never, max_cot_tokens=6, max_answer_tokens=2):
        assert sample.stop_reason != "mode"


def test_warm_steps_start_the_count_again() -> None:
    lm, mode = tiny_lm(), get_mode("soft_thinking", entropy_threshold=0.5, patience=2)
    cold = torch.zeros(1, lm.vocab)
    cold[0, 3] = 50.0
    warm = torch.zeros(1, lm.vocab)
    state, ends = mode.begin(1, torch.device("cpu")), []
    for logits in (cold, warm, cold, cold):
        seen = Seen(logits, lm.embedding)
        step = mode.step(seen, mode.probs(seen), None, state)
        state = step.state
        ends.append(bool(step.ends_N[0]))
    assert ends == [False, False, False, True]


@pytest.mark.parametrize("options", [{"top_p": 0.0}, {"min_p": 2.0}, {"patience": 0}])
def test_values_out_of_range_are_refused(options) -> None:
    with pytest.raises(UserError, match="soft_thinking"):
        get_mode("soft_thinking", **options)
