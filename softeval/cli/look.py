"""`softeval ls` and `env`: what is there to see: runs, tasks, modes, versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill, indent
from typing import Annotated, Any

import typer

from softeval import environment
from softeval.cli.help import Contents, Page
from softeval.cli.options import AsJson
from softeval.errors import UserError
from softeval.terminal import say, say_json

DEFAULT_FOLDER = Path("runs")

ls = typer.Typer(
    cls=Contents, no_args_is_help=True, rich_markup_mode=None, help="List tasks, modes or runs."
)


@ls.command(cls=Page)
def tasks(
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", help="Folder with YAMLs of tasks of your own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks."""
    from softeval.tasks.catalogue import task_catalogue

    rows = [
        {"task": entry.name, "kind": entry.kind, "members": ",".join(entry.members)}
        for entry in task_catalogue(include_path).values()
    ]
    _print(rows, as_json)


@ls.command(cls=Page)
def modes(as_json: AsJson = False) -> None:
    """List the CoT modes: what each feeds, its temperature, noise and options."""
    from softeval.modes import MODES, mode_order

    rows = [
        {
            "mode": mode.name,
            "family": mode.family,
            "samples": "one" if mode.is_greedy else "many",
            "meaning": mode.meaning,
            "temperature": mode.options.get("temperature"),
            "options": " ".join(f"{name}={value}" for name, value in mode.options.items()),
        }
        for mode in sorted(MODES.values(), key=mode_order)
    ]
    if as_json:
        say_json(rows)
        return
    for row in rows:
        say(row["mode"])
        hot = "" if row["temperature"] is None else f" Temperature {row['temperature']:g}."
        for line in (row["meaning"] + hot, row["options"]):
            width = get_terminal_size().columns - 2
            say(fill(line, width, initial_indent="  ", subsequent_indent="  "))


@ls.command(cls=Page)
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder that holds run directories.")
    ] = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder and in its folders, the one written last first."""
    from softeval.runs.rundir import find_runs, is_run, read_record

    if not folder.is_dir() and folder != DEFAULT_FOLDER:
        raise UserError(f"no folder {folder}; give one that holds run directories")
    rows = []
    for path in [folder] if is_run(folder) else find_runs(folder, nested=True):
        try:
            record = read_record(path)
        except UserError as error:
            say(f"softeval: {error}", err=True)
            continue
        config = record.get("config", {})
        rows.append(
            {
                "run": str(path),
                "status": record.get("status", "?"),
                "model": config.get("model") or "(bundled)",
                "tasks": ",".join(config.get("tasks", [])),
                "modes": ",".join(config.get("modes", [])),
            }
        )
    _print(rows, as_json)


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """JSON, or columns; the header only where there are rows."""
    if as_json:
        say_json(list(rows))
        return
    if not rows:
        say("none", err=True)
        return
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def env(
    as_json: AsJson = False,
) -> None:
    """Print package versions, hardware and settings."""
    import torch  # lets `hardware` name the accelerators

    found = {
        "versions": environment.package_versions(),
        "hardware": environment.hardware(),
        "settings": environment.settings(),
    }
    if as_json:
        say_json(found)
        return
    if not found["hardware"]["accelerators"]:
        why = "torch finds none" if torch.version.cuda else "this torch is built without CUDA"
        found["hardware"]["accelerators"] = f"no GPU ({why})"
    for title, values in found.items():
        say(f"{title}:")
        say(indent(environment.describe(values), "  "))
