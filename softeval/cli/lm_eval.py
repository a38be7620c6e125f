"""`softeval lm-eval ...`: lm-eval's own command line, with our model and tasks known to it."""

from __future__ import annotations

import typer

PASS_ALL = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


def register(app: typer.Typer) -> None:
    """Add `lm-eval`."""
    app.command("lm-eval", context_settings=PASS_ALL, add_help_option=False)(lm_eval)


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval itself (`softeval lm-eval run --help`), with --model softeval and our tasks."""
    from softeval.lmeval.command import lm_eval_main

    lm_eval_main(list(context.args))
