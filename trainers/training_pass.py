"""The gradient of one update: micro-batches of rollouts through the losses.

Leaves the summed gradient of this process in the master weights, and returns sums that the metrics
are made of. Sequences whose advantage is zero have a gradient of exactly zero and are left out
unless something else is measured on them.

Rollout and training pass must see one and the same model. Dropout in the pass alone would score another
model than the one that sampled, and no loss would show it. So the model stays in evaluation mode all
the time, also where activations are computed again in the backward pass: transformers' own gradient
checkpointing wants training mode, so its layers are wrapped here instead.

Knows nothing of how rollouts came about or of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softeval.errors import UserError
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import OutputHead, last_hidden
from softeval.records import Generation
from softeval.trainers.algorithms import ALGORITHMS, Algorithm
from softeval.trainers.losses import (
    Batch,
    LogProbs,
    Policy,
    Reference,
    collate,
    log_probs,
    policy_hidden,
    policy_kl,
    policy_losses,
)
from softeval.trainers.metrics import noise_band
from softeval.trainers.optimization import MasterWeights, gradient_norm

SUMS = (
    "loss_cot",
    "loss_answer",
    "loss_kl",
    "squared",
    "squared_near",
    "near",
    "steps",
    "ties",
    "mismatches",
    "kl",
    "kl_gaussian",
    "choices",
    "sequences",
)
Result = TypeVar("Result")

CPU_MICRO_BATCH = 16
"""On a CPU larger passes are no faster and hold more activations."""


@dataclass(frozen=True)
class PassPlan:
    """What one pass does besides the policy gradient.

    Attributes:
        sequences: sequences of the update over all processes; the loss is their mean.
        measure_kl: also measure the KL to the reference, on every sequence.
        split: also measure the gradient's CoT, answer and KL parts.
        keep_first: pass over the first sequence even if every advantage is zero, for its χ².
    """

    sequences: int
    measure_kl: bool = False
    split: bool = False
    keep_first: bool = False


@dataclass(eq=False)
class PassResult:
    """Sums over this process's sequences, and on request its share of the gradient's parts.

    Attributes:
        sums: by the names of SUMS.
        parts: gradient of the answer term under "answer" and of the KL under "kl", on the host, where
            memory is less dear; the rest of the gradient is the CoT's. Not the other way round: the
            CoT's can be 10^7 times the answer's, whose rest would then be rounding.
    """

    sums: dict[str, float]
    parts: dict[str, list[Tensor]] = field(default_factory=dict)


class MicroBatched:
    """Goes through sequences part by part.

    `fitted` is the number of sequences at once that memory allowed. The sums depend on it in their
    last bits, so a continued run must start with it.

    Args:
        lm: the model.
        weights: its master weights; gradients end up there.
        micro_batch: sequences at once; None starts with all of this process's on an accelerator,
            whether the update learns from them or not, and halves while memory runs out.
    """

    def __init__(
        self, lm: LanguageModel, weights: MasterWeights, micro_batch: int | None = None
    ) -> None:
        self.lm = lm
        self.weights = weights
        self.micro_batch = micro_batch
        self.fitted: int | None = None

    def in_parts(
        self, chosen: list[int], count: int, work: Callable[[Iterator[list[int]]], Result]
    ) -> Result:
        """Do the work on the chosen of `count` sequences; anew in smaller parts if memory runs out."""
        while True:
            size = self.micro_batch or self._fitting(max(1, count))
            try:
                return work(_parts(chosen, size))
            except torch.OutOfMemoryError:
                if self.micro_batch is not None or size == 1:
                    raise
            self.weights.clear()
            self.fitted = max(1, size // 2)

    def _fitting(self, count: int) -> int:
        if self.fitted is None:
            self.fitted = CPU_MICRO_BATCH if self.lm.device.type == "cpu" else count
        return self.fitted


class TrainingPass(MicroBatched):
    """Computes gradients.

    Args:
        lm: the model.
        head: its output head.
        weights: its master weights; gradients end up there.
        policy: what the rollouts were sampled from.
        micro_batch: as in `MicroBatched`.
        reference: the initial model, where its KL is wanted.
        beta: coefficient of that KL.
        skip_zero: leave out sequences of advantage zero.
        algorithm: makes the loss.
    """

    def __init__(
        self,
        lm: LanguageModel,
        head: OutputHead,
        weights: MasterWeights,
        policy: Policy,
        *,
        micro_batch: int | None = None,
        reference: Reference | None = None,
        beta: float = 0.0,
        skip_zero: bool = True,
        algorithm: Algorithm = ALGORITHMS["rloo"],
    ) -> None:
        super().__init__(lm, weights, micro_batch)
        self.head = head
        self.policy = policy
        self.reference = reference
        self.beta = beta
        self.skip_zero = skip_zero
        self.algorithm = algorithm

    def run(
        self, rollouts: Sequence[Generation], advantages_B: Tensor, plan: PassPlan
    ) -> PassResult:
        """Add the gradient of the loss to the masters.

        Args:
            rollouts: this process's sequences.
            advantages_B: their advantages.
            plan: what else to do.
        """
        every = plan.measure_kl or self.beta > 0 or not self.skip_zero
        chosen = [b for b in range(len(rollouts)) if every or advantages_B[b] != 0]
        if not chosen and plan.keep_first:
            chosen = [0]
        # Long sequences together: less padding. Python's sort is stable, so the order is certain.
        chosen.sort(key=lambda b: -rollouts[b].length)
        return self.in_parts(
            chosen, len(rollouts), lambda parts: self._run(rollouts, advantages_B, plan, parts)
        )

    def _run(
        self,
        rollouts: Sequence[Generation],
        advantages_B: Tensor,
        plan: PassPlan,
        parts: Iterator[list[int]],
    ) -> PassResult:
        result = PassResult(dict.fromkeys(SUMS, 0.0))
        for part in parts:
            batch = collate(
                [rollouts[b] for b in part],
                self.lm.device,
                self.lm.dtype,
                self.policy.mode,
                self.policy.mode.draws(self.lm.embedding),
                seed=self.policy.seed,
            )
            self._add(batch, advantages_B[part].to(self.lm.device), plan, result)
        for part in result.parts.values():
            self._return_gradients(part)
        return result

    def _add(self, batch: Batch, advantages_B: Tensor, plan: PassPlan, result: PassResult) -> None:
        """One micro-batch, forward and backward."""
        hidden = policy_hidden(self.lm, batch)
        found = log_probs(self.lm, self.head, batch, self.policy, hidden)
        cot, answer = policy_losses(found, batch, advantages_B, plan.sequences, self.algorithm)
        result.sums["loss_cot"] += float(cot.detach())
        result.sums["loss_answer"] += float(answer.detach())
        terms = {"answer": answer}
        if plan.measure_kl or self.beta > 0:
            # Without β the KL is looked at only; a gradient of zeros costs as much as any other.
            with torch.set_grad_enabled(self.beta > 0):
                kl = self._kl_loss(hidden, found, batch, plan, result)
            if self.beta > 0:
                terms["kl"] = kl
        for name, term in terms.items():
            if plan.split:
                self._keep_gradients(name, term, result)
            else:
                cot = cot + term
        cot.backward()
        self.weights.collect()
        _count(found, batch, result.sums)

    def _kl_loss(
        self,
        hidden: tuple[Tensor, Tensor],
        found: LogProbs,
        batch: Batch,
        plan: PassPlan,
        result: PassResult,
    ) -> Tensor:
        assert self.reference is not None, "the KL needs the initial model"
        moved = policy_kl(hidden, self.head, found, batch, self.policy, self.reference)
        loss = self.beta * moved.tokens.sum() / plan.sequences
        result.sums["loss_kl"] += float(loss.detach())
        result.sums["kl"] += float(moved.tokens.detach().sum())
        result.sums["choices"] += moved.tokens.numel()
        if moved.gaussian_N is not None:
            result.sums["kl_gaussian"] += float(moved.gaussian_N.sum())
        return loss

    def _keep_gradients(self, name: str, term: Tensor, result: PassResult) -> None:
        """Differentiate one term by itself, into host buffers of the masters' precision."""
        gradients = torch.autograd.grad(
            term, self.weights.parameters, retain_graph=True, allow_unused=True
        )
        if name not in result.parts:
            result.parts[name] = [torch.zeros_like(m, device="cpu") for m in self.weights.masters]
        for kept, gradient in zip(result.parts[name], gradients, strict=True):
            if gradient is not None:
                kept += gradient.cpu()

    def _return_gradients(self, gradients: Sequence[Tensor]) -> None:
        for master, gradient in zip(self.weights.masters, gradients, strict=True):
            there = gradient.to(master.device, copy=master.grad is None)
            master.grad = there if master.grad is None else master.grad.add_(there)


