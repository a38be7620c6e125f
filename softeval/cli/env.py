"""`softeval env`: versions, hardware and settings, to paste into a bug report."""

from __future__ import annotations

from textwrap import indent
from typing import Annotated

import typer

from softeval import environment
from softeval.terminal import say, say_json


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
        say_json(found)
        return
    for title, values in found.items():
        say(f"{title}:")
        say(indent(environment.describe(values), "  "))
