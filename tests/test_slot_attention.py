"""Reading slots by length gives what reading them under a mask gives.

The kernel itself runs on CUDA alone; here it is one written out in plain sums, so that what is
tested is everything around it: which slots a row reads, windows, grouped heads, who goes without.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_long_rope import LIMIT, long_rope_lm
from test_static_step import tiny_lm

import softeval
from softeval.model import feeding, slot_attention

PROMPTS = ["the cat", "a dog sat on the mat and then went home again to sleep", "one"]


def plain_attention(query_NHX, keys, values, lengths, most, window, scale):
    """`slot_attention.flash` row by row."""
    out = torch.zeros_like(query_NHX)
    share = query_NHX.shape[1] // keys.shape[1]
    for row, used in enumerate(lengths.used_N.tolist()):
        assert used <= most
        end = int(lengths.starts[row]) + used
        first = end - used if window < 0 else max(end - used, end - 1 - window)
        k, v = (part[first:end].repeat_interleave(share, 1) for part in (keys, values))
        scores = torch.einsum("hx,shx->hs", query_NHX[row], k) * (scale or k.shape[-1] ** -0.5)
        out[row] = torch.einsum("hs,shx->hx", scores.softmax(-1), v)
    return out


@pytest.fixture
def calls(monkeypatch):
    """Windows with which the kernel was asked, where models are read by length."""
    windows = []

    def counted(*args):
        windows.append(args[5])
        return plain_attention(*args)

    monkeypatch.setattr(slot_attention, "flash", counted)
    monkeypatch.setattr(feeding, "reads_lengths", lambda model: True)
    return windows


def decoded(lm):
    return softeval.generate(
        lm, PROMPTS, "hard_sample", num_samples=2, max_cot_tokens=12, max_answer_tokens=4,
        batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "windows"), [("llama", {-1}), ("qwen3", {-1}), ("mistral", {7}), ("gemma3", {7, -1})]
)
def test_rows_read_by_length_what_they_see_under_a_mask(family, windows, monkeypatch, calls):
    lm = tiny_lm(family)
    by_length = decoded(lm)
    assert calls and set(calls) == windows
    monkeypatch.setattr(feeding, "reads_lengths", lambda model: False)
    seen = len(calls)
    by_mask = decoded(lm)
    assert len(calls) == seen
    for own, other in zip(by_length, by_mask, strict=True):
        for a, b in zip(own, other, strict=True):
            assert a.shadow_ids.tolist() == b.shadow_ids.tolist()
            torch.testing.assert_close(
                torch.as_tensor(a.entropy), torch.as_tensor(b.entropy), atol=1e-5, rtol=1e-5
            )


def test_a_row_that_is_run_again_past_longropes_limit_sees_all_that_stands_before(
    monkeypatch, calls
):
    """In parts, each of them longer than one token: no kernel of lengths, and a mask of its own."""
    monkeypatch.setattr(feeding, "PREFILL_POSITIONS", LIMIT // 3)
    found = []
    for by_length in (True, False):
        monkeypatch.setattr(feeding, "reads_lengths", lambda model, told=by_length: told)
        ((sample,),) = softeval.generate(
            long_rope_lm(), "a" * 9 + "b", max_cot_tokens=26, max_answer_tokens=2
        )
        found.append(sample)
    assert calls and len(found[0].shadow_ids) > LIMIT - 10
    assert found[0].shadow_ids.tolist() == found[1].shadow_ids.tolist()
    torch.testing.assert_close(*(torch.as_tensor(g.entropy) for g in found), atol=1e-5, rtol=1e-5)


def test_heads_that_the_kernel_does_not_take_go_under_the_mask(calls):
    """Of a width that is no multiple of 8; and whoever has more than one new token."""
    torch.manual_seed(0)
    for width, new in ((12, 1), (8, 2)):
        query, slots = torch.randn(3, 4, new, width), torch.randn(3, 64, 2, width).transpose(1, 2)
        mask = torch.rand(3, 1, new, 64) < 0.5
        slot_attention.set_lengths(torch.tensor([5, 2, 40]), 64)
        found, _ = slot_attention.attend(_Grouped(), query, slots, slots, mask)
        slot_attention._PASS.lengths = None
        wanted, _ = slot_attention.attend(_Grouped(), query, slots, slots, mask)
        assert torch.equal(found, wanted)
    assert not calls


class _Grouped(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, True),
        ({"device": torch.device("cpu")}, False),
        ({"dtype": torch.float32}, False),
        ({"hf_device_map": {}}, False),
        ({"_attn_implementation": "eager"}, False),
        ({"attention_chunk_size": 8192}, False),
    ],
)
def test_who_is_read_by_length(changed, wanted):
    """Half precision on CUDA; not chunks, which a layer knows from its mask alone (Llama 4)."""
    config = SimpleNamespace(_attn_implementation="sdpa")
    config.get_text_config = lambda: config
    model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, config=config)
    for name, value in changed.items():
        setattr(config if name.startswith(("a", "_")) else model, name, value)
    assert slot_attention.reads_lengths(model) is wanted


def test_a_pass_outside_leaves_no_trace(calls):
    lm = tiny_lm("llama")
    name = lm.model.config._attn_implementation
    decoded(lm)
    assert lm.model.config._attn_implementation == name
    assert slot_attention._PASS.lengths is None
