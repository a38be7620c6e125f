"""The modes beside the paper's six: limits, distributions, options. Densities: `test_densities`."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import mostly_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from mode_cases import Same, numbers, random_logits, seen_of, take
from scipy import stats
from tiny import tiny_lm

import softeval
from softeval.errors import UserError
from softeval.modes import ALL, MODES, Seen, Taken, get_mode, select_modes

PROMPTS = ["1+2=", "What is 7 times 8, and why?", "x"]
OTHERS = sorted(set(MODES) - set(ALL))
NO_FILTER = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
WEIGHTS = torch.tensor([0.5, 0.3, 0.15, 0.05])
ROWS = 20_000


def many(weights: torch.Tensor = WEIGHTS, rows: int = ROWS) -> Seen:
    """Rows that all show these probabilities at temperature 1; E is the identity, so x is y."""
    return seen_of(weights.log().expand(rows, -1).contiguous())


def shares(shadow_N: torch.Tensor) -> torch.Tensor:
    return torch.bincount(shadow_N, minlength=len(WEIGHTS)) / len(shadow_N)


def assert_frequencies(shadow_N: torch.Tensor, weights: torch.Tensor = WEIGHTS) -> None:
    deviation = (weights * (1 - weights) / len(shadow_N)).sqrt()
    assert ((shares(shadow_N) - weights).abs() < 4.5 * deviation + 1e-9).all()


def decoded(mode, **options):
    lm = tiny_lm()
    short = {"num_samples": 2, "max_cot_tokens": 6, "max_answer_tokens": 2, "seed": 4}
    options = short | {"keep_inputs": True} | options
    return [g for row in softeval.generate(lm, PROMPTS, mode, **options) for g in row]


def assert_same(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shadow_ids.tolist() == b.shadow_ids.tolist()
        assert torch.equal(a.inputs, b.inputs)
        assert a.answer_ids.tolist() == b.answer_ids.tolist()


# ---- every mode -----------------------------------------------------------------------------


class Turned:
    """An embedding whose rows are those of another, turned: E' = E·R."""

    def __init__(self, embedding, turn_DD: torch.Tensor) -> None:
        self._embedding, self._turn_DD = embedding, turn_DD
        self.width, self.vocab, self.dtype = embedding.width, embedding.vocab, embedding.dtype
        self.fed_width = embedding.fed_width

    def rows(self, ids):
        return self._embedding.rows(ids) @ self._turn_DD

    def mix(self, probs_NV):
        return self._embedding.mix(probs_NV) @ self._turn_DD


@pytest.mark.parametrize("name", [*sorted(MODES)])
def test_a_step_replayed_is_the_same_weights_of_the_other_embedding(name):
    """Through its own embedding it is what was fed; through a turned one that, turned, and its noise."""
    mode, seen = get_mode(name), seen_of(random_logits())
    step = take(mode, seen)
    taken = Taken(step.inputs_ND, step.shadow_N, step.record_NR)
    torch.testing.assert_close(mode.replay(seen, taken, seen.embedding), step.inputs_ND)
    turn_DD = torch.linalg.qr(random_logits(40, 40))[0]
    wanted_ND = step.inputs_ND @ turn_DD
    if mode.is_gaussian and not mode.is_greedy:
        mixed_ND = seen.embedding.mix(mode.probs(seen))
        wanted_ND = mixed_ND @ turn_DD + (step.inputs_ND - mixed_ND)
    if name == "coconut":
        wanted_ND = step.inputs_ND
    found_ND = mode.replay(seen, taken, Turned(seen.embedding, turn_DD))
    torch.testing.assert_close(found_ND, wanted_ND, atol=1e-4, rtol=1e-4)


def test_a_state_is_not_fed_to_a_model_of_another_width():
    seen = seen_of(random_logits())
    step, narrow = take(MODES["coconut"], seen), seen_of(random_logits(8, 30))
    taken = Taken(step.inputs_ND, step.shadow_N)
    with pytest.raises(UserError, match="width 40 cannot be fed to a model of width 30"):
        MODES["coconut"].replay(seen, taken, narrow.embedding)


def test_all_means_the_six_of_the_paper():
    assert [mode.name for mode in select_modes(["all"], {})] == list(ALL) and len(ALL) == 6
    assert [mode.name for mode in select_modes(OTHERS, {})] == OTHERS


