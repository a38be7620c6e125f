"""CoTs fed once more: the unchanged one is the recorded one, and each change changes one thing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from tiny import tiny_lm

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.replay import CHANGES, Surroundings, closing
from softeval.model.stopping import Limits, stopper_of
from softeval.modes import MODES, get_mode
from softeval.protocol import PAPER
from softeval.records import Generation, SampleKey, StopReason

LIMITS = Limits(16, 4)
PROMPTS = ("What is 2+2?", "Tell me a story")
SEED = 3
KINDS = ["hard_sample", "soft_sample", "soft_thinking", "coconut"]


def questions(lm, prompts=PROMPTS) -> list[Question]:
    ids = [tuple(lm.vocabulary.encode(text)) for text in prompts]
    return [Question("t", doc_id, one, (0, 1)) for doc_id, one in enumerate(ids)]


def made(lm, mode, prompts=PROMPTS) -> dict[SampleKey, Generation]:
    decoder = Decoder(lm, mode, LIMITS, seed=SEED, keep_inputs=True)
    return {g.key: g for g in decoder.run(questions(lm, prompts))}


def replayed(lm, mode, cots, name, prompts=PROMPTS, batch_size=None) -> dict[SampleKey, Generation]:
    around = Surroundings(lm, mode, SEED, list(cots.values()))
    changed = {key: CHANGES[name](cot, around) for key, cot in cots.items()}
    decoder = Decoder(lm, mode, LIMITS, seed=SEED, given=changed, batch_size=batch_size)
    return {g.key: g for g in decoder.run(questions(lm, prompts))}


def answers(found: dict[SampleKey, Generation]) -> dict[SampleKey, list[int]]:
    return {key: g.answer_ids.tolist() for key, g in found.items()}


def ended(cot: Generation, text: str, reason: StopReason, lm) -> Generation:
    """The CoT as if it had other shadow tokens, as many vectors, and ended so."""
    ids = np.array(lm.tokenizer.encode(text, add_special_tokens=False))
    inputs = torch.arange(len(ids) * lm.embedding.width, dtype=torch.float32)
    return replace(
        cot, shadow_ids=ids, inputs=inputs.view(len(ids), -1), stop_reason=reason, cot_text=text
    )


@pytest.mark.parametrize("family", mostly_slow(["llama", "gemma3"], ["gemma3"]))
@pytest.mark.parametrize("mode", KINDS)
def test_unchanged_gives_the_same_answers_whatever_the_batch(family, mode):
    lm, mode = tiny_lm(family), get_mode(mode)
    cots = made(lm, mode)
    for size in (None, 3):
        again = replayed(lm, mode, cots, "unchanged", batch_size=size)
        assert answers(again) == answers(cots)
        assert {k: g.prefill_text for k, g in again.items()} == {
            k: g.prefill_text for k, g in cots.items()
        }


def test_vectors_are_fed_and_not_their_tokens():
    """With the vectors of zeros the answers are others; a replay that fed tokens would not see it."""
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cots = made(lm, mode)
    blank = {k: replace(g, inputs=torch.zeros_like(g.inputs)) for k, g in cots.items()}
    assert answers(replayed(lm, mode, blank, "unchanged")) != answers(cots)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_top1_of_a_hard_cot_is_the_cot_itself_and_of_a_soft_one_its_tokens(family):
    lm = tiny_lm(family)
    for name in ("hard_greedy", "hard_sample", "soft_sample"):
        mode = MODES[name]
        for cot in made(lm, mode).values():
            snapped = CHANGES["top1"](cot, Surroundings(lm, mode, SEED))
            assert torch.equal(snapped.inputs, lm.embedding.rows(torch.tensor(cot.shadow_ids)))
            assert torch.equal(snapped.inputs, cot.inputs) == mode.feeds_tokens


def test_noise_only_is_what_was_fed_less_the_mixture():
    """Held against softmax(z/τ)·E of a plain pass over all that was fed."""
    lm, mode = tiny_lm(), MODES["soft_sample"]
    for cot in made(lm, mode).values():
        around = Surroundings(lm, mode, SEED)
        noise_TD = CHANGES["noise_only"](replace(cot, stop_reason=StopReason.LENGTH), around).inputs
        prompt_PD = lm.model.get_input_embeddings()(torch.tensor(cot.prompt_ids))
        fed = torch.cat([prompt_PD, cot.inputs])[None, :-1]
        logits = lm.model(inputs_embeds=fed).logits[0, len(prompt_PD) - 1 :, : lm.vocab]
        mixed_TD = (logits / 0.5).softmax(-1) @ lm.model.get_input_embeddings().weight[: lm.vocab]
        torch.testing.assert_close(noise_TD, cot.inputs - mixed_TD, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hard_sample", "soft_greedy", "soft_thinking", "gumbel"])
def test_modes_that_feed_no_noise_have_no_noise_only(name):
    lm, mode = tiny_lm(), get_mode(name)
    cot = next(iter(made(lm, mode).values()))
    assert CHANGES["noise_only"](cot, Surroundings(lm, mode, SEED)) is None


def test_shuffling_keeps_every_vector_with_its_token_and_the_closing_in_place():
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cot = next(iter(made(lm, mode).values()))
    cot = ended(cot, "one and two. The final answer is: ", StopReason.ANSWER_PREFIX, lm)
    around = Surroundings(lm, mode, SEED)
    phrase = len(lm.tokenizer.encode("The final answer is: "))
    assert closing(cot, stopper_of(lm.tokenizer, PAPER)) == phrase == 2
    moved = CHANGES["shuffled"](cot, around)
    pairs = [
        sorted(zip(g.shadow_ids.tolist(), g.inputs.tolist(), strict=True)) for g in (cot, moved)
    ]
    assert pairs[0] == pairs[1]
    assert not torch.equal(moved.inputs[:-phrase], cot.inputs[:-phrase])
    assert torch.equal(moved.inputs[-phrase:], cot.inputs[-phrase:])
    again = CHANGES["shuffled"](cot, around)
    assert torch.equal(again.inputs, moved.inputs)
    other = CHANGES["shuffled"](cot, replace(around, seed=SEED + 1))
    assert not torch.equal(other.inputs, moved.inputs)


def test_an_end_token_closes_a_cot_and_the_cap_does_not():
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cot = next(iter(made(lm, mode).values()))
    wanted = {StopReason.EOS: 1, StopReason.LENGTH: 0, StopReason.MODE: 0}
    assert {
        r: closing(ended(cot, "a b", r, lm), stopper_of(lm.tokenizer, PAPER)) for r in wanted
    } == wanted


def test_shuffling_a_cot_of_one_step_changes_nothing():
    lm, mode = tiny_lm(), MODES["soft_sample"]
    cots = {}
    for key, cot in made(lm, mode).items():
        cots[key] = replace(cot, shadow_ids=cot.shadow_ids[:1], inputs=cot.inputs[:1])
    assert answers(replayed(lm, mode, cots, "shuffled")) == answers(
        replayed(lm, mode, cots, "unchanged")
    )


def test_a_donor_of_the_same_question_changes_nothing_and_of_another_gives_its_vectors():
    lm, mode = tiny_lm(), MODES["soft_greedy"]
    same = (PROMPTS[0], PROMPTS[0])
    cots = made(lm, mode, same)
    assert answers(replayed(lm, mode, cots, "donor", same)) == answers(cots)
    cots = made(lm, mode)
    around = Surroundings(lm, mode, SEED, list(cots.values()))
    for key, cot in cots.items():
        other = cots[SampleKey("t", 1 - key.doc_id, key.sample)]
        given = CHANGES["donor"](cot, around)
        assert torch.equal(given.inputs, other.inputs) and given.stop_reason is other.stop_reason
        assert given.key == key and given.prompt_ids.tolist() == cot.prompt_ids.tolist()
    assert CHANGES["donor"](cot, replace(around, others=[cot])) is None


@pytest.mark.parametrize(("name", "kept"), [("cut_25", 3), ("cut_50", 6), ("cut_75", 9)])
def test_a_cut_keeps_a_prefix_and_goes_on_as_at_the_cap(name, kept):
    """Oracle: the same samples under a cap of so many tokens."""
    lm, mode = tiny_lm(), MODES["soft_sample"]
    limits = Limits(12, 4)
    whole = Decoder(lm, mode, limits, seed=SEED, keep_inputs=True).run(questions(lm))
    cots = {g.key: g for g in whole if g.stop_reason is StopReason.LENGTH}
    assert cots
    around = Surroundings(lm, mode, SEED)
    for cot in cots.values():
        assert torch.equal(CHANGES[name](cot, around).inputs, cot.inputs[:kept])
    capped = {g.key: g for g in Decoder(lm, mode, Limits(kept, 4), seed=SEED).run(questions(lm))}
    cut = replayed(lm, mode, made_only(lm, mode, cots), name)
    assert {k: answers(cut)[k] for k in cots} == {k: answers(capped)[k] for k in cots}


def made_only(lm, mode, cots):
    """Those CoTs among all, so that every sample asked for has one."""
    return {**made(lm, mode), **cots}


def test_a_cut_never_ends_within_the_answer_prefix():
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cot = next(iter(made(lm, mode).values()))
    cot = ended(cot, "12+34=46 The final answer is: ", StopReason.ANSWER_PREFIX, lm)
    cut = CHANGES["cut_75"](cot, Surroundings(lm, mode, SEED))
    assert stopper_of(lm.tokenizer, PAPER).decode(cut.shadow_ids.tolist()) == "12+34="
    assert len(cut.inputs) == 6 and cut.stop_reason is StopReason.LENGTH


def test_a_cut_of_one_step_is_the_step():
    lm, mode = tiny_lm(), MODES["hard_greedy"]
    cot = next(iter(made(lm, mode).values()))
    one = replace(
        cot, shadow_ids=cot.shadow_ids[:1], inputs=cot.inputs[:1], stop_reason=StopReason.EOS
    )
    cut = CHANGES["cut_25"](one, Surroundings(lm, mode, SEED))
    assert torch.equal(cut.inputs, one.inputs) and cut.stop_reason is StopReason.EOS
