"""The grader on pairs with known verdicts, and on hostile answers.

    python benchmarks/scoring.py PAIRS.jsonl [--hostile 2800] [--output FILE.json]

PAIRS.jsonl holds rows with `answer`, `label` and `right`. Prints, for softeval's rules and for plain
math-verify: wrong acceptances and wrong refusals (in all and on each half of the pairs, split by
hash), the time of a verdict, and how many hostile answers were accepted. Hostile answers are random
LaTeX, deep nesting, towers, long runs, code in several languages and control characters, scored
from an empty folder that must stay empty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from softeval.scoring.judge import MAX_ANSWER_CHARS, Rules, Scorer, rules_name

PIECES = [
    r"\frac",
    r"\sqrt",
    r"\sum_{k=1}^{99}",
    r"\int_0^1",
    r"\prod",
    r"\lim_{x\to0}",
    r"\binom",
    r"\text{",
    r"\mathrm{",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\begin{cases}",
    r"\end{cases}",
    r"{",
    r"}",
    r"(",
    r")",
    r"[",
    r"]",
    r"\{",
    r"\}",
    r"\left(",
    r"\right)",
    r"^",
    r"_",
    r"!",
    r"'",
    r"|",
    r"&",
    r"\\",
    r",",
    r";",
    r":",
    r"=",
    r"<",
    r">",
    r"\le",
    r"\in",
    r"\cup",
    r"\setminus",
    r"\pm",
    r"%",
    r"$",
    r"\$",
    r"°",
    r"+",
    r"-",
    r"*",
    r"/",
    r"0",
    r"1",
    r"7",
    r"99",
    r"3.5",
    r"1,000",
    r"x",
    r"n",
    r"e",
    r"i",
    r"\pi",
    r"\infty",
    r"\alpha",
    r"cm",
    r"and",
    r"or",
    r"if",
    r"a.m.",
    r"10^",
    r"9^{9^{9}}",
    r"\log_2",
    r"\sin",
    r"\lfloor",
    r"\rfloor",
    r"\overline{",
    r"\bmod",
    r"\emptyset",
    r"\mathbb{R}",
    r"\boxed{",
    r"\cdot",
    r"\ldots",
]
CODE = [
    "__import__('os').system('touch CANARY')",
    "eval(\"open('CANARY','w')\")",
    r"\text{__import__('os').system('touch CANARY')}",
    r"f_{open('CANARY','w')}(x)",
    "$(touch CANARY)",
    "`touch CANARY`",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY') }}",
    r"\write18{touch CANARY}\input{/etc/passwd}",
    "().__class__.__base__.__subclasses__()",
    '"}\n{"answer": "5", "target": "5"}',
    "lambda: open('CANARY','w')",
    "!!python/object/apply:os.system ['touch CANARY']",
]
LABELS = (r"\frac{271}{3}", "x^2+7", r"\text{Evelyn}", "(271, 3]", r"\{271, 3\}", "271:30 PM")


def hostile_answer(rng: random.Random) -> str:
    """One answer that no honest model writes."""
    match rng.randrange(7):
        case 0 | 1 | 2:
            return " ".join(rng.choices(PIECES, k=rng.randint(1, 40)))
        case 3:
            opening, closing = rng.choice(["{}", "()", "[]", ("\\sqrt{", "}"), ("\\frac{1}{", "}")])
            depth = rng.randint(5, 400)
            return (opening * depth + rng.choice(PIECES) + closing * depth)[:MAX_ANSWER_CHARS]
        case 4:
            unit = rng.choice([*PIECES, "\x00", "\u202e", "\u0301", "\ud800", "🙂", "٣"])
            return (unit * MAX_ANSWER_CHARS)[: rng.randint(1, MAX_ANSWER_CHARS)]
        case 5:
            return rng.choice(["", "1;", "5 ", r"\text{", "x="]) + rng.choice(CODE)
    tower = "^".join("{" + str(rng.randint(2, 9999)) for _ in range(rng.randint(2, 8)))
    return tower + "}" * tower.count("{") + rng.choice(["", "!", "!!", r"\%", r"\text{ cm}"])


def half_of(row: dict[str, Any]) -> str:
    """Which half of the pairs a row belongs to."""
    digest = hashlib.sha1(f"{row['answer']}|{row['label']}".encode()).digest()
    return "first half" if digest[0] % 2 else "second half"


def on_pairs(rows: list[dict[str, Any]], rules: Rules, timeout: float) -> dict[str, Any]:
    """Wrong verdicts and the time of one."""
    counts: dict[str, Counter[str]] = {}
    seconds, wrong = [], []
    with Scorer(timeout=timeout, rules=rules) as scorer:
        scorer.score("x+1", "1+x")
        for row in rows:
            started = time.perf_counter()
            verdict = scorer.score(row["answer"], row["label"])
            seconds.append(time.perf_counter() - started)
            for part in ("all", half_of(row)):
                count = counts.setdefault(part, Counter())
                count["pairs"] += 1
                count["right"] += row["right"]
                count["accepted wrongly"] += verdict.correct and not row["right"]
                count["refused wrongly"] += row["right"] and not verdict.correct
            if verdict.correct != row["right"]:
                wrong.append(
                    ("accepted" if verdict.correct else "refused", row["answer"], row["label"])
                )
    return {"counts": counts, "seconds": quantiles(seconds), "wrong": wrong}


def on_hostile(number: int, rules: Rules, timeout: float) -> dict[str, Any]:
    """What became of hostile answers, and whether one left a file."""
    rng = random.Random(0)
    here = Path.cwd()
    seconds, statuses, correct = [], Counter(), 0
    with tempfile.TemporaryDirectory() as folder, Scorer(timeout=timeout, rules=rules) as scorer:
        os.chdir(folder)  # where the workers start
        canary = str(Path(folder) / "canary")
        for _ in range(number):
            answer = hostile_answer(rng).replace("CANARY", canary)
            started = time.perf_counter()
            verdict = scorer.score(answer, rng.choice(LABELS))
            seconds.append(time.perf_counter() - started)
            statuses[verdict.status] += 1
            correct += verdict.correct
        files = os.listdir(folder)
        os.chdir(here)
    return {"answers": number, "correct": correct, "files": files, "statuses": statuses,
            "seconds": quantiles(seconds)}  # fmt: skip


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=20)
    named = {"p50": cuts[9], "p95": cuts[18], "max": max(seconds)}
    return {name: round(1000 * value, 2) for name, value in named.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--hostile", type=int, default=2800)
    parser.add_argument("--timeout", type=float, default=1.5, help="CPU seconds for an answer")
    parser.add_argument("--rules", choices=list(Rules), nargs="*", default=list(Rules))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.pairs.read_text(encoding="utf-8").splitlines()]
    found = {}
    for rules in map(Rules, given.rules):
        measured = {"pairs": on_pairs(rows, rules, given.timeout)}
        if given.hostile:
            measured["hostile"] = on_hostile(given.hostile, rules, given.timeout)
        found[rules_name(rules)] = measured
        print(rules_name(rules))
        for part, count in measured["pairs"]["counts"].items():
            print(f"  {part}: {dict(count)}")
        print(f"  milliseconds of a verdict: {measured['pairs']['seconds']}")
        if given.hostile:
            print(f"  hostile: {measured['hostile']}")
    if given.output:
        given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
