"""Whole runs on the bundled checkpoint, with small groups and few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from safetensors.torch import load_file
from train_cases import (
    LEAST,
    LINEAR,
    METHODS,
    MOVING,
    moved_apart,
    own_questions,
    read_metrics,
    run,
    same,
    save_tiny,
    state_tensors,
    weights,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from softeval.decoding.decoder import Decoder
from softeval.decoding.generate import generate
from softeval.errors import UserError
from softeval.model.language_model import load_model
from softeval.model.output_head import last_hidden
from softeval.trainers import run_files, trainer, training_pass
from softeval.trainers.config import TrainConfig
from softeval.trainers.demo_base import build_tokenizer
from softeval.trainers.rollout import Validation


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_it_promises(tmp_path: Path, method: str) -> None:
    options = METHODS[method] | MOVING[method] | {"kl_steps": 1, "gradient_split_steps": 2}
    result = run(tmp_path, **options, save_steps=100)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0].keys() >= {"validation/success"} and "validation/success" in lines[2]
    assert "validation/success" not in lines[1]
    for line in lines[1:]:
        assert line["gradient/norm"] >= 0 and line["rollout/cot_tokens"] <= 24
        stops = [line[f"rollout/stop_{s}"] for s in ("answer_prefix", "eos", "length")]
        assert sum(stops) == pytest.approx(1)
        noisy = method != "hard"
        assert (line["health/chi_square"] is not None) == noisy
        assert line["health/mixture_mismatch"] == (0 if noisy else None)
        if noisy:
            assert line["health/chi_square"] == pytest.approx(1, abs=0.1)
        assert line["memory/peak_megabytes"] > 0
        assert line["time/step"] > 0 and line["time/tokens_per_second"] > 0
    assert (lines[3]["kl/gaussian"] is not None) == (method != "hard")
    assert lines[1]["kl/tokens"] == pytest.approx(0, abs=1e-6) and lines[3]["kl/tokens"] > 1e-6
    parts = [lines[2][f"gradient/{part}_norm"] for part in ("cot", "answer")]
    total = lines[2]["gradient/norm"]
    assert abs(parts[0] - parts[1]) <= total * 1.001 and total <= sum(parts) * 1.001
    assert lines[3]["gradient/cot_norm"] is None
    curve = json.loads((tmp_path / "last" / "softeval_training.json").read_text())["validation"]
    assert [point["step"] for point in curve] == [0, 2, 3]
    assert result.best_success == max(point["success"] for point in curve)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {1} and len(samples) == 4
    assert len(samples[0]["positions"][0]["mixture"]) == 3


@pytest.mark.slow
def test_checkpoints_are_ordinary_transformers_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, **METHODS["soft"], max_steps=1, prompts_per_step=1)
    for name in ("best", "last"):
        folder = str(tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        lm = load_model(folder)
        assert generate(lm, "What is 1+1?", max_cot_tokens=4)[0][0].cot_text
        ids = tokenizer("What is 1+1?", return_tensors="pt").input_ids
        assert torch.equal(model(ids).logits, lm.model(ids).logits)
    record = json.loads((tmp_path / "last" / "softeval_training.json").read_text())
    assert (record["method"], record["step"], record["train_seed"]) == ("soft", 1, 0)
    assert record["mode"]["sigma"] == pytest.approx(load_model().embedding.rms)  # γ = 1
    card = (tmp_path / "last" / "README.md").read_text()
    assert "soft" in card and "noise_scale = 1.0" in card and "| 0 |" in card
    assert "up to this step" in card


@pytest.fixture
def unvalidated(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of where updates lead, on which no validation has a bearing."""
    monkeypatch.setattr(trainer, "validate", lambda *_: Validation(0.0, 0.0, 0.0, 0.0))


@pytest.mark.slow
@pytest.mark.usefixtures("unvalidated")
def test_of_equal_validations_the_first_is_the_best(tmp_path: Path) -> None:
    assert run(tmp_path, **LEAST).best_step == 0


