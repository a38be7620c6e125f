"""AdamW on float32 master weights, cosine schedule with warm-up, clipping.

A step at the paper's learning rates is far below the spacing of bfloat16 numbers, so weights kept
in bfloat16 would not move. The masters are float32 copies of the trainable parameters; the model
itself keeps its own dtype and decodes and differentiates at full speed. A float32 model is its own
master.

Knows nothing of losses; gradients are added from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then a cosine towards the floor (paper appendix D).

    The floor itself would be reached one update after the last, so that every update moves. A floor
    of 1 stays at the peak, however many updates there are.
    """

    peak: float
    warmup_steps: int
    max_steps: int
    floor_ratio: float = 0.0

    def __call__(self, step: int) -> float:
        """Learning rate of update `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        length = max(1, self.max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / length)))
        return self.peak * (self.floor_ratio + (1 - self.floor_ratio) * cosine)


class MasterWeights:
    """Trainable parameters, their masters and the masters' accumulated gradients.

    Args:
        model: its parameters that require a gradient are trained.
        enabled: keep float32 masters of half-precision parameters; else train them as they are.
    """

    def __init__(self, model: nn.Module, enabled: bool = True) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.masters = [_master(p) if enabled else p for p in self.parameters]

    def collect(self) -> None:
        """Move what a backward pass left in half-precision parameters over to their masters."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is master or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def reduce(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        """Sum the gradients over the processes, with zeros where none came.

        Args:
            total: sums a tensor over the processes.
        """
        for master in self.masters:
            found = torch.zeros_like(master) if master.grad is None else master.grad
            master.grad = total(found)

    def clear(self) -> None:
        """Forget the gathered gradient, and what a pass cut short may have left in the model."""
        for tensor in (*self.masters, *self.parameters):
            tensor.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)


FUSED_DEVICES = ("cuda",)
"""Where AdamW runs in one kernel: torch's default there, `foreach`, takes another 4 bytes a weight. On a
CPU the plain loop stays, whose bits are promised."""


class Optimization:
    """One AdamW over the masters.

    Args:
        weights: what to train.
        schedule: learning rate of each update.
        betas, epsilon, weight_decay: AdamW's.
        max_grad_norm: gradients are scaled to at most this Euclidean norm; 0 leaves them.
    """

    def __init__(
        self,
        weights: MasterWeights,
        schedule: Schedule,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.weights = weights
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self._fused = all(m.device.type in FUSED_DEVICES for m in weights.masters)
        self.adam = torch.optim.AdamW(
            weights.masters,
            lr=schedule(0),
            betas=betas,
            eps=epsilon,
            weight_decay=weight_decay,
            fused=self._fused or None,
        )

    def norm(self) -> float:
        """Euclidean norm of the gathered gradient."""
        return gradient_norm([m.grad for m in self.weights.masters])

    def step(self, step: int, norm: float) -> None:
        """Clip by the gradient's norm, do update `step` (counted from 0), publish and clear."""
        if self.max_grad_norm > 0 and norm > self.max_grad_norm:
            for master in self.weights.masters:
                if master.grad is not None:
                    master.grad.mul_(self.max_grad_norm / norm)
        for group in self.adam.param_groups:
            group["lr"] = self.schedule(step)
        self.adam.step()
        self.weights.publish()
        self.weights.clear()

    def forget(self) -> None:
        """Drop AdamW's moments and its count of steps."""
        self.adam.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next update depends on: masters and AdamW's moments, by name."""
        found: dict[str, Tensor] = {}
        for name, master in zip(self.weights.names, self.weights.masters, strict=True):
            found[f"weight.{name}"] = master
            for key, value in self.adam.state.get(master, {}).items():
                found[f"adam.{key}.{name}"] = torch.as_tensor(value)
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Set what `tensors` gave, in the model too."""
        for name, master in zip(self.weights.names, self.weights.masters, strict=True):
            master.copy_(tensors[f"weight.{name}"])
            if f"adam.step.{name}" in tensors:
                self.adam.state[master] = {
                    # AdamW wants its count of steps where it put it: on the host unless fused.
                    "step": tensors[f"adam.step.{name}"].to(
                        master.device if self._fused else "cpu", copy=True
                    ),
                    "exp_avg": tensors[f"adam.exp_avg.{name}"].to(master.device, copy=True),
                    "exp_avg_sq": tensors[f"adam.exp_avg_sq.{name}"].to(master.device, copy=True),
                }
        self.weights.publish()


def gradient_norm(gradients: Sequence[Tensor | None]) -> float:
    """Euclidean norm over all gradients, summed in double precision."""
    squares = [
        torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
        for g in gradients
        if g is not None
    ]
    return math.sqrt(sum(float(s) ** 2 for s in squares))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True))
