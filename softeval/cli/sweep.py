"""`softeval sweep` and `ablate`: many trainings, evaluated, diagnosed and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from softeval.cli.help import complete_grids
from softeval.cli.main import FAILED
from softeval.cli.options import AsJson
from softeval.cli.recipes import find_shipped, read_recipes
from softeval.cli.tables import TextTable, print_table
from softeval.errors import UserError
from softeval.options import read_pairs
from softeval.sweeps.chain import KINDS, Command, CommandState, SweepCell
from softeval.sweeps.estimate import CARD, MULTIPLIED, READ, cost_of, cost_record
from softeval.sweeps.grid import expand, read_grid
from softeval.sweeps.launch import Local, Slurm, run_missing
from softeval.terminal import calm_libraries, say, say_json

REPORT = "report.html"
TB = 1e12
BROWSED = 8
"""Questions in the report's browser of samples: there are many cells."""


class Where(StrEnum):
    """Where the commands of a sweep run."""

    LOCAL = "local"
    SLURM = "slurm"
    PRINT = "print"


def sweep(
    ctx: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.yaml",
            autocompletion=complete_grids,
            help="The grid, a file or a shipped name: paper (its whole experiment), claims (its claims "
            "in miniature), demo (two methods, two seeds, on a CPU), f1, f2, f3 (the paper's ablations of "
            "noise scale, placement and "
            "temperature), demo_f1, demo_f2, demo_f3 (in miniature).",
        ),
    ],
    output_path: Annotated[
        Path | None,
        typer.Option("--output-path", "-o", help="Where the cells go. Default: runs/sweep-<file>."),
    ] = None,
    launcher: Annotated[
        Where,
        typer.Option(
            "--launcher",
            help="Processes of this machine, jobs of Slurm through submitit (softeval[slurm]), or only "
            "print the commands that are missing, a cell a line.",
        ),
    ] = Where.LOCAL,
    at_once: Annotated[
        int, typer.Option("--at-once", "-j", help="Commands at a time, with local.", min=1)
    ] = 1,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="NAME=VALUE",
            help="Options of sbatch as submitit's SlurmExecutor names them, separated by commas: "
            "partition=gpu,train.time=2880,train.gpus_per_node=8.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and what is there; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Train, evaluate and diagnose every cell of a grid, and report them side by side.

    Each cell is ordinary softeval commands in directories of its own, which are all the state there
    is: started again, the same command does what is missing, and continues what was stopped.
    """
    calm_libraries()
    path = find_shipped(file, Path(str(files("softeval.sweeps") / "grids")), "grid")
    grid = read_grid(path)
    folder = output_path or Path("runs") / f"{ctx.info_name}-{path.stem}"
    recipes = {names: read_recipes(names) for names in grid.recipes}
    cells = expand(grid, recipes, folder)
    if slurm and launcher is not Where.SLURM:
        raise UserError("--slurm has no effect without --launcher slurm")
    if launcher is Where.PRINT:
        _print_missing(cells, _report_words(cells, grid.title, folder))
        return 0
    commands = [command for cell in cells for command in cell.commands]
    failed, stopped = [], 0
    if not dry_run:
        chosen = _launcher(launcher, at_once, folder, slurm or [])
        failed, stopped = run_missing(commands, chosen, lambda text: say(text, err=True))
    if as_json:
        say_json([_record(cell, dry_run) for cell in cells])
    else:
        _print_cells(cells, dry_run)
    for command in failed:
        say(f"softeval: failed: {command.typed}", err=True)
    if dry_run or stopped:
        return stopped
    done = [cell for cell in cells if not set(cell.commands) & set(failed)]
    if done:
        _report(_report_words(done, grid.title, folder))
    say(f"{len(done)} of {len(cells)} cells are done")
    return FAILED if failed else 0


ablate = sweep


def _launcher(where: Where, at_once: int, folder: Path, slurm: Sequence[str]) -> Local | Slurm:
    if where is Where.LOCAL:
        return Local(at_once)
    try:
        options = read_pairs(slurm)
    except ValueError as error:
        raise UserError(f"--slurm: {error}") from None
    return Slurm(folder / "slurm", options)


def _print_missing(cells: Sequence[SweepCell], report: Sequence[str]) -> None:
    """A line a cell, whose lines need nothing of each other, and the report as a comment."""
    for cell in cells:
        missing = [c.typed for c in cell.commands if c.state is not CommandState.DONE]
        if missing:
            say(" && ".join(missing))
    say(f"# then: {Command(tuple(report), Path()).text}")


def _record(cell: SweepCell, costed: bool) -> dict[str, Any]:
    steps = [
        {"command": c.typed, "folder": str(c.folder), "state": c.state}
        | ({"cost": cost_record(cost_of(c))} if costed else {})
        for c in cell.commands
    ]
    return {"cell": cell.name, "seed": cell.seed, "commands": steps}


def _print_cells(cells: Sequence[SweepCell], costed: bool) -> None:
    """The states, and before anything is run what it will take."""
    kinds = [kind for kind in KINDS if any(c.kind == kind for cell in cells for c in cell.commands)]
    rows = [
        [cell.name, "–" if cell.seed is None else str(cell.seed)]
        + [_states([c for c in cell.commands if c.kind == kind]) for kind in kinds]
        for cell in cells
    ]
    if not costed:
        print_table(TextTable(["cell", "seed", *kinds], rows))
        return
    costs = [[cost_of(command) for command in cell.commands] for cell in cells]
    for row, found in zip(rows, costs, strict=True):
        known = [cost.gpu_hours for cost in found if cost is not None]
        row.append(f"{sum(known):,.1f}" if known else "–")
    print_table(TextTable(["cell", "seed", *kinds, "GPU-hours"], rows))
    every = [cost for found in costs for cost in found if cost is not None]
    say()
    say(
        f"{sum(cost.gpu_hours for cost in every):,.0f} GPU-hours and"
        f" {sum(cost.bytes for cost in every) / TB:,.2f} TB on disk in all, by arithmetic: on {CARD}s at"
        f" {100 * READ:.0f} % of their bandwidth and {100 * MULTIPLIED:.0f} % of their operations a second,"
        " which is assumed and not measured, and with every CoT as long as its cap; without replays."
    )


def _states(commands: Sequence[Command]) -> str:
    """How far the commands of one kind are."""
    states = [command.state for command in commands]
    if len(states) > 1 and CommandState.DONE in states:
        return f"{states.count(CommandState.DONE)} of {len(states)} done"
    return min(states, default="–")  # begun before missing


def _report_words(cells: Sequence[SweepCell], title: str | None, folder: Path) -> list[str]:
    """The report's command."""
    named = [
        f"{cell.name}={place}" if cell.seed is not None else str(place)
        for cell in cells
        for place in cell.reported
    ]
    titled = [] if title is None else ["--title", title]
    return ["report", *named, *titled, "--problems", str(BROWSED), "--output", str(folder / REPORT)]


def _report(words: Sequence[str]) -> None:
    from softeval.cli.main import load_command

    load_command("report").main(list(words[1:]), standalone_mode=False)