@pytest.mark.slow
def test_the_reward_rises_on_a_bandit_in_seconds(tmp_path: Path, boxing: dict[str, Any]) -> None:
    """One question that a tiny random model answers by luck; box or no box is the whole task."""
    data = own_questions(tmp_path / "own.jsonl", **{f"q{n}": "no number" for n in range(12)})
    options = boxing | {"dataset": str(data), "max_steps": 20, "learning_rate": 3e-2}
    options |= {"prompts_per_step": 2, "num_generations": 16}
    options |= {"max_cot_tokens": 2, "max_answer_tokens": 6, "eval_steps": 20}
    for method in ("hard", "soft"):
        folder = tmp_path / method
        run(folder, **METHODS[method], **options)
        boxed = [line["reward/boxed"] for line in read_metrics(folder)[1:]]
        assert sum(boxed[:5]) / 5 < 0.4 and sum(boxed[-5:]) / 5 > 0.8, method


@pytest.mark.slow
def test_sigma_stays_what_it_was_at_the_start(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[float] = []
    plain = Decoder.run

    def watched(self: Decoder, questions: Any) -> Any:
        if self.keep_inputs:
            seen.append(self.mode.sigma(self.lm.embedding))
        return plain(self, questions)

    monkeypatch.setattr(Decoder, "run", watched)
    run(tmp_path, **METHODS["soft"], **MOVING["soft"], learning_rate=0.05, max_steps=2)
    before = load_model().embedding.rms
    assert set(seen) == {before}
    assert load_model(str(tmp_path / "last")).embedding.rms != pytest.approx(before, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"cot_logprob_reduction": "mean"},
        {"score_error": "recomputed"},
        {"detach_embedding_in_mixture": True},
        {"temperature": 0.6},
        {"noise_scale": 0.9},
        {"noise_norm": "vector"},
        {"answer_temperature": 0.5},
        {"logits_dtype": "bfloat16"},
        {"max_cot_tokens": 8},
        {"max_answer_tokens": 1},
        {"reward_boxed": 99.0},
        {"beta": 1.0},
        {"num_generations": 4},
        {"prompts_per_step": 2},
        {"dynamic_sampling": True},
        {"learning_rate": 2e-3},
        {"warmup_steps": 5},
        {"min_lr_ratio": 0.9},
        {"weight_decay": 0.5},
        {"adam_beta1": 0.5},
        {"adam_beta2": 0.9},
        {"adam_epsilon": 1.0},
        {"max_grad_norm": 1e-9},
        {"lora": True},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "master_weights": False},
        {"dtype": "bfloat16", "logits_dtype": "float32"},
        {"seed": 1},
        {"limit": 20},
        {"validation_size": 5},
    ],
)
@pytest.mark.usefixtures("unvalidated")
def test_every_option_changes_the_result(
    tmp_path: Path, boxing: dict[str, Any], change: dict[str, Any]
) -> None:
    options = METHODS["soft"] | boxing | {"reward_boxed": 50.0}
    options |= {"max_steps": 2, "warmup_steps": 0}  # so that the second rate is of the decay
    options |= {"kl_steps": 0, "gradient_split_steps": 0, "log_completions_steps": 0}
    if change.get("dtype") == "bfloat16" and len(change) > 1:
        result = run_cached(tmp_path, "bf16", options | {"dtype": "bfloat16"})
    else:
        result = run_cached(tmp_path, "plain", options)
    run(tmp_path / "changed", **(options | change))
    assert not same(weights(result / "last"), weights(tmp_path / "changed" / "last"))


_plain: dict[str, Path] = {}


def run_cached(tmp_path: Path, name: str, options: dict[str, Any]) -> Path:
    """The run without any change, made once."""
    if name not in _plain:
        run(tmp_path.parent / name, **options)
        _plain[name] = tmp_path.parent / name
        assert [line["gradient/norm"] > 0 for line in read_metrics(_plain[name])[1:]] == [True] * 2
    return _plain[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"skip_zero_advantage": False},
        {"gradient_checkpointing": True},
        {"micro_batch_size": 3},
        {"loss_chunk_size": 5},
        {"decode_batch_size": 3},
        {"gradient_split_steps": 1},
        {"kl_steps": 1},
        {"log_completions_steps": 0},
    ],
)
@pytest.mark.usefixtures("unvalidated")
def test_what_must_not_change_the_result(
    tmp_path: Path, boxing: dict[str, Any], change: dict[str, Any]
) -> None:
    """Other ways to the same sums: two updates that agree to the rounding of float32.

    An update is stored to 2^-24·‖w‖/‖moved‖ ≈ 3e-5. The gradient is a sum of some 10^4 terms (each
    off by some 2^-24) that cancel to a few hundredths: again up to 1e-4. A sequence left out or counted
    twice moves it by a hundredth and more.
    """
    options = METHODS["soft"] | LINEAR | boxing | {"max_steps": 2}
    options |= {"kl_steps": 0, "gradient_split_steps": 0}
    plain = run_cached(tmp_path, "linear", options)
    run(tmp_path / "changed", **(options | change))
    start = load_model(boxing["model"]).model.state_dict()
    assert moved_apart(tmp_path / "changed" / "last", plain / "last", start) < 1e-3


