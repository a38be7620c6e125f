"""Chat templates: a checkpoint's own way of wrapping a question.

Templates are programs that came with the checkpoint. Here they run in transformers' sandbox on a
given day, so that the same question gives the same prompt tomorrow, with bounded time and memory;
what they raise is one line.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, tzinfo
from pathlib import Path
from typing import Any, Self

from softeval.errors import UserError
from softeval.terminal import one_line

CPU_SECONDS = 5.0
"""A template may take so long for one prompt."""
EXTRA_BYTES = 1 << 30
"""A template may take so much memory."""
LONGEST_TEXT = 4_000_000
"""Characters of a prompt; no context is as long."""
_LONGEST_REASON = 200

EXAMPLE = ({"role": "user", "content": "1 + 1"},)


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    day: date | None = None,
    open_reply: bool = True,
) -> str:
    """Messages in the tokenizer's chat template, as one text.

    Args:
        tokenizer: of the checkpoint.
        messages: each with "role" and "content".
        day: what the template is told of the date; its midnight is the time. None takes today.
        open_reply: end where the assistant begins to speak; else the last message goes on.

    Raises:
        UserError: no template, or one that does not take all of these messages, or does not end.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(
            "the tokenizer has no chat template; leave --apply-chat-template (--protocol) out, or take a"
            " checkpoint that was trained with one"
        )
    try:
        with _on(day or date.today()), _bounded_time(), _bounded_memory():
            text = tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=open_reply,
                continue_final_message=not open_reply,
            )
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"it makes {len(text)} characters of one question")
    except Exception as error:  # a template is a program: it can raise anything
        reason = one_line(str(error))[:_LONGEST_REASON] or "no message"
        raise UserError(
            f"the chat template fails ({type(error).__name__}: {reason});"
            " leave --apply-chat-template out, or mend the template"
        ) from error
    _require_all(messages, text)
    return text


def example_hash(tokenizer: Any, day: date | None) -> str:
    """First 16 hex digits of the sha256 of an example prompt: all that enters prompts changes it.

    Raises:
        UserError: as `render_chat`, or a template that does not make the same text twice.
    """
    first, second = (render_chat(tokenizer, EXAMPLE, day=day) for _ in range(2))
    if first != second:
        raise UserError(
            "the chat template makes another text each time, so that no run could be repeated;"
            " leave --apply-chat-template out, or mend the template"
        )
    return hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _require_all(messages: Sequence[Mapping[str, str]], text: str) -> None:
    """Refuse a template that drops what system or user say; of replies it may drop the thought."""
    for message in messages:
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise UserError(
                f"the chat template leaves out what the {message['role']} says; leave"
                " --apply-chat-template out, or what it drops (--system-instruction, --num-fewshot)"
            )


@contextmanager
def _on(day: date) -> Iterator[None]:
    """Templates ask `strftime_now`, which asks transformers' clock: here it stands still."""
    from transformers.utils import chat_template_utils

    class Midnight(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(day.year, day.month, day.day, tzinfo=tz)

    home: Any = chat_template_utils
    running, home.datetime = home.datetime, Midnight
    try:
        yield
    finally:
        home.datetime = running


@contextmanager
def _bounded_time() -> Iterator[None]:
    """Raise in what takes too much processor time; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {CPU_SECONDS:g} seconds")

    handler = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let allocations fail beyond `EXTRA_BYTES` more than now, where the system tells how much."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(pages.read_text().split()[0]) * resource.getpagesize() + EXTRA_BYTES
    bounded = limit if soft == resource.RLIM_INFINITY else min(soft, limit)
    resource.setrlimit(resource.RLIMIT_AS, (bounded, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
