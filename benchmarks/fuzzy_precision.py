"""Does fuzzy training need the ties that bfloat16 logits bring? The demo, both ways.

    python benchmarks/fuzzy_precision.py [--seeds 0,1,2] [--output-path runs/fuzzy-precision]

At temperature 1e-4 the softmax of float32 logits is one-hot but at near ties, so the gradient
through the mixture is exactly zero almost everywhere; logits rounded to bfloat16 tie. Trains the
demo with `--logits-dtype bfloat16` and `--logits-dtype float32`, everything else the same, and
prints training success in steps of 50, greedy validation, the tie rate, and the share of steps
without any gradient. Runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

WINDOW = 50


def train(folder: Path, dtype: str, seed: int) -> None:
    command = [sys.executable, "-m", "softeval", "train", "--config", "demo_fuzzy"]
    command += ["--logits-dtype", dtype, "--seed", str(seed), "--output-path", str(folder)]
    subprocess.run([*command, "--report-to", "none", "--quiet"], check=True)


def curve(folder: Path) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] > 0]
    success = [line["reward/success"] for line in steps]
    validation = [line["validation/success"] for line in lines if "validation/success" in line]
    return {
        "training": [
            round(sum(success[i : i + WINDOW]) / len(success[i : i + WINDOW]), 3)
            for i in range(0, len(success), WINDOW)
        ],
        "validation": {"untrained": validation[0], "best": max(validation), "last": validation[-1]},
        "tie_rate": sum(line["health/ties"] or 0 for line in steps) / len(steps),
        "steps_without_gradient": sum(line["gradient/norm"] == 0 for line in steps) / len(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output-path", type=Path, default=Path("runs/fuzzy-precision"))
    args = parser.parse_args()
    for seed in args.seeds.split(","):
        for dtype in ("bfloat16", "float32"):
            folder = args.output_path / f"{dtype}-{seed}"
            train(folder, dtype, int(seed))
            print(f"{dtype:9} seed {seed}  {json.dumps(curve(folder))}", flush=True)


if __name__ == "__main__":
    main()
