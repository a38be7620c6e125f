"""The gradient of one update: micro-batches of rollouts through the losses.

Leaves the summed gradient of this process in the master weights, and returns sums that the metrics
are made of. Sequences whose advantage is zero have a gradient of exactly zero and are left out
unless something else is measured on them.

Knows nothing of how rollouts came about or of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

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
    "clipped",
    "compared",
)
Result = TypeVar("Result")
Parts = list[list[int]]

_FULL = "_STATUS_ALLOC_FAILED"  # in a RuntimeError: cuBLAS' or cuDNN's own memory ran out
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
        keep_log_probs: so that later updates on these rollouts can be compared with this policy.
        again: this is such an update, on the rollouts of the last pass.
    """

    sequences: int
    measure_kl: bool = False
    split: bool = False
    keep_first: bool = False
    keep_log_probs: bool = False
    again: bool = False


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

    Where weights are sharded each pass sums gradients over the processes, so that all must do equally
    many: one that has none left does an idle pass, and none may begin anew.

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
        self, groups: Iterable[list[int]], count: int, work: Callable[[Parts], Result]
    ) -> Result:
        """Do the work on groups of `count` sequences; anew in smaller parts if memory runs out.

        Raises:
            UserError: it runs out where the processes must go together.
        """
        while True:
            if self.micro_batch is None:  # a GPU's may be too many for the CPU that goes on
                most = CPU_MICRO_BATCH if self.lm.device.type == "cpu" else self.fitted or count
                self.fitted = max(1, min(self.fitted or most, most))
            size = self.micro_batch or self.fitted or 1
            parts = [g[n : n + size] for g in groups for n in range(0, len(g), size)]
            idle = self.weights.passes(len(parts)) - len(parts)
            try:
                with self.weights.passing():
                    found = work(parts)
                    for _ in range(idle):
                        self._idle()
                    return found
            except RuntimeError as error:
                full = isinstance(error, torch.OutOfMemoryError) or _FULL in str(error)
                if full and self.weights.is_sharded:
                    raise UserError(
                        f"memory ran out in a training pass of {size} sequences; sharded weights need "
                        f"the same passes everywhere: give --micro-batch-size {max(1, size // 2)}"
                    ) from error
                if not full or self.micro_batch is not None or size == 1:
                    raise
            self.weights.clear()
            torch.cuda.empty_cache()  # which libraries beside torch cannot take from
            self.fitted = max(1, size // 2)

    def _idle(self) -> None:
        """A pass whose gradient is zero in every weight."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.lm.device)
        hidden = last_hidden(self.lm.model, self.lm.embedding.rows(ids))
        (0 * (hidden.sum() + self.lm.model.get_output_embeddings()(hidden).sum())).backward()


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
        share: pass the sequences of each prompt by themselves, the prompt once for all of a part.
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
        share: bool = False,
        algorithm: Algorithm = ALGORITHMS["rloo"],
    ) -> None:
        super().__init__(lm, weights, micro_batch)
        self.head = head
        self.policy = policy
        self.reference = reference
        self.beta = beta
        self.skip_zero = skip_zero
        self.share = share
        self.algorithm = algorithm
        self._sampled: dict[int, tuple[Tensor, Tensor]] = {}

    def run(
        self,
        rollouts: Sequence[Generation],
        advantages_B: Tensor,
        plan: PassPlan,
        weights_B: Tensor | None = None,
    ) -> PassResult:
        """Add the gradient of the loss to the masters.

        Args:
            rollouts: this process's sequences.
            advantages_B: their advantages.
            plan: what else to do.
            weights_B: the algorithm's weights of the sequences; None for 1.
        """
        weights_B = torch.ones_like(advantages_B) if weights_B is None else weights_B
        every = plan.measure_kl or self.beta > 0 or not self.skip_zero
        chosen = [b for b in range(len(rollouts)) if every or advantages_B[b] != 0]
        if not chosen and plan.keep_first:
            chosen = [0]
        # Long sequences together: less padding. Python's sort is stable, so the order is certain.
        chosen.sort(key=lambda b: -rollouts[b].length)
        scales_2B = torch.stack([advantages_B * weights_B, weights_B])
        groups: dict[bytes, list[int]] = {}
        for b in chosen:
            groups.setdefault(rollouts[b].prompt_ids.tobytes() if self.share else b"", []).append(b)
        work = partial(self._run, rollouts, scales_2B, plan)
        return self.in_parts(groups.values(), len(rollouts), work)

    def _run(
        self,
        rollouts: Sequence[Generation],
        scales_2B: Tensor,
        plan: PassPlan,
        parts: Parts,
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
                one_prompt=self.share,
            )
            self._add(batch, part, scales_2B[:, part].to(self.lm.device), plan, result)
        for part in result.parts.values():
            self._return_gradients(part)
        return result

    def _add(
        self, batch: Batch, part: list[int], scales_2B: Tensor, plan: PassPlan, result: PassResult
    ) -> None:
        """One micro-batch, forward and backward."""
        hidden = policy_hidden(self.lm, batch)
        found = log_probs(self.lm, self.head, batch, self.policy, hidden)
        if plan.keep_log_probs:
            self._sampled |= zip(part, found.by_sequence(batch), strict=True)
        former: Any = (None, None)
        if plan.again:
            former = tuple(map(torch.cat, zip(*(self._sampled[b] for b in part), strict=True)))
        cot, answer = policy_losses(
            found, batch, scales_2B[0], plan.sequences, self.algorithm, former
        )
        result.sums["loss_cot"] += float(cot.detach())
        result.sums["loss_answer"] += float(answer.detach())
        terms = {"answer": answer}
        if plan.measure_kl or self.beta > 0:
            # Without β the KL is looked at only; a gradient of zeros costs as much as any other.
            with torch.set_grad_enabled(self.beta > 0):
                kl = self._kl_loss(hidden, found, batch, scales_2B[1], plan, result)
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
        if plan.again:
            self._count_clipped(found, batch, scales_2B[0], former, result.sums)

    def _count_clipped(
        self,
        found: LogProbs,
        batch: Batch,
        advantages_B: Tensor,
        former: Any,
        sums: dict[str, float],
    ) -> None:
        now, rows = (found.cot.log_prob_N, found.answer_M), (batch.cot.row_N, batch.answer.row_N)
        for log_prob_N, row_N, former_N in zip(now, rows, former, strict=True):
            held_N = self.algorithm.clips(log_prob_N.detach(), advantages_B[row_N], former_N)
            sums["clipped"] += float(held_N.sum())
            sums["compared"] += len(held_N)

    def _kl_loss(
        self,
        hidden: tuple[Tensor, Tensor],
        found: LogProbs,
        batch: Batch,
        weights_B: Tensor,
        plan: PassPlan,
        result: PassResult,
    ) -> Tensor:
        assert self.reference is not None, "the KL needs the initial model"
        moved = policy_kl(hidden, self.head, found, batch, self.policy, self.reference)
        weights = weights_B[torch.cat([batch.cot.row_N, batch.answer.row_N])]
        loss = self.beta * (weights.to(moved.tokens.dtype) * moved.tokens).sum() / plan.sequences
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
    weights: MasterWeights, parts: Mapping[str, Sequence[Tensor]], names: Sequence[str] = ()
) -> dict[str, float]:
    """Norm of each part of the gradient and, as "cot", of what is left without them.

    One weight after the other, so that no second gradient is held.

    Args:
        weights: hold the whole gradient, summed over all processes.
        parts: those of `PassResult`.
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
            gradient = weights.processes.total(own)
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
