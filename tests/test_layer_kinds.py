"""Each kind of layer keeps what is a row's with the row, whoever comes and goes beside it."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import decode, fed_rows, tiny_config, tiny_model
from conftest import mostly_slow
from tiny import tiny_tokenizer

from softeval import UserError, generate
from softeval.decoding.decoder import Decoder, Limits, Question
from softeval.model import embedding, layers, mends
from softeval.model.cache import row_bytes
from softeval.model.feeding import RowFeeder
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.modes import MODES

KINDS = {
    "lfm2": "a short convolution",
    "qwen3_next": "linear attention",
    "llama4_text": "chunked attention",
    "falcon_h1": "attention and a recurrence in one layer",
    "nemotron_h": "an MLP and experts alone",
    "mamba2": "recurrences and nothing else",
    "gemma4_text (shared KV)": "keys of an earlier layer, and per-layer embeddings",
}
PROMPTS = ["A", "Once upon a time", "4+5=", "B"]
"""1, 16, 4 and 1 tokens."""


def tiny(name: str, **options) -> LanguageModel:
    return wrap_model(tiny_model(tiny_config(name)), tiny_tokenizer(), name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_a_sample_is_the_same_alone_and_among_rows_that_come_and_go(name):
    lm = tiny(name, self_check=False)

    def samples(batch_size):
        found = generate(lm, PROMPTS, "soft_sample", 2, 7, 8, 3, batch_size=batch_size)
        return [sample for some in found for sample in some]

    for beside, alone in zip(samples(5), samples(1), strict=True):
        assert beside.shadow_ids.tolist() == alone.shadow_ids.tolist()
        assert torch.allclose(
            torch.as_tensor(beside.entropy), torch.as_tensor(alone.entropy), atol=1e-5
        )


@pytest.mark.parametrize("name", mostly_slow(list(KINDS), ["lfm2", "falcon_h1"]))
@torch.inference_mode()
def test_a_row_decodes_as_a_plain_pass_after_a_move_and_after_another_row(name):
    """Rows 0 and 1 start, row 1 moves to 0, and a row of no prompt takes the place it left."""
    lm = tiny(name, self_check=False)
    ids = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(1))
    first, second, third = (fed_rows(lm, row) for row in ids)
    feeder = RowFeeder(lm.model, 2, 32)
    feeder.fill([0], feeder.prefill(first[:9]))
    feeder.fill([1], feeder.prefill(second[:4]))
    feeder.feed(torch.stack([first[9], second[4]]), [9, 4])
    feeder.move(1, 0, 5)
    feeder.fill([1], feeder.prefill(third[:0]))
    for step in range(5):
        logits = feeder.feed(torch.stack([second[5 + step], third[step]]), [5 + step, step])[0]
    for found, row in ((logits[0], second[:10]), (logits[1], third[:5])):
        expected = lm.model(inputs_embeds=row[None], use_cache=False).logits[0, -1]
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("fault", ["move", "clear"])
def test_a_state_that_stays_behind_is_seen(fault, monkeypatch):
    """The tests above would fail if a state was not moved, or not zeroed."""
    monkeypatch.setattr(layers.StateLayer, fault, lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_row_decodes_as_a_plain_pass_after_a_move_and_after_another_row("lfm2")


@pytest.mark.slow
def test_a_row_that_waits_for_the_host_does_not_go_on_in_a_recurrence():
    """Seldom looks let a waiting row be fed again, which attention forgets and a state does not."""
    lm = tiny("lfm2", self_check=False)
    limits = Limits(max_cot_tokens=12, max_answer_tokens=3)

    def ids(every):
        decoder = Decoder(lm, MODES["hard_sample"], limits, seed=2, look_every=every)
        question = Question("t", 0, tuple(lm.tokenizer.encode("4+5=")), (0, 1, 2, 3))
        return {g.key: (*g.shadow_ids, *g.answer_ids) for g in decoder.run([question])}

    assert ids(4) == ids(1)


def test_states_count_once_in_the_memory_of_a_row():
    model = tiny_model(tiny_config("lfm2"))
    one, two, three = (row_bytes(model, length) for length in (100, 200, 300))
    assert two - one == three - two > 0
    pure = tiny_model(tiny_config("mamba2"))
    assert row_bytes(pure, 100) == row_bytes(pure, 300)


def test_a_kind_of_layer_that_is_not_known_is_named():
    with pytest.raises(UserError, match="has indexed_attention layers; softeval decodes full_att"):
        layers.check_layer_kinds(tiny_config("deepseek_v32"))


def test_llama_4_ends_where_its_temperature_would_change():
    """Its layers without positions count the slots of a batch; below the first change it is one."""
    config = tiny_config("llama4_text")
    config.floor_scale, config.attn_scale = 130, 5.0
    lm = wrap_model(tiny_model(config), tiny_tokenizer(), "llama4")
    assert lm.max_length == 128
    with pytest.raises(UserError, match="exceeds the context of 128"):
        generate(lm, ["A" * 100], "hard_greedy", 1, 0, 40, 3)


def test_time_steps_are_bounded_when_a_state_space_is_stepped(monkeypatch):
    model = tiny_model(tiny_config("zamba2"))
    for mixer in model.modules():
        if hasattr(mixer, "dt_bias"):
            mixer.dt_bias.fill_(-9.0)  # softplus(Δ - 9) is mostly below the least step of 0.001
    wrap_model(model, tiny_tokenizer(), "zamba2")
    mends.mend(model)
    hooks = [len(m.in_proj._forward_hooks) for m in model.modules() if hasattr(m, "dt_bias")]
    assert set(hooks) == {1}
    for mixer in model.modules():
        if hasattr(mixer, "dt_bias"):
            mixer.in_proj._forward_hooks.clear()
    monkeypatch.setattr(mends, "_bound_time_steps", lambda model: None)
    with pytest.raises(UserError, match="decoding and one plain pass differ"):
        wrap_model(model, tiny_tokenizer(), "zamba2")


# Per-layer embeddings


@pytest.fixture(scope="module")
def gemma() -> LanguageModel:
    return tiny("gemma3n_text")


def test_a_certain_mixture_feeds_what_the_token_id_feeds(gemma):
    ids = torch.arange(3, 60)
    hot = torch.nn.functional.one_hot(ids, gemma.vocab).float()
    with torch.inference_mode():
        mixed = gemma.embedding.mix(hot).to(gemma.dtype)
        assert torch.equal(mixed, gemma.embedding.rows(ids))
        assert torch.equal(mixed, fed_rows(gemma, ids.tolist()))
        by_mixture = gemma.model(inputs_embeds=mixed[None], use_cache=False).logits
        by_id = gemma.model(input_ids=ids[None], use_cache=False).logits
    assert torch.equal(by_mixture, by_id)


def test_noise_is_added_to_the_input_embedding_alone(gemma):
    width = gemma.embedding.width
    runs = [
        generate(gemma, ["A b"], mode, 1, 3, 1, 1, keep_inputs=True)[0][0].inputs[0]
        for mode in ("soft_greedy", "soft_sample")
    ]
    assert len(runs[0]) == gemma.embedding.fed_width > width
    assert not torch.equal(runs[0][:width], runs[1][:width])
    assert torch.equal(runs[0][width:], runs[1][width:])


def test_ids_beyond_the_per_layer_table_take_its_first_row():
    config = tiny_config("gemma3n_text")
    config.vocab_size_per_layer_input = 50
    lm = wrap_model(tiny_model(config), tiny_tokenizer(), "gemma3n")
    ids, width = torch.tensor([0, 49, 50, 80]), lm.embedding.width
    rows = lm.embedding.rows(ids)
    assert torch.equal(rows[2:, width:], rows[[0, 0], width:])
    assert not torch.equal(rows[1, width:], rows[0, width:])
    probs = torch.rand(2, lm.vocab).softmax(-1)
    every = lm.embedding.rows(torch.arange(lm.vocab))
    assert torch.allclose(lm.embedding.mix(probs), probs @ every, atol=1e-6)


def test_per_layer_embeddings_that_are_lost_are_found(monkeypatch):
    split = embedding._split

    def lost(*given):
        args, kwargs = split(*given) or (None, None)
        return kwargs and (args, kwargs | {"per_layer_inputs": 0 * kwargs["per_layer_inputs"]})

    monkeypatch.setattr(embedding, "_split", lost)
    with pytest.raises(UserError, match="logits of token ids and of their embeddings differ"):
        tiny("gemma3n_text")


def test_hidden_states_cannot_stand_for_per_layer_embeddings(gemma):
    with pytest.raises(UserError, match="no last hidden state as wide as its input"):
        generate(gemma, ["A"], "coconut", 1, 0, 4, 2)


def test_entropies_of_per_layer_models_are_finite(gemma):
    for mode in ("soft_thinking", "multiplex"):
        assert all(math.isfinite(e) for e in generate(gemma, ["A"], mode, 1, 0, 4, 2)[0][0].entropy)
    assert decode(gemma, "fuzzy_sample")[0][0].shadow_ids.size
