"""The decoder against transformers' own generate, plain recomputation, and itself in other batches."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from tiny import VOCAB, tiny_lm, tiny_tokenizer
from transformers.cache_utils import CacheLayerMixin

from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.generate import generate
from softeval.errors import UserError
from softeval.model.language_model import wrap_model
from softeval.model.stopping import Limits, stopper_of
from softeval.modes import ALL, MODES, get_mode
from softeval.protocol import PAPER
from softeval.records import AnswerStop, Generation, StopReason

PROMPTS = ["What is 2+2?", "Tell me: a long story about a cat that", "x", "Hello there"]
KINDS = ["llama", "gemma3", "gpt2", "mixtral"]
"""Rotary and learned positions, a window, experts; the walk through every architecture is slow."""


def by_generate(lm, prompt: str, tokens: int) -> list[int]:
    """transformers' greedy continuation, with padding ids masked as the decoder masks them."""
    ids = torch.tensor([lm.tokenizer.encode(prompt)])
    banned = [[id] for id in range(lm.vocab, lm.model.config.vocab_size)]
    out = lm.model.generate(
        ids, do_sample=False, max_new_tokens=tokens, bad_words_ids=banned, pad_token_id=0
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", mostly_slow(KINDS, ["gemma3"]))
def test_hard_greedy_is_generate_token_for_token(family):
    lm = tiny_lm(family)
    samples = generate(lm, PROMPTS, "hard_greedy", max_cot_tokens=20, max_answer_tokens=4)
    for prompt, (sample,) in zip(PROMPTS, samples, strict=True):
        expected = by_generate(lm, prompt, 20)
        assert sample.shadow_ids.tolist() == expected[: len(sample.shadow_ids)]
        if sample.stop_reason is not StopReason.ANSWER_PREFIX:
            assert len(sample.shadow_ids) == len(expected)


@pytest.mark.parametrize("family", mostly_slow(KINDS, ["gemma3", "gpt2"]))
def test_answer_after_the_prefill_is_generate_token_for_token(family):
    lm = tiny_lm(family)
    ((sample,),) = generate(lm, PROMPTS[:1], max_cot_tokens=12, max_answer_tokens=6)
    before = [*sample.prompt_ids, *sample.shadow_ids, *sample.prefill_ids]
    banned = [[id] for id in range(lm.vocab, lm.model.config.vocab_size)]
    out = lm.model.generate(
        torch.tensor([before]), do_sample=False, max_new_tokens=6, bad_words_ids=banned
    )
    answer = sample.answer_ids.tolist()
    assert answer == out[0, len(before) :][: len(answer)].tolist()


def identity(sample: Generation) -> tuple:
    assert sample.inputs is not None
    return (
        sample.key,
        sample.text,
        sample.answer,
        sample.shadow_ids.tobytes(),
        sample.answer_ids.tobytes(),
        sample.entropy.tobytes(),
        sample.mode_entropy.tobytes(),
        sample.inputs.numpy().tobytes(),
    )


@pytest.mark.parametrize("mode", mostly_slow(MODES, ["soft_sample"]))
def test_a_sample_is_bit_for_bit_the_same_in_any_batch_and_however_often_it_is_looked_at(mode):
    lm = tiny_lm("llama")
    questions = [
        Question("t", index, tuple(lm.tokenizer.encode(p)), (0, 4))
        for index, p in enumerate(PROMPTS[1:])
    ]
    runs = []
    for size, order, look_every in ((1, 1, 1), (4, -1, 3), (64, -1, 8)):
        decoder = Decoder(
            lm,
            MODES[mode],
            Limits(9, 2),
            batch_size=size,
            keep_inputs=True,
            look_every=look_every,
        )
        found = [identity(g) for g in decoder.run(questions[::order])]
        runs.append(sorted(found, key=lambda item: (item[0].doc_id, item[0].sample)))
    assert len(runs[0]) == 6
    for one, other in pairwise(runs):
        assert one == other


WAITING = [
    get_mode("soft_thinking", entropy_threshold=9.0, patience=5),
    get_mode("coconut", latents=4),
    get_mode("hard_sample"),
]


@pytest.mark.parametrize("mode", WAITING, ids=lambda mode: mode.name)
def test_a_row_that_waits_for_the_host_stays_as_it_is(mode, monkeypatch):
    """Where every token is one that could end something, all rows wait after every step."""
    lm = tiny_lm("llama")
    for name in ("may_end_cot", "may_end_answer"):
        stopper = stopper_of(lm.tokenizer, PAPER)
        monkeypatch.setattr(stopper, name, frozenset(range(lm.vocab)))
    question = Question("t", 0, tuple(lm.tokenizer.encode(PROMPTS[0])), (0, 1))
    runs = []
    for look_every in (1, 3):
        decoder = Decoder(lm, mode, Limits(8, 3), keep_inputs=True, look_every=look_every)
        runs.append([identity(g) for g in decoder.run([question])])
    assert runs[0] == runs[1]


def test_a_row_that_moves_takes_all_of_itself_along():
    """Eighteen rows of two tiles; as some end, the last go on in the first tile, still thinking."""
    lm = replace(tiny_lm("llama"), eos_ids=frozenset(range(2, 60, 8)))  # early ends for some
    cold = get_mode("soft_thinking", entropy_threshold=9.0, patience=40)
    questions = [Question("t", i, (5 + i, 40 - i), (0,)) for i in (*range(9, 18), *range(9))]
    runs = []
    for size in (16, 18):
        how: dict[str, Any] = {"batch_size": size, "answer_temperature": 1.0}
        decoder = Decoder(lm, cold, Limits(44, 1), keep_inputs=True, **how)
        given = {g.key: g for g in decoder.run(questions)}
        again = Decoder(lm, MODES["hard_greedy"], Limits(44, 1), given=given, **how)
        for found in again.run(questions):
            assert np.array_equal(found.answer_ids, given[found.key].answer_ids)
        runs.append({key: identity(found) for key, found in given.items()})
    assert runs[0] == runs[1]
    lengths = sorted(len(g.shadow_ids) for g in given.values())
    assert lengths[2] < 8 and lengths[-1] == 39  # the 40th cold step is not taken


def test_keys_and_values_are_gone_once_the_samples_are_there():
    """Without waiting for Python's search for circles: a training pass wants their memory."""
    lm = tiny_lm("llama")
    gc.collect()
    gc.disable()
    try:
        generate(lm, PROMPTS, "soft_sample", num_samples=2, max_cot_tokens=6, max_answer_tokens=2)
        left = [o for o in gc.get_objects() if isinstance(o, CacheLayerMixin)]
    finally:
        gc.enable()
    assert not left


def test_a_subset_of_the_samples_is_the_same_samples():
    lm = tiny_lm("gemma3")
    ids = tuple(lm.tokenizer.encode(PROMPTS[0]))

    def decode(samples):
        decoder = Decoder(lm, MODES["soft_sample"], Limits(24, 4), keep_inputs=True)
        return {g.key: identity(g) for g in decoder.run([Question("t", 3, ids, samples)])}

    everything, some = decode((0, 1, 2, 3, 4)), decode((3, 1))
    assert set(some) < set(everything)
    assert all(everything[key] == value for key, value in some.items())


def test_samples_differ_by_seed_task_question_and_sample():
    lm = tiny_lm()
    options = {"mode": "hard_sample", "max_cot_tokens": 12, "max_answer_tokens": 4}
    first, second = generate(lm, [PROMPTS[0]] * 2, num_samples=2, **options)
    other_seed = generate(lm, [PROMPTS[0]], seed=1, **options)[0][0]
    other_task = generate(lm, [PROMPTS[0]], task="u", **options)[0][0]
    texts = [first[0].text, first[1].text, second[0].text, other_seed.text, other_task.text]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("family", mostly_slow(KINDS, ["gemma3"]))
@pytest.mark.parametrize("mode", ["soft_sample", "fuzzy_greedy", "hard_sample"])
def test_recorded_inputs_replayed_without_a_cache_give_the_same_choices(family, mode):
    """Feed what was recorded through one plain forward pass: logits and entropies must agree."""
    lm = tiny_lm(family)
    ((sample,),) = generate(
        lm, PROMPTS[:1], mode, max_cot_tokens=12, max_answer_tokens=5, keep_inputs=True
    )
    assert sample.inputs is not None
    ids = lambda array: lm.embedding.rows(torch.as_tensor(array))
    parts = [
        ids(sample.prompt_ids),
        sample.inputs,
        ids(sample.prefill_ids),
        ids(sample.answer_ids),
    ]
    with torch.inference_mode():
        logits = lm.logits(lm.model(inputs_embeds=torch.cat(parts)[None]).logits[0])
    prompt, cot = len(sample.prompt_ids), len(sample.shadow_ids)
    at_cot = logits[prompt - 1 : prompt + cot - 1]
    entropy = torch.distributions.Categorical(logits=at_cot).entropy()
    np.testing.assert_allclose(sample.entropy, entropy.numpy(), rtol=1e-3, atol=1e-4)
    if mode != "hard_sample":
        assert sample.shadow_ids.tolist() == at_cot.argmax(-1).tolist()
    start = prompt + cot + len(sample.prefill_ids)
    at_answer = logits[start - 1 : start - 1 + len(sample.answer_ids)]
    assert sample.answer_ids.tolist() == at_answer.argmax(-1).tolist()
    if mode == "soft_sample":
        noise = sample.inputs - lm.embedding.mix((at_cot / 0.5).softmax(-1))
        z = noise / MODES["soft_sample"].sigma(lm.embedding)
        assert float(z.square().mean()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("family", mostly_slow(KINDS, ["gemma3"]))
def test_fuzzy_greedy_shadows_are_hard_greedy_tokens(family):
    """Wherever the top two logits differ by much more than the fuzzy temperature."""
    lm = tiny_lm(family)
    options = {"max_cot_tokens": 12, "max_answer_tokens": 4, "record_top": 2}
    fuzzy = generate(lm, PROMPTS, "fuzzy_greedy", **options)
    hard = generate(lm, PROMPTS, "hard_greedy", **options)
    for (a,), (b,) in zip(fuzzy, hard, strict=True):
        blurred = np.flatnonzero(a.top_probs[:, 0] < 1 - 1e-6)
        clear = int(blurred[0]) if len(blurred) else len(a.shadow_ids)
        assert a.shadow_ids[:clear].tolist() == b.shadow_ids[:clear].tolist()
        assert clear > 0


@pytest.mark.parametrize("kind", mostly_slow(["soft", "fuzzy"], ["soft"]))
def test_sampling_with_no_noise_equals_greedy(kind):
    lm = tiny_lm("qwen2")
    silent = get_mode(f"{kind}_sample", noise_scale=0.0)
    options = {"max_cot_tokens": 12, "max_answer_tokens": 4, "keep_inputs": True}
    a = generate(lm, PROMPTS, silent, **options)
    b = generate(lm, PROMPTS, f"{kind}_greedy", **options)
    assert [identity(x[0]) for x in a] == [identity(x[0]) for x in b]


@pytest.mark.parametrize("mode", mostly_slow(["hard_sample", "soft_sample"], ["hard_sample"]))
def test_every_mode_parameter_changes_the_result(mode):
    lm = tiny_lm()
    options = {"max_cot_tokens": 12, "max_answer_tokens": 4}
    overrides = [{}, {"temperature": 2.5}]
    if mode == "soft_sample":
        overrides += [{"noise_scale": 1.5}, {"noise_norm": "vector"}]
    texts = [
        generate(lm, PROMPTS[:1], get_mode(mode, **o), **options)[0][0].text for o in overrides
    ]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("logits_dtype", ["bfloat16"])
def test_rounded_logits_tie_and_change_a_fuzzy_cot(logits_dtype):
    options = {"max_cot_tokens": 12, "max_answer_tokens": 4, "record_top": 2}
    plain = generate(tiny_lm(), PROMPTS, "fuzzy_greedy", **options)
    rounded = generate(tiny_lm(logits_dtype=logits_dtype), PROMPTS, "fuzzy_greedy", **options)
    assert any(
        a.entropy.tobytes() != b.entropy.tobytes()
        for (a,), (b,) in zip(plain, rounded, strict=True)
    )


def test_float32_head_of_a_bfloat16_model_sharpens_its_logits():
    lm = tiny_lm()
    model = copy.deepcopy(lm.model).to(torch.bfloat16)
    rounded = wrap_model(copy.deepcopy(model), lm.tokenizer)
    sharp = wrap_model(copy.deepcopy(model), lm.tokenizer, logits_dtype="float32")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        a = rounded.logits(rounded.model(input_ids=ids).logits)
        b = sharp.logits(sharp.model(input_ids=ids).logits)
    assert a.dtype == torch.bfloat16
    assert b.dtype == torch.float32
    # The half-precision product is rounded to 8 bits once or, on some processors, also on its way.
    torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=2**-10)
    assert not torch.equal(b, a.float())


def test_the_generation_config_never_leaks():
    lm = tiny_lm()
    leaky = copy.deepcopy(lm.model)
    leaky.generation_config.repetition_penalty = 5.0
    leaky.generation_config.temperature = 0.1
    leaky.generation_config.top_k = 1
    other = wrap_model(leaky, lm.tokenizer)
    options = {"mode": "hard_sample", "max_cot_tokens": 12, "max_answer_tokens": 4}
    assert generate(lm, PROMPTS, **options)[0][0].text == (
        generate(other, PROMPTS, **options)[0][0].text
    )


def test_every_end_of_sequence_id_ends_the_cot():
    lm = tiny_lm()
    ((plain,),) = generate(lm, PROMPTS[:1], max_cot_tokens=12, max_answer_tokens=4)
    assert plain.stop_reason is StopReason.LENGTH
    ending = copy.deepcopy(lm.model)
    end = int(plain.shadow_ids[5])
    ending.generation_config.eos_token_id = [2, end]
    other = wrap_model(ending, lm.tokenizer)
    ((sample,),) = generate(other, PROMPTS[:1], max_cot_tokens=12, max_answer_tokens=4)
    first = plain.shadow_ids.tolist().index(end)
    assert sample.stop_reason is StopReason.EOS
    assert sample.shadow_ids.tolist() == plain.shadow_ids[: first + 1].tolist()
    assert sample.prefill_text.endswith("The final answer is: \\boxed{")


def test_caps_are_exact_and_prefill_is_not_counted():
    lm = tiny_lm()
    for cot, answer in ((1, 1), (7, 3), (30, 5)):
        ((sample,),) = generate(lm, PROMPTS[:1], max_cot_tokens=cot, max_answer_tokens=answer)
        assert len(sample.shadow_ids) == cot
        assert len(sample.entropy) == len(sample.top1_prob) == cot
        if sample.answer_stop is AnswerStop.LENGTH:
            assert len(sample.answer_ids) == answer
        assert lm.tokenizer.decode(sample.prefill_ids) == sample.prefill_text


def test_a_question_beyond_the_context_is_named():
    lm = tiny_lm()
    with pytest.raises(
        UserError, match=r"prompt question 1 has 200 prompt tokens.*--max-cot-tokens to at most 48"
    ):
        generate(lm, ["short", "y" * 200], max_cot_tokens=60, max_answer_tokens=4)


def test_answers_sampled_for_training_differ_and_are_keyed():
    lm = tiny_lm()
    ids = tuple(lm.tokenizer.encode(PROMPTS[0]))

    def answers(temperature):
        decoder = Decoder(
            lm, MODES["soft_greedy"], Limits(8, 8), answer_temperature=temperature, batch_size=3
        )
        found = decoder.run([Question("t", 0, ids, tuple(range(6)))])
        return [g.answer_text for g in sorted(found, key=lambda g: g.key.sample)]

    assert len(set(answers(0.0))) == 1
    assert len(set(answers(1.0))) > 1
    assert answers(1.0) == answers(1.0)


def test_recorded_mixture_is_the_top_of_the_modes_distribution():
    lm = tiny_lm()
    ((sample,),) = generate(
        lm, PROMPTS[:1], "soft_greedy", max_cot_tokens=10, max_answer_tokens=2, record_top=3
    )
    assert sample.top_ids.shape == (10, 3)
    assert (sample.top_ids[:, 0] == sample.shadow_ids).all()
    assert (np.diff(sample.top_probs, axis=1) <= 0).all()
    assert (sample.top_probs.sum(1) <= 1 + 1e-5).all()


@pytest.mark.parametrize(
    "mode", mostly_slow([*ALL, "soft_thinking"], ["hard_sample", "soft_thinking"])
)
def test_mode_entropy_is_that_of_the_modes_own_temperature(mode):
    lm = tiny_lm()
    ((sample,),) = generate(lm, PROMPTS[:1], mode, max_cot_tokens=16, max_answer_tokens=2)
    if mode == "hard_greedy":
        assert (sample.mode_entropy == 0).all()
    elif mode == "hard_sample":
        np.testing.assert_array_equal(sample.mode_entropy, sample.entropy)
    else:
        assert (sample.mode_entropy < sample.entropy).all()
    assert (sample.entropy <= np.log(VOCAB)).all()


def test_an_option_out_of_range_is_refused():
    lm = tiny_lm()
    with pytest.raises(UserError, match="num_samples 0"):
        generate(lm, PROMPTS, num_samples=0)
    with pytest.raises(UserError, match="--max-cot-tokens"):
        generate(lm, PROMPTS, max_cot_tokens=0)
    with pytest.raises(UserError, match="--batch-size"):
        generate(lm, PROMPTS, batch_size=0)
    assert tiny_tokenizer().encode("") == []
    with pytest.raises(UserError, match="the prompt has no token"):
        generate(lm, [""])
