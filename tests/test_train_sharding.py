"""Weights sharded over processes by FSDP2, against one process that holds them all."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ForkServerProcess, kill, kill_often, start_together, together
from tiny import CONFIGS, tiny_tokenizer
from train_cases import (
    LINEAR,
    METHODS,
    MOVING,
    command,
    made_generation,
    moved_apart,
    read_metrics,
    relative_distance,
    run,
    same,
    save_tiny,
    state_tensors,
    timeless,
    weights,
)
from transformers import AutoModelForCausalLM

from softeval.errors import UserError
from softeval.model.language_model import LanguageModel, load_model, wrap_model
from softeval.modes import get_mode
from softeval.processes import ALONE, Processes
from softeval.trainers.checkpoints import load_state
from softeval.trainers.config import make_config
from softeval.trainers.learners.reinforcement import _reference
from softeval.trainers.losses import Policy
from softeval.trainers.setup import Trainee, make_trainee
from softeval.trainers.training_pass import PassPlan, TrainingPass

SEQUENCES = 7
CASES: dict[str, dict[str, Any]] = {
    "hard": {"method": "hard", "max_steps": 10},
    "soft": {"method": "soft"},
    "fuzzy": {"method": "fuzzy", "temperature": 0.1},
    "tied": {"method": "soft", "family": "llama_tied"},
    "experts": {"method": "soft", "family": "mixtral"},
    "adapters": {"method": "soft", "lora": True, "lora_rank": 2},
    "recomputed": {"method": "soft", "gradient_checkpointing": True},
    "penalised": {"method": "hard", "beta": 0.1, "lora": True, "lora_rank": 2},
    "bfloat16": {"method": "soft", "dtype": "bfloat16"},
}
TOLERANCE = {"bfloat16": 2e-2}
"""Of gradients and of where updates lead, relative; float32 sums in another order elsewhere."""


# --- Gradients and updates, in one launch for all cases ------------------------------------------


def case_model(family: str, dtype: str) -> LanguageModel:
    torch.manual_seed(0)
    precision = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=precision).eval()
    return wrap_model(model, tiny_tokenizer(), f"tiny-{family}", self_check=False)


def case_trainee(case: dict[str, Any], processes: Processes, shard: bool) -> tuple[Trainee, Any]:
    family = case.get("family", "llama")
    options = {name: value for name, value in case.items() if name != "family"}
    config = make_config({"max_steps": 2, **options, **LINEAR, "warmup_steps": 0})
    lm = case_model(family, case.get("dtype", "float32"))
    trainee = make_trainee(config, lm, processes, shard)
    policy = Policy(get_mode(f"{config.method}_sample"))
    passes = TrainingPass(
        lm,
        trainee.head,
        trainee.weights,
        policy,
        micro_batch=1,
        reference=_reference(config, trainee) if config.beta else None,
        beta=config.beta,
    )
    return trainee, passes


def updated(trainee: Trainee, passes: Any, processes: Processes) -> list[list[torch.Tensor]]:
    """The whole gradient of the first update, and the weights after the last."""
    found: list[list[torch.Tensor]] = []
    before = [m.detach().clone() for m in trainee.weights.parameters]
    for step in range(trainee.optimization.schedule.max_steps):
        lengths = [(2, 3 + n, 1, 1 + n % 3) for n in range(SEQUENCES)]
        made = [made_generation(trainee.lm, x, step, n) for n, x in enumerate(lengths)]
        advantages = [0.0 if n % 2 and n < 5 else n - 2.5 for n in range(SEQUENCES)]
        mine = torch.tensor(processes.share(advantages))
        passes.run(processes.share(made), mine, PassPlan(SEQUENCES))
        trainee.weights.reduce()
        norm = trainee.weights.norm()
        if not found:
            found.append([whole(m.grad) for m in trainee.weights.masters])
        trainee.optimization.step(step, norm)
    after = trainee.weights.parameters
    return [*found, [one - other for one, other in zip(after, before, strict=True)]]


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def compare_cases(output: Path, names: Sequence[str]) -> None:
    processes = Processes.joined(torch.device("cpu"))
    found = {}
    for name in names:
        case = CASES[name]
        sharded = case_trainee(case, processes, True)
        held = [m.to_local().numel() for m in sharded[0].weights.masters]  # type: ignore[union-attr]
        one = updated(*sharded, processes)
        distances = []
        if processes.is_main:  # which alone says what it found
            other = updated(*case_trainee(case, ALONE, False), ALONE)
            distances = [relative_distance(a, b) for a, b in zip(one, other, strict=True)]
        share = processes.gathered(sum(held) / sum(m.numel() for m in sharded[0].weights.masters))
        state = sharded[0].lm.model.state_dict()
        kinds = {type(tensor).__name__ for tensor in state.values()}
        found[name] = {"distances": distances, "held": share, "kinds": sorted(kinds)}
    if processes.is_main:
        output.write_text(json.dumps(found))
    processes.leave()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "names"), [(2, CASES), (4, ("soft", "tied"))])
def test_gradients_and_ten_updates_are_those_of_one_process(
    tmp_path: Path, processes: int, names: Sequence[str]
) -> None:
    """Passes of one sequence, of which the processes have differently many.

    How many there are changes what each holds, and not what a case does with it: four try two cases.
    """
    together(processes, __file__, tmp_path / "found.json", *names, log=tmp_path / "log")
    found = json.loads((tmp_path / "found.json").read_text())
    assert tuple(found) == tuple(names)
    for name, case in found.items():
        assert max(case["distances"]) < TOLERANCE.get(name, 1e-4), name
        assert sum(case["held"]) == pytest.approx(1) and max(case["held"]) < 1 / processes + 0.15
        assert case["kinds"] == ["Tensor"], "a state is whole, and an ordinary one"


# --- Whole runs ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sharded_run_is_killed_and_goes_on_in_other_numbers(tmp_path: Path) -> None:
    """Two processes sharded, one alone, then four: together what one does that is left alone."""
    options = METHODS["soft"] | LINEAR | MOVING["soft"] | {"kl_steps": 0}
    options |= {"max_steps": 4, "save_steps": 1, "gradient_split_steps": 0}
    model = str(save_tiny(tmp_path / "model"))
    run(tmp_path / "whole", **options, model=model)
    sharded = command(tmp_path / "run", **options, model=model, shard="full")
    log, state = tmp_path / "log", tmp_path / "run" / "state"
    running = start_together(2, sharded, log)
    while not list(state.glob("step-*")):
        assert all(process.is_alive() for process in running), log.read_text()
        time.sleep(0.01)
    kill(running)
    kept = load_state(state)
    assert kept is not None and 1 <= kept.state.step < 4
    with pytest.raises(UserError, match="for several processes"):
        run(tmp_path / "run", **options, model=model, shard="full")
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "run", alone)
    run(alone, **options, model=model)
    together(4, *sharded, log=log)
    start = load_model(model).model.state_dict()
    for folder in (alone, tmp_path / "run"):
        assert [line["step"] for line in read_metrics(folder)] == list(range(5))
        for mine, theirs in zip(timeless(folder), timeless(tmp_path / "whole"), strict=True):
            known = {name: value for name, value in theirs.items() if value is not None}
            found = {name: value for name, value in mine.items() if value is not None}
            assert found == pytest.approx(known, rel=1e-3, abs=1e-4)
        assert moved_apart(folder / "last", tmp_path / "whole" / "last", start) < 1e-3
        assert {t.dtype for t in weights(folder / "last").values()} == {torch.float32}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Half of them within 0.3 s of a state, where metrics, checkpoints and states are being written."""
    options = METHODS["soft"] | MOVING["soft"] | {"kl_steps": 0, "gradient_split_steps": 0}
    model = str(save_tiny(tmp_path / "model"))
    options |= {"model": model, "shard": "full", "max_steps": 4, "self_check": False}

    def begin(folder: Path) -> list[ForkServerProcess]:
        return start_together(2, command(folder, **options), folder.with_suffix(".log"))

    def step(folder: Path) -> int:
        return max((int(path.name[5:]) for path in folder.glob("state/step-*")), default=0)

    folders, _ = kill_often(tmp_path, 2, begin, step, most=1, pause=0.3)
    whole = tmp_path / "whole"
    assert not same(weights(whole / "best"), weights(whole / "last")), "it has moved"
    for folder in folders:
        assert timeless(folder) == timeless(whole)
        for name in ("best", "last"):
            assert same(weights(folder / name), weights(whole / name))
        (ours, theirs) = (state_tensors(path / "state" / "step-000004") for path in (folder, whole))
        assert same(ours, theirs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "coconut", "num_generations": 1}, "passes of its own"),
        ({"master_weights": False}, "--no-master-weights"),
        ({"gradient_split_steps": 5}, "not measured on sharded"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_config({"shard": "full", **options})


if __name__ == "__main__":
    compare_cases(Path(sys.argv[1]), sys.argv[2:])
