"""Does every mode with a density learn? The demo, briefly, with each of them and three seeds.

    python benchmarks/train_modes.py [--modes gumbel,dirichlet] [--seeds 0,1,2] [--output-path …]

One setting for all, written down before any was run: the demo recipe, 60 updates at a peak rate of 2e-5
(what the demo's soft and fuzzy recipes have; the hard one's is higher), greedy validation on 100
held-out questions every 20. Options of a mode are its defaults; fuzzy alone has its own recipe, with
logits in bfloat16, because without it no signal lasts (docs/log.md).

Seed by seed, so that an interrupted comparison is a balanced one; a finished run is only read, an
unfinished one continues. Validation is the mode's without its randomness, hard_greedy where it has no
such form. The last column is the mean over seeds of last minus first, with Student's interval over the
seeds: 100 questions are the same for all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from softeval.cli.recipes import read_recipes
from softeval.modes import MODES
from softeval.statistics.interval import mean_interval
from softeval.terminal import calm_libraries
from softeval.trainers.config import make_config
from softeval.trainers.trainer import train

STEPS, EVERY = 60, 20
RECIPES = {"fuzzy_sample": "demo_fuzzy"}
SETTING = {
    "learning_rate": 2e-5,
    "max_steps": STEPS,
    "eval_steps": EVERY,
    "save_steps": EVERY,
    # These measure and change nothing that is learnt.
    "kl_steps": 0,
    "gradient_split_steps": 0,
    "log_completions_steps": 0,
    "report_to": "none",
}


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ensure(folder: Path, mode: str, seed: int) -> None:
    """Train, or continue, unless the run is finished."""
    if (found := lines(folder)) and found[-1]["step"] == STEPS:
        return
    given = {**SETTING, "method": mode, "seed": seed, "output_path": str(folder)}
    train(make_config(given, read_recipes([RECIPES.get(mode, "demo")])), quiet=True)


def curve(folder: Path) -> list[float]:
    """Percent of the validation questions, by time of validation."""
    return [100 * x["validation/success"] for x in lines(folder) if "validation/success" in x]


def sampled(folder: Path) -> list[float]:
    """Percent of the rollouts, in windows as long as the time between validations."""
    found = [100 * x["reward/success"] for x in lines(folder) if x["step"] > 0]
    return [float(np.mean(found[i : i + EVERY])) for i in range(0, len(found), EVERY)]


def row(mode: str, folders: list[Path]) -> str:
    validated = np.array([curve(folder) for folder in folders])
    rollouts = np.array([sampled(folder) for folder in folders]).mean(0)
    gain = mean_interval(validated[:, -1] - validated[:, 0])
    by_time = " ".join("/".join(f"{x:.0f}" for x in times) for times in validated.T)
    means = " ".join(f"{x:.1f}" for x in rollouts)
    return (
        f"| {mode} | {by_time.replace(' ', ' | ')} | {means} "
        f"| {gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    trainable = [name for name, mode in MODES.items() if mode.has_density]
    parser.add_argument("--modes", default=",".join(trainable))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output-path", type=Path, default=Path("runs/train-modes"))
    given = parser.parse_args()
    calm_libraries(bars=False)
    modes, seeds = given.modes.split(","), given.seeds.split(",")
    folders = {m: [given.output_path / f"{m}-{s}" for s in seeds] for m in modes}
    for number, seed in enumerate(seeds):
        for mode in modes:
            ensure(folders[mode][number], mode, int(seed))
            found = " ".join(f"{x:.0f}" for x in curve(folders[mode][number]))
            print(f"{mode:20} seed {seed}  {found}", flush=True)
    times = " | ".join(str(step) for step in range(0, STEPS + 1, EVERY))
    print(f"\n| mode | {times} | rollouts | last - first |")
    print("|---|" + "---|" * (STEPS // EVERY + 3))
    for mode in modes:
        print(row(mode, folders[mode]))


if __name__ == "__main__":
    main()
