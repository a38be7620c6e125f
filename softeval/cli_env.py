"""`softeval env`: versions, hardware and settings, to paste into a bug report."""

from __future__ import annotations

import json
from textwrap import indent
from typing import Annotated

import typer

from softeval import environment


def register(app: typer.Typer) -> None:
    """Add `env`."""
    app.command("env")(env)


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print package versions, hardware and settings."""
    import torch  # noqa: F401 - lets `hardware` name the accelerators

    found = {
        "versions": environment.package_versions(),
        "hardware": environment.hardware(),
        "settings": environment.settings(),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for title, values in found.items():
        typer.echo(f"{title}:")
        typer.echo(indent(environment.describe(values), "  "))