@pytest.mark.parametrize("name", mostly_slow([*OTHERS, "hard_sample"], ["coconut", "dirichlet"]))
def test_batch_and_neighbours_change_no_bit(name):
    """Rows leave at different steps, so finished neighbours are among what must not matter."""
    filters = {"temperature": 0.8, "top_p": 0.9} if name == "hard_sample" else {}
    mode = get_mode(name, **filters)
    alone = decoded(mode, batch_size=1)
    assert_same(decoded(mode, batch_size=4), alone)


@pytest.mark.parametrize("name", OTHERS)
def test_a_permutation_of_rows_permutes_the_step(name):
    mode, logits = get_mode(name), random_logits()
    order = torch.tensor([5, 0, 7, 2, 6, 1, 4, 3])
    drawn = numbers(mode, seen_of(logits))
    one = take(mode, seen_of(logits), drawn)
    other = take(mode, seen_of(logits[order]), None if drawn is None else drawn[order])
    assert torch.equal(one.inputs_ND[order], other.inputs_ND)
    assert torch.equal(one.shadow_N[order], other.shadow_N)
    if one.record_NR is not None and other.record_NR is not None:
        assert torch.equal(one.record_NR[order], other.record_NR)


@pytest.mark.parametrize("family", mostly_slow(["llama", "gemma2"], ["gemma2"]))
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "coconut"])
def test_where_the_model_is_certain_every_mixture_is_its_token_bit_for_bit(name, family):
    lm = tiny_lm(family)
    ids = torch.tensor([5, 60, 98])
    logits = torch.full((3, lm.vocab), -200.0)
    logits[torch.arange(3), ids] = 200.0
    head = Same(lm.vocab)
    options = {"noise_scale": 0.0} if "noise_scale" in MODES[name].options else {}
    mode = get_mode(name, **options)
    if mode.needs_head:
        head.logits = lambda hidden: logits  # type: ignore[method-assign]
    hidden = torch.zeros(3, lm.embedding.width)
    step = take(mode, Seen(logits, lm.embedding, hidden, head))
    assert torch.equal(step.inputs_ND, lm.embedding.rows(ids))
    assert torch.equal(step.shadow_N, ids)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("hard_sample", "temperature", 0.3),
        ("hard_sample", "top_k", 2),
        ("hard_sample", "top_p", 0.3),
        ("hard_sample", "min_p", 0.9),
        ("gumbel", "temperature", 2.0),
        ("gumbel", "top_k", 2),
        ("gumbel", "top_p", 0.3),
        ("gumbel", "min_p", 0.9),
        ("gumbel", "top_n", 2),
        ("gumbel", "gumbel_temperature", 2.0),
        ("dirichlet", "temperature", 2.0),
        ("dirichlet", "top_k", 2),
        ("dirichlet", "top_p", 0.3),
        ("dirichlet", "min_p", 0.9),
        ("dirichlet", "top_n", 2),
        ("dirichlet", "alpha", 4.0),
        ("multiplex", "temperature", 3.0),
        ("multiplex", "top_k", 1),
        ("multiplex", "top_p", 0.2),
        ("multiplex", "min_p", 1.0),
        ("multiplex", "width", 5),
        ("multiplex", "weights", "uniform"),
        ("multiplex", "weights", "unique"),
        ("mixture_of_inputs", "temperature", 2.0),
        ("mixture_of_inputs", "top_k", 1),
        ("mixture_of_inputs", "top_p", 0.3),
        ("mixture_of_inputs", "min_p", 0.9),
        ("mixture_of_inputs", "beta", 4.0),
        ("mixture_of_inputs", "support", 2),
        ("mixture_of_inputs", "entropy_base", "vocabulary"),
        ("hidden_noise", "temperature", 2.0),
        ("hidden_noise", "noise_scale", 1.0),
        ("logit_noise", "temperature", 2.0),
        ("logit_noise", "noise_scale", 1.0),
        ("top_logit_noise", "temperature", 2.0),
        ("top_logit_noise", "noise_scale", 1.0),
        ("top_logit_noise", "top_k", 2),
    ],
)
def test_every_option_changes_what_is_fed(name, option, value):
    seen = seen_of(random_logits(rows=64, scale=1.0))
    before, after = take(get_mode(name), seen), take(get_mode(name, **{option: value}), seen)
    assert not torch.equal(before.inputs_ND, after.inputs_ND)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hard_sample", {"top_p": 0.0}),
        ("hard_sample", {"min_p": 2.0}),
        ("hard_sample", {"top_k": -1}),
        ("hard_greedy", {"top_k": 5}),
        ("gumbel", {"top_n": -1}),
        ("gumbel", {"temperature": 0.0}),
        ("gumbel", {"density": "exact"}),
        ("dirichlet", {"alpha": 0.0}),
        ("multiplex", {"width": 0}),
        ("multiplex", {"weights": "printed"}),
        ("mixture_of_inputs", {"support": 1}),
        ("mixture_of_inputs", {"beta": -1.0}),
        ("top_logit_noise", {"top_k": 1}),
        ("coconut", {"realign": "perhaps"}),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(name, options):
    with pytest.raises(UserError) as refused:
        get_mode(name, **options)
    assert "\n" not in str(refused.value)


