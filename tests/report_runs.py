"""Run directories that look like a small replication of the paper, for tests of the report.

Not a test. Random numbers through the package's own writers: a base model and hard, fuzzy and soft
training with several seeds, texts that read like arithmetic, entropies that peak at numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic import WORDS, _record, make_generation

from softeval.modes import ALL, MODES
from softeval.records import AnswerStop, Generation, SampleKey, StopReason, kl_schema
from softeval.runs import rundir
from softeval.runs.tables import TableWriter, likelihood_row, prompt_hash, prompt_row
from softeval.scoring.judge import Verdict

NUMBERS = [f" {i}" for i in range(100)]
TEXT = [
    " First we add",
    " and",
    " to get",
    ".",
    " Then we multiply",
    " by",
    " and",
    " obtain",
    ".",
    " Next we subtract",
    " from",
    " leaving",
    ".",
    " So the total is",
    " therefore",
    " because",
    " each",
    " box holds",
    " apples",
    " The final answer is:",
]
VOCAB = NUMBERS + TEXT + [" \\boxed{", "}", "\n"]

# Mean success on the logit scale: method -> (greedy, sampled, spread of difficulty).
SKILL = {
    "base": (0.6, -1.2, 2.0),
    "hard": (1.1, 0.9, 3.0),
    "fuzzy": (1.1, 0.3, 2.1),
    "soft": (1.2, 0.5, 2.0),
}


def write_family(
    parent: Path,
    methods: Sequence[str] = ("base", "hard", "fuzzy", "soft"),
    seeds: int = 3,
    **kwargs: Any,
) -> list[Path]:
    """A base model and one checkpoint a method and seed; run directories in that order."""
    folders = []
    for method in methods:
        for seed in range(1 if method == "base" else seeds):
            folder = parent / (method if method == "base" else f"{method}-{seed}")
            folders.append(write_checkpoint(folder, method, seed, **kwargs))
    return folders


def write_checkpoint(
    folder: Path,
    method: str = "base",
    train_seed: int = 0,
    tasks: Sequence[str] = ("arithmetic",),
    modes: Sequence[str] = ALL,
    questions: int = 24,
    samples: int = 8,
    positions: int = 60,
    likelihood_tasks: Sequence[str] = (),
    kl: bool = False,
    status: str = rundir.COMPLETE,
    texts: Sequence[str] = (),
    record_changes: dict[str, Any] | None = None,
) -> Path:
    """One run directory. `texts` replace the CoT, the answer and the prompt of some samples."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([train_seed, *method.encode()])
    shift = 0.0 if method == "base" else float(rng.normal(0, 0.1))
    vocab = VOCAB + list(texts)
    with TableWriter(folder, lambda i: vocab[i]) as writer:
        for task in sorted(tasks):
            difficulty_Q = np.random.default_rng(list(task.encode())).normal(0, 1, questions)
            for mode in sorted(modes):
                for q in range(questions):
                    for s in range(1 if MODES[mode].is_greedy else samples):
                        chance = _chance(method, mode, float(difficulty_Q[q]), shift)
                        key = SampleKey(task, q, s)
                        writer.add(
                            *_sample(rng, key, mode, chance, positions, vocab, texts, method)
                        )
        prompts = [_prompt(t, q, texts) for t in sorted(tasks) for q in range(questions)]
        writer.write("prompts", prompts)
        writer.write(
            "likelihoods",
            [
                _likelihood(rng, t, q)
                for t in sorted(likelihood_tasks)
                for q in range(questions * 4)
            ],
        )
    record = _record(tasks, modes, likelihood_tasks, samples, questions, 0, status)
    record["counts"] |= {"rows": writer.counts}
    record["scorer"] = {"math-verify": "0.9.0"}
    record["model"] |= {
        "path": f"checkpoints/{folder.name}",
        "weights_hash": f"{method}{train_seed}",
    }
    if method != "base":
        record["training"] = {
            "method": method,
            "dataset": "arithmetic",
            "train_seed": train_seed,
            "base": "checkpoints/base",
            "step": 400,
        }
    if kl:
        record["diagnose"] = write_kl(folder, method, tasks, questions)
    rundir.write_record(folder, record | (record_changes or {}))
    return folder


