"""LongRoPE: every row by its own length, on both sides of the limit and across it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from lm_eval.api.instance import Instance
from tiny import PADDED, tiny_tokenizer
from transformers import Phi3Config, Phi3ForCausalLM

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.generate import generate
from softeval.errors import UserError
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.model.output_head import last_hidden
from softeval.model.stopping import Limits
from softeval.modes import MODES

LIMIT = 24


def long_rope(limit: int = LIMIT) -> Phi3ForCausalLM:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=PADDED,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256 if limit < 256 else 2**17,
        original_max_position_embeddings=limit,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": limit,
        },
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Phi3ForCausalLM(config).eval()


@cache
def long_rope_lm() -> LanguageModel:
    return wrap_model(long_rope(), tiny_tokenizer(), "long rope")


@torch.no_grad()
def step_by_step(prompt: str, tokens: int) -> list[int]:
    """The greedy continuation of an untouched model, without a cache: a pass for every token."""
    lm, plain = long_rope_lm(), long_rope()
    ids = lm.tokenizer.encode(prompt)
    for _ in range(tokens):
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, : lm.vocab]
        ids.append(int(logits.argmax()))
    return ids[-tokens:]


@pytest.mark.parametrize(
    "length", mostly_slow([3, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 40], [LIMIT - 1])
)
def test_a_row_that_crosses_the_limit_is_what_passes_without_a_cache_say(length):
    prompt = "a" * (length - 1) + "b"
    ((sample,),) = generate(long_rope_lm(), prompt, max_cot_tokens=26, max_answer_tokens=2)
    shadow = sample.shadow_ids.tolist()
    assert shadow == step_by_step(prompt, 26)[: len(shadow)]
    assert length + len(shadow) > LIMIT + 3


@pytest.mark.slow
def test_no_sample_depends_on_its_neighbours():
    """Rows below, above and across the limit, that come, move and go: the same bits as alone."""
    lm = long_rope_lm()
    texts = ["x", "y" * 40, "z" * (LIMIT - 4), "w" * LIMIT]
    questions = [
        Question("t", index, tuple(lm.tokenizer.encode(text)), (0, 1))
        for index, text in enumerate(texts)
    ]

    def decode(asked, batch_size):
        decoder = Decoder(
            lm, MODES["soft_sample"], Limits(10, 2), batch_size=batch_size, keep_inputs=True
        )
        return {g.key: (g.inputs.numpy().tobytes(), g.answer_text) for g in decoder.run(asked)}

    alone = {}
    for question in questions:
        alone |= decode([question], 1)
    assert decode(questions[::-1], 3) == alone


def test_a_pass_over_a_whole_sequence_is_that_of_the_decoder():
    """Training and KL replay what was decoded: positions below the limit as they were then."""
    lm = long_rope_lm()
    ((sample,),) = generate(
        lm, "a" * 10, "soft_greedy", max_cot_tokens=30, max_answer_tokens=2, keep_inputs=True
    )
    prompt = lm.embedding.rows(torch.as_tensor(sample.prompt_ids))
    fed = torch.cat([prompt, sample.inputs])[None]
    with torch.no_grad():
        hidden = last_hidden(lm.model, fed)[0, len(prompt) - 1 : -1]
        logits = lm.logits(lm.model.lm_head(hidden))
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    np.testing.assert_allclose(sample.entropy, entropy.numpy(), rtol=1e-4, atol=1e-5)


def test_log_likelihoods_do_not_depend_on_their_neighbours():
    adapter = SoftEvalLM(long_rope_lm(), max_cot_tokens=4, max_answer_tokens=2, batch_size=4)
    texts = [("ab", "cd"), ("e" * 30, "fg"), ("h" * (LIMIT - 1), "ij"), ("k" * (LIMIT - 2), "lm")]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in texts
    ]
    together = adapter.loglikelihood(asked, disable_tqdm=True)
    alone = [adapter.loglikelihood([one], disable_tqdm=True)[0][0] for one in asked]
    np.testing.assert_allclose([score[0] for score in together], alone, rtol=1e-5)


@pytest.mark.parametrize("limit", [LIMIT, 4096])
def test_factors_chosen_for_the_whole_batch_are_refused(limit, monkeypatch):
    """As transformers alone does it; far limits on a shrunk copy of the same class."""
    assert wrap_model(long_rope(limit), tiny_tokenizer()).self_check == "passed"
    monkeypatch.setattr("softeval.model.mends._choose_factors_by_row", lambda model: None)
    with pytest.raises(UserError, match="decoding and one plain pass differ"):
        wrap_model(long_rope(limit), tiny_tokenizer())