@pytest.mark.slow
def test_dynamic_sampling_replaces_equal_groups(tmp_path: Path) -> None:
    options = METHODS["hard"] | {"max_steps": 2, "prompts_per_step": 2, "num_generations": 3}
    options |= {"save_steps": 100}
    run(tmp_path / "plain", **options)
    run(tmp_path / "dynamic", **options, dynamic_sampling=True, max_refills=5)
    plain, dynamic = (read_metrics(tmp_path / name)[1:] for name in ("plain", "dynamic"))
    assert sum(line["groups/equal"] for line in plain) > sum(
        line["groups/equal"] for line in dynamic
    )
    assert {line["groups/drawn"] for line in plain} == {2.0}
    assert sum(line["groups/drawn"] for line in dynamic) > 4
    assert dynamic[-1]["data/epoch"] > plain[-1]["data/epoch"]
    for line in (*plain, *dynamic):
        assert line["rollout/tokens_drawn"] == pytest.approx(
            line["time/tokens_per_second"] * line["time/step"]
        )
    for line in plain:
        kept = line["rollout/cot_tokens"] + line["rollout/answer_tokens"]
        assert line["rollout/tokens_drawn"] == pytest.approx(6 * kept)
        assert line["reward/success_drawn"] == line["reward/success"]
    refilled = [line for line in dynamic if line["groups/drawn"] > 2]
    for line in refilled:
        assert line["rollout/tokens_drawn"] >= 3 * line["groups/drawn"]


@pytest.mark.slow
def test_groups_of_equal_rewards_leave_the_weights_alone(tmp_path: Path) -> None:
    data = own_questions(tmp_path / "own.jsonl")
    same_rewards = {"reward_correct": 1e-9, "reward_boxed": 0.0, "reward_none": 0.0}
    run(
        tmp_path / "run",
        **METHODS["hard"],
        **same_rewards,
        model=str(save_tiny(tmp_path / "model")),
        dataset=str(data),
        max_steps=2,
    )
    assert all(line["gradient/norm"] == 0 for line in read_metrics(tmp_path / "run")[1:])
    assert same(weights(tmp_path / "model"), weights(tmp_path / "run" / "last"))


@pytest.mark.slow
def test_adapters_train_alone_and_are_merged(tmp_path: Path) -> None:
    options = METHODS["soft"] | MOVING["soft"] | {"max_steps": 2, "save_steps": 100}
    options |= {"lora": True, "lora_rank": 2, "kl_steps": 1}
    run(tmp_path, **options, learning_rate=1e-2)
    base, trained = load_model().model.state_dict(), weights(tmp_path / "last")
    assert base.keys() == trained.keys()
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed and all("_proj.weight" in name for name in changed)
    state = state_tensors(tmp_path / "state" / "step-000002")
    assert all("lora_" in name for name in state if name.startswith("weight."))
    kl = [line["kl/tokens"] for line in read_metrics(tmp_path)[1:]]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6
    merged = load_model(str(tmp_path / "last"))
    assert "lora" not in str(merged.model)


@pytest.mark.slow
def test_adapters_on_the_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--lora-target-modules"):
        run(tmp_path / "a", lora=True, lora_target_modules=("lm_head",))
    with pytest.raises(UserError, match="--lora-target-modules"):
        run(tmp_path / "b", lora=True, lora_target_modules=("nothing_like_it",))


@pytest.mark.slow
def test_bfloat16_runs_keep_chi_square_and_float32_masters(tmp_path: Path) -> None:
    options = METHODS["soft"] | {"dtype": "bfloat16", "max_steps": 2, "save_steps": 2}
    run(tmp_path, **options, skip_zero_advantage=False, prompts_per_step=2)
    for line in read_metrics(tmp_path)[1:]:
        assert line["health/chi_square"] == pytest.approx(1, abs=0.1)
    exported = weights(tmp_path / "last")
    assert {t.dtype for t in exported.values()} == {torch.bfloat16}
    state = state_tensors(tmp_path / "state" / "step-000002")
    masters = {n: t for n, t in state.items() if n.startswith("weight.")}
    assert {t.dtype for t in masters.values()} == {torch.float32}


