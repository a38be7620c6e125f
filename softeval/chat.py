"""Chat templates: a checkpoint's own way of wrapping a question.

Templates are programs that came with the checkpoint; what they raise is one line here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softeval.errors import UserError


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, open_reply: bool = True
) -> str:
    """Messages in the tokenizer's chat template, as one text.

    Args:
        tokenizer: of the checkpoint.
        messages: each with "role" and "content".
        open_reply: end where the assistant begins to speak; else the last message goes on.

    Raises:
        UserError: no template, or one that does not take these messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(
            "the tokenizer has no chat template; leave --apply-chat-template out, or take a"
            " checkpoint that was trained with one"
        )
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=open_reply,
            continue_final_message=not open_reply,
        )
    except Exception as error:  # a template is a program: it can raise anything
        reason = " ".join(str(error).split()) or "no message"
        raise UserError(
            f"the chat template fails ({type(error).__name__}: {reason});"
            " leave --apply-chat-template out, or mend the template"
        ) from error
