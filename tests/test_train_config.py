"""Defaults, recipes, refusals."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from train_cases import tiny_config

from softeval.cli.recipes import read_recipes, shipped_recipes
from softeval.errors import UserError
from softeval.trainers.config import METHODS, TrainConfig, make_config
from softeval.trainers.rollout import greedy_mode
from softeval.trainers.run_files import identity_of

RATES = {"llama-3.2-3b": 6e-6, "llama-3.1-8b": 3e-6, "qwen-2.5-3b": 8e-6}
CAPS = {"gsm8k": 128, "math": 512, "deepscaler": 512}
TEMPERATURES = {"hard": 1.0, "soft": 0.5, "fuzzy": 1e-4}


def test_defaults_are_the_papers() -> None:
    config = TrainConfig()
    assert (config.prompts_per_step, config.num_generations, config.max_steps) == (2, 32, 4000)
    assert (config.warmup_steps, config.limits.max_answer_tokens, config.algorithm) == (
        20,
        32,
        "rloo",
    )
    rewards = (config.reward_correct, config.reward_boxed, config.reward_none)
    assert rewards == (100, 10, 0)
    assert config.cot_logprob_reduction == "sum" and not config.detach_embedding_in_mixture
    assert {make_config({"dataset": name}).cot_cap for name in ("math", "deepscaler")} == {512}
    assert make_config({"dataset": "gsm8k"}).cot_cap == 128
    assert make_config({"dataset": "gsm8k", "max_cot_tokens": 7}).cot_cap == 7


@pytest.mark.parametrize(("model", "dataset", "method"), product(RATES, CAPS, TEMPERATURES))
def test_the_papers_27_runs_are_recipes(model: str, dataset: str, method: str) -> None:
    config = make_config({}, read_recipes([f"{model}+{dataset}+{method}"]))
    assert config.learning_rate == RATES[model]
    assert config.cot_cap == CAPS[dataset] and config.dataset == dataset
    mode = config.mode
    assert mode.name == f"{method}_sample" and mode.temperature == TEMPERATURES[method]
    assert mode.options.get("noise_scale", 0.0) == (0.0 if method == "hard" else 0.33)
    assert config.dtype == "bfloat16" and config.max_steps == 4000


@pytest.mark.parametrize("method", METHODS)
def test_the_demos_have_rates_of_their_own(method: str) -> None:
    config = make_config({}, read_recipes([f"demo_{method}"]))
    assert config.method == method and config.dataset == "demo"
    assert (config.prompts_per_step, config.num_generations) == (2, 32)
    assert (config.logits_dtype == "bfloat16") == (method == "fuzzy")


def test_every_shipped_recipe_is_valid() -> None:
    assert len(shipped_recipes()) >= 14
    for name in shipped_recipes():
        make_config({}, read_recipes([name]))


def test_precedence_is_command_line_then_later_recipe(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("include: demo\nseed: 5\nmax-steps: 7\nvalidation_size: 3\n")
    options = read_recipes([str(own), "gsm8k"])
    config = make_config({"max_steps": 9}, options)
    assert (config.seed, config.max_steps, config.dataset) == (5, 9, "gsm8k")
    assert config.validation_size == 3
    beside = tmp_path / "beside.yaml"
    beside.write_text("include: own.yaml\nseed: 6\n")
    assert read_recipes([str(beside)])["seed"] == 6


def test_recipes_take_the_names_of_flags(tmp_path: Path) -> None:
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("max_steps: 3\nnum-generations: 4\nprompts_per_step: 9\n")
    above.write_text("steps: 7\ngroup_size: 6\n")
    options = read_recipes([str(below), str(above)])
    assert options == {"max_steps": 7, "num_generations": 6, "prompts_per_step": 9}
    assert read_recipes([str(above), str(below)])["max_steps"] == 3


def test_a_plus_in_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "a+b.yaml").write_text("seed: 7\n")
    (tmp_path / "b.yaml").write_text("seed: 8\n")
    assert read_recipes([str(tmp_path / "a+b.yaml")]) == {"seed": 7}
    assert read_recipes([f"gsm8k+{tmp_path / 'b.yaml'}"])["seed"] == 8


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [", "no YAML"),
        ("- 1", "name: value"),
        ("include: self.yaml", "includes itself"),
        ("include: nothing-like-it", "no recipe"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        read_recipes([str(path)])


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean demo_soft"):
        read_recipes(["demo_sft"])
    with pytest.raises(UserError, match=r"no recipe x\.yaml"):
        read_recipes(["x.yaml"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_generations": 1}, "--group-size 2"),
        (
            {"num_generations": 1, "algorithm": "reinforce_plus_plus", "dynamic_sampling": True},
            "--dynamic-sampling replaces groups of equal rewards, and one sample is always",
        ),
        ({"num_iterations": 2, "method": "soft"}, "on-policy"),
        ({"num_iterations": 2, "method": "fuzzy"}, "1420 nats"),
        ({"num_iterations": 2, "method": "hard"}, "on-policy"),
        ({"validation_size": 0}, "no validation data"),
        ({"method": "hard", "noise_scale": 0.3}, "hard_sample has no option 'noise_scale'"),
        (
            {"method": "hard", "score_error": "recorded"},
            "--score-error and --detach-embedding-in-mixture fit",
        ),
        ({"method": "softer"}, "--method softer: unknown mode"),
        ({"noise_scale": 0.0}, "--noise-scale 0.0"),
        ({"dataset": "gsm"}, "did you mean gsm8k"),
        ({"learning_rat": 1.0}, "did you mean learning_rate"),
        ({"reward_correct": 5.0}, "--reward-correct"),
        ({"micro_batch_size": 0}, "--micro-batch-size"),
        ({"max_cot_tokens": 0}, "--max-cot-tokens 0"),
        ({"save_total_limit": 1}, "--save-total-limit 1"),
        ({"learning_rate": float("inf")}, "--learning-rate inf: input should be a finite"),
        ({"reward_boxed": float("nan")}, "--reward-boxed nan: input should be a finite"),
        ({"noise_scale": float("inf")}, "--noise-scale inf: input should be a finite"),
        ({"lora_rank": 8}, "--lora-rank needs --lora"),
        ({"lora_alpha": 8}, "--lora-alpha needs --lora"),
        ({"lora_target_modules": "q_proj"}, "--lora-target-modules needs --lora"),
    ],
)
def test_refusals_name_the_flag(options: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        make_config(options)
    assert "\n" not in str(caught.value)


def test_adapters_of_a_recipe_can_be_switched_off() -> None:
    assert make_config({"lora": True, "lora_rank": 8}).lora_rank == 8
    assert not make_config({"lora": False}, {"lora": True, "lora_rank": 8}).lora
    make_config(TrainConfig().model_dump())


def test_lists_are_texts_too() -> None:
    config = make_config({"report_to": "tensorboard,wandb", "exclude_tasks": "none"})
    assert config.report_to == ("tensorboard", "wandb") and config.exclude_tasks == ()
    assert config.overlaps == ()
    assert make_config({"dataset": "gsm8k"}).overlaps == ("gsm8k", "math500", "olympiadbench")
    assert make_config({}).overlaps == ("arithmetic",)


def test_identity_leaves_out_what_changes_no_number() -> None:
    one, other = tiny_config(), tiny_config(output_path="elsewhere", save_steps=7)
    assert identity_of(one) == identity_of(other)
    assert identity_of(one) != identity_of(tiny_config(seed=1))
    assert identity_of(one) != identity_of(tiny_config(micro_batch_size=3))


def test_modes_follow_the_overrides() -> None:
    config = tiny_config(method="soft", temperature=0.7, noise_scale=0.1, noise_norm="vector")
    mode = config.mode
    assert (mode.temperature, mode.noise_scale) == (0.7, 0.1)
    assert greedy_mode(config).temperature == 0.7 and greedy_mode(config).is_greedy
    assert greedy_mode(tiny_config(method="hard")).name == "hard_greedy"
