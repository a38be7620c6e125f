"""A training step on a GPU: seconds by phase, tokens a second, and peak memory beside the estimate.

    python benchmarks/gpu_train.py [--shape 3b|tiny] [--device cuda] [--methods hard,soft] [--output FILE.json]

Random weights of Llama 3.2 3B's shape with the options of its recipe: bfloat16, float32 masters and
moments, activations computed again. Two steps warm up (decode steps are captured, AdamW's moments are
made, the size of a training pass that fits beside them is found), the next is measured, everything in
it as in `softeval train`: the decoder, the scorer, the pass, the optimizer. Only the rewards are made up, since nothing that random
weights write earns one, and without one there is no gradient. A process for each method, so that none
begins with another's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_decode import SHAPES, build, wait

from softeval.cli.recipes import read_recipes
from softeval.environment import hardware
from softeval.processes import Processes
from softeval.tasks.data import DatasetSource, Origin
from softeval.tasks.problems import Problem
from softeval.trainers.config import TrainConfig, make_config
from softeval.trainers.learners.reinforcement import Reinforcement
from softeval.trainers.memory import GIB, check_memory
from softeval.trainers.metrics import peak_memory
from softeval.trainers.questions import QuestionSet, TrainingQuestion, longest_sequence
from softeval.trainers.rollout import StepRollouts
from softeval.trainers.setup import disable_dropout, make_trainee

PHASES = {
    "rollout": "the rollouts",
    "training": "the training pass",
    "optimizer": "the optimizer step",
}
"""Names of the measured phases in the estimate."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step on a GPU.")
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", default="hard,soft")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt")
    parser.add_argument("--cot", type=int, default=128, help="tokens of a chain of thought")
    parser.add_argument("--micro-batch", default="auto")
    parser.add_argument("--one", action="store_true", help="measure here, and print JSON alone")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    methods = chosen.methods.split(",")
    if chosen.one:
        print(json.dumps(measure(chosen, methods[0])))
        return
    found = {method: in_own_process(method) for method in methods}
    print_table(found)
    if chosen.output is not None:
        chosen.output.write_text(json.dumps({"hardware": hardware(), "methods": found}, indent=1))


def in_own_process(method: str) -> dict[str, Any]:
    """What a fresh process measures; why it did not, where it failed."""
    command = [sys.executable, __file__, *sys.argv[1:], "--methods", method, "--one"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}; stderr says why"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(chosen: argparse.Namespace, method: str) -> dict[str, Any]:
    """The figures of the last of three steps."""
    config = configuration(chosen, method)
    lm = build(chosen.shape, chosen.device)
    lm.graphs = config.graphs
    disable_dropout(lm.model)
    _ = lm.embedding.rms
    questions = made_questions(chosen.questions, chosen.prompt)
    estimate = check_memory(config, lm, longest_sequence(config, lm, questions), 1)
    trainee = make_trainee(config, lm)
    learner = Reinforcement(config, trainee, questions, Processes(device=lm.device))
    collector = MadeUpRewards(learner.collector, lm.device)
    learner.collector = collector  # type: ignore[assignment]
    cursor = 0
    figures: dict[str, Any] = {}
    for step in (1, 2, 3):
        started = time.perf_counter()
        found = learner.update(step, cursor)
        if found.fault:
            raise SystemExit(f"{method}: {found.fault}")
        cursor = found.cursor
        wait(chosen.device)
        updated = time.perf_counter()
        peaks = {"rollout": collector.peak, "training": peak(lm.device)}
        norm = found.metrics["gradient/norm"]
        assert norm is not None
        trainee.optimization.step(step - 1, norm)
        wait(chosen.device)
        ended = time.perf_counter()
        peaks["optimizer"] = peak(lm.device)
        figures = {
            "seconds": {**found.seconds, "optimizer": ended - updated, "step": ended - started},
            "tokens": found.tokens,
            "tokens_per_second": found.tokens / (ended - started),
            "peak_bytes": peaks,
            "micro_batch": learner.passes.fitted or learner.passes.micro_batch,
            "metrics": found.metrics,
        }
        phases = ", ".join(f"{name} {s:.2f} s" for name, s in figures["seconds"].items())
        print(f"{method}, step {step}: {phases}", file=sys.stderr, flush=True)
    if lm.device.type == "cuda":
        figures["reserved_bytes"] = torch.cuda.max_memory_reserved(lm.device)
    told = {"failed": estimate} if isinstance(estimate, str) else estimated(estimate)
    return figures | {"estimate": told, "parameters": lm.model.num_parameters()}


