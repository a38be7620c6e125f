"""A run as logs of inspect_ai, for its viewer: one a task and mode, an epoch a sample.

    python docs/inspect_log.py RUN TARGET && inspect view --log-dir TARGET

Needs no inspect_ai: its logs may be JSON. Written for the format of 0.3.285, whose reader takes them.
What has no place there, entropies and mixtures of every position, stays in the run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import softeval
from softeval import Run


def log_of(run: Run, task: str, mode: str) -> dict[str, Any]:
    samples = run.samples()
    cell = samples[(samples["task"] == task) & (samples["mode"] == mode)]
    prompts = run.prompts()
    prompts = prompts[prompts["task"] == task].set_index("doc_id")
    scores = run.scores()
    scores = scores[(scores["task"] == task) & (scores["mode"] == mode)]
    metrics = {
        f"pass@{row.k}": {"name": f"pass@{row.k}", "value": float(row.value)}
        for row in scores.itertuples()
    }
    started = run.info["sessions"][0]["started"]
    epochs = int(cell["sample"].max()) + 1
    name = f"{task}@{mode}"
    model = f"softeval/{Path(run.info['model']['path']).name}"
    return {
        "version": 2,
        "status": "success" if run.complete else "started",
        "eval": {
            "created": started,
            "run_id": run.path.resolve().name,
            "task": name,
            "task_id": name,
            "dataset": {"name": task, "samples": len(prompts)},
            "model": model,
            "config": {"epochs": epochs},
            "metadata": {"mode": run.info["identity"]["modes"][mode]},
            "packages": {"softeval": run.info["versions"]["softeval"]},
        },
        "results": {
            "total_samples": len(cell),
            "completed_samples": len(cell),
            "scores": [{"name": "correct", "scorer": "correct", "metrics": metrics}],
        },
        "stats": {"started_at": started, "completed_at": run.info["sessions"][-1]["started"]},
        "samples": [sample_of(row, prompts.loc[row["doc_id"]], model) for row in records(cell)],
    }


def records(frame: Any) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records"))


def sample_of(row: dict[str, Any], prompt: Any, model: str) -> dict[str, Any]:
    text = row["cot_text"] + row["prefill"] + row["answer_text"]
    said = {"role": "assistant", "content": text, "source": "generate"}
    stop = "max_tokens" if row["stop_reason"] == "length" else "stop"
    return {
        "id": row["doc_id"],
        "epoch": row["sample"] + 1,
        "input": str(prompt["prompt"]),
        "target": str(prompt["target"]),
        "messages": [{"role": "user", "content": str(prompt["prompt"]), "source": "input"}, said],
        "output": {"model": model, "choices": [{"message": said, "stop_reason": stop}]},
        "scores": {
            "correct": {
                "value": "C" if row["correct"] else "I",
                "answer": row["answer"] or "",
                "explanation": str(row["verdict"]),
            }
        },
        "metadata": {name: row[name] for name in ("n_cot_tokens", "stop_reason", "answer_stop")},
    }


def main(run: Run, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    began = run.info["sessions"][0]["started"].replace(":", "-")
    for task, mode in run.samples(["task", "mode"]).drop_duplicates().itertuples(index=False):
        # Inspect finds logs by names of this form.
        path = target / f"{began}_{task}-{mode.replace('_', '-')}_{run.path.resolve().name}.json"
        path.write_text(json.dumps(log_of(run, task, mode), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(softeval.load_run(sys.argv[1]), Path(sys.argv[2]))