# ---- hard sampling with filters -------------------------------------------------------------


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.3}])
def test_hard_sampling_and_soft_thinking_filter_alike(filters):
    seen = seen_of(random_logits())
    control = get_mode("hard_sample", temperature=0.6, **filters)
    soft = get_mode("soft_thinking", **(NO_FILTER | filters), top_n=0)
    assert torch.equal(control.probs(seen), soft.probs(seen))
    shadow_N = take(control, seen).shadow_N
    assert (control.probs(seen).gather(-1, shadow_N[:, None]) > 0).all()


def test_hard_sampling_of_one_token_is_greedy():
    kept = decoded(get_mode("hard_sample", top_k=1))
    assert_same(kept, decoded("hard_greedy"))
    assert_same(decoded(get_mode("hard_sample", temperature=0)), decoded("hard_greedy"))


def test_filters_draw_with_the_renormalised_frequencies():
    mode = get_mode("hard_sample", top_k=3)
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    assert_frequencies(take(mode, many()).shadow_N, expected)


# ---- Soft Thinking and its noise ------------------------------------------------------------


def test_soft_thinking_without_filters_is_soft_greedy_bit_for_bit():
    mode = get_mode("soft_thinking", temperature=0.5, top_n=0, entropy_threshold=0, **NO_FILTER)
    assert_same(decoded(mode), decoded("soft_greedy"))


@pytest.mark.parametrize("tau", [0.0, 0.5, 5.0])
def test_the_largest_gumbel_share_falls_on_a_token_with_its_weight(tau):
    mode = get_mode("gumbel", temperature=1.0, gumbel_temperature=tau, top_n=0, **NO_FILTER)
    step = take(mode, many())
    assert_frequencies(step.shadow_N)
    assert torch.equal(step.inputs_ND.argmax(-1), step.shadow_N)
    torch.testing.assert_close(step.inputs_ND.sum(-1), torch.ones(ROWS))


