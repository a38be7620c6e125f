"""Every architecture that AutoModelForCausalLM maps, tiny, and an oracle for how it is decoded.

The oracle knows nothing of caches, batches or masks: it runs whole prefixes through the model anew,
and recomputes from those logits what must have been fed and recorded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from step_graphs import graphs_of
from tiny import VOCAB, tiny_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from softeval import Generation, UserError, generate
from softeval.decoding.randomness import SampleRandomness
from softeval.model.checkpoint import check_config, text_part
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.modes import MODES, HardMode, Mode, invert_cdf

SEED = 5
WINDOW = 8
POSITIONS = 256
PROMPTS = ("1+", "Once upon a time, 4+5", "a big red cat")
"""2, 21 and 13 tokens, so that rows are ragged, below the window and beyond it."""

TOLERANCE = 2e-4
"""Largest difference of an entropy (nats) or, relative to E, of a fed element. Float32 rounding in
two layers stays two orders below it; a token that sees one position too many does not."""
MOST_PARAMETERS = 5_000_000
CLEAR = 2e-3
"""Two logits nearer than this may change places by rounding."""

_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"], 64),
    **dict.fromkeys(["attention_hidden_size", "rnn_hidden_size", "lru_width", "embedding_dim"], 64),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "ff_dim", "dim_ff"], 96),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "seq_length"], POSITIONS),
    **dict.fromkeys(["max_seq_len", "context_length"], POSITIONS),
    **dict.fromkeys(["sliding_window", "window_size", "attention_window_size"], WINDOW),
    **dict.fromkeys(["local_attention", "attention_chunk_size"], WINDOW),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk", "top_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["shared_intermediate_size", "q_lora_rank", "qk_head_dim"], 32),
    **dict.fromkeys(["n_group", "topk_group", "n_groups", "mamba_n_groups"], 1),
    **dict.fromkeys(["kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 16),
    **dict.fromkeys(["head_dim", "index_head_dim", "mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 16),
    **dict.fromkeys(["hidden_size_per_layer_input"], 16),
    **dict.fromkeys(["num_key_value_heads", "linear_num_key_heads", "index_n_heads"], 2),
    **dict.fromkeys(["expand", "mamba_expand"], 2),
    **dict.fromkeys(["linear_num_value_heads", "linear_conv_kernel_dim", "mamba_d_conv"], 4),
    **dict.fromkeys(["conv_kernel"], 4),
    **dict.fromkeys(["mamba_d_state", "mamba_n_heads", "mamba_num_heads", "state_size"], 8),
    **dict.fromkeys(["ssm_state_size", "chunk_size", "mamba_chunk_size", "index_topk"], 8),
    **dict.fromkeys(["laurel_rank"], 8),
    "mamba_d_ssm": 128,
    "first_k_dense_replace": 1,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Given to every config that has a field of that name."""

