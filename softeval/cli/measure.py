"""`softeval diagnose`, `attribute` and `score`: what is measured on a finished run, later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from softeval.cli.options import AsJson, MovedModel, RunFolder
from softeval.display import make_screen, no_progress_bars
from softeval.runs import rundir
from softeval.scoring.judge import Rules, Scorer, rules_of
from softeval.terminal import say, say_json

if TYPE_CHECKING:
    from softeval.replays.diagnose import Tell

Samples = Annotated[
    int, typer.Option("--samples", help="Samples of each question and mode to replay.", min=1)
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Only the first questions of each task.", min=1)
]


@contextmanager
def _told(unit: str) -> Iterator[Tell]:
    """Shows how many of the units are done."""
    with no_progress_bars(), make_screen() as screen:
        yield lambda what, done, total: screen.show(
            what, done, total, f"{done}/{total} {unit}", stays=done == total
        )


def diagnose(
    run: RunFolder,
    base: Annotated[str, typer.Option("--base", help="Base model: directory or hub id.")],
    model: MovedModel = None,
    sets: Annotated[
        str, typer.Option("--sets", help="Prefixes to replay, of own, base, gold.")
    ] = "own,base,gold",
    samples: Samples = 1,
    limit: Limit = None,
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", help="Local data with reference solutions.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Of both models.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of both models; default: the run's.")
    ] = None,
    self_check: Annotated[
        bool,
        typer.Option("--self-check/--no-self-check", help="Try at load that both run rightly."),
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Let fewer prefixes replace more, or another base model."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure exact KL to the base model along a run's prefixes, for the report's KL section."""
    from softeval.replays.diagnose import diagnose as replay

    with _told("prefixes") as tell:
        found = replay(
            run,
            base,
            model=model,
            sets=[name.strip() for name in sets.split(",")],
            samples=samples,
            limit=limit,
            data_dir=data_dir,
            device=device,
            dtype=dtype,
            self_check=self_check,
            overwrite=overwrite,
            tell=tell,
        )
    if as_json:
        say_json(asdict(found))
        return
    replayed = ", ".join(f"{count} {name}" for name, count in found.prefixes.items())
    say(f"Replayed {replayed} prefixes; noise floor {found.floor:.2g} nats a token.")
    if found.differing:
        say(
            f"{found.differing} of {found.regenerated} soft CoTs came out otherwise than recorded "
            "(another device or precision?); their new text was measured."
        )
    for task in found.missing_gold:
        say(f"{task} has no reference solutions; no gold prefixes for it.")
    say(f"Written: {run / 'kl.parquet'}")


def attribute(
    run: RunFolder,
    model: MovedModel = None,
    modes: Annotated[
        str | None, typer.Option("--modes", help="Modes to replay; default: all of the run's.")
    ] = None,
    samples: Samples = 1,
    limit: Limit = None,
    steps: Annotated[
        int,
        typer.Option("--steps", help="Steps of each CoT to take again by the token alone.", min=0),
    ] = 4,
    device: Annotated[str, typer.Option("--device", help="Of the model.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let fewer answers replace more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Change recorded CoTs (snapped, noise only, shuffled, swapped, cut) and decode the answers."""
    from softeval.replays.attribute import NAME
    from softeval.replays.attribute import attribute as replay

    with _told("changes") as tell:
        found = replay(
            run,
            model=model,
            modes=None if modes is None else [name.strip() for name in modes.split(",")],
            samples=samples,
            limit=limit,
            steps=steps,
            device=device,
            overwrite=overwrite,
            tell=tell,
        )
    if as_json:
        say_json(found)
        return
    for mode, check in found.items():
        say(
            f"{mode}: {check['replayed']} CoTs, {check['otherwise']} of them otherwise than recorded"
            f" (measured as they are now); {check['differing']} unchanged ones gave another answer"
        )
    say(f"Written: {run / NAME}")


def score(
    run: RunFolder,
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
    as_json: AsJson = False,
) -> None:
    """Score the stored samples again, without the model; old verdicts are kept beside."""
    from softeval.runs.rescore import rescore

    record = rundir.read_record(run)
    asked = (record.get("config") or {}).get("scorer") or Rules.SOFTEVAL
    rules = rules or rules_of(record) or Rules(asked)
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
