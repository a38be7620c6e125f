"""Log-probabilities of every trainable mode: values, scores, finite differences, and in the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import mostly_slow
from mode_cases import numbers, random_logits, seen_of, take
from scipy import stats
from test_train_losses import batch_of, rollouts
from torch import Tensor
from train_cases import tiny_lm

from softeval.model.output_head import output_head
from softeval.modes import ALL, MODES, Mode, Seen, Step, Taken, get_mode
from softeval.trainers.losses import Policy, log_probs, policy_hidden

TRAINED = {
    "hard": get_mode("hard_sample", temperature=0.7, top_k=8, top_p=0.9, min_p=0.01),
    "soft": get_mode("soft_sample"),
    "gumbel": get_mode("gumbel"),
    "gumbel over all": get_mode("gumbel", top_k=0, top_p=1.0, min_p=0.0, top_n=0),
    "dirichlet": get_mode("dirichlet", alpha=4.0),
    "multiplex": get_mode("multiplex"),
    "mixture_of_inputs": get_mode("mixture_of_inputs", top_k=3),
    "hidden_noise": get_mode("hidden_noise"),
    "logit_noise": get_mode("logit_noise"),
    "top_logit_noise": get_mode("top_logit_noise"),
}
RELEASE = get_mode("gumbel", density="softgrpo_release")


def taken_of(step: Step) -> Taken:
    return Taken(step.inputs_ND, step.shadow_N, step.record_NR)


def density(mode: Mode, logits_NV: Tensor, step: Step) -> Tensor:
    return mode.log_prob(seen_of(logits_NV), taken_of(step))


def test_every_sampled_mode_has_a_density_and_no_other():
    sampled = {name for name, mode in MODES.items() if not mode.is_greedy}
    assert {name for name, mode in MODES.items() if mode.has_density} == sampled
    assert {mode.name for mode in TRAINED.values()} >= sampled - {*ALL}


# ---- values, from the numbers that were drawn ----------------------------------------------------


def of_tokens(mode: Mode, seen: Seen, row: int, step: Step, drawn: Tensor) -> float:
    """Σ ln p over the tokens drawn, from the filtered distribution."""
    tokens = step.shadow_N[row, None] if step.record_NR is None else step.record_NR[row].long()
    return float(mode.probs(seen)[row, tokens].log().sum())


def of_gumbels(mode: Mode, seen: Seen, row: int, step: Step, drawn: Tensor) -> float:
    kept = int((mode.probs(seen)[row] > 0).sum())
    noise = [-math.log(-math.log(u)) for u in drawn[row, :kept].tolist()]
    return float(stats.gumbel_r.logpdf(noise).sum())


def of_dirichlet(mode: Mode, seen: Seen, row: int, step: Step, drawn: Tensor) -> float:
    """Of y itself, which is what E = I feeds."""
    w = mode.probs(seen)[row].double()
    y, w = step.inputs_ND[row].double()[w > 0], w[w > 0]
    return float(stats.dirichlet.logpdf((y / y.sum()).numpy(), 4.0 * w.numpy()))


def of_normals(mode: Mode, seen: Seen, row: int, step: Step, drawn: Tensor) -> float:
    return -float(drawn[row].square().sum()) / 2


VALUES: dict[str, Callable[[Mode, Seen, int, Step, Tensor], float]] = {
    "hard": of_tokens,
    "multiplex": of_tokens,
    "mixture_of_inputs": of_tokens,
    "gumbel": of_gumbels,
    "gumbel over all": of_gumbels,
    "dirichlet": of_dirichlet,
    **dict.fromkeys(["soft", "hidden_noise", "logit_noise", "top_logit_noise"], of_normals),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_density_of_a_step_is_that_of_the_numbers_it_was_made_of(name):
    """So the ratio of a policy to itself is 1."""
    mode, logits = TRAINED[name], random_logits(rows=8, vocab=12, scale=1.5)
    seen = seen_of(logits)
    drawn = numbers(mode, seen)
    assert drawn is not None
    step = take(mode, seen, drawn)
    found = density(mode, logits, step)
    for row in range(8):
        expected = VALUES[name](mode, seen, row, step, drawn)
        assert float(found[row]) == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", ["logit_noise", "top_logit_noise"])
def test_equal_logits_have_a_density(name):
    """Half precision makes some: they have no spread, so σ is 0 and nothing is noised."""
    logits = torch.zeros(2, 12, requires_grad=True)
    found = density(TRAINED[name], logits, take(TRAINED[name], seen_of(logits.detach())))
    found.sum().backward()
    assert (found == 0).all() and logits.grad is not None and logits.grad.isfinite().all()


def test_the_released_log_probability_of_soft_grpo():
    """Mean over ln w > -3 of -ε - exp(-ε), ε = g' - ln(w + 1e-6) cut to [-1.5, 3]."""
    logits = random_logits(rows=8, vocab=12, scale=1.5)
    drawn = numbers(RELEASE, seen_of(logits))
    assert drawn is not None
    step, w_NV = take(RELEASE, seen_of(logits), drawn), RELEASE.probs(seen_of(logits))
    found = density(RELEASE, logits, step)
    for row in range(8):
        w = w_NV[row][w_NV[row] > 0].sort(descending=True).values.tolist()
        noise = [-math.log(-math.log(u)) for u in drawn[row, : len(w)].tolist()]
        noised = [math.log(p) + g for p, g in zip(w, noise, strict=True)]
        epsilon = [
            min(3.0, max(-1.5, z - math.log(p + 1e-6)))
            for p, z in zip(w, noised, strict=True)
            if math.log(p) > -3
        ]
        expected = sum(-e - math.exp(-e) for e in epsilon) / len(epsilon)
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)


