"""The model arguments that the adapter takes, and the refusal of all others by name.

lm-eval passes unknown arguments on to the checkpoint's constructor, where a slip of the pen ends in
a message about another class, and lets some names overwrite a task's own metadata.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from softeval.errors import UserError

MODEL_ARGUMENTS = (
    "pretrained",
    "mode",
    "mode_file",
    "logits_dtype",
    "num_samples",
    "max_cot_tokens",
    "max_answer_tokens",
    "seed",
    "batch_size",
    "max_batch_size",
    "dtype",
    "device",
    "data_dir",
    "pass_at",
    "scorer",
    "revision",
    "trust_remote_code",
    "self_check",
    "add_bos_token",
)


def refuse_unknown(names: Iterable[str], options: Iterable[str]) -> None:
    """Check model arguments.

    Args:
        names: of the arguments given.
        options: of the mode.

    Raises:
        UserError: one that is neither in `MODEL_ARGUMENTS` nor an option, with the nearest that is.
    """
    known = (*MODEL_ARGUMENTS, *options)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        raise UserError(f"unknown model argument {name!r}; {remedy}")