def configuration(chosen: argparse.Namespace, method: str) -> TrainConfig:
    """The recipe of Llama 3.2 3B in the sizes that were asked for."""
    recipe = read_recipes(["llama-3.2-3b"])
    options = {
        "method": method,
        "device": chosen.device,
        "prompts_per_step": chosen.questions,
        "num_generations": chosen.samples,
        "max_cot_tokens": chosen.cot,
        "micro_batch_size": chosen.micro_batch,
        "validation_size": 1,
        "gradient_split_steps": 0,
        "log_completions_steps": 0,
        "report_to": (),
    }
    return make_config(options, recipe)


def made_questions(number: int, length: int) -> QuestionSet:
    """Prompts that differ, of one length; twice as many as a step takes, and one held out."""
    made = [
        TrainingQuestion(
            index,
            Problem(str(index), "1"),
            tuple(2 + (7 * place + index) % 500 for place in range(length)),
        )
        for index in range(2 * number + 1)
    ]
    return QuestionSet(
        tuple(made[:-1]),
        tuple(made[-1:]),
        DatasetSource("made", Origin.LOCAL, "", "train", number, ""),
    )


class MadeUpRewards:
    """The collector, with rewards of its own and the peak of memory until they came."""

    def __init__(self, collector: Any, device: torch.device) -> None:
        self.collector, self.decoder, self.device = collector, collector.decoder, device
        self.peak = 0

    def collect(self, cursor: int) -> StepRollouts:
        """Rollouts with rewards between 0 and 100."""
        found = self.collector.collect(cursor)
        generator = torch.Generator().manual_seed(cursor)
        shape, dtype = found.rewards_PG.shape, found.rewards_PG.dtype
        found.rewards_PG = 100 * torch.rand(shape, dtype=dtype, generator=generator)
        self.peak = peak(self.device)
        return found


def peak(device: torch.device) -> int:
    """Bytes at most since this was last asked; on a CPU since the process began."""
    megabytes = peak_memory(device)["memory/peak_megabytes"]
    assert megabytes is not None
    return int(megabytes * 2**20)


def estimated(estimate: Any) -> dict[str, Any]:
    """What the estimate says, under the names of what is measured."""
    return {
        "standing_bytes": estimate.standing,
        "peak_bytes": {name: estimate.phases[theirs] for name, theirs in PHASES.items()},
        "micro_batch": estimate.micro_batch,
    }


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Seconds a phase, tokens a second; then gibibytes a phase, measured and estimated."""
    names = ("rollout", "scoring", "training", "optimizer", "step")
    print(f"{'seconds':10}" + "".join(f"{n:>11}" for n in names) + f"{'tokens/s':>11}{'micro':>7}")
    for method, figures in found.items():
        if "failed" in figures:
            print(f"{method:10} failed: {figures['failed']}")
            continue
        seconds = "".join(f"{figures['seconds'][name]:11.3f}" for name in names)
        speed = f"{figures['tokens_per_second']:11.0f}{figures['micro_batch']:7}"
        print(f"{method:10}{seconds}{speed}")
    print(f"\n{'peak GiB':10}" + "".join(f"{name:>22}" for name in PHASES))
    for method, figures in found.items():
        told = figures.get("estimate", {}).get("peak_bytes")
        if told:
            pairs = [(figures["peak_bytes"][name] / GIB, told[name] / GIB) for name in PHASES]
            shown = [f"{measured:.2f} (told {expected:.2f})" for measured, expected in pairs]
            print(f"{method:10}" + "".join(f"{text:>22}" for text in shown))


if __name__ == "__main__":
    main()
