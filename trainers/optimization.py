"""AdamW on float32 master weights, cosine schedule with warm-up, clipping.

A step at the paper's learning rates is far below the spacing of bfloat16 numbers, so weights kept
in bfloat16 would not move. The masters are float32 copies of the trainable parameters; the model
itself keeps its own dtype and decodes and differentiates at full speed. A float32 model is its own
master.

Over several processes the masters, their gradients and AdamW's moments can be sharded by torch's FSDP2
(`fully_shard`), each process holding its part. The model itself stays whole everywhere, since rollouts
of different lengths cannot gather layer by layer: FSDP gathers it once, and every update is gathered
into the same memory, so that captured decode steps stay valid. FSDP's part is the backward pass, which
leaves each layer's gradient summed and sharded as soon as it is there.

Knows nothing of losses; gradients are added from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from softeval.errors import UserError
from softeval.processes import ALONE, Processes


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
        processes: this process and its peers, of which each holds all weights.
    """

    is_sharded = False

    def __init__(
        self, model: nn.Module, enabled: bool = True, processes: Processes = ALONE
    ) -> None:
        named = _trained(model)
        self.names = list(named)
        self.parameters = list(named.values())
        self.masters = [_master(p) if enabled else p for p in self.parameters]
        self.processes = processes

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Entered for the training passes of an update."""
        yield

    def passes(self, own: int) -> int:
        """Passes of an update that this process must do, of which it needs `own`."""
        return own

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

    def reduce(self) -> None:
        """Sum the gradients over the processes, with zeros where none came."""
        for master in self.masters:
            found = torch.zeros_like(master) if master.grad is None else master.grad
            master.grad = self.processes.total(found)

    def norm(self) -> float:
        """Euclidean norm of the summed gradient."""
        return gradient_norm([m.grad for m in self.masters])

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


class ShardedWeights(MasterWeights):
    """The same with masters of which each process holds its part.

    Every backward pass sums gradients over the processes, so all must do equally many. Outside
    `passing` the model is an ordinary one, without FSDP's hooks, and whole.

    Args:
        model: is made FSDP's; weights without a gradient stay as they are.
        processes: several, in touch with each other.

    Raises:
        UserError: weights of several precisions.
    """

    is_sharded = True

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        from torch.distributed.fsdp import FSDPModule

        dtypes = {p.dtype for p in _trained(model).values()}
        if len(dtypes) > 1:
            raise UserError(
                f"{type(model).__name__} keeps weights in {len(dtypes)} precisions, which cannot be "
                "sharded together; take --dtype float32 or --shard none"
            )
        _shard(model, processes, *dtypes)
        masters = list(_trained(model).values())
        # The first pass gathers all weights, and shows FSDP its outermost module.
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=processes.device))
        super().__init__(model, False, processes)
        self.masters = masters
        self._hooked = [m for m in model.modules() if isinstance(m, FSDPModule)]
        for module in self._hooked:
            module.set_reshard_after_backward(False)
            if hasattr(module, "set_reduce_scatter_unused_params"):  # experts that no token chose
                module.set_reduce_scatter_unused_params(True)
        for module in model.modules():
            module._state_dict_pre_hooks.clear()  # they would shard what is to be read whole
        self._hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in self._hooked]
        self._switch(False)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Lets FSDP see the passes. Decode steps are without it: it waits for streams in each."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def passes(self, own: int) -> int:
        """As many as the busiest process needs."""
        return int(max(self.processes.gathered(own)))

    def reduce(self) -> None:
        """FSDP has taken the mean over the processes; the sum is wanted."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad.mul_(self.processes.size)

    def norm(self) -> float:
        """Euclidean norm of the gradient that all processes hold together."""
        gradients = [m.grad for m in self.masters]
        parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
        return math.sqrt(self.processes.totals({"square": gradient_norm(parts) ** 2})["square"])

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, gathered one after the other."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            rounded = master.to(parameter.dtype)
            assert isinstance(rounded, DTensor)
            parameter.copy_(rounded.full_tensor())

    def _switch(self, hooked: bool) -> None:
        for module, (before, after) in zip(self._hooked, self._hooks, strict=True):
            module._forward_pre_hooks = before if hooked else type(before)()
            module._forward_hooks = after if hooked else type(after)()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _shard(model: nn.Module, processes: Processes, dtype: torch.dtype) -> None:
    """Make FSDP's of a model, layer by layer: float32 shards of what computes in `dtype`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    assert processes.device is not None
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    half = dtype.itemsize < 4
    # What a layer is given stays as it is: rotary positions are float32 in every precision.
    policy = MixedPrecisionPolicy(dtype, torch.float32 if half else None, cast_forward_inputs=False)
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for module in (*reversed(layers), model):
        for parameter in module.parameters():
            if half and parameter.requires_grad and parameter.dtype == dtype:
                parameter.data = parameter.data.float()
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=False,
            ignored_params=frozen,
        )


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
    def restore(self, names: Container[str], fill: Callable[[dict[str, Tensor]], object]) -> None:
        """Set what `tensors` gave, in the model too.

        Args:
            names: of what was kept.
            fill: sets tensors to what was kept under their names.
        """
        for name, master in zip(self.weights.names, self.weights.masters, strict=True):
            if f"adam.step.{name}" in names:
                # AdamW wants its count of steps where it put it: on the host unless fused.
                place = master.device if self._fused else "cpu"
                self.adam.state[master] = {
                    "step": torch.zeros((), device=place),
                    "exp_avg": torch.zeros_like(master, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(master, requires_grad=False),
                }
        fill(self.tensors())
        self.weights.publish()


def gradient_norm(gradients: Iterable[Tensor | None]) -> float:
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
