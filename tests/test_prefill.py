"""Prompts go through the model once, in passes of bounded size, and nothing of that shows."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from architectures import fed_rows, tiny_config, tiny_model
from conftest import mostly_slow
from tiny import tiny_lm, tiny_tokenizer

from softeval.decoding.decoder import Decoder, Limits, Question
from softeval.model import feeding
from softeval.model.feeding import RowFeeder
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.modes import MODES

KINDS = {
    "llama": "attention",
    "gemma3_text": "sliding attention",
    "llama4_text": "chunked attention, and experts",
    "gpt_neo": "a band of its own",
    "deepseek_v3": "keys from a latent",
    "gemma4_text (shared KV)": "keys of an earlier layer, and per-layer embeddings",
    "phi3 (LongRoPE)": "factors that follow from the length",
    "lfm2": "a short convolution",
    "qwen3_next": "linear attention",
    "falcon_h1": "attention and a recurrence in one layer",
    "mamba2": "recurrences and nothing else",
    "jamba": "a recurrence that transformers scans from zero",
    "zamba": "the same, a head",
}
TOLERANCE = 1e-4
"""Of the logits' spread; float32 rounding stays below 1e-5."""
TEXTS = ("12+34=", "abcdefghijklmnopqrstuvwxyz", "x", "the quick brown fox")


def tiny(name: str) -> LanguageModel:
    return wrap_model(tiny_model(tiny_config(name)), tiny_tokenizer(), name, self_check=False)


@torch.inference_mode()
def after_prompts(lm: LanguageModel, lengths: list[int], chunk: int, *, together: bool):
    """(N, V) logits of the token behind each of some prompts, prefilled in passes of `chunk`."""
    ids = torch.randint(3, 90, (len(lengths), 64), generator=torch.Generator().manual_seed(1))
    rows = [fed_rows(lm, row) for row in ids]
    prompts = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    feeder = RowFeeder(lm.model, len(lengths), 64, chunk)
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    for place, filled in enumerate([f for group in groups for f in feeder.prefill_together(group)]):
        feeder.fill([place], filled)
    fed = torch.stack([row[length] for row, length in zip(rows, lengths, strict=True)])
    return feeder.feed(fed, lengths).logits_NW


def largest_gap(found, expected) -> float:
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("name", mostly_slow(list(KINDS), ["gemma3_text", "lfm2", "jamba"]))
def test_a_prompt_in_chunks_is_the_prompt_in_one_pass(name):
    lm = tiny(name)
    whole, chunked = (after_prompts(lm, [45, 5], c, together=False) for c in (64, 7))
    assert largest_gap(chunked, whole) < TOLERANCE


@pytest.mark.parametrize("name", mostly_slow(list(KINDS)[:6], ["gemma3_text"]))
@pytest.mark.parametrize("chunk", [1000, 30], ids=["at once", "in chunks"])
def test_prompts_together_are_each_alone(name, chunk):
    lm = tiny(name)
    alone = after_prompts(lm, [45, 5, 0, 17], 64, together=False)
    assert largest_gap(after_prompts(lm, [45, 5, 0, 17], chunk, together=True), alone) < TOLERANCE


def test_a_state_that_is_not_carried_on_is_seen(monkeypatch):
    monkeypatch.setattr(feeding, "scans_from_zero", lambda _: False)
    with pytest.raises(AssertionError):
        test_a_prompt_in_chunks_is_the_prompt_in_one_pass("jamba")


@contextmanager
def watched(lm: LanguageModel):
    """Lists rows and positions of each pass over prompts (which asks for one position's logits)."""
    passes: list[tuple[int, int]] = []

    def note(_, args, kwargs):
        if "logits_to_keep" in kwargs:
            passes.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    hook = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    yield passes
    hook.remove()


def decoded(lm: LanguageModel, texts=TEXTS, samples=3, batch_size=4):
    questions = [
        Question(text, 0, tuple(lm.tokenizer.encode(text)), tuple(range(samples))) for text in texts
    ]
    decoder = Decoder(lm, MODES["soft_sample"], Limits(8, 3), seed=2, batch_size=batch_size)
    return {(g.key.task, g.key.sample): g for g in decoder.run(questions)}


def bits(sample) -> tuple:
    return (*sample.shadow_ids, *sample.answer_ids, *sample.entropy)


def test_in_float32_on_a_cpu_each_prompt_goes_alone_in_passes_of_bounded_size(monkeypatch):
    """So bits do not depend on the other questions, also not of a prompt that goes in chunks."""
    monkeypatch.setattr(feeding, "PREFILL_POSITIONS", 9)
    lm = tiny_lm("llama")
    with watched(lm) as passes:
        found = decoded(lm)
    assert {rows for rows, _ in passes} == {1} and max(q for _, q in passes) == 9
    assert sum(q for _, q in passes) == sum(len(lm.tokenizer.encode(t)) - 1 for t in TEXTS)
    alone = [decoded(lm, [text], 1, 1)[text, 0] for text in TEXTS]
    assert [bits(found[text, 0]) for text in TEXTS] == [bits(sample) for sample in alone]


@pytest.mark.parametrize("bound", [64, 40])
def test_elsewhere_questions_are_prefilled_together_in_passes_of_bounded_size(bound, monkeypatch):
    monkeypatch.setattr(feeding, "PREFILL_POSITIONS", bound)
    lm = tiny_lm("llama")
    alone = decoded(lm)
    monkeypatch.setattr(feeding, "promises_bits", lambda _: False)
    with watched(lm) as passes:
        found = decoded(lm)
    assert max(rows for rows, _ in passes) > 1 and len(passes) < len(TEXTS)
    assert max(rows * q for rows, q in passes) <= bound
    for key, sample in alone.items():
        assert found[key].shadow_ids.tolist() == sample.shadow_ids.tolist()
        assert largest_gap(*map(torch.as_tensor, (found[key].entropy, sample.entropy))) < 1e-3


def test_in_half_precision_questions_are_prefilled_together():
    lm = tiny("llama")
    half = wrap_model(lm.model.to(torch.bfloat16), lm.tokenizer, self_check=False)
    with watched(half) as passes:
        decoded(half)
    assert [rows for rows, _ in passes] == [len(TEXTS)]


def test_a_recurrence_is_never_fed_padding():
    lm = tiny("lfm2")
    half = wrap_model(lm.model.to(torch.bfloat16), lm.tokenizer, self_check=False)
    with watched(half) as passes:
        decoded(half)
    assert {rows for rows, _ in passes} == {1}