@pytest.mark.slow
def test_nan_stops_with_the_step_and_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training_pass.TrainingPass.run
    calls = iter(range(10))

    def poisoned(self: Any, *args: Any) -> Any:
        result = plain(self, *args)
        if next(calls) == 1:
            result.sums["loss_cot"] = float("nan")
        return result

    monkeypatch.setattr(training_pass.TrainingPass, "run", poisoned)
    with pytest.raises(UserError, match=r"step 2: .*lower --learning-rate"):
        run(tmp_path, **METHODS["soft"], prompts_per_step=1)
    place = tmp_path / "failed-step-000002-rank0"
    rows = json.loads((place / "batch.json").read_text())
    arrays = load_file(str(place / "batch.safetensors"))
    assert len(rows) == 6 and {"text", "reward", "advantage"} <= rows[0].keys()
    assert arrays["0.inputs"].shape == (len(arrays["0.shadow"]), load_model().embedding.width)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]


@pytest.mark.slow
def test_an_exploding_run_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a finite number|does not find the noise"):
        run(
            tmp_path,
            **METHODS["soft"],
            learning_rate=1e30,
            max_grad_norm=0.0,
            max_steps=8,
            num_generations=8,
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_cot_tokens": 5000}, "--max-cot-tokens"),
        ({"validation_size": 24}, "--validation-size"),
        ({"model": "/nowhere"}, "no checkpoint at /nowhere"),
        ({"dataset": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"device": "foo"}, "--device foo: .*use --device auto or cpu"),
        ({"device": "hpu"}, "--device hpu: .*use --device auto or cpu"),
        ({"report_to": ("wandb",)}, "--report-to wandb: not installed"),
        ({"report_to": ("tensorbord",)}, "--report-to tensorbord: none of .*tensorboard"),
    ],
)
def test_bad_requests_end_in_one_line(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        run(tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "train.json").exists()


@pytest.mark.slow
def test_another_configuration_in_the_directory_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", **LEAST)
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        run(tmp_path / "run", **LEAST, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path / "other")
    run(tmp_path / "run", **LEAST, save_steps=3)  # changes no number


@pytest.mark.slow
def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, max_steps=2, prompts_per_step=1, report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "softeval"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("reward/mean")]
    lines = read_metrics(tmp_path)[1:]
    assert found == [(line["step"], pytest.approx(line["reward/mean"])) for line in lines]


def test_methods_train_from_the_same_rollout_noise() -> None:
    """The default output directory keeps methods and seeds apart."""
    names = {
        str(run_files.default_path(TrainConfig(method=m, seed=s)))
        for m in METHODS
        for s in range(2)
    }
    assert len(names) == 6


def save_architecture(folder: Path, name: str) -> Path:
    """A tiny checkpoint of an architecture, with the demo's tokenizer."""
    tokenizer = build_tokenizer()
    config = architectures.tiny_config(name)
    config.vocab_size = config.vocab_size_per_layer_input = len(tokenizer)
    config.max_position_embeddings, config.eos_token_id, config.bos_token_id = 512, 1, None
    architectures.tiny_model(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "falcon_h1"])
def test_recurrent_layers_train_like_any_others(tmp_path: Path, name: str) -> None:
    model = save_architecture(tmp_path / "model", name)
    options = {"model": str(model), "max_steps": 1, "prompts_per_step": 2, "max_cot_tokens": 12}
    run(tmp_path / "run", **METHODS["soft"], **options)
    line = read_metrics(tmp_path / "run")[1]  # the training pass makes the rollout's mixtures again
    assert line["health/mixture_mismatch"] == 0
    assert line["health/chi_square"] == pytest.approx(1, abs=0.1)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last")
    hidden = last_hidden(trained.eval(), trained.get_input_embeddings()(torch.arange(3, 15)[None]))
    hidden.square().sum().backward()
    flat = [n for n, p in trained.base_model.named_parameters() if p.grad is None]
    assert flat == []


def test_per_layer_embeddings_are_not_trained(tmp_path: Path) -> None:
    model = save_architecture(tmp_path / "model", "gemma3n_text")
    with pytest.raises(UserError, match="per-layer embeddings, for whose mixture"):
        run(tmp_path / "run", model=str(model))
