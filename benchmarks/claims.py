"""Tables of `softeval sweep claims` for docs/claims.md, with training seeds as the unit.

    python benchmarks/claims.py runs/sweep-claims

Means over seeds ± standard deviation, with Student's 95 % interval over seeds: the questions are the same for all
seeds, so it says nothing of other questions. Success in percent under hard inference; D(k) in points.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from softeval import Run, load_run
from softeval.statistics import mean_interval, pass_at_k

CELL = re.compile(r"demo_(\w+)-dataset-(\w+)-max_steps-(\d+)-seed-(\d+)")
POINTS = [("arithmetic_hidden_" + n, "400") for n in ("0", "10", "30", "50")]
POINTS += [("arithmetic_hidden_30", n) for n in ("800", "1600")]
LONG = "arithmetic_long_30"
METHODS = ("hard", "fuzzy", "soft")
COLUMNS = (
    "greedy",
    "@1",
    "@8",
    "@32",
    "@256",
    "@1 hidden",
    "@8 hidden",
    "@32 hidden",
    "@32 open",
    "entropy",
)
CONTRASTS = ("greedy", "@1", "@8", "@32", "@256", "@32 hidden", "@32 open")
Figures = dict[str, float]


def figures(run: Run, task: str) -> Figures:
    """Success by measure and part, in percent; entropy of hard samples, nats a CoT token."""
    rows = run.samples(["task", "mode", "doc_id", "correct"])
    counts = (
        rows[rows["task"] == task]
        .groupby(["mode", "doc_id"], observed=True)["correct"]
        .agg(["size", "sum"])
    )
    prompts = run.prompts()
    part = prompts[prompts["task"] == task].set_index("doc_id").get("group")
    found: Figures = {}
    for mode, ks in (("hard_greedy", [1]), ("hard_sample", [1, 8, 32, 256])):
        if mode not in counts.index:
            continue
        cell = counts.loc[mode]
        n_M, c_M = cell["size"].to_numpy(), cell["sum"].to_numpy()
        for k in (k for k in ks if k <= n_M.min()):
            name = "greedy" if mode == "hard_greedy" else f"@{k}"
            x_M = 100 * np.ravel(pass_at_k(n_M, c_M, [k]))
            found[name] = x_M.mean()
            for group in ("hidden", "open") if part is not None else ():
                chosen = (part.loc[cell.index] == group).to_numpy()
                if chosen.any():
                    found[f"{name} {group}"] = x_M[chosen].mean()
    return found


def entropy(run: Run, task: str) -> float:
    """Mean over all CoT tokens of hard samples."""
    rows = run.positions(["task", "mode", "entropy"])
    chosen = (rows["task"] == task) & (rows["mode"] == "hard_sample")
    return float(rows["entropy"].to_numpy()[chosen.to_numpy()].mean())


def told(values: Iterable[float], digits: int = 1) -> str:
    """Mean, deviation and interval over seeds."""
    listed = np.array(list(values))
    if len(listed) < 2:
        return ", ".join(f"{x:.{digits}f}" for x in listed) or "–"
    found = mean_interval(listed)
    low, high = (f"{end:.{digits}f}" for end in (found.low, found.high))
    return f"{found.mean:.{digits}f} ± {listed.std(ddof=1):.{digits}f} [{low}, {high}]"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """As Markdown."""
    named = list(columns)
    print(f"\n{title}\n\n| {' | '.join(named)} |\n|{'---|' * len(named)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def collect(
    folder: Path,
) -> tuple[dict[str, Figures], dict[tuple[str, str, str, str], dict[int, Figures]]]:
    """Figures of the untrained model by task; and by task, training set, updates and method, those of each seed."""
    base: dict[str, Figures] = {}
    cells: dict[tuple[str, str, str, str], dict[int, Figures]] = defaultdict(dict)
    for place in sorted(folder.glob("*/run*/run.json")):
        run, match = load_run(place.parent), CELL.fullmatch(place.parent.parent.name)
        if not run.complete or "hard_sample" not in run.modes:
            continue
        for task in run.datasets():
            found = figures(run, task) | ({} if task == LONG else {"entropy": entropy(run, task)})
            if match is None:
                base[task] = found
            else:
                cells[task, match[2], match[3], match[1]][int(match[4])] = found
    return base, cells


def row(name: str, seeds: Mapping[int, Figures]) -> list[str]:
    """The figures of a checkpoint."""
    each = [[one[c] for one in seeds.values() if c in one] for c in COLUMNS]
    return [
        name,
        *(told(v, 4 if c == "entropy" else 1) for c, v in zip(COLUMNS, each, strict=True)),
    ]


def less(a: Mapping[int, Figures], b: Mapping[int, Figures], name: str) -> str:
    """A - B, seed by seed."""
    return told(
        a[s][name] - b[s][name] for s in sorted(a) if s in b and name in a[s] and name in b[s]
    )


def main(folder: Path) -> None:
    """Print every table."""
    base, cells = collect(folder)
    for task, (data, updates) in [(p[0], p) for p in POINTS] + [(LONG, p) for p in POINTS]:
        trained = {m: cells.get((task, data, updates, m), {}) for m in METHODS}
        if not any(trained.values()):
            continue
        untrained = dict.fromkeys(range(100), base.get(task, {}))
        rows = [row("base", {0: base[task]})] if task in base else []
        rows += [row(f"{m} ({len(seeds)} seeds)", seeds) for m, seeds in trained.items() if seeds]
        table(f"{task}, trained on {data}, {updates} updates", ("checkpoint", *COLUMNS), rows)
        pairs = [("soft", "hard"), ("fuzzy", "hard"), *((m, "base") for m in METHODS)]
        sides = {**trained, "base": untrained}
        differences = [[k, *(less(sides[a], sides[b], k) for a, b in pairs)] for k in CONTRASTS]
        table("D(k), points", ("", *(f"{a} − {b}" for a, b in pairs)), differences)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
