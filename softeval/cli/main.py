"""The `softeval` command: a registry of commands, and how errors leave it.

Each command lives in a small module with `register(app)`; heavy imports stay inside the commands.

Exit codes: 0 done, 1 failed, 2 a mistake in the request (one line on stderr), 3 finished with
missing samples, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from softeval.errors import UserError
from softeval.terminal import one_line, say

COMMANDS = (
    "softeval.cli.run",
    "softeval.cli.train",
    "softeval.cli.report",
    "softeval.cli.diagnose",
    "softeval.cli.score",
    "softeval.cli.show",
    "softeval.cli.ls",
    "softeval.cli.env",
    "softeval.cli.lm_eval",
)
"""Modules whose `register(app)` adds commands, in the order of --help."""

FAILED = 1
MISTAKE = 2
INTERRUPTED = 130


def build_app() -> typer.Typer:
    """The typer application with every command."""
    app = typer.Typer(
        name="softeval",
        help="Evaluate, train and report chain-of-thought with hard, soft and fuzzy tokens.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={
            "token_normalize_func": _kebab,
            "auto_envvar_prefix": "SOFTEVAL",
            "help_option_names": ["--help", "-h"],
        },
    )
    app.callback()(_root)
    for name in COMMANDS:
        import_module(name).register(app)
    return app


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: arguments after the program's name; None takes those of the process.
    """
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        command = typer.main.get_command(build_app())
        code = command.main(argv, prog_name="softeval", standalone_mode=False)
    except UserError as error:
        return _fail(one_line(str(error)), MISTAKE)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except MemoryError:
        return _fail("out of memory; allow more (ulimit -v), or take less at a time", FAILED)
    except BrokenPipeError:
        # The reader of a pipe has left; keep Python from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.strerror is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror.lower()}{where}", FAILED)
    except Exception as error:
        # Typer's own usage errors; it carries a private copy of click, so they have no public type.
        if not hasattr(error, "format_message"):
            raise
        return _fail(_usage(error), getattr(error, "exit_code", MISTAKE))
    return code if isinstance(code, int) else 0


def _print_version(wanted: bool) -> None:
    if wanted:
        from softeval import __version__

        say(f"softeval {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
            show_envvar=False,
        ),
    ] = False,
) -> None:
    """Options of the program itself; all work is done by its commands."""


def _kebab(token: str) -> str:
    return token.replace("_", "-")


def _usage(error: Any) -> str:
    """A usage error on one line; the help text where the command was called bare."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.format_message()  # empty where the help has been printed already
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return " ".join(error.format_message().split()) + hint


def _fail(message: str, code: int) -> int:
    if message:
        say(f"softeval: {message}", err=True)
    return code
