"""Gradients against finite differences, and log-probabilities against a plain recomputation."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import tiny_config
from conftest import mostly_slow
from tiny import CONFIGS, FAMILIES
from torch import Tensor
from train_cases import directional_derivative, made_generation, tiny_gpt2, tiny_lm
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.randomness import NoiseFeed, SampleRandomness
from softeval.model.language_model import LanguageModel
from softeval.model.output_head import can_share, last_hidden, output_head
from softeval.model.stopping import Limits
from softeval.modes import Draws, Mode, Randomness, Seen, Taken, get_mode
from softeval.records import Generation
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

PROMPT = (10, 20, 30, 40, 50)


def rollouts(lm: LanguageModel, mode: Mode, samples: int = 4, cap: int = 6) -> list[Generation]:
    decoder = Decoder(lm, mode, Limits(cap, 4), answer_temperature=1.0, keep_inputs=True)
    found = decoder.run([Question("t", 0, PROMPT, tuple(range(samples)))])
    return sorted(found, key=lambda g: g.key.sample)


def policy_of(lm: LanguageModel, mode: Mode, **changes: object) -> Policy:
    return Policy(mode, **changes)  # type: ignore[arg-type]


def batch_of(lm: LanguageModel, found: list[Generation], policy: Policy) -> Batch:
    return collate(
        found, lm.device, lm.dtype, policy.mode, policy.mode.draws(lm.embedding), policy.seed
    )


def sequence_log_probs(found: LogProbs, batch: Batch) -> torch.Tensor:
    """(B,) log π(h̃) + log π(a | h̃) of each sequence."""
    cot_N = found.cot.log_prob_N
    total_B = cot_N.new_zeros(batch.rows).index_add(0, batch.cot.row_N, cot_N)
    return total_B.index_add(0, batch.answer.row_N, found.answer_M)


def plain_log_prob(lm: LanguageModel, g: Generation, mode: Mode) -> float:
    """One sequence, one forward pass a position, no cache, no chunks, the modes' own formula."""
    total = 0.0
    table = lm.embedding.rows(torch.arange(lm.vocab))
    inputs = [table[i] for i in g.prompt_ids]
    for shadow, fed in zip(g.shadow_ids, g.inputs, strict=True):
        logits = lm.logits(lm.model(inputs_embeds=torch.stack(inputs)[None]).logits[:, -1])
        taken = Taken(fed[None].to(lm.dtype), torch.tensor([shadow]))
        total += float(mode.log_prob(Seen(logits, lm.embedding), taken))
        inputs.append(fed.to(lm.dtype))
    inputs += [table[i] for i in g.prefill_ids]
    for token in g.answer_ids:
        logits = lm.logits(lm.model(inputs_embeds=torch.stack(inputs)[None]).logits[0, -1])
        total += float(logits.float().log_softmax(-1)[token])
        inputs.append(table[token])
    return total


MODES = {
    "hard": get_mode("hard_sample"),
    "soft": get_mode("soft_sample"),
    "fuzzy": get_mode("fuzzy_sample", temperature=0.1),
}


@pytest.mark.parametrize("method", MODES)
@torch.no_grad()
def test_log_prob_of_a_rollout_equals_a_plain_recomputation(method: str) -> None:
    lm, mode = tiny_lm(), MODES[method]
    found = rollouts(lm, mode)
    policy = policy_of(lm, mode)
    batch = batch_of(lm, found, policy)
    totals = sequence_log_probs(log_probs(lm, output_head(lm, chunk=3), batch, policy), batch)
    # Either pass rounds a logit z by 2^-24·|z|; a soft step turns that into the sum over its elements
    # of ε times the rounding of the mixture in units of σ. The largest z here is 3.
    rounding = 2**-24 * 16 / (mode.temperature * mode.options.get("noise_scale", 1.0))
    for g, total in zip(found, totals, strict=True):
        elements = len(g.shadow_ids) * lm.embedding.width + len(g.answer_ids)
        assert float(total) == pytest.approx(
            plain_log_prob(lm, g, mode), rel=1e-6, abs=3 * rounding * elements**0.5
        )