def write_counts(
    folder: Path,
    method: str,
    cells: dict[str, tuple[Sequence[int], Sequence[int]]],
    train_seed: int = 0,
    task: str = "arithmetic",
    truncated: float = 0.0,
    config: dict[str, Any] | None = None,
    record_changes: dict[str, Any] | None = None,
    groups: Sequence[str] = (),
) -> Path:
    """A run directory of given counts: by mode, samples and right samples of each question.

    Two CoT tokens a sample; the first samples of each question are the right ones. ``truncated`` is
    the share of CoTs cut at the cap; ``groups`` names the part of each question. A method of "base" has no training on record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(folder.name.encode()))
    with TableWriter(folder, lambda i: WORDS[i], grouped=bool(groups)) as writer:
        for mode in sorted(cells):
            for q, (n, c) in enumerate(zip(*cells[mode], strict=True)):
                for s in range(int(n)):
                    cut = rng.random() < truncated
                    stop = StopReason.LENGTH if cut else StopReason.ANSWER_PREFIX
                    answer = str(q if s < int(c) else q + 1)
                    made = make_generation(SampleKey(task, q, s), mode, 2, answer, 0, stop)
                    hashed = prompt_hash(f"Q{q}")
                    writer.add(made, hashed, str(q), Verdict(s < int(c), "ok"))
        questions = max(len(n) for n, _ in cells.values())
        part = dict(enumerate(groups)).get
        prompts = [prompt_row(task, q, f"Q{q}", str(q), part(q)) for q in range(questions)]
        writer.write("prompts", prompts)
    samples = max(int(max(n)) for n, _ in cells.values())
    record = _record([task], list(cells), [], samples, questions, 0, rundir.COMPLETE)
    record["counts"] |= {"rows": writer.counts}
    record["config"] |= config or {}
    record["model"] |= {
        "path": f"checkpoints/{folder.name}",
        "weights_hash": f"{method}{train_seed}",
    }
    if method != "base":
        training = {"method": method, "dataset": "gsm8k", "train_seed": train_seed, "step": 400}
        record["training"] = training | {"base": "checkpoints/base"}
    rundir.write_record(folder, record | (record_changes or {}))
    return folder


def _chance(method: str, mode: str, difficulty: float, shift: float) -> float:
    greedy, sampled, spread = SKILL.get(method, SKILL["base"])
    kind = mode.split("_")[0]
    mean = greedy if mode.endswith("greedy") or kind != "hard" else sampled
    wide = spread if kind == "hard" else spread * 1.5
    return float(1 / (1 + np.exp(-(mean + shift + wide * difficulty))))


def _sample(
    rng: np.random.Generator,
    key: SampleKey,
    mode: str,
    chance: float,
    positions: int,
    vocab: list[str],
    texts: Sequence[str],
    method: str,
) -> tuple[Generation, str, str, Verdict]:
    length = int(np.clip(rng.gamma(6.0, positions / 6.0), 4, 3 * positions))
    number_T = rng.integers(0, len(NUMBERS), length)
    words_T = len(NUMBERS) + np.arange(length) // 2 % (len(TEXT) - 1)
    shadow = np.where(np.arange(length) % 2 == 1, number_T, words_T).astype(np.int32)
    if texts and key.sample == 0:
        shadow[1 : 1 + len(texts)] = len(VOCAB) + np.arange(len(texts))[: length - 1]
    shadow[-1] = len(NUMBERS) + len(TEXT) - 1
    peak_T = np.where(np.arange(length) % 2 == 1, 0.9, 0.25)
    level = {"base": 1.0, "hard": 0.35, "fuzzy": 0.7, "soft": 0.8}.get(method, 1.0)
    entropy = level * rng.gamma(1.2, peak_T * (0.4 + np.exp(-np.arange(length) / positions)))
    entropy[-1] = 0.001
    correct = bool(rng.random() < chance)
    target = str(key.doc_id + 3)
    answer = target if correct else rng.choice([str(key.doc_id + 4), "12.5", ""], p=[0.6, 0.3, 0.1])
    shown = None if answer == "" else str(answer)
    if texts and key.sample == 0:
        shown = texts[key.doc_id % len(texts)]
    capped = length >= 2.2 * positions
    verdict = "no_answer" if shown is None else "timeout" if rng.random() < 0.002 else "ok"
    generation = Generation(
        key=key,
        mode=mode,
        cot_text="".join(vocab[i] for i in shadow),
        prefill_text=" The final answer is: \\boxed{" if capped else " \\boxed{",
        answer=shown,
        answer_text="?" if shown is None else shown + "}",
        stop_reason=StopReason.LENGTH if capped else StopReason.ANSWER_PREFIX,
        answer_stop=AnswerStop.LENGTH if shown is None else AnswerStop.CLOSED,
        prompt_ids=np.arange(5, dtype=np.int32),
        shadow_ids=shadow,
        prefill_ids=np.array([1, 2], np.int32),
        answer_ids=np.array([3, 4], np.int32),
        entropy=entropy.astype(np.float32),
        mode_entropy=(entropy * (0.5 if mode.startswith("soft") else 0.01)).astype(np.float32),
        top1_prob=np.exp(-entropy).astype(np.float32),
        top_ids=np.stack([shadow, (shadow + 1) % len(NUMBERS), (shadow + 2) % len(NUMBERS)], -1),
        top_probs=_top_probs(mode, entropy),
        inputs=None,
        seconds=float(rng.uniform(0.1, 1.0)),
    )
    hashed = _prompt(key.task, key.doc_id, texts)["prompt_hash"]
    return generation, hashed, target, Verdict(correct and verdict == "ok", verdict)


def _top_probs(mode: str, entropy: np.ndarray) -> np.ndarray:
    first = np.exp(-entropy * (0.5 if mode.startswith("soft") else 0.001))
    return np.stack([first, (1 - first) * 0.7, (1 - first) * 0.2], -1).astype(np.float32)


def _prompt(task: str, q: int, texts: Sequence[str]) -> dict[str, Any]:
    extra = texts[q % len(texts)] if texts else ""
    prompt = (
        "A conversation between User and Assistant. The user asks a question, and the Assistant"
        f" solves it. User: What is {q} plus 3? {extra} Assistant:"
    )
    return prompt_row(task, q, prompt, str(q + 3))


def _likelihood(rng: np.random.Generator, task: str, q: int) -> dict[str, Any]:
    target = int(rng.integers(4))
    prediction = target if rng.random() < 0.6 else int(rng.integers(4))
    tokens = int(rng.integers(1, 20))
    return likelihood_row(task, q, target, prediction, float(rng.gamma(2, 1) * tokens), tokens)


def write_kl(folder: Path, method: str, tasks: Sequence[str], questions: int) -> dict[str, Any]:
    """A kl.parquet as `softeval diagnose` writes it; returns the record's "diagnose" block."""
    rng = np.random.default_rng(list(method.encode()))
    scale = {"base": 1e-4, "hard": 0.08, "fuzzy": 0.03, "soft": 0.02}.get(method, 0.05)
    rows = []
    for task in sorted(tasks):
        for prefix_set in ("base", "own"):
            for q in range(questions):
                length = int(rng.integers(20, 60))
                forward = rng.gamma(1.0, scale, length)
                reverse = forward * rng.uniform(0.6, 1.2, length)
                key = {"task": task, "doc_id": q, "mode": "hard_sample", "sample": 0}
                values = {"forward": forward.tolist(), "reverse": reverse.tolist()}
                rows.append(key | {"prefix_set": prefix_set} | values)
    pq.write_table(pa.Table.from_pylist(rows, kl_schema()), folder / "kl.parquet")
    return {"base": "checkpoints/base", "noise_floor": {"mean": 2e-4, "batch_size": 3}}


def keep_documents(folder: Path, low: int, high: int) -> Path:
    """Take all but the questions low … high - 1 out of a run's tables, as if it were stopped."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        if "doc_id" in table.schema.names:
            doc_R = table["doc_id"].to_numpy()
            pq.write_table(table.filter((doc_R >= low) & (doc_R < high)), path)
    return folder


def write_training(folder: Path, method: str = "soft", seed: int = 0, steps: int = 60) -> Path:
    """A training directory: train.json, metrics.jsonl, and which step is kept, not the best one."""
    (folder / "best").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *method.encode()])
    lines = []
    for step in range(1, steps + 1):
        success = 0.45 + 0.4 * (1 - np.exp(-step / 25)) + rng.normal(0, 0.05)
        line = {"step": step, "reward/mean": 100 * success, "reward/success": success}
        if step % 10 == 0:
            line["validation/success"] = success + 0.03
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train.json").write_text(json.dumps({"identity": {"method": method, "seed": seed}}))
    kept = {"method": method, "train_seed": seed, "step": 20}
    (folder / "best" / rundir.TRAINING_FILE).write_text(json.dumps(kept))
    return folder
