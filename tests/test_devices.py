"""A pass makes every tensor where the model is; and what only a GPU can show, where there is one."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from contextlib import nullcontext
from functools import cache

import architectures
import pytest
import torch
from step_graphs import decoded, watched_passes
from tiny import CONFIGS, FAMILIES, tiny_lm, tiny_tokenizer
from torch.overrides import TorchFunctionMode
from train_cases import relative_distance
from transformers import AutoModelForCausalLM

from softeval.decoding.decoder import Decoder, Question
from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import LanguageModel, wrap_model
from softeval.model.mends import KeyCountBands, RowFactors
from softeval.model.output_head import output_head
from softeval.model.stopping import Limits
from softeval.modes import MODES, coconut
from softeval.modes.coconut import Coconut
from softeval.modes.seam import Seen
from softeval.records import Generation
from softeval.trainers.losses import Policy, collate, log_probs, policy_losses

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
METHODS = ("hard_sample", "soft_sample", "fuzzy_sample")
CAPTURED = [family for family in FAMILIES if family != "mixtral"]
"""Routing by experts asks the host, and is not captured."""

MAKERS = {
    *(
        torch.arange,
        torch.as_tensor,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.ones,
    ),
    *(torch.rand, torch.randint, torch.randn, torch.randperm, torch.scalar_tensor, torch.tensor),
    *(torch.tril_indices, torch.triu_indices, torch.zeros),
}
"""What makes a tensor on the CPU unless it is told a device."""


class Places(TorchFunctionMode):
    """Notes on which devices the tensors lie that functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.mixed: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        listed = [a for part in args for a in (part if isinstance(part, list) else [part])]
        places = {a.device.type for a in listed if isinstance(a, torch.Tensor) and a.ndim}
        if len(places) > 1 and func is not torch.Tensor.to:
            self.mixed.add(func.__name__)
        self.found |= places
        return func(*args, **(kwargs or {}))