@pytest.mark.parametrize("method", MODES)
@pytest.mark.parametrize("tied", mostly_slow([False, True], [True]))
def test_gradient_equals_finite_differences(method: str, tied: bool) -> None:
    """Every parameter of a float64 model along random directions; sequences of unequal length."""
    lm, mode = tiny_gpt2(tied), MODES[method]
    policy = policy_of(lm, mode, recorded_noise=False)
    lengths = [(3, 4, 1, 2), (2, 1, 2, 1)]
    made = [made_generation(lm, shape, sample=n) for n, shape in enumerate(lengths)]
    batch, head = batch_of(lm, made, policy), output_head(lm, chunk=2)
    advantages = torch.tensor([0.7, -1.3], dtype=torch.float64)

    def loss() -> Tensor:
        cot, answer = policy_losses(log_probs(lm, head, batch, policy), batch, advantages, 5)
        return cot + answer

    named = dict(lm.model.named_parameters())
    analytic = torch.autograd.grad(loss(), list(named.values()))
    torch.manual_seed(1)
    for (name, parameter), gradient in zip(named.items(), analytic, strict=True):
        for direction in (torch.randn_like(parameter), gradient / gradient.norm()):
            with torch.no_grad():
                numeric = float(directional_derivative(loss, parameter, direction))
            exact = float((gradient * direction).sum())
            assert exact == pytest.approx(numeric, rel=1e-5, abs=1e-6 * float(gradient.norm())), (
                name
            )


@pytest.mark.parametrize("family", [*FAMILIES, "llama4_text"])
def test_what_rows_have_in_common_is_computed_once_with_the_same_gradient(family: str) -> None:
    """Of every weight and input; longer than the windows of those that slide."""
    torch.manual_seed(0)
    config = CONFIGS[family]() if family in CONFIGS else tiny_config(family)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert can_share(model)
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    positions: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: positions.append(args[0].shape[:2].numel()))
    inputs = torch.randn(3, 22, config.hidden_size)
    inputs[:, :13] = inputs[0, :13]
    found = []
    for shared in (0, 13):
        hidden = last_hidden(model, inputs.requires_grad_(), shared)
        used = [inputs, *model.parameters()]
        rows, *gradients = torch.autograd.grad(hidden.sin().sum(), used, allow_unused=True)
        assert rows is not None
        found.append([hidden.detach(), rows[:, :13].sum(0), rows[:, 13:], *gradients])
    assert positions == [3 * 22, 13, 3 * 9]
    for whole, once in zip(*found, strict=True):
        if whole is None or once is None:
            assert whole is once  # embedding and head, which stand outside
        else:
            assert float((once - whole).norm()) <= 1e-4 * float(whole.norm())


def test_detaching_the_embedding_changes_its_gradient_only() -> None:
    lm = tiny_lm(torch.float64)
    mode = MODES["soft"]
    found = [made_generation(lm, sample=n) for n in range(2)]
    gradients = []
    for detach in (False, True):
        policy = policy_of(lm, mode, detach_embedding=detach)
        batch = batch_of(lm, found, policy)
        losses = policy_losses(
            log_probs(lm, output_head(lm), batch, policy), batch, torch.tensor([1.0, -2.0]), 2
        )
        gradients.append(torch.autograd.grad(sum(losses), list(lm.model.parameters())))  # type: ignore[arg-type]
    names = [name for name, _ in lm.model.named_parameters()]
    for name, attached, detached in zip(names, *gradients, strict=True):
        assert torch.allclose(attached, detached) == (name != "model.embed_tokens.weight"), name


