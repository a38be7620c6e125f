"""Training in the modes beside the paper's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from train_cases import read_metrics, run, tiny_config

from softeval.errors import UserError
from softeval.modes import ALL, MODES, get_mode
from softeval.trainers.rollout import greedy_mode

SAMPLED = sorted(name for name in set(MODES) - set(ALL) if not MODES[name].is_greedy)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_method_is_any_mode_with_a_density(name):
    config = tiny_config(method=name)
    assert config.mode == MODES[name] and greedy_mode(config).is_greedy


def test_a_methods_options_reach_the_mode():
    config = tiny_config(method="gumbel", mode_args={"density": "softgrpo_release", "top_n": "3"})
    assert config.mode == get_mode("gumbel", density="softgrpo_release", top_n=3)
    assert greedy_mode(config).options["top_n"] == 3


@pytest.mark.parametrize("name", ["soft_greedy", "soft_thinking"])
def test_a_mode_without_a_density_is_refused(name):
    with pytest.raises(UserError, match="no density"):
        tiny_config(method=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_three_steps(name, tmp_path: Path, boxing: dict[str, Any]):
    run(tmp_path, method=name, eval_steps=3, **boxing)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    norms = [line["gradient/norm"] for line in lines[1:]]
    assert all(math.isfinite(norm) for norm in norms) and max(norms) > 0
    assert all(math.isfinite(line["loss/total"]) for line in lines[1:] if "loss/total" in line)
