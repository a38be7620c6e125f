"""Tiny randomly initialised models of many families, and a character tokenizer, made in-process."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from softeval.model.language_model import LanguageModel, wrap_model

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
VOCAB = len(CHARACTERS) + 3
"""Ids the tokenizer knows; models get PADDED rows, the rest being padding."""
PADDED = 112

_BASE: dict[str, Any] = {
    "vocab_size": PADDED,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that distributions are peaked and differ
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_KV: dict[str, Any] = {**_BASE, "num_key_value_heads": 2}
_SLIDING: dict[str, Any] = {"sliding_window": 8}  # far shorter than a test's sequences

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_KV, tie_word_embeddings=False),
    "llama_tied": lambda: LlamaConfig(**_KV, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_KV),
    "qwen2_sliding": lambda: Qwen2Config(
        **_KV, **_SLIDING, use_sliding_window=True, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_KV, head_dim=8),
    "gemma": lambda: GemmaConfig(**_KV, head_dim=8),
    "gemma2": lambda: Gemma2Config(**_KV, **_SLIDING, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(
        **_KV,
        **_SLIDING,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral": lambda: MistralConfig(**_KV, **_SLIDING, head_dim=8),
    "gpt2": lambda: GPT2Config(
        vocab_size=PADDED,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_BASE),
    "phi3": lambda: Phi3Config(**_KV, **_SLIDING),
    "olmo2": lambda: Olmo2Config(**_KV),
    "mixtral": lambda: MixtralConfig(**_KV, num_local_experts=4, num_experts_per_tok=2),
}
FAMILIES = sorted(CONFIGS)


PREFILL = ("The final ", "answer is: ", "\\boxed{")
"""Words of the tokenizer, or most steps of a test would feed the letters of the prefill. No single
one ends a CoT, which a random model would come upon."""


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, words in place of ^, ` and ~; <pad>, <s>, </s>; no BOS is added."""
    pieces = ["<pad>", "<s>", "</s>", *CHARACTERS]
    for word, rare in zip(PREFILL, "^`~", strict=True):
        pieces[pieces.index(rare)] = word
    vocab = {token: id for id, token in enumerate(pieces)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    pattern = "|".join([*map(re.escape, PREFILL), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


@cache
def tiny_lm(family: str = "llama", logits_dtype: str = "model", seed: int = 0) -> LanguageModel:
    """A random model of a family in float32; shared between tests, never to be changed."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32).eval()
    model.requires_grad_(False)
    return wrap_model(model, tiny_tokenizer(), f"tiny-{family}", logits_dtype=logits_dtype)
