"""Boxes: the closing brace and the last complete box, against a naive reader."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softeval.scoring.boxed import boxed_content, closing_brace

PIECES = [
    "{",
    "}",
    "\\",
    "\\{",
    "\\}",
    "\\\\",
    "\\boxed{",
    "\\boxed {",
    "\\fbox{",
    "boxed{",
    "5",
    " ",
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
# Balanced contents: braces that match, escaped braces anywhere.
balanced = st.recursive(
    st.sampled_from(["", "5", "x^2", r"\{", r"\}", r"\\", r"\frac", " ", "\n", "é"]),
    lambda inner: st.one_of(
        inner.map(lambda content: "{" + content + "}"),
        st.lists(inner, max_size=4).map("".join),
    ),
    max_leaves=12,
)


def naive_closing_brace(text: str) -> int | None:
    """Count braces one character at a time; an odd run of backslashes escapes what follows."""
    depth, backslashes = 1, 0
    for index, character in enumerate(text):
        escaped = backslashes % 2 == 1
        backslashes = backslashes + 1 if character == "\\" else 0
        if character in "{}" and not escaped:
            depth += 1 if character == "{" else -1
        if depth == 0:
            return index
    return None


@given(texts)
def test_closing_brace_is_where_a_character_by_character_count_puts_it(text: str) -> None:
    assert closing_brace(text) == naive_closing_brace(text)


@given(balanced, texts)
def test_balanced_content_is_returned_whole(content: str, tail: str) -> None:
    assert closing_brace(content + "}" + tail) == len(content)


@given(texts, balanced)
@example("\\boxed{", "5")
@example("\\", "5")
def test_the_box_at_the_end_is_the_last_one(head: str, content: str) -> None:
    assert boxed_content(head + " \\boxed{" + content + "}") == content


@given(texts)
def test_what_is_found_stands_in_the_text_and_closes_there(text: str) -> None:
    content = boxed_content(text)
    if content is not None:
        assert any(command + content + "}" in text for command in ("boxed{", "boxed {", "fbox{"))
        assert closing_brace(content + "}") == len(content)


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    assert boxed_content(text) is None or "box" in text


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{5} and \boxed{6}", "6"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{a \boxed{b}", "b"),
        (r"\boxed{}", ""),
        (r"\boxed{ }", " "),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\\boxed{5}", "5"),
        (r"\\\boxed{5}", "5"),
        (r"$\boxed{5}$.", "5"),
        (r"} \boxed{5}", "5"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"\boxed 5", None),
        (r"\boxed\{5\}", None),
        ("boxed{5}", None),
        ("5", None),
        ("", None),
    ],
)
def test_last_complete_box(text: str, content: str | None) -> None:
    assert boxed_content(text) == content


@pytest.mark.parametrize(
    ("text", "index"),
    [("5}", 1), (r"\frac{1}{2}} so", 11), (r"\}}", 2), (r"\\}", 2), ("{}", None), ("", None)],
)
def test_closing_brace(text: str, index: int | None) -> None:
    assert closing_brace(text) == index


@pytest.mark.slow
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit", ["{", "}", "\\", "\\boxed{", "\\boxed", "\\boxed ", "\\boxed{}", "a", "\\{", " "]
)
def test_a_megabyte_is_read_in_one_pass(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    assert boxed_content(text) in (None, "")
    assert boxed_content(text + r" \boxed{5}") == "5"
    closing_brace(text)
