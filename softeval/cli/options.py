"""Options of commands: those that several have, and a configuration's fields as options.

A field's name, type, documentation and limits are declared once, in its pydantic model; flags, help
text and environment variables follow. An option that is not given is not passed on, so that a file
can set it. Knows nothing of what the options mean.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from softeval.cli.help import among, complete_modes, complete_runs, complete_tasks

Command = Callable[..., Any]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory.", autocompletion=complete_runs)
]
MovedModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Where the run's checkpoint is now, if it was moved."),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel="Output"),
]
OneTask = Annotated[
    str | None,
    typer.Option("--task", "-t", help="Only this task.", autocompletion=complete_tasks),
]
OneMode = Annotated[
    str | None, typer.Option("--mode", help="Only this CoT mode.", autocompletion=complete_modes)
]
COMPLETIONS = {
    "modes": complete_modes,
    "validation_modes": complete_modes,
    "tasks": complete_tasks,
    "dataset": complete_tasks,
}
"""Of fields whose type does not tell their values."""


def with_options(config: type[BaseModel]) -> Callable[[Command], Command]:
    """Give a command every field of `config` as an option.

    The command's first parameter is a dict of the options that were given (on the command line or
    as an environment variable); its further, keyword-only parameters stay options of their own.
    """

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        fields = config.model_fields

        def run(**values: Any) -> Any:
            given = {name: values.pop(name) for name in fields}
            return command({n: v for n, v in given.items() if v not in (None, [], ())}, **values)

        parameters = [_parameter(name, field) for name, field in fields.items()] + own
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__ = command.__name__
        run.__doc__ = command.__doc__
        return run

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind, metavar, choices = _kind(field.annotation)
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        flag += "/--no-" + name.replace("_", "-")
    flags: Any = extra.get("flags", [])
    info = typer.Option(
        flag,
        *flags,
        help=_help(field, choices),
        rich_help_panel=str(extra.get("panel", "Options")),
        metavar=metavar,
        # A default is shown with the help, because the option's own is "not given".
        show_default=False,
        autocompletion=COMPLETIONS.get(name, among(choices) if choices else None),
    )
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _kind(annotation: Any) -> tuple[Any, str | None, list[str]]:
    """The type typer is to parse, the metavar where it does not say it, and the choices there are.

    Unions and choices stay texts: pydantic reads them, and its errors name the choices.
    """
    options = [a for a in _members(annotation) if a is not type(None)]
    if len(options) == 1:
        single = options[0]
        if get_origin(single) is tuple:
            return list[str], "LIST", []
        if get_origin(single) is dict:
            return list[str], "NAME=VALUE", []
        if single in (bool, int, float, str):
            return single, None, []
    choices = [str(value) for a in options for value in _values(a)]
    others = [a.__name__.upper() for a in options if not _values(a)]
    if others:
        return str, "|".join(others + choices), []
    return str, "CHOICE", choices


def _values(kind: Any) -> Iterable[Any]:
    """The choices of a literal or an enumeration."""
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind.__members__.values()
    return get_args(kind)


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _help(field: FieldInfo, choices: Sequence[str]) -> str:
    text, default = str(field.description), field.default
    if choices:
        text += f" [{', '.join(choices)}]"
    if default in (None, {}, ()) or isinstance(default, bool):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text} Default: {shown}."
