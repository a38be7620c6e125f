"""`softeval ls`: the tasks and modes there are, and the runs in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from softeval.terminal import say, say_json

DEFAULT_FOLDER = Path("runs")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add `ls tasks`, `ls modes` and `ls runs`."""
    group = typer.Typer(no_args_is_help=True, help="List tasks, modes or runs.")
    group.command("tasks")(tasks)
    group.command("modes")(modes)
    group.command("runs")(runs)
    app.add_typer(group, name="ls")


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


def modes(as_json: AsJson = False) -> None:
    """List the CoT modes with their options."""
    from softeval.modes import MODES

    rows = [
        {
            "mode": mode.name,
            "family": mode.family,
            "samples": "one" if mode.is_greedy else "many",
            "options": " ".join(f"{name}={value}" for name, value in mode.options.items()),
        }
        for mode in MODES.values()
    ]
    _print(rows, as_json)


def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder that holds run directories.")
    ] = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder and in its folders, the one written last first."""
    from softeval.errors import UserError
    from softeval.runs.rundir import find_runs, read_record

    if not folder.is_dir() and folder != DEFAULT_FOLDER:
        raise UserError(f"no folder {folder}; give one that holds run directories")
    rows = []
    for path in find_runs(folder, nested=True):
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
