"""Which architectures are decoded exactly? Writes docs/architectures.md.

    python benchmarks/architectures.py [--names llama,mixtral] [--modes …] [--jobs N] [--kept FILE] [--output docs/architectures.md]

Builds each architecture that AutoModelForCausalLM maps from a tiny config, with random parameters
none of which is constant, decodes it under the modes (the paper's six by default), holds every step
against a pass of the whole prefix without a cache (`tests/architectures.py`), and traces a step
(`tests/step_graphs.py`). Some half an hour of processor time; verdicts kept in a file are not judged anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from architectures import (
    PROMPTS,
    TOLERANCE,
    WINDOW,
    Verdict,
    deviation,
    judge,
    names,
    traced,
)

SIX = [f"{kind}_{way}" for kind in ("hard", "soft", "fuzzy") for way in ("greedy", "sample")]

HEAD = """# Architectures

Written by `benchmarks/architectures.py` with transformers {transformers} and torch {torch} on a CPU in
float32. Every model type that AutoModelForCausalLM maps is built from a tiny config with random
parameters, none of them constant, and decoded under {modes}: prompts of {lengths} tokens,
windows of {window} positions. **Exact**: each entropy, each vector fed and each token is what a pass of
the whole prefix without a cache gives, to {tolerance:g}, and `hard_greedy` is what `generate()` gives.
**Text part**: of a multimodal checkpoint the language model is decoded. **Refused**: in one line, before the weights are read where the config tells, at load by a trial
otherwise. A real checkpoint is tried in the same way when it is loaded, prompts in chunks included. **One graph**: `torch.compile(fullgraph=True)` traces the whole
step under `fuzzy_sample`, model, mixture, noise and records, without a break, and calls with other rows, positions and phases make no further graph.

{counts}

| architecture | verdict | largest deviation | same bits in any batch | as `generate()` | one graph | why |
|---|---|---|---|---|---|---|
"""


def row(found: Verdict) -> str:
    exact = found.verdict == "exact"
    cells = [
        f"`{found.name}`",
        found.verdict,
        deviation(found) if found.steps else "",
        {True: "yes", False: "no", None: ""}[found.bits],
        {True: "yes", False: "no", None: "does not run" if exact else ""}[found.generate],
        {True: "yes", False: "no", None: ""}[found.graph],
        "" if exact and found.graph is not False else found.reason.replace("|", "/"),
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
    if found.verdict == "exact":
        found = traced(found)
    seconds = time.perf_counter() - started
    print(f"{name}: {found.verdict} ({seconds:.1f} s) {found.reason}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", help="only these, separated by commas")
    parser.add_argument("--modes", default=",".join(SIX), help="CoT modes to decode under")
    parser.add_argument("--kept", type=Path, help="file of verdicts; those missing are appended")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "architectures.md")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    chosen = arguments.names.split(",") if arguments.names else names()
    known = {found.name: found for found in kept(arguments.kept)}
    missing = [name for name in chosen if name not in known]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for found in pool.map(partial(judged, modes=modes), missing):
            known[found.name] = found
            if arguments.kept:
                with arguments.kept.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
    arguments.output.write_text(page([known[name] for name in chosen], modes), encoding="utf-8")


def kept(file: Path | None) -> list[Verdict]:
    """Verdicts of an earlier call with the same modes."""
    if file is None or not file.exists():
        return []
    return [Verdict(**json.loads(line)) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    main()
