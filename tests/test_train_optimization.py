"""Schedule, clipping, master weights and their state."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from conftest import mostly_slow
from torch import nn
from train_cases import tiny_lm

from softeval.trainers import optimization
from softeval.trainers.optimization import MasterWeights, Optimization, Schedule, gradient_norm


def test_schedule_is_warm_up_then_cosine() -> None:
    schedule = Schedule(peak=2.0, warmup_steps=4, max_steps=24, floor_ratio=0.1)
    assert [schedule(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert schedule(4) == 2.0
    assert schedule(14) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert schedule(24) == pytest.approx(0.2)
    values = [schedule(step) for step in range(4, 25)]
    assert values == sorted(values, reverse=True)


def filled(weights: MasterWeights, seed: int) -> None:
    torch.manual_seed(seed)
    for master in weights.masters:
        master.grad = torch.randn_like(master)


def make(model: nn.Module, masters: bool = True, **options: float) -> Optimization:
    return Optimization(MasterWeights(model, masters), Schedule(1e-3, 2, 50), **options)  # type: ignore[arg-type]


def test_an_update_is_torchs_adamw_after_clipping() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    found = make(ours, weight_decay=0.1, max_grad_norm=0.5)
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(4):
        filled(found.weights, step)
        for mine, other in zip(found.weights.masters, theirs.parameters(), strict=True):
            assert mine.grad is not None
            other.grad = mine.grad.clone()
        norm = found.weights.norm()
        assert norm == pytest.approx(
            float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5))
        )
        adam.param_groups[0]["lr"] = found.schedule(step)
        adam.step()
        found.step(step, norm)
        assert all(master.grad is None for master in found.weights.masters)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Weights below 1 are rounded by 2^-25 in each of the four updates, on either side.
        assert torch.allclose(mine, other, rtol=0, atol=8 * 2**-25)


def test_clipping_changes_the_update_only_beyond_the_norm() -> None:
    moved = []
    for limit in (0.0, 1e-9, 1e9):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        found = make(model, max_grad_norm=limit, epsilon=1.0)  # makes AdamW feel the scale
        filled(found.weights, 1)
        before = model.weight.detach().clone()
        found.step(5, found.weights.norm())
        moved.append((model.weight - before).abs().max().item())
    assert moved[0] == moved[2] > 1e3 * moved[1]


def test_bfloat16_weights_move_with_masters_and_stand_still_without() -> None:
    """Updates of 1e-5 on weights near 1, whose spacing in bfloat16 is 8e-3."""
    ends = {}
    for masters in (True, False):
        model = nn.Linear(4, 4, bias=False).bfloat16()
        nn.init.ones_(model.weight)
        weights = MasterWeights(model, masters)
        found = Optimization(weights, Schedule(1e-5, 0, 10**9))
        for step in range(1000):
            weights.masters[0].grad = torch.ones_like(weights.masters[0])
            found.step(step, 1.0)
        ends[masters] = float(model.weight.detach().mean())
        assert model.weight.dtype == torch.bfloat16
    assert ends[False] == 1.0
    assert ends[True] == pytest.approx(1 - 1e-2, abs=4e-3)


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    weights = MasterWeights(model)
    for value in (1.0, 2.0**-9, 2.0**-9):  # bfloat16 would lose the small ones beside the 1
        model.weight.grad = torch.full_like(model.weight, value)
        weights.collect()
        assert model.weight.grad is None
    assert weights.masters[0].grad is not None
    assert float(weights.masters[0].grad) == 1.0 + 2.0**-8


def copy_into(kept: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(kept[name])


@pytest.mark.parametrize("devices", [("cuda",), ("cpu", "cuda")])
@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.bfloat16], [torch.bfloat16]))
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(
    dtype: torch.dtype, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused AdamW too, which a CPU has as well, though it is not used there."""
    monkeypatch.setattr(optimization, "FUSED_DEVICES", devices)
    ends = []
    for interrupted in (False, True):
        model = tiny_lm(dtype).model
        found = make(model)
        for step in range(6):
            if interrupted and step == 3:
                kept = {name: t.clone() for name, t in found.tensors().items()}
                model = tiny_lm(dtype, seed=9).model
                found = make(model)
                found.restore(kept, partial(copy_into, kept))
            filled(found.weights, step)
            found.step(step, found.weights.norm())
        ends.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_adamw_is_fused_where_another_copy_of_the_weights_is_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only on CUDA; its updates are those of the plain loop up to rounding."""
    assert optimization.FUSED_DEVICES == ("cuda",)
    assert not make(nn.Linear(3, 2)).adam.defaults["fused"]
    ends = []
    for devices in (("cuda",), ("cpu",)):
        monkeypatch.setattr(optimization, "FUSED_DEVICES", devices)
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        found = make(model, weight_decay=0.1)
        assert bool(found.adam.defaults["fused"]) == (devices == ("cpu",))
        for step in range(4):
            filled(found.weights, step)
            found.step(step, found.weights.norm())
        ends.append(model.weight.detach())
    assert torch.allclose(*ends, rtol=1e-6)


def test_gradient_norm_is_euclidean_over_all() -> None:
    gradients = [torch.tensor([3.0]), None, torch.tensor([[4.0], [12.0]])]
    assert gradient_norm(gradients) == pytest.approx(13.0)
    assert math.isnan(gradient_norm([torch.tensor([float("nan")])]))
