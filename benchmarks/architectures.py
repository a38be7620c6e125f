"""Which architectures are decoded exactly? Writes docs/architectures.md.

    python benchmarks/architectures.py [--names llama,mixtral] [--modes …] [--jobs N] [--output docs/architectures.md]

Builds each architecture that AutoModelForCausalLM maps from a tiny config, with random parameters
none of which is constant, decodes it under the modes (all six by default), and holds every step against a pass of
the whole prefix without a cache (`tests/architectures.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from architectures import PROMPTS, TOLERANCE, WINDOW, Verdict, deviation, judge, names

from softeval.modes import MODES

HEAD = """# Architectures

Written by `benchmarks/architectures.py` with transformers {transformers} and torch {torch} on a CPU in
float32. Every model type that AutoModelForCausalLM maps is built from a tiny config with random
parameters, none of them constant, and decoded under {modes}: prompts of {lengths} tokens,
windows of {window} positions. **Exact**: each entropy, each vector fed and each token is what a pass of
the whole prefix without a cache gives, to {tolerance:g}, and `hard_greedy` is what `generate()` gives.
**Text part**: of a multimodal checkpoint the language model is decoded. **Refused**: in one line, before the weights are read where the config tells, at load by a trial
otherwise. A real checkpoint is tried in the same way when it is loaded.

{counts}

| architecture | verdict | largest deviation | same bits in any batch | as `generate()` | why |
|---|---|---|---|---|---|
"""


def row(found: Verdict) -> str:
    exact = found.verdict == "exact"
    cells = [
        f"`{found.name}`",
        found.verdict,
        deviation(found) if found.steps else "",
        {True: "yes", False: "no", None: ""}[found.bits],
        {True: "yes", False: "no", None: "does not run" if exact else ""}[found.generate],
        "" if exact else found.reason.replace("|", "/"),
    ]
    return f"| {' | '.join(cells)} |"


def page(verdicts: list[Verdict], modes: list[str]) -> str:
    counts = Counter(found.verdict for found in verdicts)
    lengths = [len(prompt) for prompt in PROMPTS]
    head = HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        lengths=f"{', '.join(map(str, lengths[:-1]))} and {lengths[-1]}",
        window=WINDOW,
        modes=", ".join(f"`{mode}`" for mode in modes),
        tolerance=TOLERANCE,
        counts=", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + ".",
    )
    return head + "\n".join(row(found) for found in verdicts) + "\n"


def judged(name: str, modes: list[str]) -> Verdict:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = judge(name, modes)
    seconds = time.perf_counter() - started
    print(f"{name}: {found.verdict} ({seconds:.1f} s) {found.reason}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", help="only these, separated by commas")
    parser.add_argument("--modes", default=",".join(MODES), help="CoT modes to decode under")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architectures.md")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    chosen = arguments.names.split(",") if arguments.names else names()
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        verdicts = list(pool.map(partial(judged, modes=modes), chosen))
    arguments.output.write_text(page(verdicts, modes), encoding="utf-8")


if __name__ == "__main__":
    main()