def test_gumbel_between_hard_sampling_and_the_plain_mean_of_the_support():
    options = {"temperature": 1.0, "top_k": 3, "top_p": 1.0, "min_p": 0.0}
    cold = take(get_mode("gumbel", gumbel_temperature=1e-6, **options), many())
    table = torch.eye(len(WEIGHTS))
    assert torch.equal(cold.inputs_ND, table[cold.shadow_N])
    hot = take(get_mode("gumbel", gumbel_temperature=1e6, **options), many())
    expected = torch.tensor([1, 1, 1, 0]) / 3
    torch.testing.assert_close(hot.inputs_ND, expected.expand(ROWS, -1), atol=1e-3, rtol=0)
    assert not torch.allclose(
        take(get_mode("gumbel"), many()).inputs_ND.mean(0), WEIGHTS, atol=0.01
    )


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_moments_of_the_dirichlet(alpha):
    mode = get_mode("dirichlet", temperature=1.0, alpha=alpha, top_n=0, **NO_FILTER)
    shares_ND = take(mode, many()).inputs_ND.double()
    variance = WEIGHTS.double() * (1 - WEIGHTS.double()) / (alpha + 1)
    error = (variance / ROWS).sqrt()
    assert ((shares_ND.mean(0) - WEIGHTS).abs() < 4.5 * error).all()
    torch.testing.assert_close(shares_ND.var(0), variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("alpha", [0.3, 4.0])
def test_shares_of_the_dirichlet_have_beta_distributions(alpha):
    mode = get_mode("dirichlet", temperature=1.0, alpha=alpha, top_n=0, **NO_FILTER)
    shares_ND = take(mode, many()).inputs_ND.double().clamp(1e-12, 1 - 1e-12)
    for shares_N, weight in zip(shares_ND.T.numpy(), WEIGHTS.tolist(), strict=True):
        law = stats.beta(alpha * weight, alpha * (1 - weight))
        apart = shares_N[(shares_N > 1e-6) & (shares_N < 1 - 1e-6)]  # float32 ends there
        ends = law.cdf([1e-6, 1 - 1e-6])
        inner = (law.cdf(apart) - ends[0]) / (ends[1] - ends[0])
        assert stats.kstest(inner, "uniform").pvalue > 1e-3


def test_a_token_that_was_drawn_has_a_density_where_rounding_moved_the_edge():
    mode, seen = get_mode("hard_sample", top_k=1), seen_of(torch.tensor([[2.0, 1.0, 0.0]]))
    drawn = mode.log_prob(seen, Taken(None, torch.tensor([1])))
    torch.testing.assert_close(drawn, torch.tensor([2.0, 1.0]).log_softmax(0)[1:])


def test_weights_without_noise_end_no_cot_by_themselves():
    assert all(not get_mode(name).greedy().has_stop_rule for name in ("gumbel", "dirichlet"))


def test_dirichlet_between_hard_sampling_and_the_mixture():
    options = {"temperature": 1.0, "top_n": 0, **NO_FILTER}
    pure = take(get_mode("dirichlet", alpha=1e-5, **options), many())
    assert_frequencies(pure.shadow_N)
    assert float((pure.inputs_ND.amax(-1) > 1 - 1e-6).float().mean()) > 0.999
    calm = take(get_mode("dirichlet", alpha=1e8, **options), many())
    torch.testing.assert_close(calm.inputs_ND, WEIGHTS.expand(ROWS, -1), atol=1e-3, rtol=0)


@settings(max_examples=40, deadline=None)
@given(kept=st.integers(1, 12), alpha=st.sampled_from([0.01, 1.0, 30.0]), scale=st.floats(0.1, 30))
def test_noise_never_reaches_a_token_that_was_cut(kept, alpha, scale):
    seen = seen_of(random_logits(rows=16, vocab=12, scale=scale))
    for mode in (
        get_mode("gumbel", top_n=kept, top_p=0.7),
        get_mode("dirichlet", top_n=kept, top_p=0.7, alpha=alpha),
    ):
        step, probs_NV = take(mode, seen), mode.probs(seen)
        assert step.inputs_ND.isfinite().all() and step.record_NR.isfinite().all()
        assert (step.inputs_ND[probs_NV == 0] == 0).all()
        torch.testing.assert_close(step.inputs_ND.sum(-1), torch.ones(16), rtol=0, atol=1e-5)


# ---- Multiplex ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", mostly_slow(["uniform", "reweighted", "unique"], ["unique"]))
def test_multiplex_of_width_one_is_hard_sampling_bit_for_bit(weights):
    mode = get_mode("multiplex", width=1, weights=weights)
    assert_same(decoded(mode), decoded(get_mode("hard_sample", top_p=0.95)))


def test_multiplex_weights_by_hand_and_the_token_drawn_most_often():
    """Tokens 1, 1, 0 of p = .5, .3, .15, .05: n·p is .6 and .5, and 1 is the shadow."""
    drawn = torch.tensor([[0.6, 0.7, 0.2]], dtype=torch.float64)
    expected = {
        "uniform": [1 / 3, 2 / 3],
        "reweighted": [0.5 / 1.1, 0.6 / 1.1],
        "unique": [0.5 / 0.8, 0.3 / 0.8],
    }
    for weights, shares_D in expected.items():
        mode = get_mode("multiplex", top_p=1.0, weights=weights)
        step = take(mode, many(rows=1), drawn)
        torch.testing.assert_close(step.inputs_ND[0, :2], torch.tensor(shares_D))
        assert step.shadow_N.tolist() == [1]
    one_each = torch.tensor([[0.9, 0.6, 0.2]], dtype=torch.float64)
    assert take(get_mode("multiplex", top_p=1.0), many(rows=1), one_each).shadow_N.tolist() == [0]


def test_uniform_multiplex_of_great_width_is_the_mixture():
    mode = get_mode("multiplex", width=60, weights="uniform", top_p=1.0)
    mean = take(mode, many(rows=500)).inputs_ND.mean(0)
    torch.testing.assert_close(mean, WEIGHTS, atol=4 * 0.5 / math.sqrt(30_000), rtol=0)


# ---- Mixture of Inputs ----------------------------------------------------------------------


def test_mixture_of_inputs_without_end_is_hard_sampling_bit_for_bit():
    mode = get_mode("mixture_of_inputs", beta=1e30)
    assert_same(decoded(mode), decoded(get_mode("hard_sample", temperature=0.6, top_p=0.95)))


@pytest.mark.parametrize("beta", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("base", ["support", "vocabulary"])
def test_mixture_of_inputs_in_the_form_of_the_released_code(beta, base):
    seen = seen_of(random_logits(rows=32, vocab=12, scale=2.0))
    options = {"temperature": 1.0, "top_p": 1.0, "support": 0, "entropy_base": base}
    step = take(get_mode("mixture_of_inputs", beta=beta, **options), seen)
    p = seen.logits_NV.double().softmax(-1)
    y = torch.nn.functional.one_hot(step.shadow_N, 12).double()
    h = -(p * p.log()).sum(-1, keepdim=True) / math.log(12)
    expected = h * (p + beta * y) / (1 + beta) + (1 - h) * y
    torch.testing.assert_close(step.inputs_ND.double(), expected, atol=1e-6, rtol=0)


def test_the_drawn_token_belongs_to_the_support_wherever_it_ranks():
    """The last of four tokens, beside a support of two: p over the three, H by the log of two."""
    mode = get_mode("mixture_of_inputs", temperature=1.0, top_p=1.0, support=2)
    step = take(mode, many(rows=1), torch.tensor([0.999], dtype=torch.float64))
    p = torch.tensor([0.5, 0.3, 0.0, 0.05]) / 0.85
    h = min(1.0, float(torch.special.entr(p).sum()) / math.log(2))
    expected = (h * p + (2 - h) * torch.tensor([0, 0, 0, 1])) / 2
    assert step.shadow_N.tolist() == [3]
    torch.testing.assert_close(step.inputs_ND[0], expected)


# ---- COCONUT and the placements -------------------------------------------------------------


def test_coconut_feeds_the_state_that_the_logits_are_made_of():
    lm = tiny_lm()
    for sample in decoded("coconut"):
        logits = lm.model.lm_head(sample.inputs)[:, : lm.vocab]
        assert logits.argmax(-1).tolist() == sample.shadow_ids.tolist()


def test_realigned_states_are_as_long_as_an_embedding_and_keep_their_way_where_the_head_is_e():
    lm = tiny_lm("llama_tied")
    plain, realigned = (
        softeval.generate(lm, PROMPTS, mode, max_cot_tokens=1, keep_inputs=True)
        for mode in ("coconut", get_mode("coconut", realign=True))
    )
    length = lm.embedding.rows(torch.arange(lm.vocab)).norm(dim=-1).mean()
    for [a], [b] in zip(plain, realigned, strict=True):
        state, fed = a.inputs[0], b.inputs[0]
        torch.testing.assert_close(fed.norm(), length)
        torch.testing.assert_close(fed / fed.norm(), state / state.norm(), atol=1e-4, rtol=0)


def test_a_model_without_a_hidden_state_to_feed_is_refused_in_one_line():
    seen = seen_of(random_logits(vocab=12))
    for hidden in (None, torch.zeros(8, 5)):
        with pytest.raises(UserError, match="another checkpoint") as refused:
            take(get_mode("coconut"), Seen(seen.logits_NV, seen.embedding, hidden))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["hidden_noise", "logit_noise"])
def test_a_placement_without_noise_is_soft_greedy(name):
    for sample, plain in zip(
        decoded(MODES[name].greedy(), max_cot_tokens=1),
        decoded("soft_greedy", max_cot_tokens=1),
        strict=True,
    ):
        torch.testing.assert_close(sample.inputs, plain.inputs)


def test_noise_at_the_logits_reaches_the_largest_only_and_has_its_scale():
    seen = seen_of(random_logits(rows=1, vocab=12).expand(4000, -1).contiguous())
    mode = get_mode("top_logit_noise", top_k=3)
    step = take(mode, seen)
    largest = seen.logits_NV[0].topk(3)
    outside = [i for i in range(12) if i not in largest.indices]
    assert (step.inputs_ND[:, outside] == 0).all()
    noise = step.record_NR[:, 1:4] - largest.values
    sigma = 0.33 * float(largest.values.std(correction=0))
    assert float(noise.std()) == pytest.approx(sigma, rel=0.04)
    assert float(step.record_NR[0, 0]) == pytest.approx(sigma, rel=1e-5)


def test_ids_that_the_tokenizer_does_not_know_do_not_count_for_the_noise():
    logits = random_logits(rows=2, vocab=12)
    gaps = torch.cat([logits, torch.full((2, 3), -65504.0)], -1)
    plain, gapped = (take(get_mode("logit_noise"), seen_of(z)) for z in (logits, gaps))
    torch.testing.assert_close(plain.record_NR[:, 0], gapped.record_NR[:, 0])
    assert (gapped.inputs_ND[:, 12:] == 0).all()
