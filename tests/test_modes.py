"""Modes against their definitions: limits, one-hot identity, distributions, log-probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_lm

from softeval.errors import UserError
from softeval.modes import (
    ALL,
    MODES,
    HardMode,
    NoiseNorm,
    NoisyMixtureMode,
    Randomness,
    Seen,
    Taken,
    get_mode,
    invert_cdf,
    select_modes,
)


def take_step(mode, logits, lm, drawn=None, state=None):
    seen = Seen(logits, lm.embedding)
    return mode.step(seen, mode.probs(seen), drawn, state)


def random_logits(rows: int = 8, vocab: int = 99, seed: int = 0, scale: float = 3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def test_the_six_modes_are_those_of_the_paper():
    table = {
        name: (
            MODES[name].temperature,
            MODES[name].options.get("noise_scale", 0.0),
            MODES[name].is_greedy,
        )
        for name in ALL
    }
    assert table == {
        "hard_greedy": (0.0, 0.0, True),
        "hard_sample": (1.0, 0.0, False),
        "soft_greedy": (0.5, 0.0, True),
        "soft_sample": (0.5, 0.33, False),
        "fuzzy_greedy": (1e-4, 0.0, True),
        "fuzzy_sample": (1e-4, 0.33, False),
    }


def test_a_mode_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        MODES["soft_sample"].temperature = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_one_hot_mixture_is_bit_for_bit_what_input_ids_give(family):
    lm = tiny_lm(family)
    ids = torch.arange(lm.vocab)
    hot = torch.nn.functional.one_hot(ids, lm.vocab).float()
    mixed = lm.embedding.mix(hot).to(lm.dtype)
    assert torch.equal(mixed, lm.embedding.rows(ids))
    with torch.inference_mode():
        by_ids = lm.model(input_ids=ids[None, :40]).logits
        by_mixture = lm.model(inputs_embeds=mixed[None, :40]).logits
    assert torch.equal(by_ids, by_mixture)


@pytest.mark.parametrize("family", ["llama", "gemma", "gemma3", "gpt2"])
def test_a_one_hot_mixture_is_exact_in_bfloat16(family):
    import copy

    from softeval.model.embedding import InputEmbedding

    lm = tiny_lm(family)
    module = copy.deepcopy(lm.model.get_input_embeddings()).to(torch.bfloat16)
    embedding = InputEmbedding(module, lm.vocab)
    ids = torch.arange(lm.vocab)
    hot = torch.nn.functional.one_hot(ids, lm.vocab).float()
    assert torch.equal(embedding.mix(hot).to(torch.bfloat16), embedding.rows(ids))


def test_padding_rows_of_the_embedding_never_enter_a_mixture():
    lm = tiny_lm()
    assert lm.vocab == len(lm.tokenizer) < lm.model.config.vocab_size
    assert lm.logits(torch.zeros(1, lm.model.config.vocab_size)).shape[-1] == lm.vocab


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sigma_is_gamma_times_the_rms_of_what_is_fed(family):
    lm = tiny_lm(family)
    fed = lm.embedding.rows(torch.arange(lm.vocab)).double()
    element = 0.33 * fed.square().mean().sqrt().item()
    vector = 0.33 * fed.norm(dim=-1).square().mean().sqrt().item()
    assert MODES["soft_sample"].sigma(lm.embedding) == pytest.approx(element, rel=1e-6)
    literal = get_mode("soft_sample", noise_norm="vector")
    assert literal.sigma(lm.embedding) == pytest.approx(vector, rel=1e-6)
    assert vector == pytest.approx(element * math.sqrt(lm.embedding.width), rel=1e-9)


def test_a_noise_vector_is_about_gamma_embeddings_long():
    lm = tiny_lm()
    mode = MODES["soft_sample"]
    noise = torch.randn(4000, lm.embedding.width, generator=torch.Generator().manual_seed(2))
    length = (mode.sigma(lm.embedding) * noise).norm(dim=-1).square().mean().sqrt()
    typical = lm.embedding.rms * math.sqrt(lm.embedding.width)
    deviation = 1 / math.sqrt(2 * noise.numel())  # of the root mean square of so many normals
    assert float(length / typical) == pytest.approx(0.33, rel=5 * deviation)


def test_soft_at_vanishing_temperature_is_hard_greedy():
    lm = tiny_lm()
    logits = random_logits(vocab=lm.vocab)
    hard = MODES["hard_greedy"]
    expected = take_step(hard, logits, lm)
    for temperature in (0.0, 1e-6):
        soft = get_mode("soft_greedy", temperature=temperature)
        step = take_step(soft, logits, lm)
        assert torch.equal(step.inputs_ND, expected.inputs_ND)
        assert torch.equal(step.shadow_N, expected.shadow_N)


@pytest.mark.parametrize("kind", ["soft", "fuzzy"])
def test_without_noise_sample_is_greedy(kind):
    silent = get_mode(f"{kind}_sample", noise_scale=0.0)
    assert silent.is_greedy
    lm = tiny_lm()
    logits = random_logits(vocab=lm.vocab)
    greedy = MODES[f"{kind}_greedy"]
    a = take_step(silent, logits, lm)
    b = take_step(greedy, logits, lm)
    assert torch.equal(a.inputs_ND, b.inputs_ND)


def test_mixture_is_the_expectation_of_embeddings():
    lm = tiny_lm("gemma2")
    logits = random_logits(vocab=lm.vocab)
    mode = MODES["soft_greedy"]
    weights = (logits.double() / 0.5).softmax(-1)
    expected = weights @ lm.embedding.rows(torch.arange(lm.vocab)).double()
    got = take_step(mode, logits, lm).inputs_ND
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), min_size=2, max_size=9).filter(any),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_inverse_cdf_never_draws_what_has_no_probability(weights, uniform):
    probs = torch.tensor([weights]) / sum(weights)
    drawn = int(invert_cdf(probs, torch.tensor([uniform], dtype=torch.float64)))
    assert weights[drawn] > 0


@pytest.mark.parametrize("vocab", [3, 511, 512, 513, 1024, 5000])
def test_inverse_cdf_in_blocks_equals_one_long_sum(vocab):
    rng = np.random.default_rng(vocab)
    probs = torch.softmax(torch.from_numpy(rng.normal(0, 4, (64, vocab)).astype(np.float32)), -1)
    probs[::3, : vocab // 2] = 0.0
    uniforms = torch.from_numpy(rng.random(64))
    cdf = probs.double().cumsum(-1)
    expected = (cdf <= uniforms[:, None] * cdf[:, -1:]).sum(-1)
    assert invert_cdf(probs, uniforms).tolist() == expected.tolist()
    almost_one = torch.full_like(uniforms, 1 - 2**-53)
    assert (probs.gather(1, invert_cdf(probs, almost_one)[:, None]) > 0).all()
    ends = invert_cdf(probs, torch.zeros_like(uniforms))
    assert ends.tolist() == [int((row > 0).nonzero()[0]) for row in probs]


def test_hard_sampling_draws_from_the_distribution():
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.15, 0.05]])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(40_000))
    drawn = invert_cdf(probs.expand(len(uniforms), -1), uniforms)
    share = torch.bincount(drawn, minlength=5) / len(uniforms)
    torch.testing.assert_close(share, probs[0], atol=4 * 0.5 / math.sqrt(40_000), rtol=0)


def test_hard_log_prob_is_that_of_the_sampling_temperature():
    lm = tiny_lm()
    logits = random_logits(vocab=lm.vocab)
    ids = torch.arange(8)
    for temperature in (1.0, 0.7):
        mode = get_mode("hard_sample", temperature=temperature)
        expected = torch.log_softmax(logits.double() / temperature, -1)[torch.arange(8), ids]
        got = mode.log_prob(Seen(logits, lm.embedding), Taken(None, ids))
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_gaussian_log_prob_against_scipy():
    from scipy.stats import multivariate_normal

    lm = tiny_lm()
    mode = MODES["soft_sample"]
    logits = random_logits(rows=2, vocab=lm.vocab)
    noise = torch.randn(2, lm.embedding.width)
    fed = take_step(mode, logits, lm, noise).inputs_ND
    got = mode.log_prob(Seen(logits, lm.embedding), Taken(fed, torch.zeros(2).long()))
    means = lm.embedding.mix(mode.probs(Seen(logits, lm.embedding))).numpy().astype(float)
    sigma = mode.sigma(lm.embedding)
    width = lm.embedding.width
    peak = -width * math.log(sigma * math.sqrt(2 * math.pi))
    for row in range(2):
        full = multivariate_normal.logpdf(
            fed[row].numpy().astype(float), means[row], np.full(width, sigma**2)
        )
        assert float(got[row]) == pytest.approx(full - peak, rel=1e-3)


def test_chi_square_of_the_noise_is_one():
    lm = tiny_lm()
    mode = MODES["soft_sample"]
    logits = random_logits(rows=512, vocab=lm.vocab)
    width = lm.embedding.width
    noise = torch.randn(512, width, generator=torch.Generator().manual_seed(1))
    fed = take_step(mode, logits, lm, noise).inputs_ND
    minus_two_log = -2 * mode.log_prob(
        Seen(logits, lm.embedding), Taken(fed, torch.zeros(512).long())
    )
    assert float(minus_two_log.mean()) / width == pytest.approx(
        1, abs=3 * math.sqrt(2 / (width * 512))
    )


def test_overrides_reach_the_modes_that_have_them():
    modes = {m.name: m for m in select_modes(["all"], {"noise_scale": 1.0, "noise_norm": "vector"})}
    assert modes["soft_sample"] == NoisyMixtureMode(
        "soft_sample", "soft", 0.5, 1.0, NoiseNorm.VECTOR
    )
    assert modes["soft_greedy"] == MODES["soft_greedy"]
    assert modes["hard_sample"] == MODES["hard_sample"]
    (warm,) = select_modes(["hard-sample"], {"temperature": 0.6})
    assert warm == HardMode("hard_sample", "hard", 0.6)
    assert get_mode("hard_sample", temperature=0.0).randomness is Randomness.NONE


@pytest.mark.parametrize(
    ("names", "options", "part"),
    [
        (["sofr"], {}, "unknown mode 'sofr'"),
        (["all"], {"temperature": 0.5}, "one kind of mode"),
        (["hard_greedy"], {"temperature": 0.5}, "hard_greedy is greedy"),
        (["hard_sample"], {"noise_scale": 0.5}, "hard_sample has no option 'noise_scale'"),
        (["soft_greedy"], {"noise_scale": 0.5}, "soft_greedy has no option 'noise_scale'"),
        (["soft_sample"], {"noise_scale": -1.0}, "--noise-scale -1.0"),
        (["soft_sample"], {"temperature": float("nan")}, "--temperature nan"),
        (["hard_sample"], {"temperature": 1e-40}, "--temperature 1e-40: give 0 or at least 1e-30"),
        (["gumbel"], {"gumbel_temperature": 1e-40}, "give 0 or at least 1e-30"),
        (["soft_sample"], {"noise_norm": "matrix"}, "choose from element, vector"),
    ],
)
def test_impossible_modes_are_refused_with_a_remedy(names, options, part):
    with pytest.raises(UserError, match=part.replace("(", r"\(")):
        select_modes(names, options)


def test_greedy_and_noiseless_modes_have_no_log_prob():
    lm = tiny_lm()
    logits = random_logits(vocab=lm.vocab)
    for name in ("hard_greedy", "soft_greedy"):
        with pytest.raises(UserError):
            MODES[name].log_prob(
                Seen(logits, lm.embedding), Taken(torch.zeros(8, 32), torch.zeros(8).long())
            )