class NamelessDevices(TorchFunctionMode):
    """Notes where our code makes a tensor without saying on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in MAKERS and (kwargs or {}).get("device") is None:
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__", "").startswith(("softeval", __name__)):
                self.found.add(f"{caller.f_globals['__name__']}:{caller.f_lineno}")
        return func(*args, **(kwargs or {}))


def recorded(lm: LanguageModel, mode: str) -> list[Generation]:
    """Rollouts of one question, as training makes them."""
    decoder = Decoder(lm, MODES[mode], Limits(6, 4), answer_temperature=1.0, keep_inputs=True)
    found = decoder.run([Question("t", 0, (10, 20, 30, 40, 50), (0, 1, 2, 3))])
    return sorted(found, key=lambda g: g.key.sample)


def gradients(
    lm: LanguageModel,
    mode: str,
    rollouts: list[Generation],
    watch: NamelessDevices | None = None,
) -> list[torch.Tensor]:
    """Of every weight, by the policy's loss."""
    lm = wrap_model(copy.deepcopy(lm.model).requires_grad_(), tiny_tokenizer())
    policy, draws = Policy(MODES[mode]), MODES[mode].draws(lm.embedding)
    batch = collate(rollouts, lm.device, lm.dtype, policy.mode, draws, policy.seed)
    advantages = torch.tensor([0.7, -1.3, 0.4, 0.2], device=lm.device)
    head = output_head(lm, chunk=4)
    with watch or nullcontext():
        sum(policy_losses(log_probs(lm, head, batch, policy), batch, advantages, 5)).backward()
    return [p.grad.cpu() for p in lm.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_every_mode_says_where_its_tensors_are(mode):
    watch = NamelessDevices()

    def around(work, bucket):
        with watch:
            work()

    with watched_passes(around):
        decoded(tiny_lm("mixtral"), MODES[mode], batch_size=4, look_every=3)
    assert not watch.found


@pytest.mark.parametrize("mode", METHODS)
def test_a_training_pass_says_where_its_tensors_are(mode):
    watch = NamelessDevices()
    gradients(tiny_lm("mixtral"), mode, recorded(tiny_lm("mixtral"), mode), watch)
    assert not watch.found


def test_the_watch_sees_a_tensor_without_a_device():
    with NamelessDevices() as watch:
        torch.arange(3, device="cpu")
        assert not watch.found
        torch.arange(3)
    assert len(watch.found) == 1


def test_a_float32_head_moves_with_its_model():
    model = copy.deepcopy(tiny_lm("llama").model).to(torch.bfloat16)
    state = set(model.state_dict())
    lm = wrap_model(model, tiny_tokenizer(), logits_dtype="float32", self_check=False)
    hidden = torch.ones(2, 32, dtype=torch.bfloat16)
    assert model.lm_head(hidden).dtype == torch.float32
    lm.model.to("meta")
    hidden = hidden.to("meta")
    with Places() as places:
        model.lm_head(hidden)
    assert places.found == {"meta"}
    assert set(model.state_dict()) == state


def test_a_float32_head_stays_one_in_another_precision_and_in_a_copy_and_goes_with_its_model():
    model = copy.deepcopy(tiny_lm("llama").model).to(torch.bfloat16)
    wrap_model(model, tiny_tokenizer(), logits_dtype="float32", self_check=False)
    hidden = torch.randn(2, 32, dtype=torch.bfloat16)
    wanted = hidden.float() @ model.lm_head.weight.float().T
    model.to("cpu", torch.bfloat16)
    torch.testing.assert_close(model.lm_head(hidden), wanted)
    other = copy.deepcopy(model)
    other.lm_head.wide_weight.zero_()
    assert model.lm_head(hidden).any() and not other.lm_head(hidden).any()
    gc.collect()
    gc.disable()
    try:
        head = weakref.ref(model.lm_head)
        del model
        assert head() is None  # a circle would keep its memory on the GPU
    finally:
        gc.enable()


def test_gpt_neos_bands_lie_where_its_layers_do():
    model = architectures.tiny_model(architectures.tiny_config("gpt_neo"))
    first, *_, last = (layer.attn.attention for layer in model.transformer.h)
    last.bias = last.bias.to("meta")
    own = first.bias, last.bias
    with KeyCountBands(model).at(torch.tensor([2, 5]), 8):
        assert [layer.bias.device.type for layer in (first, last)] == ["cpu", "meta"]
        assert last.bias.shape == (2, 1, 8, 8)
        assert first.bias[:, 0, -1].sum(-1).tolist() == [3, 6]
    assert (first.bias is own[0]) and (last.bias is own[1])


def test_realigning_goes_on_where_its_model_was_moved(monkeypatch):
    """What was found of an embedding before it was moved lies on the other device."""
    lm, mode = tiny_lm("llama"), Coconut(realign=True)
    logits = torch.zeros(2, lm.vocab)
    seen = Seen(logits, lm.embedding, torch.ones(2, lm.embedding.width), output_head(lm))
    wanted = mode.thought(seen)
    (found,) = [value for key, value in coconut._ALIGNMENTS.items() if key is lm.embedding]
    left = {lm.embedding: found._replace(matrix_DD=found.matrix_DD.to("meta"))}
    monkeypatch.setattr(coconut, "_ALIGNMENTS", left)
    assert torch.equal(mode.thought(seen), wanted)


class Elsewhere(torch.nn.Embedding):
    """An embedding on a device of its own, to which a hook brings ids."""

    def forward(self, ids):
        return super().forward(ids.to(self.weight.device))


def test_tables_of_a_model_that_is_spread_may_lie_on_two_devices(monkeypatch):
    monkeypatch.setattr(InputEmbedding, "_verify", lambda self: None)
    beside = InputEmbedding(Elsewhere(6, 4), 6)
    both = InputEmbedding(Elsewhere(8, 4, device="meta"), 8, (), beside)
    probs_NV, ids = torch.ones(3, 8), torch.arange(3)
    with torch.no_grad(), Places() as places:
        assert both.rows(ids).device.type == both.mix(probs_NV).device.type == "meta"
    assert not places.mixed


def test_longropes_factors_of_a_model_that_is_spread_may_lie_on_another_device():
    def rotary(x, positions):
        return tuple(part.to("meta") for part in (positions[..., None].cos(), positions[..., None]))

    position_ids = torch.arange(6).expand(2, -1)
    with Places() as places:
        RowFactors(rotary, 4)(None, position_ids)
    assert not places.mixed


def test_a_head_comes_where_hidden_states_are_shown(monkeypatch):
    """Its weights themselves on one device; a copy where the model is spread."""
    monkeypatch.setattr("softeval.model.output_head._verify", lambda lm, head: None)
    lm = copy.copy(tiny_lm("llama"))
    assert output_head(lm).weight_WD is lm.model.lm_head.weight
    lm.embedding = copy.copy(lm.embedding)
    lm.embedding.module = Elsewhere(8, 4, device="meta")
    with Places() as places:
        output_head(lm).logits(torch.zeros(2, 32, device="meta"))
    assert not places.mixed


@cache
def moved(family: str, graphs: bool, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The tiny model of a family, on the GPU."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32).eval()
    model = model.requires_grad_(False).to("cuda", dtype)
    lm = wrap_model(model, tiny_tokenizer(), f"tiny-{family}")
    lm.decode_by(graphs=graphs, fused=False)
    return lm


def steps(found: dict[object, Generation]) -> dict[object, object]:
    """All that a decoder tells of its samples."""
    return {
        key: (
            list(g.shadow_ids),
            list(g.answer_ids),
            g.stop_reason,
            None if g.inputs is None else [row.tolist() for row in g.inputs],
        )
        for key, g in found.items()
    }


@on_gpu
@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if not mode.asks_host])
def test_captured_steps_of_every_mode_are_the_same_bit_for_bit(mode):
    found = [
        steps(decoded(moved("llama", graphs), MODES[mode], batch_size=4, look_every=look))
        for graphs, look in ((False, 1), (True, 1), (True, 8))
    ]
    assert found[0] == found[1] == found[2]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CAPTURED)
def test_captured_steps_of_every_family_are_the_same_bit_for_bit(family, dtype):
    for mode in METHODS:
        one, other = (
            steps(decoded(moved(family, graphs, dtype), MODES[mode], batch_size=4))
            for graphs in (False, True)
        )
        assert one == other, mode


@on_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_samples_are_those_of_a_cpu(family):
    """Words of Philox are the same everywhere; a near tie of float32 may fall either way."""
    here = decoded(tiny_lm(family), MODES["hard_sample"], batch_size=4)
    there = decoded(moved(family, family in CAPTURED), MODES["hard_sample"], batch_size=4)
    assert sorted(here, key=str) == sorted(there, key=str)
    same = [list(here[key].shadow_ids) == list(there[key].shadow_ids) for key in here]
    assert sum(same) >= len(same) - 1


@on_gpu
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma3", "mixtral"])
@pytest.mark.parametrize("mode", METHODS)
def test_gradients_of_a_pass_that_shares_its_prompt_are_those_of_a_cpu(mode, family):
    """Of every weight, for the same recorded rollouts of one question."""
    rollouts = recorded(tiny_lm(family), mode)
    here = gradients(tiny_lm(family), mode, rollouts)
    there = gradients(moved(family, False), mode, rollouts)
    assert len(here) == len(there) > 5
    assert relative_distance(there, here) < 1e-3