def split_norms(
    weights: MasterWeights,
    parts: Mapping[str, Sequence[Tensor]],
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    names: Sequence[str] = (),
) -> dict[str, float]:
    """Norm of each part of the gradient and, as "cot", of what is left without them.

    One weight after the other, so that no second gradient is held.

    Args:
        weights: hold the whole gradient, summed over all processes.
        parts: those of `PassResult`.
        total: sums a tensor over the processes.
        names: of all parts, where this process may have none of one; default: what it has.
    """
    names = names or tuple(parts)
    squares = dict.fromkeys((*names, "cot"), 0.0)
    for number, master in enumerate(weights.masters):
        assert master.grad is not None
        rest = master.grad.clone()
        for name in names:
            part = parts.get(name)
            own = torch.zeros_like(master) if part is None else part[number].to(master.device)
            gradient = total(own)
            rest -= gradient
            squares[name] += gradient_norm([gradient]) ** 2
        squares["cot"] += gradient_norm([rest]) ** 2
    return {name: math.sqrt(square) for name, square in squares.items()}


def _count(found: LogProbs, batch: Batch, sums: dict[str, float]) -> None:
    sums["sequences"] += batch.rows
    sums["steps"] += len(batch.cot.ids_N)
    cot = found.cot
    if cot.squared_N is not None:
        sums["squared"] += float(cot.squared_N.sum())
        assert batch.fed_ND is not None
        width = batch.fed_ND.shape[1]
        near_N = (cot.squared_N / width - 1).abs() <= noise_band(1, width)
        sums["near"] += float(near_N.sum())
        sums["squared_near"] += float(cot.squared_N[near_N].sum())
    if cot.tied_N is not None:
        sums["ties"] += float(cot.tied_N.sum())
    if cot.mismatched_N is not None:
        sums["mismatches"] += float(cot.mismatched_N.sum())


