"""What is told to someone who asks what there is: pages of help, and completions in a shell.

A page is two columns of plain text at any width: a name is never cut, a long one stands alone on
its line. That options also come from environment variables is said once, not beside each of them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST = 100
"""Columns of a page; a terminal may have fewer."""
NAMES = 26
"""Columns for names, at most a third of the page."""


def page_width() -> int:
    """Columns of a page on this terminal: click's own are 50 at least."""
    return min(shutil.get_terminal_size().columns, WIDEST) - 2


class Page(TyperCommand):
    """A command whose help is such a page."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self, ctx, formatter)


class Contents(TyperGroup):
    """A group of commands whose help is such a page."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        commands = [self.get_command(ctx, name) for name in self.list_commands(ctx)]
        rows = [(str(command.name), command.help or "") for command in commands if command]
        _write(formatter, "Commands", rows)
        write_options(self, ctx, formatter)


def write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """Arguments, then options by their panels, in the order of their declaration."""
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    panels = list(dict.fromkeys(map(_panel, params)))
    for panel, members in groupby(sorted(params, key=lambda p: panels.index(_panel(p))), _panel):
        _write(formatter, panel, [_row(param, ctx) for param in members])


def _write(formatter: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    plain = "NO_COLOR" in os.environ
    shown = [(name if plain else typer.style(name, bold=True), text) for name, text in rows]
    with formatter.section(title):
        formatter.write_dl(shown, col_max=min(NAMES, formatter.width // 3))


def _panel(param: Any) -> str:
    kind = "Arguments" if param.param_type_name == "argument" else "Options"
    return param.rich_help_panel or kind


def _row(param: Any, ctx: Any) -> tuple[str, str]:
    """Names of an option, with what it takes, and its help."""
    param.show_envvar = False
    text = param.get_help_record(ctx)[1]
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper(), text
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        return names.replace("--", "--[no-]", 1), text
    if param.is_flag:
        return names, text
    shown = param.display_type(ctx).strip("<>")
    if "|" in shown:
        return f"{names} CHOICE", f"{text}  [{shown.replace('|', ', ')}]"
    kind = re.sub(r"list\[|\]| range", "", shown).upper()
    return f"{names} {param.metavar or kind.replace('STR', 'TEXT')}", text


def among(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes names, separated by commas, of which the last may be begun."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + choice for choice in choices if choice.startswith(last)]

    return complete


def complete_modes(incomplete: str) -> list[str]:
    """Of CoT modes, and all of them."""
    from softeval.modes import MODES

    return among(["all", *MODES])(incomplete)


def complete_tasks(incomplete: str) -> list[str]:
    """Of the shipped tasks."""
    from softeval.tasks.catalogue import task_catalogue

    return among(task_catalogue(None))(incomplete)


def complete_recipes(incomplete: str) -> list[str]:
    """Of the shipped recipes; their parts are joined by a plus."""
    from softeval.cli.recipes import shipped_recipes

    before, plus, last = incomplete.rpartition("+")
    return [before + plus + name for name in shipped_recipes() if name.startswith(last)]


def complete_grids(incomplete: str) -> list[str]:
    """Of the shipped sweeps."""
    grids = files("softeval.sweeps").joinpath("grids").iterdir()
    return among(sorted(path.name.removesuffix(".yaml") for path in grids))(incomplete)


def complete_runs(incomplete: str) -> list[str]:
    """Of run directories, below runs/ or what has been typed; LABEL= may stand before."""
    from softeval.runs.rundir import find_runs

    label, equals, typed = incomplete.rpartition("=")
    folder = Path(typed if typed.endswith("/") else os.path.dirname(typed) or "runs")
    found = map(str, find_runs(folder, nested=True)) if folder.is_dir() else []
    return [label + equals + run for run in found if run.startswith(typed)]