def test_the_mean_over_elements_divides_the_cot_term_by_the_width() -> None:
    lm, mode = tiny_lm(), MODES["soft"]
    found = rollouts(lm, mode, 2)
    both = []
    for reduction in ("sum", "mean"):
        policy = policy_of(lm, mode, reduction=reduction)
        batch = batch_of(lm, found, policy)
        both.append(log_probs(lm, output_head(lm), batch, policy))
    assert torch.allclose(both[0].cot.log_prob_N, both[1].cot.log_prob_N * lm.embedding.width)
    assert torch.equal(both[0].answer_M, both[1].answer_M)


def test_prompt_and_prefill_carry_no_log_prob() -> None:
    lm = tiny_lm()
    policy = policy_of(lm, MODES["soft"])
    batch = batch_of(lm, [made_generation(lm, (4, 5, 2, 3))], policy)
    assert batch.cot.source_N.tolist() == [3, 4, 5, 6, 7]
    assert batch.cot.place_N.tolist() == [4, 5, 6, 7, 8]
    assert batch.answer.source_N.tolist() == [10, 11, 12]
    assert batch.ids_BT.shape == (1, 14)


def test_padding_changes_nothing() -> None:
    lm = tiny_lm(torch.float64)
    policy = policy_of(lm, MODES["soft"])
    made = [made_generation(lm, (3, n + 1, 1, 2), sample=n) for n in (0, 9)]
    head = output_head(lm)
    apart = [
        sequence_log_probs(log_probs(lm, head, b, policy), b)
        for b in (batch_of(lm, [g], policy) for g in made)
    ]
    batch = batch_of(lm, made, policy)
    together = sequence_log_probs(log_probs(lm, head, batch, policy), batch)
    assert torch.allclose(torch.cat(apart), together, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits_dtype", ["model", "bfloat16"])
@pytest.mark.parametrize("method", mostly_slow(["soft", "fuzzy"], ["soft"]))
@torch.no_grad()
def test_chi_square_of_recorded_rollouts_is_one(
    method: str, logits_dtype: str, dtype: torch.dtype
) -> None:
    lm, mode = tiny_lm(dtype, logits_dtype, width=32), MODES[method]
    found = rollouts(lm, mode, samples=8, cap=12)
    policy = policy_of(lm, mode)
    batch = batch_of(lm, found, policy)
    squared = log_probs(lm, output_head(lm), batch, policy).cot.squared_N
    assert squared is not None
    mean, numbers = float(squared.mean()) / 32, squared.numel() * 32
    # In bfloat16 the two passes round a few logits apart; that adds to the spread, not to the mean.
    slack = 0.02 if dtype == torch.bfloat16 or logits_dtype == "bfloat16" else 1e-3
    assert abs(mean - 1) < 3 * math.sqrt(2 / numbers) + slack


def test_a_wrong_temperature_or_sigma_shows_in_chi_square() -> None:
    lm, mode = tiny_lm(), MODES["soft"]
    found = rollouts(lm, mode, samples=8, cap=12)
    wrong = Policy(get_mode("soft_sample", temperature=1.0))
    louder = Policy(get_mode("soft_sample", noise_scale=2 * mode.noise_scale))
    with torch.no_grad():
        values = [
            log_probs(lm, output_head(lm), batch_of(lm, found, p), p).cot.squared_N
            for p in (wrong, louder)
        ]
    means = [float(v.mean()) / lm.embedding.width for v in values if v is not None]
    assert means[0] > 1.2 and means[1] < 0.5


@pytest.mark.parametrize("method", mostly_slow(MODES, ["soft"]))
@torch.no_grad()
def test_the_score_function_has_expectation_zero(method: str) -> None:
    """Mean of ∂ log π along random directions over independent rollouts, against its error."""
    lm, mode = tiny_lm(width=8, layers=1), MODES[method]
    policy, head = policy_of(lm, mode, recorded_noise=False), output_head(lm)
    batch = batch_of(lm, rollouts(lm, mode, samples=256, cap=3), policy)
    for name in ("lm_head.weight", "model.layers.0.mlp.down_proj.weight"):
        parameter = lm.model.get_parameter(name)
        for _ in range(3):
            direction = torch.randn_like(parameter)
            scores = directional_derivative(
                lambda: sequence_log_probs(log_probs(lm, head, batch, policy), batch).double(),
                parameter,
                direction,
                step=1e-3,
            )
            error = scores.std() / math.sqrt(len(scores))
            assert error > 0
            assert abs(scores.mean() / error) < 3.5


def test_drift_from_itself_is_zero_and_from_another_is_exact() -> None:
    lm, other, mode = tiny_lm(), tiny_lm(seed=3), MODES["soft"]
    policy, head = policy_of(lm, mode), output_head(lm)
    batch = batch_of(lm, rollouts(lm, mode), policy)
    hidden = policy_hidden(lm, batch)
    found = log_probs(lm, head, batch, policy, hidden)
    itself = policy_kl(hidden, head, found, batch, policy, Reference(lm, head))
    assert itself.gaussian_N is not None
    assert itself.tokens.abs().max() < 1e-5 and itself.gaussian_N.max() == 0
    moved = policy_kl(hidden, head, found, batch, policy, Reference(other, output_head(other)))
    own, theirs = (
        torch.cat(policy_hidden(m, batch)) @ m.model.lm_head.weight.T for m in (lm, other)
    )
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=own), torch.distributions.Categorical(logits=theirs)
    )
    assert torch.allclose(moved.tokens, exact, atol=1e-5)
    cot = len(batch.cot.ids_N)
    mixed = [
        (z[:cot] / 0.5).softmax(-1) @ m.embedding.weight for z, m in ((own, lm), (theirs, other))
    ]
    gaussian = torch.distributions.kl_divergence(
        torch.distributions.Normal(mixed[0], mode.sigma(lm.embedding)),
        torch.distributions.Normal(mixed[1], mode.sigma(lm.embedding)),
    ).sum(-1)
    assert moved.gaussian_N is not None
    assert torch.allclose(moved.gaussian_N, gaussian, rtol=1e-4)