_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MLA = {"num_key_value_heads": 4}
_ZAMBA = {
    "num_hidden_layers": 3,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
}
_GEMMA3N = {
    **_SLIDING,
    "num_kv_shared_layers": 0,
    "intermediate_size": [96] * 2,
    "activation_sparsity_pattern": [0.0] * 2,
    "altup_num_inputs": 2,
}
_GEMMA4 = {**_SLIDING, "num_kv_shared_layers": 0, "intermediate_size": 96}
_FOUR_LAYERS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_WIDE_FULL = {"per_layer_config": {"1": {"head_dim": 32}}}
_ROPE: dict[str, Any] = {"rope_theta": 10000.0}
_EXPERTS = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
}
_VISION |= {"intermediate_size": 32, "patch_size": 8}
_BLT_PARTS = ["patcher_config", "encoder_config", "decoder_config", "global_config"]
_BLT_PART = {key: _SIZES[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
_BLT_PART |= {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
_BLT_PART |= {"head_dim": 16, "hidden_size_global": 64, "max_position_embeddings": POSITIONS}

_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["gemma2", "gemma3_text", "vaultgemma", "gpt_oss", "cohere2", "olmo3", "exaone4", "cwm"],
        _SLIDING,
    ),
    **dict.fromkeys(["ministral", "mimo_v2_flash", "laguna", "modernbert-decoder"], _SLIDING),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"], _LINEAR),
    **dict.fromkeys(["deepseek_v3", "glm4_moe_lite", "axk1", "longcat_flash", "youtu"], _MLA),
    "minicpm3": _MLA,
    "deepseek_v2": {**_MLA, "topk_method": "greedy"},
    "dots1": {**_SLIDING, "n_shared_experts": 1, "max_window_layers": 1},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": {**_GEMMA4, **_WIDE_FULL},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "intermediate_size_mlp": 96,
    },
    "falcon": {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mpt": {"expansion_ratio": 2},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": False},
    "hunyuan_v1_moe": {"moe_topk": [2] * 2},
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 1},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "granitemoe": {"embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "minimax": _LINEAR,
    "kimi_linear": {**_LINEAR, **_MLA, "linear_num_heads": 2, "linear_head_dim": 16},
    "bailing_hybrid": {**_LINEAR, **_MLA},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "bamba": {"attn_layer_indices": [1]},
    "zamba": {**_ZAMBA, "attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {**_ZAMBA, "attention_hidden_size": 128, "attention_head_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {**_ROPE, "rope_type": "default"}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, **_ROPE}, "ffn_config": _EXPERTS},
    "blt": {**dict.fromkeys(_BLT_PARTS, _BLT_PART), "encoder_hash_byte_group_vocab": 64},
    "git": {"vision_config": {**_VISION, "model_type": "git_vision_model"}},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
}
"""What an architecture needs beside or in place of `_SIZES`."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2 (sliding)": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3 (sliding)": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
    "smollm3 (sliding)": ("smollm3", {"use_sliding_window": True, **_SLIDING}),
    "falcon (alibi)": ("falcon", {"alibi": True}),
    "falcon (new)": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode (multi-head)": ("gpt_bigcode", {"multi_query": False}),
    "granitemoehybrid (attention only)": ("granitemoehybrid", {"layer_types": ["attention"] * 2}),
    "gemma4_text (plain)": ("gemma4_text", {"hidden_size_per_layer_input": 0, **_WIDE_FULL}),
    "gemma3n_text (shared KV)": (
        "gemma3n_text",
        {
            **_FOUR_LAYERS,
            "intermediate_size": [96] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "gemma4_text (shared KV)": ("gemma4_text", _FOUR_LAYERS),
    "llama (yarn)": (
        "llama",
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama (llama3)": (
        "llama",
        {
            "rope_parameters": {
                **_ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama (dynamic NTK)": (
        "llama",
        {"rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 8.0}},
    ),
    "phi3 (LongRoPE)": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                **_ROPE,
                "rope_type": "longrope",
                "original_max_position_embeddings": 16,
                "short_factor": [1.0] * 8,
                "long_factor": [float(3 + i) for i in range(8)],
                "factor": 16.0,
            },
        },
    ),
}
"""Further forms of some architectures: name in the table, model type, fields."""


def names() -> list[str]:
    """Every model type of AutoModelForCausalLM's mapping, and the variants."""
    return [*sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), *VARIANTS]


@dataclass
class Verdict:
    """How an architecture ends: "exact", "text part", "refused", "WRONG" or "not built", and why.

    Attributes:
        worst: largest deviation from the oracle, in units of its tolerance.
        bits: whether a row had the same bits alone and beside many, as tried at load.
        generate: whether hard_greedy agrees with `generate()`; None where that does not run.
        graph: whether a pass is traced into one graph (`traced`); None if not tried.
    """

    name: str
    verdict: str
    reason: str = ""
    worst: float = 0.0
    bits: bool | None = None
    generate: bool | None = None
    graph: bool | None = None
    steps: int = 0
    problems: list[str] = field(default_factory=list)


