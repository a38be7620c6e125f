"""Stop rules and prefills, with the real Qwen 2.5 and Llama 3.2 tokenizers where they are here."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_tokenizer

from softeval.decoding.rows import Row
from softeval.model.stopping import Limits, Stopper
from softeval.protocol import CHAT, PAPER
from softeval.records import AnswerStop, SampleKey, StopReason

REAL = ["qwen2.5", "llama-3.2-instruct"]


@pytest.fixture(scope="module", params=[*REAL, "stories260K", "characters"])
def stopper(request):
    if request.param == "characters":
        return Stopper(tiny_tokenizer())
    from transformers import AutoTokenizer

    shared = request.getfixturevalue("shared")
    folder = "models" if request.param == "stories260K" else "tokenizers"
    return Stopper(AutoTokenizer.from_pretrained(shared / folder / request.param))


def ids(stopper: Stopper, text: str) -> list[int]:
    return stopper._tokenizer.encode(text, add_special_tokens=False)


ENDINGS = [
    "So 3 + 4 = 7. The final answer is:",
    "So 3 + 4 = 7. The final answer is: ",
    "So 3 + 4 = 7.\n\nThe final answer is:\n",
    "The final answer is:",
    "Note: this. Also: that. The final answer is:  ",
]


@pytest.mark.parametrize("text", ENDINGS)
def test_text_that_ends_in_the_prefix_stops_exactly_once_it_does(stopper, text):
    tokens = ids(stopper, text)
    fired = [n for n in range(1, len(tokens) + 1) if stopper.ends_cot(tokens[:n])]
    assert fired, "never fired"
    at_first = stopper.decode(tokens[: fired[0]])
    assert at_first.rstrip().endswith(PAPER.cot_stop)
    for n in range(1, fired[0]):
        assert not stopper.decode(tokens[:n]).rstrip().endswith(PAPER.cot_stop)


@pytest.mark.parametrize(
    "text",
    [
        "The final answer is",
        "The final answer is: 42",
        "The final answer is :",
        "the final answer is:",
        "The answer is:",
        "Final answer: The final answer is: \\boxed{3}. Note:",
        ":",
    ],
)
def test_other_text_does_not_stop(stopper, text):
    assert not stopper.ends_cot(ids(stopper, text))


@pytest.mark.parametrize("ending", [":** \\boxed{7}.", ":$7$", ":\n\n**7**", ": 7"])
def test_only_the_papers_stop_is_taken_to_the_letter(stopper, ending):
    """A token that ends the stop and goes on, such as ":**", ends the CoT in every other protocol."""
    tokens = ids(stopper, f"So **The final answer is{ending}")
    chat = Stopper(stopper._tokenizer, CHAT)
    fired = [n for n in range(1, len(tokens) + 1) if chat.ends_cot(tokens[:n])]
    assert len(fired) == 1 and CHAT.cot_stop in chat.decode(tokens[: fired[0]])
    assert CHAT.cot_stop not in chat.decode(tokens[: fired[0] - 1])
    text = stopper.decode(tokens[: fired[0]])
    assert stopper.ends_cot(tokens[: fired[0]]) == text.rstrip().endswith(PAPER.cot_stop)


@pytest.mark.parametrize("cot", ["It is 7. The final answer is:", "The final answer is: "])
def test_box_follows_an_early_stop_with_exactly_one_space(stopper, cot):
    prefill = stopper.prefill_text(cot, StopReason.ANSWER_PREFIX)
    assert (cot + prefill).endswith("The final answer is: \\boxed{")
    whole = ids(stopper, cot.rstrip()) + list(
        stopper.prefill_ids(cot.rstrip(), StopReason.ANSWER_PREFIX)
    )
    assert stopper.decode(whole).endswith("The final answer is: \\boxed{")


@pytest.mark.parametrize("reason", [StopReason.LENGTH, StopReason.EOS])
@pytest.mark.parametrize("cot", ["so 3 + 4 is", "so 3 + 4 is ", "so\n", ""])
def test_the_whole_prefix_follows_a_cap_or_an_end_token(stopper, cot, reason):
    text = cot + stopper.prefill_text(cot, reason)
    assert text.endswith("The final answer is: \\boxed{")
    assert "  " not in text
    prefill = stopper.prefill_ids(cot, reason)
    assert stopper.decode(prefill).strip() == "The final answer is: \\boxed{"


@pytest.mark.slow
def test_prefill_ids_are_those_of_the_joined_text(shared):
    """Where no merge crosses the seam, prefilled ids are what encoding the whole text gives."""
    from transformers import AutoTokenizer

    for name in REAL:
        tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        cot = "It is 7. The final answer is:"
        joined = tokenizer.encode(cot + " \\boxed{", add_special_tokens=False)
        parts = tokenizer.encode(cot, add_special_tokens=False)
        assert joined == parts + list(Stopper(tokenizer).prefill_ids(cot, StopReason.ANSWER_PREFIX))


def test_longest_prefill_bounds_every_prefill(stopper):
    for cot in ("", "x", "x ", "x\n"):
        for reason in StopReason:
            assert len(stopper.prefill_ids(cot, reason)) <= stopper.longest_prefill


def test_the_room_of_a_sample_holds_its_own_protocols_prefill():
    model: Any = SimpleNamespace(tokenizer=tiny_tokenizer())
    long = replace(PAPER, answer_prefix=f"{'word ' * 30}\\boxed{{")
    assert Limits(9, 3, long).room(model) == 12 + Stopper(model.tokenizer, long).longest_prefill
    assert Limits(9, 3, long).room(model) > Limits(9, 3).room(model) + 30


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("42}", "42"),
        ("\\frac{1}{2}}. So", "\\frac{1}{2}"),
        ("\\{1, 2\\}}", "\\{1, 2\\}"),
        ("}", ""),
        ("42", None),
        ("\\frac{1}{2}", None),
        ("\\}", None),
    ],
)
def test_an_answer_is_cut_at_the_brace_that_closes_the_box(stopper, text, content):
    assert stopper.closed_answer(ids(stopper, text)) == content


def new_row() -> Row:
    key = SampleKey("t", 0, 0)
    return Row(key, (5, 6))


def beginnings(tokens):
    return (tokens[: end + 1] for end in range(len(tokens)))


def test_a_row_goes_from_its_cot_to_its_answer():
    stopper = Stopper(tiny_tokenizer())
    row, limits = new_row(), Limits(max_cot_tokens=60, max_answer_tokens=4)
    for cot in beginnings(ids(stopper, "1+1=2. The final answer is:")):
        assert row.in_cot
        row.judge_cot(cot, stopper, limits, frozenset({2}))
    assert row.stop_reason is StopReason.ANSWER_PREFIX
    assert not row.in_cot
    assert stopper.decode(row.prefill_ids) == " \\boxed{"
    for answer in beginnings(ids(stopper, "2}")):
        assert row.answer_stop is None
        row.judge_answer(answer, stopper, limits, frozenset({2}))
    assert (row.answer, row.answer_stop) == ("2", AnswerStop.CLOSED)


def test_an_end_token_can_be_the_stop():
    stopper = Stopper(tiny_tokenizer(), replace(PAPER, cot_stop="</s>"))
    row = new_row()
    row.judge_cot([*ids(stopper, "12"), 2], stopper, Limits(8, 5), frozenset({2}))
    assert row.stop_reason is StopReason.ANSWER_PREFIX
    assert stopper.decode(row.prefill_ids) == " \\boxed{"


@pytest.mark.parametrize("text", ["1+1=2. The final answer is: 4}", "a}b:c", "{}::}"])
def test_only_a_token_in_the_tables_can_end_something(text):
    stopper = Stopper(tiny_tokenizer())
    for tokens in beginnings(ids(stopper, text)):
        assert not stopper.ends_cot(tokens) or tokens[-1] in stopper.may_end_cot
        newly = len(tokens) == 1 or stopper.closed_answer(tokens[:-1]) is None
        if newly and stopper.closed_answer(tokens) is not None:
            assert tokens[-1] in stopper.may_end_answer


@pytest.mark.parametrize(("tokens", "stop"), [("12345", AnswerStop.LENGTH), ("12", AnswerStop.EOS)])
def test_an_answer_without_a_brace_is_no_answer(tokens, stop):
    stopper = Stopper(tiny_tokenizer())
    row = new_row()
    row.in_cot = False
    for answer in beginnings([*ids(stopper, tokens), 2]):
        row.judge_answer(answer, stopper, Limits(8, 5), frozenset({2}))
        if row.answer_stop:
            break
    assert row.answer_stop is stop
    assert row.answer is None
