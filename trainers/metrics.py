"""The numbers of one update, from sums over rollouts and passes.

Every number is made of sums, so that processes can be added up. Names are `group/name`, as trackers
show them. What the machine decides is under `time/` and `memory/`; nothing else depends on it.

One of them is also judged: whether the training pass finds the noise that the rollout drew. χ²/d of a
soft or fuzzy position, ‖h̃ - pE‖²/(σ²d), is 1 up to √(2/d) if both passes see one model. Where they do
not (dropout, a wrong mask, another precision), nearly every position is off. A few positions far off
are no such fault: in half precision two nearly equal logits may change places between the passes, and
the mixture jumps to another token there. They are counted, and judged apart.

Knows nothing of files or trackers.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softeval.records import StopReason
from softeval.trainers.algorithms import uninformative
from softeval.trainers.rollout import Rollout, StepRollouts

Metrics = dict[str, float | None]


@dataclass(eq=False)
class Update:
    """What a learner says of an update whose gradient it has left in the masters.

    Attributes:
        metrics: its numbers; "gradient/norm" among them.
        cursor: place in the data order after it.
        tokens: drawn, or learnt from, by all processes.
        seconds: spent, by what on.
        fault: what is wrong with it, so that it must not be made; None where nothing is.
        rows: sample rollouts, where it is time for some.
    """

    metrics: Metrics
    cursor: int
    tokens: float
    seconds: dict[str, float] = field(default_factory=dict)
    fault: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def rollout_sums(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Sums over this process's rollouts."""
    found = [r.generation for r in rollouts]
    sums = {
        "rollouts": float(len(found)),
        "success": float(sum(r.verdict.correct for r in rollouts)),
        "boxed": float(sum(r.verdict.status != "no_answer" for r in rollouts)),
        "cot_tokens": float(sum(len(g.shadow_ids) for g in found)),
        "answer_tokens": float(sum(len(g.answer_ids) for g in found)),
        "entropy": float(sum(g.entropy.sum(dtype="float64") for g in found)),
        "mode_entropy": float(sum(g.mode_entropy.sum(dtype="float64") for g in found)),
    }
    for reason in StopReason:
        sums[f"stop_{reason}"] = float(sum(g.stop_reason == reason for g in found))
    return sums


def rollout_metrics(sums: dict[str, float], drawn: StepRollouts) -> Metrics:
    """Rates and means of an update's rollouts over all processes.

    All are of the groups that are learnt from, but those named `drawn`: they also count the groups
    that dynamic sampling replaced.
    """
    count, tokens = sums["rollouts"], sums["cot_tokens"]
    rewards_PG: Tensor = drawn.rewards_PG
    stops: Metrics = {f"rollout/stop_{r}": sums[f"stop_{r}"] / count for r in StopReason}
    return {
        "reward/mean": float(rewards_PG.mean()),
        "reward/success": sums["success"] / count,
        "reward/success_drawn": sums["drawn_success"] / sums["drawn_rollouts"],
        "reward/boxed": sums["boxed"] / count,
        "groups/equal": float(uninformative(rewards_PG).double().mean()),
        "groups/equal_drawn": drawn.equal_groups / drawn.drawn,
        "groups/drawn": float(drawn.drawn),
        "rollout/cot_tokens": tokens / count,
        "rollout/answer_tokens": sums["answer_tokens"] / count,
        "rollout/tokens_drawn": sums["drawn_tokens"],
        "rollout/entropy": sums["entropy"] / tokens,
        "rollout/mode_entropy": sums["mode_entropy"] / tokens,
        **stops,
    }


def pass_metrics(sums: dict[str, float], width: int, noisy: bool, with_kl: bool) -> Metrics:
    """Loss terms and health of an update's training pass over all processes.

    Args:
        sums: of `TrainingPass`.
        width: D.
        noisy: whether the CoT was soft or fuzzy.
        with_kl: whether the KL was measured.
    """
    found: Metrics = {
        "loss/total": sums["loss_cot"] + sums["loss_answer"] + sums["loss_kl"],
        "loss/cot": sums["loss_cot"],
        "loss/answer": sums["loss_answer"],
        "loss/kl": sums["loss_kl"],
        "pass/sequences": sums["sequences"],
        "health/chi_square": sums["squared"] / (sums["steps"] * width) if noisy else None,
        "health/outliers": 1 - sums["near"] / sums["steps"] if noisy else None,
        "health/ties": sums["ties"] / sums["steps"] if noisy else None,
        "health/mixture_mismatch": sums["mismatches"] / sums["steps"] if noisy else None,
        "kl/tokens": sums["kl"] / sums["choices"] if with_kl else None,
        "kl/gaussian": sums["kl_gaussian"] / sums["steps"] if with_kl and noisy else None,
    }
    return found


def peak_memory(device: torch.device) -> Metrics:
    """Peak megabytes: of this update on CUDA, of the process since its start elsewhere."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory/peak_megabytes": peak}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return {"memory/peak_megabytes": resident / unit}


def is_finite(metrics: Metrics) -> bool:
    """Whether no number of an update is NaN or infinite."""
    return all(value is None or math.isfinite(value) for value in metrics.values())


def time_metrics(seconds: dict[str, float], tokens: float) -> Metrics:
    """Where an update's time went, and tokens a second: those drawn, or those learnt from."""
    total = sum(seconds.values())
    found: Metrics = {f"time/{name}": value for name, value in seconds.items()}
    found["time/step"] = total
    found["time/tokens_per_second"] = tokens / max(total, 1e-9)
    if "rollout" in seconds:
        found["time/rollout_tokens_per_second"] = tokens / max(seconds["rollout"], 1e-9)
    return found


SLACK = 0.1
"""What rounding of inputs and mixtures in half precision may add to the mean χ²/d."""
JUMP = 0.5
"""What it may add at one position before the mixture counts as another."""
MOST_OUTLIERS = 0.1
"""Share of positions that may lie outside the band of one."""


def noise_band(positions: int, width: int) -> float:
    """How far the mean χ²/d of so many positions may lie from 1: slack and five deviations."""
    return (JUMP if positions == 1 else SLACK) + 5 * math.sqrt(2 / (positions * width))


def noise_fault(sums: Mapping[str, float], width: int) -> str | None:
    """What is wrong with the noise of an update; None where nothing is.

    Args:
        sums: `steps` positions, of which `near` lie within the band of one, and `squared_near`, the
            sum of χ² over those.
        width: d.
    """
    steps, near = int(sums["steps"]), int(sums["near"])
    if steps == 0:
        return None
    if steps - near > MOST_OUTLIERS * steps:
        mean = sums["squared"] / (steps * width)
        return f"{100 * (1 - near / steps):.0f} % of the positions are off (χ²/d {mean:.3g}, not 1)"
    mean, band = sums["squared_near"] / (near * width), noise_band(near, width)
    return None if abs(mean - 1) <= band else f"χ²/d is {mean:.3g}, not 1 within {band:.2g}"
