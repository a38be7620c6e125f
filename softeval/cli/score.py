"""`softeval score`: judge the samples of a run again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from softeval.runs import rundir
from softeval.scoring.judge import Rules, Scorer, rules_of
from softeval.terminal import say, say_json


def register(app: typer.Typer) -> None:
    """Add `score`."""
    app.command("score")(score)


def score(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    workers: Annotated[
        int, typer.Option("--workers", help="Scoring processes.", min=1, max=64)
    ] = 2,
    timeout: Annotated[
        float, typer.Option("--timeout", help="CPU seconds for one answer.", min=0.1)
    ] = 5.0,
    rules: Annotated[
        Rules | None,
        typer.Option("--scorer", help="Rules that judge. Default: those of the run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the stored samples again, without the model; old verdicts are kept beside."""
    from softeval.runs.rescore import rescore

    rules = rules or rules_of(rundir.read_record(run))
    with Scorer(workers=workers, timeout=timeout, rules=rules) as scorer:
        found = rescore(run, scorer)
    if as_json:
        say_json(asdict(found))
        return
    say(
        f"{found.samples} samples scored: {found.gained} now right, {found.lost} now wrong,"
        f" {found.statuses} with another status"
    )
    if found.kept is not None:
        say(f"verdicts before: {run / found.kept}")