def tiny_config(name: str) -> Any:
    """The config of an architecture at a size of some ten thousand parameters."""
    kind, own = VARIANTS.get(name, (name, {}))
    default = AutoConfig.for_model(kind)
    fields = {key: value for key, value in _SIZES.items() if _has(default, key)}
    alias = getattr(default, "attribute_map", None) or {}
    for key in alias:  # one name of a field is enough
        if alias[key] in fields:
            fields.pop(key, None)
    if kind == "falcon":
        fields.pop("head_dim", None)
    return AutoConfig.for_model(kind, **(fields | _OWN.get(kind, {}) | own))


def _has(config: Any, name: str) -> bool:
    """Whether a config has a field that can be set."""
    declared = getattr(type(config), name, None)
    if isinstance(declared, property) and declared.fset is None:
        return False
    try:
        return hasattr(config, name)
    except Exception:  # noqa: BLE001 - Gemma 4 raises for fields that differ between its layers
        return True


def tiny_model(config: Any) -> Any:
    """A random model in float32 none of whose parameters is constant, with peaked distributions."""
    with torch.device("meta"):
        size = sum(
            p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters()
        )
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size} parameters: a nested config keeps its default sizes")
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).float().eval()
    model.requires_grad_(False)
    table = model.get_input_embeddings()
    embeddings = {id(p) for p in table.parameters()} if table is not None else set()
    for parameter in model.parameters():
        spread = float(parameter.std()) if parameter.numel() > 1 else 1.0
        if spread == 0:  # zeros or ones would hide what they multiply
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.dim() >= 2:
            aim = 0.3 if id(parameter) in embeddings else 0.2
            parameter.mul_(aim / spread if spread < aim else 1.0)
    return model


def judge(name: str, modes: Sequence[str]) -> Verdict:
    """Build an architecture, decode it, and hold it against the oracle.

    Args:
        name: one of `names()`.
        modes: CoT modes to decode under.
    """
    try:
        config = tiny_config(name)
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises is its verdict
        refusal = _default_refusal(name)
        if refusal:
            return Verdict(name, "refused", refusal)
        return Verdict(name, "not built", f"config: {type(error).__name__}: {_line(error)}")
    try:
        text = text_part(config)
        if text is not config:
            return Verdict(
                name, "text part", f"its language model is decoded as `{text.model_type}`"
            )
        check_config(config)
    except UserError as refusal:
        return Verdict(name, "refused", str(refusal))
    try:
        model = tiny_model(config)
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises is its verdict
        return Verdict(name, "not built", f"model: {type(error).__name__}: {_line(error)}")
    try:
        lm = wrap_model(model, tiny_tokenizer(), name)
    except UserError as refusal:
        return Verdict(name, "refused", str(refusal))
    try:
        return _decoded(name, lm, modes)
    except Exception as error:  # noqa: BLE001 - a traceback where a refusal belongs
        reason = f"{type(error).__name__}: {_line(error)}"
        return Verdict(name, "WRONG", reason, problems=[reason])


def traced(found: Verdict) -> Verdict:
    """The verdict with `graph`: a graph a bucket, no break, none more for other rows and phases."""
    model = tiny_model(tiny_config(found.name))
    lm = wrap_model(model, tiny_tokenizer(), found.name, self_check=False)
    try:
        graphs, buckets = graphs_of(lm, MODES["fuzzy_sample"])
    except torch._dynamo.exc.TorchDynamoException as broken:
        return replace(found, graph=False, reason=f"graph: {_line(broken)}")
    return replace(found, graph=graphs == buckets)


def _default_refusal(name: str) -> str:
    """Why the default config is refused, for one that takes no tiny sizes; "" if it is not."""
    try:
        check_config(text_part(AutoConfig.for_model(name)))
    except UserError as refusal:
        return str(refusal)
    except Exception:  # noqa: BLE001 - nor has it a default
        return ""
    return ""