def whole_gradient(lm: LanguageModel, batch: Batch, policy: Policy) -> Tensor:
    """Gradient of Σ log π of the CoT steps in all parameters, flat."""
    found = log_probs(lm, output_head(lm, chunk=5), batch, policy)
    parameters = list(lm.model.parameters())
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(found.cot.log_prob_N.sum(), parameters)]
    )


def plain_score(lm: LanguageModel, batch: Batch, mode: Mode, score_ND: Tensor) -> Tensor:
    """∂ Σ ⟨score, softmax(z/τ)·E⟩ with the model's own forward pass and nothing of the losses."""
    assert batch.fed_ND is not None
    inputs = lm.embedding.rows(batch.ids_BT).flatten(0, 1).clone()
    inputs[batch.cot.place_N] = batch.fed_ND
    logits = lm.model(inputs_embeds=inputs.view(*batch.ids_BT.shape, -1)).logits
    logits = lm.logits(logits.flatten(0, 1)[batch.cot.source_N]).float()
    mixed_ND = (logits / mode.temperature).softmax(-1) @ lm.embedding.weight
    loss = (score_ND * mixed_ND).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(lm.model.parameters()))])


def drawn_noise(found: list[Generation], lm: LanguageModel) -> Tensor:
    """ε of each CoT step as the decoder's own feed of noise gives it, one step at a time."""
    feed = NoiseFeed(Draws(Randomness.NORMAL, lm.embedding.width), 1, torch.device("cpu"))
    drawn = []
    for g in found:
        feed.begin([0], [SampleRandomness(0, g.key)])
        drawn += [feed.read(torch.tensor([step])) for step in range(len(g.shadow_ids))]
    return torch.cat([d for d in drawn if d is not None])


