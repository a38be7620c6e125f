"""Loading checkpoints: what works, and what is refused with its remedy."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from tiny import CONFIGS, PADDED, tiny_lm, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from softeval.errors import UserError
from softeval.model.cache import auto_batch_size, row_bytes
from softeval.model.language_model import load_model, wrap_model
from softeval.model.weights import weights_hash


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "tiny"
    tiny_lm().model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_saved_checkpoint_loads_as_it_was(checkpoint):
    lm = load_model(checkpoint, device="cpu")
    assert weights_hash(lm.model) == weights_hash(tiny_lm().model)
    assert lm.dtype == torch.float32
    assert lm.vocab == len(tiny_tokenizer())
    assert lm.max_length == 256
    assert lm.eos_ids == {2}
    assert not lm.model.training
    assert repr(lm) == f"LanguageModel({str(checkpoint)!r}, llama, float32 on cpu)"


def test_dtype_and_logits_dtype_are_obeyed(checkpoint):
    lm = load_model(checkpoint, dtype="bfloat16", device="cpu", logits_dtype="bfloat16")
    assert lm.dtype == torch.bfloat16
    assert lm.logits(torch.zeros(1, PADDED)).dtype == torch.bfloat16


def test_a_checkpoint_in_the_wild_loads(shared):
    lm = load_model(shared / "models" / "stories260K", device="cpu")
    assert (lm.vocab, lm.max_length, lm.embedding.width) == (512, 512, 64)


def test_the_hash_sees_a_single_changed_weight(checkpoint):
    lm = load_model(checkpoint, device="cpu")
    before = weights_hash(lm.model)
    with torch.no_grad():
        next(lm.model.parameters()).view(-1)[3] += 1e-3
    assert weights_hash(lm.model) != before


def refused(path, part, **options):
    with pytest.raises(UserError) as caught:
        load_model(path, **{"device": "cpu", **options})
    message = str(caught.value)
    assert part in message
    assert "\n" not in message


def test_refusals_name_the_remedy(checkpoint, tmp_path):
    refused(tmp_path / "nothing", "no checkpoint at")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no config.json")
    refused(checkpoint, "choose from auto, float32", dtype="float12")
    refused(checkpoint, "choose from model, bfloat16, float32", logits_dtype="int8")
    refused(checkpoint, "--device cpux", device="cpux")
    if not torch.cuda.is_available():
        refused(checkpoint, "use --device auto or cpu", device="cuda")


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint):
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    refused(checkpoint, "holds no tokenizer")


def test_a_checkpoint_without_weights_is_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "cannot load the weights")


def test_a_torn_weights_file_is_refused(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refused(checkpoint, "cannot load the weights")


def test_a_checkpoint_that_lacks_a_weight_is_refused(checkpoint):
    from safetensors.torch import load_file, save_file

    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    refused(checkpoint, "lacks weights (model.layers.1.mlp.up_proj.weight)")


def test_encoders_and_encoder_decoders_are_refused(tmp_path):
    tiny: dict[str, Any] = {"vocab_size": 112, "hidden_size": 16, "num_hidden_layers": 1}
    bert = BertConfig(**tiny, num_attention_heads=2, intermediate_size=16)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    t5 = T5Config(vocab_size=112, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    for name in ("bert", "t5"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
        refused(tmp_path / name, "no decoder-only language model")


def test_unknown_model_type_is_one_line(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "neverheard"}))
    refused(checkpoint, "cannot load")


def test_layers_of_a_strange_kind_are_refused():
    from softeval.model.cache import Visibility

    model = tiny_lm("qwen3").model
    model.config.layer_types = ["indexed_attention", "full_attention"]
    try:
        with pytest.raises(UserError, match="has indexed_attention layers"):
            Visibility(model)
    finally:
        model.config.layer_types = ["full_attention"] * 2


def test_an_embedding_that_is_no_table_is_refused():
    lm = tiny_lm()
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    table = model.get_input_embeddings()
    table.register_forward_hook(lambda module, args, out: out + 1.0)
    with pytest.raises(UserError, match="neither a plain nor a scaled table"):
        wrap_model(model, lm.tokenizer)


def test_batch_size_follows_memory(monkeypatch):
    from softeval.model import cache

    model = tiny_lm().model
    one = row_bytes(model, 200)
    assert row_bytes(model, 400) > one
    monkeypatch.setattr(cache, "_free_bytes", lambda device: 2 * 10 * one)
    assert auto_batch_size(model, 200) == 10
    monkeypatch.setattr(cache, "_free_bytes", lambda device: 10**15)
    assert auto_batch_size(model, 200) == 128
    monkeypatch.setattr(cache, "_free_bytes", lambda device: 0)
    assert auto_batch_size(model, 200) == 1


@pytest.mark.parametrize("idle", [0, 4, 7])
def test_memory_that_the_allocator_keeps_idle_counts_as_free_on_cuda(monkeypatch, idle):
    """After a training pass that filled the card nothing is left but what torch reserved."""
    from softeval.model import cache

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 - idle, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50 + idle)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert cache._free_bytes(torch.device("cuda")) == 8


def test_shutil_is_not_needed_to_copy_a_checkpoint(checkpoint, tmp_path):
    """A checkpoint is a plain directory: a copy of it is the same model."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert weights_hash(load_model(tmp_path / "copy").model) == (
        weights_hash(load_model(checkpoint).model)
    )
