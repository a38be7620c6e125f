"""How does fuzzy training depend on precision? The demo in several, everything else the same.

    python benchmarks/fuzzy_precision.py [--variants …] [--seeds 0,1,2] [--output-path …]

At temperature 1e-4 the softmax of float32 logits is one-hot but at near ties, so the gradient
through the mixture is exactly zero almost everywhere; logits rounded to bfloat16 tie. A bfloat16
model has such logits, and its training pass rounds some of them to other mixtures than the rollout
fed: there the two settings of `--score-error` differ. Prints training success in steps of 50, greedy
validation, the rates of ties and of such positions, the share of steps without any gradient, and
the median gradient norm of the others. Runs that are finished are only read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

WINDOW = 50
VARIANTS = {
    "bfloat16-logits": ("--logits-dtype", "bfloat16"),
    "float32-logits": ("--logits-dtype", "float32"),
    "bfloat16-recorded": ("--dtype", "bfloat16", "--score-error", "recorded"),
    "bfloat16-recomputed": ("--dtype", "bfloat16", "--score-error", "recomputed"),
}


def train(folder: Path, variant: str, seed: int) -> None:
    command = [sys.executable, "-m", "softeval", "train", "--config", "demo_fuzzy"]
    command += [*VARIANTS[variant], "--seed", str(seed), "--output-path", str(folder)]
    subprocess.run([*command, "--report-to", "none", "--quiet"], check=True)


def curve(folder: Path) -> dict:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["step"] > 0]
    success = [line["reward/success"] for line in steps]
    validation = [line["validation/success"] for line in lines if "validation/success" in line]
    norms = [line["gradient/norm"] for line in steps]
    return {
        "training": [
            round(sum(success[i : i + WINDOW]) / len(success[i : i + WINDOW]), 3)
            for i in range(0, len(success), WINDOW)
        ],
        "validation": {"untrained": validation[0], "best": max(validation), "last": validation[-1]},
        "tie_rate": sum(line["health/ties"] for line in steps) / len(steps),
        "mismatch_rate": sum(line["health/mixture_mismatch"] for line in steps) / len(steps),
        "steps_without_gradient": norms.count(0) / len(norms),
        "median_gradient_norm": statistics.median(filter(None, norms)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output-path", type=Path, default=Path("runs/fuzzy-precision"))
    args = parser.parse_args()
    for seed in args.seeds.split(","):
        for variant in args.variants.split(","):
            folder = args.output_path / f"{variant}-{seed}"
            train(folder, variant, int(seed))
            print(f"{variant:20} seed {seed}  {json.dumps(curve(folder))}", flush=True)


if __name__ == "__main__":
    main()
