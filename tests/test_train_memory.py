"""What a run will take, told from a configuration alone, against what real tensors take."""

from __future__ import annotations

import importlib
import json
import sys
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, mostly_slow
from tiny import CONFIGS, FAMILIES
from tiny import tiny_lm as family_lm
from train_cases import run as run_training
from train_cases import save_tiny, tiny_config
from transformers import DynamicCache, LlamaConfig, Qwen2Config

from softeval.cli.main import run
from softeval.cli.memory import plan_memory
from softeval.cli.recipes import find_recipe, read_recipes
from softeval.errors import UserError
from softeval.model.output_head import last_hidden
from softeval.model.weights import meta_model
from softeval.trainers import memory
from softeval.trainers.config import METHODS, TrainConfig, make_config
from softeval.trainers.memory import (
    GIB,
    MemoryModel,
    device_memory,
    require_memory,
)
from softeval.trainers.meta_model import position_bytes, saved_bytes
from softeval.trainers.questions import Lengths

PUBLISHED: dict[str, Any] = {
    "llama-3.2-3b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "qwen-2.5-3b": lambda: Qwen2Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
"""Shapes of the paper's three models, from their published config.json."""
PARAMETERS = {"llama-3.2-3b": 3_212_749_824, "qwen-2.5-3b": 3_085_938_688}
PARAMETERS["llama-3.1-8b"] = 8_030_261_248
USABLE_80 = int(0.95 * 80 * GIB)
LENGTHS = Lengths(prompt=200, cot=512, total=200 + 512 + 32)


@cache
def measured(name: str, lora: bool) -> MemoryModel:
    config = make_config({"lora": lora}, read_recipes([f"{name}+math+soft"]))
    return MemoryModel(meta_model(PUBLISHED[name](), torch.bfloat16), config, LENGTHS, "cuda")


def of_recipe(name: str, **changes: Any) -> MemoryModel:
    config = make_config(changes, read_recipes([f"{name}+math+soft"]))
    memory = copy(measured(name, config.lora))
    memory.config = config  # on which no measurement hangs
    return memory


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_say_what_the_paper_models_need(name: str) -> None:
    """The number in each recipe's comment is the estimate, at the smallest training pass."""
    memory = of_recipe(name)
    assert sum(p.numel() for p in memory.model.parameters()) == PARAMETERS[name]
    comment = " ".join(find_recipe(name).read_text().replace("#", "").split())
    assert f"All weights need about {memory.estimate(0).peak / GIB:.0f} GiB" in comment
    if "8b" not in name:
        assert f"{memory.estimate(USABLE_80).micro_batch} of them fit 80 GiB" in comment


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_say_what_adapters_need(name: str) -> None:
    adapters = of_recipe(name, lora=True).estimate(0)
    assert f"--lora about {adapters.peak / GIB:.0f} GiB" in find_recipe(name).read_text()
    assert sum(adapters.standing.values()) < 1.2 * 2 * PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-3.2-3b", "qwen-2.5-3b"])
def test_the_recipes_of_3b_fit_a_card_of_80_gib(name: str) -> None:
    memory = of_recipe(name)
    found = require_memory(memory, 80 * GIB)
    assert found.peak < USABLE_80 and found.micro_batch >= 8
    for method in METHODS:
        own = {"method": method, "temperature": None, "noise_scale": None}
        assert memory.estimate(USABLE_80, **own).peak < USABLE_80


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(UserError, match=r"GiB on each device .*; give --lora, or take") as found:
        require_memory(of_recipe("llama-3.1-8b"), 80 * GIB)
    assert "\n" not in str(found.value)
    large = {"micro_batch_size": 16, "gradient_checkpointing": False, "kl_steps": 50}
    memory = of_recipe("llama-3.2-3b", **large)
    with pytest.raises(UserError, match=r"give --gradient-checkpointing --kl-steps 0$"):
        require_memory(memory, 80 * GIB)


@pytest.mark.parametrize(
    "family", mostly_slow([name for name in FAMILIES if name != "mixtral"], ["gpt2", "llama"])
)
def test_what_is_kept_without_storage_is_what_real_tensors_keep(family: str) -> None:
    lm = family_lm(family)
    model = type(lm.model)._from_config(CONFIGS[family](), dtype=torch.float32).eval()
    counted = meta_model(model.config, torch.float32)
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = torch.zeros(1, 128, lm.embedding.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        last_hidden(model, inputs)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert saved_bytes(counted, 128) == pytest.approx(real, rel=0.1)
    cache = DynamicCache()
    model(inputs_embeds=inputs[:, :8], past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for x in cache.layers for t in (x.keys, x.values))
    assert position_bytes(counted) == held / 8


@pytest.mark.slow
def test_every_part_of_the_estimate_follows_its_option() -> None:
    count = PARAMETERS["llama-3.2-3b"]
    memory = of_recipe("llama-3.2-3b", gradient_split_steps=0, gradient_checkpointing=False)
    plain = memory.estimate()
    assert plain.standing == {
        "model": pytest.approx(2 * count, rel=1e-4),
        "float32 masters": 4 * count,
        "AdamW's two moments": 8 * count,
    }
    assert plain.micro_batch == 64 and plain.rows == 100
    reference = memory.estimate(kl_steps=9)
    assert reference.standing["initial model, for the KL"] == plain.standing["model"]
    assert memory.estimate(master_weights=False).standing["AdamW's two moments"] == 4 * count
    assert memory.estimate(gradient_checkpointing=True).sequence < plain.sequence / 10
    assert memory.estimate(limit=1).micro_batch == 1
    assert memory.estimate(micro_batch_size=5, decode_batch_size=7).micro_batch == 5
    assert memory.estimate(decode_batch_size=7).rows == 7
    split = memory.estimate(micro_batch_size=5, gradient_split_steps=9)
    whole = memory.estimate(micro_batch_size=5)
    assert split.peak - whole.peak == pytest.approx(2 * count, rel=0.01)


@pytest.mark.slow
def test_a_dry_run_needs_a_configuration_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PUBLISHED["llama-3.2-3b"]().save_pretrained(tmp_path)
    paper = ["train", "-C", "llama-3.2-3b+math+soft", "--model", str(tmp_path), "--dry-run"]
    card = ["--device", "cuda", "--device-memory"]
    assert run([*paper, *card, "80"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["learning_rate"] == 6e-6
    assert "AdamW's two moments" in shown.err and "of 80.0 GiB" in shown.err
    assert run([*paper, *card, "40"]) == 2
    *told, refusal = capsys.readouterr().err.splitlines()
    assert refusal.startswith("softeval: training takes about") and "--lora" in refusal
    assert not any(line.startswith("softeval:") for line in told)


def test_a_dry_run_refuses_what_a_run_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--model", str(tmp_path / "none"), "--dry-run"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert run(["train", "--device", "mps", "--dry-run"]) == 2
    assert "--device mps" in capsys.readouterr().err


def test_a_run_that_does_not_fit_ends_before_it_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(save_tiny(tmp_path / "model"))
    with pytest.raises(UserError, match=r"training takes about .* GiB on each device"):
        run_training(tmp_path / "run", model=model, device_memory=1e-6)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(memory, "meta_model", lambda *_: 1 / 0)
    config = TrainConfig(device="cpu")
    assert (
        memory.check_memory(config, family_lm(), LENGTHS, 1)
        == "ZeroDivisionError: division by zero"
    )


def test_processors_sum_sharded_gradients_in_a_float32_copy_more() -> None:
    """As measured by `benchmarks/train_step.py memory`; embedding and head are summed last, together."""
    shape = LlamaConfig(
        vocab_size=50_000, hidden_size=64, intermediate_size=64, num_hidden_layers=1
    )
    sharded = {"shard": "full", "gradient_split_steps": 0, "micro_batch_size": 1}
    config = tiny_config(**sharded, loss_chunk_size=1, method="hard")
    peaks = [
        MemoryModel(meta_model(shape, torch.bfloat16), config, LENGTHS, kind, 2).estimate().phases
        for kind in ("cpu", "cuda")
    ]
    more = peaks[0]["the training pass"] - peaks[1]["the training pass"]
    assert more == pytest.approx(2 * 2 * 50_000 * 64, rel=1e-3)


def test_memory_of_a_device_is_what_was_given_or_what_it_has() -> None:
    assert device_memory(torch.device("cuda"), 80) == 80 * GIB
    if not torch.cuda.is_available():
        assert device_memory(torch.device("cuda"), None) is None
    assert (device_memory(torch.device("cpu"), None) or 0) > GIB
    assert list(plan_memory(tiny_config()))[-1].startswith("highest: 0.")


@pytest.mark.slow
def test_the_gpu_benchmark_measures_a_step_beside_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sizes = ["--questions", "2", "--samples", "4", "--prompt", "20", "--cot", "12"]
    small = ["--shape", "tiny", "--device", "cpu", "--methods", "soft", *sizes]
    output = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", *small, "--output", str(output)])
    importlib.import_module("gpu_train").main()
    found = json.loads(output.read_text())["methods"]["soft"]
    seconds = found["seconds"]
    assert 0 < sum(s for name, s in seconds.items() if name != "step") <= seconds["step"]
    assert found["metrics"]["pass/sequences"] == 8 and found["metrics"]["gradient/norm"] > 0
    assert found["metrics"]["health/chi_square"] == pytest.approx(1, abs=0.2)
    assert found["estimate"]["peak_bytes"].keys() == found["peak_bytes"].keys()
