"""`softeval lm-eval ...`: lm-eval's own command line, its arguments completed and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer

from softeval.errors import UserError
from softeval.lmeval import MODEL_NAME, TASKS_DIR, register

PASS_ALL = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
_COMMANDS = ("run", "ls", "validate")
_REFUSED = {
    "--use_cache": "it mixes checkpoints, modes and samples; use `softeval run`, which resumes",
    "--cache_requests": "it serves stale requests; leave it out",
}


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval itself (`softeval lm-eval run --help`), with --model softeval and our tasks."""
    register()
    from lm_eval.__main__ import cli_evaluate

    given, sys.argv = sys.argv, ["lm_eval", *completed(context.args)]
    try:
        cli_evaluate()
    finally:
        sys.argv = given


def completed(arguments: Sequence[str]) -> list[str]:
    """Arguments for lm-eval with what our model and tasks need.

    Our tasks' folder is included unless another one is; with our model, batch size and device are
    auto unless given (lm-eval's defaults are one row and a GPU); the indices of --samples are
    sorted, because lm-eval mislabels its own tasks' documents otherwise.

    Raises:
        UserError: an option that would give wrong results with this model, or unreadable --samples.
    """
    given = [part for argument in arguments for part in _split(argument)]
    command = given[0] if given[:1] and given[0] in _COMMANDS else None
    ours = MODEL_NAME in _values(given, "--model", "-M")
    if ours:
        _refuse(given)
    added: list[str] = []
    if (command or _has(given, "--tasks", "-t")) and not _has(given, "--include_path"):
        added += ["--include_path", str(TASKS_DIR)]
    if command in ("run", None) and ours and not _has(given, "--config", "-C"):
        added += [] if _has(given, "--batch_size", "-b") else ["--batch_size", "auto"]
        added += [] if _has(given, "--device") else ["--device", "auto"]
    return [*_sort_samples(given), *added]


def _split(argument: str) -> list[str]:
    """``--name=value`` as two arguments; anything else as it is."""
    if argument.startswith("--") and "=" in argument:
        name, _, value = argument.partition("=")
        return [name, value]
    return [argument]


def _has(arguments: Sequence[str], *names: str) -> bool:
    return any(name in arguments for name in names)


def _values(arguments: Sequence[str], *names: str) -> list[str]:
    return [b for a, b in pairwise(arguments) if a in names]


def _refuse(arguments: Sequence[str]) -> None:
    for name, reason in _REFUSED.items():
        if name in arguments or (name == "--use_cache" and "-c" in arguments):
            raise UserError(f"{name}: {reason}")


def _sort_samples(arguments: list[str]) -> list[str]:
    result = list(arguments)
    for place, name in enumerate(arguments[:-1]):
        if name in ("--samples", "-E"):
            result[place + 1] = _sorted_samples(arguments[place + 1])
    return result


def _sorted_samples(value: str) -> str:
    """The JSON of --samples, or of the file it names, with rising and distinct indices."""
    try:
        text = Path(value).read_text() if Path(value).is_file() else value
        chosen = {task: sorted(set(indices)) for task, indices in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        example = '{"gsm8k": [0, 5]}'
        raise UserError(f"--samples must be JSON like {example}, not {value!r}") from error
    return json.dumps(chosen)
