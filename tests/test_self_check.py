"""A model that decodes wrongly is refused when it is loaded, whatever its architecture."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from tiny import PADDED, tiny_lm, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DynamicCache,
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
)

from softeval.decoding.generate import generate
from softeval.errors import UserError
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model import cache, layers
from softeval.model.cache import row_bytes
from softeval.model.check_cache import CheckCache
from softeval.model.language_model import load_model, wrap_model
from softeval.model.self_check import _copys_disagreement

SIZES: dict[str, Any] = {
    "vocab_size": PADDED,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def built(config: Any) -> Any:
    """A random model in which no parameter is zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def wrapped(config: Any, **options: Any):
    return wrap_model(built(config), tiny_tokenizer(), "tiny", **options)


def refused(config: Any, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        wrapped(config)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny"
    tiny_lm().model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


# Architectures


class Deaf(LlamaForCausalLM):
    """Scales what it is fed, but not what it looks up itself."""

    def forward(self, input_ids=None, inputs_embeds=None, **more):  # type: ignore[override]
        scaled = None if inputs_embeds is None else 2 * inputs_embeds
        return super().forward(input_ids, inputs_embeds=scaled, **more)


def test_a_model_that_treats_fed_vectors_otherwise_is_refused():
    torch.manual_seed(0)
    model = Deaf(LlamaConfig(**SIZES)).eval()
    with pytest.raises(UserError, match="Deaf would be decoded wrongly: logits of token ids"):
        wrap_model(model, tiny_tokenizer())


def test_a_slot_written_for_the_wrong_row_is_found(monkeypatch):
    update = layers.SlotLayer.update

    def swapped(self, keys, values, *args, **more):
        return update(self, keys[[1, 0, *range(2, len(keys))]], values, *args, **more)

    monkeypatch.setattr(layers.SlotLayer, "update", swapped)
    refused(LlamaConfig(**SIZES), "ragged rows, decoding and one plain pass differ")


@pytest.mark.parametrize("window", mostly_slow([8, 300, 4096], [8]))
def test_a_window_that_is_ignored_is_found_however_far_it_is(window, monkeypatch):
    """Beyond some 600 positions on a shrunk copy of the same class."""
    config = MistralConfig(
        **SIZES | {"max_position_embeddings": 8192}, sliding_window=window, head_dim=8
    )
    assert wrapped(config).self_check == "passed"
    monkeypatch.setattr(cache.Visibility, "_slide", lambda self, seen, slot_S, query: seen)
    refused(config, "decoding and one plain pass differ", *["shrunk copy"] * (window > 600))


def test_half_precision_hides_nothing(monkeypatch):
    model = built(MistralConfig(**SIZES, sliding_window=30, head_dim=8)).to(torch.bfloat16)
    assert wrap_model(model, tiny_tokenizer()).self_check == "passed"
    monkeypatch.setattr(cache.Visibility, "_slide", lambda self, seen, slot_S, query: seen)
    with pytest.raises(UserError, match="decoding and one plain pass differ"):
        wrap_model(model, tiny_tokenizer())


def test_an_architecture_that_cannot_be_run_is_one_line():
    model = built(LlamaConfig(**SIZES))
    model.model.forward = lambda *args, **more: list(args)[1]
    with pytest.raises(UserError, match=r"cannot be decoded here \(IndexError: list") as caught:
        wrap_model(model, tiny_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("positions", mostly_slow([100, 256], [100]))
def test_gpt_neo_past_its_local_window_is_generate(positions):
    """Its band follows from the number of keys, of which the decoder shows more than there are."""
    config = GPTNeoConfig(
        vocab_size=PADDED,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=positions,
        initializer_range=0.3,
        eos_token_id=2,
    )
    lm = wrapped(config)
    prompts = ["Tell me: a long story about a cat", "x"]
    bias = lm.model.transformer.h[1].attn.attention.bias
    found = generate(lm, prompts, max_cot_tokens=22, max_answer_tokens=2)
    for prompt, (sample,) in zip(prompts, found, strict=True):
        ids = torch.tensor([lm.tokenizer.encode(prompt)])
        banned = [[id] for id in range(lm.vocab, PADDED)]
        out = lm.model.generate(
            ids, do_sample=False, max_new_tokens=22, bad_words_ids=banned, pad_token_id=0
        )
        shadow = sample.shadow_ids.tolist()
        assert shadow == out[0, ids.shape[1] :][: len(shadow)].tolist()
    assert lm.model.transformer.h[1].attn.attention.bias is bias


def test_what_a_row_stores_is_measured():
    """Multi-head latent attention stores what its configuration's head_dim does not tell."""
    config = DeepseekV3Config(
        **SIZES | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
    )
    model = built(config)
    stored = DynamicCache()
    model(input_ids=torch.zeros(1, 100, dtype=torch.long), past_key_values=stored)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in stored.layers)  # type: ignore[union-attr]
    assert row_bytes(model, 100) == real + 6 * 4 * PADDED


# What is remembered


def test_what_passed_once_is_not_tried_again(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTEVAL_CACHE", str(tmp_path / "cache"))
    assert load_model(checkpoint, device="cpu").self_check == "passed"
    again = load_model(checkpoint, device="cpu")
    assert (again.self_check, again.batch_invariant) == ("cached", True)
    assert load_model(checkpoint, device="cpu", dtype="bfloat16").self_check == "passed"
    changed = copy.deepcopy(again.model)
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed.save_pretrained(checkpoint)
    assert load_model(checkpoint, device="cpu").self_check == "passed"


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_what_one_processor_was_found_to_do_is_not_told_of_another(kind, monkeypatch, tmp_path):
    """Kernels differ, and with them what a batch does to a row's bits; a cache may be shared."""
    model, place = tiny_lm("llama").model, torch.device(kind)
    monkeypatch.setenv("SOFTEVAL_CACHE", str(tmp_path))
    monkeypatch.setattr(type(model), "device", place)
    module, name = (
        (torch.cuda, "get_device_name")
        if kind == "cuda"
        else (torch.backends.cpu, "get_cpu_capability")
    )
    found = []
    for named in ("one", "other", "one"):
        monkeypatch.setattr(module, name, lambda *_, named=named: named)
        cache = CheckCache(model, 1)
        found.append(cache.read())
        cache.write(named == "one")
    assert found == [None, None, True]


def test_a_cache_that_cannot_be_written_or_read_costs_nothing(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTEVAL_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert load_model(checkpoint, device="cpu").self_check == "passed"
    monkeypatch.setenv("SOFTEVAL_CACHE", str(tmp_path / "torn"))
    load_model(checkpoint, device="cpu")
    (entry,) = (tmp_path / "torn" / "self_check").iterdir()
    entry.write_text("{")
    assert load_model(checkpoint, device="cpu").self_check == "passed"


def test_the_check_can_be_left_out(checkpoint):
    unchecked = load_model(checkpoint, device="cpu", self_check=False)
    assert (unchecked.self_check, unchecked.batch_invariant) == ("skipped", None)
    adapter = SoftEvalLM(str(checkpoint), device="cpu", self_check=False)
    assert adapter.language_model.self_check == "skipped"


# Bits


@pytest.mark.slow
def test_experts_give_a_row_the_same_bits_in_any_batch():
    lm = tiny_lm("mixtral")
    assert lm.batch_invariant
    prompts = ["What is 2+2?", "Tell me: a story"]
    options = {"num_samples": 12, "max_cot_tokens": 6, "max_answer_tokens": 2, "keep_inputs": True}
    many, few = (generate(lm, prompts, "soft_sample", **options, batch_size=b) for b in (24, 5))
    for a, b in zip(chain(*many), chain(*few), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert a.entropy.tobytes() == b.entropy.tobytes()


def test_a_model_whose_bits_depend_on_the_batch_is_recorded_as_such():
    model = built(LlamaConfig(**SIZES))
    model.lm_head.register_forward_hook(lambda module, args, out: out * (1 + 1e-6 * len(out)))
    lm = wrap_model(model, tiny_tokenizer())
    assert (lm.self_check, lm.batch_invariant) == ("passed", False)


def test_no_random_generator_is_left_otherwise(monkeypatch):
    """Neither the host's nor a GPU's, from which a user may draw."""
    model, before = tiny_lm("llama").model, torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU is seeded"))
    assert _copys_disagreement(model) is None
    assert torch.equal(torch.get_rng_state(), before)