@pytest.mark.parametrize("method", ["soft", "fuzzy"])
def test_the_score_of_a_rollout_is_its_noise_over_sigma(method: str) -> None:
    """Where the pass mixes what the rollout mixed, both errors and a plain gradient agree.

    A logit z is rounded by some 2^-24·|z| in either pass; the mixture turns that into 1/τ as much
    of an embedding, of which σ is γ = 0.33. The largest z here is 3; 16 leaves room for the layers.
    """
    tolerance = 2**-24 * 16 / (MODES[method].temperature * MODES[method].noise_scale)
    lm, mode = tiny_lm(), MODES[method]
    found = rollouts(lm, mode, samples=8, cap=20)
    policies = [policy_of(lm, mode, recorded_noise=recorded) for recorded in (True, False)]
    batch = batch_of(lm, found, policies[0])
    recorded, recomputed = (whole_gradient(lm, batch, policy) for policy in policies)
    plain = plain_score(lm, batch, mode, drawn_noise(found, lm) / mode.sigma(lm.embedding))
    assert float((recorded - plain).norm() / plain.norm()) < tolerance
    assert float((recorded - recomputed).norm() / plain.norm()) < tolerance


@pytest.mark.parametrize("method", ["soft", "fuzzy"])
def test_the_recorded_score_stays_the_noise_where_the_pass_mixes_otherwise(method: str) -> None:
    """Another model stands for a pass that rounds otherwise: h̃ - μ is then no noise at all."""
    lm, other, mode = tiny_lm(), tiny_lm(seed=3), MODES[method]
    found = rollouts(lm, mode, samples=8, cap=20)
    policies = [policy_of(lm, mode, recorded_noise=recorded) for recorded in (True, False)]
    batch = batch_of(lm, found, policies[0])
    noise = drawn_noise(found, lm)
    recorded, recomputed = (whole_gradient(other, batch, policy) for policy in policies)
    plain = plain_score(other, batch, mode, noise / mode.sigma(other.embedding))
    assert float((recorded - plain).norm() / plain.norm()) < 1e-5
    assert float(recomputed.norm() / recorded.norm()) > 2
    seen = log_probs(other, output_head(other), batch, policies[0])
    assert seen.cot.mismatched_N is not None and seen.cot.squared_N is not None
    assert torch.allclose(seen.cot.log_prob_N, -0.5 * noise.square().sum(-1))
    assert float(seen.cot.squared_N.mean()) / lm.embedding.width > 1.5
    assert float(seen.cot.mismatched_N.float().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma_of", mostly_slow(["element", "vector"], ["vector"]))
@torch.no_grad()
def test_rounding_of_what_was_fed_is_no_mismatch(dtype: torch.dtype, sigma_of: str) -> None:
    """With σ of an embedding's length, bfloat16 rounds h̃ by more than the threshold itself."""
    lm = tiny_lm(dtype, width=64)
    mode = get_mode("soft_sample", noise_scale=3.0, noise_norm=sigma_of)
    found = rollouts(lm, mode, samples=8, cap=20)
    policy = policy_of(lm, mode)
    batch = batch_of(lm, found, policy)
    seen = log_probs(lm, output_head(lm), batch, policy).cot.mismatched_N
    assert seen is not None and float(seen.float().mean()) < 0.05


def test_noise_is_drawn_again_from_the_seed_of_the_run() -> None:
    lm, mode = tiny_lm(), MODES["soft"]
    decoder = Decoder(lm, mode, Limits(6, 4), seed=5, answer_temperature=1.0, keep_inputs=True)
    found = list(decoder.run([Question("t", 0, PROMPT, (0, 1))]))
    rates = []
    for seed in (5, 6):
        policy = policy_of(lm, mode, seed=seed)
        batch = batch_of(lm, found, policy)
        seen = log_probs(lm, output_head(lm), batch, policy).cot.mismatched_N
        assert seen is not None
        rates.append(float(seen.float().mean()))
    assert rates == [0.0, 1.0]
