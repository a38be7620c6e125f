"""GPU-hours and bytes before anything is run: the arithmetic against its own terms by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ended

from softeval.runs import config as evaluation
from softeval.sweeps import estimate
from softeval.sweeps.chain import Command
from softeval.sweeps.estimate import Shape, cost_of, evaluation_cost, shape_of, training_cost
from softeval.trainers import config as training

pytest_plugins = ("command_line_fixtures",)

LLAMA = "meta-llama/Llama-3.2-3B-Instruct"


def test_a_pass_reads_or_multiplies() -> None:
    shape = Shape(1e9, position=1000, item=2)
    assert shape.pass_seconds(1, 0) == pytest.approx(2e9 / (3.35e12 * 0.5))
    assert shape.pass_seconds(100, 500) == pytest.approx((2e9 + 5e7) / (3.35e12 * 0.5))
    assert shape.pass_seconds(10_000, 0) == pytest.approx(2e13 / (989e12 * 0.4))


def test_a_training_is_its_updates_and_validations() -> None:
    shape = estimate.KNOWN[LLAMA]
    options = {"model": LLAMA, "dataset": "gsm8k", "max_steps": 100, "eval_steps": 50}
    config = training.make_config(options | {"max_cot_tokens": 128, "max_answer_tokens": 32})
    whole = training_cost(config, shape).gpu_hours * 3600
    rollout = 160 * shape.pass_seconds(64, 280)
    backward = 3 * 2 * 3.213e9 * 64 * 360 / (989e12 * 0.4)
    step = 28 * 3.213e9 / (3.35e12 * 0.5)
    validation = 160 * shape.pass_seconds(config.validation_size, 280)
    assert whole == pytest.approx(100 * (rollout + backward + step) + 3 * validation)
    # Eight cards read the weights eight times for each rollout.
    spread = training_cost(config, shape, processes=8).gpu_hours * 3600
    assert whole < spread < 8 * whole


def test_an_evaluation_grows_with_its_samples_and_is_cut_by_its_shards() -> None:
    def cost(**options: object) -> float:
        given = {"tasks": "gsm8k", "modes": "soft_sample", "output_path": "x"} | options
        found = evaluation_cost(evaluation.make_config(given), estimate.KNOWN[LLAMA])
        assert found is not None
        return found.gpu_hours

    assert cost(num_samples=64) == pytest.approx(2 * cost(num_samples=32), rel=0.1)
    assert cost(num_samples=32, shard="1/4") == pytest.approx(cost(num_samples=32) / 4)
    assert cost(modes="soft_greedy") < cost(num_samples=2)
    assert cost(tasks="hellaswag") == pytest.approx(
        2 * 3.213e9 * 10042 * 4 * 128 / (989e12 * 0.4) / 3600
    )


def test_a_command_of_a_sweep_costs_what_its_options_do() -> None:
    flags = ("--model", LLAMA, "--dataset", "gsm8k", "--max-steps", "7", "--no-self-check")
    train = Command(("train", *flags, "--gradient-checkpointing"), Path("t"), (), 2)
    options = {"model": LLAMA, "dataset": "gsm8k", "max_steps": 7, "gradient_checkpointing": True}
    config = training.make_config(options)
    assert cost_of(train) == training_cost(config, estimate.KNOWN[LLAMA], 2)
    run = Command(("run", "--model", "t/best", "--tasks", "math500"), Path("r"), (train,))
    asked = evaluation.make_config({"tasks": "math500"})
    assert cost_of(run) == evaluation_cost(asked, estimate.KNOWN[LLAMA])
    assert cost_of(Command(("merge", "x"), Path("m"), (run,))) is None
    assert cost_of(Command(("run", "--model", "not/at-hand"), Path("r"))) is None


def test_the_shape_of_a_checkpoint_is_read_from_its_config() -> None:
    shape = shape_of(None)
    assert shape is not None and shape.parameters == pytest.approx(4e5, rel=0.2)


def test_dry_runs_say_what_it_costs(softeval: Callable[..., Ended]) -> None:
    words = ["--dry-run", "--json", "--device", "cpu", "-o", "x"]
    few, many = (json.loads(softeval("run", *words, "-n", n).out)["cost"] for n in (4, 32))
    assert 0 < few["gpu_hours"] <= many["gpu_hours"] and few["bytes"] < many["bytes"]
    told = softeval("train", "--config", "demo_soft", "--dry-run", "--device", "cpu").err
    assert "hours of one H100 at assumed shares of its peak" in told
