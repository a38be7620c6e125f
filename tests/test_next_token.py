"""Single steps taken again by the token alone: what of the next token is the vector's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from test_replay import LIMITS, PROMPTS, SEED, ended, made, questions
from tiny import tiny_lm

from softeval.decoding.decoder import Decoder
from softeval.decoding.next_token import next_tokens
from softeval.errors import UserError
from softeval.modes import MODES, Seen, get_mode, hard_controls
from softeval.records import StopReason

EVERY = 1_000
LOUD = get_mode("soft_sample", noise_scale=3.0)


def open_ended(cot):
    """The CoT as if the cap had ended it: each of its steps is a thought."""
    return replace(cot, stop_reason=StopReason.LENGTH)


@pytest.mark.parametrize("family", mostly_slow(["llama", "gemma3"], ["llama"]))
@pytest.mark.parametrize("name", ["hard_greedy", "hard_sample"])
def test_a_hard_cot_agrees_by_construction(name, family):
    lm, mode = tiny_lm(family), MODES[name]
    for cot in made(lm, mode).values():
        found = next_tokens(lm, mode, open_ended(cot), SEED, EVERY)
        assert found.agreeing == found.steps == len(cot.shadow_ids)


@pytest.mark.parametrize("family", mostly_slow(["llama", "gemma3"], ["llama"]))
@pytest.mark.parametrize("mode", [LOUD, get_mode("gumbel")], ids=lambda mode: mode.name)
def test_agreement_and_divergence_are_those_of_plain_passes(mode, family):
    """Oracle: whole sequences without a cache, one a step and way."""
    lm = tiny_lm(family)
    for cot in made(lm, mode).values():
        prompt_PD = lm.model.get_input_embeddings()(torch.tensor(cot.prompt_ids))
        fed_LD = torch.cat([prompt_PD, cot.inputs])
        agreeing, kl = 0, []
        for step, shadow in enumerate(cot.shadow_ids):
            before = fed_LD[: len(prompt_PD) + step]
            probs = mode.probs(_seen(lm, before))[0]
            table = lm.model.get_input_embeddings()(torch.arange(lm.vocab))
            fed, token, clean = (
                _seen(lm, torch.cat([before, vector[None]])).logits_NV[0].log_softmax(-1)
                for vector in (cot.inputs[step], table[shadow], probs @ table)
            )
            agreeing += int(fed.argmax() == token.argmax())
            kl.append(float((clean.exp() * (clean - fed)).sum()))
        found = next_tokens(lm, mode, open_ended(cot), SEED, EVERY)
        assert (found.steps, found.agreeing) == (len(cot.shadow_ids), agreeing)
        assert found.kl == pytest.approx(np.mean(kl), rel=1e-3, abs=1e-5) and np.mean(kl) > 1e-4


def _seen(lm, fed_LD):
    logits = lm.model(inputs_embeds=fed_LD[None], use_cache=False).logits[:, -1, : lm.vocab]
    return Seen(logits.float(), lm.embedding)


def test_where_the_vector_matters_the_token_alone_disagrees():
    lm = tiny_lm()
    found = [next_tokens(lm, LOUD, open_ended(c), SEED, EVERY) for c in made(lm, LOUD).values()]
    assert sum(one.agreeing for one in found) < 0.9 * sum(one.steps for one in found)


@pytest.mark.parametrize("name", ["soft_greedy", "soft_thinking", "coconut", "hard_greedy"])
def test_a_mode_that_draws_nothing_is_its_own_unperturbed_step(name):
    lm, mode = tiny_lm(), get_mode(name)
    for cot in made(lm, mode).values():
        assert next_tokens(lm, mode, open_ended(cot), SEED, 3).kl == 0


def test_the_closing_is_not_tried_and_the_choice_is_keyed():
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cot = next(iter(made(lm, mode).values()))
    closed = ended(cot, "12 The final answer is: ", StopReason.ANSWER_PREFIX, lm)
    assert next_tokens(lm, mode, closed, SEED, EVERY).steps == 3  # "1", "2" and the space
    only = ended(cot, "The final answer is: ", StopReason.ANSWER_PREFIX, lm)
    assert next_tokens(lm, mode, only, SEED, EVERY) == (0, 0, None)
    assert next_tokens(lm, mode, cot, SEED, 0) == (0, 0, None)
    loud = open_ended(next(iter(made(lm, LOUD).values())))
    tried = {seed: next_tokens(lm, LOUD, loud, seed, 2) for seed in range(8)}
    assert {one.steps for one in tried.values()} == {2}
    assert len(set(tried.values())) > 1 and next_tokens(lm, LOUD, loud, 3, 2) == tried[3]


def test_logits_that_are_not_finite_are_one_line():
    lm, mode = tiny_lm(), MODES["soft_greedy"]
    cot = open_ended(next(iter(made(lm, mode).values())))
    blown = replace(cot, inputs=torch.full_like(cot.inputs, torch.nan))
    with pytest.raises(UserError, match="question 0: logits after a step of soft_greedy are not f"):
        next_tokens(lm, mode, blown, SEED, 2)


# Controls ------------------------------------------------------------------------------------


def decoded(lm, mode):
    """Shadow tokens, end and answer of each sample."""
    found = Decoder(lm, mode, LIMITS, seed=SEED).run(questions(lm, PROMPTS))
    return {
        g.key: (g.shadow_ids.tolist(), g.stop_reason, g.answer_text, g.entropy.tolist())
        for g in found
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("soft_thinking", {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01}),
        ("soft_sample", {"temperature": 1.0}),
        ("gumbel", {"temperature": 0.7, "top_k": 0, "top_p": 0.8, "min_p": 0.0}),
    ],
)
def test_matched_hard_sampling_is_hard_sampling_at_the_same_settings(name, options):
    """Bit for bit; `top_n`, which hard sampling does not have, is off."""
    lm = tiny_lm()
    mode = get_mode(name, **options)
    mode = replace(mode, top_n=0) if "top_n" in mode.options else mode
    matched, _ = hard_controls(mode)
    assert matched is not None
    assert decoded(lm, matched) == decoded(lm, get_mode("hard_sample", **options))


def test_the_stop_rule_ends_the_same_hard_cot_where_the_cold_stop_counts_to_the_end():
    """Oracle: the running count of cold steps, by hand; the tokens before are the same."""
    lm, patience = tiny_lm(), 3
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "patience": patience}
    entropies = [e for *_, es in decoded(lm, MODES["hard_sample"]).values() for e in es]
    threshold = float(np.median(entropies))
    mode = replace(get_mode("soft_thinking", **options), top_n=0, entropy_threshold=threshold)
    matched, stopped = hard_controls(mode)
    whole, cut = decoded(lm, matched), decoded(lm, stopped)
    ends = 0
    for key, (ids, reason, _, entropy_T) in whole.items():
        counts = np.array([0])
        for entropy in entropy_T:
            counts = np.append(counts, (counts[-1] + 1) * (entropy < threshold))
        at = np.flatnonzero(counts[1:] >= patience)
        fired = len(at) > 0 and not (at[0] == len(ids) - 1 and reason is not StopReason.LENGTH)
        kept = ids[: at[0]] if fired else ids
        assert cut[key][0] == kept
        assert (cut[key][1] is StopReason.MODE) == fired
        ends += fired
    assert ends > 0


def test_which_modes_have_which_control():
    for name, mode in MODES.items():
        matched, stopped = hard_controls(mode)
        assert (matched is None) == mode.feeds_tokens, name
        assert (stopped is not None) == (name == "soft_thinking"), name
    assert hard_controls(get_mode("soft_thinking", entropy_threshold=0.0))[1] is None
