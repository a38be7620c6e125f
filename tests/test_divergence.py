"""KL between two models along prefixes, against plain torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from tiny import tiny_lm, tiny_tokenizer

from softeval.decoding.generate import generate
from softeval.decoding.kl import ModelComparison, Prefix
from softeval.errors import UserError
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.modes import MODES

FAMILIES = ["llama", "gemma2", "gpt2"]


def moved(lm: LanguageModel, size: float = 0.05) -> LanguageModel:
    """The model with every weight moved a little, its embedding included."""
    model = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * weight.std() * torch.randn(weight.shape, generator=generator)
    return wrap_model(model, lm.tokenizer, "moved")


def prefix_of(lm: LanguageModel, mode: str) -> Prefix:
    ((g,),) = generate(
        lm, ["Tell me a story"], mode, max_cot_tokens=24, max_answer_tokens=2, keep_inputs=True
    )
    inputs = None if MODES[mode].feeds_tokens else g.inputs
    return Prefix(g.prompt_ids, g.shadow_ids, inputs, g.record)


def plain_log_probs(lm: LanguageModel, prefix: Prefix, fed: torch.Tensor) -> torch.Tensor:
    """(T, V) float64 log-probabilities that predict the CoT, by one uncached, unchunked pass."""
    prompt = lm.embedding.rows(torch.from_numpy(prefix.prompt_ids))
    logits = lm.model(inputs_embeds=torch.cat([prompt, fed])[None]).logits[0]
    at_cot = logits[len(prompt) - 1 : len(prompt) + len(fed) - 1, : lm.vocab]
    return at_cot.double().log_softmax(-1)


@torch.no_grad()
def plain_kl(lm: LanguageModel, base: LanguageModel, prefix: Prefix, mode: str):
    if prefix.inputs is None:
        ids = torch.from_numpy(prefix.shadow_ids)
        own, other = lm.embedding.rows(ids), base.embedding.rows(ids)
    else:
        own = prefix.inputs
        log_p = plain_log_probs(lm, prefix, own)
        weights = (log_p / MODES[mode].temperature).softmax(-1).float()
        every = torch.arange(lm.vocab)
        noise = own - weights @ lm.embedding.rows(every)
        other = weights @ base.embedding.rows(every) + noise
    log_p, log_q = plain_log_probs(lm, prefix, own), plain_log_probs(base, prefix, other)
    forward = (log_q.exp() * (log_q - log_p)).sum(-1)
    reverse = (log_p.exp() * (log_p - log_q)).sum(-1)
    return forward.numpy(), reverse.numpy()


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["gemma2"]))
@pytest.mark.parametrize(
    "mode", mostly_slow(["hard_sample", "soft_sample", "soft_greedy"], ["soft_sample"])
)
def test_kl_is_that_of_a_plain_computation(family, mode):
    base = tiny_lm(family)
    lm = moved(base)
    prefix = prefix_of(lm, mode)
    found = ModelComparison(lm, base).kl(prefix, MODES[mode])
    forward, reverse = plain_kl(lm, base, prefix, mode)
    assert forward.max() > 1e-3  # the models do differ
    np.testing.assert_allclose(found.forward, forward, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.reverse, reverse, rtol=1e-3, atol=1e-5)
    assert len(found.forward) == len(prefix.shadow_ids)


@pytest.mark.parametrize(
    "mode",
    mostly_slow(MODES, ["soft_sample", "hidden_noise"]),
)
def test_a_model_against_itself_is_at_most_the_floor(mode):
    lm = tiny_lm()
    twin = wrap_model(copy.deepcopy(lm.model), lm.tokenizer, "twin")
    comparison = ModelComparison(lm, twin)
    prefix = prefix_of(lm, mode)
    found = comparison.kl(prefix, MODES[mode])
    floor = np.concatenate(comparison.noise_floor([prefix_of(lm, "hard_sample")] * 3))
    assert found.forward.mean() <= max(3 * floor.mean(), 1e-6)
    assert found.reverse.mean() <= max(3 * floor.mean(), 1e-6)


def test_chunks_change_nothing(monkeypatch):
    from dataclasses import replace

    base = tiny_lm()
    lm = moved(base)
    prefix = prefix_of(lm, "soft_sample")
    whole, chunked = ModelComparison(lm, base), ModelComparison(lm, base)
    for replayer in (chunked.checkpoint, chunked.base):
        replayer._rule = replace(replayer._rule, chunk=5)
    a, b = (c.kl(prefix, MODES["soft_sample"]) for c in (whole, chunked))
    np.testing.assert_allclose(a.forward, b.forward, rtol=1e-4, atol=1e-6)


def test_other_weights_mean_larger_kl():
    base = tiny_lm()
    prefix = prefix_of(base, "hard_sample")
    near, far = (
        ModelComparison(moved(base, size), base).kl(prefix, MODES["hard_sample"]).forward.mean()
        for size in (0.01, 0.1)
    )
    assert 0 < near < far


def test_models_of_different_tokenizers_are_refused():
    lm = tiny_lm()
    other = copy.deepcopy(tiny_tokenizer())
    other.add_tokens(["<think>"])
    with pytest.raises(UserError, match="different tokenizers"):
        ModelComparison(lm, wrap_model(lm.model, other, "other"))