def _decoded(name: str, lm: LanguageModel, modes: Sequence[str]) -> Verdict:
    found = Verdict(name, "exact")
    _compare_ids(lm, found)
    for mode in modes:
        decoded = decode(lm, mode)
        for prompt, samples in zip(PROMPTS, decoded, strict=True):
            for sample in samples:
                found.problems += _compare(lm, MODES[mode], prompt, sample, found)
        if mode == "hard_greedy":
            _compare_generate(lm, [sample for (sample,) in decoded], found)
    found.bits = lm.batch_invariant
    if found.problems:
        found.verdict, found.reason = "WRONG", found.problems[0]
    return found


def fed_rows(lm: LanguageModel, ids: Sequence[int]) -> Tensor:
    """(L, F) what each token feeds: its embedding, and behind it its row of a per-layer table."""
    ids_L = torch.as_tensor(ids, dtype=torch.long)
    own_LD = lm.model.get_input_embeddings()(ids_L)
    text = lm.model.base_model
    if getattr(text, "embed_tokens_per_layer", None) is None:
        return own_LD
    return torch.cat([own_LD, text.get_per_layer_inputs(ids_L[None])[0].flatten(1)], -1)


def decode(lm: LanguageModel, mode: str) -> list[list[Generation]]:
    """The samples that are judged, one a prompt."""
    return generate(lm, PROMPTS, mode, 1, SEED, 8, 3, keep_inputs=True)


@torch.inference_mode()
def _compare(
    lm: LanguageModel, mode: Mode, prompt: str, sample: Generation, found: Verdict
) -> Iterator[str]:
    """What in a sample is not what the oracle finds."""
    prompt_ids = lm.tokenizer.encode(prompt)
    fed_TD = sample.inputs
    tail = [*map(int, sample.prefill_ids), *map(int, sample.answer_ids)]
    every = torch.cat([fed_rows(lm, prompt_ids), fed_TD, fed_rows(lm, tail)])
    start = len(prompt_ids)
    answer = len(every) - len(sample.answer_ids)
    logits = _after_prefixes(lm, every, start)
    scale = float(fed_rows(lm, range(lm.vocab)).abs().max())
    for step in range(len(fed_TD)):
        logits_V = logits[start + step]
        expected_F, token = _expected(lm, mode, sample, step, logits_V)
        entropy = torch.distributions.Categorical(logits=logits_V).entropy()
        wrong = abs(float(entropy) - float(sample.entropy[step]))
        if expected_F is not None:
            wrong = max(wrong, float((fed_TD[step] - expected_F).abs().max()) / scale)
        found.steps += 1
        found.worst = max(found.worst, wrong / TOLERANCE)
        if not wrong <= TOLERANCE:
            yield f"{mode.name}: CoT step {step} is off by {wrong:.1g}"
        if token is not None and token != int(sample.shadow_ids[step]):
            yield f"{mode.name}: CoT step {step} chose another token"
    for index in range(len(sample.answer_ids)):
        logits_V = logits[answer + index]
        if _is_clear(logits_V) and int(logits_V.argmax()) != int(sample.answer_ids[index]):
            yield f"{mode.name}: answer token {index} is another"


def _after_prefixes(lm: LanguageModel, inputs_LD: Tensor, shortest: int) -> dict[int, Tensor]:
    """(V,) logits after each prefix from the shortest on, by length.

    One pass over all gives them where what follows a prefix does not change it, which the shortest
    shows; with RoPE scaled by length, say, it does, and every prefix has a pass of its own.
    """
    whole_LV, lengths = _logits(lm, inputs_LD), range(shortest, len(inputs_LD) + 1)
    apart = (whole_LV[shortest - 1] - _logits(lm, inputs_LD[:shortest])[-1]).abs().max()
    if apart <= TOLERANCE * whole_LV.abs().max():
        return {length: whole_LV[length - 1] for length in lengths}
    return {length: _logits(lm, inputs_LD[:length])[-1] for length in lengths}


