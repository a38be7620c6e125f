"""Adapters on plain and on fused layers: what trains, what is validated and what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import mostly_slow
from tiny import CONFIGS
from train_cases import METHODS, record, run, same, weights
from transformers import AutoModelForCausalLM, MixtralConfig

from softeval.errors import UserError
from softeval.model.language_model import BUNDLED_CHECKPOINT, load_model
from softeval.trainers import setup, trainer
from softeval.trainers.checkpoints import model_card
from softeval.trainers.config import make_config
from softeval.trainers.demo_base import build_tokenizer
from softeval.trainers.setup import Adapters

LORA = make_config({"lora": True, "lora_rank": 4})


def moved(model: Any, size: float = 0.05) -> Adapters:
    """Adapters that are not zero any more."""
    found = Adapters(model, LORA)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, size)
    return found


@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.bfloat16], [torch.float32]))
@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral"])
def test_the_merged_model_is_the_adapted_one_and_leaves_no_trace(
    family: str, dtype: torch.dtype
) -> None:
    """Mixtral's experts are fused: one weight for all of them, wrapped by peft as a parameter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype).eval()
    names, ids = model.state_dict().keys(), torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(ids).logits
        adapters = moved(model)
        live = model(ids).logits
        with adapters.merged() as state:
            merged = model(ids).logits
            state = {name: tensor.clone() for name, tensor in state.items()}
        assert torch.equal(model(ids).logits, live)
        with adapters.disabled():
            assert torch.equal(model(ids).logits, before)
        again = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype).eval()
        again.load_state_dict(state)
        assert torch.equal(again(ids).logits, merged)
    assert state.keys() == names
    assert float((live - before).abs().max()) > 0.05
    rounding = 1e-5 if dtype == torch.float32 else 0.1  # of weights, through two layers
    assert float((merged - live).abs().max()) < rounding * float(live.abs().max())


def test_layers_that_cannot_be_merged_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def weightless(layer: Any) -> torch.Tensor:
        raise AttributeError("'ParamWrapper' object has no attribute 'weight'")

    monkeypatch.setattr(setup, "_adapted", weightless)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    with pytest.raises(UserError, match=r"--lora: .* cannot be merged .*--lora-target") as found:
        Adapters(model, LORA)
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_fused_experts_train_and_are_exported(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = str(tmp_path / "model")
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    options = METHODS["soft"] | {"lora": True, "gradient_checkpointing": True, "max_steps": 2}
    options |= {"prompts_per_step": 2, "max_cot_tokens": 12}
    run(tmp_path / "run", **options, model=model, reward_boxed=50.0, learning_rate=0.1)
    base, trained = (load_model(str(p)) for p in (model, tmp_path / "run" / "last"))
    ids = torch.arange(3, 15)[None]
    assert trained.model(ids).logits.shape == base.model(ids).logits.shape


@pytest.mark.slow
def test_what_is_exported_is_what_was_validated_and_the_adapter_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a merged weight is rounded, so the live model is another one."""
    from peft import PeftModel

    seen: list[dict[str, torch.Tensor]] = []
    plain = trainer.validate

    def watched(lm: Any, *args: Any) -> Any:
        seen.append({n: t.clone() for n, t in lm.model.state_dict().items() if "lora_" not in n})
        return plain(lm, *args)

    monkeypatch.setattr(trainer, "validate", watched)
    model = Path(BUNDLED_CHECKPOINT)
    options = METHODS["soft"] | {"lora": True, "lora_rank": 2, "max_steps": 2, "eval_steps": 1}
    options |= {"prompts_per_step": 2, "save_steps": 100}
    options |= {"reward_boxed": 50.0, "learning_rate": 1e-2, "dtype": "bfloat16"}
    run(tmp_path / "run", **options)
    validated = {name.replace(".base_layer.", "."): t for name, t in seen[-1].items()}
    assert same(validated, weights(tmp_path / "run" / "last"))
    assert any(not torch.equal(t.float(), validated[n].float()) for n, t in weights(model).items())
    folder = tmp_path / "run" / "last" / "adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    live = PeftModel.from_pretrained(base, str(folder))
    merged = live.merge_and_unload().state_dict()
    for name, tensor in weights(tmp_path / "run" / "last").items():
        assert torch.allclose(merged[name].float(), tensor.float(), rtol=2e-2, atol=1e-4), name
    card = (tmp_path / "run" / "last" / "README.md").read_text()
    assert "adapters of rank 2 and alpha 32, merged" in card


def test_the_model_card_has_what_the_hub_reads(tmp_path: Path) -> None:
    head = yaml.safe_load(model_card(record(), "other").split("---")[1])
    assert head["base_model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert head["datasets"] == ["openai/gsm8k"] and head["license"] == "other"
    assert head["pipeline_tag"] == "text-generation" and head["library_name"] == "transformers"
    own = model_card(record(base=str(tmp_path), dataset="own.jsonl"))
    assert yaml.safe_load(own.split("---")[1]).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "all trained" in own
