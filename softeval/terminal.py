"""Text on its way to a terminal: whatever a file or a model wrote, it steers nothing there.

The command line prints through `say` and `say_json` only; drawn tables take `clean` texts.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from softeval.files import serialisable


def clean(text: str) -> str:
    """Text without control characters (newline and tab stay), bidi overrides and surrogates."""
    return "".join(c for c in text if not _is_control(ord(c)))


def one_line(text: str) -> str:
    """Clean text whose every run of white space is one space."""
    return " ".join(clean(text).split())


def say(text: str = "", err: bool = False) -> None:
    """Print clean text as a line, on stdout or stderr."""
    print(clean(text), file=sys.stderr if err else sys.stdout)


def say_json(value: Any) -> None:
    """Print a value as JSON in ASCII: control and direction characters are escapes there.

    Not-a-number is null.
    """
    # DEL is the one control character that is ASCII and may stand in JSON as it is.
    print(json.dumps(serialisable(value), indent=2).replace("\x7f", "\\u007f"))


def _is_control(code: int) -> bool:
    if code in (0x09, 0x0A):
        return False
    return (
        code < 0x20
        or 0x7F <= code < 0xA0
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code <= 0xDFFF
    )


def calm_libraries(*, bars: bool = True) -> None:
    """Keep other libraries' notices out of ours, unless the user set their level.

    Args:
        bars: leave their progress bars, of downloads above all.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "WARNING")
    if bars:
        return
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
