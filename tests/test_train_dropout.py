"""Rollout and training pass see one and the same model, activations recomputed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_cases import METHODS, read_metrics, run, save_tiny, tiny_lm
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    PhimoeConfig,
    SeedOssConfig,
    Starcoder2Config,
)

from softeval.errors import UserError
from softeval.model.output_head import last_hidden
from softeval.trainers import training_pass
from softeval.trainers.demo_base import build_tokenizer
from softeval.trainers.metrics import noise_band, noise_fault
from softeval.trainers.setup import check_training_pass, disable_dropout, recompute_activations

BASE: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {**BASE, "num_attention_heads": 4}
KV: dict[str, Any] = {**HEADS, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
    "starcoder2": Starcoder2Config(
        **KV, residual_dropout=0.1, attention_dropout=0.1, embedding_dropout=0.1
    ),
    "seed_oss": SeedOssConfig(**KV, head_dim=8, residual_dropout=0.1, attention_dropout=0.1),
    "phimoe": PhimoeConfig(**KV, num_local_experts=4, router_jitter_noise=0.3),
    "mixtral": MixtralConfig(**KV, num_local_experts=4, router_jitter_noise=0.3),
    "falcon": FalconConfig(**HEADS, hidden_dropout=0.1, attention_dropout=0.1),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1),
    "opt": OPTConfig(**HEADS, ffn_dim=48, word_embed_proj_dim=32, dropout=0.1, layerdrop=0.5),
    "biogpt": BioGptConfig(**HEADS, intermediate_size=48, activation_dropout=0.1),
    "mpt": MptConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=64, max_seq_len=64, resid_pdrop=0.1
    ),
}


def gradients(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of a training pass, and the gradient of a sum that weighs them unevenly."""
    hidden = last_hidden(model, inputs)
    loss = (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()
    used = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, used, allow_unused=True)
    return hidden.detach(), [g for g in found if g is not None]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pass_with_recomputed_activations_is_the_plain_pass(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    inputs = model.get_input_embeddings()(torch.arange(3, 15)[None]).detach()
    with torch.no_grad():
        decoded = last_hidden(model, inputs)
    _, expected = gradients(model, inputs)
    disable_dropout(model)
    recompute_activations(model)
    hidden, found = gradients(model, inputs)
    assert torch.equal(hidden, decoded)
    assert len(found) == len(expected) > 4
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_recomputing_keeps_the_inputs_of_the_layers_only() -> None:
    def kept() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            last_hidden(lm.model, inputs)
        return sum(seen.values())

    lm = tiny_lm(layers=8)
    inputs = lm.embedding.rows(torch.arange(3, 35)[None]).detach()
    plain = kept()
    recompute_activations(lm.model)
    assert kept() < plain / 3


def test_a_model_without_layers_to_recompute_is_refused() -> None:
    with pytest.raises(UserError, match="--gradient-checkpointing: Linear has no layers"):
        recompute_activations(nn.Linear(2, 2))


def test_every_rate_is_zeroed_by_its_name() -> None:
    module = nn.Module()
    for name in ("layerdrop", "resid_pdrop", "hidden_dropout_prob"):
        setattr(module, name, 0.25)
    module.keeps, module.drop_tokens, module.dropout_mode = 0.5, True, "none"
    module.inner = nn.Dropout2d(0.5)
    disable_dropout(module)
    assert module.layerdrop == module.resid_pdrop == 0.0
    assert module.hidden_dropout_prob == module.inner.p == 0.0
    assert (module.keeps, module.drop_tokens, module.dropout_mode) == (0.5, True, "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_that_nothing_switches_off_is_refused_at_the_start(dtype: torch.dtype) -> None:
    """Code of a checkpoint's own may call dropout without asking for the mode it is in."""
    lm = tiny_lm(dtype)
    check_training_pass(lm)
    layer = lm.model.model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, out: nn.functional.dropout(out, 0.1))
    with pytest.raises(UserError, match=r"LlamaForCausalLM: hidden states of a training pass"):
        check_training_pass(lm)


def test_a_body_that_counts_anew_behind_a_prompt_is_refused_at_the_start() -> None:
    """A checkpoint's own code may take no notice of what a cache holds, where rows share a prompt."""
    lm = tiny_lm()
    own = lm.model.model.forward
    places = torch.arange(16)[None]
    lm.model.model.forward = lambda inputs_embeds, **fed: own(
        inputs_embeds=inputs_embeds, position_ids=places[:, : inputs_embeds.shape[1]], **fed
    )
    with pytest.raises(UserError, match=r"hidden states of a training pass differ"):
        check_training_pass(lm)


@pytest.mark.slow
def test_chi_square_is_one_in_a_run_of_a_model_with_dropout(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Starcoder2Config(
        **(KV | {"vocab_size": len(tokenizer), "hidden_size": 64}),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        residual_dropout=0.1,
        attention_dropout=0.1,
        embedding_dropout=0.1,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = METHODS["soft"] | {"temperature": 0.5, "skip_zero_advantage": False}
    model = str(tmp_path / "model")
    run(tmp_path / "run", **options, model=model, gradient_checkpointing=True, max_steps=1)
    line = read_metrics(tmp_path / "run")[1]
    assert line["health/chi_square"] == pytest.approx(1, abs=0.05)


def sums_of(chi_square_N: torch.Tensor, width: int) -> dict[str, float]:
    near_N = (chi_square_N / width - 1).abs() <= noise_band(1, width)
    return {
        "steps": float(len(chi_square_N)),
        "squared": float(chi_square_N.sum()),
        "near": float(near_N.sum()),
        "squared_near": float(chi_square_N[near_N].sum()),
    }


@pytest.mark.parametrize("width", [16, 64, 3072])
@pytest.mark.parametrize("positions", [8, 500])
def test_the_band_takes_true_noise_and_a_few_jumps_and_nothing_else(
    width: int, positions: int
) -> None:
    torch.manual_seed(0)
    right = torch.randn(positions, width).square().sum(-1)
    assert noise_fault(sums_of(right, width), width) is None
    jumped = right.clone()
    jumped[: positions // 16] += 18 * width  # one token for another at γ = 0.33
    assert noise_fault(sums_of(jumped, width), width) is None
    assert "% of the positions" in str(noise_fault(sums_of(4.5 * right, width), width))
    if positions == 500:  # a few narrow positions do not tell 1.25 from 1
        assert "χ²/d is 1." in str(noise_fault(sums_of(1.25 * right, width), width))
    assert noise_fault({"steps": 0.0, "near": 0.0}, width) is None


@pytest.mark.slow
def test_a_pass_that_sees_another_model_stops_the_run_and_keeps_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output of a layer is changed in training passes only, from the second update on."""
    updates = 0
    plain = training_pass.TrainingPass.run

    def disturbed(self: Any, *args: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates < 2:
            return plain(self, *args)
        layer = self.lm.model.model.layers[0].mlp
        hook = layer.register_forward_hook(
            lambda module, args, out: nn.functional.dropout(out, 0.5)
        )
        try:
            return plain(self, *args)
        finally:
            hook.remove()

    options = METHODS["soft"] | {"temperature": 0.5, "skip_zero_advantage": False}
    options |= {"model": str(save_tiny(tmp_path / "model", width=64)), "save_steps": 100}
    options |= {"max_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(training_pass.TrainingPass, "run", disturbed)
        with pytest.raises(UserError, match=r"step 2: .* noise .* state of step 1 is kept; try"):
            run(tmp_path / "run", **options)
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["step-000001"]
    assert run(tmp_path / "run", **options).path == tmp_path / "run"
