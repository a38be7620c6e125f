"""Numbers that are not finite stop the work with one line, and reach no other row."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import mostly_slow
from lm_eval.api.instance import Instance
from tiny import tiny_lm, tiny_tokenizer
from train_cases import tiny_config

from softeval.decoding import decoder as decoding
from softeval.decoding.decoder import Decoder, Question
from softeval.decoding.generate import generate
from softeval.errors import UserError
from softeval.lmeval.adapter import SoftEvalLM
from softeval.model.language_model import load_model, wrap_model
from softeval.model.stopping import Limits
from softeval.modes import MODES
from softeval.modes.paper import HardMode
from softeval.trainers.setup import load_for_training

POISON = "~"


def lm_with(hook=None, dtype: torch.dtype = torch.float32):
    """The tiny Llama, with a hook on the values of its first layer."""
    model = copy.deepcopy(tiny_lm().model).to(dtype)
    lm = wrap_model(model, tiny_tokenizer(), "tiny")
    if hook is not None:
        model.model.layers[0].self_attn.v_proj.register_forward_hook(hook)
    return lm


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    model = copy.deepcopy(tiny_lm().model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    expected = "weights are not finite: 1 of 1536 numbers of model.layers.1.mlp.up_proj.weight"
    with pytest.raises(UserError, match=expected):
        wrap_model(model, tiny_tokenizer(), self_check=False)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=expected):
        load_model(tmp_path, device="cpu", self_check=False)


def test_training_says_so_too(tmp_path):
    model = copy.deepcopy(tiny_lm().model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights are not finite"):
        load_for_training(tiny_config(model=str(tmp_path)), torch.device("cpu"))


class Counter:
    """Breaks the values of single tokens from the n-th on."""

    def __init__(self, first: int, value: float) -> None:
        self.left, self.value = first, value

    def __call__(self, module, args, out):
        if out.shape[1] > 1:
            return None
        self.left -= 1
        return None if self.left >= 0 else torch.full_like(out, self.value)


@pytest.mark.parametrize("mode", mostly_slow(MODES, ["hard_sample", "soft_greedy", "coconut"]))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cot_stops_at_its_first_logits_that_are_not_finite(mode, value):
    lm = lm_with(Counter(4, value))
    with pytest.raises(UserError) as caught:
        generate(lm, ["What is 2+2?"], mode, max_cot_tokens=12, max_answer_tokens=2)
    assert str(caught.value) == (
        "prompt question 0, sample 0: the logits at CoT position 4 (token 16 of the sequence) are "
        "not finite in float32; the checkpoint or its architecture overflows"
    )


def test_distributions_that_are_not_finite_stop_it_too():
    """Logits over so small a temperature are infinite; their softmax would draw the first token."""
    cold = HardMode("cold", "hard", 1e-40)
    question = Question("t", 0, (5, 6), (0,))
    for mode, temperature, part in ((cold, 0.0, "CoT"), (MODES["hard_greedy"], 1e-40, "answer")):
        decoder = Decoder(tiny_lm(), mode, Limits(3, 2), answer_temperature=temperature)
        with pytest.raises(UserError, match=f"logits at {part} position 0"):
            list(decoder.run([question]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_stops_too_and_half_precision_names_the_remedy(temperature):
    lm = lm_with(dtype=torch.bfloat16)
    ids = tuple(lm.tokenizer.encode("What is 2+2?"))
    lm.eos_ids = frozenset()
    decoder = Decoder(lm, MODES["hard_greedy"], Limits(3, 8), answer_temperature=temperature)
    (whole,) = decoder.run([Question("t", 7, ids, (2,))])
    assert len(whole.answer_ids) > 2
    passes = len(whole.shadow_ids) + len(whole.prefill_ids) + 2
    lm.model.model.layers[0].self_attn.v_proj.register_forward_hook(Counter(passes, float("nan")))
    with pytest.raises(UserError, match="t question 7, sample 2") as caught:
        list(decoder.run([Question("t", 7, ids, (2,))]))
    assert "the logits at answer position 2 (token" in str(caught.value)
    assert "are not finite in bfloat16; try --dtype float32" in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_a_broken_row_leaves_behind_reaches_no_other(batch_size):
    """Question A's keys and values are NaN; B takes its row, or runs beside it, as if alone."""
    lm = lm_with()
    poison = lm.tokenizer.encode(POISON)[0]
    marked = {}

    def spoil(module, args, out):
        return torch.where(marked["hidden"][..., None], torch.nan, out)

    with torch.no_grad():
        lm.model.model.embed_tokens.weight[poison] = 1e4

    def mark(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        marked["hidden"] = hidden.abs().amax(-1) > 1e3

    lm.model.model.layers[0].register_forward_pre_hook(mark, with_kwargs=True)
    lm.model.model.layers[0].self_attn.v_proj.register_forward_hook(spoil)
    bad = Question("t", 0, tuple(lm.tokenizer.encode("a" * 40 + POISON + "b" * 5)), (0,))
    good = Question("t", 1, tuple(lm.tokenizer.encode("abcd")), (0,))
    single = Question("t", 2, tuple(lm.tokenizer.encode("x")), (0,))

    def decode(questions):
        decoder = Decoder(lm, MODES["hard_greedy"], Limits(8, 2), batch_size=batch_size)
        return {
            g.key.doc_id: (g.shadow_ids.tolist(), g.entropy.tobytes())
            for g in decoder.run(questions)
        }

    alone = decode([good]) | decode([single])
    with pytest.MonkeyPatch.context() as patch:  # let A run to its end
        patch.setattr(decoding, "_if_finite", lambda chosen_N, largest_N: chosen_N)
        after = decode([bad, good, single])
    assert {doc: after[doc] for doc in alone} == alone


def test_a_log_likelihood_that_is_no_number_stops_the_run():
    lm = lm_with(lambda module, args, out: out * torch.nan)
    adapter = SoftEvalLM(lm, max_cot_tokens=4, max_answer_tokens=2)
    asked = Instance(request_type="loglikelihood", doc={}, arguments=("What is", " 4"), idx=0)
    with pytest.raises(UserError, match="log-likelihood after 'What is' is nan in float32"):
        adapter.loglikelihood([asked], disable_tqdm=True)
