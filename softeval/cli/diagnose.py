"""`softeval diagnose` and `softeval attribute`: what replaying a run's CoTs tells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from softeval.terminal import say, say_json


def register(app: typer.Typer) -> None:
    """Add both."""
    app.command("diagnose")(diagnose_command)
    app.command("attribute")(attribute_command)


def diagnose_command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    base: Annotated[str, typer.Option("--base", help="Base model: directory or hub id.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where the run's checkpoint is now, if it was moved."),
    ] = None,
    sets: Annotated[
        str, typer.Option("--sets", help="Prefixes to replay, of own, base, gold.")
    ] = "own,base,gold",
    samples: Annotated[
        int, typer.Option("--samples", help="Samples of each question and mode to replay.", min=1)
    ] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first questions of each task.", min=1)
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure exact KL to the base model along a run's prefixes, for the report's KL section."""
    from softeval.display import make_screen, no_progress_bars
    from softeval.replays.diagnose import diagnose

    with no_progress_bars(), make_screen() as screen:
        found = diagnose(
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
            tell=lambda what, done, total: screen.show(
                what, done, total, f"{done}/{total} prefixes", stays=done == total
            ),
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


def attribute_command(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where the run's checkpoint is now, if it was moved."),
    ] = None,
    modes: Annotated[
        str | None, typer.Option("--modes", help="Modes to replay; default: all of the run's.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", help="Samples of each question and mode to replay.", min=1)
    ] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first questions of each task.", min=1)
    ] = None,
    steps: Annotated[
        int,
        typer.Option("--steps", help="Steps of each CoT to take again by the token alone.", min=0),
    ] = 4,
    device: Annotated[str, typer.Option("--device", help="Of the model.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let fewer answers replace more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Change recorded CoTs (snapped, noise only, shuffled, swapped, cut) and decode the answers."""
    from softeval.display import make_screen, no_progress_bars
    from softeval.replays.attribute import NAME, attribute

    with no_progress_bars(), make_screen() as screen:
        found = attribute(
            run,
            model=model,
            modes=None if modes is None else [name.strip() for name in modes.split(",")],
            samples=samples,
            limit=limit,
            steps=steps,
            device=device,
            overwrite=overwrite,
            tell=lambda what, done, total: screen.show(
                what, done, total, f"{done}/{total} changes", stays=done == total
            ),
        )
    if as_json:
        say_json(found)
        return
    for mode, check in found.items():
        say(
            f"{mode}: {check['replayed']} CoTs; {check['differing']} unchanged ones gave another"
            " answer than recorded"
        )
    say(f"Written: {run / NAME}")