def _logits(lm: LanguageModel, inputs_LD: Tensor) -> Tensor:
    """(L, V) logits by one pass without a cache."""
    # A copy: CTRL scales what it is given in place.
    output = lm.model(inputs_embeds=inputs_LD[None].clone(), use_cache=False)
    return output.logits[0, :, : lm.vocab].float()


def _is_clear(logits_V: Tensor) -> bool:
    first, second = logits_V.topk(2).values.tolist()
    return first - second > CLEAR


def _expected(
    lm: LanguageModel, mode: Mode, sample: Generation, step: int, logits_V: Tensor
) -> tuple[Tensor | None, int | None]:
    """The vector fed at a step and its token; None where rounding decides between two."""
    random = SampleRandomness(SEED, sample.key)
    clear = _is_clear(logits_V)
    token = int(logits_V.argmax()) if clear else None
    if isinstance(mode, HardMode):
        if mode.temperature:
            token = _drawn(random, step, logits_V)
        return fed_rows(lm, [int(sample.shadow_ids[step])])[0], token
    if mode.temperature < 0.01 and not clear:
        return None, token
    probs_V = torch.softmax(logits_V.double() / mode.temperature, -1)
    mixed_F = (probs_V @ fed_rows(lm, range(lm.vocab)).double()).float()
    if sigma := mode.sigma(lm.embedding):
        noise_D = sigma * random.normals(step + 1, lm.embedding.width)[step]
        mixed_F[: len(noise_D)] += noise_D
    return mixed_F, token


def _drawn(random: SampleRandomness, step: int, logits_V: Tensor) -> int | None:
    """The token that the sample's own uniform falls on; None near an edge between two."""
    uniform = random.uniforms(step + 1)[step]
    probs_V = logits_V.softmax(-1)[None]
    near = {
        int(invert_cdf(probs_V, (uniform.double() + shift).clamp(0, 1 - 1e-9)))
        for shift in (-1e-4, 0.0, 1e-4)
    }
    return near.pop() if len(near) == 1 else None


@torch.inference_mode()
def _compare_ids(lm: LanguageModel, found: Verdict) -> None:
    """Token ids and their embeddings are the same to the model."""
    ids = torch.tensor([lm.tokenizer.encode(PROMPTS[1])])
    ours = lm.model(inputs_embeds=fed_rows(lm, ids[0].tolist())[None], use_cache=False).logits
    theirs = lm.model(input_ids=ids, use_cache=False).logits
    if float((ours - theirs).abs().max()) > TOLERANCE * float(theirs.abs().max()):
        found.problems.append("token ids and their embeddings give other logits")


@torch.inference_mode()
def _compare_generate(lm: LanguageModel, samples: list[Generation], found: Verdict) -> None:
    """hard_greedy against transformers' own greedy decoding, where that runs."""
    for prompt, sample in zip(PROMPTS[:2], samples[:2], strict=True):  # a short and a long one
        ids = torch.tensor([lm.tokenizer.encode(prompt)])
        ours = list(map(int, sample.shadow_ids))
        try:
            theirs = lm.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(ours)
            )
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises is its verdict
            found.reason = f"generate(): {type(error).__name__}"
            return
        theirs = theirs[0, ids.shape[1] :].tolist()
        found.generate = found.generate is not False and ours == theirs[: len(ours)]
        if ours != theirs[: len(ours)]:
            found.problems.append("hard_greedy is not what generate() gives")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else ""


def deviation(verdict: Verdict) -> str:
    """The largest deviation from the oracle for a table."""
    return f"{verdict.worst * TOLERANCE:.0e}" if math.isfinite(verdict.worst) else "not finite"
