"""The batch of an update that went wrong, kept for whoever looks into it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from softeval.trainers.atomic import write_directory
from softeval.trainers.rollout import Rollout


def save_failure(place: Path, rollouts: Sequence[Rollout], advantages: Sequence[float]) -> None:
    """Write texts, rewards and advantages as JSON, token ids and fed vectors as safetensors."""

    def fill(partial: Path) -> None:
        arrays: dict[str, np.ndarray] = {}
        for number, rollout in enumerate(rollouts):
            g = rollout.generation
            ids = {"prompt": g.prompt_ids, "shadow": g.shadow_ids, "answer": g.answer_ids}
            arrays |= {f"{number}.{name}": np.asarray(value) for name, value in ids.items()}
            arrays[f"{number}.prefill"] = np.asarray(g.prefill_ids)
            if g.inputs is not None:
                arrays[f"{number}.inputs"] = g.inputs
        save_file(arrays, str(partial / "batch.safetensors"))
        rows = [
            {
                "question": rollout.question.problem.question,
                "target": rollout.question.problem.target,
                "text": rollout.generation.text,
                "reward": rollout.reward,
                "advantage": advantage,
            }
            for rollout, advantage in zip(rollouts, advantages, strict=True)
        ]
        text = json.dumps(rows, indent=2, ensure_ascii=False)
        (partial / "batch.json").write_text(text + "\n", encoding="utf-8")

    write_directory(place, fill)