def _parts(chosen: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(chosen), size):
        yield chosen[start : start + size]


def disable_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and layer drop to zero, under whatever name.

    Router jitter is left to evaluation mode: Phi-MoE's is also a threshold that decoding needs.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def recompute_activations(model: nn.Module) -> None:
    """Gradient checkpointing: keep each layer's input only, and compute the rest again.

    Raises:
        UserError: the architecture has no layers that transformers would recompute.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient-checkpointing: {type(model).__name__} has no layers that can be computed "
            "again; leave it out"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def check_training_pass(lm: LanguageModel) -> None:
    """Compare the hidden states of a training pass with those of decoding, twice.

    Raises:
        UserError: they differ, so something random, or another computation, is left in the pass.
    """
    ids = torch.arange(min(16, lm.vocab), device=lm.device)[None]
    inputs = lm.embedding.rows(ids).detach()
    with torch.no_grad():
        expected = last_hidden(lm.model, inputs).float()
    tolerance = 2e-2 if torch.finfo(lm.dtype).bits < 32 else 1e-4
    for _ in range(2):
        with torch.enable_grad():
            found = last_hidden(lm.model, inputs).detach().float()
        gap = float((found - expected).abs().max() / expected.abs().max())
        if not gap <= tolerance:
            raise UserError(
                f"{type(lm.model).__name__}: hidden states of a training pass differ from those of "
                f"decoding by {gap:.1g} of the largest; dropout, layer drop or router noise is still "
                "on in it; take another architecture"
            )


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # Nothing is random in evaluation mode, so no generator need be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **options)

    return run