# ---- scores -------------------------------------------------------------------------------------


def scores(mode: Mode, logits_NV: Tensor, step: Step) -> Tensor:
    """(N, V) gradient of each row's log-probability in its logits (its state, where E and W are I)."""
    leaf = logits_NV.clone().requires_grad_()
    [found] = torch.autograd.grad(density(mode, leaf, step).sum(), leaf)
    return found


@pytest.mark.parametrize("name", mostly_slow(TRAINED, ["hard", "gumbel", "logit_noise"]))
def test_the_score_has_mean_zero(name):
    mode, rows = TRAINED[name], 10_000
    logits = random_logits(rows=1, vocab=7, scale=1.0).expand(rows, -1).contiguous()
    found = scores(mode, logits, take(mode, seen_of(logits)))
    error = found.std(0) / math.sqrt(rows)
    assert (error > 0).any()
    assert (found.mean(0).abs() < 4.5 * error + 1e-5).all()


@pytest.mark.parametrize("name", [*TRAINED, "release"])
def test_the_score_equals_finite_differences(name):
    """Where a filter keeps the same tokens on both sides: which ones it keeps is a constant."""
    mode = TRAINED.get(name, RELEASE)
    logits = random_logits(rows=24, vocab=12, scale=1.5)
    step = take(mode, seen_of(logits))
    way = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    exact = (scores(mode, logits, step) * way).sum(-1)
    size = 3e-3
    moved = [logits + sign * size * way for sign in (1, -1)]
    kept = [mode.probs(seen_of(z)) > 0 for z in (logits, *moved)]
    same = ((kept[0] == kept[1]) & (kept[0] == kept[2])).all(-1)
    assert same.sum() >= 20
    up, down = (density(mode, z, step) for z in moved)
    numeric = (up - down) / (2 * size)
    torch.testing.assert_close(exact[same], numeric[same], rtol=0.02, atol=0.02)
    assert float(exact.abs().max()) > 0.1


# ---- in the trainer -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", mostly_slow([*TRAINED, "release"], ["dirichlet", "hidden_noise", "mixture_of_inputs"])
)
def test_the_trainers_chunks_give_the_modes_own_density_and_its_gradient(name):
    """At hidden states that carry a gradient; the head is read in chunks of three positions."""
    lm, mode = tiny_lm(), TRAINED.get(name, RELEASE)
    policy = Policy(mode, recorded_noise=False)
    batch, head = batch_of(lm, rollouts(lm, mode), policy), output_head(lm, chunk=3)
    hidden_ND, answer_MD = policy_hidden(lm, batch)
    state_ND = hidden_ND.detach().requires_grad_()
    ours = log_probs(lm, head, batch, policy, (state_ND, answer_MD)).cot.log_prob_N
    plain = mode.log_prob(Seen(head.logits(state_ND), lm.embedding, state_ND, head), batch.taken)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)
    one, other = (torch.autograd.grad(p.sum(), state_ND)[0] for p in (ours, plain))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert (one.norm(dim=-1) > 0).any() and one.isfinite().all()


@pytest.mark.parametrize("name", mostly_slow(TRAINED, ["gumbel", "hidden_noise", "multiplex"]))
@torch.no_grad()
def test_the_ratio_of_training_pass_and_rollout_is_one(name, monkeypatch):
    """With a cache step by step, and over the whole sequence at once."""
    lm, mode = tiny_lm(), TRAINED[name]
    policy, old, step_of = Policy(mode, recorded_noise=False), [], type(mode).step

    def step(self: Mode, seen: Seen, *rest: object) -> Step:
        made = step_of(self, seen, *rest)
        old.append(float(self.log_prob(seen, taken_of(made))[0]))  # the only row in use
        return made

    monkeypatch.setattr(type(mode), "step", step)
    batch = batch_of(lm, rollouts(lm, mode, samples=1, cap=16), policy)
    new_N = log_probs(lm, output_head(lm), batch, policy).cot.log_prob_N
    torch.testing.assert_close(new_N, torch.tensor(old), rtol=1e-3, atol=2e-3)
