"""The `softeval` command: a registry of commands, and how errors leave it.

A command is a function of its name, whose module is imported when it is called: the list of commands
costs no numpy and no pydantic. What needs torch or pandas stays inside the commands.

Exit codes: 0 done, 1 failed, 2 a mistake in the request (one line on stderr), 3 finished with
missing samples, 130 interrupted (Ctrl-C), 143 interrupted (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from softeval.cli.help import Contents, Page, page_width
from softeval.errors import UserError
from softeval.terminal import one_line, say

COMMANDS = {
    "run": ("run", "Evaluate a checkpoint under the chain-of-thought modes."),
    "merge": (
        "run",
        "Put the shards of an evaluation (run --shard) together to one run directory.",
    ),
    "train": (
        "train",
        "Train a checkpoint with hard, soft or fuzzy chains of thought, or by COCONUT's curriculum.",
    ),
    "sweep": (
        "sweep",
        "Train, evaluate and diagnose every cell of a grid, and report them side by side.",
    ),
    "ablate": (
        "sweep",
        "Train, evaluate and diagnose every cell of a grid, and report them side by side.",
    ),
    "report": ("report", "Write one self-contained HTML report about one or many runs."),
    "compare": (
        "report",
        "Compare two runs, two modes, or the seeds of two methods, question by question.",
    ),
    "leaderboard": (
        "report",
        "List all runs below a folder, the best first, a table for each set of questions.",
    ),
    "claims": (
        "report",
        "Say which of the paper's claims runs of trained and untrained models support or refute.",
    ),
    "plan": (
        "report",
        "Say how many questions, samples or seeds a wanted difference of two sides needs.",
    ),
    "notebook": ("report", "Open a copy of the analysis notebook for a run."),
    "diagnose": (
        "measure",
        "Measure exact KL to the base model along a run's prefixes, for the report's KL section.",
    ),
    "attribute": (
        "measure",
        "Change recorded CoTs (snapped, noise only, shuffled, swapped, cut) and decode the answers.",
    ),
    "score": (
        "measure",
        "Score the stored samples again, without the model; old verdicts are kept beside.",
    ),
    "show": ("show", "Print a question: a line a mode, then a right and a wrong sample."),
    "ls": ("look", "List tasks, modes or runs."),
    "env": ("look", "Print package versions, hardware and settings."),
    "lm-eval": (
        "lm_eval",
        "Run lm-eval itself (`softeval lm-eval run --help`), with --model softeval and our tasks.",
    ),
}
"""Every command in the order of --help: its module in `softeval.cli`, and what it does."""

NEXT = """\
softeval evaluates, trains and reports hard, soft and fuzzy chains of thought.

  softeval run --limit 20 --num-samples 8          the checkpoint inside the package, at once
  softeval report RUN                              what came out: one HTML page
  softeval run --model CHECKPOINT --tasks gsm8k    a directory or hub id of yours; --dry-run first
  softeval ls runs                                 what is there; also: tasks, modes

softeval --help lists the commands, softeval COMMAND --help the options of one."""
"""What to do next, for whoever types the program's name alone."""

FAILED = 1
MISTAKE = 2
INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it kills: left as in order as by Ctrl-C."""


def interrupted(error: BaseException) -> int:
    """Exit code of an interruption, which typer may have wrapped."""
    told = (error, error.__cause__, error.__context__)
    return TERMINATED if any(isinstance(one, Terminated) for one in told) else INTERRUPTED


def build_app() -> typer.Typer:
    """The typer application with every command."""
    app = typer.Typer(
        name="softeval",
        cls=_OnDemand,
        help="Evaluate, train and report chain-of-thought with hard, soft and fuzzy tokens.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "auto_envvar_prefix": "SOFTEVAL",
            "help_option_names": ["--help", "-h"],
            "terminal_width": page_width(),
        },
    )
    app.callback()(_root)
    for name, (_, summary) in COMMANDS.items():
        app.command(name, help=summary)(_nothing_yet)
    return app


class _OnDemand(Contents):
    """Commands that are only names and summaries until one is called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            say(NEXT)
            raise typer.Exit
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # of which typer makes an exit code without a word
            raise typer.Abort from None


def _nothing_yet() -> None:
    """Stand in for a command that has not been imported."""


def load_command(name: str) -> Any:
    """Import a command of `COMMANDS` and build it with all its options."""
    module = import_module(f"softeval.cli.{COMMANDS[name][0]}")
    command = getattr(module, name.replace("-", "_"))
    app = typer.Typer(rich_markup_mode=None)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        # lm-eval parses all that follows its name.
        passed = {"context_settings": module.PASS_ALL} if name == "lm-eval" else {}
        app.command(name, cls=Page, add_help_option=not passed, **passed)(command)
    return typer.main.get_group(app).commands[name]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: arguments after the program's name; None takes those of the process.
    """
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    with _terminable():
        return _run(argv)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does; signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise Terminated

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _run(argv: list[str]) -> int:
    try:
        command = typer.main.get_command(build_app())
        code = command.main(argv, prog_name="softeval", standalone_mode=False)
    except UserError as error:
        return _fail(one_line(str(error)), MISTAKE)
    except (typer.Abort, KeyboardInterrupt) as error:
        return _fail("interrupted", interrupted(error))
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
        if type(error).__name__ == "OutOfMemoryError":  # torch's own, which is imported late
            return _fail(f"{one_line(str(error))[:200]}; take less at a time", FAILED)
        # Typer's own usage errors; it carries a private copy of click, so they have no public type.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error), err=True)
            return MISTAKE
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
        ),
    ] = False,
) -> None:
    """Options of the program itself; all work is done by its commands."""


def _usage(error: Any) -> str:
    """A usage error on one line."""
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return " ".join(error.format_message().split()) + hint


def _fail(message: str, code: int) -> int:
    say(f"softeval: {message}", err=True)
    return code
