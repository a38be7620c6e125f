"""Finished run directories made of random numbers, through the package's own writers.

Not a test. The samples have the structure of real ones (stop reasons, prefills, entropies that fall
along the CoT, a difficulty per question) and nothing of their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softeval.modes import ALL, MODES, mode_record
from softeval.records import AnswerStop, Generation, SampleKey, StopReason
from softeval.runs import rundir
from softeval.runs.tables import TableWriter, likelihood_row, prompt_hash, prompt_row
from softeval.scoring.judge import Verdict

VOCAB = 400
WORDS = [f" w{i}" for i in range(VOCAB)]


def make_generation(
    key: SampleKey,
    mode: str = "hard_sample",
    length: int = 12,
    answer: str | None = "7",
    top: int = 0,
    stop_reason: StopReason = StopReason.ANSWER_PREFIX,
    seconds: float = 0.5,
    seed: int = 0,
) -> Generation:
    """One generation of `length` CoT positions with random but reproducible records."""
    rng = np.random.default_rng([seed, key.doc_id, key.sample, *mode.encode(), *key.task.encode()])
    shadow = rng.integers(0, VOCAB, length, dtype=np.int32)
    entropy = rng.gamma(2.0, 0.6 * np.exp(-np.arange(length) / max(length, 1)) + 0.05)
    top_ids = (
        np.stack([(shadow + r) % VOCAB for r in range(top)], -1) if top else np.zeros((length, 0))
    )
    top_probs = np.sort(rng.dirichlet(np.ones(top + 1), length), -1)[:, ::-1][:, :top]
    end = "\\boxed{" if stop_reason is StopReason.ANSWER_PREFIX else "The final answer is: \\boxed{"
    return Generation(
        key=key,
        mode=mode,
        cot_text="".join(WORDS[i] for i in shadow),
        prefill_text=" " + end,
        answer=answer,
        answer_text="?" if answer is None else answer + "}",
        stop_reason=stop_reason,
        answer_stop=AnswerStop.LENGTH if answer is None else AnswerStop.CLOSED,
        prompt_ids=np.arange(5, dtype=np.int32),
        shadow_ids=shadow,
        prefill_ids=np.array([1, 2], np.int32),
        answer_ids=np.array([3, 4], np.int32),
        entropy=entropy.astype(np.float32),
        mode_entropy=(entropy * 0.5).astype(np.float32),
        top1_prob=np.exp(-entropy).astype(np.float32),
        top_ids=top_ids.astype(np.int32),
        top_probs=top_probs.astype(np.float32),
        inputs=None,
        seconds=seconds,
    )


def write_run(
    folder: Path,
    tasks: Sequence[str] = ("arithmetic",),
    modes: Sequence[str] = ALL,
    questions: int = 8,
    samples: int = 8,
    positions: int = 24,
    accuracy: Mapping[str, float] | None = None,
    likelihood_tasks: Sequence[str] = (),
    top: int = 4,
    seed: int = 0,
    status: str = rundir.COMPLETE,
    config: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run directory of the given size.

    Args:
        folder: where; made if missing.
        tasks: names of generative tasks.
        modes: names of modes; greedy ones get one sample.
        questions: questions a task.
        samples: samples a question in the sampled modes.
        positions: mean CoT length.
        accuracy: mean success per mode, default 0.5; questions vary around it (logit-normal).
        likelihood_tasks: names of log-likelihood tasks.
        top: mixture entries kept of sample 0.
        seed: of everything random.
        status: of the run record.
        config: overrides of the recorded configuration.
        training: the record of the training that made the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    accuracy = accuracy or {}
    prompts = [
        prompt_row(task, q, f"User: question {q} of {task}? Assistant:", str(q))
        for task in sorted(tasks)
        for q in range(questions)
    ]
    with TableWriter(folder, lambda i: WORDS[i]) as writer:
        for task in sorted(tasks):
            difficulty_Q = rng.normal(0, 1.5, questions)
            for mode in sorted(modes):
                p = np.clip(accuracy.get(mode, 0.5), 1e-4, 1 - 1e-4)
                chance_Q = 1 / (1 + np.exp(-np.log(p / (1 - p)) - difficulty_Q))
                count = 1 if MODES[mode].is_greedy else samples
                for q in range(questions):
                    for s in range(count):
                        key = SampleKey(task, q, s)
                        writer.add(*_sample(rng, key, mode, chance_Q[q], positions, top, seed))
        writer.write("prompts", prompts)
        writer.write(
            "likelihoods",
            [_likelihood(rng, t, q) for t in sorted(likelihood_tasks) for q in range(questions)],
        )
    record = _record(tasks, modes, likelihood_tasks, samples, questions, seed, status)
    record["counts"] |= {"rows": writer.counts}
    record["config"] |= dict(config or {})
    if training is not None:
        record["training"] = dict(training)
    rundir.write_record(folder, record)
    return folder


def _sample(
    rng: np.random.Generator,
    key: SampleKey,
    mode: str,
    chance: float,
    positions: int,
    top: int,
    seed: int,
) -> tuple[Generation, str, str, Verdict]:
    length = int(np.clip(rng.poisson(positions), 1, 2 * positions))
    reason = rng.choice([str(r) for r in StopReason if r != StopReason.MODE], p=[0.8, 0.1, 0.1])
    correct = bool(rng.random() < chance)
    target = str(key.doc_id)
    answer = target if correct else rng.choice([str(key.doc_id + 1), "0.5", ""])
    shown = None if answer == "" else str(answer)
    generation = make_generation(
        key,
        mode,
        length,
        shown,
        top if key.sample == 0 else 0,
        StopReason(reason),
        seconds=float(rng.uniform(0.1, 1.0)),
        seed=seed,
    )
    verdict = "no_answer" if shown is None else "timeout" if rng.random() < 0.002 else "ok"
    prompt = f"User: question {key.doc_id} of {key.task}? Assistant:"
    said = Verdict(correct and verdict == "ok", verdict)
    return generation, prompt_hash(prompt), target, said


def _likelihood(rng: np.random.Generator, task: str, q: int) -> dict[str, Any]:
    target = int(rng.integers(4))
    prediction = target if rng.random() < 0.6 else int(rng.integers(4))
    tokens = int(rng.integers(1, 20))
    return likelihood_row(task, q, target, prediction, float(rng.gamma(2, 1) * tokens), tokens)


def _record(
    tasks: Sequence[str],
    modes: Sequence[str],
    likelihood_tasks: Sequence[str],
    samples: int,
    questions: int,
    seed: int,
    status: str,
) -> dict[str, Any]:
    every_task = [*tasks, *likelihood_tasks]
    config = {
        "model": "synthetic/tiny",
        "tasks": every_task,
        "modes": list(modes),
        "num_samples": samples,
        "pass_at": [k for k in (1, 2, 4, 8, 16, 32) if k <= samples],
        "limit": None,
        "seed": seed,
        "max_cot_tokens": 512,
        "max_answer_tokens": 32,
        "dtype": "float32",
        "logits_dtype": "model",
        "data_dir": None,
        "apply_chat_template": False,
    }
    mode_records = [mode_record(MODES[name]) | {"facts": {}} for name in modes]
    datasets = [
        {
            "name": task,
            "origin": "bundled",
            "location": f"tasks/{task}.jsonl",
            "split": "test",
            "rows": questions,
            "sha256": "0" * 64,
            "fidelity": "",
        }
        for task in every_task
    ]
    return {
        "status": status,
        "command": "softeval run --model synthetic/tiny",
        "config": config,
        "identity": {"tasks": every_task, "num_samples": samples, "seed": seed},
        "model": {
            "path": "synthetic/tiny",
            "weights_hash": "f" * 64,
            "dtype": "float32",
            "device": "cpu",
            "logits_dtype": "model",
            "parameters": 1_000_000,
            "tokenizer_hash": "e" * 64,
            "max_length": 1024,
        },
        "modes": mode_records,
        "datasets": datasets,
        "seeds": {"generation": seed},
        "versions": {"softeval": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"device": "cpu", "cpu": "synthetic", "cores": 2},
        "scorer": {"name": "math-verify", "version": "0.9.0"},
        "started": "2025-11-21T10:00:00+00:00",
        "finished": "2025-11-21T10:05:00+00:00",
        "seconds": 300.0,
        "counts": {"expected": 0, "missing": 0, "verdicts": {}},
        "failures": {},
        "sessions": [],
    }
