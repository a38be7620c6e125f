"""Fields of a configuration: what `RunConfig` and `TrainConfig` share, and how they are read.

A field is declared once; the command line takes its flags and help from it, a YAML file its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from softeval.errors import UserError, suggest


def option(
    default: Any, help: str, *, panel: str, flags: tuple[str, ...] = (), **limits: Any
) -> Any:
    """A field that is also a command-line option.

    Args:
        default: value where nobody sets one.
        help: the field's documentation, shown by --help.
        panel: heading of the help under which it stands.
        flags: further spellings, such as "-n".
        **limits: pydantic's limits (gt, ge, le).
    """
    extra = {"panel": panel, "flags": list(flags)}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def split_list(value: Any) -> Any:
    """("a", "b") of "a,b", also in parts and with repeats; None as it is."""
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else [value]
    single = [s for part in parts for s in (part.split(",") if isinstance(part, str) else [part])]
    cleaned = [s.strip() if isinstance(s, str) else s for s in single]
    return tuple(dict.fromkeys(s for s in cleaned if s != ""))


def read_pairs(value: Any) -> Any:
    """{"a": "1", "b": "2"} of "a=1,b=2", also in parts; a mapping's values as texts."""
    if isinstance(value, Mapping):
        return {str(name): str(part) for name, part in value.items()}
    parts = [value] if isinstance(value, str) else value
    pairs = [p.strip().partition("=") for part in parts for p in part.split(",") if p.strip()]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise ValueError(f"{wrong[0]!r} must be name=value")
    names = [name.replace("-", "_") for name, _, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given more than once")
    return {name: text for name, (_, _, text) in zip(names, pairs, strict=True)}


def _usable_batch(value: Any) -> Any:
    try:
        number = None if value == "auto" else int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} must be auto or a whole number") from None
    if number is not None and number < 1:
        raise ValueError(f"{value} must be auto or at least 1")
    return value


Pairs = Annotated[dict[str, str], BeforeValidator(read_pairs)]
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_usable_batch)]


def read_options(path: Path, what: str) -> dict[str, Any]:
    """The ``name: value`` lines of a YAML file, with ``_`` for ``-`` in names.

    Args:
        path: the file.
        what: what it is called in messages: "recipe".

    Raises:
        UserError: unreadable, no YAML, or something else in it.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{what} {path} must hold `name: value` lines")
    return {str(name).replace("-", "_"): value for name, value in (content or {}).items()}


def explain(error: ValidationError, fields: Iterable[str]) -> str:
    """The first problem on one line, under the name of its flag; `fields` are the known ones."""
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    flag = "--" + name.replace("_", "-")
    if problem["type"] == "extra_forbidden":
        return f"unknown option {name!r}{suggest(name, fields)}"
    if problem["type"] == "value_error":
        return f"{flag}: {message}" if flag not in message else message
    return f"{flag} {problem['input']!r}: {message[0].lower()}{message[1:]}"
