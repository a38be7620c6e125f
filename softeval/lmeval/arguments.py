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
    "temperature",
    "noise_scale",
    "noise_norm",
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


def refuse_unknown(names: Iterable[str]) -> None:
    """Check model arguments.

    Raises:
        UserError: one that is not in `MODEL_ARGUMENTS`, with the nearest that is.
    """
    for name in names:
        if name in MODEL_ARGUMENTS:
            continue
        near = difflib.get_close_matches(name, MODEL_ARGUMENTS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(MODEL_ARGUMENTS)}"
        raise UserError(f"unknown model argument {name!r}; {remedy}")
